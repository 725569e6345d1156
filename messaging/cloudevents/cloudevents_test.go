// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package cloudevents_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/cloudevents"
)

var bindings = map[cloudevents.Binding]string{cloudevents.HTTP: "ce-", cloudevents.Kafka: "ce_", cloudevents.AMQP: "cloudEvents_"}

func sample() *messaging.Message {
	return &messaging.Message{
		ID: "42", Topic: "order.placed", Key: "Müller, 5%", Type: "order.placed.v1",
		Time: time.Date(2024, 2, 29, 12, 0, 0, 5, time.FixedZone("", 3600)),
		Header: messaging.Header{
			"content-type": "application/json", "traceparent": "00-x", "ce-subject": `"quoted" ü`, "ce-dataschema": "https://example.com/s",
		},
		Body: []byte(`{}`),
	}
}

func same(a, b *messaging.Message) bool {
	return a.ID == b.ID && a.Key == b.Key && a.Type == b.Type && a.Time.Equal(b.Time) && maps.Equal(a.Header, b.Header) && string(a.Body) == string(b.Body)
}

func TestRoundTrip(t *testing.T) {
	for b, prefix := range bindings {
		m := sample()
		h, err := b.Encode(m, "/shop/orders")
		if err != nil {
			t.Fatalf("%v: Encode = %v, want nil", b, err)
		}
		want := messaging.Header{
			"content-type": "application/json", "traceparent": "00-x",
			prefix + "specversion": "1.0", prefix + "id": "42", prefix + "type": "order.placed.v1", prefix + "source": "/shop/orders",
			prefix + "time": "2024-02-29T11:00:00.000000005Z", prefix + "dataschema": "https://example.com/s",
			prefix + "subject": `"quoted" ü`, prefix + "partitionkey": "Müller, 5%",
		}
		if b == cloudevents.HTTP {
			want["ce-subject"], want["ce-partitionkey"] = "%22quoted%22%20%C3%BC", "M%C3%BCller,%205%25"
		}
		if !maps.Equal(h, want) {
			t.Errorf("%v: Encode = %v, want %v", b, h, want)
		}
		got, err := b.Decode(h, m.Body)
		if err != nil {
			t.Fatalf("%v: Decode = %v, want nil", b, err)
		}
		m.Header["ce-source"] = "/shop/orders"
		if !same(got, m) || got.Topic != "" {
			t.Errorf("%v: Decode = %+v, want %+v without topic", b, got, m)
		}
	}
}

func TestEncode(t *testing.T) {
	t.Run("optional attributes are left out", func(t *testing.T) {
		h, err := cloudevents.Kafka.Encode(&messaging.Message{ID: "1", Type: "t"}, "s")
		if err != nil || len(h) != 4 {
			t.Errorf("Encode = %v, %v, want the four required attributes", h, err)
		}
	})
	t.Run("a source in the header is stronger", func(t *testing.T) {
		h, err := cloudevents.Kafka.Encode(&messaging.Message{ID: "1", Type: "t", Header: messaging.Header{"ce-source": "own"}}, "")
		if err != nil || h["ce_source"] != "own" {
			t.Errorf("Encode = %v, %v, want the source own", h, err)
		}
	})
	for _, c := range []struct {
		change func(*messaging.Message)
		want   string
	}{
		{func(m *messaging.Message) { m.ID = "" }, "Message.ID: id is empty"},
		{func(m *messaging.Message) { m.Type = "" }, "Message.Type: type is empty"},
		{func(m *messaging.Message) { m.Key = "\x01" }, `Message.Key: partitionkey is "\x01"`},
		{func(m *messaging.Message) { m.Key = "\ufffe" }, "Message.Key: partitionkey is"},
		{func(m *messaging.Message) { m.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "Message.Time is"},
		{func(m *messaging.Message) { m.Header = messaging.Header{"ce-id": "2"} }, `Message.Header["ce-id"] is set, want it from Message.ID`},
		{func(m *messaging.Message) { m.Header = messaging.Header{"ce-datacontenttype": "x"} }, `want it from Message.Header["content-type"]`},
		{func(m *messaging.Message) { m.Header = messaging.Header{"ce-my_ext": "x"} }, `Message.Header["ce-my_ext"]: name is "my_ext"`},
		{func(m *messaging.Message) { m.Header = messaging.Header{"ce-": "x"} }, `Message.Header["ce-"]: name is ""`},
		{func(m *messaging.Message) { m.Header = messaging.Header{"ce-a": "x\n"} }, `Message.Header["ce-a"]: a is "x\n"`},
		{func(m *messaging.Message) { m.Header = messaging.Header{"ce-source": "://"} }, `Message.Header["ce-source"]: source is "://"`},
		{func(m *messaging.Message) { m.Header = messaging.Header{"cloudEvents:x": "x"} }, "would be read as an attribute by AMQP"},
	} {
		m := sample()
		c.change(m)
		if h, err := cloudevents.AMQP.Encode(m, "/s"); h != nil || err == nil || !strings.Contains(err.Error(), "cloudevents: "+c.want) && !strings.Contains(err.Error(), c.want) {
			t.Errorf("Encode = %v, %v, want %q", h, err, c.want)
		}
	}
	if _, err := cloudevents.Kafka.Encode(sample(), ""); err == nil || !strings.Contains(err.Error(), "cloudevents: source: source is empty") {
		t.Errorf("Encode without source = %v, want an error that names it", err)
	}
}

func TestDecode(t *testing.T) {
	required := messaging.Header{"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/s", "ce-type": "t"}
	with := func(name, value string) messaging.Header {
		h := maps.Clone(required)
		h[name] = value
		return h
	}
	t.Run("HTTP names have no case", func(t *testing.T) {
		m, err := cloudevents.HTTP.Decode(with("Ce-Subject", "a"), nil)
		if err != nil || m.Header["ce-subject"] != "a" {
			t.Errorf("Decode = %+v, %v, want the subject", m, err)
		}
	})
	t.Run("HTTP values are unquoted and then decoded once", func(t *testing.T) {
		for in, want := range map[string]string{
			`a%20b`: "a b", `"a\"b\\"`: `a"b\`, `"a%20b"`: "a b", `%2541`: "%41", `"`: `"`, `Euro%20%E2%82%AC%20%F0%9F%98%80`: "Euro € 😀",
		} {
			if m, err := cloudevents.HTTP.Decode(with("ce-subject", in), nil); err != nil || m.Header["ce-subject"] != want {
				t.Errorf("Decode(%s) = %+v, %v, want %s", in, m, err, want)
			}
		}
	})
	t.Run("AMQP reads both prefixes", func(t *testing.T) {
		m, err := cloudevents.AMQP.Decode(messaging.Header{"cloudEvents:specversion": "1.0", "cloudEvents_id": "1", "cloudEvents:source": "/s", "cloudEvents_type": "t"}, nil)
		if err != nil || m.ID != "1" || m.Header["ce-source"] != "/s" {
			t.Errorf("Decode = %+v, %v, want the message", m, err)
		}
		_, err = cloudevents.AMQP.Decode(messaging.Header{"cloudEvents:id": "1", "cloudEvents_id": "2"}, nil)
		if err == nil || !strings.Contains(err.Error(), "id is there twice") {
			t.Errorf("Decode = %v, want an error that names the attribute", err)
		}
	})
	for name := range required {
		h := maps.Clone(required)
		delete(h, name)
		want := "attribute " + strings.TrimPrefix(name, "ce-") + " is missing"
		if _, err := cloudevents.HTTP.Decode(h, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Decode without %s = %v, want %q", name, err, want)
		}
	}
	for _, c := range []struct{ name, value, want string }{
		{"ce-specversion", "0.3", `specversion is "0.3", want 1.0`},
		{"ce-time", "9999-12-31T23:59:59-23:59", `want a time by RFC 3339`},
		{"ce-time", "noon", `time is "noon", want a time by RFC 3339`},
		{"ce-id", "", "id is empty"},
		{"ce-source", "%3A%2F%2F", `source is "://"`},
		{"ce-my-ext", "x", `name is "my-ext"`},
		{"ce-x", "%zz", `value is "%zz"`},
		{"ce-x", "%ff", `x is "\xff"`},
		{"ce-datacontenttype", "x", `want Message.Header["content-type"] in binary mode`},
		{"ce-data", "x", "want Message.Body in binary mode"},
	} {
		if m, err := cloudevents.HTTP.Decode(with(c.name, c.value), nil); m != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Decode(%s: %s) = %v, %v, want %q", c.name, c.value, m, err, c.want)
		}
	}
	_, err := cloudevents.Kafka.Decode(messaging.Header{"ce_specversion": "1.0", "ce_id": "1", "ce_source": "/s", "ce_type": "t", "ce-subject": "x"}, nil)
	if err == nil || !strings.Contains(err.Error(), `header "ce-subject" is no attribute in Kafka`) {
		t.Errorf("Decode = %v, want an error that names the header", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(uint8(1), "1.0", "1", "/s", "t", "2024-01-01T00:00:00Z", "subject", "%20", "plain", "x")
	f.Add(uint8(2), "1.0", "1", "/s", "t", "0000-01-01T00:00:00Z", "a", "\"", "ce-a", "x")
	f.Add(uint8(3), "1.0", "1", "?", "t", "0000-01-01T00:00:00+23:59", "partitionkey", "x", "cloudEvents:y", "x")
	f.Fuzz(func(t *testing.T, binding uint8, version, id, source, typ, at, name, value, plain, plainValue string) {
		b := cloudevents.Binding(binding%3 + 1)
		p := bindings[b]
		h := messaging.Header{p + "specversion": version, p + "id": id, p + "source": source, p + "type": typ, p + "time": at, p + name: value, plain: plainValue}
		m, err := b.Decode(h, []byte("body"))
		if err != nil {
			return
		}
		encoded, err := b.Encode(m, "/never/used")
		if err != nil {
			t.Fatalf("%v: Encode of the decoded %v = %v", b, h, err)
		}
		again, err := b.Decode(encoded, m.Body)
		if err != nil || !same(m, again) {
			t.Errorf("%v: second round of %v = %+v, %v, want %+v", b, h, again, err, m)
		}
	})
}

func Example() {
	m := &messaging.Message{
		ID: "42", Topic: "order.placed", Type: "order.placed.v1",
		Header: messaging.Header{"content-type": "application/json", "ce-subject": "order/7"},
		Body:   []byte(`{"total":1200}`),
	}
	h, err := cloudevents.Kafka.Encode(m, "/shop/orders")
	if err != nil {
		fmt.Println(err)
	}
	for _, name := range h.Keys() {
		fmt.Printf("%s: %s\n", name, h[name])
	}
	// Output:
	// ce_id: 42
	// ce_source: /shop/orders
	// ce_specversion: 1.0
	// ce_subject: order/7
	// ce_type: order.placed.v1
	// content-type: application/json
}
