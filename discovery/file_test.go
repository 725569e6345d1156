// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/discoverytest"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	newFile := func(t *testing.T) (*discovery.File, string) {
		path := filepath.Join(t.TempDir(), "services.json")
		f, err := discovery.NewFile(path, discovery.FileConfig{Every: 10 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return f, path
	}
	discoverytest.Resolver(t, func(t *testing.T) discoverytest.Source {
		f, path := newFile(t)
		services := map[string][]discovery.Instance{}
		save := func(t *testing.T) {
			data, err := json.Marshal(map[string]any{"services": services})
			if err != nil {
				t.Fatal(err)
			}
			write(t, path, string(data))
		}
		save(t)
		return discoverytest.Source{
			Resolver: f,
			Put: func(t *testing.T, service string, instances ...discovery.Instance) {
				services[service] = instances
				save(t)
			},
			Outage: func(t *testing.T, on bool) {
				if on {
					write(t, path, `{"services": {"order": [{"adr": "typo"}]}}`)
				} else {
					save(t)
				}
			},
		}
	})
	for name, tt := range map[string]struct{ content, want string }{
		"an unknown field is named":         {`{"services": {"order": [{"address": "h:1"}]}}`, `"address"`},
		"a wrong instance is named":         {`{"services": {"other": [{"addr": "h"}]}}`, `service "other": discovery: Instance.Addr is "h"`},
		"no services are a mistake":         {`{}`, `"services" is missing`},
		"text after the value is a mistake": {`{"services": {}} {}`, "text after"},
		"an empty file is a mistake":        {``, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			f, path := newFile(t)
			write(t, path, tt.content)
			for _, err := range f.Watch(t.Context(), service) {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
					t.Errorf("Watch yields %v, want an error with the path and %q", err, tt.want)
				}
				break
			}
		})
	}
	t.Run("a missing file is an error until it appears", func(t *testing.T) {
		f, path := newFile(t)
		words := follow(t, f)
		wantWord(t, words, "unknown error")
		write(t, path, `{"services": {"order": [{"addr": "a:1"}]}}`)
		wantWord(t, words, "a:1")
	})
}

func ExampleFile() {
	dir, err := os.MkdirTemp("", "discovery")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "services.json")
	content := `{"services": {"order": [{"addr": "10.0.0.1:8080", "zone": "a", "weight": 2}]}}`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		panic(err)
	}
	file, err := discovery.NewFile(path, discovery.FileConfig{})
	if err != nil {
		panic(err)
	}
	for set, err := range file.Watch(context.Background(), "order") {
		fmt.Println(set.Instances[0].Addr, set.Instances[0].Zone, set.Instances[0].Weight, err)
		break
	}
	// Output: 10.0.0.1:8080 a 2 <nil>
}
