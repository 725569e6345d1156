// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"errors"
	"strings"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
)

// This file is the side of commands: what staff does to a product. Each product is a stream of
// events; an event carries the whole product as it is since then, and is stored as it is told
// to others.

// changed is what happens to a product, its first appearance included.
type changed kernel.ProductChanged

// What can be asked of a product.
type (
	add     struct{ product kernel.ProductChanged }
	revise  struct{ draft draft }
	command any
)

// errUnknown says that there is no such product.
var errUnknown = errors.New("no such product")

// decide returns what happens when a command is given. The state is the last event; without one
// there is no product. A change to what is there already is none.
func decide(is changed, c command) ([]changed, error) {
	switch c := c.(type) {
	case add:
		if is.Revision == 0 {
			c.product.Revision, c.product.Currency = 1, kernel.Currency
			return []changed{changed(c.product)}, nil
		}
	case revise:
		if is.Revision == 0 {
			return nil, errUnknown
		}
		next := is
		next.InitialStock = 0           // that of its first appearance
		next.Currency = kernel.Currency // older events do not say so
		if c.draft.Name != nil {
			next.Name = strings.TrimSpace(*c.draft.Name)
		}
		if c.draft.Category != nil {
			next.Category = strings.TrimSpace(*c.draft.Category)
		}
		if c.draft.Price != nil {
			next.Price = *c.draft.Price
		}
		if next.Name != is.Name || next.Category != is.Category || next.Price != is.Price {
			next.Revision++
			return []changed{next}, nil
		}
	}
	return nil, nil
}

func evolve(_, happened changed) changed { return happened }

const (
	streamPrefix = "product-"
	changedType  = kernel.TopicProductChanged + ".v1"
)

// products is the catalogue as its staff sees it.
type products struct {
	log   *eventsource.Log
	codec *eventsource.Codec
	*eventsource.Repository[changed, command, changed]
}

// newProducts makes the tables. Each event is told to others in the transaction that stores it.
func newProducts(ctx context.Context, env platform.Env, bus *platform.Bus) (*products, error) {
	store, err := eventsourcesql.New(env.DB, platform.DialectOf(env.DB), eventsourcesql.Config{})
	if err != nil {
		return nil, err
	}
	if err := store.Migrate(ctx); err != nil {
		return nil, err
	}
	log, err := eventsource.New(store, eventsource.Config{
		Within: eventsource.Publish(bus.Outbox(), func(stream string, e eventsource.Event) *messaging.Message {
			return bus.Recorded(kernel.TopicProductChanged, strings.TrimPrefix(stream, streamPrefix), e)
		}),
	})
	if err != nil {
		return nil, err
	}
	codec, err := eventsource.NewCodec(eventsource.Type[changed](changedType))
	if err != nil {
		return nil, err
	}
	begin := func(ctx context.Context) (eventsource.Transaction, error) { return env.DB.BeginTx(ctx, nil) }
	repository, err := eventsource.NewRepository(log, begin, codec, eventsource.Decider[changed, command, changed]{
		Zero: func() changed { return changed{} }, Decide: decide, Evolve: evolve,
	}, eventsource.RepositoryConfig{})
	if err != nil {
		return nil, err
	}
	return &products{log: log, codec: codec, Repository: repository}, nil
}
