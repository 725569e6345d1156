// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package testserver

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Cognito starts cognito-local, an emulator of Amazon Cognito, and returns the URL of its API. The issuer of a user pool
// is that URL, a slash and the pool's ID. stop kills the emulator: connections to the URL then break without an answer, until start
// brings it back with all that it knew. program is what scripts/install-cognito prints.
func Cognito(t testing.TB, program string) (apiURL string, stop, start func()) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		Missing(t, "%v: scripts/install-cognito installs it", err)
	}
	s := home(t, "")
	p := port(t)
	behind := &url.URL{Scheme: "http", Host: fmt.Sprint("127.0.0.1:", p)}
	apiURL = before(t, behind)
	if err := os.Mkdir(filepath.Join(s.dir, ".cognito"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write(t, ".cognito/config.json", fmt.Sprintf(`{"TokenConfig": {"IssuerDomain": %q}}`, apiURL), 0o600)
	var ended <-chan struct{}
	var kill func()
	start = func() {
		t.Helper()
		ended, kill = s.start(t, node, []string{"HOST=127.0.0.1", fmt.Sprint("PORT=", p)}, program)
		await(t, "cognito-local", ended, func() error {
			resp, err := http.Get(behind.JoinPath("health").String()) //nolint:noctx // it is there or it is not
			if err != nil {
				return err
			}
			return resp.Body.Close()
		})
	}
	start()
	return apiURL, func() { kill() }, start
}

// before puts a server of the test's own in front of the emulator, which names http://localhost:9229 in its discovery documents
// wherever it listens: they name this server instead.
func before(t testing.TB, behind *url.URL) (front string) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(behind) },
		ModifyResponse: func(resp *http.Response) error {
			if !strings.HasSuffix(resp.Request.URL.Path, "/.well-known/openid-configuration") {
				return nil
			}
			document, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			document = bytes.ReplaceAll(document, []byte("http://localhost:9229"), []byte(front))
			resp.Body = io.NopCloser(bytes.NewReader(document))
			resp.Header.Set("Content-Length", strconv.Itoa(len(document)))
			return nil
		},
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }, // the connection breaks
	}
	srv := httptest.NewUnstartedServer(proxy)
	front = "http://" + srv.Listener.Addr().String()
	srv.Start()
	t.Cleanup(srv.Close)
	return front
}
