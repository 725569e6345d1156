// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsourcemem_test

import (
	"context"
	"testing"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcetest"
)

func TestStore(t *testing.T) {
	eventsourcetest.Run(t, func(*testing.T) eventsourcetest.Subject {
		s := eventsourcemem.New()
		return eventsourcetest.Subject{Store: s, Begin: func(context.Context) (eventsource.Transaction, error) { return s.Begin(), nil }}
	})
}

func TestModels(t *testing.T) {
	eventsourcetest.RunModels(t, func(*testing.T) eventsource.Models[*eventsourcemem.ModelTx] { return eventsourcemem.NewModels() })
}
