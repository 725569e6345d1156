// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package bulkhead

import "slices"

// waiter is a call in the queue. Its fields but ready are under Bulkhead.mu.
type waiter struct {
	ready      chan struct{} // closed by end
	how        ending
	level      *level
	prev, next *waiter
}

// ending is how a wait was ended by others; zero while it goes on.
type ending uint8

const (
	granted ending = iota + 1
	displaced
)

func (w *waiter) end(how ending) {
	w.how = how
	close(w.ready)
}

// queue holds the waiters of each priority in the order of their arrival. There are few
// priorities, so a sorted slice serves; every operation beside it is constant.
type queue struct {
	lifo   bool
	levels []*level // highest priority first, none empty
}

type level struct {
	priority    int
	first, last *waiter
}

func (q *queue) add(w *waiter, priority int) {
	i, found := slices.BinarySearchFunc(q.levels, priority, func(l *level, p int) int {
		switch {
		case l.priority > p:
			return -1
		case l.priority < p:
			return 1
		}
		return 0
	})
	if !found {
		q.levels = slices.Insert(q.levels, i, &level{priority: priority})
	}
	l := q.levels[i]
	w.level, w.prev = l, l.last
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
}

func (q *queue) remove(w *waiter) {
	l := w.level
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	if l.first == nil {
		q.levels = slices.DeleteFunc(q.levels, func(other *level) bool { return other == l })
	}
}

// next removes and returns the waiter to be served. There must be one.
func (q *queue) next() *waiter {
	w := q.levels[0].first
	if q.lifo {
		w = q.levels[0].last
	}
	q.remove(w)
	return w
}

// loser removes and returns the waiter that makes way in a full queue for a newcomer of the
// given priority, or nil if the newcomer is refused.
func (q *queue) loser(priority int) *waiter {
	lowest := q.levels[len(q.levels)-1]
	var w *waiter
	switch {
	case q.lifo && lowest.priority <= priority:
		w = lowest.first
	case lowest.priority < priority:
		w = lowest.last
	default:
		return nil
	}
	q.remove(w)
	return w
}
