// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/reporting"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// stackLease is how soon the stack of the tests takes over from the dead.
const stackLease = 2 * time.Second

// server returns where a real server is.
func server(t *testing.T, variable, name string) string {
	t.Helper()
	value := os.Getenv(variable)
	if value == "" {
		testserver.Missing(t, "%s is not set: run scripts/services up %s && eval \"$(scripts/services env)\"", variable, name)
	}
	return value
}

// stackSettings are those of a shop of its own on the real servers. What it leaves there is removed when
// the test ends.
func stackSettings(t *testing.T) map[string]string {
	t.Helper()
	random := make([]byte, 5)
	_, _ = rand.Read(random)
	settings := map[string]string{
		stack.NameVar:             "test" + hex.EncodeToString(random),
		stack.PostgresVar:         server(t, "DOVETAIL_POSTGRES_DSN", "postgres"),
		stack.RabbitMQVar:         server(t, "DOVETAIL_RABBITMQ_URL", "rabbitmq"),
		stack.RedisVar:            server(t, "DOVETAIL_REDIS_URL", "redis"),
		stack.ConsulVar:           server(t, "DOVETAIL_CONSUL_ADDR", "consul"),
		stack.ServiceTokenVar:     rand.Text() + rand.Text(),
		stack.AdminPasswordVar:    "dovetail-admin",
		stack.OperatorPasswordVar: "dovetail-operator",
		stack.LeaseVar:            stackLease.String(),
	}
	t.Cleanup(func() { removeStack(t, settings) })
	return settings
}

func removeStack(t *testing.T, settings map[string]string) {
	t.Helper()
	ctx := context.Background()
	name := settings[stack.NameVar]
	db, err := sql.Open("pgx", settings[stack.PostgresVar])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	builds := int64(1)
	if err := db.QueryRowContext(ctx, "SELECT MAX(build) FROM "+name+"_reporting.builds").Scan(&builds); err != nil {
		t.Logf("reporting has not begun: %v", err)
	}
	for _, service := range assembly.Backends {
		if _, err := db.ExecContext(ctx, "DROP SCHEMA IF EXISTS "+name+"_"+service+" CASCADE"); err != nil {
			t.Error(err)
		}
	}
	broker, err := rabbitkit.New(settings[stack.RabbitMQVar], rabbitkit.Config{Exchange: name})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = broker.Close() }()
	for _, groups := range assembly.Listeners() {
		for _, g := range groups {
			if err := broker.Remove(ctx, g.Group); err != nil {
				t.Error(err)
			}
		}
	}
	for build := range builds {
		if err := broker.Remove(ctx, reporting.Reader(build+1).Group); err != nil {
			t.Error(err)
		}
	}
	conn, err := amqp091.Dial(settings[stack.RabbitMQVar])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	channel, err := conn.Channel()
	if err == nil {
		_, err = channel.QueueDelete(name+".log", false, false, false)
	}
	if err == nil {
		err = channel.ExchangeDelete(name, false, false)
	}
	if err != nil {
		t.Error(err)
	}
}

// stackShop is a shop of one process per service.
type stackShop struct {
	*api
	settings map[string]string

	mu        sync.Mutex
	processes map[string]stack.Instance // by instance: the process that it is now
	restarts  atomic.Int64
}

// openStack runs a stack until the test ends.
func openStack(t *testing.T, instances map[string]int) *stackShop {
	t.Helper()
	return openStackWith(t, instances, stackSettings(t))
}

func openStackWith(t *testing.T, instances map[string]int, settings map[string]string) *stackShop {
	t.Helper()
	shop := &stackShop{settings: settings, processes: map[string]stack.Instance{}}
	ctx, stop := context.WithCancel(context.Background())
	ready, ended := make(chan string, 1), make(chan error, 1)
	cfg := stack.UpConfig{
		Listen: "127.0.0.1:0", Instances: instances, Binary: buildShop(t), Output: t.Output(),
		Getenv: func(name string) string { return settings[name] },
		Log:    slog.New(slog.NewTextHandler(t.Output(), nil)),
		Ready:  func(url string) { ready <- url },
		Started: func(i stack.Instance, _, _ int) {
			shop.mu.Lock()
			defer shop.mu.Unlock()
			if shop.processes[i.Instance].PID != 0 {
				shop.restarts.Add(1)
			}
			shop.processes[i.Instance] = i
		},
	}
	begin := time.Now()
	go func() { ended <- stack.Up(ctx, cfg) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the stack ended with %v, want nil", err)
		}
	})
	select {
	case url := <-ready:
		shop.api = &api{t: t, url: url}
		shop.mu.Lock()
		defer shop.mu.Unlock()
		t.Logf("%d processes, open after %v", len(shop.processes), time.Since(begin).Round(time.Millisecond))
	case err := <-ended:
		ended <- nil
		t.Fatalf("the stack did not open: %v", err)
	case <-time.After(2 * time.Minute):
		t.Fatal("the stack does not open")
	}
	return shop
}

func (s *stackShop) signal(t *testing.T, instance string, signal syscall.Signal) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := syscall.Kill(s.processes[instance].PID, signal); err != nil {
		t.Errorf("%s, process %d: %v", instance, s.processes[instance].PID, err)
	}
}

func (s *stackShop) look(service string) (*sql.DB, error) {
	settings, err := stack.LoadDatabases(func(name string) string { return s.settings[name] })
	if err != nil {
		return nil, err
	}
	return settings.Look(service)
}

// TestStack runs the shop on real servers, two processes each of the services that a sale goes through.
// They are killed, and one is stopped until the others take it for dead, while customers order; in the
// end everything is as if nothing had happened.
//
// SHOP_STACK_ORDERS and SHOP_STACK_ROUNDS make it longer.
func TestStack(t *testing.T) {
	exported := receiveTraces(t)
	instances := map[string]int{"gateway": 2, "customer": 2, "catalog": 2, "order": 2, "inventory": 2, "payment": 2}
	shop := openStack(t, instances)
	shop.stocked()

	t.Run("what starts twice is made once", func(t *testing.T) {
		a, products := shop.seenBy(t), 0
		for page := 1; page != 0; {
			var list struct {
				Items []product
				Next  int
			}
			a.want(http.StatusOK, a.send("GET", fmt.Sprintf("/api/products?page=%d", page), nil, nil), &list)
			products, page = products+len(list.Items), list.Next
		}
		var keys struct{ Keys []json.RawMessage }
		a.want(http.StatusOK, a.send("GET", "/.well-known/jwks.json", nil, nil), &keys)
		if products != 240 || len(keys.Keys) != 1 {
			t.Errorf("%d products, %d signing keys; want 240 and 1", products, len(keys.Keys))
		}
		db, err := shop.look("customer")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		var staff int
		if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM customers WHERE role <> 'customer'`).Scan(&staff); err != nil || staff != 2 {
			t.Errorf("%d members of staff (%v), want 2", staff, err)
		}
	})
	t.Run("each instance answers for itself", func(t *testing.T) { testInstances(t, shop, instances) })
	t.Run("order", func(t *testing.T) { testOrder(t, shop.seenBy(t)) })
	t.Run("key", func(t *testing.T) { testIdempotencyKey(t, shop.seenBy(t)) })
	t.Run("bad input", func(t *testing.T) { testBadInput(t, shop.seenBy(t)) })
	t.Run("word between instances", func(t *testing.T) { testWordBetweenInstances(t, shop) })
	t.Run("cloud events", func(t *testing.T) { testCloudEvents(t, shop) })
	t.Run("dead letters", func(t *testing.T) { testDeadLetters(t, shop) })
	t.Run("a trace through the death of a service", func(t *testing.T) { testTraceThroughDeath(t, shop, exported) })
	t.Run("killed and stopped", func(t *testing.T) { testKilledStack(t, shop) })
	t.Run("false figures", func(t *testing.T) {
		testFalseFigures(shop.seenBy(t), shop.look, func(statement string) {
			db, err := platform.OpenPostgres(t.Context(), shop.settings[stack.PostgresVar], shop.settings[stack.NameVar]+"_reporting")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = db.Close() }()
			if _, err := db.ExecContext(t.Context(), statement); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("console", func(t *testing.T) { testStackConsole(t, shop) })
	t.Run("groups of builds that are over", func(t *testing.T) { testGroupsOfBuilds(t, shop) })
}

// testInstances sees that each process is asked at an address of its own, gateways too.
func testInstances(t *testing.T, shop *stackShop, instances map[string]int) {
	a := shop.seenBy(t).as("operator@shop.example", shop.settings[stack.OperatorPasswordVar])
	eventually(t, func() error {
		var sample struct {
			Services []struct {
				Service   string
				Instances []struct {
					Instance, Addr string
					Up             bool
				}
			}
		}
		a.want(http.StatusOK, a.send("GET", "/ops/api/traffic", nil, nil), &sample)
		seen := map[string]bool{}
		for _, s := range sample.Services {
			if want := max(instances[s.Service], 1); len(s.Instances) != want {
				return fmt.Errorf("%s has %d instances, want %d", s.Service, len(s.Instances), want)
			}
			for _, in := range s.Instances {
				if !in.Up || seen[in.Instance] || seen[in.Addr] {
					return fmt.Errorf("%s: up %v, seen before %v, its address %s %v", in.Instance, in.Up, seen[in.Instance], in.Addr, seen[in.Addr])
				}
				seen[in.Instance], seen[in.Addr] = true, true
			}
		}
		return nil
	})
}

// testGroupsOfBuilds sees that RabbitMQ keeps the position of the build that serves, and of no other: the tests before
// this one have had the figures rebuilt several times, once to others.
func testGroupsOfBuilds(t *testing.T, shop *stackShop) {
	db, err := shop.look("reporting")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var builds, serving int64
	if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*), MAX(CASE WHEN status = 'serving' THEN build ELSE 0 END) FROM builds`).Scan(&builds, &serving); err != nil || builds < 4 {
		t.Fatalf("%d builds (%v), want 4 or more", builds, err)
	}
	conn, err := amqp091.Dial(shop.settings[stack.RabbitMQVar])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	eventually(t, func() error {
		for build := int64(1); build <= builds; build++ {
			channel, err := conn.Channel() // which a queue that there is not closes
			if err != nil {
				t.Fatal(err)
			}
			_, err = channel.QueueDeclarePassive(shop.settings[stack.NameVar]+".position."+reporting.Reader(build).Group, true, false, false, false, nil)
			_ = channel.Close()
			missing := false
			if spoken := new(amqp091.Error); errors.As(err, &spoken) {
				missing = spoken.Code == amqp091.NotFound
			}
			if err != nil && !missing {
				t.Fatal(err)
			}
			if missing == (build == serving) {
				return fmt.Errorf("of build %d the position is missing: %v, while build %d of %d serves", build, missing, serving, builds)
			}
		}
		return nil
	})
}

func testKilledStack(t *testing.T, shop *stackShop) {
	orders, rounds := number(t, "SHOP_STACK_ORDERS", 120), number(t, "SHOP_STACK_ROUNDS", 1)
	var done atomic.Int64
	var harmed atomic.Bool
	var reports []*load.Report
	loaded := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		var err error
		for err == nil && (done.Load() < int64(orders) || !harmed.Load()) { // until all harm is done, however fast the shop is
			var report *load.Report
			report, err = load.Run(ctx, load.Config{
				URL: shop.url, Orders: max(orders/4, 1), Concurrency: 8, Patience: 4 * time.Minute, Progress: func() { done.Add(1) },
			})
			reports = append(reports, report)
		}
		loaded <- err
	}()
	harm := []func(){
		func() { shop.signal(t, "order-1", syscall.SIGKILL) },
		func() { shop.signal(t, "inventory-1", syscall.SIGKILL) },
		func() { // past its lease: the other takes over what it holds, and then it is back and believes to hold it
			shop.signal(t, "order-2", syscall.SIGSTOP)
			time.Sleep(2 * stackLease)
			shop.signal(t, "order-2", syscall.SIGCONT)
		},
		func() { shop.signal(t, "payment-2", syscall.SIGKILL) },
		func() { shop.signal(t, "inventory-2", syscall.SIGTERM) }, // and one that drains
		func() { shop.signal(t, "gateway-1", syscall.SIGKILL) },
	}
	if testing.Short() {
		harm = harm[:1]
	}
	for i := range rounds * len(harm) {
		at := int64(orders * (i + 1) / (rounds*len(harm) + 2))
		for done.Load() < at && len(loaded) == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		if len(loaded) > 0 {
			t.Fatal(<-loaded)
		}
		harm[i%len(harm)]()
		// A killed one must be back before it can be killed again.
		want := int64(0)
		for j := range i + 1 {
			if j%len(harm) != 2 {
				want++
			}
		}
		eventually(t, func() error {
			if n := shop.restarts.Load(); n < want {
				return fmt.Errorf("%d processes were started again, want %d", n, want)
			}
			return nil
		})
	}
	harmed.Store(true)
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	var accepted []string
	for _, r := range reports {
		t.Logf("%d orders accepted in %v, ended %v, refused %v, %d requests made again, %d sent twice; until accepted %+v, until ended %+v",
			len(r.Accepted), r.Elapsed.Round(time.Millisecond), r.Ended, r.Refused, r.Retries, r.Repeats, r.Accept, r.Finish)
		if !r.OK() {
			t.Errorf("unfinished %v, answered differently %v, want none", r.Unfinished, r.Mismatches)
		}
		accepted = append(accepted, r.Accepted...)
	}
	t.Logf("%d orders accepted, %d processes started again", len(accepted), shop.restarts.Load())
	shop.seenBy(t).verifies(shop.look, accepted)
}

// testStackConsole is an operator before the shop of many processes: each instance is on the map, one is stopped and
// another killed from the chaos panel, and a customer does not notice.
func testStackConsole(t *testing.T, shop *stackShop) {
	v := visit(t, openBrowser(t), shop.url)
	v.mayComplain("status of 503", "status of 429", "net::ERR_")
	v.open("/sign-in?to=/ops")
	v.signsIn("operator@shop.example", "dovetail-operator")
	v.arrives("/ops")
	allUp := fmt.Sprintf(`document.querySelectorAll('#map .node-box[data-state=up]').length === %d`, len(assembly.Backends)+1)
	v.until("every service is on the map and answers", allUp)
	v.until("both instances of a service are on the map", `document.querySelectorAll('[data-service=payment] .instances circle[data-up=true]').length === 2`)
	v.clicks(".tables summary")
	v.until("the table names the instances", `['payment-1', 'payment-2', 'order-1', 'order-2', 'shipping-1'].every((i) => document.querySelector('#services').textContent.includes(i))`)
	v.until("the table shows the breakers", `document.querySelectorAll('#calls tr').length > 0`)
	v.open("/ops/messages")
	v.until("the broker says of every queue who hears it", `document.querySelectorAll('#groups tr').length >= 6 && [...document.querySelectorAll('#groups [data-is=consumers]')].every((c) => Number(c.textContent) >= 1)`)
	v.open("/ops")
	v.until("every service is on the map again", allUp)

	v.breaks("pause", "payment-1", 300) // the test ends it
	v.breaks("kill", "inventory-2", 300)
	// One that the registry has let go of may be there as down, or not at all.
	v.until("the map shows one of two left", `['payment', 'inventory'].every((s) => document.querySelectorAll('[data-service=' + s + '] .instances circle[data-up=true]').length === 1)`)
	v.picture("two instances are away")
	customer := shop.seenBy(t).newcomer()
	v.evaluate(`window.before = document.querySelector('#invariants').textContent`)
	order := customer.place("", lineItem{"product_id": "p-024", "quantity": 1})
	eventuallyWithin(t, atLast, func() error {
		var page orderPage
		if got := customer.send("GET", "/api/orders/"+order, nil, nil); got.status == http.StatusOK {
			customer.want(http.StatusOK, got, &page)
		}
		if page.Status != "confirmed" && page.Status != "dispatched" {
			return fmt.Errorf("order is %s (%s), want it confirmed by those who are left", page.Status, page.Reason)
		}
		return nil
	})
	v.clicks("#end-all")
	v.until("nothing is in force", `!document.querySelector('#no-faults').hidden`)
	v.until("everybody is back", allUp+` && ['payment', 'inventory'].every((s) => document.querySelectorAll('[data-service=' + s + '] .instances circle[data-up=true]').length === 2)`)
	v.until("the order is counted in, and all invariants hold", `document.querySelector('#invariants').textContent !== window.before && document.querySelector('#resting').textContent === 'Nothing is under way.' && document.querySelector('#verdict').textContent === 'all hold'`)
	v.picture("everybody is back")

	v.clicks(".tabs a[href='/ops/sagas']")
	v.arrives("/ops/sagas")
	v.clicks("#sagas a[href='/ops/sagas/" + order + "']")
	v.arrives("/ops/sagas/" + order)
	v.shows("#status", "completed")
	v.until("its story is told by the instances that took part", `[...document.querySelectorAll('#history li')].filter((e) => / on order-[12]/.test(e.textContent)).length > 6`)
	v.clicks("#to-trace")
	v.arrives("/ops/traces")
	// A span is there when it has ended, and the page is read once.
	for late, all := time.Now().Add(atLast), `return ['gateway', 'order', 'customer', 'inventory', 'payment', 'provider'].every((s) => [...document.querySelectorAll('.spans .who')].some((e) => e.textContent === s))`; !v.evaluate(all); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(late) {
			v.fail("the trace does not go through the services")
		}
		v.open("/ops/traces?order=" + order)
		v.until("there is a trace", `document.querySelectorAll('.spans li').length > 0`)
	}
	v.picture("trace")
	v.clicks(".tabs a[href='/ops/messages']")
	v.arrives("/ops/messages")
	v.until("every outbox is there, and the order's events", fmt.Sprintf(`document.querySelectorAll('#boxes tr').length === %d && document.querySelector('#events').textContent.includes(%s)`, len(assembly.Backends)-1, quote(order)))
	v.picture("messages")
}

// testDeadLetters publishes what no consumer can read: it is kept by the service whose consumer gave it up,
// seen by the operator, and replayed when that has been mended.
func testDeadLetters(t *testing.T, shop *stackShop) {
	operator := shop.seenBy(t).as("operator@shop.example", "dovetail-operator")
	broker, err := rabbitkit.New(shop.settings[stack.RabbitMQVar], rabbitkit.Config{Exchange: shop.settings[stack.NameVar]})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = broker.Close() }()
	bad := &messaging.Message{ID: messaging.NewID(), Topic: kernel.TopicCustomerRegistered, Type: "customer.registered.v1", Time: time.Now(), Body: []byte(`{`)}
	if err := broker.Publish(t.Context(), bad); err != nil {
		t.Fatal(err)
	}
	replay := "/ops/api/dead-letters/notification.customers/" + bad.ID + "/replay"
	eventually(t, func() error {
		var list struct {
			Items []struct {
				Service string
				Items   []struct {
					MessageID string `json:"message_id"`
					Reason    string
				}
			}
		}
		operator.want(http.StatusOK, operator.send("GET", "/ops/api/dead-letters", nil, nil), &list)
		for _, s := range list.Items {
			for _, d := range s.Items {
				if s.Service == "notification" && d.MessageID == bad.ID && strings.Contains(d.Reason, "JSON") {
					return nil
				}
			}
		}
		return fmt.Errorf("dead letters = %+v, want %s with its reason", list.Items, bad.ID)
	})
	operator.wantProblem(409, "failed-again", "", operator.send("POST", replay, nil, nil))
	// Somebody mends the message, as a new version of the consumer would.
	db, err := sql.Open("pgx", shop.settings[stack.PostgresVar])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	bad.Body, _ = json.Marshal(kernel.CustomerRegistered{CustomerID: "stranger", Name: "A Stranger", Email: "stranger@shop.example"})
	mended, _ := json.Marshal(bad)
	if _, err := db.ExecContext(t.Context(), "UPDATE "+shop.settings[stack.NameVar]+"_notification.dead_letters SET message = $1", string(mended)); err != nil {
		t.Fatal(err)
	}
	operator.want(http.StatusOK, operator.send("POST", replay, nil, nil), nil)
	operator.wantProblem(404, "not-found", "", operator.send("POST", replay, nil, nil))
	var mails struct{ Items []struct{ Recipient string } }
	operator.want(http.StatusOK, operator.send("GET", "/ops/api/mails", nil, nil), &mails)
	if !slices.ContainsFunc(mails.Items, func(m struct{ Recipient string }) bool { return m.Recipient == "stranger@shop.example" }) {
		t.Errorf("mails = %+v, want the one to the stranger", mails.Items)
	}
	// The stranger is nobody's customer, and nobody has published the message: the books must balance again.
	for _, statement := range []string{"mails WHERE customer_id = 'stranger'", "applied WHERE message_id = '" + bad.ID + "'"} {
		if _, err := db.ExecContext(t.Context(), "DELETE FROM "+shop.settings[stack.NameVar]+"_notification."+statement); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRunAlone runs each service without the others and without Consul: it says where it is, answers, and
// drains when it is told to stop.
func TestRunAlone(t *testing.T) {
	settings := stackSettings(t)
	addresses := filepath.Join(t.TempDir(), "services.json")
	if err := os.WriteFile(addresses, []byte(`{"services": {}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	delete(settings, stack.ConsulVar)
	settings[stack.DiscoveryFileVar], settings[stack.PublicURLVar] = addresses, "http://shop.example"
	shop := buildShop(t)
	alone := func(t *testing.T, service, instance string, try func(t *testing.T, a *api), env ...string) {
		t.Parallel()
		cmd := exec.CommandContext(t.Context(), shop, "run", service, "--instance", instance)
		for name, value := range settings {
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Env = append(cmd.Env, env...)
		out := tells(t, cmd)
		var said stack.Instance
		if err := out.Decode(&said); err != nil || said.Service != service || said.Instance != instance || said.PID != cmd.Process.Pid {
			t.Fatalf("said %+v (%v), want %s and process %d", said, err, instance, cmd.Process.Pid)
		}
		a := &api{t: t, url: "http://" + said.Addr}
		for _, path := range []string{"/livez", "/readyz", "/metrics"} {
			eventually(t, func() error {
				if got := a.send("GET", path, nil, nil); got.status != http.StatusOK {
					return fmt.Errorf("GET %s = %d %s, want 200", path, got.status, got.body)
				}
				return nil
			})
		}
		if try != nil {
			try(t, a)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("told to stop, it ended with %v, want exit code 0", err)
		}
	}
	shows := func(t *testing.T, a *api, id, name string) {
		t.Helper()
		eventually(t, func() error { // the listing is a projection, which takes a moment
			var p product
			if got := a.send("GET", "/products/"+id, nil, nil); got.status != http.StatusOK {
				return fmt.Errorf("GET /products/%s = %d %s, want 200", id, got.status, got.body)
			} else if a.want(http.StatusOK, got, &p); p.Name != name {
				t.Fatalf("product %s is called %q, want %q", id, p.Name, name)
			}
			return nil
		})
	}
	for _, service := range append(slices.Clone(assembly.Backends), assembly.Gateway) {
		var try func(t *testing.T, a *api)
		if service == "catalog" {
			try = func(t *testing.T, a *api) {
				shows(t, a, "p-001", "Dovetail saw, small")
				a.want(http.StatusUnauthorized, a.send("POST", "/internal/quote", nil, map[string]any{"product_ids": []string{"p-001"}}), nil)
			}
		}
		t.Run(service, func(t *testing.T) { alone(t, service, service+"-7", try) })
	}
	t.Run("catalog with a replica", func(t *testing.T) {
		primary, standby, kill := testserver.Postgres(t)
		alone(t, "catalog", "catalog-8", func(t *testing.T, a *api) {
			shows(t, a, "p-001", "Dovetail saw, small")
			testStandby(t, a, primary, standby, kill, settings[stack.NameVar]+"_catalog")
		}, stack.PostgresVar+"="+primary, stack.ReplicaVar+"="+standby)
	})
}

// testStandby changes the catalogue while its standby stands still: it shows what the standby has, goes on with what
// it writes, and shows the change when that has arrived. Then the standby dies, and the primary answers.
func testStandby(t *testing.T, a *api, primary, standby string, kill func(), schema string) {
	open := func(url string) *sql.DB {
		db, err := sql.Open("pgx", url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	writes, reads := open(primary), open(standby)
	do := func(db *sql.DB, statement string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	var streams int
	if err := writes.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM pg_stat_replication WHERE state = 'streaming'").Scan(&streams); err != nil || streams != 1 {
		t.Fatalf("%d standbys stream (%v), want 1", streams, err)
	}
	do(reads, "SELECT pg_wal_replay_pause()")
	eventually(t, func() error { // it stops at its next record
		var state string
		if err := reads.QueryRowContext(t.Context(), "SELECT pg_get_wal_replay_pause_state()").Scan(&state); err != nil || state != "paused" {
			return fmt.Errorf("replay is %s (%v), want it paused", state, err)
		}
		return nil
	})
	do(writes, "UPDATE "+schema+".listing_2 SET name = 'Dovetail saw, of today' WHERE id = 'p-001'")
	name := func() string {
		t.Helper()
		var p product
		a.want(http.StatusOK, a.send("GET", "/products/p-001", nil, nil), &p)
		return p.Name
	}
	if got := name(); got != "Dovetail saw, small" {
		t.Errorf("the product is called %q, want what the standby has", got)
	}
	if got := a.send("GET", "/readyz", nil, nil); got.status != http.StatusOK {
		t.Errorf("GET /readyz = %d %s, want 200", got.status, got.body)
	}
	do(reads, "SELECT pg_wal_replay_resume()")
	eventually(t, func() error {
		if got := name(); got != "Dovetail saw, of today" {
			return fmt.Errorf("the product is called %q, want what the primary has", got)
		}
		return nil
	})

	kill()
	do(writes, "UPDATE "+schema+".listing_2 SET name = 'Dovetail saw, of tomorrow' WHERE id = 'p-001'")
	for range 20 { // the breaker opens on the way
		if got := name(); got != "Dovetail saw, of tomorrow" {
			t.Fatalf("without its standby the product is called %q, want what the primary has", got)
		}
	}
	if got := a.send("GET", "/readyz", nil, nil); got.status != http.StatusOK {
		t.Errorf("without a standby GET /readyz = %d %s, want 200", got.status, got.body)
	}
	if got := a.send("GET", "/metrics", nil, nil); !strings.Contains(string(got.body), `dovetail_policy_breaker_state{key="replica",name="sql",state="open"} 1`) &&
		!strings.Contains(string(got.body), `dovetail_policy_breaker_state{key="replica",name="sql",state="half-open"} 1`) {
		t.Errorf("the metrics do not tell that the replica's breaker is open:\n%s", got.body)
	}
}

// TestRunSaysWhatIsMissing starts services without what they need.
func TestRunSaysWhatIsMissing(t *testing.T) {
	good := []string{
		"SHOP_PUBLIC_URL=http://shop.example", "SHOP_SERVICE_TOKEN=" + strings.Repeat("x", 32), "SHOP_POSTGRES_DSN=postgres://a:hidden@127.0.0.1:1/b",
		"SHOP_RABBITMQ_URL=amqp://a:hidden@127.0.0.1:1/b", "SHOP_REDIS_URL=redis://:hidden@127.0.0.1:1/0", "SHOP_CONSUL_ADDR=127.0.0.1:1",
		"SHOP_ADMIN_PASSWORD=hidden-password", "SHOP_OPERATOR_PASSWORD=hidden-password",
	}
	shop := buildShop(t)
	run := func(t *testing.T, code int, service string, env []string, flags ...string) string {
		cmd := exec.CommandContext(t.Context(), shop, append([]string{"run", service}, flags...)...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != code {
			t.Fatalf("ended with %v, want exit code %d; said %s", err, code, out)
		}
		if strings.Contains(string(out), "hidden") {
			t.Errorf("said %s: that shows a secret", out)
		}
		return string(out)
	}
	for i, variable := range good {
		name, _, _ := strings.Cut(variable, "=")
		t.Run(name+" is missing", func(t *testing.T) {
			if out := run(t, 1, "customer", slices.Delete(slices.Clone(good), i, i+1)); !strings.Contains(out, name) {
				t.Errorf("said %q, want the variable named", out)
			}
		})
		t.Run(name+" is wrong", func(t *testing.T) {
			wrong := slices.Clone(good)
			wrong[i] = name + "=hidden"
			if strings.HasSuffix(name, "PASSWORD") {
				wrong[i] = name + "=" + strings.Repeat("hidden", 20)
			}
			if out := run(t, 1, "customer", wrong); !strings.Contains(out, name) {
				t.Errorf("said %q, want the variable named", out)
			}
		})
	}
	t.Run("a service token that no header can carry", func(t *testing.T) {
		if out := run(t, 1, "order", append(good, "SHOP_SERVICE_TOKEN="+strings.Repeat("hidden'", 6))); !strings.Contains(out, "SHOP_SERVICE_TOKEN") || !strings.Contains(out, "letters") {
			t.Errorf("said %q, want the variable named and what it may have", out)
		}
	})
	t.Run("nobody is there", func(t *testing.T) {
		if out := run(t, 1, "order", good); !strings.Contains(out, "SHOP_CONSUL_ADDR") {
			t.Errorf("said %q, want the variable of the server that does not answer", out)
		}
	})
	t.Run("it listens everywhere and does not say where it is", func(t *testing.T) {
		if out := run(t, 1, "order", good, "--listen", "0.0.0.0:0"); !strings.Contains(out, "reach") {
			t.Errorf("said %q, want it to ask where others reach it", out)
		}
	})
	t.Run("there is no such service", func(t *testing.T) {
		if out := run(t, 2, "sales", good); !strings.Contains(out, "sales") || !strings.Contains(out, "inventory") {
			t.Errorf("said %q, want the name and the choice", out)
		}
	})
	t.Run("all that is missing at once", func(t *testing.T) {
		out := run(t, 1, "order", nil)
		for _, name := range []string{"SHOP_PUBLIC_URL", "SHOP_SERVICE_TOKEN", "SHOP_POSTGRES_DSN", "SHOP_RABBITMQ_URL", "SHOP_CONSUL_ADDR"} {
			if !strings.Contains(out, name) {
				t.Errorf("said %q, want %s named", out, name)
			}
		}
	})
}
