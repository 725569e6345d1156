// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package breaker_test

import (
	"context"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/breaker"
)

func BenchmarkDo(b *testing.B) {
	for name, cfg := range map[string]breaker.Config{
		"consecutive": {},
		"failureRate": {FailureRate: 0.5},
		"slowRate":    {SlowRate: 0.5, SlowAfter: time.Second},
		"calls":       {FailureRate: 0.5, Calls: 100},
	} {
		b.Run(name, func(b *testing.B) {
			br := newBreaker(b, cfg)
			ctx := b.Context()
			b.ReportAllocs()
			for b.Loop() {
				breaker.Do(ctx, br, func(context.Context) (int, error) { return 1, nil })
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			br := newBreaker(b, cfg)
			ctx := b.Context()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					breaker.Do(ctx, br, func(context.Context) (int, error) { return 1, nil })
				}
			})
		})
	}
}

func BenchmarkKeyed(b *testing.B) {
	k, err := breaker.NewKeyed[string](breaker.Config{}, 0)
	if err != nil {
		b.Fatal(err)
	}
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		k.Get("api.example:443").Do(ctx, func(context.Context) error { return nil })
	}
}
