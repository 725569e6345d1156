// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package reporting is the service that counts: it reads the stream of order events from the very
// beginning and keeps sales figures. It can do so again at any time, beside the figures that
// people look at, and put the new ones in their place once they have caught up.
package reporting

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/messaging"
)

// Service is the reporting service.
type Service struct {
	env  platform.Env
	bus  *platform.Bus
	news chan struct{}
	// rest is how long a build has been over before its group is removed.
	rest time.Duration

	mu        sync.Mutex
	following map[int64]bool // builds that this instance reads for
}

// A build is one reading of the stream from its beginning, with the figures that came of it. One
// serves; another may be catching up. Sold is what each confirmed order was worth, until it is
// cancelled.
const schema = `
CREATE TABLE IF NOT EXISTS builds (
	build BIGINT PRIMARY KEY,
	status TEXT NOT NULL CHECK (status IN ('building', 'serving', 'retired', 'different')),
	applied BIGINT NOT NULL DEFAULT 0,
	position BIGINT NOT NULL DEFAULT -1,
	differences TEXT NOT NULL DEFAULT '',
	started_at BIGINT NOT NULL,
	ended_at BIGINT NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS days (
	build BIGINT NOT NULL,
	day TEXT NOT NULL,
	placed BIGINT NOT NULL,
	confirmed BIGINT NOT NULL,
	dispatched BIGINT NOT NULL,
	rejected BIGINT NOT NULL,
	cancelled BIGINT NOT NULL,
	revenue BIGINT NOT NULL,
	PRIMARY KEY (build, day)
);
CREATE TABLE IF NOT EXISTS products (
	build BIGINT NOT NULL,
	product_id TEXT NOT NULL,
	name TEXT NOT NULL,
	quantity BIGINT NOT NULL,
	revenue BIGINT NOT NULL,
	PRIMARY KEY (build, product_id)
);
CREATE TABLE IF NOT EXISTS sold (
	build BIGINT NOT NULL,
	order_id TEXT NOT NULL,
	PRIMARY KEY (build, order_id)
);`

// New prepares the service's database and returns the service.
func New(ctx context.Context, env platform.Env) (*Service, error) {
	if err := platform.CreateTables(ctx, env.DB, schema); err != nil {
		return nil, err
	}
	bus, err := platform.NewBus(ctx, env)
	if err != nil {
		return nil, err
	}
	if _, err := env.DB.ExecContext(ctx, `INSERT INTO builds (build, status, started_at) VALUES (1, 'serving', $1) ON CONFLICT (build) DO NOTHING`,
		time.Now().UnixMicro()); err != nil {
		return nil, err
	}
	return &Service{env: env, bus: bus, news: make(chan struct{}, 1), rest: max(env.Lease, 5*look), following: map[int64]bool{}}, nil
}

// Consumers implements [platform.Service]: what there is to read changes while the service runs,
// so Run does it.
func (s *Service) Consumers() []platform.Consumer { return nil }

// Bus returns the service's outbox and inbox, for the operator's view.
func (s *Service) Bus() *platform.Bus { return s.bus }

// Run implements [platform.Service].
func (s *Service) Run(ctx context.Context) error {
	return platform.RunAll(ctx, s.bus.Run, s.read, s.removeGroups)
}

// Handler implements [platform.Service].
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /ops/reporting", s.env.Auth.Require(platform.Handle(s.figures), platform.RoleOperator))
	mux.Handle("POST /ops/reporting/rebuild", s.env.Auth.Require(platform.Handle(s.rebuild), platform.RoleOperator))
	return mux
}

// look is how often the service looks for builds that another instance has begun or ended.
const look = time.Second

// read keeps one reader of the stream running for each build that is not over.
func (s *Service) read(ctx context.Context) error {
	var readers sync.WaitGroup
	defer readers.Wait()
	running := map[int64]context.CancelFunc{}
	failed := make(chan error, 1)
	for {
		builds, err := s.builds(ctx, `status IN ('building', 'serving')`)
		if err != nil && ctx.Err() == nil {
			s.env.Log.WarnContext(ctx, "the builds cannot be read", "err", err)
		}
		open := map[int64]bool{}
		for _, b := range builds {
			open[b.Build] = true
			if running[b.Build] != nil {
				continue
			}
			run, stop := context.WithCancel(ctx)
			running[b.Build] = stop
			s.follows(b.Build, true)
			readers.Go(func() {
				defer s.follows(b.Build, false)
				if err := s.follow(run, b); err != nil && run.Err() == nil {
					select {
					case failed <- err:
					default:
					}
				}
			})
		}
		for build, stop := range running {
			if err == nil && !open[build] {
				stop()
				delete(running, build)
			}
		}
		if err := s.compare(ctx); err != nil && ctx.Err() == nil {
			s.env.Log.WarnContext(ctx, "a rebuild cannot be compared", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		case <-s.news:
		case <-time.After(look):
		}
	}
}

func (s *Service) follows(build int64, does bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.following[build] = does
}

// removeGroups has the broker forget how far builds have read that are over. Every instance does so once, some time
// after the end: by then all have stopped reading, and none makes the group anew.
func (s *Service) removeGroups(ctx context.Context) error {
	broker, ok := s.env.Broker.(platform.Remover)
	removed := map[int64]bool{}
	for ok {
		over, err := s.builds(ctx, `status IN ('retired', 'different')`)
		for _, b := range over {
			s.mu.Lock()
			reads := s.following[b.Build]
			s.mu.Unlock()
			if reads || removed[b.Build] || time.Since(b.Ended) < s.rest {
				continue
			}
			if err = broker.Remove(ctx, Reader(b.Build).Group); err != nil {
				break
			}
			removed[b.Build] = true
		}
		if errors.Is(err, errors.ErrUnsupported) {
			break
		}
		if err != nil && ctx.Err() == nil {
			s.env.Log.WarnContext(ctx, "the group of a build that is over cannot be removed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(s.rest):
		}
	}
	<-ctx.Done()
	return nil
}

// batch is how many events are applied in one transaction at most.
const batch = 64

// follow reads the stream from its beginning, or from where it was, and goes on with it.
func (s *Service) follow(ctx context.Context, b build) error {
	apply := idempotency.BatchConsumer(s.env.DB, s.bus.Inbox, func(ctx context.Context, tx *sql.Tx, d *messaging.Delivery) error {
		if err := s.apply(ctx, tx, b.Build, d); err != nil {
			return err
		}
		return s.bus.Applied(ctx, tx, d)
	})
	handler, err := messaging.Batch(messaging.BatchConfig{Size: batch}, s.env.Tracing().Batch(apply))
	if err != nil {
		return err
	}
	if b.Status == "serving" { // one that catches up is late by design
		handler = messaging.Chain(handler, messaging.Observe(func(_ context.Context, h messaging.Handled) {
			if h.Err == nil {
				s.bus.Delayed("reporting", h.Delivery.Message)
			}
		}))
	}
	return s.env.Broker.Subscribe(ctx, Reader(b.Build), handler)
}

// Reader is the subscription of a build.
func Reader(build int64) messaging.Subscription {
	return messaging.Subscription{
		Group: fmt.Sprintf("reporting.%d", build), Topics: []string{"order.*"}, From: messaging.FromFirst(),
		Ordered: true, Concurrency: batch, MaxDeliveries: -1, // a figure that leaves something out is worth nothing
	}
}

// apply adds one event to the figures of a build.
func (s *Service) apply(ctx context.Context, tx *sql.Tx, build int64, d *messaging.Delivery) error {
	var e kernel.OrderChanged
	if err := json.Unmarshal(d.Message.Body, &e); err != nil {
		return fmt.Errorf("reporting: message %s: %w", d.Message.ID, err)
	}
	// First, so that it waits for, or stops, a build that is just being replaced.
	res, err := tx.ExecContext(ctx, `UPDATE builds SET applied = applied + 1, position = CASE WHEN position < $1 THEN $1 ELSE position END
		WHERE build = $2 AND status IN ('building', 'serving')`, d.Offset, build)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, fmt.Errorf("reporting: build %d is over", build))
	}
	var n struct{ placed, confirmed, dispatched, rejected, cancelled, revenue int64 }
	switch e.What {
	case kernel.TopicOrderPlaced:
		n.placed = 1
	case kernel.TopicOrderRejected:
		n.rejected = 1
	case kernel.TopicOrderDispatched:
		n.dispatched = 1
	case kernel.TopicOrderConfirmed:
		n.confirmed, n.revenue = 1, int64(e.Total)
		if _, err := tx.ExecContext(ctx, `INSERT INTO sold (build, order_id) VALUES ($1, $2)`, build, e.OrderID); err != nil {
			return err
		}
		if err := s.sell(ctx, tx, build, 1, e.Lines); err != nil {
			return err
		}
	case kernel.TopicOrderCancelled:
		n.cancelled = 1
		res, err := tx.ExecContext(ctx, `DELETE FROM sold WHERE build = $1 AND order_id = $2`, build, e.OrderID)
		if err != nil {
			return err
		}
		was, err := res.RowsAffected()
		if err != nil {
			return err
		}
		if was == 1 {
			n.revenue = -int64(e.Total)
			if err := s.sell(ctx, tx, build, -1, e.Lines); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("reporting: message %s: %s is not counted", d.Message.ID, e.What)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO days (build, day, placed, confirmed, dispatched, rejected, cancelled, revenue) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (build, day) DO UPDATE SET placed = days.placed + excluded.placed, confirmed = days.confirmed + excluded.confirmed,
		dispatched = days.dispatched + excluded.dispatched, rejected = days.rejected + excluded.rejected,
		cancelled = days.cancelled + excluded.cancelled, revenue = days.revenue + excluded.revenue`,
		build, d.Message.Time.UTC().Format(time.DateOnly), n.placed, n.confirmed, n.dispatched, n.rejected, n.cancelled, n.revenue)
	return err
}

// sell adds an order's lines to what was sold of each product, or takes them away.
func (s *Service) sell(ctx context.Context, tx *sql.Tx, build, sign int64, lines []kernel.OrderLine) error {
	for _, l := range lines {
		if _, err := tx.ExecContext(ctx, `INSERT INTO products (build, product_id, name, quantity, revenue) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (build, product_id) DO UPDATE SET quantity = products.quantity + excluded.quantity, revenue = products.revenue + excluded.revenue`,
			build, l.ProductID, l.Name, sign*l.Quantity, sign*l.Quantity*int64(l.Price)); err != nil {
			return err
		}
	}
	return nil
}

// build is one reading of the stream, as an operator sees it.
type build struct {
	Build    int64  `json:"build"`
	Status   string `json:"status"`
	Applied  int64  `json:"applied"`
	Position int64  `json:"position"`
	// Differences is what a build had otherwise than the one it was to replace.
	Differences string    `json:"differences,omitempty"`
	Started     time.Time `json:"started"`
	Ended       time.Time `json:"ended,omitzero"`
}

func (s *Service) builds(ctx context.Context, where string) ([]build, error) {
	return platform.Collect(ctx, s.env.DB, func(row interface{ Scan(dest ...any) error }) (b build, err error) {
		var started, ended int64
		err = row.Scan(&b.Build, &b.Status, &b.Applied, &b.Position, &b.Differences, &started, &ended)
		b.Started = time.UnixMicro(started).UTC()
		if ended != 0 {
			b.Ended = time.UnixMicro(ended).UTC()
		}
		return b, err
	}, `SELECT build, status, applied, position, differences, started_at, ended_at FROM builds WHERE `+where+` ORDER BY build DESC LIMIT 20`)
}

// rebuild begins a new build. One at a time is enough.
func (s *Service) rebuild(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	if _, err := s.env.DB.ExecContext(ctx, `INSERT INTO builds (build, status, started_at) SELECT MAX(build) + 1, 'building', CAST($1 AS BIGINT) FROM builds
		HAVING SUM(CASE WHEN status = 'building' THEN 1 ELSE 0 END) = 0 ON CONFLICT (build) DO NOTHING`, time.Now().UnixMicro()); err != nil {
		return err
	}
	select {
	case s.news <- struct{}{}:
	default:
	}
	builds, err := s.builds(ctx, `status = 'building'`)
	if err != nil {
		return err
	}
	if len(builds) == 0 { // it has caught up in the meantime
		if builds, err = s.builds(ctx, `1 = 1`); err != nil {
			return err
		}
	}
	return platform.WriteJSON(w, http.StatusAccepted, builds[0])
}

// settle is how long two builds that have read equally far must both stand still before what
// differs between them counts: within a batch, events of different orders have no order.
const settle = 3 * time.Second

// compare looks at a build that is catching up. Once it has read as far as the one that serves,
// their figures are compared: equal ones take the place of the old, others are kept aside
// for somebody to look at.
func (s *Service) compare(ctx context.Context) error {
	builds, err := s.builds(ctx, `status IN ('building', 'serving')`)
	if err != nil || len(builds) != 2 || builds[0].Applied != builds[1].Applied || builds[0].Position != builds[1].Position {
		return err
	}
	fresh, old := builds[0], builds[1]
	differences, err := s.differences(ctx, fresh.Build, old.Build)
	if err != nil {
		return err
	}
	if differences != "" {
		timer := time.NewTimer(settle)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		again, err := s.builds(ctx, `status IN ('building', 'serving')`)
		if err != nil || len(again) != 2 || again[0] != fresh || again[1] != old {
			return err
		}
		if differences, err = s.differences(ctx, fresh.Build, old.Build); err != nil {
			return err
		}
	}
	return platform.InTx(ctx, s.env.DB, func(tx *sql.Tx) error {
		now := time.Now().UnixMicro()
		if differences != "" {
			_, err := tx.ExecContext(ctx, `UPDATE builds SET status = 'different', differences = $1, ended_at = $2 WHERE build = $3`, differences, now, fresh.Build)
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE builds SET status = 'retired', ended_at = $1 WHERE build = $2`, now, old.Build); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE builds SET status = 'serving' WHERE build = $1`, fresh.Build); err != nil {
			return err
		}
		for _, table := range []string{"days", "products", "sold"} {
			if _, err := tx.ExecContext(ctx, `DELETE FROM `+table+` WHERE build = $1`, old.Build); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `DELETE FROM applied WHERE consumer = $1`, Reader(old.Build).Group)
		return err
	})
}

// differences names what two builds have otherwise; empty if nothing.
func (s *Service) differences(ctx context.Context, a, b int64) (string, error) {
	var out []string
	for table, columns := range map[string]string{
		"days": "day, placed, confirmed, dispatched, rejected, cancelled, revenue", "products": "product_id, quantity, revenue", "sold": "order_id",
	} {
		n, err := platform.Collect(ctx, s.env.DB, func(row interface{ Scan(dest ...any) error }) (n int64, err error) {
			err = row.Scan(&n)
			return n, err
		}, `SELECT COUNT(*) FROM (SELECT `+columns+` FROM `+table+` WHERE build IN ($1, $2) GROUP BY `+columns+` HAVING COUNT(*) <> 2) AS d`, a, b)
		if err != nil {
			return "", err
		}
		if n[0] > 0 {
			out = append(out, fmt.Sprintf("%d rows of %s", n[0], table))
		}
	}
	return strings.Join(out, ", "), nil
}

type day struct {
	Day        string       `json:"day"`
	Placed     int64        `json:"placed"`
	Confirmed  int64        `json:"confirmed"`
	Dispatched int64        `json:"dispatched"`
	Rejected   int64        `json:"rejected"`
	Cancelled  int64        `json:"cancelled"`
	Revenue    kernel.Money `json:"revenue"`
	Currency   string       `json:"currency"`
}

type product struct {
	ProductID string       `json:"product_id"`
	Name      string       `json:"name"`
	Quantity  int64        `json:"quantity"`
	Revenue   kernel.Money `json:"revenue"`
	Currency  string       `json:"currency"`
}

// figures answers with what the serving build has counted.
func (s *Service) figures(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	days, err := platform.Collect(ctx, s.env.DB, func(row interface{ Scan(dest ...any) error }) (d day, err error) {
		d.Currency = kernel.Currency
		err = row.Scan(&d.Day, &d.Placed, &d.Confirmed, &d.Dispatched, &d.Rejected, &d.Cancelled, &d.Revenue)
		return d, err
	}, `SELECT day, placed, confirmed, dispatched, rejected, cancelled, revenue FROM days
		WHERE build = (SELECT MAX(build) FROM builds WHERE status = 'serving') ORDER BY day DESC LIMIT 90`)
	if err != nil {
		return err
	}
	products, err := platform.Collect(ctx, s.env.DB, func(row interface{ Scan(dest ...any) error }) (p product, err error) {
		p.Currency = kernel.Currency
		err = row.Scan(&p.ProductID, &p.Name, &p.Quantity, &p.Revenue)
		return p, err
	}, `SELECT product_id, name, quantity, revenue FROM products
		WHERE build = (SELECT MAX(build) FROM builds WHERE status = 'serving') AND quantity > 0 ORDER BY revenue DESC, product_id LIMIT 20`)
	if err != nil {
		return err
	}
	builds, err := s.builds(ctx, `1 = 1`)
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"days": orEmpty(days), "products": orEmpty(products), "builds": orEmpty(builds)})
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
