// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package embedded

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/doctor"
)

// Checks are of what Run needs to open with this data at this address, and of the shop that runs there already, which is
// asked by TLS unless secure is nil.
func Checks(data, listen string, secure *tls.Config) []doctor.Check {
	return []doctor.Check{
		doctor.Folder(data),
		doctor.Space(data),
		{Name: "data-in-use", Look: func(context.Context) []doctor.Finding { return inUse(data, listen) }},
		{Name: "tables", Look: func(ctx context.Context) []doctor.Finding { return tables(ctx, data) }},
		doctor.Since(data, "*.db"),
		doctor.Listen(listen, secure),
		doctor.OpenFiles(),
		{Name: "shop", Look: func(ctx context.Context) []doctor.Finding {
			at := runsAt(data)
			// The token is for the shop whose folder it is in, not for whoever answers.
			token, err := os.ReadFile(filepath.Join(data, "service.token"))
			if at == "" || err != nil {
				return nil
			}
			return doctor.Running(ctx, at, string(token), secure)
		}},
	}
}

// inUse tells whether a shop runs on the data, and whether it is the one that is meant.
func inUse(data, listen string) []doctor.Finding {
	running, err := held(data)
	if err != nil {
		return []doctor.Finding{doctor.Wrong("make it yours", "the lock of %s cannot be looked at: %v", data, err)}
	}
	if !running {
		return []doctor.Finding{doctor.Good("no shop runs on %s", data)}
	}
	at := runsAt(data)
	if at == "" {
		return []doctor.Finding{doctor.Doubt("wait a moment", "a shop runs on %s and does not say yet where it listens", data)}
	}
	if _, addr, _ := strings.Cut(at, "://"); addr != listen {
		return []doctor.Finding{doctor.Wrong("use that one, or end it, or choose another --data", "a shop runs on %s already, at %s", data, at)}
	}
	return []doctor.Finding{doctor.Good("the shop at %s runs on %s", at, data)}
}

// runsAt is the gateway's URL, as the shop that runs on the data has written it. Empty if none runs.
func runsAt(data string) string {
	if running, err := held(data); err != nil || !running {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(data, Targets))
	if err != nil {
		return ""
	}
	var all []target
	if json.Unmarshal(text, &all) != nil {
		return ""
	}
	for _, t := range all {
		if t.Labels["service"] == assembly.Gateway && len(t.Targets) == 1 {
			return cmp.Or(t.Labels[schemeLabel], "http") + "://" + t.Targets[0]
		}
	}
	return ""
}

// tables looks into each service's database, if there is one.
func tables(ctx context.Context, data string) (found []doctor.Finding) {
	open, services, blocks := check.Files(data), 0, 0
	for _, service := range slices.Sorted(slices.Values(assembly.Backends)) {
		if _, err := os.Stat(filepath.Join(data, service+".db")); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		db, err := open(service)
		if err != nil {
			return []doctor.Finding{doctor.Wrong("look at the file", "%v", err).About(service)}
		}
		n, wrong := doctor.Tables(ctx, service, db)
		_ = db.Close()
		services, blocks, found = services+1, blocks+n, append(found, wrong...)
	}
	return doctor.AllTables(services, blocks, found)
}
