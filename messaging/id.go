// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messaging

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync/atomic"
	"time"
)

// lastID is the latest timestamp given out by NewID, in units of 1/4096 ms.
var lastID atomic.Int64

// maxAhead is how far the timestamps of NewID may run ahead of the clock to stay
// ordered, in units of 1/4096 ms: ten seconds. Beyond that the clock was set back, and
// following it is better than stamping the future until it has caught up.
const maxAhead = 10_000 << 12

// NewID returns a unique ID in the text form of a UUID version 7 (RFC 9562). IDs sort
// by their time; those made by one process sort in the order of their making, unless
// its clock is set back.
func NewID() string {
	// Method 3 of RFC 9562, section 6.2: 48 bits of milliseconds, 12 bits of their
	// fraction, 62 random bits.
	now := time.Now()
	stamp := now.UnixMilli()<<12 | int64(now.Nanosecond()%1_000_000)<<12/1_000_000
	for {
		last := lastID.Load()
		next := stamp
		if next <= last && last-next < maxAhead {
			next = last + 1
		}
		if lastID.CompareAndSwap(last, next) {
			stamp = next
			break
		}
	}
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], uint64(stamp>>12)<<16|7<<12|uint64(stamp)&0xfff)
	_, _ = rand.Read(u[8:]) // documented never to fail
	u[8] = u[8]&0x3f | 0x80

	var text [36]byte
	hex.Encode(text[:8], u[:4])
	hex.Encode(text[9:13], u[4:6])
	hex.Encode(text[14:18], u[6:8])
	hex.Encode(text[19:23], u[8:10])
	hex.Encode(text[24:], u[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}
