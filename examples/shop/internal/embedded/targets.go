// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Targets is the file in the data folder that tells a Prometheus where to find each service's /metrics, as its
// file_sd_configs wants it. It is written at each start.
const Targets = "prometheus-targets.json"

// schemeLabel is how Prometheus is told of a target that speaks TLS.
const schemeLabel = "__scheme__"

type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

func (s *shop) tellPrometheus() error {
	var all []target
	for _, u := range s.units {
		labels := map[string]string{"service": u.env.Name, "instance": u.env.Instance}
		if u.env.Certificates != nil {
			labels[schemeLabel] = "https"
		}
		all = append(all, target{[]string{u.addr}, labels})
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
