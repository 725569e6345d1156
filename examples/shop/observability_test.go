// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// observability is where dashboards and rules are, root where their pages' paths begin.
const observability, root = "deploy/observability", "../.."

// query is an expression of a dashboard or a rule.
type query struct{ where, expr string }

type rule struct {
	Record, Alert, Expr string
	For                 string
	Labels, Annotations map[string]string
}

// rules are those of all files.
func rules(t *testing.T) []rule {
	t.Helper()
	var all []rule
	files, err := filepath.Glob(observability + "/rules/*.yml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rules: %v", err)
	}
	for _, file := range files {
		var content struct{ Groups []struct{ Rules []rule } }
		readYAML(t, file, &content)
		for _, g := range content.Groups {
			all = append(all, g.Rules...)
		}
	}
	return all
}

func readYAML(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Panels        []struct {
		ID          int
		Type, Title string
		Description string
		Datasource  struct{ Type, UID string }
		GridPos     struct{ X, Y, W, H int }
		Targets     []struct{ RefID, Expr string }
	}
	Templating struct {
		List []struct{ Name, Type, Query string }
	}
}

func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob(observability + "/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	all := map[string]dashboard{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[filepath.Base(file)] = d
	}
	return all
}

// queries are all of both.
func queries(t *testing.T) []query {
	t.Helper()
	var all []query
	for _, r := range rules(t) {
		all = append(all, query{"rule " + r.Record + r.Alert, r.Expr})
	}
	for file, d := range dashboards(t) {
		for _, p := range d.Panels {
			for _, target := range p.Targets {
				all = append(all, query{file + ", panel " + p.Title, target.Expr})
			}
		}
	}
	return all
}

func TestDashboardsAreSound(t *testing.T) {
	uids := map[string]string{}
	for file, d := range dashboards(t) {
		if other := uids[d.UID]; other != "" || d.UID+".json" != file {
			t.Errorf("%s: uid is %q, want the file's name, which nobody else has (%s)", file, d.UID, other)
		}
		uids[d.UID] = file
		if d.Title == "" || d.SchemaVersion < 36 || len(d.Templating.List) != 1 || d.Templating.List[0].Type != "datasource" {
			t.Errorf("%s: title %q, schema %d, variables %+v; want a title, a schema of Grafana 9 or later, and the data source to choose", file, d.Title, d.SchemaVersion, d.Templating.List)
		}
		ids, cells, titles := map[int]bool{}, map[[2]int]string{}, map[string]bool{}
		for _, p := range d.Panels {
			if ids[p.ID] || p.ID < 1 {
				t.Errorf("%s: panel %q has the ID %d, want one of its own above 0", file, p.Title, p.ID)
			}
			ids[p.ID] = true
			if titles[p.Title] {
				t.Errorf("%s: two panels are called %q", file, p.Title)
			}
			titles[p.Title] = true
			if p.GridPos.X < 0 || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W < 1 || p.GridPos.H < 1 {
				t.Errorf("%s: panel %q lies at %+v, want it within 24 columns", file, p.Title, p.GridPos)
			}
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := cells[[2]int{x, y}]; other != "" {
						t.Fatalf("%s: panels %q and %q overlap", file, other, p.Title)
					}
					cells[[2]int{x, y}] = p.Title
				}
			}
			if p.Type == "row" {
				continue
			}
			if p.Datasource.UID != "${datasource}" || p.Description == "" || len(p.Targets) == 0 {
				t.Errorf("%s: panel %q has source %q, description %q and %d queries; want the chosen source, a description and a query", file, p.Title, p.Datasource.UID, p.Description, len(p.Targets))
			}
			refs := map[string]bool{}
			for _, target := range p.Targets {
				if refs[target.RefID] || target.RefID == "" {
					t.Errorf("%s: panel %q: refId %q is missing or there twice", file, p.Title, target.RefID)
				}
				refs[target.RefID] = true
			}
		}
	}
}

func TestQueriesParse(t *testing.T) {
	p := parser.NewParser(parser.Options{})
	for _, q := range queries(t) {
		if _, err := p.ParseExpr(q.expr); err != nil {
			t.Errorf("%s: %s: %v", q.where, q.expr, err)
		}
	}
}

// Every alert leads to a page that says what it means and what to do, and every page is an alert's.
func TestEveryAlertHasARunbook(t *testing.T) {
	pages, err := filepath.Glob(root + "/docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	orphans := map[string]bool{}
	for _, page := range pages {
		orphans[filepath.Base(page)] = true
	}
	seen := map[string]bool{}
	for _, r := range rules(t) {
		if r.Alert == "" {
			continue
		}
		if seen[r.Alert] {
			t.Errorf("two alerts are called %s", r.Alert)
		}
		seen[r.Alert] = true
		if s := r.Labels["severity"]; s != "page" && s != "ticket" {
			t.Errorf("%s: severity is %q, want page or ticket", r.Alert, s)
		}
		if r.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", r.Alert)
		}
		path := r.Annotations["runbook_url"]
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Errorf("%s: %v", r.Alert, err)
			continue
		}
		delete(orphans, filepath.Base(path))
		if !strings.HasPrefix(string(text), "# "+r.Alert+"\n") {
			t.Errorf("%s: %s does not begin with its name", r.Alert, path)
		}
		for _, part := range []string{"## What it means", "## What it does to people", "## Where to look", "## What to do"} {
			if !strings.Contains(string(text), "\n"+part+"\n") {
				t.Errorf("%s: %s lacks %q", r.Alert, path, part)
			}
		}
	}
	for page := range orphans {
		t.Errorf("docs/runbooks/%s belongs to no alert", page)
	}
}

// Every alert has been seen to fire and to be silent, in the tests that promtool runs.
func TestEveryAlertIsTested(t *testing.T) {
	fired, silent := map[string]bool{}, map[string]bool{}
	for _, file := range []string{"rules_test.yml", "objectives_test.yml"} {
		var content struct {
			Tests []struct {
				AlertRuleTest []struct {
					Alertname string
					ExpAlerts []any `yaml:"exp_alerts"`
				} `yaml:"alert_rule_test"`
			}
		}
		readYAML(t, filepath.Join(observability, file), &content)
		for _, test := range content.Tests {
			for _, at := range test.AlertRuleTest {
				if len(at.ExpAlerts) > 0 {
					fired[at.Alertname] = true
				} else {
					silent[at.Alertname] = true
				}
			}
		}
	}
	for _, r := range rules(t) {
		if r.Alert != "" && (!fired[r.Alert] || !silent[r.Alert]) {
			t.Errorf("%s: seen firing %v, seen silent %v; want both", r.Alert, fired[r.Alert], silent[r.Alert])
		}
	}
}

// program returns the path of one of the programs of Prometheus.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		const how = "%v: run scripts/install-prometheus"
		if os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" {
			t.Fatalf(how, err)
		}
		t.Skipf(how, err)
	}
	return path
}

func promtool(t *testing.T, stdin io.Reader, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program(t, "promtool"), args...)
	cmd.Stdin = stdin
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	}
}

func TestAlertsInTime(t *testing.T) {
	for _, args := range [][]string{
		{"check", "rules", "rules/alerts.yml", "rules/objectives.yml"},
		{"check", "config", "--syntax-only", "prometheus.yml"},
		{"check", "config", "--syntax-only", "prometheus-stack.yml"},
		{"test", "rules", "rules_test.yml"},
		{"test", "rules", "objectives_test.yml"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			for i, a := range args {
				if strings.HasSuffix(a, ".yml") {
					args[i] = filepath.Join(observability, a)
				}
			}
			promtool(t, nil, args...)
		})
	}
}

// scrapes are the answers of /metrics, by service.
func (a *api) scrapes(data string) map[string][]byte {
	a.t.Helper()
	text, err := os.ReadFile(filepath.Join(data, embedded.Targets))
	if err != nil {
		a.t.Fatal(err)
	}
	var targets []struct {
		Targets []string
		Labels  map[string]string
	}
	if err := json.Unmarshal(text, &targets); err != nil {
		a.t.Fatal(err)
	}
	all := map[string][]byte{}
	for _, target := range targets {
		at := &api{a.t, "http://" + target.Targets[0], ""}
		got := at.send("GET", "/metrics", nil, nil)
		a.want(http.StatusOK, got, nil)
		all[target.Labels["service"]] = got.body
	}
	return all
}

var sample = regexp.MustCompile(`(?m)^([a-z_]+)(?:\{(.*)\})? \S+$`)

// series returns the names of metrics, each with the names of its labels and their values.
func series(scrapes map[string][]byte) map[string]map[string][]string {
	label := regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
	all := map[string]map[string][]string{}
	for _, text := range scrapes {
		for _, m := range sample.FindAllSubmatch(text, -1) {
			name := string(m[1])
			if all[name] == nil {
				all[name] = map[string][]string{}
			}
			for _, l := range label.FindAllSubmatch(m[2], -1) {
				all[name][string(l[1])] = append(all[name][string(l[1])], string(l[2]))
			}
		}
	}
	return all
}

// TestMetricsOfARunningShop compares what dashboards and rules ask for with what a shop has that has taken some
// orders: every metric, every label, and every value that is asked for by name.
func TestMetricsOfARunningShop(t *testing.T) {
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: time.Millisecond}).stocked()
	a := shop.newcomer()
	a.ends(a.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}), "dispatched")
	a.ends(a.place("pm_declined", lineItem{"product_id": "p-040", "quantity": 1}), "rejected")
	a.want(http.StatusOK, a.send("GET", "/api/products/p-040/stock", nil, nil), nil)
	eventually(t, func() error { // what comes last
		if text := shop.scrapes(data)["notification"]; !bytes.Contains(text, []byte(`shop_event_delay_seconds_count{consumer="notification.orders"} 3`)) {
			return fmt.Errorf("the mails of two orders are not written:\n%s", sample.FindAll(text, -1))
		}
		return nil
	})
	scrapes := shop.scrapes(data)

	t.Run("the metrics follow Prometheus' rules", func(t *testing.T) {
		for service, text := range scrapes {
			problems, err := promlint.New(bytes.NewReader(text)).Lint()
			if err != nil {
				t.Fatalf("%s: %v", service, err)
			}
			for _, p := range problems {
				t.Errorf("%s: %s: %s", service, p.Metric, p.Text)
			}
		}
	})
	t.Run("promtool check metrics", func(t *testing.T) {
		for _, text := range scrapes {
			promtool(t, bytes.NewReader(text), "check", "metrics")
		}
	})
	t.Run("every service tells its build, its guards and its outbox", func(t *testing.T) {
		for service, text := range scrapes {
			want := []string{"go_build_info", "dovetail_policies_hidden", "process_open_fds"}
			if service != "gateway" && service != "provider" {
				want = append(want, "dovetail_outbox_up", "dovetail_relay_confirmed_total", "go_sql_open_connections")
			}
			for _, name := range want {
				if !bytes.Contains(text, []byte("\n"+name+"{")) && !bytes.Contains(text, []byte("\n"+name+" ")) {
					t.Errorf("%s: no %s", service, name)
				}
			}
		}
	})
	t.Run("there is what is asked for", func(t *testing.T) {
		have := series(scrapes)
		// What Prometheus makes of it.
		have["up"] = map[string][]string{}
		for _, r := range rules(t) {
			if r.Record != "" {
				have[r.Record] = map[string][]string{"slo": {r.Labels["slo"]}}
			}
		}
		target := map[string][]string{"job": {"shop"}, "service": slices.Collect(maps.Keys(scrapes)), "instance": nil}
		p := parser.NewParser(parser.Options{})
		for _, q := range queries(t) {
			expr, err := p.ParseExpr(q.expr)
			if err != nil {
				continue // is told elsewhere
			}
			known := maps.Clone(target)
			parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
				selector, ok := node.(*parser.VectorSelector)
				if !ok {
					return nil
				}
				of := have[selector.Name]
				if of == nil {
					t.Errorf("%s: no service has %s", q.where, selector.Name)
					return nil
				}
				maps.Copy(known, of)
				for _, m := range selector.LabelMatchers {
					values, own := of[m.Name]
					if !own {
						values, own = target[m.Name]
					}
					if m.Name == "__name__" || strings.HasPrefix(m.Value, "5..") || m.Type == labels.MatchNotEqual {
						continue // a shop that is well need not have these
					}
					if !own || !slices.ContainsFunc(values, m.Matches) {
						t.Errorf("%s: no series of %s has %s; there are %v", q.where, selector.Name, m, slices.Compact(slices.Sorted(slices.Values(values))))
					}
				}
				return nil
			})
			parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
				if by, ok := node.(*parser.AggregateExpr); ok {
					for _, name := range by.Grouping {
						if _, ok := known[name]; !ok {
							t.Errorf("%s: by %s, which no metric in it has", q.where, name)
						}
					}
				}
				return nil
			})
		}
	})
}

// monitor is a Prometheus that watches a shop.
type monitor struct {
	t    *testing.T
	url  string
	data string
	log  string
}

// startPrometheus starts one with the shop's own rules, which asks every second.
func startPrometheus(t *testing.T, data string) *monitor {
	t.Helper()
	path, dir := program(t, "prometheus"), t.TempDir()
	rules, err := filepath.Abs(observability + "/rules")
	if err != nil {
		t.Fatal(err)
	}
	var cfg map[string]any
	readYAML(t, observability+"/prometheus.yml", &cfg)
	cfg["global"] = map[string]string{"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"}
	cfg["rule_files"] = []string{rules + "/*.yml"}
	job := cfg["scrape_configs"].([]any)[0].(map[string]any)
	job["file_sd_configs"] = []any{map[string]any{"files": []string{filepath.Join(data, "*-targets.json")}, "refresh_interval": "1s"}}
	text, err := yaml.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a free port: the next moment it is Prometheus'
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	m := &monitor{t: t, url: "http://" + addr, data: data, log: filepath.Join(dir, "log")}
	log, err := os.Create(m.log)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address="+addr, "--log.level=info")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.quiet(t) // until here: its own end it warns of
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

// alerts are those whose condition holds, long enough or not.
func (m *monitor) alerts() ([]string, error) {
	var out struct {
		Data struct {
			Alerts []struct{ Labels map[string]string }
		}
	}
	err := m.get("/api/v1/alerts", &out)
	var names []string
	for _, a := range out.Data.Alerts {
		names = append(names, a.Labels["alertname"])
	}
	return slices.Compact(slices.Sorted(slices.Values(names))), err
}

// patience is how long a monitor may take to see what has happened.
const patience = 3 * time.Minute

// shows returns an error unless the conditions of all these alerts hold.
func (m *monitor) shows(alerts ...string) error {
	names, err := m.alerts()
	for _, alert := range alerts {
		if err == nil && !slices.Contains(names, alert) {
			err = fmt.Errorf("alerts are %v, want %v among them", names, alerts)
		}
	}
	return err
}

// sees waits for that.
func (m *monitor) sees(t *testing.T, alerts ...string) {
	t.Helper()
	eventuallyWithin(t, patience, func() error { return m.shows(alerts...) })
}

// silent waits until the condition of none of these holds.
func (m *monitor) silent(t *testing.T, alerts ...string) {
	t.Helper()
	eventuallyWithin(t, patience, func() error {
		names, err := m.alerts()
		for _, name := range names {
			if err == nil && slices.Contains(alerts, name) {
				err = fmt.Errorf("alerts are %v, want none of %v", names, alerts)
			}
		}
		return err
	})
}

// TestAlertsOfARunningShop lets a Prometheus watch a shop, first while it is well and then in trouble: the
// conditions of alerts hold when what they tell of has been done to the shop, and not before. How long they must hold is
// promtool's to test: see TestAlertsInTime.
func TestAlertsOfARunningShop(t *testing.T) {
	program(t, "prometheus")
	data := t.TempDir()
	shop := openShopWith(t, embedded.Config{Data: data, Packing: time.Millisecond}).stocked()
	m := startPrometheus(t, data)
	operator := shop.as("operator@shop.example", "dovetail-operator")
	a := shop.newcomer()
	order := lineItem{"product_id": "p-040", "quantity": 1}
	harm := func(t *testing.T, kind, service string, amount int) (end func()) {
		t.Helper()
		var fault struct{ ID string }
		body := map[string]any{"kind": kind, "seconds": 300}
		if service != "" {
			body["service"] = service
		}
		if amount > 0 {
			body["amount"] = amount
		}
		on := operator.seenBy(t)
		on.want(http.StatusCreated, on.send("POST", "/ops/api/chaos", nil, body), &fault)
		return func() { on.want(http.StatusNoContent, on.send("DELETE", "/ops/api/chaos/"+fault.ID, nil, nil), nil) }
	}

	t.Run("a shop that is well", func(t *testing.T) {
		a := a.seenBy(t)
		eventuallyWithin(t, patience, func() error { // or the mails of orders would wait for their customer's name, and fail
			var mails struct{ Items []any }
			a.want(http.StatusOK, a.send("GET", "/api/me/mails", nil, nil), &mails)
			if len(mails.Items) == 0 {
				return errors.New("the customer's first mail is not written")
			}
			return nil
		})
		eventuallyWithin(t, patience, func() error {
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
			if n := len(out.Data.ActiveTargets); n != 10 {
				return fmt.Errorf("%d targets, want the shop's 10 services", n)
			}
			for _, target := range out.Data.ActiveTargets {
				if target.Health != "up" {
					return fmt.Errorf("%s is %s: %s", target.Labels["service"], target.Health, target.LastError)
				}
			}
			return nil
		})
		for _, expr := range []string{
			`slo:errors:ratio_rate5m{slo="orders-finished"} >= 0`, `slo:errors:ratio_rate3d{slo="mails-fresh"} >= 0`, `slo:errors:ratio_rate1h{slo="orders-accepted"} == 0`,
		} {
			eventuallyWithin(t, patience, func() error { // rates are of what comes between two scrapes
				a.ends(a.place("pm_visa", order), "confirmed")
				n, err := m.query(expr)
				if err == nil && n == 0 {
					err = fmt.Errorf("%s has no result", expr)
				}
				return err
			})
		}
		var not []string
		for _, r := range rules(t) {
			// A busy machine may break the promises about time.
			if r.Alert != "" && !strings.HasPrefix(r.Alert, "ShopErrorBudget") && r.Alert != "ShopSheds" {
				not = append(not, r.Alert)
			}
		}
		m.silent(t, not...)
	})
	t.Run("the provider is down", func(t *testing.T) {
		a := a.seenBy(t)
		end := harm(t, "provider-down", "", 0)
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
		eventuallyWithin(t, patience, func() error {
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
		end := harm(t, "broker-cut", "order", 0)
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
		defer harm(t, "provider-down", "", 0)()
		id := a.seenBy(t).place("pm_visa", order)
		back := harm(t, "kill", "order", 0) // its next life reads what is in the database
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
		end := harm(t, "errors", "order", 100)
		defer end()
		eventuallyWithin(t, patience, func() error {
			a.send("POST", "/api/orders", a.key(messaging.NewID()), map[string]any{"items": []any{order}})
			return m.shows("ShopErrorBudgetBurnsFast", "ShopErrorBudgetBurnsSlowly")
		})
	})
	t.Run("a service is gone", func(t *testing.T) {
		end := harm(t, "kill", "shipping", 0)
		m.sees(t, "ShopInstanceDown", "ShopServiceDown")
		end()
		m.silent(t, "ShopInstanceDown", "ShopServiceDown")
	})
}
