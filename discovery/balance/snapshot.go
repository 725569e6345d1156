// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"math/rand/v2"
	"slices"
)

// snapshot is what a pick sees. It never changes.
type snapshot struct {
	tiers []tier // none if there are no instances
}

// tier is a group of instances that are equally preferred: same priority, and both in the
// own zone or both not.
type tier struct {
	candidates []Candidate
	choose     func(Hint) int
	upTo       float64 // its share of the calls, added to those before it
}

// spill is how far a tier may be loaded above the ordinary when some of its instances are out,
// before calls spill over to the next: 40 %, as in Envoy.
const spill = 1.4

func (s *snapshot) pick(h Hint) *node {
	t := &s.tiers[0]
	if len(s.tiers) > 1 {
		u := rand.Float64()
		for i := 1; u >= t.upTo && i < len(s.tiers); i++ {
			t = &s.tiers[i]
		}
	}
	n := t.candidates[t.choose(h)].n
	if !h.unwanted(n) {
		return n
	}
	return s.other(t, h, n)
}

// other returns an instance that is not unwanted, or if there is none, the one that was picked.
func (s *snapshot) other(t *tier, h Hint, picked *node) *node {
	for range 3 {
		if n := t.candidates[t.choose(h)].n; !h.unwanted(n) {
			return n
		}
	}
	for i, start := 0, rand.IntN(len(t.candidates)); i < len(t.candidates); i++ {
		if n := t.candidates[(start+i)%len(t.candidates)].n; !h.unwanted(n) {
			return n
		}
	}
	for i := range s.tiers {
		for j := range s.tiers[i].candidates {
			if n := s.tiers[i].candidates[j].n; !h.unwanted(n) {
				return n
			}
		}
	}
	return picked
}

// group is a tier in the making.
type group struct {
	priority int
	far      bool
	nodes    []*node // sorted by ID
	suspects int
}

// rebuild publishes the snapshot of the present state, and returns the hooks to call.
func (b *Balancer) rebuild(now int64) (events []func()) {
	cfg := &b.cfg.Outlier
	groups := b.groups()
	suspects, instances := 0, 0
	panicked := len(groups) > 0
	for _, g := range groups {
		suspects += g.suspects
		instances += len(g.nodes)
		panicked = panicked && cfg.panics(g.suspects, len(g.nodes))
	}
	if panicked != b.panicked {
		b.panicked = panicked
		if !panicked {
			b.calm(groups, now)
		}
		if b.cfg.Hooks.Panic != nil {
			e := Panic{b.service, panicked, suspects, instances}
			events = append(events, func() { b.cfg.Hooks.Panic(e) })
		}
	}

	s := &snapshot{}
	sum := 0.0
	for _, g := range groups {
		may := cfg.mayEject(len(g.nodes))
		switch {
		case panicked:
			may = 0
		case cfg.panics(g.suspects, len(g.nodes)):
			may = len(g.nodes) // others can take their load
		}
		events = append(events, b.sift(g, may, now)...)
		in := b.candidates(g, now)
		share := min(1-sum, spill*float64(len(in))/float64(len(g.nodes)))
		if share <= 0 {
			continue
		}
		sum += share
		s.tiers = append(s.tiers, tier{in, b.cfg.Picker.Build(in), sum})
	}
	for i := range s.tiers {
		s.tiers[i].upTo /= sum
	}
	b.snap.Store(s)
	return events
}

// sift decides who of the group is left out: suspects, at most may of them, those first that
// are out already. It returns the hooks to call.
func (b *Balancer) sift(g *group, may int, now int64) (events []func()) {
	stay := func(n *node) {
		if n.out {
			n.out = false
			if e := (Return{*n.info.Load()}); b.cfg.Hooks.Return != nil {
				events = append(events, func() { b.cfg.Hooks.Return(e) })
			}
		}
	}
	for _, out := range []bool{true, false} {
		for _, n := range g.nodes {
			switch {
			case n.out != out:
			case !n.doubted || may <= 0:
				stay(n)
			case out:
				may--
			default:
				may--
				if e := b.leaveOut(n, now); b.cfg.Hooks.Eject != nil {
					events = append(events, func() { b.cfg.Hooks.Eject(e) })
				}
			}
		}
	}
	return events
}

// candidates returns those of the group that are not left out.
func (b *Balancer) candidates(g *group, now int64) []Candidate {
	in := make([]Candidate, 0, len(g.nodes))
	for _, n := range g.nodes {
		if !n.out {
			warm := b.warm(n, now)
			in = append(in, Candidate{Weight: n.weight() * warm, Warm: warm, n: n})
		}
	}
	return in
}

// groups sorts the instances into groups, the most preferred first, and cuts each down to
// the subset.
func (b *Balancer) groups() []*group {
	var groups []*group
	for _, n := range b.nodes {
		info := n.info.Load()
		far := b.cfg.Zone != "" && info.Zone != b.cfg.Zone
		i := slices.IndexFunc(groups, func(g *group) bool { return g.priority == info.Priority && g.far == far })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{priority: info.Priority, far: far})
		}
		groups[i].nodes = append(groups[i].nodes, n)
	}
	slices.SortFunc(groups, func(x, y *group) int {
		if c := cmp.Compare(x.priority, y.priority); c != 0 || x.far == y.far {
			return c
		}
		if x.far {
			return 1
		}
		return -1
	})
	byID := func(x, y *node) int { return cmp.Compare(x.info.Load().ID, y.info.Load().ID) }
	for _, g := range groups {
		slices.SortFunc(g.nodes, byID)
		if k := b.cfg.Subset; k > 0 && k < len(g.nodes) {
			// Rendezvous hashing: each process has its own order of preference, in which a change
			// of one instance moves nobody else.
			client := hash(b.cfg.Client)
			rank := func(n *node) uint64 { return mix(client ^ hash(n.info.Load().ID)) }
			slices.SortFunc(g.nodes, func(x, y *node) int { return cmp.Compare(rank(x), rank(y)) })
			for _, n := range g.nodes[k:] {
				n.out = false // not a matter of ejection
			}
			g.nodes = slices.Clone(g.nodes[:k])
			slices.SortFunc(g.nodes, byID)
		}
		for _, n := range g.nodes {
			if n.doubted {
				g.suspects++
			}
		}
	}
	return groups
}

// warm is the share of its weight that an instance gets: a tenth at the start of its slow start,
// growing to 1.
func (b *Balancer) warm(n *node, now int64) float64 {
	if !n.warming {
		return 1
	}
	return min(0.1+0.9*float64(now-n.warmFrom)/float64(b.cfg.SlowStart), 1)
}
