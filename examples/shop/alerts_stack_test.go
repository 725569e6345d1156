// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// forgotten begins a transaction that will be old when somebody looks at it. Nil where there is no PostgreSQL.
func forgotten(t *testing.T) *sql.Tx {
	t.Helper()
	dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
	if dsn == "" {
		return nil
	}
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

// registry is a Consul of its own, with a name server at the port where programs look for one.
type registry struct {
	addr string // of its HTTP interface
	dns  string // the address of its name server
	args []string
	cmd  *exec.Cmd
}

// startRegistry starts one, or skips the test where it may not have such a name server.
func startRegistry(t *testing.T) *registry {
	t.Helper()
	binary := server(t, "DOVETAIL_CONSUL_BINARY", "consul")
	r := &registry{}
	for tries := 0; r.dns == ""; tries++ {
		ip := fmt.Sprintf("127.%d.%d.%d", 60+rand.IntN(180), rand.IntN(256), 1+rand.IntN(254))
		conn, err := (&net.ListenConfig{}).ListenPacket(t.Context(), "udp", net.JoinHostPort(ip, "53"))
		if err != nil {
			if tries == 20 {
				testserver.Missing(t, "the kernel does not let us: %v", err)
			}
			continue
		}
		_ = conn.Close()
		r.dns = ip
	}
	dir := t.TempDir()
	ports := make([]any, 3) // free ones: the next moment they are Consul's
	for i := range ports {
		ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = ln.Close() }()
		ports[i] = ln.Addr().(*net.TCPAddr).Port
	}
	config := fmt.Sprintf(`
		server = true
		bootstrap_expect = 1
		node_name = "test"
		data_dir = %q
		bind_addr = "127.0.0.1"
		client_addr = "127.0.0.1"
		addresses { dns = %q }
		ports { dns = 53, http = %d, serf_lan = %d, server = %d, serf_wan = -1, grpc = -1, grpc_tls = -1 }
		performance { raft_multiplier = 1 }
		disable_update_check = true
		leave_on_terminate = false
		limits { http_max_conns_per_client = 1000 }`, append([]any{filepath.Join(dir, "data"), r.dns}, ports...)...)
	file := filepath.Join(dir, "consul.hcl")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.addr, r.args = fmt.Sprint("127.0.0.1:", ports[0]), []string{binary, "agent", "-config-file=" + file, "-log-level=error"}
	return r
}

// start starts it, again if it was killed, and waits until it answers.
func (r *registry) start(t *testing.T) {
	t.Helper()
	r.cmd = exec.Command(r.args[0], r.args[1:]...)
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	a := &api{t, "http://" + r.addr, ""}
	eventually(t, func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, a.url+"/v1/status/leader", nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if answer := a.send("GET", "/v1/health/service/consul?passing", nil, nil); answer.status != http.StatusOK || len(answer.body) < 10 {
			return fmt.Errorf("consul is not ready: %d %s", answer.status, answer.body)
		}
		return nil
	})
}

func (r *registry) kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait() // killed
}

// testAlertsOfAStack has a Prometheus find a stack by the shop's own configuration: a Consul that answers as this
// machine's name server would. Then comes the trouble that a shop in one process cannot have. Old is a transaction that
// was begun a minute ago, or soon will have been.
func testAlertsOfAStack(t *testing.T, old *sql.Tx) {
	consul := startRegistry(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver "+consul.dns+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A mount namespace, in which that is the name server; then Prometheus takes the shell's place.
	enter := []string{"unshare", "-m", "sh", "-c", `mount --bind "$0" /etc/resolv.conf && exec "$@"`, resolv}
	if out, err := exec.CommandContext(t.Context(), enter[0], append(enter[1:], "true")...).CombinedOutput(); err != nil {
		testserver.Missing(t, "the kernel does not let us: %v: %s", err, out)
	}
	settings := stackSettings(t)
	settings[stack.ConsulVar] = consul.addr
	t.Cleanup(consul.kill)
	consul.start(t)
	shop := openStackWith(t, map[string]int{"order": 2}, settings)
	shop.stocked()
	instances := len(assembly.Backends) + 2
	m := watch(t, "prometheus-stack.yml", "4s", func(job map[string]any) { // a scrape must outlast promkit.Patience
		named := func(text string) string { return strings.Replace(text, "shop-", settings[stack.NameVar]+"-", 1) }
		names := job["dns_sd_configs"].([]any)[0].(map[string]any)
		names["refresh_interval"] = "1s"
		for i, name := range names["names"].([]any) {
			names["names"].([]any)[i] = named(name.(string))
		}
		service := job["relabel_configs"].([]any)[0].(map[string]any)
		service["regex"] = named(service["regex"].(string))
	}, enter...)

	t.Run("a stack that is well", func(t *testing.T) {
		a := shop.seenBy(t).newcomer()
		m.targets(t, instances)
		a.ends(a.place("pm_visa", lineItem{"product_id": "p-040", "quantity": 1}), "confirmed")
		m.silent(t, silentWhenWell(t)...)
		m.quiet(t)
	})
	m.disturbed = true // with its name server gone
	t.Run("the registry does not answer", func(t *testing.T) {
		consul.kill()
		m.sees(t, "ShopRegistryStale")
		consul.start(t)
		m.silent(t, "ShopRegistryStale")
		m.targets(t, instances)
	})
	t.Run("transactions that do not end", func(t *testing.T) {
		db, err := shop.look("order")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		store, err := eventsourcesql.New(db, eventsourcesql.Postgres, eventsourcesql.Config{})
		if err != nil {
			t.Fatal(err)
		}
		log, err := eventsource.New(store, eventsource.Config{})
		if err != nil {
			t.Fatal(err)
		}
		schema := func(service string) string { return settings[stack.NameVar] + "_" + service }
		ctx := context.WithoutCancel(t.Context()) // they end by Rollback
		if _, err := old.ExecContext(ctx, "SET LOCAL search_path = "+schema("order")); err != nil {
			t.Fatal(err)
		}
		if err := log.Append(ctx, old, "stranger", eventsource.None, eventsource.Event{ID: kernel.NewID(), Type: "stranger.came.v1", Data: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
		// And one that keeps everybody out of a table, as a migration would.
		lock, err := sql.Open("pgx", settings[stack.PostgresVar])
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = lock.Close() }()
		tx, err := lock.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback() }()
		if _, err := tx.ExecContext(ctx, "LOCK TABLE "+schema("shipping")+".outbox_message IN ACCESS EXCLUSIVE MODE"); err != nil {
			t.Fatal(err)
		}
		m.sees(t, "ShopDatabaseSilent", "ShopEventLogHeldUp")
		if err := old.Rollback(); err != nil {
			t.Error(err)
		}
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
		m.silent(t, "ShopDatabaseSilent", "ShopEventLogHeldUp")
	})
}
