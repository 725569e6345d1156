// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"reflect"
	"testing"
)

func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"services": {"order": [{"addr": "10.0.0.1:8080", "zone": "a", "weight": 2, "tags": ["x"], "meta": {"k": "v"}}]}}`))
	f.Add([]byte(`{"at": "2026-01-01T00:00:00Z", "services": {}}`))
	f.Add([]byte(`{"services": {"": []}}`))
	f.Add([]byte(`{"services": {"a": [{"addr": "[::1]:1"}, {"addr": "[::1]:1"}]}} x`))
	f.Fuzz(func(t *testing.T, data []byte) {
		content, err := parseFile(data)
		if err != nil {
			return
		}
		// What is accepted is valid, and means the same when it is written and read again.
		again, err := json.Marshal(content)
		if err != nil {
			t.Fatalf("Marshal = %v", err)
		}
		reread, err := parseFile(again)
		if err != nil {
			t.Fatalf("parseFile of what was accepted = %v\n%s", err, again)
		}
		for service, instances := range content.Services {
			set, err := NewSet(service, instances)
			if err != nil {
				t.Fatalf("NewSet of what was accepted = %v", err)
			}
			other, err := NewSet(service, reread.Services[service])
			if err != nil || len(other.Instances) != len(set.Instances) {
				t.Fatalf("read again: %v, %v, want %v", other.Instances, err, set.Instances)
			}
		}
	})
}

func FuzzSRV(f *testing.F) {
	f.Add([]byte("\x00\x01\x00\x0a\x1f\x90host.example.\x00"))
	f.Add([]byte("\x00\x01\x00\x00\x1f\x90a.\x00\x00\x01\x00\x05\x1f\x90b.\x00\x00\x02\x00\x00\x1f\x90.\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var records []*net.SRV
		for len(data) >= 6 {
			r := &net.SRV{Priority: binary.BigEndian.Uint16(data), Weight: binary.BigEndian.Uint16(data[2:]), Port: binary.BigEndian.Uint16(data[4:])}
			data = data[6:]
			n := 0
			for n < len(data) && data[n] != 0 {
				n++
			}
			r.Target = string(data[:n])
			data = data[min(n+1, len(data)):]
			records = append(records, r)
		}
		instances := fromSRV(records)
		if len(instances) > len(records) {
			t.Fatalf("%d instances of %d records", len(instances), len(records))
		}
		seen := map[string]bool{}
		for _, in := range instances {
			if seen[in.Addr] {
				t.Fatalf("%s twice", in.Addr)
			}
			seen[in.Addr] = true
			if in.Weight < 0 || in.Weight > 100*65535 || in.Priority < 0 || in.Priority > 65535 {
				t.Fatalf("instance = %+v, out of range", in)
			}
		}
		if again := fromSRV(records); !reflect.DeepEqual(instances, again) {
			t.Fatalf("fromSRV = %v, then %v", instances, again)
		}
	})
}

func TestFromSRV(t *testing.T) {
	t.Parallel()
	record := func(target string, port, priority, weight uint16) *net.SRV {
		return &net.SRV{Target: target, Port: port, Priority: priority, Weight: weight}
	}
	for _, tt := range []struct {
		name    string
		records []*net.SRV
		want    []Instance
	}{
		{"priority and weight are carried, the dot at the end is not", []*net.SRV{record("a.example.", 80, 1, 10), record("b.example.", 81, 2, 5)},
			[]Instance{{Addr: "a.example:80", Priority: 1, Weight: 1000}, {Addr: "b.example:81", Priority: 2, Weight: 500}}},
		{"weight 0 beside others is a very small chance", []*net.SRV{record("a.", 80, 0, 10), record("b.", 80, 0, 0)},
			[]Instance{{Addr: "a:80", Weight: 1000}, {Addr: "b:80", Weight: 1}}},
		{"weight 0 everywhere is no weight at all", []*net.SRV{record("a.", 80, 0, 0), record("b.", 80, 0, 0)},
			[]Instance{{Addr: "a:80"}, {Addr: "b:80"}}},
		{"a target of . is a service not offered", []*net.SRV{record(".", 80, 0, 0)}, nil},
		{"a record twice counts once", []*net.SRV{record("a.", 80, 0, 0), record("a.", 80, 1, 0)}, []Instance{{Addr: "a:80"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fromSRV(tt.records); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("fromSRV = %+v, want %+v", got, tt.want)
			}
		})
	}
}
