// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/gateway"
)

// address is where a request comes from, which a proxy that is trusted has already been asked. Who has an address of IPv6 has
// a whole /64 of them, and counts once.
func address(r *http.Request) string {
	ip := gateway.ClientIP(r, nil)
	switch {
	case !ip.IsValid():
		return r.RemoteAddr
	case ip.Is6():
		return netip.PrefixFrom(ip, 64).Masked().String()
	}
	return ip.String()
}

// bodyTakes is how long a client may take to send a body.
const bodyTakes = 10 * time.Second

// received has the whole body of a request before anybody works on it. Who sends slowly, too much or only a part of
// it waits alone: that takes none of the room in which others are served, and no service is asked.
func received(next http.Handler) http.Handler {
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return nil
		}
		if r.ContentLength > platform.MaxBody {
			w.Header().Set("Connection", "close") // or the server would read it all to use the connection again
			return platform.BodyTooLarge(platform.MaxBody)
		}
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Now().Add(bodyTakes)) // what does not come by a connection has come
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, platform.MaxBody))
		_ = control.SetReadDeadline(time.Time{})
		if err != nil {
			w.Header().Set("Connection", "close")
			return notReceived(err)
		}
		r2 := *r
		r2.Body, r2.ContentLength, r2.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		next.ServeHTTP(w, &r2)
		return nil
	})
}

func notReceived(err error) error {
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return platform.BodyTooLarge(tooLarge.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &platform.Error{Status: http.StatusRequestTimeout, Code: "too-slow", Detail: "the body did not come within " + bodyTakes.String(), Err: err}
	}
	return &platform.Error{Status: http.StatusBadRequest, Code: "unreadable-body", Detail: "the body could not be read", Err: err}
}

// legible turns requests away whose path or query is no text: no database would take it. A query that is not well
// encoded is not guessed at.
func legible(next http.Handler) http.Handler {
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		if !platform.Text(r.URL.Path) {
			return &platform.Error{Status: http.StatusBadRequest, Code: "bad-request", Detail: "the path is not UTF-8"}
		}
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return &platform.Error{Status: http.StatusBadRequest, Code: "bad-request", Detail: "the query is not well encoded", Err: err}
		}
		for name, values := range query {
			if !platform.Text(name + strings.Join(values, "")) {
				return platform.Invalid(strings.ToValidUTF8(name, "?"), "is not UTF-8, or has a NUL character in it")
			}
		}
		next.ServeHTTP(w, r)
		return nil
	})
}

// unknown answers for what no route has: that there is nothing of the name, or that it is asked for by another method.
func unknown(routes []route) http.Handler {
	known := http.NewServeMux()
	for _, r := range routes {
		known.Handle(r.pattern, r.to)
	}
	methods := []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}
	return platform.Handle(func(w http.ResponseWriter, r *http.Request) error {
		allowed := slices.DeleteFunc(slices.Clone(methods), func(method string) bool {
			as := *r
			as.Method = method
			_, pattern := known.Handler(&as)
			return pattern == ""
		})
		if len(allowed) == 0 {
			return &platform.Error{Status: http.StatusNotFound, Code: "not-found", Detail: "there is no " + r.Method + " " + r.URL.Path + "; see /openapi.yaml"}
		}
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		return &platform.Error{Status: http.StatusMethodNotAllowed, Code: "method-not-allowed", Detail: r.URL.Path + " takes " + strings.Join(allowed, ", ")}
	})
}
