// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package messagingtest proves that a broker's client keeps the contract of package
// messaging.
//
//	func TestConformance(t *testing.T) {
//		messagingtest.Run(t, messagingtest.Harness{
//			Open:    func(t *testing.T, o messagingtest.Options) *messagingtest.Client { ... },
//			Ordered: true,
//		})
//	}
//
// [Run] has one subtest for each sentence of the contract. A harness declares what its
// broker can do beyond the core; what it does not declare must be refused with
// messaging.ErrUnsupported where it is asked for, never ignored.
//
// [Proxy] stands between a client and a TCP server and cuts, stalls, halves, throttles,
// drops and delays. [Checker] accounts for every message over a long run with faults:
// what was lost, what came twice, what overtook another of its key.
//
// # Caveats
//
// That something does not happen is tested by waiting for a moment: a client that is
// wrong may pass by luck, one that is right does not fail by it.
package messagingtest
