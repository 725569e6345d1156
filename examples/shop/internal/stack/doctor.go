// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/doctor"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// The oldest servers that the shop works with. Consul's is the oldest that it is tested with.
const (
	oldestPostgres = "12"
	oldestRabbitMQ = "3.10"
	oldestRedis    = "6.2"
	oldestConsul   = "1.15"
)

// Checks are of what Up needs with these settings and at this address, and of the shop that runs there already.
// Hidden are secrets that no finding may show.
func Checks(getenv func(name string) string, listen string, instances map[string]int) (checks []doctor.Check, hidden []string) {
	s, wrong := everything(func(name string) string {
		if value := getenv(name); value != "" || name != PublicURLVar {
			return value
		}
		return "http://" + listen // as Up sets it
	})
	secure := s.ownGateway()
	checks = []doctor.Check{
		{Name: "settings", Look: func(context.Context) []doctor.Finding { return settings(wrong) }},
		{Name: "certificates", Look: func(context.Context) []doctor.Finding { return s.ownCertificates() }},
		ofServer("postgres", s.Postgres, func(ctx context.Context) []doctor.Finding { return s.lookAtPostgres(ctx, instances) }),
		ofServer("tables", s.Postgres, s.lookAtTables),
		ofServer("replica", s.Replica, s.lookAtReplica),
		ofServer("rabbitmq", s.RabbitMQ, s.lookAtRabbitMQ),
		ofServer("redis", s.Redis, s.lookAtRedis),
		ofServer("consul", s.Consul, s.lookAtConsul),
		doctor.Listen(listen, secure),
		doctor.OpenFiles(),
		ofServer("shop", s.Consul, func(ctx context.Context) []doctor.Finding { return s.lookAtShop(ctx, secure) }),
	}
	return checks, secrets(getenv)
}

// ChecksOfEntrance are of the settings of a shop without servers. What listens at its gateway is asked by secure, nil for
// plain HTTP.
func ChecksOfEntrance(getenv func(name string) string) (checks []doctor.Check, secure *tls.Config) {
	s, err := LoadEntrance(getenv)
	return []doctor.Check{
		{Name: "settings", Look: func(context.Context) []doctor.Finding {
			if err == nil {
				return nil // there need not be any
			}
			return settings(apart(err))
		}},
		{Name: "certificates", Look: func(context.Context) []doctor.Finding { return s.ownCertificates() }},
	}, s.ownGateway()
}

// ofServer is a check of a server that is configured. One that is not is missed in the settings, if at all.
func ofServer(name, where string, look func(ctx context.Context) []doctor.Finding) doctor.Check {
	if where == "" {
		look = func(context.Context) []doctor.Finding { return nil }
	}
	return doctor.Check{Name: name, Look: look}
}

// everything reads the settings that all services together need, and returns what is wrong with them, each once.
func everything(getenv func(name string) string) (s Settings, wrong []error) {
	seen := map[string]bool{}
	for _, service := range services() {
		loaded, err := Load(service, getenv)
		s = loaded
		for _, err := range apart(err) {
			if !seen[err.Error()] && !errors.Is(err, errNowhere) {
				seen[err.Error()] = true
				wrong = append(wrong, err)
			}
		}
	}
	if s.Consul == "" {
		wrong = append(wrong, fmt.Errorf("%s is not set, want host:port of the Consul agent: the processes listen where there is room, and have to tell each other", ConsulVar))
	}
	return s, wrong
}

// apart takes joined errors apart.
func apart(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // what is wrapped is one error
	if !ok {
		if err == nil {
			return nil
		}
		return []error{err}
	}
	var all []error
	for _, err := range joined.Unwrap() {
		all = append(all, apart(err)...)
	}
	return all
}

// secrets are the settings, or the parts of them, that nobody may see.
func secrets(getenv func(name string) string) (all []string) {
	for _, v := range variables {
		value := getenv(v.name)
		u, err := url.Parse(value)
		if err != nil {
			all = append(all, value) // whatever it may be
			continue
		}
		if password, ok := u.User.Password(); ok {
			all = append(all, value, password, url.QueryEscape(password))
		}
		for _, word := range []string{"TOKEN", "PASSWORD", "SECRET"} {
			if strings.HasSuffix(v.name, word) {
				all = append(all, value)
			}
		}
		if v.name == PostgresVar || v.name == ReplicaVar { // which have another form too
			if cfg, err := pgx.ParseConfig(value); err == nil {
				all = append(all, cfg.Password)
			}
		}
	}
	return all
}

func settings(wrong []error) (found []doctor.Finding) {
	for _, err := range wrong {
		name, _, _ := strings.Cut(err.Error(), " ")
		f := doctor.Wrong("set it in the environment or in the --env-file; make stack writes one", "%v", err)
		if slices.ContainsFunc(variables, func(v variable) bool { return v.name == name }) {
			f = f.About(name)
		}
		found = append(found, f)
	}
	if len(found) == 0 {
		found = append(found, doctor.Good("all that the services need is there"))
	}
	return found
}

// soon is how long before its end a certificate should have been replaced.
const soon = 7 * 24 * time.Hour

// ownCertificates checks those that the services and the gateway show.
func (s Settings) ownCertificates() (found []doctor.Finding) {
	for _, own := range []struct{ variable, cert, key, ca string }{
		{TLSCertVar, s.TLSCert, s.TLSKey, s.TLSCA}, {PublicTLSCertVar, s.PublicTLSCert, s.PublicTLSKey, ""},
	} {
		if own.cert == "" {
			continue
		}
		f := func() doctor.Finding {
			if _, err := platform.LoadCertificates(own.cert, own.key, own.ca, slog.New(slog.DiscardHandler)); err != nil {
				return doctor.Wrong("put a certificate, its key and its authorities there, as PEM", "%v", err)
			}
			pair, err := tls.LoadX509KeyPair(own.cert, own.key)
			if err != nil {
				return doctor.Wrong("put a certificate and its key there, as PEM", "%v", err)
			}
			switch left := time.Until(pair.Leaf.NotAfter); {
			case left <= 0:
				return doctor.Wrong("renew it: nothing that verifies it will talk to it", "expired at %s", pair.Leaf.NotAfter.Format(time.DateTime))
			case time.Until(pair.Leaf.NotBefore) > 0:
				return doctor.Wrong("look at the clock", "is not valid before %s", pair.Leaf.NotBefore.Format(time.DateTime))
			case left < soon:
				return doctor.Doubt("renew it; the files are read again when they change", "ends at %s", pair.Leaf.NotAfter.Format(time.DateTime))
			}
			return doctor.Good("valid until %s", pair.Leaf.NotAfter.Format(time.DateOnly))
		}()
		found = append(found, f.About(own.variable))
	}
	return found
}

// version judges the version of a server: older than what it must be has failed.
func version(of, is, oldest string) doctor.Finding {
	if older(is, oldest) {
		return doctor.Wrong("run "+of+" "+oldest+" or later", "%s %s, want %s or later", of, is, oldest)
	}
	return doctor.Good("%s %s", of, is)
}

// older compares versions by their numbers, as far as the second has any.
func older(is, than string) bool {
	have, want := strings.Split(is, "."), strings.Split(than, ".")
	for i := range want {
		h := 0
		if i < len(have) {
			h, _ = strconv.Atoi(strings.TrimRight(have[i], "abcdefghijklmnopqrstuvwxyz+-~ "))
		}
		if w, _ := strconv.Atoi(want[i]); h != w {
			return h < w
		}
	}
	return false
}

// and adds to what was found of a server.
func and(f doctor.Finding, format string, args ...any) doctor.Finding {
	f.Found += ", " + fmt.Sprintf(format, args...)
	return f
}

// unreachable says why a server cannot be had.
func unreachable(variable string, err error) []doctor.Finding {
	do := "start it, or correct " + variable + "; make stack starts all four"
	var refused *pgconn.PgError
	var spoken *amqp091.Error
	var answered redis.Error
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	switch {
	case errors.As(err, &refused), errors.As(err, &answered):
		do = "correct the user, the password or the database in " + variable
	case errors.As(err, &spoken) && (spoken.Code == amqp091.AccessRefused || spoken.Code == amqp091.NotAllowed):
		do = "correct the user, the password or the virtual host in " + variable
	case errors.As(err, &unknown), errors.As(err, &name):
		do = "correct " + ServersCAVar + ", or sslrootcert of PostgreSQL, or the name in " + variable
	}
	// Some clients say it in two lines.
	return []doctor.Finding{doctor.Wrong(do, "%s", strings.Join(strings.Fields(err.Error()), " ")).About(variable)}
}

// plain is a doubt if what goes to a server of another machine can be read on its way.
func plain(f doctor.Finding, encrypted bool, host, how string) doctor.Finding {
	ip := net.ParseIP(host)
	switch {
	case encrypted:
		return and(f, "by TLS")
	case host == "localhost" || host == "" || strings.HasPrefix(host, "/") || ip != nil && ip.IsLoopback() || f.Status == doctor.Fail:
		return f
	}
	f.Status, f.Do, f.See = doctor.Warn, how, "docs/deployment.md"
	return and(f, "without TLS although it is on another machine")
}

func (s Settings) lookAtPostgres(ctx context.Context, instances map[string]int) []doctor.Finding {
	conn, err := pgx.Connect(ctx, s.Postgres)
	if err != nil {
		return unreachable(PostgresVar, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var is string
	var limit, used int
	var replica, may, encrypted bool
	var theirs time.Time
	err = conn.QueryRow(ctx, `SELECT split_part(current_setting('server_version'), ' ', 1), current_setting('max_connections')::int,
		(SELECT COUNT(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), pg_is_in_recovery(),
		has_database_privilege(current_database(), 'CREATE'), COALESCE((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)`).
		Scan(&is, &limit, &used, &replica, &may, &encrypted)
	if err != nil {
		return unreachable(PostgresVar, err)
	}
	asked := time.Now()
	if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&theirs); err != nil {
		return unreachable(PostgresVar, err)
	}
	f := plain(version("PostgreSQL", is, oldestPostgres), encrypted, conn.Config().Host, "set sslmode=verify-full in "+PostgresVar)
	processes := 0
	for _, service := range assembly.Backends {
		processes += max(instances[service], 1)
	}
	need := processes * platform.PostgresConns
	f = and(f, "%d of %d connections in use", used, limit)
	found := []doctor.Finding{f.About(PostgresVar)}
	if replica {
		found = append(found, doctor.Wrong("name the primary in "+PostgresVar, "the server is a replica, to which nobody can write").About(PostgresVar))
	}
	if need > limit {
		found = append(found, doctor.Doubt("raise max_connections, or put a pooler before it", "%d processes use up to %d connections, the server has %d", processes, need, limit).About(PostgresVar))
	}
	if !may {
		found = append(found, doctor.Doubt("GRANT CREATE ON DATABASE, or make the schemas "+s.Name+"_... for it", "the user may not make schemas").About(PostgresVar))
	}
	// The answer is from between the two times that we know.
	return append(found, skew("PostgreSQL", asked, theirs, time.Now()))
}

// skew compares clocks by an answer that was given between two times here.
func skew(of string, asked, theirs, answered time.Time) doctor.Finding {
	ahead := time.Duration(0)
	switch {
	case theirs.Before(asked):
		ahead = asked.Sub(theirs)
	case theirs.After(answered):
		ahead = answered.Sub(theirs)
	}
	return doctor.Skew(of, ahead).About("clock")
}

// lookAtTables looks into each service's schema, if there is one.
func (s Settings) lookAtTables(ctx context.Context) (found []doctor.Finding) {
	conn, err := pgx.Connect(ctx, s.Postgres)
	if err != nil {
		return nil // which another check says
	}
	rows, _ := conn.Query(ctx, `SELECT nspname::text FROM pg_namespace`)
	schemas, err := pgx.CollectRows(rows, pgx.RowTo[string])
	_ = conn.Close(ctx)
	if err != nil {
		return unreachable(PostgresVar, err)
	}
	services, blocks := 0, 0
	for _, service := range assembly.Backends {
		if !slices.Contains(schemas, s.Schema(service)) {
			continue
		}
		db, err := s.Look(service)
		if err != nil {
			return unreachable(PostgresVar, err)
		}
		n, wrong := doctor.Tables(ctx, service, db)
		_ = db.Close()
		services, blocks, found = services+1, blocks+n, append(found, wrong...)
	}
	return doctor.AllTables(services, blocks, found)
}

// staleReplica is how far behind a replica may be: what the catalogue shows is that old.
const staleReplica = 10 * time.Second

func (s Settings) lookAtReplica(ctx context.Context) []doctor.Finding {
	conn, err := pgx.Connect(ctx, s.Replica)
	if err != nil {
		return unreachable(ReplicaVar, err)
	}
	defer func() { _ = conn.Close(ctx) }()
	var is string
	var replica, receives bool
	var seconds float64
	err = conn.QueryRow(ctx, `SELECT split_part(current_setting('server_version'), ' ', 1), pg_is_in_recovery(), EXISTS (SELECT FROM pg_stat_wal_receiver),
		COALESCE(CASE WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 ELSE EXTRACT(EPOCH FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END, 0)::float8`).
		Scan(&is, &replica, &receives, &seconds)
	if err != nil {
		return unreachable(ReplicaVar, err)
	}
	f := and(version("PostgreSQL", is, oldestPostgres), "%.1f s behind", seconds)
	switch lag := time.Duration(seconds * float64(time.Second)); {
	case f.Status != doctor.OK:
	case !replica:
		f = doctor.Doubt("name a replica of "+PostgresVar+", or leave the variable out", "PostgreSQL %s is no replica", is)
	case !receives:
		f = doctor.Doubt("look at its log, and whether it reaches the primary", "PostgreSQL %s receives nothing from its primary: what it shows grows old", is)
	case lag > staleReplica:
		f = doctor.Doubt("look at its load: the catalogue is shown as it was then", "PostgreSQL %s is %v behind", is, lag.Round(time.Second))
	}
	return []doctor.Finding{f.About(ReplicaVar)}
}

func (s Settings) lookAtRabbitMQ(ctx context.Context) []doctor.Finding {
	at, err := amqp091.ParseURI(s.RabbitMQ)
	if err != nil {
		return nil // which the settings say
	}
	secure, err := s.server(s.RabbitMQ, slog.New(slog.DiscardHandler))
	if err != nil {
		return unreachable(ServersCAVar, err)
	}
	conn, err := amqp091.DialConfig(s.RabbitMQ, amqp091.Config{TLSClientConfig: secure, Dial: func(network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if deadline, ok := ctx.Deadline(); ok && err == nil {
			err = conn.SetDeadline(deadline)
		}
		return conn, err
	}})
	if err != nil {
		return unreachable(RabbitMQVar, err)
	}
	defer func() { _ = conn.Close() }()
	is, _ := conn.Properties["version"].(string)
	return []doctor.Finding{plain(version("RabbitMQ", is, oldestRabbitMQ), at.Scheme == "amqps", at.Host, "use amqps:// in "+RabbitMQVar).About(RabbitMQVar)}
}

func (s Settings) lookAtRedis(ctx context.Context) []doctor.Finding {
	options, err := s.redisOptions(slog.New(slog.DiscardHandler))
	if err != nil {
		return unreachable(RedisVar, err)
	}
	options.MaxRetries = -1
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", options.Addr)
	if err != nil { // the client would write it to standard error, too
		return unreachable(RedisVar, err)
	}
	_ = conn.Close()
	client := redis.NewClient(options)
	defer func() { _ = client.Close() }()
	text, err := client.Info(ctx, "server", "memory").Result()
	if err != nil {
		return unreachable(RedisVar, err)
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		info[name] = value
	}
	host, _, _ := net.SplitHostPort(options.Addr)
	f := plain(version("Redis", info["redis_version"], oldestRedis), options.TLSConfig != nil, host, "use rediss:// in "+RedisVar).About(RedisVar)
	found := []doctor.Finding{f}
	if policy := info["maxmemory_policy"]; info["maxmemory"] != "0" && policy != "noeviction" {
		found = append(found, doctor.Doubt("set maxmemory-policy noeviction", "when its memory is full it forgets quotas (%s)", policy).About(RedisVar))
	}
	return found
}

func (s Settings) lookAtConsul(ctx context.Context) []doctor.Finding {
	client, err := consulkit.New(s.consul())
	if err != nil {
		return unreachable(ConsulVar, err)
	}
	asking := (&api.QueryOptions{}).WithContext(ctx)
	var self struct{ Config struct{ Version string } }
	if _, err := client.API().Raw().Query("/v1/agent/self", &self, asking); err != nil {
		return unreachable(ConsulVar, err)
	}
	leader, err := client.API().Status().LeaderWithQueryOptions(asking)
	if err != nil {
		return unreachable(ConsulVar, err)
	}
	is := self.Config.Version
	f := version("Consul", is, oldestConsul)
	if f.Status == doctor.Fail {
		f = doctor.Doubt("run Consul "+oldestConsul+" or later", "Consul %s, which nobody has tried: want %s or later", is, oldestConsul)
	}
	if leader == "" {
		f = doctor.Wrong("look at its servers: without a leader nothing can register", "Consul %s has no leader", is)
	}
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(s.Consul, "https://"))
	return []doctor.Finding{plain(f, strings.HasPrefix(s.Consul, "https://"), host, "use https:// in "+ConsulVar+", or an agent on each machine").About(ConsulVar)}
}

// lookAtShop asks a gateway that is registered: the token is for nobody else.
func (s Settings) lookAtShop(ctx context.Context, secure *tls.Config) []doctor.Finding {
	client, err := consulkit.New(s.consul())
	if err != nil {
		return nil // which another check says
	}
	gateways, _, err := client.API().Health().Service(s.Name+"-"+assembly.Gateway, "", true, (&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil
	}
	if len(gateways) == 0 {
		return []doctor.Finding{doctor.Good("none runs: no gateway is registered as %s-%s and ready", s.Name, assembly.Gateway)}
	}
	at := gateways[0].Service
	scheme := "http://"
	if secure != nil {
		scheme = "https://"
	}
	return doctor.Running(ctx, scheme+net.JoinHostPort(cmp.Or(at.Address, gateways[0].Node.Address), strconv.Itoa(at.Port)), s.ServiceToken, secure)
}
