// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/messaging"
)

type Product struct {
	ID    string
	Price int
}

var errNoProduct = errors.New("no such product")

type productTable interface {
	Product(ctx context.Context, id string) (Product, error)
}

func oldProduct(ctx context.Context, table productTable, id string) (Product, error) {
	// snippet: cache/before
	return table.Product(ctx, id)
	// end
}

// snippet: cache/after
type Products struct {
	table productTable
	cache *cache.Cache[Product]
	load  cache.Load[Product] // one value, not a closure per call: a hit allocates nothing
}

// NewProducts takes a store that processes share, such as rediskit.NewCache, or nil.
func NewProducts(table productTable, store cache.Store) (*Products, error) {
	c, err := cache.New("products", cache.Config[Product]{
		TTL:      time.Minute,
		StaleFor: time.Hour, // served for so long while the database is down
		Store:    store,
	})
	if err != nil {
		return nil, err
	}
	return &Products{table: table, cache: c, load: func(ctx context.Context, id string) (Product, error) {
		p, err := table.Product(ctx, id)
		if errors.Is(err, errNoProduct) {
			return p, cache.ErrNotFound // remembered too, for NegativeTTL
		}
		return p, err
	}}, nil
}

func (p *Products) Product(ctx context.Context, id string) (Product, error) {
	return p.cache.Get(ctx, id, p.load)
}

// Changed is called after the commit of a change.
func (p *Products) Changed(ctx context.Context, id string) error {
	return p.cache.Invalidate(ctx, id)
}

// end

// snippet: cache/events
// follow makes every process forget what changed elsewhere: a group of its own for each.
func (p *Products) follow(ctx context.Context, broker messaging.Subscriber, process string) error {
	changes := messaging.Subscription{Group: "products-cache-" + process, Topics: []string{"product.changed"}, Temporary: true}
	return broker.Subscribe(ctx, changes, p.cache.Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) {
		return []string{d.Message.Key}, nil
	}))
}

// end

type slowTable struct {
	mu    sync.Mutex
	reads int
	down  bool
}

func (s *slowTable) Product(_ context.Context, id string) (Product, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.down {
		return Product{}, errors.New("down")
	}
	if id == "" {
		return Product{}, errNoProduct
	}
	return Product{ID: id, Price: 10 * s.reads}, nil
}

// snippet: cache/test
func TestProductsAreReadOnce(t *testing.T) {
	table := &slowTable{}
	products, err := NewProducts(table, nil)
	if err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	for range 100 {
		readers.Go(func() {
			if p, err := products.Product(t.Context(), "7"); err != nil || p.Price != 10 {
				t.Errorf("Product = %v, %v", p, err)
			}
		})
	}
	readers.Wait()
	if table.reads != 1 {
		t.Errorf("%d reads for a hundred readers, want 1", table.reads)
	}
	if err := products.Changed(t.Context(), "7"); err != nil {
		t.Fatal(err)
	}
	if p, err := products.Product(t.Context(), "7"); err != nil || p.Price != 20 {
		t.Errorf("after a change Product = %v, %v, want the new one", p, err)
	}
}

// end

func TestCacheGuide(t *testing.T) {
	table := &slowTable{}
	if _, err := oldProduct(t.Context(), table, "7"); err != nil {
		t.Error(err)
	}
	products, err := NewProducts(table, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := products.Product(t.Context(), ""); !errors.Is(err, cache.ErrNotFound) {
			t.Errorf("Product = %v, want ErrNotFound", err)
		}
	}
	if table.reads != 2 {
		t.Errorf("%d reads, want one of each", table.reads)
	}
	if _, err := products.Product(t.Context(), "7"); err != nil {
		t.Error(err)
	}

	broker := openBroker(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- products.follow(ctx, broker, "a") }()
	changed := &messaging.Message{ID: messaging.NewID(), Topic: "product.changed", Key: "7"}
	for errors.Is(broker.Publish(ctx, changed), messaging.ErrUnroutable) { // until the group is bound
		time.Sleep(time.Millisecond)
	}
	if p, err := products.Product(ctx, "7"); err != nil || p.Price != 40 {
		t.Errorf("Product = %v, %v, want what was loaded after the event", p, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
