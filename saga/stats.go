// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package saga

import "sync/atomic"

// Stats counts what an engine has done since it was made.
type Stats struct {
	// Active is how many sagas it works on now.
	Active int
	// Claimed is how many sagas it took up, Takeovers how many of them from dead nodes.
	Claimed, Takeovers uint64
	// Attempts is how many attempts ended, Failed and Refused how many of them badly.
	Attempts, Failed, Refused uint64
	// Waiting is how many times a saga was put away to wait for something.
	Waiting uint64
	// Compensating is how many sagas it turned back.
	Compensating uint64
	// Completed and Compensated are how many sagas it ended.
	Completed, Compensated uint64
	// Archived is how many ended sagas it moved for their age: see Config.Archive.
	Archived uint64
	// Pruned is how many ended sagas it deleted for their age: see Config.Retain.
	Pruned uint64
	// Stuck is how many sagas it reported as stuck.
	Stuck uint64
	// Lost is how many of its writes were refused because the saga had another owner.
	Lost uint64
	// Polls is how often it asked the store for work.
	Polls uint64
}

type counters struct {
	active                        atomic.Int64
	claimed, takeovers            atomic.Uint64
	attempts, failed, refused     atomic.Uint64
	completed, compensated, stuck atomic.Uint64
	lost, polls                   atomic.Uint64
	waiting, compensating         atomic.Uint64
	archived, pruned              atomic.Uint64
}

// Stats returns the engine's counters. It asks nobody: see [Engine.Count] for the store.
func (e *Engine) Stats() Stats {
	c := &e.stats
	return Stats{
		Active: int(c.active.Load()), Claimed: c.claimed.Load(), Takeovers: c.takeovers.Load(),
		Attempts: c.attempts.Load(), Failed: c.failed.Load(), Refused: c.refused.Load(),
		Completed: c.completed.Load(), Compensated: c.compensated.Load(), Stuck: c.stuck.Load(),
		Waiting: c.waiting.Load(), Compensating: c.compensating.Load(), Pruned: c.pruned.Load(), Archived: c.archived.Load(),
		Lost: c.lost.Load(), Polls: c.polls.Load(),
	}
}
