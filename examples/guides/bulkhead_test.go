// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/bulkhead"
)

type renderer func(ctx context.Context, id string) ([]byte, error)

func oldReport(ctx context.Context, render renderer, id string) ([]byte, error) {
	// snippet: bulkhead/before
	return render(ctx, id) // as many at once as there are requests
	// end
}

// snippet: bulkhead/after
type Reports struct {
	render renderer
	places *bulkhead.Bulkhead
}

func NewReports(render renderer) (*Reports, error) {
	b, err := bulkhead.New(4, bulkhead.Config{Name: "reports", Queue: 8, Wait: 2 * time.Second})
	if err != nil {
		return nil, err
	}
	return &Reports{render: render, places: b}, nil
}

func (r *Reports) Report(ctx context.Context, id string) ([]byte, error) {
	return bulkhead.Do(ctx, r.places, func(ctx context.Context) ([]byte, error) {
		return r.render(ctx, id)
	})
}

// end

// snippet: bulkhead/test
func TestReportsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			running += n
			most = max(most, running)
		}
		reports, err := NewReports(func(context.Context, string) ([]byte, error) {
			count(+1)
			time.Sleep(time.Second)
			count(-1)
			return nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error)
		for range 20 {
			go func() {
				_, err := reports.Report(t.Context(), "7")
				results <- err
			}()
		}
		refused := 0
		for range 20 {
			if errors.Is(<-results, bulkhead.ErrFull) {
				refused++
			}
		}
		if most != 4 || refused < 8 {
			t.Errorf("%d ran at once and %d were refused, want 4, and at least the 8 that found the queue full", most, refused)
		}
	})
}

// end

func TestReportsWithoutABound(t *testing.T) {
	if _, err := oldReport(t.Context(), func(context.Context, string) ([]byte, error) { return nil, nil }, "7"); err != nil {
		t.Error(err)
	}
}
