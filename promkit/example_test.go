// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package promkit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/promkit"
)

func Example() {
	payments, err := breaker.New(breaker.Config{Name: "payments"})
	if err != nil {
		fmt.Println(err)
		return
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(promkit.Breakers(payments))

	for range 5 { // failures in a row open it
		_ = payments.Do(context.Background(), func(context.Context) error { return errors.New("connection refused") })
	}
	families, err := registry.Gather()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, f := range families {
		if !strings.HasSuffix(f.GetName(), "_state") {
			continue
		}
		for _, m := range f.GetMetric() {
			fmt.Println(f.GetName(), m.GetLabel()[1].GetValue(), m.GetGauge().GetValue())
		}
	}
	// Output:
	// dovetail_breaker_state closed 0
	// dovetail_breaker_state half-open 0
	// dovetail_breaker_state open 1
}
