// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// invariants are what is known of the invariants of the shop's data. To check them takes a look at every database, so
// nobody waits for that: a scrape shows what the last check found and asks for another one. It is a collector.
type invariants struct {
	control http.Handler
	wanted  chan struct{} // holds that a scrape has asked
	ok, at  *prometheus.Desc

	mu   sync.Mutex
	last invariantState
}

// invariantState is what control says, as far as it is shown.
type invariantState struct {
	At    time.Time
	Items []struct {
		Number int
		OK     bool
	}
}

// checkTimeout is above what a check may take.
const checkTimeout = 2 * time.Minute

func newInvariants(control http.Handler) *invariants {
	return &invariants{
		control: control, wanted: make(chan struct{}, 1),
		ok: prometheus.NewDesc("shop_invariant_ok", "Whether an invariant of the shop's data, by its number in the shop's README, held when it was last checked: after the scrape before, "+
			"or when an operator looked.", []string{"number"}, nil),
		at: prometheus.NewDesc("shop_invariants_checked_timestamp_seconds", "When the invariants were last checked.", nil, nil),
	}
}

// run checks when a scrape has asked, until ctx ends.
func (i *invariants) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-i.wanted:
		}
		// A database that does not answer has an alert of its own, and an old time here.
		if state, err := i.check(ctx); err == nil {
			i.mu.Lock()
			i.last = state
			i.mu.Unlock()
		}
	}
}

func (i *invariants) check(ctx context.Context) (state invariantState, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	answer, err := asked(ctx, i.control, "/ops/api/invariants")
	if err != nil {
		return state, err
	}
	err = json.Unmarshal(answer, &state)
	return state, err
}

// asked returns what control answers at a path.
func asked(ctx context.Context, control http.Handler, path string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	w := &buffered{header: http.Header{}, status: http.StatusOK}
	control.ServeHTTP(w, r)
	if w.status != http.StatusOK {
		return nil, fmt.Errorf("control says %d", w.status)
	}
	return w.Bytes(), nil
}

// buffered keeps an answer.
type buffered struct {
	bytes.Buffer
	header http.Header
	status int
}

func (b *buffered) Header() http.Header { return b.header }

func (b *buffered) WriteHeader(status int) { b.status = status }

// Describe implements [prometheus.Collector].
func (i *invariants) Describe(ch chan<- *prometheus.Desc) {
	ch <- i.ok
	ch <- i.at
}

// Collect implements [prometheus.Collector].
func (i *invariants) Collect(ch chan<- prometheus.Metric) {
	select {
	case i.wanted <- struct{}{}:
	default: // a check is wanted already
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.last.At.IsZero() {
		return
	}
	for _, item := range i.last.Items {
		held := 0.0
		if item.OK {
			held = 1
		}
		ch <- prometheus.MustNewConstMetric(i.ok, prometheus.GaugeValue, held, strconv.Itoa(item.Number))
	}
	ch <- prometheus.MustNewConstMetric(i.at, prometheus.GaugeValue, float64(i.last.At.UnixMicro())/1e6)
}
