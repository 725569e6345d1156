// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/doctor"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
)

// examined is a report of shop doctor.
type examined struct {
	ran
	doctor.Report
}

// examine runs shop doctor --json in this process.
func examine(t *testing.T, args ...string) examined {
	t.Helper()
	e := examined{ran: shopWith(t, append([]string{"doctor", "--json", "--timeout", "2m"}, args...)...)}
	if err := json.Unmarshal([]byte(e.out), &e.Report); err != nil {
		t.Fatalf("said %s%s: %v", e.out, e.err, err)
	}
	if want := map[bool]int{true: 0, false: 1}[e.OK]; e.code != want {
		t.Errorf("exit code %d, ok is %v, want %d", e.code, e.OK, want)
	}
	return e
}

// finds returns what is found of a check, in the worst case, and what it is about.
func (e examined) finds(check, of string) (worst doctor.Finding) {
	rank := map[doctor.Status]int{"": 0, doctor.OK: 1, doctor.Warn: 2, doctor.Fail: 3}
	for _, f := range e.Findings {
		if f.Check == check && (of == "" || f.Of == of) && rank[f.Status] > rank[worst.Status] {
			worst = f
		}
	}
	return worst
}

// want checks what is found of a check, and that it says what to do if that is not ok.
func (e examined) want(t *testing.T, check, of string, status doctor.Status, text string) {
	t.Helper()
	f := e.finds(check, of)
	if f.Status != status || !strings.Contains(f.Found, text) || status != doctor.OK && f.Do == "" {
		t.Errorf("%s %s: found %+v, want %s with %q and what to do; all: %s", check, of, f, status, text, e.out)
	}
}

// TestDoctorWithoutPermission examines a folder that may not be written to, as somebody who is not root.
func TestDoctorWithoutPermission(t *testing.T) {
	shop := buildShop(t)
	data, err := os.MkdirTemp("", "closed") //nolint:usetesting // nobody else may enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(data) })
	if err := os.Chmod(data, 0o555); err != nil { //nolint:gosec // everybody may look, nobody may write
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), shop, "doctor", "--json", "--timeout", "2m", "--data", data, "--listen", "127.0.0.1:0")
	if os.Geteuid() == 0 { // who may write everywhere
		if err := os.Chmod(filepath.Dir(shop), 0o755); err != nil { //nolint:gosec // nobody else may write
			t.Fatal(err)
		}
		cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, "/"
	}
	out, _ := cmd.Output()
	e := examined{ran: ran{code: cmd.ProcessState.ExitCode(), out: string(out)}}
	if err := json.Unmarshal(out, &e.Report); err != nil || e.code != 1 {
		t.Fatalf("exit code %d, said %s: %v", e.code, out, err)
	}
	e.want(t, "data-folder", "", doctor.Fail, "permission denied")
}

// TestDoctorWithFewFiles lowers the limit of open files.
func TestDoctorWithFewFiles(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -n 100 && exec "$0" doctor --data "$1" --listen 127.0.0.1:0`, buildShop(t), t.TempDir())
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "FAIL  open-files") || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d, said %s; want open-files to fail", cmd.ProcessState.ExitCode(), out)
	}
}

// TestDoctorOfOldData examines data that other versions of the program have left.
func TestDoctorOfOldData(t *testing.T) {
	data := t.TempDir()
	db, err := platform.OpenSQLite(filepath.Join(data, "order.db"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := outboxsql.New(db, outboxsql.SQLite, outboxsql.Config{})
	if err == nil {
		err = store.Migrate(t.Context())
	}
	_ = db.Close()
	if err != nil {
		t.Fatal(err)
	}
	look := func() examined { return examine(t, "--data", data, "--listen", "127.0.0.1:0") }
	look().want(t, "tables", "", doctor.OK, "current: 1 services, 1 blocks")
	harm(t, filepath.Join(data, "order.db"), `UPDATE outbox_schema SET version = 0`)
	look().want(t, "tables", "order", doctor.Warn, "outbox are of version 0")
	harm(t, filepath.Join(data, "order.db"), `UPDATE outbox_schema SET version = 99`)
	look().want(t, "tables", "order", doctor.Warn, "outbox are of version 99")
	if err := os.WriteFile(filepath.Join(data, "order.db"), []byte(strings.Repeat("no database", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	look().want(t, "tables", "order", doctor.Fail, "not a database")
}

// testDoctorBesideAShop examines a shop that runs: while it is well, and while it is not.
func testDoctorBesideAShop(t *testing.T, shop *api, data string) {
	listen := strings.TrimPrefix(shop.url, "http://")
	look := func() examined { return examine(t, "--data", data, "--listen", listen) }
	operator := shop.seenBy(t).as("operator@shop.example", "dovetail-operator")
	eventually(t, func() error { // what the console last saw may be some seconds old
		if e := look(); !e.OK || e.finds("shop", "").Status != doctor.OK {
			return fmt.Errorf("found %s, want all well", e.out)
		}
		return nil
	})
	e := look()
	e.want(t, "data-in-use", "", doctor.OK, listen)
	e.want(t, "listen", "", doctor.OK, "a shop answers at "+shop.url+", version ")
	examine(t, "--data", data, "--listen", "127.0.0.1:0").want(t, "data-in-use", "", doctor.Fail, listen)
	token, err := os.ReadFile(filepath.Join(data, "service.token"))
	if err != nil || strings.Contains(e.out, string(token)) {
		t.Errorf("said %s (%v), want no secret", e.out, err)
	}

	end := operator.harm(chaos.Kill, "notification", 0)
	until(t, look, "shop", "notification", doctor.Fail, "no instance is ready")
	end()
	harm(t, filepath.Join(data, "shipping.db"), `INSERT INTO dead_letters VALUES ('shipping', 'm', '{}', 'on purpose', 1, 1)`)
	until(t, look, "shop", "shipping", doctor.Fail, "given up")
	harm(t, filepath.Join(data, "shipping.db"), `DELETE FROM dead_letters`)
	harm(t, filepath.Join(data, "catalog.db"), `UPDATE eventsource_shard SET stopped = 7, stream = 'product-p-1', reason = 'on purpose'`)
	look().want(t, "tables", "catalog", doctor.Fail, "product-p-1: on purpose")
	harm(t, filepath.Join(data, "catalog.db"), `UPDATE eventsource_shard SET stopped = 0`)
	end = operator.harm(chaos.Errors, "inventory", 100)
	until(t, func() examined {
		shop.seenBy(t).send("GET", "/api/products/p-001/stock", nil, nil) // somebody has to ask for a breaker to open
		return look()
	}, "shop", "gateway", doctor.Warn, "breaker to inventory is")
	end()
}

// until waits for a finding.
func until(t *testing.T, look func() examined, check, of string, status doctor.Status, text string) {
	t.Helper()
	eventually(t, func() error {
		e := look()
		if f := e.finds(check, of); f.Status != status || !strings.Contains(f.Found, text) || f.See == "" {
			return fmt.Errorf("%s %s: found %+v, want %s with %q and where to read on", check, of, f, status, text)
		}
		return nil
	})
}

// TestDoctorOfNoStack examines settings that are missing and servers that are not there.
func TestDoctorOfNoStack(t *testing.T) {
	noSettings(t)
	file := filepath.Join(t.TempDir(), "env")
	look := func(lines ...string) examined {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		e := examine(t, "--stack", "--env-file", file, "--listen", "127.0.0.1:0")
		if strings.Contains(e.out+e.err, "hidden") {
			t.Errorf("said %s: that shows a secret", e.out)
		}
		return e
	}
	e := look()
	for _, name := range []string{stack.ServiceTokenVar, stack.PostgresVar, stack.RabbitMQVar, stack.RedisVar, stack.ConsulVar, stack.AdminPasswordVar, stack.OperatorPasswordVar} {
		e.want(t, "settings", name, doctor.Fail, name+" is not set")
	}
	closed := freeAddr(t)
	e = look(
		"SHOP_SERVICE_TOKEN="+strings.Repeat("hidden", 6), "SHOP_POSTGRES_DSN=postgres://a:hidden1@"+closed+"/b?sslmode=disable",
		"SHOP_POSTGRES_REPLICA_DSN=postgres://a:hidden1@"+closed+"/b?sslmode=disable", "SHOP_RABBITMQ_URL=amqp://a:hidden2@"+closed+"/b",
		"SHOP_REDIS_URL=redis://:hidden3@"+closed+"/0", "SHOP_CONSUL_ADDR="+closed, "SHOP_ADMIN_PASSWORD=hidden-password", "SHOP_OPERATOR_PASSWORD=hidden-password",
	)
	e.want(t, "settings", "", doctor.OK, "all that the services need")
	for check, of := range map[string]string{
		"postgres": stack.PostgresVar, "replica": stack.ReplicaVar, "rabbitmq": stack.RabbitMQVar, "redis": stack.RedisVar, "consul": stack.ConsulVar,
	} {
		e.want(t, check, of, doctor.Fail, "refused")
	}
}

// TestDoctorOfTheStack examines real servers, with right and with wrong passwords, and old tables on them.
func TestDoctorOfTheStack(t *testing.T) {
	settings := stackSettings(t)
	noSettings(t)
	file := filepath.Join(t.TempDir(), "env")
	look := func(change map[string]string) examined {
		t.Helper()
		var lines []string
		for name, value := range settings {
			if other, ok := change[name]; ok {
				value = other
			}
			lines = append(lines, name+"="+value)
		}
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
		e := examine(t, "--stack", "--env-file", file, "--listen", "127.0.0.1:0")
		for _, name := range []string{stack.PostgresVar, stack.RabbitMQVar, stack.RedisVar, stack.ServiceTokenVar} {
			if u, err := url.Parse(settings[name]); err == nil {
				if password, ok := u.User.Password(); ok && strings.Contains(e.out+e.err, password) || strings.Contains(e.out, settings[name]) {
					t.Errorf("said %s: that shows the secret of %s", e.out, name)
				}
			}
		}
		if strings.Contains(e.out, "wrong-secret") {
			t.Errorf("said %s: that shows a secret", e.out)
		}
		return e
	}
	e := look(nil)
	for check, text := range map[string]string{"postgres": "", "rabbitmq": "RabbitMQ ", "redis": "Redis ", "consul": "Consul ", "tables": "none yet", "shop": "none runs"} {
		if f := e.finds(check, ""); f.Status != doctor.OK && (check != "postgres" || f.Status != doctor.Warn) || !strings.Contains(f.Found, text) {
			t.Errorf("%s: found %+v, want it well", check, f) // a shared server may have few connections
		}
	}
	wrongly := func(name string) map[string]string {
		u, err := url.Parse(settings[name])
		if err != nil {
			t.Fatal(err)
		}
		u.User = url.UserPassword(u.User.Username(), "wrong-secret")
		return map[string]string{name: u.String()}
	}
	look(wrongly(stack.PostgresVar)).want(t, "postgres", stack.PostgresVar, doctor.Fail, "password")
	look(wrongly(stack.RabbitMQVar)).want(t, "rabbitmq", stack.RabbitMQVar, doctor.Fail, "403")
	look(wrongly(stack.RedisVar)).want(t, "redis", stack.RedisVar, doctor.Fail, "WRONGPASS")
	// A server that is no replica is not one.
	settings[stack.ReplicaVar] = settings[stack.PostgresVar]
	look(nil).want(t, "replica", stack.ReplicaVar, doctor.Warn, "is no replica")
	delete(settings, stack.ReplicaVar)

	// Tables of another version, which the shop's user may change, or may not.
	db, err := platform.OpenPostgres(t.Context(), settings[stack.PostgresVar], settings[stack.NameVar]+"_order")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	store, err := outboxsql.New(db, outboxsql.Postgres, outboxsql.Config{})
	if err == nil {
		err = store.Migrate(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	look(nil).want(t, "tables", "", doctor.OK, "current: 1 services, 1 blocks")
	run(t, db, "UPDATE outbox_schema SET version = 0")
	look(nil).want(t, "tables", "order", doctor.Warn, "outbox are of version 0")
	run(t, db, "REVOKE CREATE ON SCHEMA "+pgx.Identifier{settings[stack.NameVar] + "_order"}.Sanitize()+" FROM CURRENT_USER") // who can take it back
	look(nil).want(t, "tables", "order", doctor.Fail, "outbox are of version 0")
}

func run(t *testing.T, db *sql.DB, statement string) {
	t.Helper()
	if _, err := db.ExecContext(t.Context(), statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// writeStack does what make stack does, but for a file of the test's and a shop of its own on the servers. What it has written is in
// settings then.
func writeStack(t *testing.T, file string, settings map[string]string) {
	t.Helper()
	sh := func(script string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", append([]string{"-c", "unset MAKEFLAGS MFLAGS MAKELEVEL; " + script, "bash"}, args...)...)
		cmd.Dir = filepath.Join("..", "..")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
		return string(out)
	}
	if does := sh("make -n stack"); does != "scripts/stack\n" {
		t.Errorf("make stack does %s, want scripts/stack", does)
	}
	if !strings.Contains(sh("scripts/services env || true"), settings[stack.PostgresVar]) {
		testserver.Missing(t, "the servers are not those of scripts/services")
	}
	sh(`DOVETAIL_STACK=packages scripts/stack "$1"`, file) // tests have no use for an engine
	written, err := stack.ReadEnv(file)
	if err != nil {
		t.Fatal(err)
	}
	// As from servers in containers, whose agent reaches nobody here.
	own := fmt.Sprintf("%s=%s\n%s=%s\n%s=off\n", stack.NameVar, settings[stack.NameVar], stack.LeaseVar, settings[stack.LeaseVar], stack.ConsulLooksVar)
	f, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(own)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	maps.Copy(settings, written)
}

// TestUpTells runs shop up --json as a program on real servers: it tells what happens as lines of JSON, shop doctor sees
// how it does, its secrets are nowhere to be seen, and nothing outlives it.
//
// It is started as the README says, settings included.
func TestUpTells(t *testing.T) {
	settings := stackSettings(t)
	file := filepath.Join(t.TempDir(), "stack.env")
	var args []string
	for _, s := range documents.Of(t) {
		more, known := strings.CutPrefix(s.Text, goRun)
		switch {
		case s.Text == "make stack":
			writeStack(t, file, settings)
		case known:
			args = strings.Fields(more)
		default:
			t.Fatalf("%v: nothing runs %s", s.Block, s.Text)
		}
	}
	noSettings(t)
	cmd := exec.Command(buildShop(t), append(args, "--json", "--listen", "127.0.0.1:0", "--env-file", file)...)
	said := tells(t, cmd)
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	said.DisallowUnknownFields()
	pids := map[string]int{}
	// next reads what happens until something of a kind does.
	next := func(kind string) (e event) {
		t.Helper()
		for {
			e = event{Instance: &stack.Instance{}}
			if err := said.Decode(&e); err != nil {
				t.Fatalf("waiting for %s: %v", kind, err)
			}
			if e.Event == "started" {
				pids[e.Instance.Instance] = e.PID
			}
			if e.Event == kind {
				return e
			}
		}
	}
	opened := next("open")
	if len(pids) != len(assembly.Backends)+1+3 || !strings.HasPrefix(opened.URL, "http://127.0.0.1:") {
		t.Fatalf("open at %q with %v, want one process for each service, and another of three", opened.URL, pids)
	}
	shop := &api{t: t, url: opened.URL}
	shop.want(http.StatusOK, shop.send("GET", "/readyz", nil, nil), nil)
	customer := shop.stocked().newcomer()
	customer.ends(customer.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}), "confirmed")
	for name, pid := range pids {
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			t.Logf("%s: %v", name, err) // there is no /proc
			break
		}
		for variable, value := range settings {
			if strings.Contains(string(args), value) && len(value) > 8 {
				t.Errorf("%s was called with the value of %s", name, variable)
			}
		}
	}
	look := func() examined {
		return examine(t, "--stack", "--env-file", file, "--listen", strings.TrimPrefix(opened.URL, "http://"))
	}
	eventually(t, func() error { // the registry and the console need a moment
		if f := look().finds("shop", ""); f.Status != doctor.OK || !strings.Contains(f.Found, "10 services") {
			return fmt.Errorf("found %+v, want all well", f)
		}
		return nil
	})
	e := look()
	e.want(t, "listen", "", doctor.OK, "a shop answers at "+opened.URL)
	e.want(t, "tables", "", doctor.OK, "current: 9 services")

	if err := syscall.Kill(pids["shipping-1"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := next("ended"); e.Instance.Instance != "shipping-1" || e.PID != pids["shipping-1"] || e.AgainIn == 0 || e.Error == "" {
		t.Errorf("ended: %+v, want shipping-1, why, and when it is started again", e)
	}
	if e := next("started"); e.Instance.Instance != "shipping-1" {
		t.Errorf("started: %+v, want shipping-1", e)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	next("closed")
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to end, it ended with %v, want exit code 0", err)
	}
}
