// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"fmt"
	"strings"
)

// Mermaid returns the definition as a Mermaid flowchart: the steps in order, the pivot
// as a hexagon, each compensation beside its step.
func (d *Definition[T]) Mermaid() string {
	var b strings.Builder
	b.WriteString("flowchart TD\n  start([start])\n")
	quote := func(s string) string { return strings.NewReplacer("\"", "#quot;", "#", "#35;").Replace(s) }
	steps := d.d.steps
	last, undone := "start", ""
	for i, s := range steps {
		id := fmt.Sprintf("s%d", i+1)
		open, shut := "[", "]"
		if s.Pivot {
			open, shut = "{{", "}}"
		}
		fmt.Fprintf(&b, "  %s%s\"%s\"%s\n  %s --> %s\n", id, open, quote(s.Name), shut, last, id)
		last = id
		if s.Undo == KindNone {
			continue
		}
		fmt.Fprintf(&b, "  u%d[\"undo %s\"]\n  %s -. refused .-> u%d\n", i+1, quote(s.Name), id, i+1)
		if undone != "" {
			fmt.Fprintf(&b, "  u%d --> %s\n", i+1, undone)
		}
		undone = fmt.Sprintf("u%d", i+1)
	}
	fmt.Fprintf(&b, "  completed([completed])\n  %s --> completed\n", last)
	first := firstUndo(steps)
	if first > 0 {
		fmt.Fprintf(&b, "  compensated([compensated])\n  u%d --> compensated\n", first)
	}
	return b.String()
}

// DOT returns the definition as a Graphviz digraph.
func (d *Definition[T]) DOT() string {
	var b strings.Builder
	steps := d.d.steps
	fmt.Fprintf(&b, "digraph %q {\n  start [shape=oval];\n  completed [shape=oval];\n", d.d.name)
	last, undone := "start", ""
	for i, s := range steps {
		shape := "box"
		if s.Pivot {
			shape = "hexagon"
		}
		id := fmt.Sprintf("s%d", i+1)
		fmt.Fprintf(&b, "  %s [label=%q, shape=%s];\n  %s -> %s;\n", id, s.Name, shape, last, id)
		last = id
		if s.Undo == KindNone {
			continue
		}
		fmt.Fprintf(&b, "  u%d [label=%q, shape=box];\n  %s -> u%d [style=dashed, label=refused];\n", i+1, "undo "+s.Name, id, i+1)
		if undone != "" {
			fmt.Fprintf(&b, "  u%d -> %s;\n", i+1, undone)
		}
		undone = fmt.Sprintf("u%d", i+1)
	}
	fmt.Fprintf(&b, "  %s -> completed;\n", last)
	if first := firstUndo(steps); first > 0 {
		fmt.Fprintf(&b, "  compensated [shape=oval];\n  u%d -> compensated;\n", first)
	}
	b.WriteString("}\n")
	return b.String()
}

// firstUndo returns the number of the first step with a compensation, or 0.
func firstUndo(steps []erased) int {
	for i, s := range steps {
		if s.Undo != KindNone {
			return i + 1
		}
	}
	return 0
}
