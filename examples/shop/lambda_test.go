// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// runtimeAPI is Lambda's side of a function: the HTTP interface that its process asks for events and answers to
// (AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes").
type runtimeAPI struct {
	*httptest.Server
	invocations chan invocation

	mu      sync.Mutex
	waiting map[string]chan outcome
	next    int
}

type invocation struct {
	id, payload string
	deadline    time.Time
}

// outcome is what the function said of an invocation: an answer, or an error.
type outcome struct {
	body   []byte
	failed bool
}

func newRuntimeAPI(t *testing.T) *runtimeAPI {
	api := &runtimeAPI{invocations: make(chan invocation), waiting: map[string]chan outcome{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", func(w http.ResponseWriter, r *http.Request) {
		select {
		case in := <-api.invocations:
			h := w.Header()
			h.Set("Lambda-Runtime-Aws-Request-Id", in.id)
			h.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(in.deadline.UnixMilli(), 10))
			h.Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:123456789012:function:shop")
			h.Set("Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=1")
			_, _ = io.WriteString(w, in.payload)
		case <-r.Context().Done():
		}
	})
	done := func(failed bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			api.mu.Lock()
			answer := api.waiting[r.PathValue("id")]
			api.mu.Unlock()
			if answer == nil {
				http.Error(w, "no such invocation", http.StatusBadRequest)
				return
			}
			w.WriteHeader(http.StatusAccepted)
			answer <- outcome{body, failed}
		}
	}
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", done(false))
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", done(true))
	mux.HandleFunc("POST /2018-06-01/runtime/init/error", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		t.Errorf("the function does not start: %s", body)
	})
	api.Server = httptest.NewServer(mux)
	t.Cleanup(api.Close)
	return api
}

// invoke has the function answer an event within the time.
func (api *runtimeAPI) invoke(t *testing.T, event any, within time.Duration) outcome {
	t.Helper()
	payload, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan outcome, 1)
	api.mu.Lock()
	api.next++
	id := fmt.Sprintf("8476a536-e9f4-11e8-9739-%012d", api.next)
	api.waiting[id] = answered
	api.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	select {
	case api.invocations <- invocation{id, string(payload), time.Now().Add(within)}:
	case <-ctx.Done():
		t.Fatal("the function does not ask for events")
	}
	select {
	case got := <-answered:
		return got
	case <-ctx.Done():
		t.Fatal("the function does not answer")
	}
	return outcome{}
}

// send makes a request as an HTTP API passes it on.
func (api *runtimeAPI) send(t *testing.T, method, target string, header map[string]string, body string, within time.Duration) events.APIGatewayV2HTTPResponse {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	event := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RouteKey: "$default", RawPath: u.EscapedPath(), RawQueryString: u.RawQuery,
		Headers: map[string]string{"host": "shop.example", "content-type": "application/json"},
		Body:    base64.StdEncoding.EncodeToString([]byte(body)), IsBase64Encoded: true,
	}
	for name, value := range header {
		event.Headers[strings.ToLower(name)] = value
	}
	event.RequestContext.Stage, event.RequestContext.DomainName = "$default", "shop.example"
	event.RequestContext.HTTP = events.APIGatewayV2HTTPRequestContextHTTPDescription{Method: method, Path: u.Path, SourceIP: "192.0.2.7", Protocol: "HTTP/1.1"}
	got := api.invoke(t, event, within)
	var out events.APIGatewayV2HTTPResponse
	if err := json.Unmarshal(got.body, &out); err != nil || got.failed {
		t.Fatalf("%s %s = %s (%v)", method, target, got.body, err)
	}
	if out.IsBase64Encoded {
		raw, err := base64.StdEncoding.DecodeString(out.Body)
		if err != nil {
			t.Fatal(err)
		}
		out.Body = string(raw)
	}
	return out
}

// startFunction runs a service as Lambda does, until the test ends.
func startFunction(t *testing.T, service string, settings map[string]string) *runtimeAPI {
	t.Helper()
	return startFunctionOf(t, []string{"lambda", service}, settings)
}

// startFunctionOf runs the shop's image with a command.
func startFunctionOf(t *testing.T, command []string, settings map[string]string) *runtimeAPI {
	t.Helper()
	api := newRuntimeAPI(t)
	service := command[len(command)-1]
	cmd := exec.Command(buildShop(t), command...)
	cmd.Env = []string{
		"AWS_LAMBDA_RUNTIME_API=" + strings.TrimPrefix(api.URL, "http://"), "AWS_LAMBDA_FUNCTION_NAME=shop-" + service,
		"AWS_LAMBDA_LOG_STREAM_NAME=2026/01/01/[$LATEST]0123456789abcdef", "_HANDLER=shop",
	}
	for name, value := range settings {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("told to end, the function ended with %v, want exit code 0", err)
		}
	})
	return api
}

// documentedFunction is the command of the image that the guide makes of the shop's for a function.
func documentedFunction(t *testing.T, shown []documents.Snippet) []string {
	t.Helper()
	if len(shown) != 1 {
		t.Fatalf("%d images of functions are shown, want one", len(shown))
	}
	got, err := parseDockerfile(strings.NewReader(strings.Join(shown[0].Block.Lines, "\n")))
	if err != nil {
		t.Fatalf("%v: %v", shown[0].Block, err)
	}
	if len(got) != 2 || got[0].name != "FROM" || !slices.Equal(got[0].args, []string{image}) || got[1].name != "CMD" || !got[1].json || len(got[1].args) == 0 {
		t.Fatalf("%v: %+v, want FROM %s and a CMD that needs no shell", shown[0].Block, got, image)
	}
	return got[1].args
}

// TestLambdaGateway has the gateway answer events of API Gateway, before the services of an embedded shop.
func TestLambdaGateway(t *testing.T) {
	settings := maps.Clone(stackSettings(t))
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: 24 * time.Hour})
	shop.stocked()
	token, err := os.ReadFile(filepath.Join(data, "service.token"))
	if err != nil {
		t.Fatal(err)
	}
	delete(settings, stack.ConsulVar)
	delete(settings, stack.PostgresVar)
	settings[stack.PublicURLVar], settings[stack.ServiceTokenVar] = shop.url, string(token)
	settings[stack.DiscoveryFileVar] = discoveryFile(t, data)
	fn := startFunctionOf(t, documentedFunction(t, documents.Of(t)), settings)
	const ample = time.Minute

	t.Run("a page, with what it says of itself", func(t *testing.T) {
		got := fn.send(t, "GET", "/", nil, "", ample)
		if got.StatusCode != 200 || !strings.HasPrefix(got.Headers["Content-Type"], "text/html") || got.Headers["Content-Security-Policy"] == "" || !strings.Contains(got.Body, "<html") {
			t.Errorf("GET / = %d %v", got.StatusCode, got.Headers)
		}
	})
	t.Run("a search in its own characters", func(t *testing.T) {
		got := fn.send(t, "GET", "/api/products?q=dovetail%20saw&page=1", nil, "", ample)
		var list struct{ Items []product }
		if err := json.Unmarshal([]byte(got.Body), &list); err != nil || got.StatusCode != 200 || len(list.Items) == 0 {
			t.Errorf("GET /api/products = %d %s", got.StatusCode, got.Body)
		}
	})
	t.Run("a customer signs in and orders", func(t *testing.T) {
		got := fn.send(t, "POST", "/api/sessions", nil, `{"email":"ada@shop.example","password":"dovetail-ada"}`, ample)
		var session struct{ Token string }
		if err := json.Unmarshal([]byte(got.Body), &session); err != nil || session.Token == "" {
			t.Fatalf("POST /api/sessions = %d %s", got.StatusCode, got.Body)
		}
		signedIn := map[string]string{"Authorization": "Bearer " + session.Token, "Idempotency-Key": "lambda-key-1"}
		body := `{"items":[{"product_id":"p-001","quantity":1}]}`
		first := fn.send(t, "POST", "/api/orders", signedIn, body, ample)
		again := fn.send(t, "POST", "/api/orders", signedIn, body, ample)
		if first.StatusCode != 202 || first.Body != again.Body || first.Headers["Location"] == "" {
			t.Fatalf("POST /api/orders = %d %s, and again %d %s", first.StatusCode, first.Body, again.StatusCode, again.Body)
		}
		eventually(t, func() error {
			got := fn.send(t, "GET", first.Headers["Location"], signedIn, "", ample)
			if !strings.Contains(got.Body, `"status":"confirmed"`) {
				return fmt.Errorf("the order is %s, want it confirmed", got.Body)
			}
			return nil
		})
		// A stream ends in time, with what it has.
		stream := fn.send(t, "GET", first.Headers["Location"]+"/events", map[string]string{"Authorization": "Bearer " + session.Token, "Accept": "text/event-stream"}, "", 4*time.Second)
		if stream.StatusCode != 200 || !strings.HasPrefix(stream.Headers["Content-Type"], "text/event-stream") || !strings.Contains(stream.Body, "data:") {
			t.Errorf("the stream of events = %d %v %q", stream.StatusCode, stream.Headers, stream.Body)
		}
	})
	t.Run("what is not there is 404, and a method that is not allowed is not", func(t *testing.T) {
		for target, want := range map[string]int{"/api/nothing": 404, "/api/products/none": 404, "/no-such-page": 404} {
			if got := fn.send(t, "GET", target, nil, "", ample); got.StatusCode != want {
				t.Errorf("GET %s = %d, want %d", target, got.StatusCode, want)
			}
		}
		if got := fn.send(t, "GET", "/api/me", nil, "", ample); got.StatusCode != 401 || got.Headers["Www-Authenticate"] == "" {
			t.Errorf("GET /api/me = %d %v, want 401 and how to sign in", got.StatusCode, got.Headers)
		}
	})
	t.Run("a body that is too large is 413", func(t *testing.T) {
		if got := fn.send(t, "POST", "/api/customers", nil, `{"name":"`+strings.Repeat("x", 2<<20)+`"}`, ample); got.StatusCode != 413 {
			t.Errorf("POST /api/customers = %d %s, want 413", got.StatusCode, got.Body)
		}
	})
	t.Run("a REST API's event", func(t *testing.T) {
		event := events.APIGatewayProxyRequest{
			HTTPMethod: "GET", Path: "/api/products", MultiValueQueryStringParameters: map[string][]string{"category": {"Timber"}},
			MultiValueHeaders: map[string][]string{"Host": {"shop.example"}, "Accept": {"application/json", "text/plain"}},
		}
		got := fn.invoke(t, event, ample)
		var out events.APIGatewayProxyResponse
		if err := json.Unmarshal(got.body, &out); err != nil || got.failed || out.StatusCode != 200 || len(out.MultiValueHeaders["Content-Security-Policy"]) != 1 {
			t.Errorf("answer = %s (%v)", got.body, err)
		}
	})
	t.Run("an event of another kind is an error, and the next is answered", func(t *testing.T) {
		got := fn.invoke(t, map[string]any{"Records": []any{}}, ample)
		if !got.failed || !strings.Contains(string(got.body), "errorMessage") {
			t.Errorf("answer = %+v, want an error", got)
		}
		if got := fn.send(t, "GET", "/livez", nil, "", ample); got.StatusCode != 200 {
			t.Errorf("GET /livez = %d, want 200", got.StatusCode)
		}
	})
}

// TestLambdaServices has every service with a database answer events: whether it is ready, and one thing of its own.
func TestLambdaServices(t *testing.T) {
	settings := maps.Clone(stackSettings(t))
	nobody := filepath.Join(t.TempDir(), "services.json")
	if err := os.WriteFile(nobody, []byte(`{"services": {}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	delete(settings, stack.ConsulVar)
	settings[stack.DiscoveryFileVar], settings[stack.PublicURLVar] = nobody, "https://shop.example"
	asService := map[string]string{"Authorization": "Bearer " + settings[stack.ServiceTokenVar]}
	asked := map[string][]struct {
		method, path, body string
		status             int
		says               string
	}{
		"customer": {
			{"POST", "/customers", `{"name":"Ada","email":"ada@shop.example","password":"a-password"}`, 201, `"id"`},
			{"POST", "/sessions", `{"email":"ada@shop.example","password":"a-password"}`, 200, `"token"`},
		},
		"catalog":      {{"GET", "/products?q=saw", "", 200, `"items"`}},
		"order":        {{"GET", "/ops/sagas", "", 200, `"items"`}},
		"inventory":    {{"GET", "/ops/outbox", "", 200, `"waiting"`}},
		"payment":      {{"GET", "/payments/none", "", 404, "application/problem+json"}},
		"shipping":     {{"GET", "/shipments/none", "", 404, "application/problem+json"}},
		"notification": {{"GET", "/mails", "", 200, `"items"`}},
		"reporting":    {{"GET", "/ops/reporting", "", 200, `"serving"`}},
		"provider":     {{"GET", "/v1/charges/none", "", 401, "application/problem+json"}},
	}
	for _, service := range assembly.Backends {
		t.Run(service, func(t *testing.T) {
			fn := startFunction(t, service, settings)
			if got := fn.send(t, "GET", "/readyz", nil, "", time.Minute); got.StatusCode != 200 {
				t.Errorf("GET /readyz = %d %s, want 200", got.StatusCode, got.Body)
			}
			if len(asked[service]) == 0 {
				t.Fatal("it is asked for nothing of its own")
			}
			for _, ask := range asked[service] {
				got := fn.send(t, ask.method, ask.path, asService, ask.body, time.Minute)
				if said := got.Headers["Content-Type"] + " " + got.Body; got.StatusCode != ask.status || !strings.Contains(said, ask.says) {
					t.Errorf("%s %s = %d %s, want %d and %s", ask.method, ask.path, got.StatusCode, said, ask.status, ask.says)
				}
			}
			if got := fn.send(t, "GET", "/ops/breakers", nil, "", time.Minute); got.StatusCode != 401 {
				t.Errorf("GET /ops/breakers by a stranger = %d, want 401", got.StatusCode)
			}
		})
	}
}

// discoveryFile tells where the services of an embedded shop listen.
func discoveryFile(t *testing.T, data string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(data, embedded.Targets))
	if err != nil {
		t.Fatal(err)
	}
	var targets []struct {
		Targets []string
		Labels  struct{ Service string }
	}
	if err := json.Unmarshal(text, &targets); err != nil {
		t.Fatal(err)
	}
	type instance struct {
		Addr string `json:"addr"`
	}
	services := map[string][]instance{}
	for _, target := range targets {
		for _, addr := range target.Targets {
			services[target.Labels.Service] = append(services[target.Labels.Service], instance{addr})
		}
	}
	text, err = json.Marshal(map[string]any{"services": services})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "services.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
