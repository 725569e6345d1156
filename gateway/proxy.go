// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/fault"
)

// ProxyConfig configures a [Proxy]. The zero ProxyConfig is a sound default.
type ProxyConfig struct {
	// StripPrefix is taken off the path, and AddPrefix put before it: "/api" makes
	// /api/orders/17 into /orders/17. A request without the prefix is not found.
	StripPrefix, AddPrefix string
	// KeepHost passes the client's Host header on. By default it is the service's name, and the
	// client's is in X-Forwarded-Host.
	KeepHost bool
	// Trusted are the addresses of proxies in front of this one, whose X-Forwarded-For,
	// -Proto and -Host are believed. None means that every peer is a client.
	Trusted []netip.Prefix
	// Drop names request headers that a client must not set, such as those of a verified
	// identity. "X-User-*" drops all that begin so. An underscore counts as a hyphen,
	// because some servers read it as one.
	Drop []string
	// Header changes the headers of the request that goes out, after everything else: it may
	// set the identity that middleware has verified. It may be nil.
	Header func(in *http.Request, out http.Header)
	// Response changes the answer's head before it is passed on, or refuses it with an
	// error, which is 502. It may be nil.
	Response func(*http.Response) error
	// MaxBody is the largest request body in bytes; above is 413. Zero means 10 MiB,
	// negative no limit.
	MaxBody int64
	// MaxHeader is the largest sum of the request's header names and values in bytes; above is
	// 431. Zero means 64 KiB, negative no limit but http.Server's.
	MaxHeader int
	// Upgrade names the protocols to which a connection may be switched. Nil means
	// "websocket"; an empty list none. A request for another is passed on without it: h2c, for one, would
	// open a tunnel past everything that looks at requests here.
	Upgrade []string
	// EncodedSlash lets %2F in a path pass.
	EncodedSlash bool
	// Refuse answers when the gateway itself has to: p says with what, err why, which is not for
	// the client's eyes. Nil means WriteProblem(w, p).
	Refuse func(w http.ResponseWriter, r *http.Request, p Problem, err error)
	// Logger receives calls that failed. Nil means slog.Default().
	Logger *slog.Logger
}

// proxy is the handler of [Proxy].
type proxy struct {
	service string
	cfg     ProxyConfig
	reverse httputil.ReverseProxy
}

// Proxy returns a handler that passes requests on to http://service through rt, such as a
// balance.Transport.
func Proxy(service string, rt http.RoundTripper, cfg ProxyConfig) (http.Handler, error) {
	if service == "" || strings.ContainsAny(service, "/?#@ ") {
		return nil, fmt.Errorf("gateway: service is %q, want the name of a host", service)
	}
	if rt == nil {
		return nil, errors.New("gateway: round tripper is nil, want one")
	}
	for name, prefix := range map[string]string{"StripPrefix": cfg.StripPrefix, "AddPrefix": cfg.AddPrefix} {
		u := url.URL{Path: prefix}
		if prefix != "" && (checkPath(&u, false) != nil || strings.HasSuffix(prefix, "/") || u.EscapedPath() != prefix) {
			return nil, fmt.Errorf("gateway: ProxyConfig.%s is %q, want a plain path that begins with a slash and ends without", name, prefix)
		}
	}
	for i, p := range cfg.Trusted {
		if !p.IsValid() {
			return nil, fmt.Errorf("gateway: ProxyConfig.Trusted[%d] is invalid, want a prefix", i)
		}
	}
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 10<<20)
	cfg.MaxHeader = cmp.Or(cfg.MaxHeader, 64<<10)
	if cfg.Upgrade == nil {
		cfg.Upgrade = []string{"websocket"}
	}
	if cfg.Refuse == nil {
		cfg.Refuse = func(w http.ResponseWriter, _ *http.Request, p Problem, _ error) { WriteProblem(w, p) }
	}
	cfg.Drop = slices.Clone(cfg.Drop)
	for i, name := range cfg.Drop {
		cfg.Drop[i] = folded(name)
	}
	p := &proxy{service: service, cfg: cfg}
	p.reverse = httputil.ReverseProxy{
		Transport:      rt,
		Rewrite:        p.rewrite,
		ModifyResponse: cfg.Response,
		ErrorHandler:   p.fail,
		// No FlushInterval: answers of unknown length, such as streams, are flushed at once anyway,
		// and for the others it would cost a second write to the connection.
		BufferPool: &buffers{},
		ErrorLog:   log.New(logWriter{p}, "", 0),
	}
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := checkPath(r.URL, p.cfg.EncodedSlash); err != nil {
		p.cfg.Refuse(w, r, Problem{Status: http.StatusBadRequest, Detail: err.Error()}, err)
		return
	}
	if !underPrefix(r.URL.EscapedPath(), p.cfg.StripPrefix) {
		p.cfg.Refuse(w, r, Problem{Status: http.StatusNotFound}, fmt.Errorf("gateway: path %q is not under %s", r.URL.Path, p.cfg.StripPrefix))
		return
	}
	if limit := p.cfg.MaxHeader; limit > 0 && headerSize(r) > limit {
		p.cfg.Refuse(w, r, Problem{
			Status: http.StatusRequestHeaderFieldsTooLarge, Detail: fmt.Sprintf("the headers are larger than %d bytes", limit),
		}, errors.New("gateway: headers too large"))
		return
	}
	if limit := p.cfg.MaxBody; limit > 0 && r.Body != nil && r.Body != http.NoBody {
		if r.ContentLength > limit {
			w.Header().Set("Connection", "close") // or the server would read it all to use the connection again
			p.cfg.Refuse(w, r, bodyTooLarge(limit), &http.MaxBytesError{Limit: limit})
			return
		}
		r = withBody(r, http.MaxBytesReader(w, r.Body, limit))
	}
	if r.Body != nil && r.Body != http.NoBody {
		r = withBody(r, clientBody{r.Body})
	}
	p.reverse.ServeHTTP(w, r)
}

// withBody is a copy of r, which must not be changed.
func withBody(r *http.Request, body io.ReadCloser) *http.Request {
	r2 := *r
	r2.Body = body
	return &r2
}

// clientBody marks errors of reading: they are the client's, though they come back as errors of
// the call to the service. They say nothing about that, or a few clients that break off could open
// the breaker for everybody.
type clientBody struct{ io.ReadCloser }

type clientError struct{ error }

func (e clientError) Unwrap() error { return e.error }

func (b clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fault.Permanent(clientError{err})
	}
	return n, err
}

// underPrefix reports whether the path is the prefix or goes on after it with a slash.
func underPrefix(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (prefix == "" || rest == "" || rest[0] == '/')
}

func headerSize(r *http.Request) int {
	size := len(r.Host) + len(r.RequestURI)
	for name, values := range r.Header {
		for _, v := range values {
			size += len(name) + len(v) + len(": \r\n")
		}
	}
	return size
}

// rewrite makes the request that goes out. Hop-by-hop headers are gone already.
func (p *proxy) rewrite(r *httputil.ProxyRequest) {
	out := r.Out
	out.URL.Scheme, out.URL.Host = "http", p.service
	if !p.cfg.KeepHost {
		out.Host = p.service
	}
	if p.cfg.AddPrefix != "" || p.cfg.StripPrefix != "" {
		raw := cmp.Or(p.cfg.AddPrefix+strings.TrimPrefix(r.In.URL.EscapedPath(), p.cfg.StripPrefix), "/")
		if plain, err := url.PathUnescape(raw); err == nil { // checked before
			out.URL.Path, out.URL.RawPath = plain, raw
		}
	}
	if upgrade := out.Header.Get("Upgrade"); upgrade != "" && !slices.ContainsFunc(p.cfg.Upgrade, func(allowed string) bool {
		return strings.EqualFold(upgrade, allowed)
	}) {
		out.Header.Del("Upgrade")
		out.Header.Del("Connection")
		out.Header.Del("Http2-Settings")
	}
	if len(p.cfg.Drop) > 0 {
		for name := range out.Header {
			if p.drops(name) {
				delete(out.Header, name)
			}
		}
	}
	setForwarded(r.In, out, p.cfg.Trusted)
	if p.cfg.Header != nil {
		p.cfg.Header(r.In, out.Header)
	}
}

// folded is a name in the form in which names are compared.
func folded(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "-")) }

func (p *proxy) drops(name string) bool {
	for _, drop := range p.cfg.Drop {
		prefix, isPrefix := strings.CutSuffix(drop, "*")
		if beginsFolded(name, prefix) && (isPrefix || len(name) == len(prefix)) {
			return true
		}
	}
	return false
}

// beginsFolded reports whether folded(name) begins with the prefix, which is folded. It is asked of
// every header of every request, so it makes no string.
func beginsFolded(name, prefix string) bool {
	if len(name) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case c == '_':
			c = '-'
		}
		if c != prefix[i] {
			return false
		}
	}
	return true
}

// fail answers when the service has not.
func (p *proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	problem := ProblemOf(r.Context(), p.service, err)
	if _, ok := errors.AsType[clientError](err); ok && problem.Status == http.StatusBadGateway {
		problem = Problem{Status: http.StatusBadRequest, Detail: "the body could not be read"}
	}
	switch problem.Status {
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		p.log().WarnContext(r.Context(), "call to service failed", "service", p.service, "method", r.Method, "error", err)
	case http.StatusRequestEntityTooLarge:
		w.Header().Set("Connection", "close")
	}
	p.cfg.Refuse(w, r, problem, err)
}

func (p *proxy) log() *slog.Logger { return cmp.Or(p.cfg.Logger, slog.Default()) }

// logWriter takes what httputil.ReverseProxy has to say.
type logWriter struct{ p *proxy }

func (l logWriter) Write(line []byte) (int, error) {
	l.p.log().Warn("proxy", "service", l.p.service, "error", strings.TrimSpace(string(line)))
	return len(line), nil
}

// buffers hands out the buffers in which bodies are copied.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }

// TunedTransport returns an http.Transport for calls to services of one's own: it keeps many
// connections per host, where the default of 2 costs a proxy most of its speed; leaves compression to the
// two ends; uses no proxy; gives up on connections after 2 seconds, and on the head of an
// answer after 30. Change its fields before the first use.
func TunedTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 2 * time.Second, KeepAlive: 15 * time.Second}
	return &http.Transport{
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   256,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
	}
}
