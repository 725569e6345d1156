// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/chaos/internal/server"
)

type end struct {
	name string
	do   func()
}

// ends are what a server has to recover from. The graceful one comes first: see [server.Rabbit].
func ends(s *server.Server) []end { return []end{{"Stop", s.Stop}, {"Kill", s.Kill}} }

func TestPostgresKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	s := server.StartPostgres(t)
	testSQL(t, "pgx", s.DSN, &s.Server, append(ends(&s.Server), end{"StopImmediate", s.StopImmediate}))
}

func TestMariaDBKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	s := server.StartMariaDB(t)
	testSQL(t, "mysql", s.DSN, &s.Server, ends(&s.Server))
}

func testSQL(t *testing.T, driver, dsn string, s *server.Server, ends []end) {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	exec := func(query string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), query); err != nil {
			t.Fatalf("%s: %v", query, err)
		}
	}
	exec("CREATE TABLE kept (name VARCHAR(20))")
	for i, end := range ends {
		exec("INSERT INTO kept VALUES ('" + end.name + "')")
		end.do()
		if err := db.PingContext(t.Context()); err == nil {
			t.Errorf("after %s it answers", end.name)
		}
		s.Start()
		_ = db.PingContext(t.Context()) // one connection of the pool may still be a dead one
		var got int
		if err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM kept").Scan(&got); err != nil || got != i+1 {
			t.Errorf("after %s: %d rows and %v, want %d", end.name, got, err, i+1)
		}
	}
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := db.PingContext(ctx); err == nil {
		t.Error("a paused server answers")
	}
	s.Resume()
	_ = db.PingContext(t.Context())
	exec("INSERT INTO kept VALUES ('resumed')")
}

func TestRabbitKeepsWhatWasConfirmed(t *testing.T) {
	t.Parallel()
	s := server.StartRabbit(t)
	publish := func() {
		t.Helper()
		conn, err := amqp.Dial(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclare("kept", true, false, false, false, amqp.Table{"x-queue-type": "quorum"}); err != nil {
			t.Fatal(err)
		}
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		c, err := ch.PublishWithDeferredConfirmWithContext(t.Context(), "", "kept", true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
		if err != nil {
			t.Fatal(err)
		}
		if ok, err := c.WaitContext(t.Context()); !ok || err != nil {
			t.Fatalf("confirmed = %v, %v", ok, err)
		}
	}
	for i, end := range ends(&s.Server) {
		publish()
		end.do()
		s.Start()
		conn, err := amqp.Dial(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		deliveries, err := ch.ConsumeWithContext(t.Context(), "kept", "", false, false, false, false, nil)
		if err != nil {
			t.Fatalf("after %s: %v", end.name, err)
		}
		for range i + 1 {
			if _, ok := <-deliveries; !ok {
				t.Fatalf("after %s: the broker ends the delivery, want %d messages", end.name, i+1)
			}
		}
		_ = conn.Close() // they go back
	}
}

func TestRedisKeepsWhatWasAnswered(t *testing.T) {
	t.Parallel()
	s := server.StartRedis(t)
	say := func(command, want string) {
		t.Helper()
		conn, err := net.Dial("tcp", s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = fmt.Fprintf(conn, "AUTH %s\r\n%s\r\n", s.Password, command)
		got := make([]byte, len("+OK\r\n"+want))
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := conn.Read(got); err != nil || string(got[:n]) != "+OK\r\n"+want {
			t.Errorf("%s = %q, %v, want %q", command, got[:n], err, want)
		}
	}
	for _, end := range ends(&s.Server) {
		say("SET key "+end.name, "+OK\r\n")
		end.do()
		s.Start()
		say("GET key", fmt.Sprintf("$%d\r\n%s\r\n", len(end.name), end.name))
	}
}
