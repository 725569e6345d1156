// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shred_test

import (
	"context"
	"fmt"
	"log"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/shred"
)

func Example() {
	type registered struct {
		Customer string
		Name     shred.Personal[string]
		Plan     string
	}
	ctx := context.Background()
	vault, err := shred.NewVault(shred.NewMemory(), shred.Config{}) // shredsql in earnest
	if err != nil {
		log.Fatal(err)
	}
	codec, err := eventsource.NewCodec(eventsource.Type[registered]("customer.registered.v1"), eventsource.Seal(vault))
	if err != nil {
		log.Fatal(err)
	}
	event, err := codec.Encode(ctx, registered{Customer: "c-7", Name: shred.New("c-7", "Ada King"), Plan: "large"})
	if err != nil {
		log.Fatal(err)
	}
	show := func() {
		values, err := codec.Decode(ctx, event)
		if err != nil {
			log.Fatal(err)
		}
		r := values[0].(registered)
		fmt.Println(r, r.Name.Or("(forgotten)"))
	}
	show()
	if err := vault.Forget(ctx, "c-7", "asked for it"); err != nil {
		log.Fatal(err)
	}
	show()
	// Output:
	// {c-7 [personal] large} Ada King
	// {c-7 [personal] large} (forgotten)
}
