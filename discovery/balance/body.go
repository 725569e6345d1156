// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/dovetail-go/dovetail/fault"
)

func closeBody(req *http.Request) { closeReader(req.Body) }

func closeReader(body io.ReadCloser) {
	if body != nil {
		_ = body.Close()
	}
}

var errRevoked = errors.New("balance: the request body now belongs to another attempt")

// upload hands the body of one request to two attempts at most. The body that the caller gave can
// be handed on as long as nobody has read of it, which is so after an error of dialling; once it
// has been read, GetBody must give another.
type upload struct {
	req *http.Request

	mu       sync.Mutex
	read     bool // some of the caller's body has been read
	failed   bool // reading it failed
	closed   bool // the present attempt has closed it
	released bool // no further attempt will come, so that closing means closing
	turn     int  // the attempt that may read it
}

func newUpload(req *http.Request) *upload { return &upload{req: req} }

func (u *upload) none() bool { return u.req.Body == nil || u.req.Body == http.NoBody }

// first returns the body for the first attempt.
func (u *upload) first() io.ReadCloser {
	if u.none() {
		return u.req.Body
	}
	return &uploadBody{u, 0}
}

// again returns the body for the second attempt, and false if there cannot be one.
func (u *upload) again() (io.ReadCloser, bool) {
	if u.none() {
		return u.req.Body, true
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed {
		return nil, false
	}
	u.turn++
	if !u.read {
		u.closed = false
		return &uploadBody{u, u.turn}, true
	}
	if u.req.GetBody == nil {
		return nil, false
	}
	body, err := u.req.GetBody()
	return body, err == nil
}

// release tells that the attempts in being are the last.
func (u *upload) release() {
	if u.none() {
		return
	}
	u.mu.Lock()
	u.released = true
	closeNow := u.closed && !u.read
	u.mu.Unlock()
	if closeNow {
		_ = u.req.Body.Close()
	}
}

// broken reports whether the caller's body could not be read.
func (u *upload) broken() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failed
}

// uploadBody is the caller's body as seen by one attempt.
type uploadBody struct {
	u    *upload
	turn int
}

func (b *uploadBody) Read(p []byte) (int, error) {
	u := b.u
	u.mu.Lock()
	if b.turn != u.turn {
		u.mu.Unlock()
		return 0, errRevoked
	}
	if u.closed {
		u.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	u.read = true
	u.mu.Unlock()
	n, err := u.req.Body.Read(p)
	if err != nil && err != io.EOF {
		u.mu.Lock()
		u.failed = true
		u.mu.Unlock()
	}
	return n, err
}

func (b *uploadBody) Close() error {
	u := b.u
	u.mu.Lock()
	if b.turn != u.turn || u.closed {
		u.mu.Unlock()
		return nil
	}
	u.closed = true
	closeNow := u.read || u.released
	u.mu.Unlock()
	if closeNow {
		return u.req.Body.Close()
	}
	return nil
}

// download is the body of an answer. Its end is the end of the call.
type download struct {
	io.ReadCloser
	lease   Lease
	outcome fault.Outcome
	req     *http.Request
	ended   atomic.Bool
}

// newDownload takes the lease over.
func newDownload(body io.ReadCloser, lease *Lease, outcome fault.Outcome, req *http.Request) io.ReadCloser {
	d := &download{ReadCloser: body, lease: *lease, outcome: outcome, req: req}
	*lease = Lease{}
	rw, ok := body.(io.ReadWriteCloser)
	if !ok {
		return d
	}
	// After 101 Switching Protocols the body is the connection: what it can do beyond reading must
	// remain visible.
	up := &connection{d, rw}
	if half, ok := body.(interface{ CloseWrite() error }); ok {
		return struct {
			*connection
			closeWriter
		}{up, half}
	}
	return up
}

type closeWriter interface{ CloseWrite() error }

// connection is a download that can be written to.
type connection struct {
	*download
	io.Writer
}

func (d *download) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	if err != nil {
		outcome := d.outcome
		if err != io.EOF && outcome == fault.Success {
			outcome = fault.Failure // cut off
			if d.req.Context().Err() != nil {
				outcome = fault.Neutral
			}
		}
		d.end(outcome)
	}
	return n, err
}

func (d *download) Close() error {
	err := d.ReadCloser.Close()
	d.end(d.outcome)
	return err
}

func (d *download) end(o fault.Outcome) {
	if d.ended.CompareAndSwap(false, true) {
		d.lease.Done(o)
	}
}
