// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"testing"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencytest"
	"github.com/dovetail-go/dovetail/rediskit"
)

func TestCommands(t *testing.T) {
	idempotencytest.RunStore(t, func(t *testing.T) idempotency.Store {
		c, cfg := client(t)
		s, err := rediskit.NewCommands(c, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestCommandsSurviveARestart(t *testing.T) {
	srv := newServer(t)
	s, err := rediskit.NewCommands(srv.client(), rediskit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := idempotency.Command{Key: idempotency.Key{ID: "k"}, Fingerprint: []byte("print")}
	claim, err := s.Begin(t.Context(), cmd)
	if err != nil {
		t.Fatal(err)
	}
	srv.kill()
	if err := s.Complete(t.Context(), claim, []byte("one")); err == nil {
		t.Fatal("Complete while the server is down = nil, want an error")
	}
	srv.start() // it has lost its scripts, not its data
	if err := s.Complete(t.Context(), claim, []byte("one")); err != nil {
		t.Fatalf("Complete after the restart = %v, want nil", err)
	}
	if again, err := s.Begin(t.Context(), cmd); err != nil || !again.Done || string(again.Result) != "one" {
		t.Errorf("Begin = %+v, %v, want it done with the result", again, err)
	}
}
