// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix && engine

package deploy

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
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

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	generator "github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
)

// How long the test waits. An image that is not there yet is fetched in that time too.
const (
	longest  = 20 * time.Minute // for a line to end, or for all containers to be healthy
	patience = 5 * time.Minute  // for anything else
)

// TestEngine runs what docs/deployment.md shows for a container engine, line by line, where the tag says that there is
// one: the docker command with Compose and Buildx, an engine for Linux that it reaches, and the images that the files name, or
// a registry that has them.
//
// It works in a copy of the repository, in a Compose project of its own, on free ports, with new secrets. What the lines promise
// is looked at after each: the shop sells while containers die, by TLS too, metrics, traces and logs arrive, services drain. In
// the end its containers, volumes and networks are gone; images stay, dovetail-shop:dev among them.
func TestEngine(t *testing.T) {
	d := newDeployment(t)
	var up *foreground
	folder := d.root // in which the reader is
	for _, s := range documents.Of(t) {
		t.Logf("$ %s", s.Text)
		words := strings.Fields(s.Text)
		if words[0] != "docker" || words[1] == "build" {
			d.line(folder, s.Text)
			switch words[0] {
			case "cd":
				folder = filepath.Join(d.root, words[1])
			case "cp":
				d.settings = filepath.Join(folder, words[2])
				d.fillIn()
			}
			continue
		}
		secure := slices.Contains(words, "compose.tls.yaml")
		if secure {
			d.certify()
		}
		line, err := compose(t, folder, words)
		if err != nil {
			t.Fatalf("%v: %s: %v", s.Block, s.Text, err)
		}
		switch {
		case up == nil && (line.command != "up" || line.detached):
			t.Fatalf("%v: %s, and the shop is not there", s.Block, s.Text)
		case line.command == "up" && !line.detached:
			up = d.start(folder, s.Text)
			d.awaitHealthy(line, up)
			d.sell(line, up)
			if secure {
				d.docker("compose", "-f", line.files[0], "-f", line.files[1], "--env-file", d.settings, "--profile=observability", "up", "--detach", "--no-deps", "prometheus")
				d.scraped(line)
			}
		case line.command == "up":
			d.line(folder, s.Text)
			d.awaitHealthy(line, up)
			d.order(up, func(confirmed func()) { confirmed() })
			d.observe(line)
		case line.command == "down":
			d.line(folder, s.Text)
			up.wait() // it ends with its containers
			up = nil
		default:
			d.line(folder, s.Text)
		}
	}
	if up != nil {
		d.interrupt(up)
	}
}

// deployment is a Compose project of the test's own.
type deployment struct {
	t        *testing.T
	root     string // of a copy of the repository
	project  string
	env      []string
	settings string // the file of settings, once it is there
	values   map[string]string
	ca       *testca.CA // nil without TLS
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	d := &deployment{t: t, root: t.TempDir(), project: "dovetail-test-" + strings.ToLower(rand.Text()[:8])}
	required, optional := envExample(t)
	for _, setting := range os.Environ() { // the environment goes before the file of settings
		if name, _, _ := strings.Cut(setting, "="); !slices.Contains(required, name) && !slices.Contains(optional, name) && !strings.HasPrefix(name, "COMPOSE_") {
			d.env = append(d.env, setting)
		}
	}
	d.env = append(d.env, "COMPOSE_PROJECT_NAME="+d.project)
	root := documents.Root(t)
	git := exec.CommandContext(t.Context(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	git.Dir = root
	names, err := git.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if err := copyFile(filepath.Join(root, name), filepath.Join(d.root, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	d.docker("compose", "version")
	d.docker("info")
	t.Cleanup(d.remove)
	return d
}

// copyFile copies a file with its rights: users in containers read it.
func copyFile(from, to string) error {
	info, err := os.Stat(from)
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, content, info.Mode().Perm())) //nolint:gosec // see above
}

// fillIn gives the settings secrets and ports, and what the guide's later lines need.
func (d *deployment) fillIn() {
	d.t.Helper()
	required, _ := envExample(d.t)
	d.values = map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://otel-collector:4318/v1/traces"}
	for _, name := range required {
		d.values[name] = rand.Text() + rand.Text()
	}
	for _, name := range []string{"SHOP_PORT", "GRAFANA_PORT", "JAEGER_PORT", "PROMETHEUS_PORT"} {
		d.values[name] = freePort(d.t)
	}
	d.values[stack.PublicURLVar] = d.url("http")
	fillIn(d.t, d.settings, d.values)
}

// certify gives every service a certificate, and the settings what compose.tls.yaml asks for.
func (d *deployment) certify() {
	d.t.Helper()
	made, certs := d.t.TempDir(), filepath.Join(filepath.Dir(d.settings), "certs")
	d.ca = testca.New(d.t, made)
	for _, name := range append(names(), "public") {
		hosts := []string{name}
		if name == "public" {
			hosts = []string{"127.0.0.1"}
		}
		cert, key := d.ca.Issue(d.t, name, hosts...)
		for from, to := range map[string]string{cert: "tls.crt", key: "tls.key", d.ca.File: "ca.crt"} {
			if err := errors.Join(os.Chmod(from, 0o644), copyFile(from, filepath.Join(certs, name, to))); err != nil { //nolint:gosec // for the user in the containers
				d.t.Fatal(err)
			}
		}
	}
	if err := copyFile(filepath.Join(filepath.Dir(d.settings), "shop.env.example"), d.settings); err != nil {
		d.t.Fatal(err)
	}
	d.values["SHOP_CERTS"], d.values[stack.PublicURLVar] = "./certs", d.url("https")
	fillIn(d.t, d.settings, d.values)
}

func (d *deployment) url(scheme string) string {
	return scheme + "://127.0.0.1:" + d.values["SHOP_PORT"]
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// line runs a line of the guide to its end.
func (d *deployment) line(folder, text string) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), longest)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", text)
	cmd.Dir, cmd.Env = folder, d.env
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", text, err, out)
	}
}

// docker runs a command that is the test's own, and returns what it says.
func (d *deployment) docker(args ...string) string {
	d.t.Helper()
	out, err := d.try(d.t.Context(), args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func (d *deployment) try(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env, cmd.Dir = d.env, d.root
	if d.settings != "" {
		cmd.Dir = filepath.Dir(d.settings)
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, &complaint)
	}
	return strings.TrimSpace(string(out)), nil
}

// remove takes the project away, whatever has become of it, and looks for remains.
func (d *deployment) remove() {
	ctx := context.WithoutCancel(d.t.Context())
	if d.t.Failed() {
		for _, c := range d.containers(ctx) {
			d.t.Logf("%s: %+v", c.Name, c.State)
			logs, err := exec.CommandContext(ctx, "docker", "logs", "--tail=60", c.ID).CombinedOutput() // both streams, as they came
			d.t.Logf("%s (%v)", logs, err)
		}
	}
	if d.settings != "" {
		if _, err := d.try(ctx, "compose", "--env-file", d.settings, "--profile=*", "down", "--volumes", "--remove-orphans"); err != nil {
			d.t.Error(err)
		}
	}
	for _, list := range [][]string{{"ps", "--all"}, {"volume", "ls"}, {"network", "ls"}} {
		if left, err := d.try(ctx, append(list, "--quiet", "--filter=label=com.docker.compose.project="+d.project)...); err != nil || left != "" {
			d.t.Errorf("docker %s: %q (%v), want nothing left", strings.Join(list, " "), left, err)
		}
	}
}

// container is one of the project, as docker inspect has it.
type container struct {
	ID, Name string
	Config   struct {
		Image  string
		Labels map[string]string
	}
	State struct {
		Status    string
		Pid       int
		ExitCode  int
		OOMKilled bool
		StartedAt string
		Health    *struct{ Status string }
	}
}

func (c container) service() string { return c.Config.Labels["com.docker.compose.service"] }

// healthy says what is wrong with it.
func (c container) healthy() error {
	if c.State.Status != "running" || c.State.Health != nil && c.State.Health.Status != "healthy" {
		return fmt.Errorf("%s is %+v", c.Name, c.State)
	}
	return nil
}

// containers are those of the project that are there, whether they run or not.
func (d *deployment) containers(ctx context.Context) (all []container) {
	d.t.Helper()
	ids, err := d.try(ctx, "ps", "--all", "--quiet", "--filter=label=com.docker.compose.project="+d.project)
	if err != nil || ids == "" {
		return nil
	}
	text, err := d.try(ctx, append([]string{"inspect"}, strings.Fields(ids)...)...)
	if err != nil { // one has gone since
		return nil
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		d.t.Error(err)
	}
	return all
}

// want is how many containers of each service there have to be.
func (l composed) want() map[string]int {
	want := map[string]int{}
	for name := range l.project.Services {
		want[name] = cmp.Or(l.scales[name], 1)
	}
	return want
}

// awaitHealthy waits until all containers are healthy, as many of each as the line says.
func (d *deployment) awaitHealthy(line composed, up *foreground) {
	d.t.Helper()
	d.eventually(longest, func() error {
		if err := up.running(); err != nil {
			d.t.Fatal(err)
		}
		want := line.want()
		for _, c := range d.containers(d.t.Context()) {
			if err := c.healthy(); err != nil {
				return err
			}
			want[c.service()]--
		}
		maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
		if len(want) > 0 {
			return fmt.Errorf("missing containers (less than 0: too many): %v", want)
		}
		return nil
	})
}

func (d *deployment) eventually(within time.Duration, try func() error) {
	d.t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(500 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatal(err)
		}
	}
}

// foreground is a line that goes on until Ctrl-C.
type foreground struct {
	d     *deployment
	cmd   *exec.Cmd
	out   string // a file
	ended chan struct{}
	err   error // once it has ended
}

func (d *deployment) start(folder, text string) *foreground {
	d.t.Helper()
	out, err := os.CreateTemp(d.t.TempDir(), "up")
	if err != nil {
		d.t.Fatal(err)
	}
	f := &foreground{d: d, cmd: exec.CommandContext(d.t.Context(), "sh", "-c", "exec "+text), out: out.Name(), ended: make(chan struct{})}
	f.cmd.Dir, f.cmd.Env, f.cmd.Stdout, f.cmd.Stderr = folder, d.env, out, out
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what a terminal's Ctrl-C reaches
	f.cmd.Cancel = func() error { return syscall.Kill(-f.cmd.Process.Pid, syscall.SIGKILL) }
	if err := f.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		defer close(f.ended)
		f.err = f.cmd.Wait()
		_ = out.Close()
	}()
	d.t.Cleanup(func() { <-f.ended }) // the test's context has ended
	return f
}

// running says that it has ended, if it has.
func (f *foreground) running() error {
	select {
	case <-f.ended:
		return fmt.Errorf("it has ended: %w\n%s", f.err, f.said())
	default:
		return nil
	}
}

func (f *foreground) said() string { return string(read(f.d.t, f.out)) }

// wait waits for its end.
func (f *foreground) wait() {
	f.d.t.Helper()
	select {
	case <-f.ended:
	case <-time.After(patience):
		f.d.t.Fatalf("it has not ended\n%s", f.said())
	}
}

// interrupt is Ctrl-C. Services drain: each ends by itself, with 0.
func (d *deployment) interrupt(up *foreground) {
	d.t.Helper()
	if err := syscall.Kill(-up.cmd.Process.Pid, syscall.SIGINT); err != nil {
		d.t.Fatal(err)
	}
	up.wait()
	ended := map[string]bool{}
	for _, c := range d.containers(d.t.Context()) {
		if !slices.Contains(names(), c.service()) {
			continue
		}
		ended[c.service()] = true
		if c.State.Status != "exited" || c.State.ExitCode != 0 || c.State.OOMKilled {
			d.t.Errorf("after Ctrl-C %s is %+v, want it to have drained and ended with 0", c.Name, c.State)
		}
	}
	if len(ended) != len(names()) {
		d.t.Errorf("after Ctrl-C there are containers of %v, want all services'", slices.Sorted(maps.Keys(ended)))
	}
}

// sell has customers order while an order service and the database die.
func (d *deployment) sell(line composed, up *foreground) {
	d.t.Helper()
	if code, body := d.get(d.values[stack.PublicURLVar]+"/readyz", ""); code != http.StatusOK {
		d.t.Fatalf("GET /readyz = %d %s", code, body)
	}
	d.order(up, func(confirmed func()) {
		confirmed()
		for _, service := range []string{"order", "postgres"} {
			d.crash(line, service)
			confirmed()
		}
	})
}

// order has customers order through the published port while something happens, which can wait until twenty more orders were
// confirmed. Every order that was taken ends.
func (d *deployment) order(up *foreground, meanwhile func(confirmed func())) {
	d.t.Helper()
	var complaints bytes.Buffer // of one logger, which writes one line after the other
	customers, err := generator.NewGenerator(d.values[stack.PublicURLVar], slog.New(slog.NewTextHandler(&complaints, nil)))
	if err != nil {
		d.t.Fatal(err)
	}
	if d.ca != nil {
		customers.UseTLS(d.ca.Client())
	}
	ctx, stop := context.WithCancel(d.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- customers.Run(ctx) }()
	home := sync.OnceValue(func() error {
		stop()
		return <-ended
	})
	defer func() { _ = home() }()
	customers.SetRate(10)
	meanwhile(func() {
		d.t.Helper()
		before := customers.Counts().Confirmed
		d.eventually(patience, func() error {
			if c := customers.Counts(); c.Confirmed < before+20 {
				return fmt.Errorf("%d orders had been confirmed, want 20 more: %+v, %w", before, c, up.running())
			}
			return nil
		})
	})
	customers.SetRate(0)
	d.eventually(patience, func() error {
		if c := customers.Counts(); c.InFlight > 0 {
			return fmt.Errorf("customers wait: %+v", c)
		}
		return nil
	})
	if err := home(); err != nil {
		d.t.Error(err)
	}
	c := customers.Counts()
	d.t.Logf("orders: %+v", c)
	if c.Failed > 0 || c.Confirmed+c.Refused != c.Placed || bytes.Contains(complaints.Bytes(), []byte("answered differently")) {
		d.t.Errorf("orders: %+v, want all ended\n%s", c, &complaints)
	}
}

// crash kills a container's process behind the back of the engine, which does not start again what it was told to kill, and waits
// until it has been started again.
func (d *deployment) crash(line composed, service string) {
	d.t.Helper()
	of := func(id string) (c container) {
		d.t.Helper()
		for _, c = range d.containers(d.t.Context()) {
			if c.service() == service && (id == "" || c.ID == id) {
				return c
			}
		}
		d.t.Fatalf("there is no container %s of %s", id, service)
		return c
	}
	victim := of("")
	d.docker("run", "--rm", "--pid=host", "--network=none", "--user=0", "--entrypoint=sh", line.project.Services["postgres"].Image,
		"-c", fmt.Sprintf("kill -9 %d", victim.State.Pid))
	d.eventually(patience, func() error {
		c := of(victim.ID)
		if c.State.StartedAt == victim.State.StartedAt {
			return fmt.Errorf("%s was killed and is %+v", c.Name, c.State)
		}
		return c.healthy()
	})
}

// get asks as the admin of the dashboards, if there is a password.
func (d *deployment) get(at, password string) (code int, body []byte) {
	d.t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if d.ca != nil {
		transport.TLSClientConfig = d.ca.Client()
	}
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, at, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	if password != "" {
		req.SetBasicAuth("admin", password)
	}
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer func() { _ = resp.Body.Close() }()
	if body, err = io.ReadAll(resp.Body); err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, body
}

// decode is get of JSON that is as it has to be, in the end.
func decode[T any](d *deployment, at, password string, check func(T) error) {
	d.t.Helper()
	d.eventually(patience, func() error {
		code, body := d.get(at, password)
		if code != http.StatusOK {
			return fmt.Errorf("GET %s = %d %s", at, code, body)
		}
		var got T
		if err := json.Unmarshal(body, &got); err != nil {
			return fmt.Errorf("GET %s: %w in %s", at, err, body)
		}
		if err := check(got); err != nil {
			return fmt.Errorf("GET %s: %w", at, err)
		}
		return nil
	})
}

// observe looks at what the profile promises: metrics of every container, rules, dashboards that get at them, traces through several
// services, and everybody's log.
func (d *deployment) observe(line composed) {
	d.t.Helper()
	d.scraped(line)
	metrics := "http://127.0.0.1:" + d.values["PROMETHEUS_PORT"]
	type rules struct {
		Data struct {
			Groups []struct {
				Rules []struct{ Name, Health string }
			}
		}
	}
	decode(d, metrics+"/api/v1/rules", "", func(got rules) error {
		if len(got.Data.Groups) == 0 {
			return errors.New("no rules")
		}
		for _, group := range got.Data.Groups {
			for _, rule := range group.Rules {
				if rule.Health != "ok" {
					return fmt.Errorf("%s is %s", rule.Name, rule.Health)
				}
			}
		}
		return nil
	})

	boards, secret := "http://127.0.0.1:"+d.values["GRAFANA_PORT"], d.values["GRAFANA_PASSWORD"]
	files, err := filepath.Glob("observability/grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		d.t.Fatalf("no dashboards: %v", err)
	}
	type board struct{ UID string }
	decode(d, boards+"/api/search?type=dash-db", secret, func(got []board) error {
		for _, file := range files {
			var want board
			if err := json.Unmarshal(read(d.t, file), &want); err != nil || !slices.Contains(got, want) {
				return fmt.Errorf("the dashboard of %s is not among %v (%w)", file, got, err)
			}
		}
		return nil
	})
	type result struct{ Data struct{ Result []any } }
	decode(d, boards+"/api/datasources/proxy/uid/prometheus/api/v1/query?query="+url.QueryEscape(`up{job="shop"}`), secret, func(got result) error {
		if len(got.Data.Result) < len(names()) {
			return fmt.Errorf("%v, want every service", got.Data.Result)
		}
		return nil
	})
	if code, _ := d.get(boards+"/api/search", "wrong"); code != http.StatusUnauthorized {
		d.t.Errorf("the dashboards answer a stranger with %d", code)
	}

	type traces struct {
		Data []struct {
			Processes map[string]struct{ ServiceName string }
		}
	}
	decode(d, "http://127.0.0.1:"+d.values["JAEGER_PORT"]+"/api/traces?lookback=1h&limit=500&service=order", "", func(got traces) error {
		for _, trace := range got.Data {
			through := map[string]bool{}
			for _, p := range trace.Processes {
				through[p.ServiceName] = true
			}
			if through["gateway"] && through["order"] && through["inventory"] && through["payment"] && through["provider"] {
				return nil
			}
		}
		return fmt.Errorf("%d traces, none of an order with its payment", len(got.Data))
	})

	d.eventually(patience, func() error {
		shipped := d.docker("compose", "--env-file", d.settings, "--profile=*", "logs", "--no-log-prefix", "--no-color", "logs")
		missing := names()
		for line := range strings.Lines(shipped) {
			var record struct{ Node, File string }
			if json.Unmarshal([]byte(line), &record) == nil && record.Node == "compose" {
				missing = slices.DeleteFunc(missing, func(name string) bool { return strings.HasPrefix(record.File, "/var/log/shop/"+name+"-") })
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("nothing was shipped of what %v log: %.2000s", missing, shipped)
		}
		return nil
	})
}

// scraped wants Prometheus to reach every container of a service, and nothing else.
func (d *deployment) scraped(line composed) {
	d.t.Helper()
	type targets struct {
		Data struct {
			ActiveTargets []struct {
				Labels            map[string]string
				Health, LastError string
			}
		}
	}
	decode(d, "http://127.0.0.1:"+d.values["PROMETHEUS_PORT"]+"/api/v1/targets", "", func(got targets) error {
		want := line.want()
		maps.DeleteFunc(want, func(name string, _ int) bool { return !slices.Contains(names(), name) })
		for _, target := range got.Data.ActiveTargets {
			if target.Health != "up" {
				return fmt.Errorf("%v is %s: %s", target.Labels, target.Health, target.LastError)
			}
			want[target.Labels["service"]]--
		}
		maps.DeleteFunc(want, func(_ string, n int) bool { return n == 0 })
		if len(want) > 0 {
			return fmt.Errorf("missing targets (less than 0: too many): %v", want)
		}
		return nil
	})
}
