// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
)

// ErrDeposed is the cause of the end of a leader's context when it leads no longer, or cannot be
// sure of it.
var ErrDeposed = errors.New("consulkit: no longer the leader")

// ElectionConfig configures an [Election]. The zero ElectionConfig is a sound default.
type ElectionConfig struct {
	// Name says who the candidate is, for people and [Election.Leader]. It is the key's value
	// while this candidate leads.
	Name string
	// TTL is for how long a leader that is not heard of leads on. Consul takes up to twice
	// that before it gives the key free; the leader itself counts by the single time. Zero
	// means 15 seconds; Consul wants 10 seconds at least unless configured otherwise.
	TTL time.Duration
	// LockDelay is how long after that nobody may lead, so that a leader that does not know
	// yet can notice. It does not apply when a leader resigns. What checks [Term.Token] does not
	// need it. Zero means 15 seconds, Consul's own; negative none.
	LockDelay time.Duration
	// Logger receives the beginning and the end of terms, and failures. Nil means
	// slog.Default().
	Logger *slog.Logger
}

// Election lets one of many candidates lead, by a lock on a key that is bound to a session
// (https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions).
//
// That no two lead at once cannot be promised by any lock: a process may be stopped for
// longer than its session lives, between looking and acting. So each term has a token, and
// what the leader writes to has to refuse a token lower than the highest it has seen:
//
//	UPDATE report SET body = ?, token = ? WHERE id = ? AND token <= ?
type Election struct {
	client *Client
	key    string
	cfg    ElectionConfig
}

// Term is one term of one leader.
type Term struct {
	// Token is the fencing token: higher in each term than in all before it.
	//
	// It is the key's ModifyIndex after the lock, which is the number of an entry in the log of
	// Consul's servers. The key's LockIndex, often used for this, counts from 1 again when the
	// key has been deleted. Only a cluster that is restored from a snapshot, or built anew,
	// can come back to lower numbers.
	Token uint64

	key, session string
}

// Guard returns the operation that lets a transaction of Consul succeed only while the term lasts,
// to be put before the leader's own writes.
func (t Term) Guard() *api.KVTxnOp {
	return &api.KVTxnOp{Verb: api.KVCheckSession, Key: t.key, Session: t.session}
}

// NewElection returns an election for the key, which should be used for nothing else.
func NewElection(c *Client, key string, cfg ElectionConfig) (*Election, error) {
	if c == nil {
		return nil, errors.New("consulkit: client is nil, want one")
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if cfg.TTL < 0 {
		return nil, fmt.Errorf("consulkit: ElectionConfig.TTL is %v, want 0 or more", cfg.TTL)
	}
	if cfg.LockDelay > time.Minute {
		return nil, fmt.Errorf("consulkit: ElectionConfig.LockDelay is %v, want at most 1m", cfg.LockDelay)
	}
	cfg.TTL = cmp.Or(cfg.TTL, 15*time.Second)
	cfg.LockDelay = cmp.Or(cfg.LockDelay, 15*time.Second)
	if cfg.LockDelay < 0 {
		cfg.LockDelay = 1 // rounded up to a millisecond; zero would be Consul's default
	}
	return &Election{c, key, cfg}, nil
}

// Leader returns the Name of the present leader, and false if there is none.
func (e *Election) Leader(ctx context.Context) (name string, ok bool, err error) {
	pair, _, err := e.client.api.KV().Get(e.key, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return "", false, fmt.Errorf("consulkit: leader of %s: %w", e.key, err)
	}
	if pair == nil || pair.Session == "" {
		return "", false, nil
	}
	return string(pair.Value), true, nil
}

// Run is a candidate until ctx is done, and calls lead for each of its terms. The context of
// lead ends when the term does, with the cause [ErrDeposed], or when ctx does; lead should
// return then, as the next leader may be at work already. It is not called again before it has
// returned. If it returns earlier, the candidate resigns and Run returns lead's error, so
// that another one can do better.
//
// At the end of ctx the leader resigns when lead has returned; the next one can follow at
// once. The error is then nil, or lead's if that is not the end of its context.
func (e *Election) Run(ctx context.Context, lead func(ctx context.Context, t Term) error) error {
	if lead == nil {
		return errors.New("consulkit: lead is nil, want a func")
	}
	var (
		s       session
		queries poll
		failing bool
	)
	defer func() { e.destroy(ctx, &s) }()
	for {
		term, err := e.campaign(ctx, &queries, &s)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if !failing {
				e.log().Warn("candidate cannot reach consul", "key", e.key, "candidate", e.cfg.Name, "error", err)
			}
			failing = true
		case term.Token > 0:
			failing = false
			deposed, err := e.reign(ctx, &s, term, lead)
			if !deposed {
				return err
			}
			if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrDeposed) {
				e.log().Warn("deposed leader ended with an error", "key", e.key, "candidate", e.cfg.Name, "token", term.Token, "error", err)
			}
		}
		// The key is held, or in its lock delay, or Consul is away.
		if !sleep(ctx, time.Second/4+rand.N(time.Second/2)) {
			return nil
		}
	}
}

// session is a session of Consul; its id is empty if there is none.
type session struct {
	id      string
	renewed time.Time // the session lives for the TTL from here on at least
}

// campaign waits until nobody leads, and tries to. The term's token is zero if somebody else was
// faster, or it is too early.
func (e *Election) campaign(ctx context.Context, queries *poll, s *session) (Term, error) {
	queries.index = 0 // look at once
	for {
		pair, err := e.look(ctx, queries)
		if err != nil {
			return Term{}, err
		}
		// Our own is a lock of which the answer was lost.
		if pair == nil || pair.Session == "" || pair.Session == s.id {
			break
		}
		e.destroy(ctx, s) // not needed for as long as that one leads
	}
	if s.id == "" || time.Since(s.renewed) > e.cfg.TTL/2 {
		e.destroy(ctx, s)
		if err := e.create(ctx, s); err != nil {
			return Term{}, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	ok, answer, _, err := e.client.api.KV().Txn(api.KVTxnOps{{Verb: api.KVLock, Key: e.key, Value: []byte(e.cfg.Name), Session: s.id}}, (&api.QueryOptions{}).WithContext(ctx))
	switch {
	case err != nil:
		return Term{}, err
	case ok && len(answer.Results) == 1:
	case len(answer.Errors) > 0 && strings.Contains(answer.Errors[0].What, "lock delay"):
		return Term{}, nil // the session serves for the next attempt
	default:
		e.destroy(ctx, s)
		return Term{}, nil
	}
	return Term{Token: answer.Results[0].ModifyIndex, key: e.key, session: s.id}, nil
}

// look reads the key, and waits for it to change if it has been read before by the same queries.
func (e *Election) look(ctx context.Context, queries *poll) (pair *api.KVPair, err error) {
	_, err = queries.next(ctx, time.Minute, api.QueryOptions{}, func(opts *api.QueryOptions) (meta *api.QueryMeta, err error) {
		pair, meta, err = e.client.api.KV().Get(e.key, opts)
		return meta, err
	})
	return pair, err
}

func (e *Election) create(ctx context.Context, s *session) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	start := time.Now()
	// Without checks: it lives as long as this process renews it, whatever becomes of the
	// agent it goes through.
	id, _, err := e.client.api.Session().CreateNoChecks(&api.SessionEntry{
		Name: e.cfg.Name, TTL: e.cfg.TTL.String(), LockDelay: e.cfg.LockDelay, Behavior: api.SessionBehaviorRelease,
	}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		return err
	}
	s.id, s.renewed = id, start
	return nil
}

// destroy ends the session, if there is one, whether or not ctx has ended. Consul ends it later if
// this does not succeed.
func (e *Election) destroy(ctx context.Context, s *session) {
	if s.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout/2)
	defer cancel()
	_, _ = e.client.api.Session().Destroy(s.id, (&api.WriteOptions{}).WithContext(ctx))
	s.id = ""
}

// reign runs lead for one term, and reports whether the term was ended from outside.
func (e *Election) reign(ctx context.Context, s *session, term Term, lead func(context.Context, Term) error) (deposed bool, err error) {
	e.log().Info("leading", "key", e.key, "candidate", e.cfg.Name, "token", term.Token)
	leading, depose := context.WithCancelCause(ctx)
	// The session has to be renewed, and the key to be watched, for as long as lead runs: it may
	// need its time to drain.
	watching, end := context.WithCancel(context.WithoutCancel(ctx))
	var helpers sync.WaitGroup
	helpers.Go(func() { e.renew(watching, s, depose) })
	helpers.Go(func() { e.guard(watching, s.id, depose) })
	defer func() { // also after a panic
		deposed = errors.Is(context.Cause(leading), ErrDeposed)
		end()
		helpers.Wait()
		depose(nil)
		if !deposed {
			e.resign(ctx, s)
		}
		e.destroy(ctx, s)
		e.log().Info("leading no longer", "key", e.key, "candidate", e.cfg.Name, "token", term.Token, "deposed", deposed)
	}()
	err = lead(leading, term)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil
	}
	return false, err
}

// resign releases the lock, which unlike the end of the session lets the next one follow at once.
func (e *Election) resign(ctx context.Context, s *session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout/2)
	defer cancel()
	_, _, err := e.client.api.KV().Release(&api.KVPair{Key: e.key, Session: s.id}, (&api.WriteOptions{}).WithContext(ctx))
	if err != nil {
		e.log().Warn("leader not resigned", "key", e.key, "candidate", e.cfg.Name, "error", err)
	}
}

// renew keeps the session alive, and deposes the leader when that has not succeeded for the TTL.
func (e *Election) renew(ctx context.Context, s *session, depose context.CancelCauseFunc) {
	pause := e.cfg.TTL / 3
	for sleep(ctx, min(pause, time.Until(s.renewed.Add(e.cfg.TTL)))) {
		left := time.Until(s.renewed.Add(e.cfg.TTL))
		if left <= 0 {
			depose(fmt.Errorf("%w: session not renewed for %v", ErrDeposed, e.cfg.TTL))
			return
		}
		start := time.Now()
		within, cancel := context.WithTimeout(ctx, left)
		entry, _, err := e.client.api.Session().Renew(s.id, (&api.WriteOptions{}).WithContext(within))
		cancel()
		switch {
		case err == nil && entry == nil:
			depose(fmt.Errorf("%w: session expired", ErrDeposed))
			return
		case err == nil:
			s.renewed, pause = start, e.cfg.TTL/3
		default:
			pause = e.cfg.TTL / 10
		}
	}
}

// guard deposes the leader when the key is no longer its own.
func (e *Election) guard(ctx context.Context, id string, depose context.CancelCauseFunc) {
	var queries poll
	for {
		pair, err := e.look(ctx, &queries)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil: // Renewals decide how long that may go on.
		case pair == nil || pair.Session != id:
			depose(fmt.Errorf("%w: the lock is gone", ErrDeposed))
			return
		}
	}
}

func (e *Election) log() *slog.Logger { return cmp.Or(e.cfg.Logger, slog.Default()) }

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return ctx.Err() == nil
	}
}
