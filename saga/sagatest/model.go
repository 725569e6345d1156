// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/internal/core"
)

// model is a definition with the world around it: the row in the store, the nodes,
// the participants and the network. Decisions are those of the engine's own core.
type model struct {
	name   string
	shape  *core.Shape
	steps  []stepModel
	nodes  int
	bounds Bounds
	wrong  wrong
}

type stepModel struct {
	saga.StepInfo
	guarded, forgetful, harmless bool
}

const (
	maxSteps = 12
	maxNodes = 3
)

func newModel(def saga.Registered, b Bounds) model {
	m := model{name: def.Name(), bounds: b, wrong: b.wrong}
	infos := def.Steps()
	if len(infos) > maxSteps {
		panic(fmt.Sprintf("sagatest: %s has %d steps, want at most %d", m.name, len(infos), maxSteps))
	}
	var steps []core.Step
	for _, s := range infos {
		m.steps = append(m.steps, stepModel{s, !slices.Contains(b.Unguarded, s.Name), slices.Contains(b.Forgetful, s.Name), slices.Contains(b.Harmless, s.Name)})
		idle := onlyWaits(s.Kind)
		c := core.Step{
			Local: s.Kind == saga.KindLocal || idle, Idle: idle, Undo: s.Undo != saga.KindNone, Pivot: s.Pivot,
			Attempts: min(s.Attempts, 3), Group: s.Parallel,
		}
		for _, d := range s.When {
			c.Guards = append(c.Guards, core.Guard{Step: slices.IndexFunc(infos, func(o saga.StepInfo) bool { return o.Name == d.Step }), Want: d.Want})
		}
		steps = append(steps, c)
	}
	m.shape = core.NewShape(steps)
	m.nodes = min(bound(b.Nodes, 2), maxNodes)
	return m
}

// onlyWaits reports whether a step of this kind does nothing but wait or decide.
func onlyWaits(k saga.Kind) bool {
	return k == saga.KindAwait || k == saga.KindSleep || k == saga.KindLock || k == saga.KindIf
}

// bound returns the value of a field of Bounds.
func bound(v, fallback int) int {
	if v == 0 {
		v = fallback
	}
	return min(max(v, 0), 3)
}

// row is the saga in the store. It is also what a node remembers of it.
type row struct {
	status  core.Status
	step    int8
	attempt uint8
	cancel  bool
	parked  bool
	// waits is true when the current steps have been sent and their replies are awaited.
	waits  bool
	chosen uint16 // the decisions that were positive, one bit for each step
}

func (r row) ended() bool { return r.status == core.Completed || r.status == core.Compensated }

func (r row) state() core.State {
	s := core.State{Status: r.status, Step: int(r.step), Attempt: int(r.attempt), Parked: r.parked, Chosen: core.Set(r.chosen)}
	if r.cancel {
		s.Cancel = "x"
	}
	return s
}

// rowOf forgets what does not matter to what can happen next.
func (m *model) rowOf(s core.State) row {
	r := row{status: s.Status, step: int8(s.Step), cancel: s.Cancel != "", parked: s.Parked, chosen: uint16(s.Chosen), waits: s.Waiting != 0}
	if s.Status == core.Running && s.Step < len(m.steps) && m.shape.Steps[s.Step].Attempts > 0 {
		r.attempt = uint8(s.Attempt)
	}
	return r
}

// phase is what a node is doing.
type phase uint8

const (
	idle     phase = iota
	asked          // it has sent a request, or is in the transaction of a local operation
	unheard        // the request was handled, but the answer is lost
	accepted       // the answer "done" is on its way
	refused        // the answer "refused" is on its way
)

type node struct {
	phase phase
	// owns tells whether the row's epoch is the one the node claimed; fresh, whether the
	// row's revision is the one it knows.
	owns, fresh bool
	knows       row
}

// participant is what a step has done to the world.
type participant struct {
	did, undid uint8
	// barred is the barrier's mark that the step was undone, or refused for good.
	barred bool
}

const nobody, dead = 0, 7

// world is one state.
type world struct {
	row   row
	owner uint8 // nobody, the number of a node from 1, or dead
	late  bool  // the deadline has passed
	nodes [maxNodes]node
	parts [maxSteps]participant
	// astray are requests under way that nobody waits for, one bit for each step.
	astray [2]uint16 // do, undo
	// replies are the answers to messages that the store keeps, no those that refuse.
	replies [2]uint16
	no      uint16
	// what may still go wrong
	crashes, stalls, failures, duplicates, cancels uint8
}

func (m *model) begin() world {
	b := m.bounds
	return world{
		row: row{status: core.Running}, crashes: uint8(bound(b.Crashes, 1)), stalls: uint8(bound(b.Stalls, 1)),
		failures: uint8(bound(b.Failures, 2)), duplicates: uint8(bound(b.Duplicates, 1)), cancels: min(uint8(bound(b.Cancels, 1)), 1),
	}
}

// kind is what happens in the step from one state to the next.
type kind uint8

const (
	claims kind = iota + 1
	takesOver
	handles  // a participant handles a node's request, and answers
	loses    // a participant handles a node's request, and the answer is lost
	rejects  // a participant refuses a node's request
	fails    // a participant or the network fails before anything happens
	timesOut // a node stops waiting
	hears    // a node receives the answer
	commits  // a node commits a local operation
	declines // a local operation refuses
	arms     // a node commits a message and begins to wait
	decides  // a node commits a positive decision
	crashes
	duplicates // the network copies a node's request
	arrives    // a request that nobody waits for is handled
	repels     // a message is refused
	cancels
	expires // the deadline passes
)

type event struct {
	kind kind
	node uint8 // from 1
	step int8
	undo bool
	// again is true if the message stays under way.
	again bool
}

// next calls emit with every state that can follow w.
func (m *model) next(w *world, emit func(world, event)) {
	for n := range m.nodes {
		m.nodeMoves(w, n, emit)
	}
	for op := range 2 {
		for i := range m.steps {
			if w.astray[op]&(1<<i) != 0 {
				m.arrive(w, i, op, emit)
			}
		}
	}
	if w.row.ended() || w.row.parked {
		return
	}
	if w.cancels > 0 {
		if next, out, err := m.shape.Decide(w.row.state(), core.Event{Kind: core.Cancel, Text: "x"}); err == nil && out.Op != "" {
			to := *w
			to.cancels--
			m.write(&to, -1, next)
			emit(to, event{kind: cancels})
		}
	}
	if !w.late && m.shape.Abortable(w.row.state()) {
		to := *w
		to.late = true
		emit(to, event{kind: expires})
	}
}

// arrive is a request that nobody waits for, or a message, reaching its participant.
func (m *model) arrive(w *world, i, op int, emit func(world, event)) {
	undo := op == 1
	deliver := func(kind kind, change func(to *world) (yes bool)) {
		to := *w
		to.astray[op] &^= 1 << i
		yes := change(&to)
		if m.message(i, undo) && to.replies[op]&(1<<i) == 0 {
			if to.replies[op] |= 1 << i; !yes {
				to.no |= 1 << i
			}
		}
		ev := event{kind: kind, step: int8(i), undo: undo}
		emit(to, ev)
		if w.duplicates > 0 && m.message(i, undo) {
			to.duplicates--
			to.astray[op] |= 1 << i
			ev.again = true
			emit(to, ev)
		}
	}
	waits := onlyWaits(m.steps[i].Kind)
	deliver(arrives, func(to *world) bool { return waits || m.handle(&to.parts[i], i, undo) })
	if m.message(i, undo) && !undo && i <= m.shape.Pivot && w.parts[i].did == 0 && m.steps[i].Kind != saga.KindSleep {
		deliver(repels, func(to *world) bool { m.refuse(&to.parts[i], i); return false })
	}
}

// message reports whether the operation is asked for by a message: by a Send or a Child,
// or beside others in parallel, where the request of a Call is taken for one.
func (m *model) message(i int, undo bool) bool {
	if undo {
		return m.steps[i].Undo == saga.KindSend || m.steps[i].Undo == saga.KindChild
	}
	if k := m.steps[i].Kind; k == saga.KindSend || k == saga.KindChild {
		return true
	}
	for first := max(i-maxSteps, 0); first <= i; first++ {
		if m.shape.Steps[first].Group > 1 && m.shape.Last(first) >= i {
			return true
		}
	}
	return false
}

// answered returns how a waiting saga stands: an answer to each of its messages, or a no.
func (m *model) answered(w *world) (all, no bool) {
	first, undo := m.operation(w.row)
	last := first
	if !undo {
		last = m.shape.Last(first)
	}
	all = true
	for i := first; i <= last; i++ {
		all = all && w.replies[opIndex(undo)]&(1<<i) != 0
		no = no || !undo && w.no&(1<<i) != 0
	}
	return all, no
}

// nodeMoves are the events of one node and of the request it has sent.
func (m *model) nodeMoves(w *world, n int, emit func(world, event)) {
	nd := &w.nodes[n]
	me := uint8(n + 1)
	move := func(kind kind, change func(to *world)) {
		to := *w
		change(&to)
		step, undo := m.operation(nd.knows)
		emit(to, event{kind: kind, node: me, step: int8(step), undo: undo})
	}
	if nd.phase == idle {
		free := w.owner == nobody || w.owner == dead
		stalled := !free && w.owner != me && w.stalls > 0
		if w.row.ended() || w.row.parked || !free && !stalled {
			return
		}
		if all, no := m.answered(w); w.row.waits && !all && !no && w.failures == 0 && !m.shape.Turns(w.row.state(), w.late) {
			return // nothing to do before an answer comes
		}
		if free {
			move(claims, func(to *world) { m.claim(to, n) })
			return
		}
		move(takesOver, func(to *world) {
			to.stalls--
			m.claim(to, n)
		})
		return
	}
	if w.crashes > 0 {
		move(crashes, func(to *world) {
			to.crashes--
			m.strand(to, n)
			to.nodes[n] = node{}
			if to.owner == me {
				to.owner = dead
			}
		})
	}
	step, undo := m.operation(nd.knows)
	local := m.local(step, undo)
	mayRefuse := !undo && step <= m.shape.Pivot
	switch {
	case nd.phase == accepted:
		move(hears, func(to *world) { m.record(to, n, core.Done) })
	case nd.phase == refused:
		move(hears, func(to *world) { m.record(to, n, core.Refused) })
	case nd.phase == asked && m.message(step, undo):
		move(arms, func(to *world) { m.arm(to, n) })
	case local && !undo && m.steps[step].Kind == saga.KindIf:
		move(commits, func(to *world) { m.commit(to, n, core.Event{}) })
		move(decides, func(to *world) { m.commit(to, n, core.Event{Yes: true}) })
	case local:
		move(commits, func(to *world) { m.commit(to, n, core.Event{}) })
		if mayRefuse && m.steps[step].Kind != saga.KindSleep {
			move(declines, func(to *world) { m.record(to, n, core.Refused) })
		}
	case nd.phase == asked:
		move(handles, func(to *world) {
			to.nodes[n].phase = accepted
			if !m.handle(&to.parts[step], step, undo) {
				to.nodes[n].phase = refused
			}
		})
		if mayRefuse && w.parts[step].did == 0 {
			move(rejects, func(to *world) {
				to.nodes[n].phase = refused
				m.refuse(&to.parts[step], step)
			})
		}
		if w.failures > 0 {
			move(loses, func(to *world) {
				to.failures--
				to.nodes[n].phase = unheard
				m.handle(&to.parts[step], step, undo)
			})
		}
		if w.duplicates > 0 && w.astray[opIndex(undo)]&(1<<step) == 0 {
			move(duplicates, func(to *world) {
				to.duplicates--
				to.astray[opIndex(undo)] |= 1 << step
			})
		}
	}
	switch {
	case nd.phase == unheard:
		// The failure was the loss of the answer; the node cannot but give up waiting.
		move(timesOut, func(to *world) { m.record(to, n, core.Failed) })
	case w.failures > 0 && nd.phase == asked:
		move(fails, func(to *world) {
			to.failures--
			m.record(to, n, core.Failed)
		})
		if !local && !m.message(step, undo) {
			move(timesOut, func(to *world) {
				to.failures--
				m.strand(to, n)
				m.record(to, n, core.Failed)
			})
		}
	}
}

func opIndex(undo bool) int {
	if undo {
		return 1
	}
	return 0
}

// operation is what a node that knows r is about.
func (m *model) operation(r row) (step int, undo bool) {
	return int(r.step), r.status == core.Compensating
}

func (m *model) local(step int, undo bool) bool {
	if undo {
		return m.steps[step].Undo == saga.KindLocal
	}
	return m.steps[step].Kind == saga.KindLocal || onlyWaits(m.steps[step].Kind)
}

// handle is the participant at work. It returns false where the barrier refuses.
func (m *model) handle(p *participant, step int, undo bool) bool {
	if !m.steps[step].guarded {
		switch {
		case !undo:
			p.did = min(p.did+1, 3)
		case p.undid < p.did:
			p.undid++
		}
		return true
	}
	switch {
	case undo && !p.barred:
		p.barred = true
		p.undid = p.did
	case !undo && p.barred:
		return false
	case !undo && p.did == 0:
		p.did = 1
	}
	return true
}

// refuse is the participant saying no: nothing happens. Only for a pivot it has to
// remember, because there is no undo that could bar a duplicate.
func (m *model) refuse(p *participant, step int) {
	if s := m.steps[step]; s.Pivot && s.guarded && !s.forgetful {
		p.barred = true
	}
}

// claim makes node n the owner and lets it begin.
func (m *model) claim(w *world, n int) {
	for i := range w.nodes {
		w.nodes[i].owns = false
	}
	w.owner = uint8(n + 1)
	w.nodes[n] = node{owns: true, fresh: true}
	m.proceed(w, n)
}

// proceed lets a node that knows the row as it is do the next thing.
func (m *model) proceed(w *world, n int) {
	s := w.row.state()
	if m.shape.Turns(s, w.late) {
		next, _, _ := m.shape.Decide(s, core.Event{Kind: core.Look, Late: w.late})
		m.write(w, n, m.spoil(s, next))
	}
	nd := &w.nodes[n]
	if m.shape.Next(w.row.state()) == core.Rest {
		m.free(w, n)
		return
	}
	nd.phase, nd.knows, nd.fresh = asked, w.row, true
	if w.row.waits {
		switch all, no := m.answered(w); {
		case no:
			nd.phase = refused
		case all:
			nd.phase = accepted
		default:
			w.failures--
			nd.phase = unheard
		}
	}
}

// arm is node n committing the messages of the current steps that have no answer yet.
func (m *model) arm(w *world, n int) {
	nd := &w.nodes[n]
	if !m.wrong.noFencing {
		if !nd.owns {
			m.free(w, n)
			return
		}
		if !nd.fresh {
			m.proceed(w, n) // rolled back; look again
			return
		}
	}
	first, undo := m.operation(nd.knows)
	last := first
	if !undo {
		last = m.shape.Last(first)
	}
	r := nd.knows
	r.waits = true
	w.row = r
	for i := range w.nodes {
		w.nodes[i].fresh = false
	}
	for i := first; i <= last; i++ {
		if w.replies[opIndex(undo)]&(1<<i) == 0 {
			w.astray[opIndex(undo)] |= 1 << i
		}
	}
	m.free(w, n)
}

// spoil makes the engine wrong where it turns back at a step that may have happened.
func (m *model) spoil(was, is core.State) core.State {
	if m.wrong.keepFailed && was.Status == core.Running && is.Status == core.Compensating && was.Step == is.Step {
		is, _, _ = m.shape.Decide(is, core.Event{Kind: core.Done})
	}
	return is
}

// write changes the row, as node n or as somebody else (-1).
func (m *model) write(w *world, n int, s core.State) {
	w.row = m.rowOf(s)
	for i := range w.nodes {
		w.nodes[i].fresh = w.nodes[i].fresh && i == n
	}
}

func (m *model) free(w *world, n int) {
	if w.owner == uint8(n+1) {
		w.owner = nobody
	}
	w.nodes[n] = node{}
}

// strand leaves a node's request to the network if it has not arrived.
func (m *model) strand(w *world, n int) {
	nd := w.nodes[n]
	step, undo := m.operation(nd.knows)
	if nd.phase == asked && !m.local(step, undo) && !m.message(step, undo) {
		w.astray[opIndex(undo)] |= 1 << step
	}
}

// record is node n writing the outcome of its operation.
func (m *model) record(w *world, n int, kind core.Kind) {
	nd := &w.nodes[n]
	s := w.row.state()
	if m.wrong.noFencing {
		s = nd.knows.state()
	} else if !nd.owns {
		m.free(w, n) // the store refuses
		return
	}
	m.decide(w, n, s, core.Event{Kind: kind, Text: "x", Late: w.late})
}

// decide is node n writing what follows from an event.
func (m *model) decide(w *world, n int, s core.State, ev core.Event) {
	last := s.Step
	if s.Status == core.Running {
		last = m.shape.Last(s.Step)
	}
	next, out := s, core.Outcome{}
	for ev.Branch = s.Step; ev.Branch <= last; ev.Branch++ {
		// In a group the answers of all are recorded at once; a no or a failure is one of them.
		next, out, _ = m.shape.Decide(next, ev)
		if ev.Kind != core.Done {
			next = m.spoil(s, next)
			break
		}
	}
	m.write(w, n, next)
	if out.Wait || w.row.ended() || w.row.parked {
		m.free(w, n)
		return
	}
	m.proceed(w, n)
}

// commit is node n committing a local operation with its outcome, if the row is as it
// knows it.
func (m *model) commit(w *world, n int, ev core.Event) {
	nd := &w.nodes[n]
	if !m.wrong.noFencing && !nd.owns {
		m.free(w, n)
		return
	}
	if !m.wrong.noFencing && !nd.fresh {
		m.proceed(w, n) // rolled back; look again
		return
	}
	step, undo := m.operation(nd.knows)
	switch p := &w.parts[step]; {
	case !undo && onlyWaits(m.steps[step].Kind):
	case !undo:
		p.did = min(p.did+1, 3)
	case p.undid < p.did:
		p.undid++
	}
	s := w.row.state()
	if m.wrong.noFencing {
		s = nd.knows.state()
	}
	ev.Kind, ev.Text, ev.Late = core.Done, "x", w.late
	m.decide(w, n, s, ev)
}

// settle forgets what can no longer make a difference, so that fewer states differ.
func (m *model) settle(w *world) {
	for i, s := range m.steps {
		p := w.parts[i]
		if !s.guarded {
			continue
		}
		if p.barred || p.did > 0 {
			w.astray[0] &^= 1 << i
		}
		if p.barred {
			w.astray[1] &^= 1 << i
		}
	}
	if !m.shape.Abortable(w.row.state()) && w.row.status != core.Running || w.row.ended() {
		w.late = false
	}
	// Nodes are alike, so which of them is called the first does not matter.
	for i := 1; i < m.nodes; i++ {
		for k := i; k > 0 && w.nodes[k-1].rank() < w.nodes[k].rank(); k-- {
			w.nodes[k-1], w.nodes[k] = w.nodes[k], w.nodes[k-1]
			switch int(w.owner) {
			case k:
				w.owner = uint8(k + 1)
			case k + 1:
				w.owner = uint8(k)
			}
		}
	}
}

// rank orders nodes by everything that is known of them.
func (n node) rank() uint64 {
	var b bits
	n.put(&b)
	return b.words[0]
}

// check returns what is wrong with a state, or "".
func (m *model) check(w *world) string {
	pivot := m.shape.Pivot
	for i, s := range m.steps {
		p := w.parts[i]
		switch back := w.row.status == core.Compensating || w.row.status == core.Compensated; {
		case s.Kind == saga.KindLocal && p.did > p.undid+1:
			return fmt.Sprintf("the local step %q was done %d times", s.Name, p.did)
		case back && i == pivot && p.did > 0:
			return fmt.Sprintf("the saga is %v, yet its pivot %q was done", saga.Status(w.row.status), s.Name)
		case onlyWaits(s.Kind):
		case w.row.status == core.Completed && !m.shape.Live(w.row.state(), i):
			if p.did != p.undid {
				return fmt.Sprintf("the saga is completed, yet step %q was done though the decision was against it", s.Name)
			}
		case w.row.status == core.Completed && (p.did != 1 || p.undid != 0):
			return fmt.Sprintf("the saga is completed, yet step %q was done %d times and undone %d times", s.Name, p.did, p.undid)
		case w.row.status == core.Compensated && p.did != p.undid && !s.harmless && (s.Undo != saga.KindNone || i > pivot):
			return fmt.Sprintf("the saga is compensated, yet step %q was done %d times and undone %d times", s.Name, p.did, p.undid)
		}
	}
	return ""
}

var kindText = map[kind]string{
	claims: "node %d claims the saga and begins to %s", takesOver: "node %d takes over from a node that stalls, which begins to %s",
	handles: "the participant handles node %d's request to %s", loses: "the participant handles node %d's request to %s; the answer is lost",
	rejects: "the participant refuses node %d's request to %s", fails: "node %d fails to %s, which has no effect",
	timesOut: "node %d stops waiting for the answer to %s", hears: "node %d receives the answer to %s", commits: "node %d commits its transaction to %s",
	declines: "node %d's own business refuses to %s", crashes: "node %d crashes in its attempt to %s",
	duplicates: "the network copies node %d's request to %s", arrives: "a late request to %[2]s arrives",
	repels: "a message to %[2]s is refused", arms: "node %d sends a message to %s and waits", decides: "node %d commits its decision for yes to %s",
	cancels: "somebody cancels the saga", expires: "the deadline passes",
}

// tell puts an event into words.
func (m *model) tell(ev event) string {
	text := kindText[ev.kind]
	if !strings.Contains(text, "%") {
		return text
	}
	what := "take stock"
	if int(ev.step) < len(m.steps) && ev.step >= 0 {
		what = fmt.Sprintf("do %q", m.steps[ev.step].Name)
		if ev.undo {
			what = fmt.Sprintf("undo %q", m.steps[ev.step].Name)
		}
	}
	if !strings.Contains(text, "%d") {
		text = fmt.Sprintf(text, 0, what)
		if ev.again {
			text += ", and will again"
		}
		return text
	}
	return fmt.Sprintf(text, ev.node, what)
}

// describe puts a state into words.
func (m *model) describe(w *world) string {
	s := saga.Status(w.row.status).String()
	if w.row.parked {
		s += ", parked"
	} else if step := int(w.row.step); !w.row.ended() && step >= 0 && step < len(m.steps) {
		s += fmt.Sprintf(" at %q", m.steps[step].Name)
	}
	var effects []string
	for i, p := range w.parts[:len(m.steps)] {
		if p.did > 0 || p.undid > 0 || p.barred {
			e := fmt.Sprintf("%s did %d undid %d", m.steps[i].Name, p.did, p.undid)
			if p.barred {
				e += " barred"
			}
			effects = append(effects, e)
		}
	}
	if len(effects) == 0 {
		return s
	}
	return s + "; " + strings.Join(effects, ", ")
}
