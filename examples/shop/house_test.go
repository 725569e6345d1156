// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
)

// TestServicesStandApart holds every service to what it may know: the kernel, the
// platform, the interfaces generated from .proto files, and the library, but no other service.
func TestServicesStandApart(t *testing.T) {
	const internal = "github.com/dovetail-go/dovetail/examples/shop/internal/"
	for _, service := range append([]string{assembly.Gateway, "platform", "kernel"}, assembly.Backends...) {
		files, err := filepath.Glob(filepath.Join("internal", service, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("service %s has no files: %v", service, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range parsed.Imports {
				other, inside := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), internal)
				allowed := other == "kernel" || other == "platform" && service != "kernel" || strings.HasSuffix(other, "pb")
				if inside && !allowed {
					t.Errorf("%s imports %s: a service knows the others by their interface only", file, other)
				}
			}
		}
	}
}
