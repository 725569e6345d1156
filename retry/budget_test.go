// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package retry_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/retry"
)

func newBudget(t testing.TB, cfg retry.BudgetConfig) *retry.Budget {
	t.Helper()
	b, err := retry.NewBudget(cfg)
	if err != nil {
		t.Fatalf("NewBudget = %v, want nil", err)
	}
	return b
}

// drain withdraws until it is refused and returns how often it was not.
func drain(b *retry.Budget) (n int) {
	for b.Withdraw() {
		n++
	}
	return n
}

func TestBudget(t *testing.T) {
	t.Run("first tries pay for a share of retries", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(t, retry.BudgetConfig{Ratio: 0.2, MinPerSecond: -1})
			for range 1000 {
				b.Deposit()
			}
			if n := drain(b); n != 200 {
				t.Errorf("%d retries after 1000 first tries, want 200", n)
			}
		})
	})
	t.Run("is forgotten with time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(t, retry.BudgetConfig{MinPerSecond: -1})
			for range 1024 { // a whole number of folds
				b.Deposit()
			}
			time.Sleep(10 * time.Second)
			if n := drain(b); n != 37 {
				t.Errorf("%d of 102 retries after one window, want 37 (1/e)", n)
			}
			for range 1024 {
				b.Deposit()
			}
			time.Sleep(10 * time.Minute)
			if n := drain(b); n != 0 {
				t.Errorf("%d retries after an hour, want 0", n)
			}
		})
	})
	t.Run("is forgotten with time, also what was counted last before a pause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(t, retry.BudgetConfig{Ratio: 1, MinPerSecond: -1})
			for range 50 {
				b.Deposit()
			}
			time.Sleep(time.Hour)
			if n := drain(b); n != 0 {
				t.Errorf("%d retries after an hour, want 0", n)
			}
		})
	})
	t.Run("has a floor for rare calls, which saves up one window", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(t, retry.BudgetConfig{MinPerSecond: 2, Window: 10 * time.Second})
			if n := drain(b); n != 20 {
				t.Errorf("%d retries at the start, want 20", n)
			}
			time.Sleep(time.Second)
			if n := drain(b); n != 2 {
				t.Errorf("%d retries after a second, want 2", n)
			}
			time.Sleep(time.Hour)
			if n := drain(b); n != 20 {
				t.Errorf("%d retries after an hour, want 20", n)
			}
		})
	})
	t.Run("a spent budget ends the retries with ErrBudget, at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(t, retry.BudgetConfig{MinPerSecond: -1})
			r := newRetrier(t, retry.Config{Budget: b})
			calls, start := 0, time.Now()
			err := r.Do(t.Context(), failing(&calls, errDown))
			if !errors.Is(err, retry.ErrBudget) || !errors.Is(err, errDown) || calls != 1 || time.Since(start) != 0 {
				t.Errorf("Do = %v after %d calls, want ErrBudget and errDown after 1", err, calls)
			}
		})
	})
	t.Run("may be shared by many Retriers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBudget(t, retry.BudgetConfig{MinPerSecond: 0.4, Window: 10 * time.Second})
			calls := 0
			for range 12 {
				newRetrier(t, retry.Config{Budget: b, Base: 1, Max: 1}).Do(t.Context(), failing(&calls, errDown))
			}
			if calls != 12+4+1 { // the floor's 4, and a tenth of 12 first tries
				t.Errorf("%d calls, want 17", calls)
			}
		})
	})
	t.Run("Unlimited refuses nothing", func(t *testing.T) {
		for range 100 {
			retry.Unlimited.Deposit()
			if !retry.Unlimited.Withdraw() {
				t.Fatal("Withdraw = false, want true")
			}
		}
		if b := retry.Unlimited.Balance(); !math.IsInf(b, 1) {
			t.Errorf("Balance = %v, want +Inf", b)
		}
	})
}

// The reference remembers every deposit with its time and decays each by its own
// age. The Budget folds 64 at a time, so it may differ by what those are worth.
func TestBudgetModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	synctest.Test(t, func(t *testing.T) {
		for range 12 {
			const ratio, window = 0.1, 10.0
			b := newBudget(t, retry.BudgetConfig{MinPerSecond: -1})
			var paid []struct {
				at   time.Time
				left float64
			}
			for range 400 {
				switch rng.IntN(3) {
				case 0:
					for range rng.IntN(300) {
						b.Deposit()
						paid = append(paid, struct {
							at   time.Time
							left float64
						}{time.Now(), ratio})
					}
				case 1:
					time.Sleep(time.Duration(rng.Int64N(int64(3 * time.Second))))
				case 2:
					want := 0.0
					for _, p := range paid {
						want += p.left * math.Exp(-time.Since(p.at).Seconds()/window)
					}
					got := b.Balance()
					if slack := 64*ratio + 1; math.Abs(got-want) > slack {
						t.Fatalf("Balance = %v, want %.1f within %.1f", got, want, slack)
					}
					took := drain(b)
					if rest := want - float64(took); want > 0 { // spend all paid alike
						for i := range paid {
							paid[i].left *= max(rest, 0) / want
						}
					}
				}
			}
		}
	})
}

// TestOutageSimulator is the picture of the package: what share of failing
// calls costs how much load, for one layer and for three nested ones.
func TestOutageSimulator(t *testing.T) {
	const rps, seconds = 200, 30

	// simulate returns calls per first try at the bottom of the layers.
	simulate := func(t *testing.T, failing float64, layers []*retry.Retrier, hide bool) float64 {
		var mu sync.Mutex
		rng := rand.New(rand.NewPCG(1, 2))
		calls := 0
		bottom := func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			calls++
			if rng.Float64() < failing {
				return errDown
			}
			return nil
		}
		fn := bottom
		for _, r := range layers {
			inner := fn
			fn = func(ctx context.Context) error {
				err := r.Do(ctx, inner)
				if err != nil && hide {
					return errors.New("internal error")
				}
				return err
			}
		}
		synctest.Test(t, func(t *testing.T) {
			var wg sync.WaitGroup
			for range rps * seconds {
				wg.Go(func() { _ = fn(t.Context()) })
				time.Sleep(time.Second / rps)
			}
			wg.Wait()
		})
		return float64(calls) / (rps * seconds)
	}
	layers := func(t *testing.T, n int, b func() *retry.Budget) (out []*retry.Retrier) {
		for range n {
			out = append(out, newRetrier(t, retry.Config{Budget: b()}))
		}
		return out
	}
	unlimited := func() *retry.Budget { return retry.Unlimited }
	own := func() *retry.Budget { return nil }

	var table strings.Builder
	row := func(format string, args ...any) { fmt.Fprintf(&table, format, args...) }
	row("calls per first try, %d first tries a second for %d s, three attempts\n", rps, seconds)
	row("%8s %10s %10s %14s %20s\n", "failing", "no budget", "budget", "3 layers", "3 layers, hidden")
	for _, failing := range []float64{0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1} {
		none := simulate(t, failing, layers(t, 1, unlimited), false)
		one := simulate(t, failing, layers(t, 1, own), false)
		three := simulate(t, failing, layers(t, 3, own), false)
		hidden := simulate(t, failing, layers(t, 3, own), true)
		row("%7.0f%% %9.2fx %9.2fx %13.2fx %19.2fx\n", 100*failing, none, one, three, hidden)
		if one > 1.2 {
			t.Errorf("at %v failing: %.2fx the load, want at most 1.2x", failing, one)
		}
		if three > 1.5 || hidden > 1.5 {
			t.Errorf("at %v failing, three layers: %.2fx, with hidden errors %.2fx, want at most 1.5x", failing, three, hidden)
		}
		if failing == 1 && none < 2.9 {
			t.Errorf("without a budget %.2fx, want 3x: the simulator shows nothing", none)
		}
	}
	t.Log("\n" + table.String())
}
