// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql" // the driver "mysql"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/dovetail-go/dovetail/chaos/internal/process"
	"github.com/dovetail-go/dovetail/chaos/internal/server"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencysql"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
	"github.com/dovetail-go/dovetail/outbox"
	"github.com/dovetail-go/dovetail/outbox/outboxsql"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

func TestMain(m *testing.M) {
	process.Main(m, map[string]func([]string) error{"relay": relay, "consumer": consumer})
}

const (
	// lease is the relays', and heartbeat the consumers' sign of life to the broker: a
	// process that is stopped for longer loses its work to others.
	lease     = time.Second
	heartbeat = time.Second
)

// A world is where the processes of a test meet: a database and a broker, each behind a network
// with faults.
type world struct {
	driver, dsn, broker string

	// only in the test's own process
	toDatabase, toBroker *messagingtest.Proxy
}

func newWorld(t *testing.T, driver, dsn, addr string, broker *server.Rabbit) world {
	t.Helper()
	through := func(url, addr string) (string, *messagingtest.Proxy) {
		p, err := messagingtest.StartProxy(addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return strings.Replace(url, addr, p.Addr(), 1), p
	}
	w := world{driver: driver}
	w.dsn, w.toDatabase = through(dsn, addr)
	w.broker, w.toBroker = through(broker.URL, broker.Addr)
	return w
}

func (w world) args(more ...string) []string {
	return append([]string{w.driver, w.dsn, w.broker}, more...)
}

func worldOf(args []string) world { return world{driver: args[0], dsn: args[1], broker: args[2]} }

// networkFault breaks the way to the database or the broker for a moment.
func (w world) networkFault() {
	p := w.toDatabase
	fault := rand.IntN(3)
	if rand.IntN(2) == 0 {
		// Of a half-open connection the broker's client learns by its heartbeat. A
		// database's driver leaves that to the kernel, which a proxy cannot play.
		p, fault = w.toBroker, rand.IntN(5)
	}
	pause := func() { time.Sleep(time.Duration(50+rand.IntN(200)) * time.Millisecond) }
	switch fault {
	case 0:
		p.Cut()
	case 1: // what was asked for is done, and nobody learns of it
		p.Drop(messagingtest.ToClient)
		pause()
		p.Cut()
		p.Heal()
	case 2:
		p.Stall(messagingtest.ToClient)
		pause()
		p.Heal()
	case 3:
		p.HalfOpen(messagingtest.ToServer) // clients hear nothing more
	default:
		p.HalfOpen(messagingtest.ToClient) // servers hear nothing more
	}
}

// dialects by the name of their driver: the two packages have one type for them.
var dialects = map[string]outboxsql.Dialect{"pgx": outboxsql.Postgres, "mysql": outboxsql.MySQL}

func (w world) open() (*sql.DB, *outboxsql.Store, *idempotencysql.Store, error) {
	db, err := sql.Open(w.driver, w.dsn)
	if err != nil {
		return nil, nil, nil, err
	}
	db.SetMaxOpenConns(20)
	db.SetMaxIdleConns(20)
	rows, err := outboxsql.New(db, dialects[w.driver], outboxsql.Config{})
	if err != nil {
		return nil, nil, nil, err
	}
	inbox, err := idempotencysql.New(db, dialects[w.driver], idempotencysql.Config{})
	return db, rows, inbox, err
}

func (w world) client() (*rabbitkit.Client, error) {
	return rabbitkit.New(w.broker, rabbitkit.Config{Heartbeat: heartbeat, Timeout: 5 * time.Second, MaxReconnectDelay: 500 * time.Millisecond})
}

// ledger is the group of all consumers.
var ledger = messaging.Subscription{
	Group: "ledger", Topics: []string{"entry.#"}, Ordered: true, Concurrency: 32, Prefetch: 500, MaxDeliveries: -1,
	Backoff: messaging.Backoff{Base: 20 * time.Millisecond, Max: time.Second},
}

// relay is a process that publishes until it is killed. Its last argument is how: slow, or at once.
func relay(args []string) error {
	w := worldOf(args)
	_, rows, _, err := w.open()
	if err != nil {
		return err
	}
	client, err := w.client()
	if err != nil {
		return err
	}
	box, err := outbox.New(rows, outbox.Config{})
	if err != nil {
		return err
	}
	var pub messaging.AsyncPublisher = client
	if args[3] == "slow" {
		pub = slowly{client}
	}
	r, err := outbox.NewRelay(box, pub, outbox.RelayConfig{
		Lease: lease, Poll: 100 * time.Millisecond, PublishTimeout: 5 * time.Second, Backoff: messaging.Backoff{Base: 20 * time.Millisecond, Max: time.Second},
	})
	if err != nil {
		return err
	}
	return r.Run(context.Background())
}

// moment is how long a process dawdles between two steps, for a kill to hit.
func moment() time.Duration { return time.Duration(rand.IntN(10)) * time.Millisecond }

// slowly takes time between the broker's confirmation and the relay's next step, on both ways
// of publishing: without a goroutine for each message, as a relay does where it can, and with
// one, where the client's window is full.
type slowly struct{ messaging.AsyncPublisher }

func (s slowly) Publish(ctx context.Context, msgs ...*messaging.Message) error {
	defer func() { time.Sleep(moment()) }()
	return s.AsyncPublisher.Publish(ctx, msgs...)
}

func (s slowly) PublishAsync(ctx context.Context, m *messaging.Message, done func(error)) bool {
	return s.AsyncPublisher.PublishAsync(ctx, m, func(err error) {
		time.AfterFunc(moment(), func() { done(err) })
	})
}

// consumer is a process that enters messages into the ledger until it is killed. Its last
// arguments are the file that it writes a line into for each delivery, and how it consumes.
func consumer(args []string) error {
	w := worldOf(args)
	db, _, inbox, err := w.open()
	if err != nil {
		return err
	}
	client, err := w.client()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(args[3], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	enter := func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		n, err := strconv.Atoi(d.Message.Header["n"])
		if err != nil {
			return messaging.Reject(err)
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO ledger (account, n, message) VALUES ("+w.placeholders(3)+")", d.Message.Key, n, d.Message.ID)
		return err
	}
	handler := idempotency.Consumer(db, inbox, enter)
	if args[4] == "batch" {
		if handler, err = messaging.Batch(messaging.BatchConfig{}, idempotency.BatchConsumer(db, inbox, enter)); err != nil {
			return err
		}
	}
	return client.Subscribe(context.Background(), ledger, messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
		if _, err := fmt.Fprintln(file, d.Message.ID); err != nil {
			return err
		}
		defer func() { time.Sleep(moment()) }() // between the effect and the acknowledgement
		return handler.Handle(ctx, d)
	}))
}

func (w world) placeholders(n int) string {
	text := ""
	for i := range n {
		if i > 0 {
			text += ", "
		}
		if w.driver == "pgx" {
			text += "$" + strconv.Itoa(i+1)
		} else {
			text += "?"
		}
	}
	return text
}

// setUp makes the tables and the group, which has to be there before anything is published.
func (w world) setUp(t *testing.T) *sql.DB {
	t.Helper()
	db, rows, inbox, err := w.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	serial := map[string]string{"pgx": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", "mysql": "BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY"}[w.driver]
	for _, step := range []func() error{
		func() error { return rows.Migrate(t.Context()) },
		func() error { return inbox.Migrate(t.Context()) },
		func() error {
			_, err := db.ExecContext(t.Context(), "CREATE TABLE account (name VARCHAR(20) PRIMARY KEY, n INTEGER NOT NULL)")
			return err
		},
		func() error {
			_, err := db.ExecContext(t.Context(), "CREATE TABLE ledger (seq "+serial+", account VARCHAR(20) NOT NULL, n INTEGER NOT NULL, message VARCHAR(64) NOT NULL)")
			return err
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	for k := range keys {
		if _, err := db.ExecContext(t.Context(), "INSERT INTO account (name, n) VALUES ('"+account(k)+"', 0)"); err != nil {
			t.Fatal(err)
		}
	}
	client, err := w.client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Declare(t.Context(), ledger); err != nil {
		t.Fatal(err)
	}
	return db
}

const (
	keys      = 50
	producers = 4
)

func account(k int) string { return "account-" + strconv.Itoa(k) }

// A producer changes an account and enqueues what it did in one transaction, again and
// again. Many of them change the same accounts. What was committed is what the database
// says: a commit may have happened although it returned an error.
type producer struct {
	world
	db    *sql.DB
	box   *outbox.Outbox
	pause time.Duration // between two transactions

	mu                          sync.Mutex
	left                        int
	rolledBack, failed, commits int
}

func (p *producer) run(ctx context.Context) {
	for ctx.Err() == nil {
		p.mu.Lock()
		n := min(p.left, 1+rand.IntN(4))
		p.left -= n
		p.mu.Unlock()
		if n == 0 {
			return
		}
		rollback := rand.IntN(10) == 0
		err := p.transact(ctx, n, rollback)
		p.mu.Lock()
		switch {
		case err != nil:
			p.failed++
		case rollback:
			p.rolledBack++
		default:
			p.commits++
		}
		if err != nil || rollback {
			p.left += n
		}
		p.mu.Unlock()
		time.Sleep(time.Duration(rand.Int64N(int64(2*p.pause) + 1)))
	}
}

// transact makes n changes of one account.
func (p *producer) transact(ctx context.Context, n int, rollback bool) error {
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	name := account(rand.IntN(keys))
	// The lock on the account comes first, and then the messages about it.
	if _, err := tx.ExecContext(ctx, "UPDATE account SET n = n + "+strconv.Itoa(n)+" WHERE name = '"+name+"'"); err != nil {
		return err
	}
	last := 0
	if err := tx.QueryRowContext(ctx, "SELECT n FROM account WHERE name = '"+name+"'").Scan(&last); err != nil {
		return err
	}
	msgs := make([]*messaging.Message, n)
	for i := range msgs {
		msgs[i] = &messaging.Message{
			Topic: "entry.made", Key: name, Header: messaging.Header{"n": strconv.Itoa(last - n + 1 + i)}, Body: []byte(`{"amount": 100}`),
		}
	}
	if err := p.box.Enqueue(ctx, tx, msgs...); err != nil {
		return err
	}
	if rollback {
		return tx.Rollback()
	}
	return tx.Commit()
}
