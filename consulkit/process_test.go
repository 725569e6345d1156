// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/health"
)

// Instances and candidates are processes of their own, because they are killed and stopped: the
// test runs itself in one of these roles.
const roleEnv = "DOVETAIL_CONSULKIT_ROLE"

func TestMain(m *testing.M) {
	var role func(args []string) error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "instance":
		role = instanceRole
	case "candidate":
		role = candidateRole
	}
	if err := role(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// process is the test in a role.
type process struct {
	*os.Process
	first  string // the first line of its output
	exited chan struct{}
	state  *os.ProcessState
	stderr bytes.Buffer // for reading after its end
}

func startProcess(t *testing.T, role string, args ...string) *process {
	t.Helper()
	self := must[string](t)(os.Executable())
	cmd := exec.Command(self, args...) //nolint:noctx // it ends in the clean-up
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{exited: make(chan struct{})}
	cmd.Stderr = &p.stderr
	out := must[io.ReadCloser](t)(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.Process = cmd.Process
	t.Cleanup(func() { _ = p.Kill(); <-p.exited })
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		_ = cmd.Wait()
		p.state = cmd.ProcessState
		close(p.exited)
	}()
	if err != nil {
		<-p.exited
		t.Fatalf("%s says nothing: %v\n%s", role, err, &p.stderr)
	}
	p.first = strings.TrimSpace(line)
	return p
}

// drain ends the process in order, and waits for it.
func (p *process) drain(t *testing.T) {
	t.Helper()
	_ = p.Signal(syscall.SIGTERM)
	<-p.exited
	if !p.state.Success() {
		t.Errorf("a drained process ended with %v:\n%s", p.state, &p.stderr)
	}
}

// instanceRole is an instance of a service as a program would be. POST /slow makes it slow; every other
// request is answered with its own body.
func instanceRole(args []string) error {
	agent, service, id := args[0], args[1], args[2]
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is short
	if err != nil {
		return err
	}
	var slow atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("POST /slow", func(_ http.ResponseWriter, r *http.Request) {
		d, _ := time.ParseDuration(r.FormValue("by"))
		slow.Store(int64(d))
	})
	mux.HandleFunc("GET /readyz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(time.Duration(slow.Load()) + time.Millisecond)
		w.Header().Set("Instance", id)
		_, _ = io.Copy(w, r.Body)
	})
	client, err := consulkit.New(&api.Config{Address: agent})
	if err != nil {
		return err
	}
	registry, err := consulkit.NewRegistry(client, consulkit.RegistryConfig{TTL: 10 * time.Second, Checks: consulkit.HTTPCheck("/readyz", time.Second)})
	if err != nil {
		return err
	}
	announcement, err := discovery.NewAnnouncement(registry, discovery.Instance{ID: id, Service: service, Addr: listener.Addr().String()}, discovery.AnnounceConfig{})
	if err != nil {
		return err
	}
	lifecycle, err := health.NewLifecycle(health.LifecycleConfig{Settle: 500 * time.Millisecond},
		health.Server("http", &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}, listener),
		health.Stage{Name: "registration", Run: announcement.Run, Announce: true},
	)
	if err != nil {
		return err
	}
	if len(args) == 3 { // else without waiting, for a time when there is no agent
		go func() {
			<-announcement.Registered()
			fmt.Println(listener.Addr())
		}()
	} else {
		fmt.Println(listener.Addr())
	}
	return lifecycle.Run(ctx)
}

// candidateRole is a candidate whose leader is careless: a part of it goes on writing under the token of
// its last term, whatever becomes of the term.
func candidateRole(args []string) error {
	agent, key, name, resource := args[0], args[1], args[2], args[3]
	client, err := consulkit.New(&api.Config{Address: agent})
	if err != nil {
		return err
	}
	e, err := consulkit.NewElection(client, key, consulkit.ElectionConfig{Name: name, TTL: time.Second, LockDelay: 500 * time.Millisecond})
	if err != nil {
		return err
	}
	fmt.Println("candidate")
	var token atomic.Uint64
	report := func(what string) {
		resp, err := http.Post(fmt.Sprintf("%s/%s?name=%s&token=%d", resource, what, name, token.Load()), "", nil) //nolint:noctx // a part of a test
		if err == nil {
			_ = resp.Body.Close()
		}
	}
	go func() {
		for ; ; time.Sleep(5 * time.Millisecond) {
			if token.Load() > 0 {
				report("write")
			}
		}
	}()
	return e.Run(context.Background(), func(ctx context.Context, term consulkit.Term) error {
		token.Store(term.Token)
		<-ctx.Done()
		report("deposed")
		return nil
	})
}

// resource is what leaders write to. It refuses tokens lower than the highest it has seen.
type resource struct {
	mu                sync.Mutex
	highest           uint64
	holder            string
	accepted, refused map[string]int
	deposed           map[string]int
	faults            []string
}

func newResource() *resource {
	return &resource{accepted: map[string]int{}, refused: map[string]int{}, deposed: map[string]int{}}
}

func (r *resource) ServeHTTP(_ http.ResponseWriter, req *http.Request) {
	var token uint64
	_, _ = fmt.Sscan(req.FormValue("token"), &token)
	name := req.FormValue("name")
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case req.URL.Path == "/deposed":
		r.deposed[name]++
	case token < r.highest:
		r.refused[name]++
	default:
		if token == r.highest && name != r.holder {
			r.faults = append(r.faults, fmt.Sprintf("%s and %s have the same token %d", r.holder, name, token))
		}
		r.highest, r.holder = token, name
		r.accepted[name]++
	}
}

func (r *resource) see() resource {
	r.mu.Lock()
	defer r.mu.Unlock()
	return resource{highest: r.highest, holder: r.holder, accepted: clone(r.accepted), refused: clone(r.refused), deposed: clone(r.deposed), faults: r.faults}
}

func clone(m map[string]int) map[string]int {
	c := map[string]int{}
	for k, v := range m {
		c[k] = v
	}
	return c
}
