// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience"
)

// MiddlewareConfig configures the guards of a server. The zero value guards nothing.
//
// They work in this order: Exempt, Propagated and Criticality, RateLimit, Shed, Timeout, handler. A
// client's quota comes first, since what exceeds it should not even count as load.
type MiddlewareConfig struct {
	// Exempt reports whether a request passes without any guard. Nil means the paths
	// of health checks: /livez, /readyz, /healthz and /metrics.
	Exempt func(*http.Request) bool
	// Propagated believes the headers of [TransportConfig].Propagate. Set it where only
	// services of one owner can send requests.
	Propagated bool
	// Criticality returns how important a request is, for Shed and for calls made with the
	// request's context. Nil leaves it as it is.
	Criticality func(*http.Request) resilience.Criticality
	// RateLimit takes a token of the request's client, such as ratelimit.Keyed.Allow with its
	// identity. Every answer carries its result in the RateLimit header. Nil means none.
	RateLimit func(*http.Request) ratelimit.Result
	// RateLimitName names the quota in the RateLimit headers. Empty means "default".
	RateLimitName string
	// Shed admits requests: usually with an Adaptive limit, a Bulkhead or a Breaker. A
	// RateLimit in it is one for all clients. Its Attempt bounds the handler's context; Total
	// and Retry are not used. Nil means none.
	Shed *resilience.Policy
	// Timeout bounds the request's context. A handler that has written nothing when it
	// returns after that is answered for with 503. Zero means none.
	Timeout time.Duration
	// Refuse writes the answer to a request that is not served. Nil means a problem
	// (RFC 9457) of the status with Retry-After, which are in w's headers already.
	Refuse func(w http.ResponseWriter, r *http.Request, refusal Refusal)
}

// Refusal says why a request is not served.
type Refusal struct {
	// Status is 429 for a client's quota and 503 for everything else.
	Status int
	// RetryAfter is when to come back: zero or less means never with this request.
	RetryAfter time.Duration
	// Err is the guard's *fault.Rejection, or the end of the request's context.
	Err error
}

// NewMiddleware returns a middleware, or an error that names the wrong field.
func NewMiddleware(cfg MiddlewareConfig) (func(http.Handler) http.Handler, error) {
	if cfg.Timeout < 0 {
		return nil, fmt.Errorf("resiliencehttp: MiddlewareConfig.Timeout is %v, want 0 or more", cfg.Timeout)
	}
	for _, c := range []byte(cfg.RateLimitName) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return nil, fmt.Errorf("resiliencehttp: MiddlewareConfig.RateLimitName is %q, want printable ASCII without quotes and backslashes", cfg.RateLimitName)
		}
	}
	if cfg.RateLimitName == "" {
		cfg.RateLimitName = "default"
	}
	if cfg.Exempt == nil {
		cfg.Exempt = healthCheck
	}
	if cfg.Refuse == nil {
		cfg.Refuse = problem
	}
	return func(next http.Handler) http.Handler { return &handler{cfg, next} }, nil
}

func healthCheck(r *http.Request) bool {
	switch r.URL.Path {
	case "/livez", "/readyz", "/healthz", "/metrics":
		return true
	}
	return false
}

type handler struct {
	cfg  MiddlewareConfig
	next http.Handler
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h.cfg.Exempt(r) {
		h.next.ServeHTTP(w, r)
		return
	}
	ctx := r.Context()
	if h.cfg.Propagated {
		ctx = propagated(ctx, r.Header)
	}
	if h.cfg.Criticality != nil {
		ctx = resilience.WithCriticality(ctx, h.cfg.Criticality(r))
	}
	if ctx != r.Context() {
		r = r.WithContext(ctx)
	}
	if h.cfg.RateLimit != nil && !h.allow(w, r) {
		return
	}
	h.admit(w, r)
}

// allow asks RateLimit. The headers are those of draft-ietf-httpapi-ratelimit-headers-10.
func (h *handler) allow(w http.ResponseWriter, r *http.Request) bool {
	result := h.cfg.RateLimit(r)
	name := `"` + h.cfg.RateLimitName + `"`
	w.Header().Set("RateLimit-Policy", name+";q="+strconv.Itoa(result.Limit))
	reset := int64((result.ResetAfter + time.Second - 1) / time.Second)
	w.Header().Set("RateLimit", name+";r="+strconv.Itoa(result.Remaining)+";t="+strconv.FormatInt(reset, 10))
	if !result.OK {
		h.refuse(w, r, http.StatusTooManyRequests, result.RetryAfter, result.Err())
	}
	return result.OK
}

// admit asks Shed and serves the request.
func (h *handler) admit(w http.ResponseWriter, r *http.Request) {
	if h.cfg.Shed == nil {
		h.serve(&recorder{ResponseWriter: w}, r)
		return
	}
	ticket, err := h.cfg.Shed.Acquire(r.Context())
	if err != nil {
		after := time.Second // a guard that cannot tell: soon, but not at once
		var rejection *fault.Rejection
		if errors.As(err, &rejection) && rejection.RetryAfter != 0 {
			after = rejection.RetryAfter
		}
		h.refuse(w, r, http.StatusServiceUnavailable, after, err)
		return
	}
	rec := &recorder{ResponseWriter: w}
	result := errHandlerPanicked
	defer func() { ticket.Done(result) }()
	h.serve(rec, r.WithContext(ticket.Context()))
	result = nil
	if v := classify(rec.code(), w.Header()); v.Outcome != fault.Success && rec.code() >= 500 {
		result = fault.Judged(&StatusError{rec.code()}, v)
	}
}

var errHandlerPanicked = errors.New("resiliencehttp: the handler panicked")

// serve runs the handler within Timeout.
func (h *handler) serve(w *recorder, r *http.Request) {
	if h.cfg.Timeout == 0 {
		h.next.ServeHTTP(w, r)
		return
	}
	ctx, cancel := resilience.WithTimeout(r.Context(), h.cfg.Timeout)
	defer cancel()
	h.next.ServeHTTP(w, r.WithContext(ctx))
	if w.status == 0 && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		h.refuse(w, r, http.StatusServiceUnavailable, time.Second, fault.Ended(ctx))
	}
}

func (h *handler) refuse(w http.ResponseWriter, r *http.Request, status int, after time.Duration, err error) {
	if after > 0 {
		w.Header().Set("Retry-After", seconds(after))
	}
	h.cfg.Refuse(w, r, Refusal{status, after, err})
}

// problem is the default Refuse.
func problem(w http.ResponseWriter, _ *http.Request, refusal Refusal) {
	detail := "The server is overloaded. Try again later."
	if refusal.Status == http.StatusTooManyRequests {
		detail = "Too many requests. Try again later."
	}
	body, err := json.Marshal(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", http.StatusText(refusal.Status), refusal.Status, detail})
	if err != nil {
		panic(err) // strings and a number
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(refusal.Status)
	w.Write(body)
}

// recorder notes the status. The optional interfaces of the writer that handlers ask for by
// assertion are passed on; http.ResponseController finds the others by Unwrap.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		r.status = status // others of 1xx are not final
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(p)
}

// Unwrap serves http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// ReadFrom keeps the writer's own way to copy files.
func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return io.Copy(r.ResponseWriter, src)
}

// Flush implements http.Flusher as far as the writer does.
func (r *recorder) Flush() {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	http.NewResponseController(r.ResponseWriter).Flush() //nolint:errcheck // Flusher has no error
}

// Hijack implements http.Hijacker as far as the writer does.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if r.status == 0 {
		r.status = http.StatusSwitchingProtocols
	}
	return http.NewResponseController(r.ResponseWriter).Hijack()
}
