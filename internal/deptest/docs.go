// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deptest

import (
	"fmt"
	"go/ast"
	"go/doc"
	"go/token"
	"strings"
)

// PackageDoc complains unless exactly one of the package's files carries the
// package comment. A directory that holds only tests needs none.
func (p *Package) PackageDoc() []string {
	var files int
	var documented []string
	for _, f := range p.Files {
		if f.Test {
			continue
		}
		files++
		if f.AST.Doc.Text() != "" {
			documented = append(documented, f.Name)
		}
	}
	switch {
	case files == 0 || len(documented) == 1:
		return nil
	case len(documented) == 0:
		return []string{fmt.Sprintf("%s: package %s has no package comment", p.Dir, p.Name)}
	default:
		return []string{fmt.Sprintf("%s: package %s has more than one package comment: %s", p.Dir, p.Name, strings.Join(documented, ", "))}
	}
}

// Undocumented complains about exported names without a comment: types,
// functions, methods, constants and variables (one comment for a group will do),
// methods of interfaces that have several, and fields of structs called Config
// or ...Config (a comment also covers the fields that follow it without a blank
// line). Other fields and a lone method may be explained by their type's comment.
// Generated files are left out.
func (p *Package) Undocumented() []string {
	var problems []string
	for _, f := range p.Files {
		if f.Test || ast.IsGenerated(f.AST) {
			continue
		}
		missing := func(pos token.Pos, kind, name string) {
			problems = append(problems, fmt.Sprintf("%sexported %s %s has no comment", f.at(pos), kind, name))
		}
		for _, decl := range f.AST.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				receiver := ""
				if decl.Recv != nil {
					if receiver = receiverName(decl.Recv); !ast.IsExported(receiver) {
						continue
					}
					receiver += "."
				}
				if decl.Name.IsExported() && decl.Doc.Text() == "" {
					missing(decl.Pos(), "function", receiver+decl.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if !spec.Name.IsExported() {
							continue
						}
						if spec.Doc.Text() == "" && spec.Comment.Text() == "" && (decl.Lparen.IsValid() || decl.Doc.Text() == "") {
							missing(spec.Pos(), "type", spec.Name.Name)
						}
						f.members(spec, missing)
					case *ast.ValueSpec:
						if spec.Doc.Text() != "" || spec.Comment.Text() != "" || decl.Doc.Text() != "" {
							continue
						}
						for _, name := range spec.Names {
							if name.IsExported() {
								missing(name.Pos(), decl.Tok.String(), name.Name)
							}
						}
					}
				}
			}
		}
	}
	return problems
}

// members looks at the fields of a configuration and the methods of an interface.
func (f *File) members(spec *ast.TypeSpec, missing func(token.Pos, string, string)) {
	var fields *ast.FieldList
	kind := "field"
	switch t := spec.Type.(type) {
	case *ast.StructType:
		fields = t.Fields
		if !strings.HasSuffix(spec.Name.Name, "Config") {
			return
		}
	case *ast.InterfaceType:
		fields, kind = t.Methods, "method"
		if fields.NumFields() == 1 {
			return
		}
	default:
		return
	}
	covered, line := false, 0
	for _, field := range fields.List {
		first := f.fset.Position(field.Pos()).Line
		own := field.Doc.Text() != "" || field.Comment.Text() != ""
		covered = own || covered && kind == "field" && first == line+1
		line = f.fset.Position(field.End()).Line
		if covered {
			continue
		}
		for _, name := range field.Names { // an embedded type has none, and its own comment
			if name.IsExported() {
				missing(name.Pos(), kind, spec.Name.Name+"."+name.Name)
			}
		}
	}
}

// receiverName is T for the receivers T, *T and *T[P].
func receiverName(list *ast.FieldList) string {
	for expr := list.List[0].Type; ; {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}

// Exports reports whether the package exports anything outside its tests.
func (p *Package) Exports() bool {
	for _, f := range p.Files {
		if f.Test {
			continue
		}
		for _, decl := range f.AST.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil && decl.Name.IsExported() {
					return true
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						if spec.Name.IsExported() {
							return true
						}
					case *ast.ValueSpec:
						for _, name := range spec.Names {
							if name.IsExported() {
								return true
							}
						}
					}
				}
			}
		}
	}
	return false
}

// Examples reports whether the package has an example at all, and whether go test
// runs one, which it does only for those that say what they print.
func (p *Package) Examples() (some, run bool) {
	var files []*ast.File
	for _, f := range p.Files {
		if f.Test {
			files = append(files, f.AST)
		}
	}
	examples := doc.Examples(files...)
	for _, example := range examples {
		run = run || example.Output != "" || example.EmptyOutput
	}
	return len(examples) > 0, run
}
