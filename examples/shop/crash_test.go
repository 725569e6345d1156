// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
)

// process is a shop in a process of its own, which can be killed.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	said chan string
}

// startShop starts a shop as a process and returns when it says that it is open.
func startShop(t *testing.T, data, listen string, flags ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(buildShop(t), append([]string{"--data", data, "--listen", listen}, flags...)...), said: make(chan string, 100)}
	p.cmd.Stderr = t.Output()
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _, _ = p.cmd.Process.Wait() })
	go func() {
		defer close(p.said)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.said <- lines.Text()
		}
	}()
	return p
}

// expect returns the next line that contains text.
func (p *process) expect(text string) string {
	p.t.Helper()
	late := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-p.said:
			if !ok {
				p.t.Fatalf("the shop ended before it said %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-late:
			p.t.Fatalf("the shop does not say %q", text)
		}
	}
}

// end sends a signal and returns how the process ended.
func (p *process) end(sig syscall.Signal) error {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
	return p.ended()
}

// ended waits until the process has ended, and returns how.
func (p *process) ended() error {
	for range p.said { // until the pipe is closed, then Wait may be called
	}
	return p.cmd.Wait()
}

func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func TestShopSaysWhereToLook(t *testing.T) {
	p := startShop(t, t.TempDir(), "127.0.0.1:0")
	line := p.expect("http://127.0.0.1:")
	for _, account := range []string{"ada@shop.example", "ben@shop.example", "admin@shop.example", "operator@shop.example"} {
		p.expect(account)
	}
	_, address, _ := strings.Cut(line, "http://")
	url := "http://" + address
	for _, path := range []string{"/", "/livez", "/readyz", "/metrics", "/openapi.yaml", "/.well-known/openid-configuration", "/.well-known/jwks.json"} {
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("GET %s = %d, want 200", path, resp.StatusCode)
		}
	}
	if kilobytes := p.memory(); kilobytes > 150_000 {
		t.Errorf("it takes %d kB of memory, want at most 150,000", kilobytes)
	}
	if err := p.end(syscall.SIGTERM); err != nil {
		t.Errorf("told to stop, the shop ended with %v, want exit code 0", err)
	}
}

// memory is what the process has in memory, in kilobytes; 0 where the system does not tell.
func (p *process) memory() (kilobytes int) {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Log(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			if _, err := fmt.Sscan(value, &kilobytes); err != nil {
				p.t.Fatal(err)
			}
			p.t.Logf("%d kB in memory", kilobytes)
		}
	}
	return kilobytes
}

func TestOnlyOneShopPerData(t *testing.T) {
	data := t.TempDir()
	first := startShop(t, data, "127.0.0.1:0")
	first.expect("The shop is open")
	second := exec.Command(buildShop(t), "--data", data, "--listen", "127.0.0.1:0")
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "another shop runs on it, process "+strconv.Itoa(first.cmd.Process.Pid)) {
		t.Errorf("a second shop on the same data ended with %v and said %q, want it to refuse", err, out)
	}
}

// TestKilledShopLosesNothing is the shop's promise: it is killed again and again while
// customers order, and in the end everything is as if nothing had happened.
//
// SHOP_CRASH_ORDERS and SHOP_CRASH_KILLS make it longer.
func TestKilledShopLosesNothing(t *testing.T) {
	orders, kills := number(t, "SHOP_CRASH_ORDERS", 300), number(t, "SHOP_CRASH_KILLS", 5)
	if testing.Short() {
		orders, kills = 40, 1
	}
	data, addr := t.TempDir(), freeAddr(t)
	p := startShop(t, data, addr, "--packing", "300ms")
	p.expect("The shop is open")

	var done atomic.Int64
	var report *load.Report
	loaded := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		var err error
		report, err = load.Run(ctx, load.Config{URL: "http://" + addr, Orders: orders, Concurrency: 8, Progress: func() { done.Add(1) }})
		loaded <- err
	}()

	for kill := 1; kill <= kills; kill++ {
		// Spread over the run, each at a moment that nothing in the shop knows of.
		at := int64(orders * kill / (kills + 2))
		var err error
		eventuallyWithin(t, 3*time.Minute, func() error {
			if len(loaded) > 0 {
				err = errors.New("the load ended before the last kill")
				return nil
			}
			if done.Load() < at {
				return fmt.Errorf("%d of %d orders done, waiting for %d to kill", done.Load(), orders, at)
			}
			return nil
		})
		if err != nil {
			t.Fatal(errors.Join(err, <-loaded))
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		_ = p.end(syscall.SIGKILL)
		p = startShop(t, data, addr, "--packing", "300ms")
		p.expect("The shop is open")
	}
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d orders accepted, ended %v, refused %v, %d requests made again, %d sent twice, %d kills",
		len(report.Accepted), report.Ended, report.Refused, report.Retries, report.Repeats, kills)
	if !report.OK() {
		t.Errorf("unfinished %v, answered differently %v, want none", report.Unfinished, report.Mismatches)
	}
	verify(t, check.Files(data), report.Accepted)
}

// TestStoppedShopResumes stops the shop politely in the middle of orders: it drains, exits
// with 0, and what it could not finish is finished after the next start.
func TestStoppedShopResumes(t *testing.T) {
	data, addr := t.TempDir(), freeAddr(t)
	p := startShop(t, data, addr)
	p.expect("The shop is open")
	a := (&api{t: t, url: "http://" + addr}).stocked().newcomer()
	var ids []string
	for range 5 {
		ids = append(ids, a.place("pm_slow", lineItem{"product_id": "p-020", "quantity": 1}))
	}
	if err := p.end(syscall.SIGTERM); err != nil {
		t.Errorf("told to stop, the shop ended with %v, want exit code 0", err)
	}
	startShop(t, data, addr).expect("The shop is open")
	for _, id := range ids {
		a.ends(id, "confirmed")
	}
	verify(t, check.Files(data), ids)
}

func verify(t *testing.T, open func(service string) (*sql.DB, error), accepted []string) {
	t.Helper()
	verifyWithin(t, open, accepted, stormPatience)
}

// verifyWithin gives the shop that long to come to rest.
func verifyWithin(t *testing.T, open func(service string) (*sql.DB, error), accepted []string, patience time.Duration) {
	t.Helper()
	invariants, err := check.Run(t.Context(), open, accepted, patience, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range invariants {
		t.Logf("%d. %s: %s", i.Number, i.Name, i.Checked)
		for _, v := range i.Violations {
			t.Errorf("invariant %d: %s", i.Number, v)
		}
	}
}

func number(t *testing.T, env string, otherwise int) int {
	t.Helper()
	text := os.Getenv(env)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number from 1", env, text)
	}
	return n
}
