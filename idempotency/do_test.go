// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
)

type receipt struct {
	ID  int
	Sum string
}

func TestDo(t *testing.T) {
	key := idempotency.Key{Scope: "charges", ID: "order-1"}
	charge := func(runs *int) func(context.Context) (receipt, error) {
		return func(context.Context) (receipt, error) {
			*runs++
			return receipt{*runs, "9.99"}, nil
		}
	}
	want := func(t *testing.T, got receipt, err error, id, runs, wantRuns int) {
		t.Helper()
		if err != nil || got != (receipt{id, "9.99"}) {
			t.Errorf("Do = %+v, %v, want receipt %d", got, err, id)
		}
		if runs != wantRuns {
			t.Errorf("fn ran %d times, want %d", runs, wantRuns)
		}
	}

	t.Run("a repetition returns the stored result", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		for range 3 {
			got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
			want(t, got, err, 1, runs, 1)
		}
	})
	t.Run("another fingerprint is ErrMismatch", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		got, err := idempotency.Do(t.Context(), s, key, []byte("9.99"), charge(&runs))
		want(t, got, err, 1, runs, 1)
		_, err = idempotency.Do(t.Context(), s, key, []byte("8.88"), charge(&runs))
		if !errors.Is(err, idempotency.ErrMismatch) || !fault.IsPermanent(err) || runs != 1 {
			t.Errorf("Do = %v after %d runs, want a permanent %v after 1", err, runs, idempotency.ErrMismatch)
		}
	})
	t.Run("while fn runs others get ErrInProgress and when to come back", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		_, err := idempotency.Do(t.Context(), s, key, nil, func(ctx context.Context) (receipt, error) {
			_, err := idempotency.Do(ctx, s, key, nil, charge(&runs))
			return receipt{}, err
		})
		if v := fault.Judge(t.Context(), err); !errors.Is(err, idempotency.ErrInProgress) || v.Outcome != fault.Neutral || !v.Retry || v.After != time.Second || runs != 0 {
			t.Errorf("Do = %v with %+v after %d runs, want %v", err, v, runs, idempotency.ErrInProgress)
		}
	})
	t.Run("of many at the same moment one runs", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		var wg sync.WaitGroup
		for range 32 {
			wg.Go(func() {
				for {
					got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
					if errors.Is(err, idempotency.ErrInProgress) {
						continue
					}
					if err != nil || got.ID != 1 {
						t.Errorf("Do = %+v, %v, want receipt 1", got, err)
					}
					return
				}
			})
		}
		wg.Wait()
	})
	t.Run("an error is returned as it is, and the next caller runs", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		declined := errors.New("declined")
		got, err := idempotency.Do(t.Context(), s, key, nil, func(context.Context) (receipt, error) { return receipt{ID: 5}, declined })
		if err != declined || got.ID != 5 { //nolint:errorlint // it must be the very error
			t.Errorf("Do = %+v, %v, want what fn returned", got, err)
		}
		got, err = idempotency.Do(t.Context(), s, key, []byte("another"), charge(&runs))
		want(t, got, err, 1, runs, 1)
	})
	t.Run("a panic goes on, and the next caller runs", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		func() {
			defer func() {
				if v := recover(); v != "boom" {
					t.Errorf("recover = %v, want boom", v)
				}
			}()
			_, _ = idempotency.Do(t.Context(), s, key, nil, func(context.Context) (receipt, error) { panic("boom") })
		}()
		got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
		want(t, got, err, 1, runs, 1)
	})
	t.Run("a result without a JSON form is an error, and the next caller runs", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		if _, err := idempotency.Do(t.Context(), s, key, nil, func(context.Context) (chan int, error) { return nil, nil }); !fault.IsPermanent(err) {
			t.Errorf("Do = %v, want a permanent error", err)
		}
		got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
		want(t, got, err, 1, runs, 1)
	})
	t.Run("a stored result of another type is an error and does not run", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		if _, err := idempotency.Do(t.Context(), s, key, nil, func(context.Context) (string, error) { return "text", nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs)); !fault.IsPermanent(err) || runs != 0 {
			t.Errorf("Do = %v after %d runs, want a permanent error after none", err, runs)
		}
	})
	t.Run("an invalid key is a permanent error", func(t *testing.T) {
		runs := 0
		if _, err := idempotency.Do(t.Context(), idempotencymem.New(), idempotency.Key{}, nil, charge(&runs)); !fault.IsPermanent(err) || runs != 0 {
			t.Errorf("Do = %v after %d runs, want a permanent error after none", err, runs)
		}
	})
	t.Run("a caller that has gone claims nothing, and fn does not run", func(t *testing.T) {
		s, runs := &countingStore{Store: idempotencymem.New()}, 0
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := idempotency.Do(ctx, s, key, nil, charge(&runs)); !errors.Is(err, context.Canceled) || s.begins != 0 || runs != 0 {
			t.Errorf("Do = %v after %d calls of Begin and %d runs, want %v after none", err, s.begins, runs, context.Canceled)
		}
	})
	t.Run("a caller that goes while its key is claimed leaves it free, and fn does not run", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := idempotency.Do(ctx, hastyStore{cancellingStore{s, cancel}}, key, nil, charge(&runs)); !errors.Is(err, context.Canceled) || runs != 0 {
			t.Errorf("Do = %v after %d runs, want %v after none", err, runs, context.Canceled)
		}
		got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
		want(t, got, err, 1, runs, 1)
	})
	t.Run("a caller that goes while its key is looked up gets the stored result", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
		want(t, got, err, 1, runs, 1)
		ctx, cancel := context.WithCancel(t.Context())
		got, err = idempotency.Do(ctx, cancellingStore{s, cancel}, key, nil, charge(&runs))
		want(t, got, err, 1, runs, 1)
	})
	t.Run("the result is stored although the caller has gone", func(t *testing.T) {
		s, runs := idempotencymem.New(), 0
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := idempotency.Do(ctx, s, key, nil, func(ctx context.Context) (receipt, error) {
			cancel()
			return charge(&runs)(ctx)
		}); err != nil {
			t.Errorf("Do = %v", err)
		}
		got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
		want(t, got, err, 1, runs, 1)
	})
	t.Run("a long fn keeps its key", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, runs := idempotencymem.New(), 0
			var wg sync.WaitGroup
			wg.Go(func() {
				got, err := idempotency.Do(t.Context(), s, key, nil, func(ctx context.Context) (receipt, error) {
					time.Sleep(time.Hour)
					return charge(&runs)(ctx)
				})
				want(t, got, err, 1, runs, 1)
			})
			time.Sleep(59 * time.Minute)
			if _, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs)); !errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("Do = %v, want %v", err, idempotency.ErrInProgress)
			}
			wg.Wait()
		})
	})
	t.Run("a key that was lost ends the context of fn, and its result is not stored", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, runs := idempotencymem.New(), 0
			var wg sync.WaitGroup
			wg.Go(func() {
				got, err := idempotency.Do(t.Context(), stalledStore{s}, key, nil, func(ctx context.Context) (receipt, error) {
					<-ctx.Done()
					if cause := context.Cause(ctx); !errors.Is(cause, idempotency.ErrLeaseLost) {
						t.Errorf("the context ended with %v, want %v", cause, idempotency.ErrLeaseLost)
					}
					time.Sleep(time.Minute)
					return receipt{99, ""}, nil
				})
				if !errors.Is(err, idempotency.ErrLeaseLost) || !fault.IsUnknown(err) || got.ID != 99 {
					t.Errorf("Do = %+v, %v, want the result and %v with an unknown outcome", got, err, idempotency.ErrLeaseLost)
				}
			})
			time.Sleep(idempotency.DefaultLease + time.Second)
			got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
			want(t, got, err, 1, runs, 1)
			wg.Wait()
			got, err = idempotency.Do(t.Context(), s, key, nil, charge(&runs))
			want(t, got, err, 1, runs, 1)
		})
	})
	t.Run("fn that gives up because the key was lost says so", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, err := idempotency.Do(t.Context(), stalledStore{idempotencymem.New()}, key, nil, func(ctx context.Context) (receipt, error) {
				<-ctx.Done()
				return receipt{}, ctx.Err()
			})
			if !errors.Is(err, idempotency.ErrLeaseLost) || !errors.Is(err, context.Canceled) {
				t.Errorf("Do = %v, want %v and what fn returned", err, idempotency.ErrLeaseLost)
			}
		})
	})
	t.Run("a result that cannot be stored is returned with an unknown outcome", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			runs := 0
			got, err := idempotency.Do(t.Context(), deadStore{idempotencymem.New()}, key, nil, charge(&runs))
			if !errors.Is(err, errDead) || !fault.IsUnknown(err) || got.ID != 1 {
				t.Errorf("Do = %+v, %v, want the result and an unknown outcome", got, err)
			}
		})
	})
	t.Run("what may be stored is not released: others wait for the lease", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, runs := idempotencymem.New(), 0
			if _, err := idempotency.Do(t.Context(), mutedStore{s}, key, nil, charge(&runs)); !fault.IsUnknown(err) {
				t.Errorf("Do = %v, want an unknown outcome", err)
			}
			if _, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs)); !errors.Is(err, idempotency.ErrInProgress) {
				t.Errorf("Do again = %v, want %v", err, idempotency.ErrInProgress)
			}
			time.Sleep(idempotency.DefaultLease)
			got, err := idempotency.Do(t.Context(), s, key, nil, charge(&runs))
			want(t, got, err, 2, runs, 2)
		})
	})
}

// mutedStore never answers whether it has completed a command.
type mutedStore struct{ *idempotencymem.Store }

func (mutedStore) Complete(context.Context, idempotency.Claim, []byte) error { return errDead }

// countingStore counts what is asked of it.
type countingStore struct {
	idempotency.Store
	begins int
}

func (s *countingStore) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	s.begins++
	return s.Store.Begin(ctx, cmd)
}

// hastyStore claims the key in any case, and then gives up if its caller has: a database
// whose answer nobody waits for.
type hastyStore struct{ cancellingStore }

func (s hastyStore) Begin(ctx context.Context, cmd idempotency.Command) (idempotency.Claim, error) {
	s.cancel()
	c, err := s.Store.Begin(context.WithoutCancel(ctx), cmd)
	if ctx.Err() != nil {
		return idempotency.Claim{}, ctx.Err()
	}
	return c, err
}
