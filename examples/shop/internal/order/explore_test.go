// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"testing"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

// TestWhateverHappensToTheSagas searches everything that can happen to the two definitions: crashes
// between any two writes, two nodes, lost, repeated and late requests, refusals, cancellation.
func TestWhateverHappensToTheSagas(t *testing.T) {
	s := &Service{}
	place, err := s.definePlaceOrder()
	if err != nil {
		t.Fatal(err)
	}
	cancel, err := s.defineCancelOrder()
	if err != nil {
		t.Fatal(err)
	}
	for name, def := range map[string]saga.Registered{"place-order": place, "cancel-order": cancel} {
		t.Run(name, func(t *testing.T) { sagatest.Explore(t, def, sagatest.Bounds{}) })
	}
}
