// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// This file is the side of queries: a table made for listing and searching, which a projector
// fills with what happens to the products. It has nothing that cannot be made again.

// revision is the build of the listing. Raise it, and the number in the names of its tables, when
// they or what fills them change: the new ones are then filled from the first event while the
// old ones serve.
const revision = 1

// The words of names and categories are found by the database's own full-text index.
const (
	sqliteSchema = `
CREATE TABLE IF NOT EXISTS listing_1 (
	n INTEGER PRIMARY KEY,
	id TEXT NOT NULL UNIQUE,
	name TEXT NOT NULL,
	category TEXT NOT NULL,
	price BIGINT NOT NULL,
	revision BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS listing_1_category ON listing_1 (category, id);
CREATE VIRTUAL TABLE IF NOT EXISTS listing_1_words USING fts5(name, category, content='listing_1', content_rowid='n', tokenize='unicode61 remove_diacritics 2');
CREATE TRIGGER IF NOT EXISTS listing_1_added AFTER INSERT ON listing_1 BEGIN INSERT INTO listing_1_words (rowid, name, category) VALUES (new.n, new.name, new.category); END;
CREATE TRIGGER IF NOT EXISTS listing_1_changed AFTER UPDATE ON listing_1 BEGIN INSERT INTO listing_1_words (listing_1_words, rowid, name, category) VALUES ('delete', old.n, old.name, old.category); INSERT INTO listing_1_words (rowid, name, category) VALUES (new.n, new.name, new.category); END;`

	postgresSchema = `
CREATE TABLE IF NOT EXISTS listing_1 (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	category TEXT NOT NULL,
	price BIGINT NOT NULL,
	revision BIGINT NOT NULL,
	words TSVECTOR NOT NULL GENERATED ALWAYS AS (to_tsvector('simple', name || ' ' || category)) STORED
);
CREATE INDEX IF NOT EXISTS listing_1_category ON listing_1 (category, id);
CREATE INDEX IF NOT EXISTS listing_1_words ON listing_1 USING GIN (words);`
)

const selectProduct = `SELECT p.id, p.name, p.category, p.price, COALESCE(a.available, 0)
	FROM listing_1 p LEFT JOIN availability a ON a.product_id = p.id`

// listing is the catalogue as everybody sees it.
type listing struct {
	models    eventsource.Models[*sql.Tx]
	projector *eventsource.Projector[*sql.Tx]
	log       *eventsource.Log
	dialect   platform.Dialect
	logger    *slog.Logger
}

func newListing(ctx context.Context, env platform.Env, products *products) (*listing, error) {
	l := &listing{log: products.log, dialect: platform.DialectOf(env.DB), logger: env.Log}
	schema := sqliteSchema
	if l.dialect == platform.Postgres {
		schema = postgresSchema
	}
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	models, err := eventsourcesql.NewModels(env.DB, l.dialect, eventsourcesql.Config{})
	if err != nil {
		return nil, err
	}
	if err := models.Migrate(ctx); err != nil {
		return nil, err
	}
	l.models = models
	l.projector, err = eventsource.NewProjector(products.log, l.models, eventsource.Projection[*sql.Tx]{
		Name: "listing", Revision: revision,
		Filter: eventsource.Filter{Types: products.codec.Types(), Prefix: streamPrefix},
		Handle: eventsource.Typed(products.codec, write),
	}, eventsource.ProjectorConfig{Lease: env.Lease, Logger: env.Log})
	return l, err
}

// write puts a product into the listing as it is since an event.
func write(ctx context.Context, tx *sql.Tx, e changed, _ eventsource.Recorded) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO listing_1 (id, name, category, price, revision) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, category = excluded.category, price = excluded.price, revision = excluded.revision`,
		e.ProductID, e.Name, e.Category, e.Price, e.Revision)
	return err
}

// matching returns the condition for products that have every word of a text in their name or
// category, or the beginning of a word, and the argument that it needs as number n. Without
// a word nothing matches.
func (l *listing) matching(text string, n int) (condition string, arg any) {
	words := strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
	switch {
	case len(words) == 0:
		return fmt.Sprintf("CAST($%d AS TEXT) <> ''", n), ""
	case l.dialect == platform.Postgres:
		return fmt.Sprintf("p.words @@ to_tsquery('simple', $%d)", n), strings.Join(words, ":* & ") + ":*"
	default:
		return fmt.Sprintf("p.n IN (SELECT rowid FROM listing_1_words WHERE listing_1_words MATCH $%d)", n), `"` + strings.Join(words, `"* "`) + `"*`
	}
}

// fill fills a listing that never was, so that a shop that opens for the first time has something
// to show.
func (l *listing) fill(ctx context.Context) error {
	serves, err := l.models.Active(ctx, l.projector.ID().Name)
	if err != nil || serves != 0 {
		return err
	}
	horizon, err := l.log.Horizon(ctx)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- l.projector.Run(run) }()
	// Another instance may be at it; then this one need not wait for long.
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	err = eventsource.WaitFor(wait, l.models, l.projector.ID().Name, horizon.Cursor)
	stop()
	if failed := <-ended; err == nil {
		err = failed
	}
	return err
}

// run fills the listing until ctx ends. An event that it stopped at is tried again first: this may be the program in
// which that has been mended.
func (l *listing) run(ctx context.Context) error {
	parked, err := l.projector.Parked(ctx)
	for _, p := range parked {
		err = errors.Join(err, l.projector.Retry(ctx, p.At))
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, eventsource.ErrNotParked) { // which another instance has tried again
		l.logger.WarnContext(ctx, "the listing may stay where it stopped", "error", err)
	}
	return l.projector.Run(ctx)
}

// shows waits, for a moment, until the listing shows a product as it is.
func (l *listing) shows(ctx context.Context, id string) {
	l.log.Wake()
	_, at, err := l.log.End(ctx, streamPrefix+id)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	// It will in any case; waiting is a courtesy to who has just changed the product.
	_ = eventsource.WaitFor(ctx, l.models, l.projector.ID().Name, at)
}

// asShown is a product of which the listing may not know yet.
func asShown(e changed) Product {
	return Product{ID: e.ProductID, Name: e.Name, Category: e.Category, Price: e.Price, Currency: kernel.Currency}
}

// Readers tell the console how far the listing is.
func (s *Service) Readers(ctx context.Context) ([]platform.Reader, error) {
	st, err := s.listing.projector.Stats(ctx)
	if err != nil {
		return nil, err
	}
	r := platform.Reader{
		Stream: "products", Reader: fmt.Sprintf("%s, revision %d", st.ID.Name, st.ID.Revision), Status: "building",
		Position: int64(st.Cursor), End: int64(st.Head), BehindSeconds: st.Behind.Seconds(),
	}
	switch {
	case st.Parked > 0:
		r.Status = "stopped"
	case st.Serves:
		r.Status = "serving"
	}
	return []platform.Reader{r}, nil
}
