// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"

	"github.com/dovetail-go/dovetail/fault"
)

// Problem says why a request was refused: the members of a problem document, RFC 9457.
type Problem struct {
	// Type is a URI that identifies the kind of problem.
	Type string `json:"type"`
	// Title is what is wrong, the same for every problem of its type.
	Title string `json:"title"`
	// Status is the HTTP status code.
	Status int `json:"status"`
	// Detail is what is wrong with this request.
	Detail string `json:"detail,omitempty"`
}

const typeBase = "https://pkg.go.dev/github.com/dovetail-go/dovetail/idempotency#"

var (
	problemMissing    = Problem{typeBase + "HTTP", "Idempotency-Key is missing", http.StatusBadRequest, "This operation takes effect once per Idempotency-Key: send one that is unique, and the same again with every repetition."}
	problemMalformed  = Problem{typeBase + "ParseKey", "Idempotency-Key is malformed", http.StatusBadRequest, ""}
	problemPrincipal  = Problem{typeBase + "HTTPConfig", "The sender is unknown", http.StatusUnauthorized, "An Idempotency-Key needs to know whose it is."}
	problemInProgress = Problem{typeBase + "ErrInProgress", "A request with this Idempotency-Key is in progress", http.StatusConflict, "Repeat the request later with the same key to get its answer."}
	problemTooLarge   = Problem{typeBase + "HTTPConfig", "The request body is too large", http.StatusRequestEntityTooLarge, ""}
	problemBody       = Problem{typeBase + "HTTP", "The request body cannot be read", http.StatusBadRequest, ""}
	problemConsumed   = Problem{typeBase + "HTTP", "The request body was read too early", http.StatusInternalServerError, "The server cannot compare this request with others of its Idempotency-Key. It was not handled."}
	problemMismatch   = Problem{typeBase + "ErrMismatch", "Idempotency-Key belongs to another request", http.StatusUnprocessableEntity, "The key was used before with another query, content type or body. Use a new key for a new request."}
	problemCorrupt    = Problem{typeBase + "HTTP", "The stored answer cannot be read", http.StatusInternalServerError, "The request was handled before; it was not handled again."}
	problemAbandoned  = Problem{typeBase + "HTTP", "The request was given up", http.StatusServiceUnavailable, "Repeat it later with the same key."}
	problemStore      = Problem{typeBase + "Store", "Idempotency-Key cannot be checked now", http.StatusServiceUnavailable, "The request was not handled. Repeat it later with the same key."}
)

func (p Problem) because(err error) *Problem {
	p.Detail = err.Error()
	return &p
}

// problem translates an error of Begin.
func (m *middleware) problem(w http.ResponseWriter, r *http.Request, err error) Problem {
	switch {
	case errors.Is(err, ErrMismatch):
		return problemMismatch
	case errors.Is(err, ErrInProgress):
		w.Header().Set("Retry-After", retryAfter(r.Context(), err))
		return problemInProgress
	}
	m.logger().ErrorContext(r.Context(), "idempotency: key not checked", "error", err)
	w.Header().Set("Retry-After", retryAfter(r.Context(), err))
	return problemStore
}

// retryAfter returns whole seconds, at least one.
func retryAfter(ctx context.Context, err error) string {
	after := fault.Judge(ctx, err).After
	return strconv.Itoa(max(1, int(math.Ceil(after.Seconds()))))
}

func (m *middleware) refuse(w http.ResponseWriter, r *http.Request, key Key, p Problem, err error) HTTPRequest {
	m.Problem(w, r, p)
	return HTTPRequest{Key: key, Outcome: Refused, Status: p.Status, Err: err}
}

func writeProblem(w http.ResponseWriter, _ *http.Request, p Problem) {
	body, _ := json.Marshal(p) // strings and a number cannot fail
	Response{p.Status, http.Header{"Content-Type": {"application/problem+json"}}, body}.Write(w)
}
