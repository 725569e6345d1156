// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// PartialHeader names the parts that are missing from a composed answer, or replaced by their
// fallback.
const PartialHeader = "X-Partial"

// partialField does the same in the body.
const partialField = "partial"

// Part is one part of a composed answer.
type Part struct {
	// Name is the field of the answer that holds the part.
	Name string
	// Fetch gets the part: any value that encoding/json can encode. It must not read the
	// body of r. See [Get]. After its budget it is not waited for.
	Fetch func(ctx context.Context, r *http.Request) (any, error)
	// Budget is the time that the part may take, encoding included. Zero means 1 second.
	Budget time.Duration
	// Required makes the whole answer fail with the part. Otherwise its Fallback stands in, and
	// the answer is declared partial.
	Required bool
	// Fallback gives the value to use instead, at once. Nil means null.
	Fallback func(r *http.Request, err error) any
	// Inline puts the fields of the part, which must be a JSON object, into the answer itself
	// instead of a field.
	Inline bool
}

// ComposeConfig configures [Compose]. The zero ComposeConfig is a sound default.
type ComposeConfig struct {
	// Refuse answers when a required part fails, unless the service's own answer is passed
	// on: p says with what, err why. Nil means WriteProblem(w, p).
	Refuse func(w http.ResponseWriter, r *http.Request, p Problem, err error)
	// Logger receives parts that failed. Nil means slog.Default().
	Logger *slog.Logger
}

type composition struct {
	cfg   ComposeConfig
	parts []Part
}

// Compose returns a handler that fetches the parts side by side and answers with one JSON object:
//
//	{"order": {…}, "payment": null, "partial": ["payment"]}
//
// No part delays the answer beyond its budget. Parts that failed are named in the field
// "partial" and the header X-Partial, which a complete answer does not have; a partial answer is
// not to be cached. A part that is not required and of which the service says that there is none
// (404 or 410, see [Get]) is null, and the answer is complete.
//
// When a required part fails, the answer is at once the one of [ProblemOf], or, for a 4xx of
// the service, the service's own.
func Compose(cfg ComposeConfig, parts ...Part) (http.Handler, error) {
	parts = slices.Clone(parts)
	if len(parts) == 0 {
		return nil, errors.New("gateway: parts is empty, want at least one")
	}
	names := map[string]bool{partialField: true}
	for i := range parts {
		p := &parts[i]
		switch {
		case p.Name == "" || names[p.Name] || strings.ContainsAny(p.Name, ", \r\n"):
			return nil, fmt.Errorf("gateway: parts[%d].Name is %q, want a name of its own, not %q", i, p.Name, partialField)
		case p.Fetch == nil:
			return nil, fmt.Errorf("gateway: Fetch of part %q is nil, want a func", p.Name)
		case p.Budget < 0:
			return nil, fmt.Errorf("gateway: Budget of part %q is %v, want 0 or more", p.Name, p.Budget)
		}
		names[p.Name] = true
		p.Budget = cmp.Or(p.Budget, time.Second)
	}
	if cfg.Refuse == nil {
		cfg.Refuse = func(w http.ResponseWriter, _ *http.Request, p Problem, _ error) { WriteProblem(w, p) }
	}
	return &composition{cfg, parts}, nil
}

// fetched is a part that has come, or not.
type fetched struct {
	part int
	json json.RawMessage
	err  error
}

// ServeHTTP implements http.Handler.
func (c *composition) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	results := make(chan fetched, len(c.parts))
	for i := range c.parts {
		go func() {
			value, err := c.parts[i].within(ctx, r)
			results <- fetched{i, value, err}
		}()
	}
	got := make([]fetched, len(c.parts))
	for range c.parts {
		f := <-results
		p := &c.parts[f.part]
		if f.err != nil && !isAbsence(p, f.err) {
			if !p.Required || !isRefusal(f.err) {
				c.log(r, p, f.err)
			}
			if p.Required {
				c.refuse(w, r, p, f.err)
				return
			}
		}
		got[f.part] = f
	}
	c.write(w, r, got)
}

// within fetches and encodes the part within its budget.
func (p *Part) within(ctx context.Context, r *http.Request) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, p.Budget)
	defer cancel()
	type result struct {
		value json.RawMessage
		err   error
	}
	done := make(chan result, 1)
	go func() { // on its own, because Fetch may not heed ctx
		got := result{err: errors.New("gateway: the part ended its goroutine")}
		defer func() {
			if v := recover(); v != nil {
				got = result{err: fmt.Errorf("gateway: the part panicked: %v", v)}
			}
			done <- got
		}()
		value, err := p.Fetch(ctx, r)
		if err == nil {
			got.value, got.err = p.encode(value)
		} else {
			got.err = err
		}
	}()
	select {
	case got := <-done:
		return got.value, got.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *Part) encode(value any) (json.RawMessage, error) {
	encoded, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("gateway: encode %s: %w", p.Name, err)
	}
	if p.Inline && !bytes.HasPrefix(encoded, []byte("{")) {
		return nil, fmt.Errorf("gateway: part %s is not an object, which Inline needs", p.Name)
	}
	return encoded, nil
}

// isAbsence reports whether the service has said that the optional part does not exist.
func isAbsence(p *Part, err error) bool {
	status, ok := errors.AsType[*StatusError](err)
	return ok && !p.Required && (status.Status == http.StatusNotFound || status.Status == http.StatusGone)
}

// write answers with what has come.
func (c *composition) write(w http.ResponseWriter, r *http.Request, got []fetched) {
	answer := make(map[string]json.RawMessage, len(got)+1)
	var partial []string
	for _, inline := range []bool{true, false} { // a field of its own wins over an inline one
		for i, f := range got {
			p := &c.parts[i]
			if p.Inline != inline {
				continue
			}
			value := f.json
			if f.err != nil {
				value = json.RawMessage("null")
				if !isAbsence(p, f.err) {
					partial = append(partial, p.Name)
					value = c.fallback(r, p, f.err)
				}
			}
			if !inline {
				answer[p.Name] = value
			} else if string(value) != "null" {
				if err := json.Unmarshal(value, &answer); err != nil {
					c.log(r, p, err)
				}
			}
		}
	}
	h := w.Header()
	delete(answer, partialField) // an inline part's, which would speak for the whole
	if len(partial) > 0 {
		slices.Sort(partial)
		answer[partialField], _ = json.Marshal(partial)
		h.Set(PartialHeader, strings.Join(partial, ", "))
		h.Set("Cache-Control", "no-store")
	}
	body, err := json.Marshal(answer)
	if err != nil {
		c.cfg.Refuse(w, r, Problem{Status: http.StatusBadGateway}, err)
		return
	}
	h.Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

func (c *composition) fallback(r *http.Request, p *Part, cause error) json.RawMessage {
	if p.Fallback == nil {
		return json.RawMessage("null")
	}
	encoded, err := p.encode(p.Fallback(r, cause))
	if err != nil {
		c.log(r, p, err)
		return json.RawMessage("null")
	}
	return encoded
}

// isRefusal reports whether a service has told the client that it is at fault. Nothing has failed then.
func isRefusal(err error) bool {
	status, ok := errors.AsType[*StatusError](err)
	return ok && status.Status/100 == 4
}

// refuse answers for a required part that has failed.
func (c *composition) refuse(w http.ResponseWriter, r *http.Request, p *Part, err error) {
	status, ok := errors.AsType[*StatusError](err)
	switch {
	case ok && status.Status/100 == 4 && len(status.Body) == 0:
		c.cfg.Refuse(w, r, Problem{Status: status.Status}, err)
	case ok && status.Status/100 == 4:
		for _, name := range []string{"Content-Type", "Retry-After", "Www-Authenticate"} {
			if v := status.Header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status.Status)
		_, _ = w.Write(status.Body)
	case ok && status.Status == http.StatusServiceUnavailable:
		if after := status.Header.Get("Retry-After"); after != "" {
			w.Header().Set("Retry-After", after)
		}
		c.cfg.Refuse(w, r, Problem{Status: status.Status, Detail: fmt.Sprintf("%s is not available at present", p.Name)}, err)
	default:
		c.cfg.Refuse(w, r, ProblemOf(r.Context(), p.Name, err), err)
	}
}

func (c *composition) log(r *http.Request, p *Part, err error) {
	if r.Context().Err() != nil {
		return // the client has gone, and with it the reason to fetch
	}
	cmp.Or(c.cfg.Logger, slog.Default()).WarnContext(r.Context(), "part of an answer failed", "part", p.Name, "required", p.Required, "error", err)
}

// GetConfig configures [Get]. The zero GetConfig is a sound default.
type GetConfig struct {
	// Header names the headers that are passed on from the client's request. Nil means
	// Authorization, Accept-Language, X-Request-Id, Traceparent, Tracestate and
	// Baggage.
	Header []string
	// MaxBody is the largest answer in bytes. Zero means 1 MiB.
	MaxBody int64
}

// StatusError is an answer of a service other than 2xx.
type StatusError struct {
	// Status is the answer's, Header its head, and Body what it says, at most
	// GetConfig.MaxBody bytes.
	Status int
	Header http.Header
	Body   []byte
}

// Error names the status.
func (e *StatusError) Error() string {
	return fmt.Sprintf("gateway: the service answered %d %s", e.Status, http.StatusText(e.Status))
}

var (
	placeholder       = regexp.MustCompile(`\{(\w+)\}`)
	passedOnByDefault = []string{"Authorization", "Accept-Language", "X-Request-Id", "Traceparent", "Tracestate", "Baggage"}
)

// Get returns a Fetch for [Part]: the JSON value at the URL, in which {name} stands for the
// request's path value of that name, escaped. An answer other than 2xx is a [*StatusError]. A nil
// client means http.DefaultClient.
func Get(client *http.Client, rawURL string, cfg GetConfig) func(context.Context, *http.Request) (any, error) {
	client = cmp.Or(client, http.DefaultClient)
	_, wrong := url.Parse(rawURL) // a placeholder in the host is among what is wrong
	limit := cmp.Or(cfg.MaxBody, 1<<20)
	header := cfg.Header
	if header == nil {
		header = passedOnByDefault
	}
	return func(ctx context.Context, r *http.Request) (any, error) {
		if wrong != nil {
			return nil, fmt.Errorf("gateway: Get: %w", wrong)
		}
		target, err := fill(rawURL, r)
		if err != nil {
			return nil, err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
		if err != nil {
			return nil, fmt.Errorf("gateway: %w", err)
		}
		for _, name := range header {
			if values := r.Header.Values(name); len(values) > 0 {
				req.Header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
			}
		}
		req.Header.Set("Accept", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
		switch {
		case err != nil:
			return nil, fmt.Errorf("gateway: read the answer: %w", err)
		case resp.StatusCode/100 != 2:
			return nil, &StatusError{resp.StatusCode, resp.Header, body[:min(int64(len(body)), limit)]}
		case int64(len(body)) > limit:
			return nil, fmt.Errorf("gateway: the answer is larger than %d bytes", limit)
		case len(bytes.TrimSpace(body)) == 0: // 204
			return nil, nil
		}
		return json.RawMessage(body), nil
	}
}

// fill puts the path values into the path and the query of the URL.
func fill(rawURL string, r *http.Request) (string, error) {
	var err error
	value := func(name string) string {
		v := r.PathValue(strings.Trim(name, "{}"))
		if v == "" || v == "." || v == ".." {
			// It would make another path: one level up, or the list instead of one.
			err = &StatusError{Status: http.StatusNotFound}
		}
		return v
	}
	path, query, _ := strings.Cut(rawURL, "?")
	path = placeholder.ReplaceAllStringFunc(path, func(name string) string { return url.PathEscape(value(name)) })
	query = placeholder.ReplaceAllStringFunc(query, func(name string) string { return url.QueryEscape(value(name)) })
	if query != "" {
		path += "?" + query
	}
	return path, err
}
