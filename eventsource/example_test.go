// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package eventsource_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcemem"
)

type (
	opened    struct{ Owner string }
	deposited struct{ Amount int }
	withdrawn struct{ Amount int }

	account struct {
		Open    bool
		Balance int
	}
	withdraw struct{ Amount int }
)

var errFunds = errors.New("not enough money")

// accounts is the logic of an account, without a database.
var accounts = eventsource.Decider[account, withdraw, any]{
	Zero: func() account { return account{} },
	Decide: func(a account, c withdraw) ([]any, error) {
		if c.Amount > a.Balance {
			return nil, errFunds
		}
		return []any{withdrawn(c)}, nil
	},
	Evolve: func(a account, e any) account {
		switch e := e.(type) {
		case opened:
			a.Open = true
		case deposited:
			a.Balance += e.Amount
		case withdrawn:
			a.Balance -= e.Amount
		}
		return a
	},
}

func codec() *eventsource.Codec {
	c, err := eventsource.NewCodec(
		eventsource.Type[opened]("account.opened.v1"),
		eventsource.Type[deposited]("account.deposited.v1"),
		eventsource.Type[withdrawn]("account.withdrawn.v1"),
	)
	if err != nil {
		log.Fatal(err)
	}
	return c
}

// A command is decided on the state that the events make.
func Example() {
	ctx := context.Background()
	store := eventsourcemem.New()
	events, err := eventsource.New(store, eventsource.Config{})
	if err != nil {
		log.Fatal(err)
	}
	begin := func(context.Context) (eventsource.Transaction, error) { return store.Begin(), nil }
	repository, err := eventsource.NewRepository(events, begin, codec(), accounts, eventsource.RepositoryConfig{})
	if err != nil {
		log.Fatal(err)
	}

	// Events that have happened before.
	tx := store.Begin()
	for _, e := range []any{opened{"ada"}, deposited{100}} {
		event, err := codec().Encode(ctx, e)
		if err != nil {
			log.Fatal(err)
		}
		if err := events.Append(ctx, tx, "account-1", eventsource.Any, event); err != nil {
			log.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}

	for _, amount := range []int{70, 70} {
		a, err := repository.Do(ctx, "account-1", withdraw{amount})
		fmt.Println("balance", a.Value.Balance, "at version", a.Version, err)
	}
	for e, err := range events.Read(ctx, "account-1", 0) {
		fmt.Println(e.Version, e.Type, string(e.Data), err)
	}
	// Output:
	// balance 30 at version 3 <nil>
	// balance 30 at version 3 not enough money
	// 1 account.opened.v1 {"Owner":"ada"} <nil>
	// 2 account.deposited.v1 {"Amount":100} <nil>
	// 3 account.withdrawn.v1 {"Amount":70} <nil>
}

// An append is part of the caller's transaction and says where it expects the stream.
func ExampleLog_Append() {
	ctx := context.Background()
	store := eventsourcemem.New()
	events, err := eventsource.New(store, eventsource.Config{})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		tx := store.Begin() // db.BeginTx in earnest
		err := events.Append(ctx, tx, "order-42", eventsource.None, eventsource.Event{Type: "order.placed.v1", Data: []byte(`{"total":99}`)})
		if err == nil {
			err = tx.Commit()
			events.Wake()
		}
		var lost *eventsource.VersionError
		fmt.Println(errors.As(err, &lost), err)
	}
	// Output:
	// false <nil>
	// true eventsource: stream "order-42" is not at the expected version (none)
}

// An old type was renamed, and another split in two: old streams still load.
func ExampleUpcast() {
	type (
		renamed struct{ Name string }
		moved   struct{ City string }
	)
	c, err := eventsource.NewCodec(
		eventsource.Type[renamed]("person.renamed.v2"),
		eventsource.Type[moved]("person.moved.v1"),
		eventsource.Rename("person.called.v1", "person.renamed.v2"),
		eventsource.Upcast("person.changed.v1", func(e eventsource.Encoded) ([]eventsource.Encoded, error) {
			var old struct{ Name, City string }
			if err := json.Unmarshal(e.Data, &old); err != nil {
				return nil, err
			}
			name, err := json.Marshal(renamed{old.Name})
			if err != nil {
				return nil, err
			}
			city, err := json.Marshal(moved{old.City})
			return []eventsource.Encoded{{Type: "person.renamed.v2", Data: name}, {Type: "person.moved.v1", Data: city}}, err
		}),
	)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range []eventsource.Event{
		{Type: "person.called.v1", Data: []byte(`{"Name":"Ada"}`)},
		{Type: "person.changed.v1", Data: []byte(`{"Name":"Ada King","City":"London"}`)},
	} {
		values, err := c.Decode(context.Background(), e)
		fmt.Println(values, err)
	}
	// Output:
	// [{Ada}] <nil>
	// [{Ada King} {London}] <nil>
}

// A read model of all balances, which is waited for after a command.
func ExampleProjector() {
	ctx, stop := context.WithCancel(context.Background())
	store := eventsourcemem.New()
	events, err := eventsource.New(store, eventsource.Config{})
	if err != nil {
		log.Fatal(err)
	}
	models, balances := eventsourcemem.NewModels(), map[string]int{}
	projector, err := eventsource.NewProjector(events, models, eventsource.Projection[*eventsourcemem.ModelTx]{
		Name:   "balances",
		Filter: eventsource.Filter{Types: codec().Types()},
		Handle: eventsource.Typed(codec(), func(_ context.Context, tx *eventsourcemem.ModelTx, e deposited, in eventsource.Recorded) error {
			tx.OnCommit(func() { balances[in.Stream] += e.Amount }) // an UPDATE in earnest
			return nil
		}),
	}, eventsource.ProjectorConfig{})
	if err != nil {
		log.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- projector.Run(ctx) }()

	tx := store.Begin()
	for _, amount := range []int{30, 12} {
		e, err := codec().Encode(ctx, deposited{amount})
		if err != nil {
			log.Fatal(err)
		}
		if err := events.Append(ctx, tx, "account-1", eventsource.Any, e); err != nil {
			log.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		log.Fatal(err)
	}
	events.Wake()
	_, cursor, err := events.End(ctx, "account-1")
	if err == nil {
		err = eventsource.WaitFor(ctx, models, "balances", cursor)
	}
	stop()
	fmt.Println(<-done, err, balances)
	// Output: <nil> <nil> map[account-1:42]
}
