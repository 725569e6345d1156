// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package catalog is the service that knows what can be bought: staff writes products and
// prices, everybody searches and browses. The two have a model each: streams of events on one
// side (products.go), a table with a full-text index on the other (listing.go), filled from the first.
package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/promkit"
)

// PageSize is how many products one page of a listing holds.
const PageSize = 24

// Limits of what a product may be.
const (
	minPrice = 1
	maxPrice = 1_000_000
	maxName  = 200
	maxStock = 1_000_000
	maxWords = 10
)

// maxQuote bounds how many products one quote names.
const maxQuote = 1000

// Service is the catalog service.
type Service struct {
	env      platform.Env
	bus      *platform.Bus
	products *products
	listing  *listing
	queries  *reader
}

// Available is a copy of what inventory last said, kept here so that a listing is one query.
const schema = `
CREATE TABLE IF NOT EXISTS availability (
	product_id TEXT PRIMARY KEY,
	available BIGINT NOT NULL,
	revision BIGINT NOT NULL
);`

// New prepares the service's database, fills an empty catalogue with the demonstration
// products, and returns the service.
func New(ctx context.Context, env platform.Env) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	s := &Service{env: env, bus: bus}
	if s.queries, err = newReader(env); err != nil {
		return nil, err
	}
	if s.products, err = newProducts(ctx, env, bus); err != nil {
		return nil, err
	}
	if s.listing, err = newListing(ctx, env, s.products); err != nil {
		return nil, err
	}
	if err := s.seed(ctx); err != nil {
		return nil, err
	}
	return s, s.listing.fill(ctx)
}

// Consumers implements [platform.Service].
func (s *Service) Consumers() []platform.Consumer {
	return []platform.Consumer{s.bus.On("catalog", []string{kernel.TopicStockChanged}, s.stockChanged)}
}

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error {
	return platform.RunAll(ctx, s.bus.Run, s.listing.run)
}

// Collectors are what the service shows of its blocks, beside what every service does.
func (s *Service) Collectors() []prometheus.Collector {
	return append(s.queries.collectors(), promkit.Projector(s.listing.projector), promkit.EventLog("catalog", s.products.log))
}

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	auth := s.env.Auth
	mux := http.NewServeMux()
	mux.Handle("GET /products", platform.Handle(s.list))
	mux.Handle("GET /products/{id}", platform.Handle(s.get))
	mux.Handle("POST /products", auth.Require(platform.Handle(s.create), platform.RoleAdmin))
	mux.Handle("PATCH /products/{id}", auth.Require(platform.Handle(s.change), platform.RoleAdmin))
	mux.Handle("GET /categories", platform.Handle(s.categories))
	mux.Handle("POST /internal/quote", auth.Require(platform.Handle(s.quote)))
	return mux
}

// Product is one product as people see it.
type Product struct {
	ID        string       `json:"id"`
	Name      string       `json:"name"`
	Category  string       `json:"category"`
	Price     kernel.Money `json:"price"`
	Currency  string       `json:"currency"`
	Available int64        `json:"available"`
}

type page struct {
	Items []Product `json:"items"`
	// Next is the number of the next page; 0 on the last one.
	Next int `json:"next,omitempty"`
}

func scanProduct(row interface{ Scan(dest ...any) error }) (Product, error) {
	p := Product{Currency: kernel.Currency}
	err := row.Scan(&p.ID, &p.Name, &p.Category, &p.Price, &p.Available)
	return p, err
}

func (s *Service) list(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	number := 1
	if text := q.Get("page"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 100_000 {
			return platform.Invalid("page", "is %.20q, want a number from 1 to 100000", text)
		}
		number = n
	}
	where, args := []string{"1 = 1"}, []any{PageSize + 1, (number - 1) * PageSize}
	if c := q.Get("category"); c != "" {
		args = append(args, c)
		where = append(where, fmt.Sprintf("p.category = $%d", len(args)))
	}
	if text := q.Get("q"); strings.TrimSpace(text) != "" {
		if len(strings.Fields(text)) > maxWords {
			return platform.Invalid("q", "has too many words, want at most %d", maxWords)
		}
		condition, arg := s.listing.matching(text, len(args)+1)
		where, args = append(where, condition), append(args, arg)
	}
	items, err := read(r.Context(), s.queries, scanProduct,
		selectProduct+` WHERE `+strings.Join(where, " AND ")+` ORDER BY p.id LIMIT $1 OFFSET $2`, args...)
	if err != nil {
		return err
	}
	out := page{Items: items}
	if len(items) > PageSize {
		out.Items, out.Next = items[:PageSize], number+1
	}
	if out.Items == nil {
		out.Items = []Product{}
	}
	return platform.WriteJSON(w, http.StatusOK, out)
}

func (s *Service) get(w http.ResponseWriter, r *http.Request) error {
	p, err := s.product(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, p)
}

func (s *Service) product(ctx context.Context, id string) (Product, error) {
	found, err := read(ctx, s.queries, scanProduct, selectProduct+` WHERE p.id = $1`, id)
	if err != nil {
		return Product{}, err
	}
	if len(found) == 0 {
		return Product{}, platform.NotFound("product", id)
	}
	return found[0], nil
}

func (s *Service) categories(w http.ResponseWriter, r *http.Request) error {
	names, err := read(r.Context(), s.queries, func(row interface{ Scan(dest ...any) error }) (c string, err error) {
		err = row.Scan(&c)
		return c, err
	}, `SELECT DISTINCT category FROM listing_2 ORDER BY category`)
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string][]string{"items": names})
}

// quote answers with the products of an order at their present price. What is not known is
// not in the answer.
func (s *Service) quote(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		ProductIDs []string `json:"product_ids"`
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	if n := len(in.ProductIDs); n > maxQuote {
		return platform.Invalid("product_ids", "has %d, want at most %d", n, maxQuote)
	}
	out := page{Items: []Product{}}
	if len(in.ProductIDs) > 0 {
		args, marks := make([]any, len(in.ProductIDs)), make([]string, len(in.ProductIDs))
		for i, id := range in.ProductIDs {
			args[i], marks[i] = id, fmt.Sprintf("$%d", i+1)
		}
		items, err := platform.Collect(r.Context(), s.env.DB, scanProduct, selectProduct+` WHERE p.id IN (`+strings.Join(marks, ", ")+`)`, args...)
		if err != nil {
			return err
		}
		out.Items = append(out.Items, items...)
	}
	return platform.WriteJSON(w, http.StatusOK, out)
}

// draft is what staff may say about a product; nil leaves it as it is.
type draft struct {
	Name     *string       `json:"name"`
	Category *string       `json:"category"`
	Price    *kernel.Money `json:"price"`
	Stock    *int64        `json:"stock"`
}

func (d draft) validate() error {
	for _, f := range []struct {
		name string
		is   *string
	}{{"name", d.Name}, {"category", d.Category}} {
		if f.is == nil {
			continue
		}
		text := strings.TrimSpace(*f.is)
		if n := utf8.RuneCountInString(text); n < 1 || n > maxName {
			return platform.Invalid(f.name, "has %d characters, want 1 to %d", n, maxName)
		}
		if !platform.Line(text) {
			return platform.Invalid(f.name, "has characters in it that cannot be read, want one line of text")
		}
	}
	if d.Price != nil && (*d.Price < minPrice || *d.Price > maxPrice) {
		return platform.Invalid("price", "is %d, want %d to %d minor units", *d.Price, minPrice, maxPrice)
	}
	if d.Stock != nil && (*d.Stock < 0 || *d.Stock > maxStock) {
		return platform.Invalid("stock", "is %d, want 0 to %d", *d.Stock, maxStock)
	}
	return nil
}

func (s *Service) create(w http.ResponseWriter, r *http.Request) error {
	var d draft
	if err := platform.Decode(w, r, &d); err != nil {
		return err
	}
	switch {
	case d.Name == nil:
		return platform.Invalid("name", "is missing")
	case d.Category == nil:
		return platform.Invalid("category", "is missing")
	case d.Price == nil:
		return platform.Invalid("price", "is missing")
	}
	if err := d.validate(); err != nil {
		return err
	}
	ctx := r.Context()
	e := kernel.ProductChanged{ProductID: kernel.NewID(), Name: strings.TrimSpace(*d.Name), Category: strings.TrimSpace(*d.Category), Price: *d.Price}
	if d.Stock != nil {
		e.InitialStock = *d.Stock
	}
	if _, err := s.products.Do(ctx, streamPrefix+e.ProductID, add{e}); err != nil {
		return err
	}
	s.bus.Wake()
	s.listing.shows(ctx, e.ProductID)
	w.Header().Set("Location", "/api/products/"+e.ProductID)
	return platform.WriteJSON(w, http.StatusCreated, map[string]string{"id": e.ProductID})
}

func (s *Service) change(w http.ResponseWriter, r *http.Request) error {
	ctx, id := r.Context(), r.PathValue("id")
	var d draft
	if err := platform.Decode(w, r, &d); err != nil {
		return err
	}
	if d.Stock != nil {
		return platform.Invalid("stock", "is inventory's to change once a product exists")
	}
	if err := d.validate(); err != nil {
		return err
	}
	product, err := s.products.Do(ctx, streamPrefix+id, revise{d})
	if errors.Is(err, errUnknown) {
		return platform.NotFound("product", id)
	}
	if err != nil {
		return err
	}
	s.bus.Wake()
	s.listing.shows(ctx, id)
	now := asShown(product.Value)
	// The listing has it too, or will have; a replica of it perhaps not even the product.
	err = s.env.DB.QueryRowContext(ctx, `SELECT available FROM availability WHERE product_id = $1`, id).Scan(&now.Available)
	if err != nil && !errors.Is(err, sql.ErrNoRows) { // inventory may not have heard of it yet
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, now)
}

func (s *Service) stockChanged(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
	var e kernel.StockChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return messaging.Reject(err)
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO availability (product_id, available, revision) VALUES ($1, $2, $3)
		ON CONFLICT (product_id) DO UPDATE SET available = excluded.available, revision = excluded.revision WHERE excluded.revision > availability.revision`,
		e.ProductID, e.Available, e.Revision)
	return err
}
