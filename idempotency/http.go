// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/http"
	"time"
)

// HTTPConfig configures [HTTP].
type HTTPConfig struct {
	// Scope returns who sends the request, such as the subject of its verified token:
	// clients choose their keys, and one must never be answered with what belongs to
	// another. An error or an empty name is answered 401. Required; [AnyClient] is for
	// servers that cannot tell their clients apart.
	Scope func(*http.Request) (string, error)
	// Required answers 400 to a POST or PATCH without a key. False lets it through, run
	// as often as it is sent.
	Required bool
	// Lease is how long a key stays taken after the process that handles its request
	// has died. Zero leaves it to the store, which means [DefaultLease].
	Lease time.Duration
	// Retention is how long an answer is remembered, from the request on. Publish it to
	// your clients: later a repetition runs again. Zero leaves it to the store, which
	// means [DefaultRetention].
	Retention time.Duration
	// MaxBody is the size of the largest request body in bytes, answered 413 beyond.
	// Zero means 1 MiB.
	MaxBody int64
	// MaxResponse is the size of the largest response body to store in bytes. A larger
	// one reaches its client, but a repetition gets the status and the headers only.
	// Zero means 1 MiB.
	MaxResponse int
	// Final says whether an answer with this status is final, so that a repetition gets
	// it again; any other frees the key. Nil means the function [Final].
	Final func(status int) bool
	// Problem answers a request that did not reach the handler. Headers such as
	// Retry-After are set already. Nil means a problem document of RFC 9457.
	Problem func(w http.ResponseWriter, r *http.Request, p Problem)
	// Hooks observe.
	Hooks HTTPHooks
	// Logger hears what went wrong with the store, where the client cannot be told. Nil
	// means slog.Default().
	Logger *slog.Logger
}

// HTTPHooks observe the middleware. Each may be nil.
type HTTPHooks struct {
	// Request is called at the end of each request with a key.
	Request func(HTTPRequest)
}

// HTTPRequest is what became of a request with a key.
type HTTPRequest struct {
	// Key is the request's, zero if it has none that can be read.
	Key Key
	// Outcome says what was done.
	Outcome HTTPOutcome
	// Status is the one that was sent, 0 after a panic or where the handler has taken over
	// the connection.
	Status int
	// Err is the store's, nil if all went well.
	Err error
}

// HTTPOutcome is what the middleware did with a request, in words fit for a metric's label.
type HTTPOutcome string

const (
	// Stored: the handler ran, and its answer is kept for repetitions.
	Stored HTTPOutcome = "stored"
	// Released: the handler ran, and a repetition will run it again.
	Released HTTPOutcome = "released"
	// Replayed: the stored answer was sent.
	Replayed HTTPOutcome = "replayed"
	// Refused: the request was answered with a problem, without the handler.
	Refused HTTPOutcome = "refused"
	// Lost: the handler ran, but what it answered could not be stored: another request
	// has taken the key over, or the store is out of reach.
	Lost HTTPOutcome = "lost"
)

const (
	defaultMaxBody     = 1 << 20
	defaultMaxResponse = 1 << 20
)

// AnyClient is the scope of a server that cannot tell its clients apart: they share one
// space of keys, so one that guesses another's key and request gets the other's answer.
func AnyClient(*http.Request) (string, error) { return "*", nil }

// Final is the default of HTTPConfig.Final: every 2xx, 3xx and 4xx, but for those
// that say "not now": 408, 409, 425 and 429. A 5xx may have come before any effect, so
// it frees the key; a handler that knows better uses [Save].
func Final(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusConflict, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= 200 && status < 500
}

// HTTP returns middleware that makes requests with an Idempotency-Key repeatable, after
// draft-ietf-httpapi-idempotency-key-header: the first one runs, and each repetition
// gets the same answer without running again.
//
// POST and PATCH are handled, PUT and DELETE if they carry a key, other methods pass.
// It stands behind authentication, on which HTTPConfig.Scope relies, and within
// compression.
//
//	no key where one is required            400
//	malformed or repeated key header        400
//	no principal                            401
//	another one with the key is running     409 with Retry-After
//	body too large                          413
//	key belongs to another request          422
//	body was read by an outer handler       500
//	store out of reach                      503 with Retry-After
//	finished before                         the stored answer, with Idempotency-Replayed: true
//
// Requests are repetitions if principal, method, path and key are the same; they must
// then also agree in query, Content-Type and every byte of the body. The path is the one
// that the middleware sees: where http.StripPrefix or a second service on the same store
// makes two operations look alike, Scope has to keep them apart.
//
// The middleware reads the body, and gives the handler another with the same bytes. So it
// stands outside of everything that reads bodies: what an outer handler has taken, by
// ParseForm or otherwise, cannot be compared, and two different payloads would look like
// repetitions. A request that is seen to have had a body, by its Content-Length or its parsed
// form, and has none any more, is refused. One of unknown length that was emptied, or a body
// that was read in part, cannot be told from what it looks like.
//
// The answer is held back until the handler has returned and it is stored, unless the
// handler flushes it or it grows beyond MaxResponse. If the client goes while it is being sent,
// the handler may have stopped in the middle, so a repetition gets the status and the headers
// only.
//
// Before the answer is stored the process may die, and a repetition after the lease runs
// again although the handler's effect is there: [Save] closes that gap. A handler that panics,
// or returns without an answer because its client has gone, frees the key. The handler's context
// ends with [ErrLeaseLost] as its cause when the key is lost to another request. A handler
// that never returns keeps its key forever: give it a timeout.
func HTTP(store Store, cfg HTTPConfig) (func(http.Handler) http.Handler, error) {
	switch {
	case store == nil:
		return nil, errors.New("idempotency: store is nil")
	case cfg.Scope == nil:
		return nil, errors.New("idempotency: HTTPConfig.Scope is nil, want who sends a request, or AnyClient")
	case cfg.Lease < 0:
		return nil, fmt.Errorf("idempotency: HTTPConfig.Lease is %v, want 0 or more", cfg.Lease)
	case cfg.Retention < 0:
		return nil, fmt.Errorf("idempotency: HTTPConfig.Retention is %v, want 0 or more", cfg.Retention)
	case cfg.MaxBody < 0:
		return nil, fmt.Errorf("idempotency: HTTPConfig.MaxBody is %d, want 0 or more", cfg.MaxBody)
	case cfg.MaxResponse < 0:
		return nil, fmt.Errorf("idempotency: HTTPConfig.MaxResponse is %d, want 0 or more", cfg.MaxResponse)
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultMaxBody
	}
	if cfg.MaxResponse == 0 {
		cfg.MaxResponse = defaultMaxResponse
	}
	if cfg.Final == nil {
		cfg.Final = Final
	}
	if cfg.Problem == nil {
		cfg.Problem = writeProblem
	}
	return func(next http.Handler) http.Handler {
		return &middleware{HTTPConfig: cfg, store: store, next: next}
	}, nil
}

type middleware struct {
	HTTPConfig
	store Store
	next  http.Handler
}

func (m *middleware) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	required := false
	switch r.Method {
	case http.MethodPost, http.MethodPatch:
		required = m.Required
	case http.MethodPut, http.MethodDelete:
	default:
		m.next.ServeHTTP(w, r)
		return
	}
	values := r.Header.Values(HeaderKey)
	if len(values) == 0 && !required {
		m.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, (*call)(nil))))
		return
	}
	done := m.serve(w, r, values)
	if m.Hooks.Request != nil {
		m.Hooks.Request(done)
	}
}

func (m *middleware) serve(w http.ResponseWriter, r *http.Request, values []string) HTTPRequest {
	cmd, body, problem := m.command(w, r, values)
	if problem != nil {
		return m.refuse(w, r, cmd.Key, *problem, nil)
	}
	begun := time.Now()
	claim, err := begin(r.Context(), m.store, cmd)
	if err != nil {
		return m.refuse(w, r, cmd.Key, m.problem(w, r, err), err)
	}
	if claim.Done {
		rec, err := decodeRecord(claim.Result)
		if err != nil {
			m.logger().ErrorContext(r.Context(), "idempotency: stored answer cannot be read", "key", cmd.Key.ID, "scope", cmd.Key.Scope, "error", err)
			return m.refuse(w, r, cmd.Key, problemCorrupt, err)
		}
		rec.replay(w)
		return HTTPRequest{Key: cmd.Key, Outcome: Replayed, Status: rec.Status}
	}
	return m.run(w, r, body, claim, begun)
}

// command returns what the request asks the store to begin, and its body.
func (m *middleware) command(w http.ResponseWriter, r *http.Request, values []string) (cmd Command, body []byte, _ *Problem) {
	switch len(values) {
	case 0:
		return cmd, nil, &problemMissing
	case 1:
	default:
		return cmd, nil, problemMalformed.because(fmt.Errorf("there are %d of them, want one", len(values)))
	}
	id, err := ParseKey(values[0])
	if err != nil {
		return cmd, nil, problemMalformed.because(err)
	}
	principal, err := m.Scope(r)
	if err != nil || principal == "" {
		return cmd, nil, &problemPrincipal
	}
	cmd = Command{Key: Key{scope(principal, r), id}, Lease: m.Lease, Retention: m.Retention}
	if r.Body != nil {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, m.MaxBody))
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return cmd, nil, problemTooLarge.because(fmt.Errorf("the limit is %d bytes", tooLarge.Limit))
	case err != nil:
		return cmd, nil, &problemBody
	case len(body) == 0 && (r.ContentLength > 0 || len(r.PostForm) > 0 || r.MultipartForm != nil):
		m.logger().ErrorContext(r.Context(), "idempotency: body was read before the middleware, such as by ParseForm: it belongs outside of what reads bodies",
			"key", id, "scope", cmd.Key.Scope)
		return cmd, nil, &problemConsumed
	}
	cmd.Fingerprint = fingerprint(r, body)
	return cmd, body, nil
}

// scope joins what keeps keys apart. The method and the escaped path hold no space, so
// two different requests never have the same scope.
func scope(principal string, r *http.Request) string {
	s := principal + " " + r.Method + " " + r.URL.EscapedPath()
	if checkName("", s) == nil {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:]) // no space: unlike every other scope
}

// fingerprint tells requests under one key apart.
func fingerprint(r *http.Request, body []byte) []byte {
	h := sha256.New()
	for _, part := range []string{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Header.Get("Content-Type")} {
		writePart(h, []byte(part))
	}
	writePart(h, body)
	return h.Sum(nil)
}

// writePart prefixes the length, so that no byte can move from one part to the next.
func writePart(h hash.Hash, part []byte) {
	_, _ = fmt.Fprintf(h, "%d:", len(part)) // a hash takes everything
	_, _ = h.Write(part)
}

// run gives the request to the handler and settles the claim.
func (m *middleware) run(w http.ResponseWriter, r *http.Request, body []byte, claim Claim, begun time.Time) HTTPRequest {
	c := &call{store: m.store, claim: claim, maxResponse: m.MaxResponse}
	ctx, stop := hold(context.WithValue(r.Context(), callKey{}, c), m.store, claim, begun, func() bool { return c.saved.Load() != 0 })
	rec := newRecorder(w, m.MaxResponse)
	returned := false
	defer func() {
		if returned {
			return
		}
		// A panic or runtime.Goexit: it goes on when the key is free.
		stop()
		done := HTTPRequest{Key: claim.Key, Outcome: Released, Err: release(ctx, m.store, claim)}
		m.report(r, done)
		if m.Hooks.Request != nil {
			m.Hooks.Request(done)
		}
	}()
	inner := r.WithContext(ctx)
	inner.Body, inner.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	m.next.ServeHTTP(rec, inner)
	returned = true
	if rec.status == 0 && ctx.Err() == nil && !rec.hijacked {
		rec.WriteHeader(http.StatusOK) // as net/http has it
	}
	if rec.streaming && ctx.Err() != nil {
		rec.omit() // it may have given up in the middle
	}
	stop()
	done := m.settle(ctx, c, rec)
	m.report(r, done)
	if rec.status == 0 && !rec.hijacked {
		// It gave up because its context had ended; that is not an empty 200.
		w.Header().Set("Retry-After", "1")
		m.Problem(w, r, problemAbandoned)
		done.Status = problemAbandoned.Status
		return done
	}
	rec.finish()
	done.Status = rec.status
	return done
}

// settle stores the answer or frees the key.
func (m *middleware) settle(ctx context.Context, c *call, rec *recorder) HTTPRequest {
	done := HTTPRequest{Key: c.claim.Key, Outcome: Released}
	switch saved := int(c.saved.Load()); {
	case saved != 0 && saved == rec.status:
		// The handler has answered what it saved, so its transaction has committed. If it
		// has not after all, the end of the lease frees the key.
		done.Outcome = Stored
	case saved == 0 && rec.status != 0 && !rec.hijacked && m.Final(rec.status):
		done.Outcome = Stored
		if done.Err = complete(ctx, c.store, c.claim, rec.record().encode()); done.Err != nil {
			done.Outcome = Lost
		}
	default:
		// Frees nothing if a transaction with the saved answer has committed.
		done.Err = release(ctx, c.store, c.claim)
	}
	return done
}

// report logs what the client cannot be told.
func (m *middleware) report(r *http.Request, done HTTPRequest) {
	if done.Err != nil {
		m.logger().ErrorContext(r.Context(), "idempotency: answer not settled", "key", done.Key.ID, "scope", done.Key.Scope,
			"outcome", string(done.Outcome), "error", done.Err)
	}
}

func (m *middleware) logger() *slog.Logger {
	if m.Logger != nil {
		return m.Logger
	}
	return slog.Default()
}
