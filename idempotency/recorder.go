// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
)

// recorder is the ResponseWriter of a handler whose answer may be stored.
//
// It holds the answer back until the handler has returned, so that the answer is stored
// before the client sees it. When the handler flushes, or the answer grows beyond max,
// it goes over to passing everything on at once.
type recorder struct {
	w      http.ResponseWriter
	max    int
	header http.Header // the handler's view
	base   http.Header // what outer handlers had set
	status int         // 0 until the handler has answered
	sent   http.Header // header at that moment
	body   []byte      // what is to be stored, and sent unless streaming

	streaming bool // the answer is on its way to the client
	omitted   bool // the body is not to be stored
	hijacked  bool
}

func newRecorder(w http.ResponseWriter, limit int) *recorder {
	return &recorder{w: w, max: limit, header: w.Header().Clone(), base: w.Header().Clone()}
}

// Header returns a map of the handler's own, so that a handler that panics leaves
// nothing behind.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader notes the answer's status and header.
func (r *recorder) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic(fmt.Sprintf("invalid WriteHeader code %d", status)) // as net/http does, and while the handler is still to blame
	case r.status != 0 || r.hijacked:
	case status >= 100 && status < 200 && status != http.StatusSwitchingProtocols:
		replace(r.w.Header(), r.header)
		r.w.WriteHeader(status) // such as early hints: not the answer, and not stored
	default:
		r.status, r.sent = status, r.header.Clone()
	}
}

// Write notes a part of the body, and passes it on when streaming.
func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	switch {
	case r.hijacked:
		return 0, http.ErrHijacked
	case !bodyAllowed(r.status):
		return 0, http.ErrBodyNotAllowed
	case r.omitted:
	case len(r.body)+len(p) <= r.max:
		r.body = append(r.body, p...)
	default:
		r.stream()
		r.omit()
	}
	if !r.streaming {
		return len(p), nil
	}
	n, err := r.w.Write(p)
	if err != nil {
		r.omit() // the handler may stop here
	}
	return n, err
}

// omit gives the body up, of which there is too much, or perhaps not all.
func (r *recorder) omit() { r.omitted, r.body = true, nil }

// stream begins to pass the answer on.
func (r *recorder) stream() {
	if r.streaming {
		return
	}
	r.streaming = true
	replace(r.w.Header(), r.sent)
	r.w.WriteHeader(r.status)
	if len(r.body) > 0 {
		_, _ = r.w.Write(r.body) // the next Write will say that the client has gone
	}
}

// replace makes dst equal to src. The server holds on to its map, so it must stay the
// same one.
func replace(dst, src http.Header) {
	clear(dst)
	maps.Copy(dst, src)
}

// Flush sends what was written so far.
func (r *recorder) Flush() { _ = r.FlushError() }

// FlushError is Flush for [http.ResponseController].
func (r *recorder) FlushError() error {
	if r.hijacked {
		return http.ErrHijacked
	}
	r.WriteHeader(http.StatusOK)
	r.stream()
	return http.NewResponseController(r.w).Flush()
}

// Hijack hands the connection over. Nothing can be stored of such an answer.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(r.w).Hijack()
	r.hijacked = r.hijacked || err == nil
	return conn, rw, err
}

// Unwrap lets [http.ResponseController] reach the connection's deadlines and the like.
func (r *recorder) Unwrap() http.ResponseWriter { return r.w }

// record returns what is to be stored: the status, the headers that the handler set,
// and the body.
func (r *recorder) record() record {
	header := storable(r.sent)
	for name, values := range r.base {
		if slices.Equal(header[name], values) {
			delete(header, name)
		}
	}
	if r.omitted {
		header.Del("Content-Type")
		header.Del("Content-Encoding")
	}
	return record{Response{r.status, header, r.body}, r.omitted}
}

// finish sends what was held back, after the handler has returned.
func (r *recorder) finish() {
	if r.hijacked {
		return
	}
	r.WriteHeader(http.StatusOK)
	r.stream()
	maps.Copy(r.w.Header(), r.header) // for trailers, which are headers set after the body
}
