// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package cloudevents turns messages into CloudEvents 1.0 in binary mode and back: the
// attributes are headers, the body is the data as it is.
//
//	h, err := cloudevents.Kafka.Encode(m, "/shop/orders") // send h and m.Body
//	m, err := cloudevents.Kafka.Decode(h, body)           // then set m.Topic
//
// These attributes are fields of [messaging.Message]:
//
//	id            ID
//	type          Type, which must not be empty
//	time          Time, left out if zero
//	partitionkey  Key (the partitioning extension), left out if empty
//
// datacontenttype is the header "content-type", as binary mode asks. All others, source,
// subject, dataschema and the extensions, are headers of the message with the prefix
// "ce-", whatever the transport calls them: m.Header["ce-source"]. Headers without
// that prefix, such as traceparent, are no attributes and pass through as they are.
//
// The topic is not an attribute: it is the transport's own routing key, topic or path.
//
// Source: https://github.com/cloudevents/spec, version 1.0.2, and its bindings for HTTP,
// Kafka and AMQP.
package cloudevents

import (
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/messaging"
)

// Prefix begins the names of attributes in the header of a message.
const Prefix = "ce-"

// Binding is the way one transport names and writes the attributes.
type Binding uint8

const (
	// HTTP names them "ce-id"; values are percent-encoded.
	HTTP Binding = iota + 1
	// Kafka names them "ce_id".
	Kafka
	// AMQP names them "cloudEvents_id", and also reads "cloudEvents:id". The binding
	// is made for AMQP 1.0; with AMQP 0-9-1 use it for the headers table.
	AMQP
)

// String returns "HTTP", "Kafka" or "AMQP".
func (b Binding) String() string {
	switch b {
	case HTTP:
		return "HTTP"
	case Kafka:
		return "Kafka"
	case AMQP:
		return "AMQP"
	}
	return fmt.Sprintf("cloudevents.Binding(%d)", uint8(b))
}

func (b Binding) prefix() string {
	switch b {
	case HTTP:
		return "ce-"
	case Kafka:
		return "ce_"
	case AMQP:
		return "cloudEvents_"
	}
	panic(b.String() + " is not a binding")
}

// attribute returns the name of the attribute that a transport's header carries.
func (b Binding) attribute(header string) (name string, ok bool) {
	if b == HTTP {
		header = strings.ToLower(header) // HTTP's names have no case
	}
	if name, ok = strings.CutPrefix(header, b.prefix()); ok || b != AMQP {
		return name, ok
	}
	return strings.CutPrefix(header, "cloudEvents:")
}

const (
	specVersion  = "specversion"
	id           = "id"
	source       = "source"
	eventType    = "type"
	eventTime    = "time"
	partitionKey = "partitionkey"
)

// fields are the attributes that a message has fields for, and those that the format
// itself sets: they cannot be set by a header.
var fields = map[string]string{
	specVersion:       "always 1.0",
	id:                "Message.ID",
	eventType:         "Message.Type",
	eventTime:         "Message.Time",
	partitionKey:      "Message.Key",
	"datacontenttype": `Message.Header["content-type"]`,
	"data":            "Message.Body",
}

// Encode returns the headers to send with m.Body. The source identifies the producer,
// as a URI reference such as "/shop/orders"; a header "ce-source" in m is stronger.
// The error names the field that is missing or does not fit.
func (b Binding) Encode(m *messaging.Message, producer string) (messaging.Header, error) {
	h := make(messaging.Header, len(m.Header)+6)
	set := func(field, name, value string) error {
		if err := valid(name, value); err != nil {
			return fmt.Errorf("cloudevents: %s: %w", field, err)
		}
		if b == HTTP {
			value = percentEncode(value)
		}
		h[b.prefix()+name] = value
		return nil
	}
	for header, value := range m.Header {
		field := fmt.Sprintf("Message.Header[%q]", header)
		name, ok := strings.CutPrefix(header, Prefix)
		if !ok {
			if _, taken := b.attribute(header); taken {
				return nil, fmt.Errorf("cloudevents: %s would be read as an attribute by %s, want %q before an attribute's name", field, b, Prefix)
			}
			h[header] = value
			continue
		}
		if other, taken := fields[name]; taken {
			return nil, fmt.Errorf("cloudevents: %s is set, want it from %s", field, other)
		}
		if err := set(field, name, value); err != nil {
			return nil, err
		}
	}
	if m.Header[Prefix+source] == "" {
		if err := set("source", source, producer); err != nil {
			return nil, err
		}
	}
	if err := set("Message.ID", id, m.ID); err != nil {
		return nil, err
	}
	if err := set("Message.Type", eventType, m.Type); err != nil {
		return nil, err
	}
	if m.Key != "" {
		if err := set("Message.Key", partitionKey, m.Key); err != nil {
			return nil, err
		}
	}
	if !m.Time.IsZero() {
		// In UTC, because RFC 3339 has no place for an offset with seconds.
		text, err := m.Time.UTC().MarshalText()
		if err != nil {
			return nil, fmt.Errorf("cloudevents: Message.Time is %v, want a time that RFC 3339 can write: %w", m.Time, err)
		}
		h[b.prefix()+eventTime] = string(text)
	}
	h[b.prefix()+specVersion] = "1.0"
	return h, nil
}

// Decode returns the message in a transport's headers and body, without a topic. It
// shares the body. The error names the attribute that is missing or malformed.
func (b Binding) Decode(h messaging.Header, body []byte) (*messaging.Message, error) {
	m := &messaging.Message{Body: body, Header: make(messaging.Header, len(h))}
	seen := make(map[string]bool, 6)
	for header, value := range h {
		name, ok := b.attribute(header)
		if !ok {
			// Prefix is how a message marks attributes: nothing else may look like one.
			if strings.HasPrefix(header, Prefix) {
				return nil, fmt.Errorf("cloudevents: header %q is no attribute in %s, want no prefix %q", header, b, Prefix)
			}
			m.Header[header] = value
			continue
		}
		if b == HTTP {
			var err error
			if value, err = percentDecode(value); err != nil {
				return nil, fmt.Errorf("cloudevents: attribute %s: %w", name, err)
			}
		}
		if seen[name] {
			return nil, fmt.Errorf("cloudevents: attribute %s is there twice", name)
		}
		seen[name] = true
		if err := valid(name, value); err != nil {
			return nil, fmt.Errorf("cloudevents: attribute %s: %w", name, err)
		}
		switch name {
		case specVersion:
			if value != "1.0" {
				return nil, fmt.Errorf("cloudevents: attribute specversion is %.40q, want 1.0", value)
			}
		case id:
			m.ID = value
		case eventType:
			m.Type = value
		case partitionKey:
			m.Key = value
		case eventTime:
			t, err := time.Parse(time.RFC3339Nano, value)
			if err == nil {
				_, err = t.UTC().MarshalText() // an offset can lead out of the years 0 to 9999
			}
			if err != nil {
				return nil, fmt.Errorf("cloudevents: attribute time is %.40q, want a time by RFC 3339", value)
			}
			m.Time = t
		case "datacontenttype", "data":
			return nil, fmt.Errorf("cloudevents: attribute %s is a header, want %s in binary mode", name, fields[name])
		default:
			m.Header[Prefix+name] = value
		}
	}
	for _, name := range [...]string{specVersion, id, source, eventType} {
		if !seen[name] {
			return nil, fmt.Errorf("cloudevents: attribute %s is missing", name)
		}
	}
	return m, nil
}

// valid checks the name and the value of an attribute against the specification's type
// system: a name of lower-case letters and digits; text that is not empty and has
// neither control characters nor noncharacters.
func valid(name, value string) error {
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		return fmt.Errorf("name is %.40q, want lower-case letters and digits", name)
	}
	if value == "" {
		return fmt.Errorf("%s is empty, want text", name)
	}
	bad := func(r rune) bool {
		return unicode.IsControl(r) || r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe
	}
	if !utf8.ValidString(value) || strings.ContainsFunc(value, bad) {
		return fmt.Errorf("%s is %.40q, want UTF-8 text without control characters", name, value)
	}
	if name == source {
		if _, err := url.Parse(value); err != nil {
			return fmt.Errorf("source is %.40q, want a URI reference", value)
		}
	}
	return nil
}

// percentEncode escapes what the HTTP binding asks for (section 3.1.3.2): space, double
// quote, percent, and all outside of printable ASCII.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '"' || c == '%' {
			b.WriteByte('%')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// percentDecode undoes one round of percent-encoding, after a quoted string of HTTP has
// been unquoted, as the binding asks.
func percentDecode(s string) (string, error) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		var b strings.Builder
		for i := 1; i < len(s)-1; i++ {
			if s[i] == '\\' && i+1 < len(s)-1 {
				i++
			}
			b.WriteByte(s[i])
		}
		s = b.String()
	}
	text, err := url.PathUnescape(s)
	if err != nil {
		return "", fmt.Errorf("value is %.40q, want valid percent-encoding", s)
	}
	return text, nil
}
