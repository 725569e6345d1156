// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/messaging"
)

// The headers of our own. What a message of the user's has under such a name travels with the
// prefix of escaped.
const (
	own           = "dovetail-"
	headerID      = own + "id"
	headerTopic   = own + "topic"
	headerType    = own + "type"
	headerKey     = own + "key" // of a dead letter, whose record has another key
	headerTime    = own + "time"
	headerAttempt = own + "attempt" // of what comes back from a retry
	headerDue     = own + "due"     // until when it waits, in milliseconds since 1970
	headerFrom    = own + "from"    // partition/offset in the log, of what comes back
	headerGroup   = own + "group"   // marks a change of this group's patterns; no message
	escaped       = own + "h-"
)

// encode returns m as it travels. It shares nothing with m.
func encode(topic string, m *messaging.Message) *kgo.Record {
	r := &kgo.Record{Topic: topic, Value: append([]byte{}, m.Body...), Headers: make([]kgo.RecordHeader, 0, len(m.Header)+4)}
	if m.Key != "" {
		r.Key = []byte(m.Key)
	}
	set := func(name, value string) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(value)})
	}
	set(headerID, m.ID)
	set(headerTopic, m.Topic)
	if m.Type != "" {
		set(headerType, m.Type)
	}
	if !m.Time.IsZero() {
		set(headerTime, m.Time.Format(time.RFC3339Nano))
	}
	for _, name := range m.Header.Keys() {
		if strings.HasPrefix(name, own) {
			set(escaped+name, m.Header[name])
		} else {
			set(name, m.Header[name])
		}
	}
	return r
}

// received is a message with what we noted on it.
type received struct {
	msg       *messaging.Message
	attempt   int
	again     bool
	due       time.Time // zero: now
	partition int32     // in the log
	offset    int64
	group     string // whose patterns have changed; msg means nothing then
}

// decode returns the message in r. It takes whatever another producer may have sent: a record
// without our headers is a message of the topic named like the Kafka topic, with its place as ID.
func decode(r *kgo.Record) received {
	m := &messaging.Message{Key: text(r.Key), Body: slices.Clip(r.Value)}
	d := received{msg: m, attempt: 1, partition: r.Partition, offset: r.Offset}
	for _, h := range r.Headers {
		v := text(h.Value)
		switch h.Key {
		case headerID:
			m.ID = v
		case headerTopic:
			m.Topic = v
		case headerType:
			m.Type = v
		case headerKey:
			m.Key = v
		case headerTime:
			if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
				m.Time = t
			}
		case headerAttempt:
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				d.attempt = n
			}
			d.again = true
		case headerDue:
			if ms, err := strconv.ParseInt(v, 10, 64); err == nil {
				d.due = time.UnixMilli(ms)
			}
		case headerFrom:
			p, o, _ := strings.Cut(v, "/")
			if n, err := strconv.ParseInt(p, 10, 32); err == nil {
				d.partition = int32(n)
			}
			if n, err := strconv.ParseInt(o, 10, 64); err == nil {
				d.offset = n
			}
		case headerGroup:
			d.group = v
		default:
			if m.Header == nil {
				m.Header = make(messaging.Header, len(r.Headers))
			}
			m.Header[strings.TrimPrefix(h.Key, escaped)] = v
		}
	}
	if m.ID == "" {
		m.ID = r.Topic + "/" + strconv.Itoa(int(r.Partition)) + "/" + strconv.FormatInt(r.Offset, 10)
	}
	if m.Topic == "" {
		m.Topic, m.Time = r.Topic, r.Timestamp
	}
	return d
}

// again returns the record of a message that its group is to handle again.
func again(topic string, d *messaging.Delivery, attempt int, due time.Time) *kgo.Record {
	r := encode(topic, d.Message)
	r.Headers = append(r.Headers,
		kgo.RecordHeader{Key: headerAttempt, Value: strconv.AppendInt(nil, int64(attempt), 10)},
		from(d))
	if !due.IsZero() {
		// Rounded up: not before its time.
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerDue, Value: strconv.AppendInt(nil, due.Add(time.Millisecond-1).UnixMilli(), 10)})
	}
	return r
}

func from(d *messaging.Delivery) kgo.RecordHeader {
	return kgo.RecordHeader{Key: headerFrom, Value: []byte(strconv.Itoa(int(d.Partition)) + "/" + strconv.FormatInt(d.Offset, 10))}
}

func text(b []byte) string { return strings.ToValidUTF8(string(b), "\uFFFD") }
