// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/messaging"
)

func TestWire(t *testing.T) {
	m := &messaging.Message{
		ID: "id", Topic: "order.placed", Key: "ä/1", Type: "order.placed.v1", Time: time.Date(2024, 2, 29, 1, 2, 3, 4, time.UTC),
		Header: messaging.Header{"traceparent": "00-1", "dovetail-id": "the user's", "dovetail-h-x": "too", "empty": ""}, Body: []byte{0, 0xff},
	}
	t.Run("a message arrives as it was", func(t *testing.T) {
		r := encode("log", m)
		r.Partition, r.Offset = 3, 77
		d := decode(r)
		if !reflect.DeepEqual(d.msg, m) || d.attempt != 1 || d.again || d.partition != 3 || d.offset != 77 || !d.due.IsZero() {
			t.Errorf("decode = %+v, %+v, want %+v", d, d.msg, m)
		}
	})
	t.Run("it shares nothing with what was published", func(t *testing.T) {
		c := m.Clone()
		r := encode("log", c)
		c.Body[0], c.Header["traceparent"] = 9, "changed"
		if d := decode(r); !reflect.DeepEqual(d.msg, m) {
			t.Errorf("decode = %+v, want %+v", d.msg, m)
		}
	})
	t.Run("a retry keeps its place in the log, and is not due before its time", func(t *testing.T) {
		due := time.Now().Add(time.Second)
		r := again("retry", &messaging.Delivery{Message: m, Partition: 3, Offset: 77}, 4, due)
		r.Partition, r.Offset = 1, 2
		d := decode(r)
		if !reflect.DeepEqual(d.msg, m) || d.attempt != 4 || !d.again || d.partition != 3 || d.offset != 77 || d.due.Before(due) || d.due.Sub(due) > time.Millisecond {
			t.Errorf("decode = %+v, want attempt 4, 3/77, due at %v", d, due)
		}
	})
}

func TestEscape(t *testing.T) {
	names := []string{"g", "G", "a.b", "a_b", "a_5fb", "ä", "a b", "a/b", strings.Repeat("x", 160), strings.Repeat("x", 161), strings.Repeat("ä", 100), strings.Repeat("ö", 100)}
	seen := map[string]string{}
	for _, n := range names {
		e := escape(n)
		if other, ok := seen[e]; ok {
			t.Errorf("escape(%q) = escape(%q)", n, other)
		}
		seen[e] = n
		if !topicRune(e) || len(e) > maxName {
			t.Errorf("escape(%.40q) = %q, want at most %d characters of Kafka's alphabet", n, e, maxName)
		}
	}
}

func topicRune(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r)
	})
}

// FuzzDecode gives it whatever another producer may send.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("key"), []byte("value"), "dovetail-attempt", []byte("3"))
	f.Add([]byte{0xff}, []byte(nil), "dovetail-from", []byte("1/x"))
	f.Add([]byte(""), []byte("{}"), "dovetail-due", []byte("99999999999999999999"))
	f.Add([]byte(""), []byte("{}"), "dovetail-time", []byte("2024-13-01T00:00:00Z"))
	f.Fuzz(func(t *testing.T, key, value []byte, name string, header []byte) {
		r := &kgo.Record{Topic: "log", Partition: 1, Offset: 2, Key: key, Value: value, Headers: []kgo.RecordHeader{{Key: name, Value: header}}}
		d := decode(r)
		if d.msg == nil || d.msg.ID == "" && name != headerID || d.attempt < 1 {
			t.Fatalf("decode = %+v", d)
		}
		// What was understood goes round.
		if again := decode(encode("log", d.msg)); again.msg.Key != d.msg.Key || again.msg.Type != d.msg.Type || string(again.msg.Body) != string(d.msg.Body) {
			t.Errorf("round trip %+v, want %+v", again.msg, d.msg)
		}
	})
}

func TestFinished(t *testing.T) {
	for _, offsets := range [][]int64{{}, {101}, {101, 102, 103}, {150, 1 << 20, 1<<20 + 1}} {
		note := encodeFinished(100, offsets)
		got := decodeFinished(100, note)
		if len(got) != len(offsets) {
			t.Errorf("decode(%q) = %v, want %v", note, got, offsets)
		}
		for _, o := range offsets {
			if !got[o] {
				t.Errorf("decode(%q) = %v, want %d in it", note, got, o)
			}
		}
	}
	var many []int64
	for o := range int64(100_000) {
		many = append(many, 101+2*o)
	}
	note := encodeFinished(100, many)
	if got := decodeFinished(100, note); len(note) > 4096 || len(got) < 2800 || !got[101] {
		t.Errorf("%d of %d offsets in %d bytes, want thousands in at most 4096", len(got), len(many), len(note))
	}
	for _, foreign := range []string{"", "somebody else's", noteMark + "!", noteMark + "////////////////"} {
		if got := decodeFinished(100, foreign); len(got) != 0 {
			t.Errorf("decode(%q) = %v, want nothing", foreign, got)
		}
	}
}

func FuzzFinished(f *testing.F) {
	f.Add(int64(100), encodeFinished(100, []int64{101, 105}))
	f.Fuzz(func(t *testing.T, next int64, note string) {
		for o := range decodeFinished(next, note) {
			if next >= 0 && next < 1<<60 && o < next {
				t.Errorf("offset %d is before %d", o, next)
			}
		}
	})
}
