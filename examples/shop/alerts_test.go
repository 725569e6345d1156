// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// monitor is a Prometheus that watches a shop.
type monitor struct {
	t   *testing.T
	url string
	log string
	// disturbed says that it has been given reasons to complain.
	disturbed bool
}

// impatient returns a folder with the shop's own rules, but that an alert fires as soon as its condition has held for a
// second.
func impatient(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(observability + "/rules/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		var content struct {
			Groups []struct {
				Name  string
				Rules []map[string]any
			}
		}
		readYAML(t, file, &content)
		for _, g := range content.Groups {
			for _, r := range g.Rules {
				if r["for"] != nil {
					r["for"] = "1s"
				}
			}
		}
		writeYAML(t, filepath.Join(dir, filepath.Base(file)), content)
	}
	return dir
}

func writeYAML(t *testing.T, file string, content any) {
	t.Helper()
	text, err := yaml.Marshal(content)
	if err == nil {
		err = os.WriteFile(file, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// watch starts a Prometheus with one of the shop's configurations and its own rules. It asks every interval and is told
// what to ask by change; enter is a command that starts it, nil for none.
func watch(t *testing.T, config, interval string, change func(job map[string]any), enter ...string) *monitor {
	t.Helper()
	path, dir := program(t, "prometheus"), t.TempDir()
	var cfg map[string]any
	readYAML(t, filepath.Join(observability, config), &cfg)
	cfg["global"] = map[string]string{"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "500ms"}
	cfg["rule_files"] = []string{impatient(t) + "/*.yml"}
	change(cfg["scrape_configs"].([]any)[0].(map[string]any))
	file := filepath.Join(dir, "prometheus.yml")
	writeYAML(t, file, cfg)
	return startPrometheus(t, append(slices.Clone(enter), path, "--config.file="+file)...)
}

// startPrometheus runs the command of a Prometheus, on a free port and with data of its own, until the test ends.
func startPrometheus(t *testing.T, args ...string) *monitor {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a free port: the next moment it is Prometheus'
	if err != nil {
		t.Fatal(err)
	}
	addr, own := ln.Addr().String(), t.TempDir()
	_ = ln.Close()
	m := &monitor{t: t, url: "http://" + addr, log: filepath.Join(own, "log")}
	log, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	args = append(args, "--storage.tsdb.path="+filepath.Join(own, "tsdb"), "--web.listen-address="+addr, "--log.level=info")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !m.disturbed {
			m.quiet(t) // until here: its own end it warns of
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("prometheus ended with %v, want nil", err)
		}
		_ = log.Close()
	})
	eventually(t, func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.url+"/-/ready", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("prometheus says %s", resp.Status)
		}
		return nil
	})
	return m
}

// quiet checks that Prometheus had nothing to complain about.
func (m *monitor) quiet(t *testing.T) {
	file, err := os.Open(m.log)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = file.Close() }()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if line := lines.Text(); !strings.Contains(line, "level=info") && !strings.Contains(line, "level=INFO") {
			t.Errorf("prometheus says %s", line)
		}
	}
}

func (m *monitor) get(path string, out any) error {
	req, err := http.NewRequestWithContext(m.t.Context(), http.MethodGet, m.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, resp.Status, text)
	}
	return json.Unmarshal(text, out)
}

// query returns the number of series that an expression has now.
func (m *monitor) query(expr string) (int, error) {
	var out struct{ Data struct{ Result []any } }
	err := m.get("/api/v1/query?query="+url.QueryEscape(expr), &out)
	return len(out.Data.Result), err
}

// alert is one as Prometheus tells it: while its condition holds, pending and then firing.
type alert struct {
	Labels map[string]string
	State  string
}

func (m *monitor) alerts() ([]alert, error) {
	var out struct{ Data struct{ Alerts []alert } }
	err := m.get("/api/v1/alerts", &out)
	return out.Data.Alerts, err
}

// notice is how long a monitor may take to see what has happened.
const notice = 3 * time.Minute

// shows returns an error unless all these alerts fire.
func (m *monitor) shows(names ...string) error {
	alerts, err := m.alerts()
	for _, name := range names {
		fires := func(a alert) bool { return a.Labels["alertname"] == name && a.State == "firing" }
		if err == nil && !slices.ContainsFunc(alerts, fires) {
			err = fmt.Errorf("alerts are %v, want %v firing", alerts, names)
		}
	}
	return err
}

// sees waits for that.
func (m *monitor) sees(t *testing.T, names ...string) {
	t.Helper()
	eventuallyWithin(t, notice, func() error { return m.shows(names...) })
}

// isSilent returns an error if the condition of one of these holds, long enough or not.
func (m *monitor) isSilent(names ...string) error {
	alerts, err := m.alerts()
	if err == nil && slices.ContainsFunc(alerts, func(a alert) bool { return slices.Contains(names, a.Labels["alertname"]) }) {
		err = fmt.Errorf("alerts are %v, want none of %v", alerts, names)
	}
	return err
}

// silent waits for that.
func (m *monitor) silent(t *testing.T, names ...string) {
	t.Helper()
	eventuallyWithin(t, notice, func() error { return m.isSilent(names...) })
}

// silentWhenWell are the alerts that a shop without trouble has none of.
func silentWhenWell(t *testing.T) (names []string) {
	t.Helper()
	for _, r := range rules(t) {
		// A busy machine may break the promises about time.
		if r.Alert != "" && !strings.HasPrefix(r.Alert, "ShopErrorBudget") && r.Alert != "ShopSheds" {
			names = append(names, r.Alert)
		}
	}
	return names
}

// targets waits until Prometheus knows so many instances and all of them are up.
func (m *monitor) targets(t *testing.T, n int) {
	t.Helper()
	eventuallyWithin(t, notice, func() error {
		var out struct {
			Data struct {
				ActiveTargets []struct {
					Health, LastError string
					Labels            map[string]string
				}
			}
		}
		if err := m.get("/api/v1/targets", &out); err != nil {
			return err
		}
		services := map[string]bool{}
		for _, target := range out.Data.ActiveTargets {
			if target.Health != "up" {
				return fmt.Errorf("%v is %s: %s", target.Labels, target.Health, target.LastError)
			}
			services[target.Labels["service"]] = true
		}
		if len(out.Data.ActiveTargets) != n || len(services) != len(assembly.Backends)+1 {
			return fmt.Errorf("%d targets of %d services, want %d of all %d", len(out.Data.ActiveTargets), len(services), n, len(assembly.Backends)+1)
		}
		return nil
	})
}

// TestAlertsOfARunningShop lets a Prometheus watch a shop, first while it is well and then in trouble: alerts fire when what
// they tell of has been done to the shop, and not before, and end with it where that does not take their rates minutes. How
// long a condition must hold before they fire is promtool's to test: see TestAlertsInTime.
//
// The second shop is a stack, which Prometheus finds by a name server: that takes the rights to have one, root's.
func TestAlertsOfARunningShop(t *testing.T) {
	program(t, "prometheus")
	old := forgotten(t)
	t.Run("in one process", testAlertsOfAShop)
	t.Run("on real servers", func(t *testing.T) { testAlertsOfAStack(t, old) })
}

// burst makes n requests at the same time, whatever the answers are.
func (a *api) burst(n int, path string) {
	a.t.Helper()
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			req, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, a.url+path, nil)
			if err != nil {
				a.t.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+a.token)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		})
	}
	all.Wait()
}

func testAlertsOfAShop(t *testing.T) {
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: time.Millisecond}).stocked()
	m := watch(t, "prometheus.yml", "1s", func(job map[string]any) {
		job["file_sd_configs"] = []any{map[string]any{"files": []string{filepath.Join(data, "*-targets.json")}, "refresh_interval": "1s"}}
	})
	operator := shop.as("operator@shop.example", "dovetail-operator")
	a := shop.newcomer()
	order := lineItem{"product_id": "p-040", "quantity": 1}
	trouble := func(t *testing.T, kind, service string, amount int) (end func()) {
		t.Helper()
		return operator.seenBy(t).harm(kind, service, amount)
	}

	t.Run("a shop that is well", func(t *testing.T) {
		a := a.seenBy(t)
		eventuallyWithin(t, notice, func() error { // or the mails of orders would wait for their customer's name, and fail
			var mails struct{ Items []any }
			a.want(http.StatusOK, a.send("GET", "/api/me/mails", nil, nil), &mails)
			if len(mails.Items) == 0 {
				return errors.New("the customer's first mail is not written")
			}
			return nil
		})
		m.targets(t, 10)
		for _, expr := range []string{
			`slo:errors:ratio_rate5m{slo="orders-finished"} >= 0`, `slo:errors:ratio_rate3d{slo="mails-fresh"} >= 0`, `slo:errors:ratio_rate1h{slo="orders-accepted"} == 0`,
		} {
			eventuallyWithin(t, notice, func() error { // rates are of what comes between two scrapes
				a.ends(a.place("pm_visa", order), "confirmed")
				n, err := m.query(expr)
				if err == nil && n == 0 {
					err = fmt.Errorf("%s has no result", expr)
				}
				return err
			})
		}
		m.silent(t, silentWhenWell(t)...)
	})
	t.Run("more than the gateway can take", func(t *testing.T) {
		a := a.seenBy(t)
		end := trouble(t, "latency", "customer", 1000)
		eventuallyWithin(t, notice, func() error {
			a.burst(100, "/api/me") // where there is room for 64
			return m.shows("ShopSheds")
		})
		end()
		// The rate is that of five minutes: what was turned away becomes less than one in a hundred.
		eventuallyWithin(t, notice, func() error {
			for range 100 {
				a.send("GET", "/api/products", nil, nil)
			}
			return m.isSilent("ShopSheds")
		})
	})
	t.Run("an event that the listing cannot apply", func(t *testing.T) {
		db, err := platform.OpenSQLite(filepath.Join(data, "catalog.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		const bad = "a-bad-event"
		// An hour old, so that whoever waits behind it has waited for long.
		if _, err := db.ExecContext(t.Context(), `INSERT INTO eventsource_event (stream, version, bucket, event_id, event_type, happened, recorded, header, data)
			SELECT stream, version + 1, bucket, $1, event_type, happened, recorded - 3600000000, header, '{' FROM eventsource_event
			WHERE stream = 'product-p-040' ORDER BY version DESC LIMIT 1`, bad); err != nil {
			t.Fatal(err)
		}
		m.sees(t, "ShopProjectionParked", "ShopProjectionBehind")
		// Mended, as its reader would be in the next version of the program.
		if _, err := db.ExecContext(t.Context(), `UPDATE eventsource_event SET data = (SELECT data FROM eventsource_event WHERE stream = 'product-p-040' AND version = 1)
			WHERE event_id = $1`, bad); err != nil {
			t.Fatal(err)
		}
		trouble(t, "kill", "catalog", 0)()
		m.silent(t, "ShopProjectionParked", "ShopProjectionBehind")
	})
	t.Run("a piece vanishes from the stock", func(t *testing.T) {
		stock := filepath.Join(data, "inventory.db")
		harm(t, stock, `UPDATE stock SET available = available - 1 WHERE product_id = 'p-050'`)
		m.sees(t, "ShopInvariantViolated")
		harm(t, stock, `UPDATE stock SET available = available + 1 WHERE product_id = 'p-050'`)
		m.silent(t, "ShopInvariantViolated")
	})
	t.Run("the provider is down", func(t *testing.T) {
		a := a.seenBy(t)
		end := trouble(t, "provider-down", "", 0)
		waiting := []string{a.place("pm_visa", order), a.place("pm_visa", order)}
		m.sees(t, "ShopBreakerOpen")
		end()
		for _, id := range waiting {
			a.ends(id, "confirmed")
		}
		m.silent(t, "ShopBreakerOpen")
	})
	t.Run("a message that nobody can read", func(t *testing.T) {
		db, err := platform.OpenSQLite(filepath.Join(data, "customer.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		store, err := outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{})
		if err != nil {
			t.Fatal(err)
		}
		box, err := outbox.New(store, outbox.Config{})
		if err != nil {
			t.Fatal(err)
		}
		eventuallyWithin(t, notice, func() error {
			bad := &messaging.Message{ID: messaging.NewID(), Topic: "customer.registered", Type: "customer.registered.v1", Body: []byte("{")}
			if err := box.Enqueue(t.Context(), db, bad); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond) // one at a time: rates are of what comes between two scrapes
			return m.shows("ShopDeadLetters", "ShopConsumerFails")
		})
	})
	t.Run("a message that cannot be published", func(t *testing.T) {
		db, err := platform.OpenSQLite(filepath.Join(data, "shipping.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if _, err := db.ExecContext(t.Context(), `INSERT INTO outbox_message (shard, message_id, topic, message_key, message_type, happened, header, body, enqueued)
			VALUES (0, 'm-1', '', '', '', 0, '', '', 0)`); err != nil {
			t.Fatal(err)
		}
		m.sees(t, "ShopOutboxParked")
	})
	t.Run("an old message that cannot leave", func(t *testing.T) {
		end := trouble(t, "broker-cut", "order", 0)
		id := a.seenBy(t).place("pm_visa", order)
		db, err := platform.OpenSQLite(filepath.Join(data, "order.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		hourAgo := time.Now().Add(-time.Hour).UnixMicro()
		if _, err := db.ExecContext(t.Context(), `UPDATE outbox_message SET enqueued = $1`, hourAgo); err != nil {
			t.Fatal(err)
		}
		m.sees(t, "ShopOutboxStalled")
		end()
		a.seenBy(t).ends(id, "confirmed")
		m.silent(t, "ShopOutboxStalled")
	})
	t.Run("a saga that nobody can continue", func(t *testing.T) {
		defer trouble(t, "provider-down", "", 0)()
		id := a.seenBy(t).place("pm_visa", order)
		back := trouble(t, "kill", "order", 0) // its next life reads what is in the database
		db, err := platform.OpenSQLite(filepath.Join(data, "order.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		if _, err := db.ExecContext(t.Context(), `UPDATE saga_instance SET data = '{', created_at = created_at - 3600000000 WHERE id = $1`, id); err != nil {
			t.Fatal(err)
		}
		back()
		m.sees(t, "ShopSagaStuck", "ShopSagaSlow")
	})
	t.Run("orders fail", func(t *testing.T) {
		a := a.seenBy(t)
		end := trouble(t, "errors", "order", 100)
		defer end()
		eventuallyWithin(t, notice, func() error {
			a.send("POST", "/api/orders", a.key(messaging.NewID()), map[string]any{"items": []any{order}})
			return m.shows("ShopErrorBudgetBurnsFast", "ShopErrorBudgetBurnsSlowly")
		})
	})
	t.Run("a service is gone", func(t *testing.T) {
		end := trouble(t, "kill", "shipping", 0)
		m.sees(t, "ShopInstanceDown", "ShopServiceDown")
		end()
		m.silent(t, "ShopInstanceDown", "ShopServiceDown")
	})
}
