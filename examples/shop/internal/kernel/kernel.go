// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package kernel is all that the shop's services share: money, identifiers and
// the schemas of their events. It has no behaviour beyond that, on purpose: what
// two services both need is copied or asked for over the network.
package kernel

import (
	"fmt"

	"github.com/dovetail-go/dovetail/messaging"
)

// Currency is the only currency of the shop, as an ISO 4217 code.
const Currency = "EUR"

// Money is an amount in minor units of [Currency]: 1999 is 19.99 EUR.
type Money int64

// String returns the amount with its currency, such as "19.99 EUR".
func (m Money) String() string {
	sign := ""
	if m < 0 {
		sign, m = "-", -m
	}
	return fmt.Sprintf("%s%d.%02d %s", sign, m/100, m%100, Currency)
}

// NewID returns a new identifier: unique, ordered by time, safe in a URL.
func NewID() string { return messaging.NewID() }
