// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rediskit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/cache"
	"github.com/dovetail-go/dovetail/cache/cachetest"
	"github.com/dovetail-go/dovetail/rediskit"
)

func TestCache(t *testing.T) {
	n := 0
	cachetest.RunStore(t, func(t *testing.T) cache.Store {
		c, cfg := client(t)
		n++
		cfg.Prefix += fmt.Sprint("-", n)
		s, err := rediskit.NewCache(c, cfg)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestCacheKeysHaveATimeToLive(t *testing.T) {
	c, cfg := client(t)
	s, err := rediskit.NewCache(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	check := func(step string, least, most time.Duration) {
		t.Helper()
		keys, err := c.Keys(t.Context(), cfg.Prefix+"*").Result()
		if err != nil || len(keys) != 1 {
			t.Fatalf("%s: keys %v, %v, want one", step, keys, err)
		}
		if ttl := c.PTTL(t.Context(), keys[0]).Val(); ttl < least || ttl > most {
			t.Errorf("%s: lives for %v, want %v to %v", step, ttl, least, most)
		}
	}
	h, err := s.Take(t.Context(), "k", cache.Ask{Lease: 5 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	check("lease", 5*time.Minute, 6*time.Minute)
	if _, err := s.Put(t.Context(), "k", h.Token, cache.Item{Fresh: time.Hour, Stale: time.Hour}); err != nil {
		t.Fatal(err)
	}
	check("value", time.Hour, 2*time.Hour)
	if _, err := s.Take(t.Context(), "k", cache.Ask{Lease: time.Minute, Early: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	check("lease on a value", time.Hour, 2*time.Hour)
	if err := s.Delete(t.Context(), "event", "k"); err != nil {
		t.Fatal(err)
	}
	check("event", 30*time.Second, time.Minute)
}

// processEnv names a process of TestCacheOneLoadForFourProcesses: prefix, TTL.
const processEnv = "DOVETAIL_REDISKIT_CACHE_PROCESS"

// TestCacheOneLoadForFourProcesses has four processes, with 25 readers each, read one hot key over
// three of its lives. The loads are counted in Redis, by its clock: each must begin after the value before
// it has expired, so there is one for each life, however slow the machine is.
func TestCacheOneLoadForFourProcesses(t *testing.T) {
	const ttl = 500 * time.Millisecond
	if prefix := os.Getenv(processEnv); prefix != "" {
		readHotKey(t, prefix, ttl)
		return
	}
	c, cfg := client(t)
	var processes []*exec.Cmd
	outs := make([]strings.Builder, 4)
	for i := range outs {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCacheOneLoadForFourProcesses$", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), processEnv+"="+cfg.Prefix)
		cmd.Stdout, cmd.Stderr = &outs[i], &outs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		processes = append(processes, cmd)
	}
	for deadline := time.Now().Add(2 * time.Minute); c.Get(t.Context(), cfg.Prefix+":ready").Val() != "4"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the processes do not start")
		}
	}
	if err := c.Set(t.Context(), cfg.Prefix+":go", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	for i, p := range processes {
		if err := p.Wait(); err != nil {
			t.Errorf("process %d: %v\n%s", i, err, outs[i].String())
		}
	}
	loads, err := c.LRange(t.Context(), cfg.Prefix+":loads", 0, -1).Result()
	if err != nil || len(loads) < 3 {
		t.Fatalf("loads %v, %v, want three at least", loads, err)
	}
	var before int64
	for i, l := range loads {
		at, err := strconv.ParseInt(l, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		if since := time.Duration(at-before) * time.Microsecond; i > 0 && since < ttl {
			t.Errorf("load %d began %v after the one before it, want at least %v", i, since, ttl)
		}
		before = at
	}
	t.Logf("%d loads", len(loads))
}

// readHotKey is one process: it reads until the third value.
func readHotKey(t *testing.T, prefix string, ttl time.Duration) {
	r, _ := client(t)
	store, err := rediskit.NewCache(r, rediskit.Config{Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New("hot", cache.Config[int]{TTL: ttl, Jitter: -1, Early: -1, StaleFor: -1, Store: store, StoreTimeout: 30 * time.Second, LoadTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	load := func(ctx context.Context, _ string) (int, error) {
		now, err := r.Time(ctx).Result()
		if err != nil {
			return 0, err
		}
		n, err := r.RPush(ctx, prefix+":loads", now.UnixMicro()).Result()
		time.Sleep(50 * time.Millisecond)
		return int(n), err
	}
	r.Incr(t.Context(), prefix+":ready")
	for r.Exists(t.Context(), prefix+":go").Val() == 0 {
		time.Sleep(time.Millisecond)
	}
	var wg sync.WaitGroup
	for range 25 {
		wg.Go(func() {
			for {
				v, err := c.Get(t.Context(), "k", load)
				if err != nil {
					t.Errorf("Get = %v, want nil", err)
					return
				}
				if v >= 3 {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
}

func TestCacheWithoutRedis(t *testing.T) {
	srv := newServer(t)
	store, err := rediskit.NewCache(srv.client(), rediskit.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := breaker.New(breaker.Config{Consecutive: 3, OpenFor: 50 * time.Millisecond, OpenMax: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c, err := cache.New("c", cache.Config[string]{Store: store, Breaker: b, StoreTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	load := func(_ context.Context, key string) (string, error) { return "value of " + key, nil }
	get := func(key string) cache.Source {
		t.Helper()
		r, err := c.Fetch(t.Context(), key, load)
		if err != nil || r.Value != "value of "+key {
			t.Fatalf("Fetch(%s) = %+v, %v, want its value", key, r, err)
		}
		return r.Source
	}
	get("kept")
	srv.kill()
	for i := range 10 {
		get(fmt.Sprint(i))
	}
	if s := c.Stats(); s.StoreErrors == 0 {
		t.Errorf("Stats = %+v, want errors of the store", s)
	}
	if err := c.Invalidate(t.Context(), "kept"); err == nil {
		t.Error("Invalidate while Redis is down = nil, want an error")
	}
	srv.start() // it has lost its scripts, not its data
	if err := c.Invalidate(t.Context(), "kept", "0"); err != nil {
		t.Errorf("Invalidate = %v, want nil", err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		key := fmt.Sprint("again-", time.Now().UnixNano())
		get(key)
		c.Clear()
		if get(key) == cache.Remote {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("Redis is not used again")
		}
	}
}

func TestCacheConfig(t *testing.T) {
	if _, err := rediskit.NewCache(nil, rediskit.Config{}); err == nil {
		t.Error("NewCache(nil) = nil, want an error")
	}
	if _, err := rediskit.NewCache(redis.NewClient(&redis.Options{}), rediskit.Config{Prefix: "{"}); err == nil || errors.Unwrap(err) != nil {
		t.Errorf("NewCache = %v, want an error that names Config.Prefix", err)
	}
}
