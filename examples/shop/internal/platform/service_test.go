// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/messaging"
)

// diary remembers what happened, in order.
type diary struct {
	mu      sync.Mutex
	entries []string
}

func (d *diary) write(entry string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = append(d.entries, entry)
}

// shows waits until the diary has an entry.
func (d *diary) shows(t *testing.T, entry string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		found := slices.Contains(d.entries, entry)
		d.mu.Unlock()
		if found {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never %q", entry)
		}
	}
}

// fake is a service, its broker and its registry, which write down what is done with them.
type fake struct {
	*diary
	url     string
	log     *bytes.Buffer
	release chan struct{} // ends the request and the message in hand
	broken  chan error    // ends the worker
}

func (f *fake) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /slow", func(http.ResponseWriter, *http.Request) {
		f.write("request in hand")
		<-f.release
		f.write("request finished")
	})
	return mux
}

func (f *fake) Consumers() []Consumer {
	return []Consumer{{Subscription: Group("fake", "a.topic"), Handler: messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
		return errors.New("printer on fire")
	})}}
}

func (f *fake) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		f.write("worker ends")
		return nil
	case err := <-f.broken:
		return err
	}
}

// Publish, Declare and Subscribe make it a broker.
func (f *fake) Publish(context.Context, ...*messaging.Message) error { return nil }

func (f *fake) Declare(context.Context, ...messaging.Subscription) error { return nil }

func (f *fake) Subscribe(ctx context.Context, sub messaging.Subscription, handler messaging.Handler) error {
	_ = handler.Handle(ctx, &messaging.Delivery{Group: sub.Group, Attempt: 3, Message: &messaging.Message{ID: "m-1", Topic: "a.topic", Body: []byte("secret")}})
	<-ctx.Done()
	f.write("no new messages")
	<-f.release
	f.write("message finished")
	return nil
}

// Register makes it a registry, and the rest the lease of it.
func (f *fake) Register(_ context.Context, in discovery.Instance) (discovery.Lease, error) {
	f.write("registered as " + in.ID)
	return f, nil
}

func (f *fake) Renew(context.Context, discovery.Health) error { return nil }

func (f *fake) Maintenance(context.Context, bool, string) error { return nil }

func (f *fake) Deregister(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err // the service must still answer
	}
	_ = resp.Body.Close()
	f.write("deregistered while readiness says " + resp.Status)
	return nil
}

func serve(t *testing.T) (f *fake, stop context.CancelFunc, ended chan error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f = &fake{diary: new(diary), url: "http://" + ln.Addr().String(), log: new(bytes.Buffer), release: make(chan struct{}), broken: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	env := Env{Name: "fake", Instance: "fake-1", Broker: f, Registry: f, Caller: &Caller{Client: http.DefaultClient}, Log: slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), f.log), nil))}
	go func() { ended <- Serve(ctx, env, f, ln) }()
	f.shows(t, "registered as fake-1")
	return f, stop, ended
}

func TestServeDrainsInOrder(t *testing.T) {
	f, stop, ended := serve(t)
	answered := make(chan int, 1)
	go func() {
		resp, err := http.Get(f.url + "/slow")
		if err != nil {
			answered <- 0
			return
		}
		_ = resp.Body.Close()
		answered <- resp.StatusCode
	}()
	f.shows(t, "request in hand")
	stop()
	f.shows(t, "no new messages")
	close(f.release)
	if err := <-ended; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	if status := <-answered; status != http.StatusOK {
		t.Errorf("the request in hand was answered %d, want 200", status)
	}
	at := func(entry string) int { return slices.Index(f.entries, entry) }
	for _, pair := range [][2]string{
		{"deregistered while readiness says 503 Service Unavailable", "no new messages"},
		{"no new messages", "message finished"},
		{"request in hand", "request finished"},
		{"message finished", "worker ends"},
		{"request finished", "worker ends"},
	} {
		if a, b := at(pair[0]), at(pair[1]); a < 0 || b < 0 || a > b {
			t.Errorf("%q, want %q before %q", f.entries, pair[0], pair[1])
		}
	}
	if _, err := http.Get(f.url + "/livez"); err == nil {
		t.Error("it still answers after its end")
	}
}

func TestServeEndsWithItsWorker(t *testing.T) {
	f, stop, ended := serve(t)
	defer stop()
	close(f.release)
	broken := errors.New("out of paper")
	f.broken <- broken
	if err := <-ended; !errors.Is(err, broken) {
		t.Errorf("Serve = %v, want why the worker failed", err)
	}
	f.shows(t, "message finished")
}

// Who looks for why a group is behind finds it in the log before the message is a dead letter.
func TestServeLogsWhatIsNotHandled(t *testing.T) {
	f, stop, ended := serve(t)
	close(f.release)
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Serve = %v, want nil", err)
	}
	for _, want := range []string{"level=WARN", "group=fake", "topic=a.topic", "message_id=m-1", "attempt=3", "printer on fire"} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("the log does not have %q: %s", want, f.log)
		}
	}
	if strings.Contains(f.log.String(), "secret") {
		t.Errorf("the log has the message's body: %s", f.log)
	}
}

// The access log and the limits see who asked, and not the proxy that stands before us; nobody else may say who that is.
func TestBehindProxies(t *testing.T) {
	for _, c := range []struct{ trusted, peer, forwarded, want string }{
		{"", "192.0.2.1:1234", "198.51.100.1", "192.0.2.1:1234"},
		{"192.0.2.0/24", "192.0.2.1:1234", "198.51.100.1", "198.51.100.1:0"},
		{"192.0.2.0/24", "192.0.2.1:1234", "203.0.113.9, 198.51.100.1, 192.0.2.7", "198.51.100.1:0"},
		{"192.0.2.0/24", "192.0.2.1:1234", "", "192.0.2.1:0"},
		{"192.0.2.0/24", "203.0.113.5:1234", "198.51.100.1", "203.0.113.5:0"},
		{"2001:db8::/32", "[2001:db8::1]:1234", "2001:db9::7", "[2001:db9::7]:0"},
	} {
		var proxies []netip.Prefix
		if c.trusted != "" {
			proxies = append(proxies, netip.MustParsePrefix(c.trusted))
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.RemoteAddr = c.peer
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		got := ""
		behind(proxies, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.RemoteAddr })).ServeHTTP(httptest.NewRecorder(), r)
		if got != c.want {
			t.Errorf("trusting %q, %s for %q comes from %s, want %s", c.trusted, c.peer, c.forwarded, got, c.want)
		}
	}
}
