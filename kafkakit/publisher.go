// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// Publish sends the messages; see [messaging.Publisher]. It returns nil when every replica in sync
// has them. A log takes every topic: none is unroutable.
func (c *Client) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	began := time.Now()
	errs := make([]error, len(msgs))
	if err := messaging.Invalid(msgs); err != nil {
		var pe *messaging.PublishError
		if errors.As(err, &pe) {
			for _, f := range pe.Failed {
				errs[f.Index] = f.Err
			}
		}
		return c.outcome(began, msgs, errs)
	}
	if len(msgs) == 0 {
		return nil
	}
	if err := c.reach(ctx); err != nil {
		for i := range errs {
			errs[i] = c.unsent(ctx, err)
		}
		return c.outcome(began, msgs, errs)
	}
	type answer struct {
		i   int
		err error
	}
	answers := make(chan answer, len(msgs)) // room for all: a promise never waits
	sent := 0
	for i, m := range msgs {
		if err := c.enter(ctx); err != nil {
			for j := i; j < len(msgs); j++ {
				errs[j] = c.unsent(ctx, err)
			}
			break
		}
		sent++
		// Until its answer is here the outcome is open. The context lets the client drop what it
		// has not sent yet when nobody waits for it any more.
		errs[i] = messaging.ErrUnknown
		c.kgo.Produce(ctx, encode(c.cfg.Topic, m), func(_ *kgo.Record, err error) {
			<-c.window
			answers <- answer{i, err}
		})
	}
	for range sent {
		select {
		case a := <-answers:
			errs[a.i] = c.answered(a.err)
		case <-ctx.Done():
			for i, err := range errs[:sent] {
				if err == messaging.ErrUnknown { //nolint:errorlint // exactly what was set above
					errs[i] = fmt.Errorf("%w: %w", messaging.ErrUnknown, fault.Ended(ctx))
				}
			}
			return c.outcome(began, msgs, errs)
		}
	}
	return c.outcome(began, msgs, errs)
}

// reach waits until the topic is there, for as long as that may yet come about.
func (c *Client) reach(ctx context.Context) error {
	for failures := 0; ; failures++ {
		if ctx.Err() != nil {
			return fault.Ended(ctx)
		}
		err := c.ensure(ctx, c.cfg.Topic)
		if err == nil || fault.IsPermanent(err) || c.ctx.Err() != nil {
			return err
		}
		if sleep(ctx, backoff(failures)) != nil {
			return fmt.Errorf("%w: %w", fault.Ended(ctx), err)
		}
	}
}

// backoff is how long to wait before another attempt to reach the broker.
func backoff(failures int) time.Duration {
	return min(5*time.Second, 50*time.Millisecond<<min(failures, 7))
}

// enter takes a place in the window.
func (c *Client) enter(ctx context.Context) error {
	switch {
	case c.ctx.Err() != nil:
		return messaging.ErrClosed
	case ctx.Err() != nil:
		return fault.Ended(ctx)
	}
	select {
	case c.window <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.Ended(ctx)
	case <-c.ctx.Done():
		return messaging.ErrClosed
	}
}

// unsent is the outcome of a message that never left.
func (c *Client) unsent(ctx context.Context, err error) error {
	if c.ctx.Err() != nil {
		return fault.Permanent(fmt.Errorf("%w: %w", messaging.ErrRefused, messaging.ErrClosed))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", messaging.ErrBlocked, err)
	}
	if err = judge(err); fault.IsPermanent(err) {
		return fault.Permanent(fmt.Errorf("%w: %w", messaging.ErrRefused, err))
	}
	return fmt.Errorf("%w: %w", messaging.ErrRefused, err)
}

// answered is the outcome of a message by the client's answer.
func (c *Client) answered(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kgo.ErrClientClosed):
		return fmt.Errorf("%w: %w", messaging.ErrUnknown, messaging.ErrClosed)
	}
	if err = judge(err); fault.IsPermanent(err) {
		return fault.Permanent(fmt.Errorf("%w: %w", messaging.ErrRefused, err))
	}
	// What may be repeated the client has repeated; it gave up with the answer still open.
	return fmt.Errorf("%w: %w", messaging.ErrUnknown, err)
}

// outcome counts and tells the outcomes, and returns them as one error.
func (c *Client) outcome(began time.Time, msgs []*messaging.Message, errs []error) error {
	var failed []messaging.Failed
	took := time.Since(began)
	for i, err := range errs {
		switch {
		case err == nil:
			c.confirmed.Add(1)
		case errors.Is(err, messaging.ErrUnknown):
			c.unknown.Add(1)
		case errors.Is(err, messaging.ErrBlocked):
			c.notSent.Add(1)
		default:
			c.refused.Add(1)
		}
		if c.cfg.Hooks.Published != nil {
			c.cfg.Hooks.Published(messaging.Published{Message: msgs[i], Took: took, Err: err})
		}
		if err == nil {
			continue
		}
		f := messaging.Failed{Index: i, Err: err}
		if msgs[i] != nil {
			f.ID = msgs[i].ID
		}
		failed = append(failed, f)
	}
	if failed == nil {
		return nil
	}
	return &messaging.PublishError{Failed: failed}
}

// put publishes one record of our own and waits for its confirmation.
func (c *Client) put(ctx context.Context, r *kgo.Record) error {
	return judge(c.kgo.ProduceSync(ctx, r).FirstErr())
}
