// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox

import "time"

// Machine is a relay's scheduler as the simulation drives it: from outside, because the
// store in memory that it needs imports this package.
type Machine struct{ s *scheduler }

// NewMachine returns the scheduler of a relay.
func NewMachine(cfg RelayConfig, shards int, name string, seed uint64) (*Machine, error) {
	cfg, err := cfg.withDefaults()
	return &Machine{newScheduler(cfg, shards, name, seed)}, err
}

// Command is one that the scheduler gave. Exactly one of the first five is set.
type Command struct {
	Lease   *LeaseRequest
	Read    []Read
	Settle  []Settlement
	Park    *Parking
	Publish *Row
	// Under is the lease of a Park or Publish.
	Under Lease
	c     command
}

// Step asks what to do now.
func (m *Machine) Step(now time.Time) (list []Command, next time.Time) {
	commands, next := m.s.step(now)
	for _, c := range commands {
		e := Command{c: c}
		switch c := c.(type) {
		case *leaseCommand:
			e.Lease = &c.request
		case *readCommand:
			e.Read = c.reads
		case *settleCommand:
			e.Settle = c.settlements
		case *parkCommand:
			e.Park, e.Under = &c.parking, c.lease
		case *publishCommand:
			e.Publish, e.Under = &c.row.Row, c.row.shard.Lease
		}
		list = append(list, e)
	}
	m.s.notes = m.s.notes[:0]
	return list, next
}

// Result tells what became of a command: its store's or publisher's result.
func (m *Machine) Result(now time.Time, c Command, result any, err error) {
	switch c := c.c.(type) {
	case *leaseCommand:
		m.s.leased(now, c, result.(LeaseView), err)
	case *readCommand:
		m.s.read(now, c, result.([]Row), err)
	case *settleCommand:
		m.s.settled(now, c, result.([]int), err)
	case *parkCommand:
		m.s.parked(now, c, result.(bool), err)
	case *publishCommand:
		m.s.published(now, c.row, err)
	}
}

// OnCancel has f called when the scheduler cancels what it has published of the shard,
// whether it is done by then or not.
func (c Command) OnCancel(f func()) {
	sh := c.c.(*publishCommand).row.shard
	others := sh.cancel
	sh.cancel = func() {
		if others != nil {
			others()
		}
		f()
	}
}

// Wake, Stop and Finished are the rest of a run.
func (m *Machine) Wake()              { m.s.wake() }
func (m *Machine) Stop(now time.Time) { m.s.stop(now) }
func (m *Machine) Finished() bool     { return m.s.finished }

// Shards returns how many shards the scheduler holds.
func (m *Machine) Shards() int { return m.s.stats.Shards }

// Idle reports whether the scheduler holds no rows.
func (m *Machine) Idle() bool {
	for sh := range m.s.shardsHeld() {
		if len(sh.rows) > 0 {
			return false
		}
	}
	return len(m.s.topics) == 0 && m.s.inFlight == 0 && len(m.s.waiting) == 0 && m.s.flying.Len() == 0
}

// ShardOf is shardOf.
var ShardOf = shardOf
