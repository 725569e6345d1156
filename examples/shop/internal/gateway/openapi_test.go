// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

func description(t *testing.T) *openapi3.T {
	t.Helper()
	loader := openapi3.NewLoader()
	doc, err := loader.LoadFromData(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(loader.Context, openapi3.EnableExamplesValidation()); err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestDescriptionHasEveryRouteAndNoOther(t *testing.T) {
	var described []string
	for path, item := range description(t).Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	s, err := New(platform.Env{Log: slog.Default(), Caller: &platform.Caller{Client: &http.Client{Transport: http.DefaultTransport}}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	answered := []string{"GET /livez", "GET /readyz", "GET /metrics"} // platform.Serve adds these to every service
	for _, r := range s.routes() {
		if strings.Contains(r.pattern, " ") { // the others catch what has no route
			answered = append(answered, r.pattern)
		}
	}
	for _, pattern := range answered {
		if !slices.Contains(described, pattern) {
			t.Errorf("openapi.yaml does not describe %s", pattern)
		}
	}
	for _, pattern := range described {
		if !slices.Contains(answered, pattern) {
			t.Errorf("openapi.yaml describes %s, which the gateway does not answer", pattern)
		}
	}
}

func TestDescriptionNamesTokenAndGuards(t *testing.T) {
	doc := description(t)
	open := []string{
		"/api/customers", "/api/sessions", "/api/sign-in", "/api/sign-in/session", "/api/categories", "/openapi.yaml", "/livez", "/readyz", "/metrics",
		"/.well-known/openid-configuration", "/.well-known/jwks.json",
	}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			anyone := slices.Contains(open, path) || method == http.MethodGet && strings.HasPrefix(path, "/api/products")
			_, refuses := op.Responses.Map()["401"]
			if secured := op.Security != nil && len(*op.Security) > 0; secured == anyone || secured && !refuses {
				t.Errorf("%s %s: security %v, answers 401 %v; want both exactly where a token is wanted", method, path, secured, refuses)
			}
			if !strings.HasPrefix(path, "/api/") && !strings.HasPrefix(path, "/ops/api/") {
				continue
			}
			for _, status := range []string{"429", "503"} {
				if _, answers := op.Responses.Map()[status]; !answers {
					t.Errorf("%s %s: does not describe the guard's %s", method, path, status)
				}
			}
		}
	}
}
