// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package kernel is all that the shop's services share: money, identifiers and
// the schemas of their events. It has no behaviour beyond that, on purpose: what
// two services both need is copied or asked for over the network.
package kernel

import (
	"fmt"
	"strconv"
	"time"

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

// Born returns when an identifier was made, to the millisecond. It is the zero time for one that is not from NewID.
func Born(id string) time.Time {
	// A UUID of version 7 begins with the milliseconds since 1970 in 48 bits (RFC 9562, section 5.7).
	if len(id) != 36 || id[14] != '7' {
		return time.Time{}
	}
	ms, err := strconv.ParseInt(id[:8]+id[9:13], 16, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
