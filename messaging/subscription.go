// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Subscription says which messages a consumer group receives, and how.
type Subscription struct {
	// Group is the name of the consumer group. Every group bound to a topic receives each
	// of its messages; within a group each message goes to one of the subscribers.
	// Required.
	Group string
	// Topics are the patterns of the topics to receive: a * stands for exactly one word,
	// a # for any number of words, zero included. A message that several patterns match
	// is delivered once. Declaring a group again adds topics, it takes none away. At least one.
	Topics []string
	// Concurrency is how many handlers of this subscription run at the same time at most.
	// Zero means 8.
	Concurrency int
	// Prefetch is how many messages this subscription may hold that are not finished, in
	// handlers and waiting for one. Zero means twice the Concurrency.
	Prefetch int
	// MaxDeliveries is how many times a message is handed to a handler before it becomes a
	// dead letter. Zero means 16, which with the default Backoff is a quarter of an hour.
	// Negative means no limit.
	MaxDeliveries int
	// Backoff is the delay before a failed message is delivered again.
	Backoff Backoff
	// Ordered asks for the messages of one Key to be handled one after another, in the
	// order of publication: none of them starts before the one ahead of it is done,
	// retries included. Other keys, and messages without a key, flow meanwhile. It
	// belongs to the group: all its subscriptions must agree.
	Ordered bool
	// Temporary asks for a group that ends with its last subscriber and takes its messages
	// with it: for a process that wants every message while it runs, such as for cache
	// invalidation or a live page. Its name must then be unique to the process.
	Temporary bool
	// From is where a group begins that the broker does not know yet. A group that exists
	// goes on where it was, and is what it was; to replay, subscribe a new group. Zero
	// begins with what is published from now on.
	From Start
	// DrainTimeout is how long handlers may go on after the subscriber's context has ended
	// before their own context ends too. Zero means 10 seconds, negative no time at all.
	DrainTimeout time.Duration
}

const (
	defaultConcurrency   = 8
	defaultMaxDeliveries = 16
	defaultDrainTimeout  = 10 * time.Second
	maxGroup             = 200
)

// Validate returns nil if every broker's client may take s, and otherwise an error that
// names the field, its value and what is wanted.
func (s Subscription) Validate() error {
	if s.Group == "" || len(s.Group) > maxGroup {
		return fmt.Errorf("messaging: Subscription.Group is %.40q, want 1 to %d bytes", s.Group, maxGroup)
	}
	if err := validText("Subscription.Group", s.Group); err != nil {
		return err
	}
	if len(s.Topics) == 0 {
		return fmt.Errorf("messaging: Subscription.Topics is empty, want at least one pattern (group %q)", s.Group)
	}
	for i, p := range s.Topics {
		if err := validPattern(fmt.Sprintf("Subscription.Topics[%d]", i), p); err != nil {
			return err
		}
	}
	if s.Concurrency < 0 {
		return fmt.Errorf("messaging: Subscription.Concurrency is %d, want 0 or more", s.Concurrency)
	}
	if d := s.WithDefaults(); d.Prefetch < d.Concurrency {
		return fmt.Errorf("messaging: Subscription.Prefetch is %d, want at least Concurrency, which is %d", d.Prefetch, d.Concurrency)
	}
	if s.Backoff.Base < 0 {
		return fmt.Errorf("messaging: Subscription.Backoff.Base is %v, want 0 or more", s.Backoff.Base)
	}
	if b := s.Backoff.withDefaults(); b.Max < b.Base {
		return fmt.Errorf("messaging: Subscription.Backoff.Max is %v, want at least Base, which is %v", b.Max, b.Base)
	}
	return s.From.validate()
}

// WithDefaults returns s with the meaning of its zero values filled in.
func (s Subscription) WithDefaults() Subscription {
	if s.Concurrency == 0 {
		s.Concurrency = defaultConcurrency
	}
	if s.Prefetch == 0 {
		s.Prefetch = 2 * s.Concurrency
	}
	if s.MaxDeliveries == 0 {
		s.MaxDeliveries = defaultMaxDeliveries
	}
	if s.DrainTimeout == 0 {
		s.DrainTimeout = defaultDrainTimeout
	}
	s.Backoff = s.Backoff.withDefaults()
	return s
}

// Backoff is an exponential schedule with full jitter: the delay after the n-th
// delivery is uniform between zero and the smaller of Base * 2^(n-1) and Max. The
// spread keeps messages that failed together from coming back together.
//
// Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
type Backoff struct {
	// Base is the longest delay after the first delivery. Zero means 500 ms.
	Base time.Duration
	// Max is the longest delay of all. Zero means 5 minutes, or Base if that is longer.
	Max time.Duration
}

const (
	defaultBase = 500 * time.Millisecond
	defaultMax  = 5 * time.Minute
)

func (b Backoff) withDefaults() Backoff {
	if b.Base == 0 {
		b.Base = defaultBase
	}
	if b.Max == 0 {
		b.Max = max(defaultMax, b.Base)
	}
	return b
}

// Delay returns a random delay for a message that failed at the given attempt, from 1.
func (b Backoff) Delay(attempt int) time.Duration {
	longest := b.Longest(attempt)
	if longest <= 0 {
		return 0
	}
	return rand.N(longest + 1)
}

// Longest returns the upper bound of the delay after the given attempt, from 1.
func (b Backoff) Longest(attempt int) time.Duration {
	b = b.withDefaults()
	d := b.Base
	for n := 1; n < attempt && d < b.Max; n++ {
		if d > b.Max/2 {
			return b.Max
		}
		d *= 2
	}
	return min(d, b.Max)
}

// Start is a position in a replayable log. The zero Start is the end: what is published
// from now on. Make others with [FromFirst], [FromOffset] and [FromTime].
type Start struct {
	// Kind says which of the other fields counts.
	Kind StartKind
	// Offset is a Delivery.Offset, for StartOffset.
	Offset int64
	// Time is for StartTime.
	Time time.Time
}

// StartKind is a way to name a position in a log.
type StartKind uint8

const (
	// StartNext begins with what is published from now on.
	StartNext StartKind = iota
	// StartFirst begins with the oldest message that the log still holds.
	StartFirst
	// StartOffset begins with the message at an offset, or the oldest one after it. In a
	// log of several partitions the offset counts in each of them.
	StartOffset
	// StartTime begins with the first message that was taken at a time or later.
	StartTime
)

// FromFirst begins with the oldest message that the log still holds.
func FromFirst() Start { return Start{Kind: StartFirst} }

// FromOffset begins with the message at offset n, or the oldest one after it.
func FromOffset(n int64) Start { return Start{Kind: StartOffset, Offset: n} }

// FromTime begins with the first message that the broker took at t or later.
func FromTime(t time.Time) Start { return Start{Kind: StartTime, Time: t} }

func (s Start) validate() error {
	switch {
	case s.Kind > StartTime:
		return fmt.Errorf("messaging: Subscription.From.Kind is %d, want 0 to %d", s.Kind, StartTime)
	case s.Kind == StartOffset && s.Offset < 0:
		return fmt.Errorf("messaging: Subscription.From.Offset is %d, want 0 or more", s.Offset)
	case s.Kind == StartTime && s.Time.IsZero():
		return fmt.Errorf("messaging: Subscription.From.Time is zero, want a time")
	}
	return nil
}

// Subscriber receives messages.
//
// Subscribe declares the group of s, if it is not yet, and calls h for its messages
// until ctx ends. Then it takes no more, waits for the handlers that run, and returns
// nil; messages that it held but did not hand out are as if never delivered. It returns
// an error only for what no waiting can mend: an invalid subscription, [ErrMismatch],
// [ErrUnsupported], [ErrClosed], missing rights. A lost connection is made anew.
type Subscriber interface {
	Subscribe(ctx context.Context, s Subscription, h Handler) error
}

// Declarer binds groups to topics before anything is published: what is published after
// Declare has returned reaches every declared group, although none of them may be
// consuming yet. Declaring a group again is harmless.
type Declarer interface {
	Declare(ctx context.Context, s ...Subscription) error
}
