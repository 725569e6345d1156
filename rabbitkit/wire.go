// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// The headers of our own. What a message of the user's has under such a name, or one that
// means something to the broker, travels with the prefix of escaped.
const (
	own           = "x-dovetail-"
	headerKey     = own + "key"
	headerTime    = own + "time"    // to the nanosecond; AMQP's timestamp has whole seconds
	headerTopic   = own + "topic"   // of what was published again, to a queue
	headerAttempt = own + "attempt" // of what comes back from a retry
	headerAgain   = own + "again"   // was delivered before
	headerOffset  = own + "offset"  // in the log, of what comes back from a retry
	escaped       = own + "h-"
)

const contentType = "content-type"

// reserved reports whether a user's header cannot travel under its own name. A CC that is
// not a list, for one, makes the broker close the channel.
func reserved(name string) bool {
	if name == "CC" || name == "BCC" {
		return true
	}
	return strings.HasPrefix(name, "x-") && slices.ContainsFunc([]string{own, "x-death", "x-first-death-", "x-last-death-",
		"x-delivery-count", "x-stream-", "x-opt-"}, func(p string) bool { return strings.HasPrefix(name, p) })
}

// encode returns m as it travels, with at most so many bytes of headers. It shares the
// body with m, nothing else.
func encode(m *messaging.Message, headers int) (amqp.Publishing, error) {
	if len(m.Body) > maxBody {
		return amqp.Publishing{}, tooLarge("Message.Body", len(m.Body), maxBody)
	}
	p := amqp.Publishing{
		DeliveryMode: amqp.Persistent,
		MessageId:    m.ID,
		Type:         m.Type,
		Headers:      make(amqp.Table, len(m.Header)+3),
		Body:         m.Body,
	}
	if m.Key != "" {
		p.Headers[headerKey] = m.Key
	}
	if !m.Time.IsZero() {
		p.Timestamp = m.Time
		p.Headers[headerTime] = m.Time.Format(time.RFC3339Nano)
	}
	size := 0
	for name, value := range m.Header {
		size += len(name) + len(value) + 6
		switch {
		case name == contentType && value != "" && len(value) <= 255:
			p.ContentType = value
		case reserved(name):
			if len(escaped)+len(name) > 255 {
				return amqp.Publishing{}, refuse(fmt.Errorf("rabbitkit: Message.Header name %.40q... has %d bytes, want at most %d with this beginning", name, len(name), 255-len(escaped)))
			}
			p.Headers[escaped+name] = value
		default:
			p.Headers[name] = value
		}
	}
	if size > headers {
		return amqp.Publishing{}, tooLarge("Message.Header", size, headers)
	}
	return p, nil
}

func tooLarge(field string, is, most int) error {
	return refuse(fmt.Errorf("rabbitkit: %s has %d bytes, want at most %d", field, is, most))
}

// refuse returns err as a refusal for good.
func refuse(err error) error {
	return fault.Permanent(fmt.Errorf("%w: %w", messaging.ErrRefused, err))
}

// received is a message with what the broker and we ourselves noted on it.
type received struct {
	msg     *messaging.Message
	attempt int
	again   bool
	offset  int64 // in the log, 0 of what did not come from there
	death   *death
}

// death is the broker's note on why it dead-lettered a message.
type death struct {
	reason string
	count  int64
	at     time.Time
}

// decode returns the message in d. It takes whatever another producer may have sent:
// headers that are not text become text.
func decode(d *amqp.Delivery) received {
	m := &messaging.Message{ID: d.MessageId, Topic: d.RoutingKey, Type: d.Type, Time: d.Timestamp, Body: d.Body}
	r := received{msg: m, attempt: 1, again: d.Redelivered}
	set := func(name, value string) {
		if m.Header == nil {
			m.Header = make(messaging.Header, len(d.Headers))
		}
		m.Header[name] = value
	}
	if d.ContentType != "" {
		set(contentType, d.ContentType)
	}
	for name, v := range d.Headers {
		switch name {
		case headerKey:
			m.Key = text(v)
		case headerTime:
			if t, err := time.Parse(time.RFC3339Nano, text(v)); err == nil {
				m.Time = t
			}
		case headerTopic:
			m.Topic = text(v)
		case headerAttempt:
			if n, err := strconv.Atoi(text(v)); err == nil && n > 0 {
				r.attempt = n
			}
		case headerAgain:
			r.again = true
		case headerOffset:
			r.offset, _ = v.(int64)
		case "x-death":
			r.death = readDeath(v)
			r.again = true
		case "x-delivery-count":
			r.again = r.again || text(v) != "0"
		default:
			switch {
			case strings.HasPrefix(name, escaped):
				set(name[len(escaped):], text(v))
			case reserved(name): // the broker's
			default:
				set(name, text(v))
			}
		}
	}
	return r
}

// readDeath reads the latest entry of an x-death header.
func readDeath(v any) *death {
	list, _ := v.([]any)
	if len(list) == 0 {
		return nil
	}
	t, ok := list[0].(amqp.Table)
	if !ok {
		return nil
	}
	d := &death{reason: text(t["reason"])}
	d.count, _ = t["count"].(int64)
	d.at, _ = t["time"].(time.Time)
	return d
}

// text returns any value of a header table as text.
func text(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return strings.ToValidUTF8(v, "\uFFFD")
	case []byte:
		return strings.ToValidUTF8(string(v), "\uFFFD")
	case time.Time:
		return v.UTC().Format(time.RFC3339Nano)
	case amqp.Table, []any:
		if b, err := json.Marshal(v); err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(v)
}
