// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// Targets is the file in the data folder that tells a Prometheus where to find each service's /metrics, as its
// file_sd_configs wants it. It is written at each start.
const Targets = "prometheus-targets.json"

func (s *shop) tellPrometheus(front platform.Env, addr string) error {
	type target struct {
		Targets []string          `json:"targets"`
		Labels  map[string]string `json:"labels"`
	}
	of := func(service, instance, addr string) target {
		return target{[]string{addr}, map[string]string{"service": service, "instance": instance}}
	}
	all := []target{of(front.Name, front.Instance, addr)}
	for _, u := range s.units {
		all = append(all, of(u.env.Name, u.env.Instance, u.listener.Addr().String()))
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(s.data, Targets)
	// Written beside and renamed, so that nobody reads half of it.
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
