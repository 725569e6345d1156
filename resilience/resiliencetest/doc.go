// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package resiliencetest states what guards promise, each promise as a subtest.
//
// The suites see a guard through small interfaces, so that any implementation can be held to
// them: dovetail's own, another library through an adapter, or yours. What an
// implementation does not have at all its adapter declines with [ErrUnsupported], and the subtest
// is skipped.
//
//	func TestBreaker(t *testing.T) {
//		resiliencetest.RunBreaker(t, func(s resiliencetest.BreakerSpec) (resiliencetest.Guard, error) {
//			return breaker.New(breaker.Config{Consecutive: s.Consecutive, OpenFor: s.OpenFor, Probes: s.Probes})
//		})
//	}
//
// Promises that depend on time are checked in the virtual time of testing/synctest: a guard must
// use package time, and must not start goroutines that outlive its calls. A guard that blocks for
// ever makes its subtest hang or the test binary panic; to hold a doubtful one to everything,
// run each of [Promises] in a process of its own.
package resiliencetest
