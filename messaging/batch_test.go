// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// calls lets n goroutines call h, one after the other, and returns their results by ID.
func calls(ctx context.Context, t *testing.T, h Handler, n int) map[string]error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	results := make(map[string]error)
	for i := range n {
		id := fmt.Sprintf("%02d", i)
		wg.Go(func() {
			// As a broker's client does, so that a panic or Goexit is a result too.
			Invoke(ctx, h, &Delivery{Message: &Message{ID: id}}, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				if _, twice := results[id]; twice {
					t.Errorf("%s has two results", id)
				}
				results[id] = err
			})
		})
		synctest.Wait()
	}
	wg.Wait()
	return results
}

func batch(t *testing.T, cfg BatchConfig, fn BatchHandler) Handler {
	t.Helper()
	h, err := Batch(cfg, fn)
	if err != nil {
		t.Fatalf("Batch = %v, want nil", err)
	}
	return h
}

func sizes(got [][]string) []int {
	var n []int
	for _, b := range got {
		n = append(n, len(b))
	}
	return n
}

func TestBatch(t *testing.T) {
	// recorder returns a batch handler that records, takes a second, and then returns fn's errors.
	recorder := func(got *[][]string, fn func(ds []*Delivery) []error) BatchHandler {
		return func(_ context.Context, ds []*Delivery) []error {
			var ids []string
			for _, d := range ds {
				ids = append(ids, d.Message.ID)
			}
			*got = append(*got, ids)
			time.Sleep(time.Second)
			return fn(ds)
		}
	}
	allDone := func([]*Delivery) []error { return nil }
	inBubble := func(name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, fn) })
	}

	inBubble("without linger a batch is what arrived during the one before, in order", func(t *testing.T) {
		var got [][]string
		results := calls(t.Context(), t, batch(t, BatchConfig{Size: 5}, recorder(&got, allDone)), 12)
		if want := []int{1, 5, 5, 1}; !slices.Equal(sizes(got), want) || !slices.IsSorted(slices.Concat(got...)) {
			t.Errorf("batches %v, want sizes %v in order", got, want)
		}
		for id, err := range results {
			if err != nil {
				t.Errorf("result of %s = %v, want nil", id, err)
			}
		}
	})

	inBubble("with linger a batch waits until it is full or its time is over", func(t *testing.T) {
		var got [][]string
		start := time.Now()
		calls(t.Context(), t, batch(t, BatchConfig{Size: 5, Linger: time.Minute}, recorder(&got, allDone)), 12)
		if want := []int{5, 5, 2}; !slices.Equal(sizes(got), want) {
			t.Errorf("batches %v, want sizes %v", got, want)
		}
		if took, want := time.Since(start), time.Minute+3*time.Second; took != want {
			t.Errorf("took %v, want %v: only the last one waits for its time", took, want)
		}
	})

	inBubble("the end of the context ends the linger", func(t *testing.T) {
		var got [][]string
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		calls(ctx, t, batch(t, BatchConfig{Linger: time.Hour}, recorder(&got, allDone)), 3)
		if took := time.Since(start); took != 2*time.Second || len(got) != 1 {
			t.Errorf("took %v for %v, want one batch after the context's end", took, got)
		}
	})

	inBubble("each error decides about its own message", func(t *testing.T) {
		var got [][]string
		h := batch(t, BatchConfig{Linger: time.Second}, recorder(&got, func(ds []*Delivery) []error {
			errs := make([]error, len(ds))
			errs[1] = errTest
			return errs
		}))
		for id, err := range calls(t.Context(), t, h, 4) {
			if want := id == "01"; errors.Is(err, errTest) != want {
				t.Errorf("result of %s = %v, want the error: %t", id, err, want)
			}
		}
	})

	inBubble("another number of errors fails all", func(t *testing.T) {
		var got [][]string
		h := batch(t, BatchConfig{Linger: time.Second}, recorder(&got, func([]*Delivery) []error { return []error{nil} }))
		for id, err := range calls(t.Context(), t, h, 4) {
			if err == nil || !strings.Contains(err.Error(), "1 errors for 4 deliveries") {
				t.Errorf("result of %s = %v, want an error that counts", id, err)
			}
		}
	})

	for name, end := range map[string]func(){"a panic": func() { panic(errTest) }, "Goexit": runtime.Goexit} {
		inBubble(name+" fails all of its batch, and the next one runs", func(t *testing.T) {
			var got [][]string
			h := batch(t, BatchConfig{Size: 4}, recorder(&got, func(ds []*Delivery) []error {
				if len(got) == 2 {
					end()
				}
				return nil
			}))
			failed := 0
			for _, err := range calls(t.Context(), t, h, 9) {
				if p := (*PanicError)(nil); errors.As(err, &p) {
					failed++
				} else if err != nil {
					t.Errorf("result = %v, want nil or a PanicError", err)
				}
			}
			if want := []int{1, 4, 4}; !slices.Equal(sizes(got), want) || failed != 4 {
				t.Errorf("batches %v, %d failed, want sizes %v, 4 failed", got, failed, want)
			}
		})
	}

	inBubble("as many batches as Parallel run at the same time, each begun in order", func(t *testing.T) {
		for linger, want := range map[time.Duration][]int{0: {1, 1, 5, 5}, time.Minute: {5, 5, 2}} {
			var mu sync.Mutex
			var got [][]string
			running, most := 0, 0
			start := time.Now()
			calls(t.Context(), t, batch(t, BatchConfig{Size: 5, Parallel: 2, Linger: linger}, func(_ context.Context, ds []*Delivery) []error {
				mu.Lock()
				running++
				most = max(most, running)
				var ids []string
				for _, d := range ds {
					ids = append(ids, d.Message.ID)
				}
				got = append(got, ids)
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				defer mu.Unlock()
				running--
				return nil
			}), 12)
			// Two that begin at the same moment may get here in either order.
			slices.SortFunc(got, slices.Compare)
			if !slices.Equal(sizes(got), want) || !slices.IsSorted(slices.Concat(got...)) || most != 2 {
				t.Errorf("with Linger %v batches %v, at most %d at once; want sizes %v in order, 2 at once", linger, got, most, want)
			}
			if took, want := time.Since(start), linger+2*time.Second; took != want {
				t.Errorf("with Linger %v took %v, want %v", linger, took, want)
			}
		}
	})

	t.Run("a bad config is refused by name", func(t *testing.T) {
		for field, cfg := range map[string]BatchConfig{"Size": {Size: -1}, "Linger": {Linger: -1}, "Parallel": {Parallel: -1}} {
			if _, err := Batch(cfg, nil); err == nil || !strings.Contains(err.Error(), "BatchConfig."+field) {
				t.Errorf("Batch = %v, want an error that names %s", err, field)
			}
		}
	})

	for _, parallel := range []int{1, 3} {
		underLoad(t, parallel)
	}
}

func underLoad(t *testing.T, parallel int) {
	t.Run(fmt.Sprintf("under load every delivery has its own result, Parallel %d", parallel), func(t *testing.T) {
		var running atomic.Int64
		h := batch(t, BatchConfig{Size: 7, Parallel: parallel, Linger: 50 * time.Microsecond}, func(_ context.Context, ds []*Delivery) []error {
			if n := running.Add(1); n > int64(parallel) {
				t.Errorf("%d batches run at the same time", n)
			}
			defer running.Add(-1)
			errs := make([]error, len(ds))
			for i, d := range ds {
				errs[i] = errors.New(d.Message.ID)
			}
			return errs
		})
		var wg sync.WaitGroup
		for g := range 20 {
			wg.Go(func() {
				for i := range 200 {
					id := fmt.Sprint(g, "-", i)
					if err := h.Handle(t.Context(), &Delivery{Message: &Message{ID: id}}); err == nil || err.Error() != id {
						t.Errorf("Handle(%s) = %v, want its own error", id, err)
					}
				}
			})
		}
		wg.Wait()
	})
}
