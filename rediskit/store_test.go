// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"testing"

	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/resilience/resiliencetest"
)

func TestBuckets(t *testing.T) {
	resiliencetest.RunStore(t, func(t *testing.T) ratelimit.Store { return buckets(t) })
}
