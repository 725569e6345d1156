// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import (
	"fmt"
	"strings"

	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// shapes are those of Mermaid around a label, by the name of DOT's shape.
var shapes = map[string][2]string{
	"oval": {"([", "])"}, "box": {`["`, `"]`}, "hexagon": {`{{"`, `"}}`}, "diamond": {`{"`, `"}`},
	"ellipse": {`("`, `")`}, "cds": {`>"`, `"]`}, "component": {`[["`, `"]]`},
}

// shape returns the shape of a step: a hexagon for the pivot, a diamond for a decision, a
// flag for a message, a round box for a wait, a box with bars for a child.
func (s *erased) shape() string {
	switch {
	case s.Pivot:
		return "hexagon"
	case s.Kind == KindIf:
		return "diamond"
	case s.Kind == KindSend:
		return "cds"
	case s.Kind == KindChild:
		return "component"
	case s.Kind.idle():
		return "ellipse"
	}
	return "box"
}

// Mermaid returns the definition as a Mermaid flowchart: the steps in order, the pivot
// as a hexagon, decisions as diamonds, and where a refusal leads. Undos are drawn as one
// chain; those of steps that did not take place are left out on the way.
func (d *Definition[T]) Mermaid() string {
	escape := strings.NewReplacer("#", "#35;", `"`, "#quot;").Replace
	var b strings.Builder
	b.WriteString("flowchart TD\n")
	for _, n := range d.d.graph() {
		around := shapes[n.shape]
		fmt.Fprintf(&b, "  %s%s%s%s\n", n.id, around[0], escape(n.label), around[1])
		for _, from := range n.from {
			arrow := "-->"
			if from.label != "" {
				arrow = "-- " + from.label + " -->"
			}
			fmt.Fprintf(&b, "  %s %s %s\n", from.id, arrow, n.id)
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
			label := ""
			if from.label != "" {
				label = " [label=" + from.label + "]"
			}
			fmt.Fprintf(&b, "  %s -> %s%s;\n", from.id, n.id, label)
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
	from             []arrow
	refused          []string
}

type arrow struct{ id, label string }

func (d *definition) graph() []node {
	g := []node{{id: "start", label: "start", shape: "oval"}}
	ends := d.flow(&g, 0, len(d.steps), 0, []arrow{{id: "start"}})
	g = append(g, node{id: "completed", label: "completed", shape: "oval", from: ends})

	refused := map[string][]string{}
	sh := d.shape(0, false)
	for i := range d.steps {
		if k := d.steps[i].Kind; i <= sh.Pivot && k != KindSleep && k != KindIf {
			to := d.undoOf(sh, i)
			refused[to] = append(refused[to], stepID(i))
		}
	}
	var last []arrow
	for i := len(d.steps) - 1; i >= 0; i-- {
		if d.steps[i].Undo == KindNone {
			continue
		}
		n := node{id: fmt.Sprintf("u%d", i+1), label: "undo " + d.steps[i].Name, shape: "box", from: last}
		n.refused = refused[n.id]
		g, last = append(g, n), []arrow{{id: n.id}}
	}
	end := node{id: "compensated", label: "compensated", shape: "oval", from: last, refused: refused["compensated"]}
	if last != nil || len(end.refused) > 0 {
		g = append(g, end)
	}
	return g
}

func stepID(i int) string { return fmt.Sprintf("s%d", i+1) }

// flow adds the steps from lo to hi, which depend on depth decisions, behind the open
// ends of what was added before, and returns the new ends.
func (d *definition) flow(g *[]node, lo, hi, depth int, open []arrow) []arrow {
	for i := lo; i < hi; {
		s := &d.steps[i]
		n := max(s.Parallel, 1)
		var next []arrow
		for k := i; k < i+n; k++ {
			*g = append(*g, node{id: stepID(k), label: d.steps[k].Name, shape: d.steps[k].shape(), from: open})
			next = append(next, arrow{id: stepID(k)})
		}
		i, open = i+n, next
		if s.Kind != KindIf {
			continue
		}
		of := func(want bool) (end int) {
			for end = i; end < hi && len(d.steps[end].When) > depth && d.steps[end].When[depth] == (Decision{s.Name, want}); end++ {
			}
			return end
		}
		yes := of(true)
		taken := d.flow(g, i, yes, depth+1, []arrow{{next[0].id, "yes"}})
		i = yes
		no := of(false)
		open = append(taken, d.flow(g, i, no, depth+1, []arrow{{next[0].id, "no"}})...)
		i = no
	}
	return open
}

// undoOf returns what a refusal of step i leads to.
func (d *definition) undoOf(sh *core.Shape, i int) string {
	from := i
	for first := 0; first <= i; first++ {
		if last := sh.Last(first); last >= i {
			from = last
			break
		}
	}
	if sh.Steps[i].Local {
		from--
	}
	var chosen core.State
	for _, guard := range sh.Steps[i].Guards {
		if guard.Want {
			chosen.Chosen = chosen.Chosen.With(guard.Step)
		}
	}
	for ; from >= 0; from-- {
		// A step behind a decision that this one does not depend on may have taken place.
		if sh.Steps[from].Undo && (len(sh.Steps[from].Guards) > len(sh.Steps[i].Guards) || sh.Live(chosen, from)) {
			return fmt.Sprintf("u%d", from+1)
		}
	}
	return "compensated"
}
