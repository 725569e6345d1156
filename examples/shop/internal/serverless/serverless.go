// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package serverless serves an http.Handler as an AWS Lambda function behind API Gateway (HTTP APIs and REST APIs, so payloads
// 2.0 and 1.0), a function URL, or an Application Load Balancer.
//
// The types of the events and the loop that asks for them are AWS's own, github.com/aws/aws-lambda-go; what is here is the
// translation. The best known library for it, awslabs/aws-lambda-go-api-proxy, has had no release since April 2024 and has the web
// frameworks that it adapts in its module graph.
//
// # Caveats
//
// An answer is sent when it is whole. A stream is cut off before the deadline of its invocation and sent as far as it
// got; clients of server-sent events then come again. API Gateway itself waits 29 or 30 seconds, whatever the function's timeout is.
//
// A path is what follows the stage. An API at a domain of its own is to be mapped at the root of it: what it is mapped at
// would be part of every path. A load balancer is to append to X-Forwarded-For, as it does by default.
//
// Between invocations the process is frozen: nothing may be left to goroutines of its own.
package serverless

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
)

// MaxAnswer is how large an answer may be, as it is sent: Lambda takes 6 MB, the wrapping included.
const MaxAnswer = 6_000_000 - 64<<10

// Config configures a [Function]. The zero Config is a sound default.
type Config struct {
	// Margin is how long before the deadline of an invocation its request ends: the answer, half of that later at
	// most, is that it took too long, or a stream as far as it got. Streams are told to end as long before that. Zero means
	// 500 ms.
	Margin time.Duration
	// Draining returns a context in which streams see that they have to end when done is closed. Nil tells nobody.
	Draining func(ctx context.Context, done <-chan struct{}) context.Context
	// Refuse answers in the handler's place: 400 to an event that makes no request, 500 to a handler that panicked or said too
	// much, 504 when time is up. Nil answers with the status and its text.
	Refuse func(w http.ResponseWriter, status int, detail string)
	// Log is nil for slog.Default().
	Log *slog.Logger
}

// Function is a handler as a Lambda function. It implements lambda.Handler and is safe for concurrent use.
type Function struct {
	handler http.Handler
	cfg     Config
}

// New returns the function of a handler.
func New(h http.Handler, cfg Config) (*Function, error) {
	if h == nil {
		return nil, errors.New("serverless: the handler is nil, want one")
	}
	if cfg.Margin < 0 {
		return nil, fmt.Errorf("serverless: Config.Margin is %v, want 0 or more", cfg.Margin)
	}
	if cfg.Margin == 0 {
		cfg.Margin = 500 * time.Millisecond
	}
	if cfg.Refuse == nil {
		cfg.Refuse = func(w http.ResponseWriter, status int, _ string) { http.Error(w, http.StatusText(status), status) }
	}
	return &Function{h, cfg}, nil
}

// Invoke answers one event. The error says that the event is of none of the kinds above.
func (f *Function) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	var kind struct {
		Version        string
		HTTPMethod     string
		RequestContext struct {
			ELB  *json.RawMessage `json:"elb"`
			HTTP *json.RawMessage `json:"http"`
		}
	}
	if err := json.Unmarshal(payload, &kind); err != nil {
		return nil, fmt.Errorf("serverless: event: %w", err)
	}
	switch {
	case kind.RequestContext.ELB != nil:
		return answer(ctx, f, payload, fromALB, toALB)
	case kind.Version == "2.0" && kind.RequestContext.HTTP != nil:
		return answer(ctx, f, payload, fromV2, toV2)
	case kind.HTTPMethod != "":
		return answer(ctx, f, payload, fromV1, toV1)
	}
	return nil, errors.New("serverless: the event is none of API Gateway, a function URL or a load balancer")
}

func answer[E, A any](ctx context.Context, f *Function, payload []byte, from func(*E) (request, error), to func(*E, *http.Response, string, bool) A) ([]byte, error) {
	var event E
	if err := json.Unmarshal(payload, &event); err != nil {
		return nil, fmt.Errorf("serverless: event: %w", err)
	}
	in, err := from(&event)
	var r *http.Request
	if err == nil {
		r, err = in.http(ctx)
	}
	var w *recorder
	if err != nil {
		w = f.refuse(http.StatusBadRequest, err.Error())
	} else {
		w = f.serve(ctx, r)
	}
	body, encoded := w.body.String(), false
	if !utf8.ValidString(body) || w.header.Get("Content-Encoding") != "" {
		body, encoded = base64.StdEncoding.EncodeToString(w.body.Bytes()), true
	}
	return json.Marshal(to(&event, &http.Response{StatusCode: w.status, Header: w.header}, body, encoded))
}

// serve lets the handler answer, or answers in its place if it does not in time.
func (f *Function) serve(ctx context.Context, r *http.Request) *recorder {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	draining := make(chan struct{})
	var timeUp <-chan time.Time
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline)
		end := time.AfterFunc(left-2*f.cfg.Margin, func() { close(draining) })
		defer end.Stop()
		up := time.NewTimer(left - f.cfg.Margin)
		defer up.Stop()
		timeUp = up.C
	}
	if f.cfg.Draining != nil {
		ctx = f.cfg.Draining(ctx, draining)
	}
	w := &recorder{header: http.Header{}, head: r.Method == http.MethodHead}
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		f.handler.ServeHTTP(w, r.WithContext(ctx))
	}()
	late := func() *recorder { return f.refuse(http.StatusGatewayTimeout, "that took too long") }
	select {
	case panicked := <-done:
		switch {
		case panicked != nil:
			log := f.cfg.Log
			if log == nil {
				log = slog.Default()
			}
			log.ErrorContext(ctx, "request panicked", "method", r.Method, "path", r.URL.Path, "panic", panicked)
			return f.refuse(http.StatusInternalServerError, "something went wrong on our side")
		case w.tooMuch:
			return f.refuse(http.StatusInternalServerError, "the answer is too large")
		}
		w.finish()
		return w
	case <-timeUp:
		cancel()
	}
	// A stream that did not see by itself that it has to end does now, and is sent as far as it got.
	select {
	case <-done:
		if w.flushed {
			w.finish()
			return w
		}
		return late()
	case <-time.After(f.cfg.Margin / 2):
		return late()
	}
}

func (f *Function) refuse(status int, detail string) *recorder {
	w := &recorder{header: http.Header{}}
	f.cfg.Refuse(w, status, detail)
	w.finish()
	return w
}

// recorder is the answer until it is whole.
type recorder struct {
	header, sent http.Header
	status       int
	body         bytes.Buffer
	tooMuch      bool
	flushed      bool
	head         bool // asked for the header only
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status, w.sent = status, w.header.Clone() // what is set later is not sent, as anywhere
	}
}

var errTooMuch = errors.New("serverless: the answer is larger than Lambda takes")

func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	switch {
	case w.status == http.StatusNoContent, w.status == http.StatusNotModified:
		return 0, http.ErrBodyNotAllowed
	case w.head:
		return len(p), nil
	}
	if w.tooMuch || w.body.Len()+len(p) > MaxAnswer {
		w.tooMuch = true
		return 0, errTooMuch
	}
	return w.body.Write(p)
}

// Flush implements http.Flusher: there is nobody yet to flush to.
func (w *recorder) Flush() {
	w.WriteHeader(http.StatusOK)
	w.flushed = true
}

func (w *recorder) finish() {
	w.WriteHeader(http.StatusOK)
	w.header = w.sent
	if w.body.Len() > 0 && w.header.Get("Content-Type") == "" {
		w.header.Set("Content-Type", http.DetectContentType(w.body.Bytes()))
	}
}

// request is what all events have.
type request struct {
	method, path, query, host, source string
	header                            http.Header
	body                              string
	encoded                           bool
}

func (in request) http(ctx context.Context) (*http.Request, error) {
	body := []byte(in.body)
	if in.encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(in.body); err != nil {
			return nil, errors.New("the body is not base64")
		}
	}
	if !strings.HasPrefix(in.path, "/") {
		return nil, errors.New("the path does not begin with a slash")
	}
	// A path comes as the client wrote it, or decoded: what cannot be decoded is.
	u := &url.URL{Path: in.path, RawQuery: in.query}
	if path, err := url.PathUnescape(in.path); err == nil {
		u.Path, u.RawPath = path, in.path
	}
	r, err := http.NewRequestWithContext(ctx, in.method, "/", bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("the method is not one")
	}
	r.URL, r.RequestURI, r.Header, r.Host = u, u.RequestURI(), in.header, in.host
	r.Header.Del("Host")
	if ip, err := netip.ParseAddr(in.source); err == nil {
		r.RemoteAddr = netip.AddrPortFrom(ip, 0).String()
	} else if addr, err := netip.ParseAddrPort(in.source); err == nil { // a load balancer may add the client's port
		r.RemoteAddr = addr.String()
	}
	return r, nil
}

// headers joins what comes once with what may come more than once. A client may write the same name in two ways: both
// are kept, always in the same order.
func headers(single map[string]string, multi map[string][]string) http.Header {
	h := http.Header{}
	for _, name := range slices.Sorted(maps.Keys(multi)) {
		for _, v := range multi[name] {
			h.Add(name, v)
		}
	}
	several := maps.Clone(h)
	for _, name := range slices.Sorted(maps.Keys(single)) {
		if _, ok := several[http.CanonicalHeaderKey(name)]; !ok {
			h.Add(name, single[name])
		}
	}
	return h
}

// joined are headers each of which can only be sent once.
func joined(h http.Header) map[string]string {
	out := map[string]string{}
	for name, values := range h {
		out[name] = strings.Join(values, ", ")
	}
	return out
}

func fromV2(e *events.APIGatewayV2HTTPRequest) (request, error) {
	in := request{
		method: e.RequestContext.HTTP.Method, path: e.RawPath, query: e.RawQueryString, source: e.RequestContext.HTTP.SourceIP,
		header: headers(e.Headers, nil), body: e.Body, encoded: e.IsBase64Encoded,
	}
	if len(e.Cookies) > 0 {
		in.header.Set("Cookie", strings.Join(e.Cookies, "; "))
	}
	in.host = host(in.header, e.RequestContext.DomainName)
	in.path = withoutStage(in.path, e.RequestContext.Stage, e.RequestContext.DomainName)
	return in, nil
}

// withoutStage is the path below the stage of an API, which is part of it at the API's own domain and at no other.
func withoutStage(path, stage, domain string) string {
	if stage == "" || stage == "$default" || !strings.Contains(domain, ".execute-api.") {
		return path
	}
	if rest, ok := strings.CutPrefix(path, "/"+stage); ok && (rest == "" || rest[0] == '/') {
		return "/" + strings.TrimPrefix(rest, "/")
	}
	return path
}

func host(h http.Header, domain string) string {
	if v := h.Get("Host"); v != "" {
		return v
	}
	return domain
}

func toV2(_ *events.APIGatewayV2HTTPRequest, r *http.Response, body string, encoded bool) events.APIGatewayV2HTTPResponse {
	cookies := r.Header.Values("Set-Cookie")
	r.Header.Del("Set-Cookie")
	return events.APIGatewayV2HTTPResponse{StatusCode: r.StatusCode, Headers: joined(r.Header), Body: body, IsBase64Encoded: encoded, Cookies: cookies}
}

func fromV1(e *events.APIGatewayProxyRequest) (request, error) {
	in := request{
		method: e.HTTPMethod, path: e.Path, query: query(e.QueryStringParameters, e.MultiValueQueryStringParameters, false),
		source: e.RequestContext.Identity.SourceIP, header: headers(e.Headers, e.MultiValueHeaders), body: e.Body, encoded: e.IsBase64Encoded,
	}
	in.host = host(in.header, e.RequestContext.DomainName)
	// The path of a REST API's event is without the stage, that of its context is with it. In payload 1.0 of an HTTP API
	// both are with it.
	if e.Path == e.RequestContext.Path {
		in.path = withoutStage(in.path, e.RequestContext.Stage, e.RequestContext.DomainName)
	}
	return in, nil
}

func toV1(_ *events.APIGatewayProxyRequest, r *http.Response, body string, encoded bool) events.APIGatewayProxyResponse {
	return events.APIGatewayProxyResponse{StatusCode: r.StatusCode, MultiValueHeaders: r.Header, Body: body, IsBase64Encoded: encoded}
}

func fromALB(e *events.ALBTargetGroupRequest) (request, error) {
	in := request{
		// A load balancer passes queries on as they came: encoded.
		method: e.HTTPMethod, path: e.Path, query: query(e.QueryStringParameters, e.MultiValueQueryStringParameters, true),
		header: headers(e.Headers, e.MultiValueHeaders), body: e.Body, encoded: e.IsBase64Encoded,
	}
	in.host = in.header.Get("Host")
	// The load balancer has put the address that it sees last; what is before that is the client's word.
	forwarded := strings.Split(strings.Join(in.header.Values("X-Forwarded-For"), ","), ",")
	in.source = strings.TrimSpace(forwarded[len(forwarded)-1])
	return in, nil
}

func toALB(e *events.ALBTargetGroupRequest, r *http.Response, body string, encoded bool) events.ALBTargetGroupResponse {
	out := events.ALBTargetGroupResponse{
		StatusCode: r.StatusCode, StatusDescription: fmt.Sprint(r.StatusCode, " ", http.StatusText(r.StatusCode)), Body: body, IsBase64Encoded: encoded,
	}
	if len(e.MultiValueHeaders) > 0 { // as the target group is configured, so it wants its answers
		out.MultiValueHeaders = r.Header
		return out
	}
	cookies := r.Header.Values("Set-Cookie")
	r.Header.Del("Set-Cookie")
	out.Headers = joined(r.Header)
	// One header for each cookie: names differ in case, which is what AWS's own documentation does about it.
	for i, cookie := range cookies {
		name := []byte("set-cookie")
		for bit, at := 0, 0; at < len(name); at++ {
			if name[at] == '-' {
				continue
			}
			if i>>bit&1 == 1 {
				name[at] -= 'a' - 'A'
			}
			bit++
		}
		out.Headers[string(name)] = cookie
	}
	return out
}

// query puts parameters together again. Encoded ones stay as they are.
func query(single map[string]string, multi map[string][]string, encoded bool) string {
	values := url.Values{}
	for name, v := range single {
		values.Set(name, v)
	}
	for name, v := range multi {
		values[name] = v
	}
	if !encoded {
		return values.Encode()
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		for _, v := range values[name] {
			parts = append(parts, name+"="+v)
		}
	}
	return strings.Join(parts, "&")
}
