// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

const serversFile = "compose.servers.yaml"

// docker passes its words on to who stands in for an engine, and says what it is told to say.
const docker = `#!/usr/bin/env bash
exec 3<>"/dev/tcp/${DEPLOY_TEST_ENGINE%:*}/${DEPLOY_TEST_ENGINE##*:}"
{
	printf 'arg %s\n' "$@"
	for name in ${!STACK_@}; do echo "env $name=${!name}"; done
	echo end
} >&3
read -r code <&3
while IFS= read -r line <&3; do
	case $line in
	out*) echo "${line#out }" ;;
	*) echo "${line#err }" >&2 ;;
	esac
done
exit "$code"
`

// call is how docker was called, and said what it says.
type call struct {
	args []string
	env  map[string]string
}

type said struct {
	out, err string
	code     int
}

// hear reads a call.
func hear(conn io.Reader) (c call, err error) {
	c.env = map[string]string{}
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		what, text, _ := strings.Cut(lines.Text(), " ")
		switch what {
		case "arg":
			c.args = append(c.args, text)
		case "env":
			name, value, _ := strings.Cut(text, "=")
			c.env[name] = value
		case "end":
			return c, nil
		}
	}
	return c, errors.Join(lines.Err(), io.ErrUnexpectedEOF)
}

func (s said) write(conn io.Writer) error {
	text := fmt.Sprintln(s.code)
	for line := range strings.Lines(s.out) {
		text += "out " + line
	}
	for line := range strings.Lines(s.err) {
		text += "err " + line
	}
	_, err := io.WriteString(conn, text)
	return err
}

// engine stands in for a container engine: it reads files as Docker Compose does, and takes the ports that they publish. No server
// is behind them.
type engine struct {
	t  *testing.T
	at string

	mu      sync.Mutex
	bare    string // what fails: compose, info or up
	calls   []call
	running map[string]*types.Project // by name
	ports   map[string][]net.Listener
	volumes map[string]bool
}

func startEngine(t *testing.T) *engine {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, at: ln.Addr().String(), running: map[string]*types.Project{}, ports: map[string][]net.Listener{}, volumes: map[string]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c, err := hear(conn)
			if err == nil {
				err = e.answer(c).write(conn)
			}
			if err != nil {
				t.Error(err)
			}
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
		for name := range e.ports {
			e.close(name)
		}
	})
	return e
}

func (e *engine) close(project string) {
	for _, ln := range e.ports[project] {
		_ = ln.Close()
	}
	delete(e.ports, project)
}

// answer does what docker would.
func (e *engine) answer(c call) said {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, c)
	words := strings.Join(c.args, " ")
	switch {
	case words == "compose version" && e.bare == "compose":
		return said{"", "docker: unknown command: docker compose\n\nRun 'docker --help' for more information\n", 1}
	case words == "compose version":
		return said{"Docker Compose version v2.40.3\n", "", 0}
	case words == "info" && e.bare == "info":
		return said{"Client:\n", "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n", 1}
	case words == "info":
		return said{"Server:\n", "WARNING: No swap limit support\n", 0}
	case strings.HasPrefix(words, "volume ls --quiet --filter label=com.docker.compose.project="):
		_, name, _ := strings.Cut(words, "project=")
		if e.volumes[name] {
			return said{name + "_postgres\n", "", 0}
		}
		return said{}
	}
	if len(c.args) < 6 || c.args[0] != "compose" || c.args[1] != "--project-name" || c.args[3] != "--file" {
		return said{"", "not understood: " + words, 125}
	}
	name, file := c.args[2], c.args[4]
	project, err := readServers(e.t, c.env, file)
	if err != nil || project.Name != name {
		return said{"", fmt.Sprintf("%v: want it to be of project %s", err, name), 1}
	}
	switch verb := strings.Join(c.args[5:], " "); {
	case verb == "ps --quiet" && len(e.ports[name]) > 0:
		return said{"0123456789ab\n", "", 0}
	case verb == "ps --quiet":
		return said{}
	case verb == "up --detach --wait" && e.bare == "up":
		return said{"", "pull access denied\n", 1}
	case verb == "up --detach --wait":
		e.close(name)
		for _, s := range project.Services {
			for _, p := range s.Ports {
				ln, err := net.Listen("tcp", net.JoinHostPort(p.HostIP, p.Published))
				if err != nil {
					return said{"", err.Error(), 1}
				}
				e.ports[name] = append(e.ports[name], ln)
			}
		}
		e.running[name], e.volumes[name] = project, true
		return said{}
	case verb == "down" || verb == "down --volumes":
		e.close(name)
		delete(e.running, name)
		e.volumes[name] = e.volumes[name] && verb == "down"
		return said{}
	default:
		return said{"", "not understood: " + verb, 125}
	}
}

// without breaks something: compose, info or up.
func (e *engine) without(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.bare = what
}

// projects are those that run.
func (e *engine) projects() []*types.Project {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.running))
}

// heard are the words of the calls since it was last asked.
func (e *engine) heard() (words []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.calls {
		words = append(words, strings.Join(c.args, " "))
	}
	e.calls = nil
	return words
}

// readServers reads the file as Docker Compose does, with nothing known but env.
func readServers(t *testing.T, env map[string]string, file string) (*types.Project, error) {
	return loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: filepath.Dir(file), Environment: maps.Clone(env), ConfigFiles: []types.ConfigFile{{Filename: file}},
	})
}

// clone is a copy of what make stack needs, with a stand-in for scripts/services.
type clone struct {
	t    *testing.T
	root string
	path string // of programs: nothing is found elsewhere
	env  []string
}

// The programs that scripts/stack may take for granted.
var programs = []string{"bash", "base64", "cat", "cksum", "cut", "dirname", "grep", "head", "mkdir", "mv", "rm", "sed", "tr"}

func newClone(t *testing.T, e *engine) *clone {
	t.Helper()
	c := &clone{t: t, root: t.TempDir(), path: t.TempDir()}
	root := documents.Root(t)
	put := func(name string, text []byte, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(c.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"scripts/stack", "examples/shop/deploy/" + serversFile} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		put(name, text, 0o700) //nolint:gosec // one of them is a script
	}
	put("scripts/services", []byte(`#!/usr/bin/env bash
echo "$*" >>"${0%/*}/called"
[[ $1 != env ]] || cat <<END
export DOVETAIL_POSTGRES_DSN='postgres://dovetail:pw@127.0.0.1:20000/dovetail?sslmode=disable'
export DOVETAIL_RABBITMQ_URL='amqp://dovetail:pw@127.0.0.1:20003/dovetail'
export DOVETAIL_REDIS_URL='redis://:pw@127.0.0.1:20002/0'
export DOVETAIL_CONSUL_ADDR='127.0.0.1:20006'
END
`), 0o700) //nolint:gosec // a script
	for _, name := range programs {
		at, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(at, filepath.Join(c.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if e != nil {
		if err := os.WriteFile(filepath.Join(c.path, "docker"), []byte(docker), 0o700); err != nil { //nolint:gosec // a script
			t.Fatal(err)
		}
		c.env = append(c.env, "DEPLOY_TEST_ENGINE="+e.at)
	}
	return c
}

// stack calls scripts/stack, and returns what it said and whether it succeeded.
func (c *clone) stack(env string, args ...string) (out string, ok bool) {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), filepath.Join(c.root, "scripts", "stack"), args...)
	cmd.Dir = c.t.TempDir() // from wherever
	cmd.Env = append([]string{"PATH=" + c.path}, append(slices.Clone(c.env), strings.Fields(env)...)...)
	text, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return string(text), err == nil
}

// works calls scripts/stack, which has to succeed.
func (c *clone) works(env string, args ...string) (out string) {
	c.t.Helper()
	out, ok := c.stack(env, args...)
	if !ok {
		c.t.Fatalf("%s scripts/stack %v failed: %s", env, args, out)
	}
	return out
}

// fails calls scripts/stack, which has to fail, say some words, and leave the settings as they are.
func (c *clone) fails(words, env string, args ...string) {
	c.t.Helper()
	before, _ := os.ReadFile(filepath.Join(c.root, "shop-data", "stack.env"))
	if out, ok := c.stack(env, args...); ok || !strings.Contains(out, words) {
		c.t.Errorf("%s scripts/stack %v: %v and %q, want it to fail and say %q", env, args, ok, out, words)
	}
	if after, _ := os.ReadFile(filepath.Join(c.root, "shop-data", "stack.env")); string(before) != string(after) {
		c.t.Errorf("it failed, and the settings are %s now; were %s", after, before)
	}
}

// settings are those that it has written.
func (c *clone) settings() map[string]string {
	c.t.Helper()
	file := filepath.Join(c.root, "shop-data", "stack.env")
	settings, err := stack.ReadEnv(file)
	if err != nil {
		c.t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		c.t.Errorf("stack.env: %v (%v), want it closed to others", info.Mode(), err)
	}
	for _, service := range names() {
		if _, err := stack.Load(service, func(name string) string {
			if name == stack.PublicURLVar { // which shop up knows
				return "http://127.0.0.1:8080"
			}
			return settings[name]
		}); err != nil {
			c.t.Errorf("%s: %v", service, err)
		}
	}
	return settings
}

// services is how scripts/services has been called.
func (c *clone) services() []string {
	c.t.Helper()
	text, _ := os.ReadFile(filepath.Join(c.root, "scripts", "called"))
	_ = os.Remove(filepath.Join(c.root, "scripts", "called"))
	return strings.Fields(strings.ReplaceAll(string(text), " ", "+"))
}

var upAndEnv = []string{"up+postgres+redis+rabbitmq+consul", "env"}

func TestStackChooses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bare    string // what the engine cannot do; there is no docker, if it is none
		env     string
		compose bool   // it is containers
		fails   string // what it says when it fails
		says    string
		unasked bool // docker is left alone
	}{
		"an engine runs":                     {compose: true},
		"no docker":                          {bare: "none", says: "there is no docker command"},
		"docker without Compose":             {bare: "compose", says: "docker: unknown command: docker compose)"},
		"docker without an engine":           {bare: "info", says: "Cannot connect to the Docker daemon"},
		"packages, whatever is there":        {env: "DOVETAIL_STACK=packages", unasked: true},
		"packages without docker":            {bare: "none", env: "DOVETAIL_STACK=packages"},
		"containers":                         {env: "DOVETAIL_STACK=compose", compose: true},
		"containers without docker":          {bare: "none", env: "DOVETAIL_STACK=compose", fails: "there is no docker command"},
		"containers without Compose":         {bare: "compose", env: "DOVETAIL_STACK=compose", fails: "unknown command"},
		"containers without an engine":       {bare: "info", env: "DOVETAIL_STACK=compose", fails: "Cannot connect"},
		"something else":                     {env: "DOVETAIL_STACK=podman", fails: "podman, want compose or packages", unasked: true},
		"the containers do not start":        {bare: "up", fails: "pull access denied"},
		"containers that have to do not run": {bare: "up", env: "DOVETAIL_STACK=compose", fails: "logs says more"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t)
			e.without(c.bare)
			of := e
			if c.bare == "none" {
				of = nil
			}
			clone := newClone(t, of)
			if c.fails != "" {
				clone.fails(c.fails, c.env)
				if got := clone.services(); len(got) > 0 {
					t.Errorf("it failed, and scripts/services was called: %q", got)
				}
			} else {
				out := clone.works(c.env)
				if !strings.Contains(out, c.says) {
					t.Errorf("said %q, want %q in it", out, c.says)
				}
				called := clone.services()
				_, unseen := clone.settings()[stack.ConsulLooksVar]
				if c.compose != (len(called) == 0) || c.compose != unseen || c.compose != (len(e.projects()) == 1) || !c.compose && !slices.Equal(called, upAndEnv) {
					t.Errorf("containers: %v, scripts/services: %q, the agent does not look: %v; want containers: %v", len(e.projects()) == 1, called, unseen, c.compose)
				}
			}
			if heard := e.heard(); c.unasked && len(heard) > 0 {
				t.Errorf("docker was called: %q, want it left alone", heard)
			}
		})
	}
}

// TestStackServers holds the settings to the containers that were started with them.
func TestStackServers(t *testing.T) {
	t.Parallel()
	e := startEngine(t)
	clone := newClone(t, e)
	clone.works("")
	settings := clone.settings()
	if settings[stack.ConsulLooksVar] != "off" {
		t.Errorf("%s is %q, want off: an agent in a container does not reach this machine's loopback", stack.ConsulLooksVar, settings[stack.ConsulLooksVar])
	}
	project := e.projects()[0]
	required, _ := envExample(t)
	whole, err := load(t, filled(required...), "compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	server := func(name string) (s types.ServiceConfig, addr string) {
		t.Helper()
		s, ok := project.Services[name]
		if !ok || len(s.Ports) != 1 || s.Ports[0].HostIP != "127.0.0.1" {
			t.Fatalf("%s: %+v, want one port, on loopback", name, s.Ports)
		}
		return s, net.JoinHostPort(s.Ports[0].HostIP, s.Ports[0].Published)
	}
	if got := slices.Sorted(maps.Keys(project.Services)); !slices.Equal(got, []string{"consul", "postgres", "rabbitmq", "redis"}) {
		t.Fatalf("services = %q", got)
	}
	for name := range project.Services {
		s, _ := server(name)
		in := whole.Services[name]
		for what, pair := range map[string][2]any{
			"image": {s.Image, in.Image}, "command": {s.Command, in.Command}, "health check": {s.HealthCheck, in.HealthCheck}, "hostname": {s.Hostname, in.Hostname},
			"limits": {s.Deploy, in.Deploy}, "shared memory": {s.ShmSize, in.ShmSize},
			"names in its environment": {slices.Sorted(maps.Keys(s.Environment)), slices.Sorted(maps.Keys(in.Environment))},
		} {
			if !reflect.DeepEqual(pair[0], pair[1]) {
				t.Errorf("%s: %s = %+v, in compose.yaml %+v, want the same", name, what, pair[0], pair[1])
			}
		}
		if s.HealthCheck == nil {
			t.Errorf("%s has no health check: up does not wait for it", name)
		}
		if len(s.Volumes) != 1 || s.Volumes[0].Type != types.VolumeTypeVolume || s.Volumes[0].Target != in.Volumes[0].Target {
			t.Errorf("%s keeps its data in %+v, want a volume at %s", name, s.Volumes, in.Volumes[0].Target)
		}
	}
	var password string
	same := func(of string, got, want any) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %v, want %v", of, got, want)
		}
	}
	at := func(variable string) *url.URL {
		t.Helper()
		u, err := url.Parse(settings[variable])
		if err != nil {
			t.Fatal(err)
		}
		secret, _ := u.User.Password()
		if password = cmp.Or(password, secret); len(secret) < 20 || secret != password {
			t.Errorf("%s: password of %d characters, want the one of all, and a long one", variable, len(secret))
		}
		return u
	}
	s, addr := server("postgres")
	env, u := environment(t, s), at(stack.PostgresVar)
	same("PostgreSQL", u.Host, addr)
	same("its port", s.Ports[0].Target, uint32(5432))
	same("its user", u.User.Username(), env["POSTGRES_USER"])
	same("its database", u.Path, "/"+env["POSTGRES_DB"])
	same("its password", password, env["POSTGRES_PASSWORD"])

	s, addr = server("rabbitmq")
	env, u = environment(t, s), at(stack.RabbitMQVar)
	same("RabbitMQ", u.Host, addr)
	same("its port", s.Ports[0].Target, uint32(5672))
	same("its user", u.User.Username(), env["RABBITMQ_DEFAULT_USER"])
	same("its vhost", u.Path, "/"+env["RABBITMQ_DEFAULT_VHOST"])
	same("its password", password, env["RABBITMQ_DEFAULT_PASS"])

	s, addr = server("redis")
	env, u = environment(t, s), at(stack.RedisVar)
	same("Redis", u.Host, addr)
	same("its port", s.Ports[0].Target, uint32(6379))
	same("its password", password, env["REDIS_PASSWORD"])
	same("its password for the health check", password, env["REDISCLI_AUTH"])

	s, addr = server("consul")
	same("Consul", settings[stack.ConsulVar], addr)
	same("its port", s.Ports[0].Target, uint32(8500))

	// The file of its settings is all that docker compose needs, as the first lines of the Compose file say.
	file := filepath.Join(clone.root, ".stack", "compose.env")
	alone, err := dotenv.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	again, err := readServers(t, alone, filepath.Join(clone.root, "examples", "shop", "deploy", serversFile))
	if err != nil || !reflect.DeepEqual(again.Services, project.Services) || again.Name != project.Name {
		t.Errorf("with %s alone it is %+v (%v), want %+v", file, again, err, project)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v (%v), want it closed to others", file, info, err)
	}
	for name := range alone {
		without := maps.Clone(alone)
		delete(without, name)
		if _, err := readServers(t, without, filepath.Join(clone.root, "examples", "shop", "deploy", serversFile)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v, want an error that names it", name, err)
		}
	}
}

// TestStackAgain repeats it, changes the way and comes back, stops and begins anew: secrets and data stay until they
// are to be deleted.
func TestStackAgain(t *testing.T) {
	t.Parallel()
	e := startEngine(t)
	clone, other := newClone(t, e), newClone(t, e)
	clone.works("")
	first := clone.settings()
	e.heard()
	if out := clone.works(""); strings.Contains(out, "to go back") {
		t.Errorf("said %q, want nothing of other servers", out)
	}
	if again := clone.settings(); !maps.Equal(first, again) {
		t.Errorf("settings are %v, were %v", again, first)
	}

	other.works("")
	theirs := other.settings()
	for name, value := range first {
		if theirs[name] == value && name != stack.ConsulLooksVar {
			t.Errorf("two clones have the same %s", name)
		}
	}
	if len(e.projects()) != 2 {
		t.Errorf("two clones have %d projects, want one each", len(e.projects()))
	}

	// The other way, and back.
	out := clone.works("DOVETAIL_STACK=packages")
	if !strings.Contains(out, "DOVETAIL_STACK=compose scripts/stack down") || !strings.Contains(out, "DOVETAIL_STACK=compose make stack") {
		t.Errorf("said %q, want it to tell how to stop the containers, and how to go back", out)
	}
	if got := clone.services(); !slices.Equal(got, upAndEnv) {
		t.Errorf("scripts/services was called with %q", got)
	}
	second := clone.settings()
	for _, name := range []string{stack.ServiceTokenVar, stack.AdminPasswordVar, stack.OperatorPasswordVar} {
		if second[name] != first[name] {
			t.Errorf("%s has changed", name)
		}
	}
	if second[stack.PostgresVar] == first[stack.PostgresVar] || second[stack.ConsulLooksVar] != "" {
		t.Errorf("settings = %v, want those of the processes", second)
	}
	if out := clone.works(""); !strings.Contains(out, "DOVETAIL_STACK=packages scripts/stack down") {
		t.Errorf("said %q, want it to tell how to stop the processes", out)
	}
	if third := clone.settings(); !maps.Equal(third, first) {
		t.Errorf("settings are %v, were %v", third, first)
	}

	// Stopped, with data that stays; then a stranger has one of the ports.
	clone.services()
	clone.works("", "down")
	if got := clone.services(); !slices.Equal(got, []string{"down+postgres+redis+rabbitmq+consul"}) {
		t.Errorf("scripts/services was called with %q", got)
	}
	if len(e.projects()) != 1 {
		t.Errorf("%d projects run, want that of the other clone alone", len(e.projects()))
	}
	ln, err := net.Listen("tcp", first[stack.ConsulVar])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	clone.works("")
	moved := clone.settings()
	u, _ := url.Parse(first[stack.PostgresVar])
	v, _ := url.Parse(moved[stack.PostgresVar])
	if u.Host == v.Host || u.User.String() != v.User.String() || moved[stack.ConsulVar] == first[stack.ConsulVar] {
		t.Errorf("the port is taken, and it is %s, was %s: want another port and the same password", v, u)
	}

	// Its secrets are gone: the data is of no use to anybody.
	if err := os.RemoveAll(filepath.Join(clone.root, ".stack")); err != nil {
		t.Fatal(err)
	}
	clone.fails("scripts/stack down --purge", "")
	clone.services()
	clone.works("", "down", "--purge")
	if got := clone.services(); !slices.Equal(got, []string{"down+--purge"}) {
		t.Errorf("scripts/services was called with %q", got)
	}
	clone.works("")
	if fresh := clone.settings(); fresh[stack.RedisVar] == moved[stack.RedisVar] {
		t.Error("after --purge the password is the same")
	}
	clone.works("DOVETAIL_STACK=compose", "down", "--purge")
	if _, err := os.Stat(filepath.Join(clone.root, ".stack")); err == nil {
		t.Error("after --purge there still is a password")
	}
	if got := clone.services(); len(got) > 0 {
		t.Errorf("of the containers only: scripts/services was called with %q", got)
	}

	e.heard()
	clone.works("DOVETAIL_STACK=packages", "down")
	if got := e.heard(); len(got) > 0 {
		t.Errorf("docker was called with %q, want it left alone", got)
	}
	clone.fails("want nothing or --purge", "", "down", "--all")
	clone.fails("want compose or packages", "DOVETAIL_STACK=both", "down")
	e.without("info")
	clone.fails("Cannot connect", "DOVETAIL_STACK=compose", "down")
	clone.works("", "down") // what does not run need not be stopped
	if out := clone.works("", "help"); !strings.Contains(out, "DOVETAIL_STACK") {
		t.Errorf("help = %q", out)
	}
	clone.fails("usage:", "", "--force")
}
