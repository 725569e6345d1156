// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// Mermaid returns the definition as a Mermaid flowchart: the steps in order, the pivot
// as a hexagon, and where a refusal leads.
func (d *Definition[T]) Mermaid() string {
	escape := strings.NewReplacer("#", "#35;", `"`, "#quot;").Replace
	g := d.d.graph()
	var b strings.Builder
	b.WriteString("flowchart TD\n")
	for _, n := range g {
		switch n.shape {
		case "oval":
			fmt.Fprintf(&b, "  %s([%s])\n", n.id, n.label)
		case "hexagon":
			fmt.Fprintf(&b, "  %s{{\"%s\"}}\n", n.id, escape(n.label))
		default:
			fmt.Fprintf(&b, "  %s[\"%s\"]\n", n.id, escape(n.label))
		}
		for _, from := range n.from {
			fmt.Fprintf(&b, "  %s --> %s\n", from, n.id)
		}
		for _, from := range n.refused {
			fmt.Fprintf(&b, "  %s -. refused .-> %s\n", from, n.id)
		}
	}
	return b.String()
}

// DOT returns the definition as a Graphviz digraph.
func (d *Definition[T]) DOT() string {
	var b strings.Builder
	fmt.Fprintf(&b, "digraph %q {\n", d.d.name)
	for _, n := range d.d.graph() {
		fmt.Fprintf(&b, "  %s [label=%q, shape=%s];\n", n.id, n.label, n.shape)
		for _, from := range n.from {
			fmt.Fprintf(&b, "  %s -> %s;\n", from, n.id)
		}
		for _, from := range n.refused {
			fmt.Fprintf(&b, "  %s -> %s [style=dashed, label=refused];\n", from, n.id)
		}
	}
	b.WriteString("}\n")
	return b.String()
}

// node is one box of a diagram with the arrows that lead to it.
type node struct {
	id, label, shape string
	from, refused    []string
}

func (d *definition) graph() []node {
	g := []node{{id: "start", label: "start", shape: "oval"}}
	sh := d.shape(0)
	// undo is what a refusal of step i leads to.
	undo := func(i int) string {
		s, _, _ := sh.Decide(core.State{Status: core.Running, Step: i}, core.Event{Kind: core.Refused})
		if s.Step < 0 {
			return "compensated"
		}
		return fmt.Sprintf("u%d", s.Step+1)
	}
	refused := map[string][]string{}
	last := "start"
	for i, s := range d.steps {
		n := node{id: fmt.Sprintf("s%d", i+1), label: s.Name, shape: "box", from: []string{last}}
		if s.Pivot {
			n.shape = "hexagon"
		}
		if i <= sh.Pivot {
			refused[undo(i)] = append(refused[undo(i)], n.id)
		}
		g = append(g, n)
		last = n.id
	}
	g = append(g, node{id: "completed", label: "completed", shape: "oval", from: []string{last}})
	last = ""
	for i := len(d.steps) - 1; i >= 0; i-- {
		if d.steps[i].Undo == KindNone {
			continue
		}
		n := node{id: fmt.Sprintf("u%d", i+1), label: "undo " + d.steps[i].Name, shape: "box"}
		n.refused = refused[n.id]
		if last != "" {
			n.from = []string{last}
		}
		g = append(g, n)
		last = n.id
	}
	end := node{id: "compensated", label: "compensated", shape: "oval", refused: refused["compensated"]}
	if last != "" {
		end.from = []string{last}
	}
	if last != "" || len(end.refused) > 0 {
		g = append(g, end)
	}
	return g
}
