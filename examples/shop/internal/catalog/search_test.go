// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/eventsource/eventsourcesql"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// eachDatabase runs a test with either database that a catalogue can live in.
func eachDatabase(t *testing.T, test func(t *testing.T, env platform.Env)) {
	t.Helper()
	run := func(t *testing.T, db *sql.DB) {
		t.Helper()
		broker, err := messagingmem.New(messagingmem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		test(t, platform.Env{Name: "catalog", Instance: "catalog-1", DB: db, Broker: broker, Log: slog.New(slog.DiscardHandler)})
	}
	t.Run("SQLite", func(t *testing.T) {
		db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "catalog.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		run(t, db)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		dsn := os.Getenv("DOVETAIL_POSTGRES_DSN")
		if dsn == "" {
			testserver.Missing(t, "DOVETAIL_POSTGRES_DSN is not set: run scripts/services up postgres && eval \"$(scripts/services env)\"")
		}
		schema := "catalog_" + strings.ReplaceAll(messaging.NewID(), "-", "")
		db, err := platform.OpenPostgres(t.Context(), dsn, schema)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = db.Close() }()
		defer func() { _, _ = db.ExecContext(context.WithoutCancel(t.Context()), "DROP SCHEMA "+schema+" CASCADE") }()
		run(t, db)
	})
}

// with makes a catalogue that has some products and has never been open.
func with(t *testing.T, env platform.Env, names ...string) *products {
	t.Helper()
	bus, err := platform.NewBus(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	products, err := newProducts(t.Context(), env, bus)
	if err != nil {
		t.Fatal(err)
	}
	for n, name := range names {
		id := fmt.Sprintf("t-%02d", n)
		if _, err := products.Do(t.Context(), streamPrefix+id, add{kernel.ProductChanged{ProductID: id, Name: name, Category: "Probe Œuvre", Price: 1}}); err != nil {
			t.Fatal(err)
		}
	}
	return products
}

// found returns the names of the products that a search finds.
func found(t *testing.T, s *Service, query string) (names []string) {
	t.Helper()
	w := httptest.NewRecorder()
	platform.Handle(s.list).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/products?q="+url.QueryEscape(query), nil))
	var page struct{ Items []Product }
	if err := json.Unmarshal(w.Body.Bytes(), &page); err != nil || w.Code != http.StatusOK {
		t.Fatalf("search for %q = %d %s", query, w.Code, w.Body)
	}
	for _, p := range page.Items {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	return names
}

func TestSearch(t *testing.T) {
	const (
		creme, noir       = "Caf\u00e9 cr\u00e8me", "Cafe\u0301 noir" // the same accent, written in both ways
		street, rock      = "Straßenschild", "ΣΊΣΥΦΟΣ rock"
		gauge, fine       = "Ångström gauge", "ﬁne file"
		saw, chisel       = "Säge Nº 5", "½ inch chisel"
		grit, drill       = "1e5 grit", "hand-held drill"
		tokyo, seoul      = "東京 plane", "\ud55c\uae00 knife"
		hindi, wide, turk = "हिन्दी ruler", "ＷＩＤＥ plane", "İstanbul vase"
	)
	long := strings.Repeat("㌖", maxName) // each is six characters, written out
	all := []string{creme, noir, street, rock, gauge, fine, saw, chisel, grit, drill, tokyo, seoul, hindi, wide, turk, long}
	eachDatabase(t, func(t *testing.T, env platform.Env) {
		with(t, env, all...)
		s, err := New(t.Context(), env)
		if err != nil {
			t.Fatal(err)
		}
		for query, want := range map[string][]string{
			"probe cafe": {creme, noir}, "probe caf\u00e9": {creme, noir}, "probe cafe\u0301": {creme, noir}, "PROBE CAFÉ": {creme, noir},
			"caf\u00e9 creme": {creme}, "Cre\u0300m": {creme}, "probe afe": nil,
			"strassen": {street}, "STRASSENSCHILD": {street}, "straßen": {street}, "straẞen": {street},
			"σισυφος": {rock}, "σίσυφοσ": {rock}, "ΣΙΣΥΦΟΣ": {rock},
			"angstrom": {gauge}, "\u212bngstro\u0308m": {gauge}, "probe fine": {fine}, "probe ﬁne": {fine},
			"sage no 5": {saw}, "säge nº": {saw}, "probe 1/2": {chisel}, "½ chisel": {chisel}, "1e5": {grit}, "1E5": {grit}, "100000": nil,
			"hand-held": {drill}, "held hand": {drill}, "handheld": nil, "東京": {tokyo}, "probe 東": {tokyo}, "京": nil,
			"\ud55c\uae00": {seoul}, "\u1112\u1161\u11ab\u1100\u1173\u11af": {seoul}, "हिन्दी": {hindi}, "wide probe": {wide}, "probe ｗｉｄｅ": {wide},
			"キロメートル": {long}, long: {long}, long + "x": {long}, // so much of a word does not count
			"istanbul": {turk}, "İstanbul": {turk}, "ISTANBUL": {turk},
			"***": nil, "probe' | 'x": nil, `probe" OR "rock`: nil, `probe\' & ruler`: {hindi}, "NOT rock": nil, "probe:rock": {rock}, "oeuvre": nil, "œuvre rock": {rock},
		} {
			slices.Sort(want)
			if got := found(t, s, query); !slices.Equal(got, want) {
				t.Errorf("%q finds %q, want %q", query, got, want)
			}
		}
		// What a product was called before does not find it.
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.listing.run(ctx) }()
		defer func() {
			stop()
			if err := <-ended; err != nil {
				t.Errorf("run = %v", err)
			}
		}()
		name := "Plain saw"
		if _, err := s.products.Do(t.Context(), streamPrefix+"t-00", revise{draft{Name: &name}}); err != nil {
			t.Fatal(err)
		}
		_, at, err := s.listing.log.End(t.Context(), streamPrefix+"t-00")
		if err != nil {
			t.Fatal(err)
		}
		s.listing.log.Wake()
		if err := eventsource.WaitFor(t.Context(), s.listing.models, s.listing.projector.ID().Name, at); err != nil {
			t.Fatal(err)
		}
		if got := found(t, s, "probe café"); !slices.Equal(got, []string{noir}) {
			t.Errorf("the old name finds %q, want %q alone", got, noir)
		}
		if got := found(t, s, "plain probe"); !slices.Equal(got, []string{name}) {
			t.Errorf("the new name finds %q, want %q", got, name)
		}
	})
}

// TestListingOfBefore opens a catalogue whose listing an earlier revision serves: as soon as it is open, it shows all of
// the products. And one whose listing cannot be filled does not open, and says so.
func TestListingOfBefore(t *testing.T) {
	eachDatabase(t, func(t *testing.T, env platform.Env) {
		names := make([]string, 50)
		for n := range names {
			names[n] = fmt.Sprintf("Number %d", n)
		}
		products := with(t, env, names...)
		models, err := eventsourcesql.NewModels(env.DB, platform.DialectOf(env.DB), eventsourcesql.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if err := models.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		before, err := eventsource.NewProjector(products.log, models, eventsource.Projection[*sql.Tx]{
			Name: "listing", Revision: revision - 1, Filter: eventsource.Filter{Prefix: streamPrefix},
			Handle: func(context.Context, *sql.Tx, []eventsource.Recorded) error { return nil },
		}, eventsource.ProjectorConfig{Logger: env.Log})
		if err != nil {
			t.Fatal(err)
		}
		run, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- before.Run(run) }()
		deadline := time.Now().Add(time.Minute)
		for active := 0; active == 0; time.Sleep(time.Millisecond) {
			if active, err = models.Active(t.Context(), "listing"); err != nil || time.Now().After(deadline) {
				t.Fatalf("revision %d serves (%v), want %d", active, err, revision-1)
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}

		s, err := New(t.Context(), env)
		if err != nil {
			t.Fatal(err)
		}
		if got := found(t, s, "probe 49"); len(got) != 1 {
			t.Errorf("the search finds %q, want one product", got)
		}
		if got := found(t, s, "probe"); len(got) != PageSize {
			t.Errorf("the search finds %d products, want a page of %d", len(got), PageSize)
		}
		if n, err := models.Active(t.Context(), "listing"); err != nil || n != revision {
			t.Errorf("revision %d serves (%v), want %d", n, err, revision)
		}

		// And a revision after this one, which cannot be filled.
		s.listing.projector, err = eventsource.NewProjector(products.log, models, eventsource.Projection[*sql.Tx]{
			Name: "listing", Revision: revision + 1, Filter: eventsource.Filter{Prefix: streamPrefix},
			Handle: func(context.Context, *sql.Tx, []eventsource.Recorded) error {
				return fault.Permanent(errors.New("no such table"))
			},
		}, eventsource.ProjectorConfig{Logger: env.Log})
		if err != nil {
			t.Fatal(err)
		}
		var stopped *eventsource.StoppedError
		if err := s.listing.fill(t.Context()); !errors.As(err, &stopped) {
			t.Errorf("a listing that cannot be filled = %v, want it stopped", err)
		}
	})
}
