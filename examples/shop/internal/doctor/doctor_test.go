// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

func TestRunTellsInOrderAndWaitsForNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		after := func(name string, d time.Duration, f Finding) Check {
			return One(name, func(context.Context) Finding { time.Sleep(d); return f })
		}
		checks := []Check{
			after("slow", 3*time.Second, Good("at last, with hidden in it")),
			after("quick", 0, Doubt("do", "so so")),
			{"silent", func(context.Context) []Finding { return nil }},
			{"stuck", func(context.Context) []Finding { <-stuck; return nil }},
			One("obedient", func(ctx context.Context) Finding { <-ctx.Done(); return Wrong("", "%v", ctx.Err()) }),
		}
		start := time.Now()
		var told []string
		r := Run(t.Context(), checks, 5*time.Second, []string{"hidden", "at"}, func(f Finding) { told = append(told, f.Check) })
		if took := time.Since(start); took != 5*time.Second+dally {
			t.Errorf("took %v, want all of them at once", took)
		}
		if want := []string{"slow", "quick", "stuck", "obedient"}; !slices.Equal(told, want) {
			t.Errorf("told of %v, want %v", told, want)
		}
		if r.OK || r.Count(OK) != 1 || r.Count(Warn) != 1 || r.Count(Fail) != 2 {
			t.Errorf("report %+v, want one ok, one warn, two failed", r)
		}
		if f := r.Findings[0].Found; f != "at last, with … in it" {
			t.Errorf("found %q, want the secret hidden and words left alone", f)
		}
		if f := r.Findings[2].Found; !strings.Contains(f, "no answer within 5s") {
			t.Errorf("found %q, want that it was stuck", f)
		}
		close(stuck)
	})
}

// TestJSON holds the report to what is promised of it.
func TestJSON(t *testing.T) {
	r := Run(t.Context(), []Check{
		One("one", func(context.Context) Finding { return Good("well") }),
		One("two", func(context.Context) Finding { return Wrong("mend it", "bad").About("it").Runbook("saga-stuck") }),
	}, time.Minute, nil, nil)
	text, err := json.Marshal(r)
	const want = `{"ok":false,"findings":[{"check":"one","status":"ok","found":"well"},` +
		`{"check":"two","of":"it","status":"fail","found":"bad","do":"mend it","see":"docs/runbooks/saga-stuck.md"}]}`
	if err != nil || string(text) != want {
		t.Errorf("JSON = %s (%v), want %s", text, err, want)
	}
	if text, _ := json.Marshal(Run(t.Context(), nil, time.Minute, nil, nil)); string(text) != `{"ok":true,"findings":[]}` {
		t.Errorf("JSON of nothing = %s, want an empty list", text)
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		got  Finding
		want Status
	}{
		{room(noSpace - 1), Fail}, {room(noSpace), Warn}, {room(littleSpace), OK},
		{Skew("Consul", 4*time.Second), OK}, {Skew("Consul", -6*time.Second), Warn}, {Skew("Consul", 2*time.Minute), Fail},
	} {
		if tt.got.Status != tt.want || (tt.want != OK) != (tt.got.Do != "") {
			t.Errorf("%s, want %s, and what to do", tt.got, tt.want)
		}
	}
	if f := Skew("Consul", -time.Hour); !strings.Contains(f.Found, "1h0m0s behind") {
		t.Errorf("found %q, want which clock is behind", f.Found)
	}
}

func TestFolder(t *testing.T) {
	look := func(dir string) Finding { return Folder(dir).Look(t.Context())[0] }
	dir := t.TempDir()
	if f := look(dir); f.Status != OK {
		t.Errorf("%s, want ok", f)
	}
	if f := look(filepath.Join(dir, "a", "b")); f.Status != OK || !strings.Contains(f.Found, "not there yet") {
		t.Errorf("%s, want that it can be made", f)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("%v is left behind (%v), want nothing", left, err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{file, filepath.Join(file, "below"), "/proc/self/nothing"} {
		if f := look(bad); f.Status != Fail || f.Do == "" {
			t.Errorf("%s: %s, want it to fail", bad, f)
		}
	}
}

func TestListen(t *testing.T) {
	look := func(addr string) Finding { return Listen(addr, nil).Look(t.Context())[0] }
	if f := look("127.0.0.1:0"); f.Status != OK || !strings.Contains(f.Found, "free") {
		t.Errorf("%s, want it free", f)
	}
	if f := look("192.0.2.1:80"); f.Status != Fail { // an address of nobody's, RFC 5737
		t.Errorf("%s, want it to fail", f)
	}
	stranger := httptest.NewServer(http.NotFoundHandler())
	defer stranger.Close()
	if f := look(stranger.Listener.Addr().String()); f.Status != Fail || !strings.Contains(f.Found, "no shop") {
		t.Errorf("%s, want that it is taken by something else", f)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it never says anything
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	r := Run(t.Context(), []Check{Listen(silent.Addr().String(), nil)}, 200*time.Millisecond, nil, nil)
	if f := r.Findings[0]; f.Status != Fail {
		t.Errorf("%s, want it to fail", f)
	}
}

func TestClockBehindItsData(t *testing.T) {
	dir := t.TempDir()
	look := func() []Finding { return Since(dir, "*.db").Look(t.Context()) }
	if f := look(); len(f) != 0 {
		t.Errorf("%v of no data, want nothing", f)
	}
	path := filepath.Join(dir, "order.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if f := look(); f[0].Status != OK {
		t.Errorf("%s, want ok", f[0])
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if f := look(); f[0].Status != Warn {
		t.Errorf("%s, want a doubt", f[0])
	}
}

func TestTablesKnowsEveryBlock(t *testing.T) {
	for _, d := range []platform.Dialect{platform.SQLite, platform.Postgres} {
		all := wanted(d)
		for _, name := range []string{"outbox_schema", "idempotency_schema", "saga_schema", "saga_barrier_schema", "eventsource_schema", "eventsource_models_schema"} {
			if all[name] < 1 {
				t.Errorf("%v: %s is of version %d, want one; there are %v", d, name, all[name], all)
			}
		}
	}
}

// TestRunning asks a gateway that has something to say of everything.
func TestRunning(t *testing.T) {
	services, traffic := `{"items":[{"service":"order","ready":true},{"service":"payment","ready":false}]}`, `{
		"services":[{"service":"order","instances":[{"instance":"order-1","up":true},{"instance":"order-2","up":false}],
			"outbox":{"waiting":7,"parked":2,"oldest_seconds":90,"dead_letters":3}},
			{"service":"payment","instances":[{"instance":"payment-1","up":false}]}],
		"calls":[{"from":"order","to":"payment","breaker":{"state":"open"}},{"from":"order","to":"customer","breaker":{"state":"closed"}}],
		"groups":[{"service":"order","group":"order.payments","behind":4,"oldest_seconds":61.5},{"service":"order","group":"order.credit","behind":900,"oldest_seconds":30}],
		"totals":{"stuck":1}}`
	mux := http.NewServeMux()
	say := func(text *string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer token" {
				w.WriteHeader(http.StatusUnauthorized)
			}
			_, _ = w.Write([]byte(*text))
		}
	}
	mux.HandleFunc("/ops/api/services", say(&services))
	mux.HandleFunc("/ops/api/traffic", say(&traffic))
	gateway := httptest.NewServer(mux)
	defer gateway.Close()
	var got []string
	for _, f := range Running(t.Context(), gateway.URL, "token", nil) {
		if _, err := os.Stat(filepath.Join("..", "..", "..", "..", f.See)); err != nil {
			t.Errorf("%s: %v", f, err)
		}
		got = append(got, string(f.Status)+" "+f.Of+" "+strings.TrimSuffix(filepath.Base(f.See), ".md"))
	}
	want := []string{
		"fail payment service-down", "warn order instance-down", "warn order outbox-stalled", "fail order outbox-parked", "fail order dead-letters",
		"warn order consumer-fails", "warn order breaker-open", "fail order saga-stuck",
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if f := Running(t.Context(), gateway.URL, "another", nil); len(f) != 1 || f[0].Status != Fail {
		t.Errorf("with another token %v, want it to fail", f)
	}
	services, traffic = `{"items":[{"service":"order","ready":true}]}`, `{"services":[{"service":"order","instances":[{"instance":"order-1","up":true}]}]}`
	if f := Running(t.Context(), gateway.URL, "token", nil); len(f) != 1 || f[0].Status != OK {
		t.Errorf("of a shop that is well %v, want ok", f)
	}
}
