// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"context"
	"slices"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

func TestBacklog(t *testing.T) {
	s := open(t, rabbitkit.Config{})
	mails := messaging.Subscription{Group: "mails", Topics: []string{"t"}, Prefetch: 1, Concurrency: 1}
	if err := s.Declare(t.Context(), mails); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Publish(t.Context(), msg("t", "")); err != nil {
			t.Fatal(err)
		}
	}
	// A queue has its messages a moment after the confirmation.
	becomes := func(want ...rabbitkit.Backlog) {
		t.Helper()
		var got []rabbitkit.Backlog
		eventually(t, func() bool {
			var err error
			if got, err = s.Backlog(t.Context(), "mails", "nobody"); err != nil {
				t.Fatalf("Backlog = %v, want nil", err)
			}
			return slices.Equal(got, want)
		}, "Backlog is %v", want)
	}
	none := rabbitkit.Backlog{Group: "nobody"}
	becomes(rabbitkit.Backlog{Group: "mails", Waiting: 3}, none)

	begun, goOn := make(chan struct{}, 3), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Subscribe(ctx, mails, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error {
			begun <- struct{}{}
			<-goOn
			return nil
		}))
	}()
	<-begun
	becomes(rabbitkit.Backlog{Group: "mails", Waiting: 2, Subscribers: 1}, none) // one is in hand
	close(goOn)
	becomes(rabbitkit.Backlog{Group: "mails", Subscribers: 1}, none)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Subscribe = %v, want nil", err)
	}

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if got, err := s.Backlog(cancelled, "mails"); err == nil {
		t.Errorf("Backlog with a context that has ended = %v, nil; want an error", got)
	}
}
