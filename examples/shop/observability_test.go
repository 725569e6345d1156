// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
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
		testserver.Missing(t, "%v: run scripts/install-prometheus", err)
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
		{"check", "config", "--syntax-only", "../prometheus-compose.yml"},
		{"check", "config", "--syntax-only", "../prometheus-compose-tls.yml"},
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
		if text := shop.scrapes(data)["notification"]; !bytes.Contains(text, []byte(`shop_event_delay_seconds_count{consumer="notification.orders"} 9`)) {
			return fmt.Errorf("the mails of two orders are not written:\n%s", sample.FindAll(text, -1))
		}
		return nil
	})
	scrapes := shop.scrapes(data)
	eventually(t, func() error { // which a scrape only asks for
		if scrapes = shop.scrapes(data); !bytes.Contains(scrapes["gateway"], []byte("shop_invariant_ok{")) {
			return errors.New("the invariants are not checked")
		}
		return nil
	})

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
