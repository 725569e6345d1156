// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"encoding/binary"
	"net"
	"testing"
	"time"
)

// reply is a message with one question for example., and these counts and records after it.
func reply(flags, answers, authorities uint16, records ...[]byte) []byte {
	b := []byte{0, 1}
	for _, n := range []uint16{flags, 1, answers, authorities, 0} {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	b = append(b, 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 0, 0, 1, 0, 1)
	for _, r := range records {
		b = append(b, r...)
	}
	return b
}

// record is one whose name is the question's, by a pointer to it.
func record(kind uint16, ttl uint32, data ...byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0xc0, 12}, kind)
	b = binary.BigEndian.AppendUint16(b, 1)
	b = binary.BigEndian.AppendUint32(b, ttl)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(data))), data...)
}

// soa is one whose last field, how long a no may be believed, is minimum.
func soa(ttl, minimum uint32) []byte {
	return record(6, ttl, binary.BigEndian.AppendUint32([]byte{0, 0}, minimum)...)
}

func TestTimeToLive(t *testing.T) {
	for _, tt := range []struct {
		name string
		msg  []byte
		want time.Duration
		ok   bool
	}{
		{"one answer", reply(0x8180, 1, 0, record(1, 30, 1, 2, 3, 4)), 30 * time.Second, true},
		{"the shortest of several", reply(0x8180, 3, 0, record(1, 30, 1), record(1, 5, 2), record(1, 60, 3)), 5 * time.Second, true},
		{"zero is a time", reply(0x8180, 1, 0, record(1, 0, 1)), 0, true},
		{"the highest bit set is zero", reply(0x8180, 1, 0, record(1, 1<<31, 1)), 0, true},
		{"an authority beside answers does not count", reply(0x8180, 1, 1, record(1, 30, 1), soa(1, 1)), 30 * time.Second, true},
		{"no answer: the minimum of the zone", reply(0x8183, 0, 1, soa(100, 7)), 7 * time.Second, true},
		{"no answer: the time of the record itself", reply(0x8183, 0, 1, soa(3, 100)), 3 * time.Second, true},
		{"no answer and nothing about the zone", reply(0x8183, 0, 0), 0, false},
		{"truncated", reply(0x8380, 1, 0, record(1, 30, 1)), 0, false},
		{"cut off within the record", reply(0x8180, 1, 0, record(1, 30, 1, 2, 3, 4)[:9]), 0, false},
		{"cut off within the data", reply(0x8180, 1, 0, record(1, 30, 1, 2, 3, 4)[:13]), 0, false},
		{"less than a header", make([]byte, 11), 0, false},
		{"nothing", nil, 0, false},
	} {
		if got, ok := timeToLive(tt.msg); got != tt.want || ok != tt.ok {
			t.Errorf("%s: timeToLive = %v, %v, want %v, %v", tt.name, got, ok, tt.want, tt.ok)
		}
	}
}

// TestStreamListener reads messages that come in pieces.
func TestStreamListener(t *testing.T) {
	near, far := net.Pipe()
	var stream []byte
	for _, ttl := range []uint32{30, 20} {
		msg := reply(0x8180, 1, 0, record(1, ttl, 1, 2, 3, 4))
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(msg))), msg...)
	}
	go func() {
		for i := range stream {
			_, _ = far.Write(stream[i : i+1])
		}
		_ = far.Close()
	}()
	life := &lifetime{least: time.Minute}
	listener := &streamListener{Conn: near, life: life}
	for buf := make([]byte, 7); ; {
		if _, err := listener.Read(buf); err != nil {
			break
		}
	}
	if got := life.get(); got != 20*time.Second {
		t.Errorf("the shortest time heard = %v, want 20s", got)
	}
}

func FuzzTimeToLive(f *testing.F) {
	f.Add(reply(0x8180, 1, 1, record(1, 30, 1, 2, 3, 4), soa(1, 2)))
	f.Add(reply(0x8183, 0, 1, soa(100, 7)))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if ttl, ok := timeToLive(msg); ttl < 0 || ttl > (1<<31-1)*time.Second || !ok && len(msg) < 12 && ttl != 0 {
			t.Errorf("timeToLive = %v, %v", ttl, ok)
		}
	})
}
