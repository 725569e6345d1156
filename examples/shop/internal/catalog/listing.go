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

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"

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
//
// The tables of revision 1, listing_1 and listing_1_words, may be dropped when no instance of before is left.
const revision = 2

// Words are those of the name and the category as [folded] has them, with a blank between them: the database's own
// full-text index finds them, and has no view of its own of what a word is.
const (
	sqliteSchema = `
CREATE TABLE IF NOT EXISTS listing_2 (
	n INTEGER PRIMARY KEY,
	id TEXT NOT NULL UNIQUE,
	name TEXT NOT NULL,
	category TEXT NOT NULL,
	price BIGINT NOT NULL,
	revision BIGINT NOT NULL,
	words TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS listing_2_category ON listing_2 (category, id);
CREATE VIRTUAL TABLE IF NOT EXISTS listing_2_words USING fts5(words, content='listing_2', content_rowid='n', tokenize='ascii');
CREATE TRIGGER IF NOT EXISTS listing_2_added AFTER INSERT ON listing_2 BEGIN INSERT INTO listing_2_words (rowid, words) VALUES (new.n, new.words); END;
CREATE TRIGGER IF NOT EXISTS listing_2_changed AFTER UPDATE ON listing_2 BEGIN INSERT INTO listing_2_words (listing_2_words, rowid, words) VALUES ('delete', old.n, old.words); INSERT INTO listing_2_words (rowid, words) VALUES (new.n, new.words); END;`

	postgresSchema = `
CREATE TABLE IF NOT EXISTS listing_2 (
	id TEXT PRIMARY KEY,
	name TEXT NOT NULL,
	category TEXT NOT NULL,
	price BIGINT NOT NULL,
	revision BIGINT NOT NULL,
	words TEXT NOT NULL,
	lexemes TSVECTOR NOT NULL GENERATED ALWAYS AS (array_to_tsvector(string_to_array(words, ' '))) STORED
);
CREATE INDEX IF NOT EXISTS listing_2_category ON listing_2 (category, id);
CREATE INDEX IF NOT EXISTS listing_2_lexemes ON listing_2 USING GIN (lexemes);`
)

const selectProduct = `SELECT p.id, p.name, p.category, p.price, COALESCE(a.available, 0)
	FROM listing_2 p LEFT JOIN availability a ON a.product_id = p.id`

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
	_, err := tx.ExecContext(ctx, `INSERT INTO listing_2 (id, name, category, price, revision, words) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, category = excluded.category, price = excluded.price, revision = excluded.revision, words = excluded.words`,
		e.ProductID, e.Name, e.Category, e.Price, e.Revision, strings.Join(folded(e.Name+" "+e.Category), " "))
	return err
}

// matching returns the condition for products that have every word of a text in their name or
// category, or the beginning of a word, and the argument that it needs as number n. Without
// a word nothing matches.
func (l *listing) matching(text string, n int) (condition string, arg any) {
	words := folded(text)
	switch {
	case len(words) == 0:
		return fmt.Sprintf("CAST($%d AS TEXT) <> ''", n), ""
	case l.dialect == platform.Postgres:
		return fmt.Sprintf("p.lexemes @@ CAST(CAST($%d AS TEXT) AS tsquery)", n), "'" + strings.Join(words, "':* & '") + "':*"
	default:
		return fmt.Sprintf("p.n IN (SELECT rowid FROM listing_2_words WHERE listing_2_words MATCH $%d)", n), `"` + strings.Join(words, `"* "`) + `"*`
	}
}

// longestWord is how many bytes of a word count. PostgreSQL takes none of 2 KiB, which a name of 200 characters can
// come to: one that stands for a whole word is spelt out.
const longestWord = 1 << 10

// folded returns the words of a text as they are compared: without a difference between upper and lower case, without
// accents, and in one of the ways in which Unicode can write the same. They have letters, digits and marks in them and
// nothing else.
func folded(text string) []string {
	bare := strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) { // decomposed, an accent is a mark of its own
			return -1
		}
		return r
	}, norm.NFKD.String(text))
	words := strings.FieldsFunc(norm.NFKC.String(cases.Fold().String(bare)), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !unicode.IsMark(r)
	})
	for n, word := range words {
		words[n] = strings.ToValidUTF8(word[:min(len(word), longestWord)], "")
	}
	return words
}

// fillFor is how long a service that starts waits for its listing.
const fillFor = time.Minute

// fill fills a listing that never was, in a new shop or with a new revision, so that a shop that opens has all of
// it to show.
func (l *listing) fill(ctx context.Context) error {
	id := l.projector.ID()
	if active, err := l.models.Active(ctx, id.Name); err != nil || active >= id.Revision {
		return err
	}
	horizon, err := l.log.Horizon(ctx)
	if err != nil {
		return err
	}
	l.again(ctx)
	run, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- l.projector.Run(run) }()
	// Another instance may be at it; then this one need not wait for long.
	wait, cancel := context.WithTimeout(ctx, fillFor)
	defer cancel()
	err = l.serves(wait, id)
	if err == nil {
		err = eventsource.WaitFor(wait, l.models, id.Name, horizon.Cursor)
	}
	stop()
	if failed := <-ended; err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("fill %v: %w", id, err)
	}
	return nil
}

// serves waits until a revision serves, or a later one. It fails at once if that one has stopped at an event.
func (l *listing) serves(ctx context.Context, id eventsource.ProjectionID) error {
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		if active, err := l.models.Active(ctx, id.Name); err != nil || active >= id.Revision {
			return err
		}
		shards, err := l.models.Shards(ctx, id)
		if err != nil {
			return err
		}
		for _, s := range shards {
			if s.Parked != nil {
				return &eventsource.StoppedError{Parked: *s.Parked}
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-look.C:
		}
	}
}

// run fills the listing until ctx ends.
func (l *listing) run(ctx context.Context) error {
	l.again(ctx)
	return l.projector.Run(ctx)
}

// again has an event that the listing stopped at tried again: this may be the program in which that has been mended.
func (l *listing) again(ctx context.Context) {
	parked, err := l.projector.Parked(ctx)
	for _, p := range parked {
		err = errors.Join(err, l.projector.Retry(ctx, p.At))
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, eventsource.ErrNotParked) { // which another instance has tried again
		l.logger.WarnContext(ctx, "the listing may stay where it stopped", "error", err)
	}
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
