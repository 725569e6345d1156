// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Config configures a store.
type Config struct {
	// Prefix begins every key of the store, and keeps it apart from what else is in the
	// same database. It may not contain braces, which mark the part that decides over a
	// key's place in a Redis Cluster. Empty means "dovetail".
	Prefix string
}

// keyspace makes the keys of one store.
type keyspace struct{ prefix string }

func newKeyspace(client redis.Scripter, cfg Config, kind string) (keyspace, error) {
	if client == nil {
		return keyspace{}, fmt.Errorf("rediskit: client is nil, want a go-redis client")
	}
	if strings.ContainsAny(cfg.Prefix, "{}") {
		return keyspace{}, fmt.Errorf("rediskit: Config.Prefix is %q, want none of { and }", cfg.Prefix)
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "dovetail"
	}
	return keyspace{cfg.Prefix + ":" + kind + ":"}, nil
}

// key escapes the parts, so that no two lists of parts make the same key, and marks them as the
// hash tag.
func (k keyspace) key(parts ...string) string {
	for i, p := range parts {
		parts[i] = url.QueryEscape(p)
	}
	return k.prefix + "{" + strings.Join(parts, "/") + "}"
}
