// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagamem_test

import (
	"context"
	"fmt"

	"github.com/dovetail-go/dovetail/saga"
	"github.com/dovetail-go/dovetail/saga/sagamem"
)

// A test of a definition needs no database.
func Example() {
	type transfer struct{ Amount int }
	move := func(context.Context, saga.Attempt, *transfer) error { return nil }
	definition := saga.Must(saga.New("transfer", 1,
		saga.Call("debit", move, saga.Undo(move)),
		saga.Pivot(saga.Call("credit", move)),
	))
	engine, err := saga.NewEngine(sagamem.New(), saga.Config{}, definition)
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()

	if err := saga.Start(ctx, engine, nil, definition, "t-1", transfer{Amount: 5}); err != nil {
		fmt.Println(err)
		return
	}
	engine.Wake()
	in, err := engine.Wait(ctx, "t-1")
	fmt.Println(in.Status, err)
	stop()
	fmt.Println(<-ended)
	// Output:
	// completed <nil>
	// <nil>
}
