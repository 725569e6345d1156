// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
)

// How old an answer about the catalogue may be: for a moment always, and for long while the
// catalogue does not answer. A price is visible within a second whatever becomes of the event that
// tells of it; the event makes it quicker.
const (
	catalogueFresh = 500 * time.Millisecond
	catalogueStale = 10 * time.Minute
	// catalogueBytes bounds what the answers take in memory.
	catalogueBytes = 32 << 20
	// maxQuery bounds what is kept of a question.
	maxQuery = 512
)

// catalogue answers what everybody asks about products, mostly from memory. All who ask the same
// at the same time share one call.
type catalogue struct {
	env     platform.Env
	answers *cache.Cache[json.RawMessage]
}

func newCatalogue(env platform.Env) (*catalogue, error) {
	c := &catalogue{env: env}
	var err error
	c.answers, err = cache.New("catalogue", cache.Config[json.RawMessage]{
		TTL: catalogueFresh, NegativeTTL: catalogueFresh, StaleFor: catalogueStale, LoadTimeout: 2 * time.Second,
		Size: catalogueBytes, Cost: func(key string, answer json.RawMessage) int64 { return int64(len(key) + len(answer)) },
		Store: env.Cache, Hooks: env.Tracing().Cache(),
	})
	return c, err
}

// load asks the catalogue; key is the path and query of the question.
func (c *catalogue) load(ctx context.Context, key string) (json.RawMessage, error) {
	var body json.RawMessage
	err := c.env.Caller.Do(ctx, http.MethodGet, "http://catalog"+key, nil, nil, &body)
	var no *platform.Error
	if errors.As(err, &no) && no.Status == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %w", cache.ErrNotFound, err)
	}
	return body, err
}

// product answers GET /api/products/{id}.
func (c *catalogue) product(w http.ResponseWriter, r *http.Request) error {
	return c.answer(w, r, productKey(r.PathValue("id")))
}

func productKey(id string) string { return "/products/" + url.PathEscape(id) }

// list answers GET /api/products.
func (c *catalogue) list(w http.ResponseWriter, r *http.Request) error {
	query := url.Values{}
	for _, name := range []string{"q", "category", "page"} { // no other makes a difference
		if v := r.URL.Query().Get(name); v != "" {
			query.Set(name, v)
		}
	}
	if encoded := query.Encode(); len(encoded) > maxQuery {
		return platform.Invalid("q", "has %d bytes with the rest of the query, want at most %d", len(encoded), maxQuery)
	} else if encoded != "" {
		return c.answer(w, r, "/products?"+encoded)
	}
	return c.answer(w, r, "/products")
}

// categories answers GET /api/categories.
func (c *catalogue) categories(w http.ResponseWriter, r *http.Request) error {
	return c.answer(w, r, "/categories")
}

// answer writes what the catalogue says, and says how old it is (RFC 9211).
func (c *catalogue) answer(w http.ResponseWriter, r *http.Request, key string) error {
	got, err := c.answers.Fetch(r.Context(), key, c.load)
	var no *platform.Error
	switch {
	case errors.Is(err, cache.ErrNotFound):
		return platform.NotFound("product", r.PathValue("id"))
	case errors.As(err, &no) && no.Status < http.StatusInternalServerError:
		return no
	case err != nil:
		return away(r.Context(), "catalog", err)
	}
	w.Header().Set("Cache-Control", "no-cache") // it is everybody's, but this cache alone hears of changes
	w.Header().Set("Age", strconv.Itoa(int(got.Age.Seconds())))
	w.Header().Set("Cache-Status", map[cache.Source]string{
		cache.Local: "shop; hit", cache.Remote: "shop; hit; detail=shared", cache.Origin: "shop; fwd=miss", cache.Expired: "shop; hit; detail=stale",
	}[got.Source])
	return platform.WriteJSON(w, http.StatusOK, got.Value)
}

// listen forgets the answer about a product when something has happened to it. The listing that
// catalog reads from may be a moment behind the event; then the old answer comes back for as long as
// it is fresh.
func (c *catalogue) listen(ctx context.Context) error {
	if c.env.Broker == nil {
		<-ctx.Done()
		return nil
	}
	return c.env.Broker.Subscribe(ctx, messaging.Subscription{
		Group: "gateway.catalogue." + c.env.Instance, Temporary: true,
		Topics: []string{kernel.TopicProductChanged, kernel.TopicStockChanged},
	}, c.answers.Handler(func(_ context.Context, d *messaging.Delivery) ([]string, error) {
		var e struct {
			ProductID string `json:"product_id"`
		}
		if err := json.Unmarshal(d.Message.Body, &e); err != nil {
			return nil, messaging.Reject(err)
		}
		return []string{productKey(e.ProductID)}, nil
	}))
}
