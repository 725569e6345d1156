// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package gatewaying compares the gateway with proxies: requests per second of processor time that the
// proxy's own process takes.
package gatewaying

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Peers are the modules whose versions the report names.
var Peers = []string{"github.com/go-jose/go-jose/v4"}

// connections is how many clients wait for an answer at a time.
const connections = 64

// proxies are what is compared: ours with everything on is the last.
var proxies = []struct{ kind, name string }{
	{"default", "httputil.ReverseProxy, default transport"},
	{"tuned", "httputil.ReverseProxy, our TunedTransport"},
	{"nginx", "nginx, one worker, upstream keepalive"},
	{"bare", "gateway.Proxy alone"},
	{"whole", "gateway with token, quota, balancer, breaker"},
}

// Report measures every proxy in so many rounds, one after the other in each, and writes the table. One
// measurement takes ten times each: less than a second says little about a process.
func Report(ctx context.Context, stdout, w io.Writer, rounds int, each time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer)
	}))
	defer backend.Close()
	keys, token, err := issuer()
	if err != nil {
		return err
	}
	defer keys.Close()
	dir, err := os.MkdirTemp("", "gatewaying")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary := filepath.Join(dir, "proxy")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/dovetail-go/dovetail/bench/gatewaying/proxy")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the proxy: %w\n%s", err, out)
	}
	address := strings.TrimPrefix(backend.URL, "http://")
	running := make([]*proxy, len(proxies))
	for i, p := range proxies {
		switch p.kind {
		case "nginx":
			running[i], err = startNginx(ctx, filepath.Join(dir, "nginx"), address)
		default:
			running[i], err = start(ctx, binary, p.kind, address, keys.URL)
		}
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		defer running[i].stop()
	}
	perCPU := make([][]float64, len(proxies))
	perSecond := make([][]float64, len(proxies))
	for range rounds {
		for i, p := range running {
			if p == nil {
				continue
			}
			if err := load(ctx, p.addr, token, each); err != nil { // warm
				return fmt.Errorf("%s: %w", proxies[i].name, err)
			}
			n, wall, cpu, err := p.measure(ctx, token, 10*each)
			if err != nil {
				return fmt.Errorf("%s: %w", proxies[i].name, err)
			}
			perCPU[i] = append(perCPU[i], float64(n)/cpu.Seconds())
			perSecond[i] = append(perSecond[i], float64(n)/wall.Seconds())
			fmt.Fprintf(stdout, "BenchmarkGateway/%s\t%d\t%.0f cpu-ns/op\t%.0f ns/op\n", proxies[i].kind, n, float64(cpu)/float64(n), float64(wall)/float64(n))
		}
	}
	write(w, perCPU, perSecond)
	return nil
}

// answer is what the backend says.
var answer = []byte(`{"id":"0198c0de-0000-7000-8000-000000000017","status":"confirmed","total":4200,"currency":"EUR","items":[{"product":"p-17","quantity":2,"price":2100}]}`)

func write(w io.Writer, perCPU, perSecond [][]float64) {
	fmt.Fprintf(w, "## Gateway\n\n%d keep-alive connections, an answer of %d bytes of JSON, over loopback; backend and clients in a process of their own. "+
		"Requests per second of the proxy's processor time, medians and the lowest and highest round; and requests per second of the clock, in which "+
		"backend, clients and neighbours have their share.\n\n| | requests per CPU-second | range | requests per second |\n| --- | ---: | ---: | ---: |\n", connections, len(answer))
	medians := map[string]float64{}
	for i, p := range proxies {
		if len(perCPU[i]) == 0 {
			fmt.Fprintf(w, "| %s | not installed | | |\n", p.name)
			continue
		}
		slices.Sort(perCPU[i])
		slices.Sort(perSecond[i])
		medians[p.kind] = perCPU[i][len(perCPU[i])/2]
		fmt.Fprintf(w, "| %s | %.0f | %.0f to %.0f | %.0f |\n", p.name, medians[p.kind], perCPU[i][0], perCPU[i][len(perCPU[i])-1], perSecond[i][len(perSecond[i])/2])
	}
	fmt.Fprint(w, "\n### Goals\n\n| goal | ratio | |\n| --- | ---: | --- |\n")
	for _, g := range []struct {
		what, ours, theirs string
		least              float64
		why                string
	}{
		{"whole gateway at least 3 times the default ReverseProxy", "whole", "default", 3, whyWhole},
		{"whole gateway at least 0.4 times nginx", "whole", "nginx", 0.4, whyNginx},
		{"gateway.Proxy alone at least 3 times the default ReverseProxy", "bare", "default", 3, whyDefault},
	} {
		if medians[g.theirs] == 0 {
			fmt.Fprintf(w, "| %s | | not run |\n", g.what)
			continue
		}
		ratio, verdict := medians[g.ours]/medians[g.theirs], "reached"
		if ratio < g.least {
			verdict = "**missed** " + g.why
		}
		fmt.Fprintf(w, "| %s | %.2f | %s |\n", g.what, ratio, verdict)
	}
}

// Why the goals are missed, where they are.
const (
	whyWhole   = "about a fifth is what the guards take; the rest is net/http's: its server, and the two goroutines per connection of its transport"
	whyDefault = "what is left is net/http's: its server, and the two goroutines per connection of its transport"
	whyNginx   = "net/http parses, copies and schedules for each request what nginx does in one event loop"
)

// proxy is a proxy in a process of its own.
type proxy struct {
	cmd   *exec.Cmd
	stdin io.Closer
	addr  string
}

func start(ctx context.Context, binary, kind, backend, keys string) (*proxy, error) {
	cmd := exec.CommandContext(ctx, binary, kind, backend, keys)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	addr, err := bufio.NewReader(out).ReadString('\n')
	p := &proxy{cmd, in, strings.TrimSpace(addr)}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// startNginx starts nginx in the foreground, as one process, with everything of its own.
func startNginx(ctx context.Context, dir, backend string) (*proxy, error) {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			return nil, exec.ErrNotFound
		}
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `daemon off; master_process off; worker_processes 1; error_log stderr error; pid %[1]s/pid;
events { worker_connections 1024; }
http {
	access_log off; keepalive_requests 1000000000;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	upstream backend { server %[2]s; keepalive 256; keepalive_requests 1000000000; }
	server {
		listen %[3]s;
		location / {
			proxy_pass http://backend; proxy_http_version 1.1; proxy_set_header Connection "";
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;
		}
	}
}
`, dir, backend, addr), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "-c", config, "-p", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &proxy{cmd, io.NopCloser(nil), addr}
	for range 200 {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err == nil {
			return p, conn.Close()
		}
		time.Sleep(25 * time.Millisecond)
	}
	p.stop()
	return nil, errors.New("it does not listen")
}

func (p *proxy) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cpu is the processor time that the process has used.
func (p *proxy) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(text, []byte(") ")) // the name may have spaces
	fields := strings.Fields(string(rest))
	if len(fields) < 13 {
		return 0, errors.New("stat of a process is too short")
	}
	user, errUser := strconv.ParseInt(fields[11], 10, 64)
	system, errSystem := strconv.ParseInt(fields[12], 10, 64)
	const tick = 10 * time.Millisecond // USER_HZ is 100 on Linux
	return time.Duration(user+system) * tick, cmp.Or(errUser, errSystem)
}

func (p *proxy) measure(ctx context.Context, token string, d time.Duration) (n int64, wall, cpu time.Duration, err error) {
	before, err := p.cpu()
	if err != nil {
		return 0, 0, 0, err
	}
	start := time.Now()
	n, err = loadFor(ctx, p.addr, token, d)
	wall = time.Since(start)
	after, errCPU := p.cpu()
	return n, wall, max(after-before, 10*time.Millisecond), cmp.Or(err, errCPU)
}

func load(ctx context.Context, addr, token string, d time.Duration) error {
	_, err := loadFor(ctx, addr, token, d)
	return err
}

// loadFor makes requests on all connections for that long, one after the other on each.
func loadFor(ctx context.Context, addr, token string, d time.Duration) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	request := []byte("GET /orders/0198c0de-0000-7000-8000-000000000017 HTTP/1.1\r\nHost: shop.bench\r\nUser-Agent: bench\r\nAccept: application/json\r\nAuthorization: Bearer " + token + "\r\n\r\n")
	var total atomic.Int64
	var failed atomic.Pointer[error]
	var clients sync.WaitGroup
	for range connections {
		clients.Go(func() {
			n, err := client(ctx, addr, request)
			total.Add(n)
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	clients.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return total.Load(), nil
}

// client reads just as much of an answer as has to be, so that little of the machine goes to clients.
func client(ctx context.Context, addr string, request []byte) (n int64, err error) {
	conn, err := new(net.Dialer).DialContext(context.WithoutCancel(ctx), "tcp", addr) // however late it is on a busy machine
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for ; ctx.Err() == nil; n++ {
		if _, err := conn.Write(request); err != nil {
			return n, err
		}
		length := -1
		for first := true; ; first = false {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return n, err
			}
			line = bytes.TrimRight(line, "\r\n")
			if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
				return n, fmt.Errorf("answer is %q, want 200", line)
			}
			if len(line) == 0 {
				break
			}
			if name, value, _ := bytes.Cut(line, []byte(": ")); bytes.EqualFold(name, []byte("Content-Length")) {
				if length, err = strconv.Atoi(string(value)); err != nil {
					return n, err
				}
			}
		}
		if length != len(answer) {
			return n, fmt.Errorf("answer has %d bytes, want %d", length, len(answer))
		}
		if _, err := r.Discard(length); err != nil {
			return n, err
		}
	}
	return n, nil
}

// issuer serves keys, and returns a token that one of them signed.
func issuer() (*httptest.Server, string, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	key := jose.JSONWebKey{Key: private, KeyID: "1", Algorithm: "ES256", Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		return nil, "", err
	}
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: "https://login.bench", Subject: "anna", Audience: jwt.Audience{"bench"}, Expiry: jwt.NewNumericDate(time.Now().Add(24 * time.Hour)),
	}).Serialize()
	if err != nil {
		return nil, "", err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	if err != nil {
		return nil, "", err
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(set) })), token, nil
}
