// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/dovetail-go/dovetail/fault"
)

// Response is the answer to an HTTP request.
type Response struct {
	// Status is the status code, 200 to 599.
	Status int
	// Header is what the handler adds to the answer. Nil means nothing.
	Header http.Header
	// Body is the content.
	Body []byte
}

// JSON returns a response with v as its body.
func JSON(status int, v any) (Response, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return Response{}, fmt.Errorf("idempotency: response: %w", err)
	}
	return Response{status, http.Header{"Content-Type": {"application/json"}}, body}, nil
}

// Write sends r as the answer to a request.
func (r Response) Write(w http.ResponseWriter) {
	for name, values := range r.Header {
		w.Header()[http.CanonicalHeaderKey(name)] = values
	}
	if bodyAllowed(r.Status) {
		w.Header().Set("Content-Length", strconv.Itoa(len(r.Body)))
	}
	w.WriteHeader(r.Status)
	if len(r.Body) > 0 {
		_, _ = w.Write(r.Body) // the client may have gone
	}
}

// bodyAllowed is RFC 9110: these statuses have no content.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// Save stores r as the answer to the request that ctx belongs to, in the handler's own
// transaction: the effect and the answer commit together, so that no crash between them
// can run the command twice. It needs a store that is a [TxStore].
//
//	resp, err := idempotency.JSON(http.StatusCreated, order)
//	...
//	if err := idempotency.Save(ctx, tx, resp); err != nil {
//		return err // roll back
//	}
//	if err := tx.Commit(); err != nil {
//		return err // answer 500: a repetition runs again, or finds resp if it did commit
//	}
//	resp.Write(w)
//
// Call it last in the transaction. [ErrLeaseLost] means that another request with the
// same key has taken over: roll back. A response larger than HTTPConfig.MaxResponse is
// an error. Once Save was called, only its answer is ever stored, whatever the handler
// writes; if the transaction does not commit, the key becomes free. In a request
// without a key Save does nothing; outside of the middleware it is an error.
func Save(ctx context.Context, tx Tx, r Response) error {
	c, ok := ctx.Value(callKey{}).(*call)
	switch {
	case !ok:
		return errors.New("idempotency: Save outside of a request that went through the HTTP middleware")
	case c == nil:
		return nil
	case r.Status < 200 || r.Status > 599:
		return fmt.Errorf("idempotency: Response.Status is %d, want 200 to 599", r.Status)
	case len(r.Body) > c.maxResponse:
		return fmt.Errorf("idempotency: Response.Body has %d bytes, want at most HTTPConfig.MaxResponse, which is %d", len(r.Body), c.maxResponse)
	}
	store, ok := c.store.(TxStore)
	if !ok {
		return fault.Permanent(fmt.Errorf("idempotency: Save needs a store that can join a transaction, %T cannot: %w", c.store, errors.ErrUnsupported))
	}
	// Before the statement: from then on the transaction may hold the key's row, and
	// extending the lease waits for it.
	c.saved.Store(int64(r.Status))
	err := store.CompleteTx(ctx, tx, c.claim, record{Response: Response{r.Status, storable(r.Header), r.Body}}.encode())
	if err != nil {
		c.saved.Store(0)
		return fmt.Errorf("idempotency: save the response of %q: %w", c.claim.Key.ID, err)
	}
	return nil
}

// FromContext returns the key of the request that ctx belongs to, and false if it has
// none.
func FromContext(ctx context.Context) (Key, bool) {
	if c, _ := ctx.Value(callKey{}).(*call); c != nil {
		return c.claim.Key, true
	}
	return Key{}, false
}

// callKey is the context's key for a *call, nil in a request without an Idempotency-Key.
type callKey struct{}

// call is one request whose claim is held.
type call struct {
	store       Store
	claim       Claim
	maxResponse int
	saved       atomic.Int64 // the status that Save was called with, or 0
}

// record is what the store keeps of an answer.
type record struct {
	Response
	// omitted is true if the body was not kept.
	omitted bool
}

// recordFormat begins the first line of an encoded record.
const recordFormat = "dovetail/1"

// encode returns a line with the format and the status, the header as HTTP/1.1 writes
// it, and the body: what an operator can read, and any byte that a header can carry.
func (r record) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %d %t\r\n", recordFormat, r.Status, r.omitted)
	_ = r.Header.Write(&b) // a buffer takes everything
	b.WriteString("\r\n")
	b.Write(r.Body)
	return b.Bytes()
}

func decodeRecord(b []byte) (record, error) {
	head, body, ok := bytes.Cut(b, []byte("\r\n\r\n"))
	if !ok {
		return record{}, errors.New("no end of the header")
	}
	first, rest, _ := bytes.Cut(head, []byte("\r\n"))
	r := record{Response: Response{Body: body}}
	var format string
	if _, err := fmt.Sscanf(string(first), "%s %d %t", &format, &r.Status, &r.omitted); err != nil {
		return record{}, fmt.Errorf("first line is %.40q: %w", first, err)
	}
	if format != recordFormat || r.Status < 200 || r.Status > 999 {
		return record{}, fmt.Errorf("first line is %.40q", first)
	}
	if len(rest) > 0 {
		header, err := textproto.NewReader(bufio.NewReader(io.MultiReader(bytes.NewReader(rest), strings.NewReader("\r\n\r\n")))).ReadMIMEHeader()
		if err != nil {
			return record{}, err
		}
		r.Header = http.Header(header)
	}
	return r, nil
}

// replay sends a stored answer.
func (r record) replay(w http.ResponseWriter) {
	w.Header().Set(HeaderReplayed, "true")
	if r.omitted {
		w.Header().Set(HeaderBodyOmitted, "true")
	}
	r.Write(w)
}

// unstored are the headers that belong to one answer on one connection. The length is
// computed anew.
var unstored = []string{
	"Connection", "Content-Length", "Date", "Keep-Alive", "Proxy-Connection",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", HeaderReplayed, HeaderBodyOmitted,
}

// storable returns a copy of h without the headers that must not be repeated.
func storable(h http.Header) http.Header {
	out := make(http.Header, len(h))
	for name, values := range h {
		out[http.CanonicalHeaderKey(name)] = values
	}
	for _, name := range unstored {
		delete(out, name)
	}
	return out
}
