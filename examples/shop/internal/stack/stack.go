// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package stack runs the shop on real servers, one process per service: PostgreSQL with a schema for
// each of them, RabbitMQ for the events, Redis for what instances share, Consul to find each other. The services
// are the same as in the embedded shop and do not know the difference.
package stack

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/consulkit"
	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/customer"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/promkit"
	"github.com/dovetail-go/dovetail/rabbitkit"
	"github.com/dovetail-go/dovetail/ratelimit"
	"github.com/dovetail-go/dovetail/rediskit"
)

// Process is one service to run in this process.
type Process struct {
	// Service is its name, Instance tells it from others of the same service.
	Service, Instance string
	// Serve, if not nil, serves it in another way than on a listener, until ctx ends: nobody is told of it, and its
	// background work and its consumers are left to other processes.
	Serve func(ctx context.Context, h http.Handler) error
	// Listener is where it is served, Advertise where others reach it, as host or host:port. Empty means
	// the listener's address, which must then be a single one.
	Listener  net.Listener
	Advertise string
	// Shared, if not nil, is another listener, which several processes of the service accept from.
	Shared net.Listener
	// Settings are those of the service.
	Settings Settings
	// Gate is where harm is done to the service on purpose. Nil does none.
	Gate *platform.Gate
	// Log is nil for slog.Default().
	Log *slog.Logger
	// Ready, if not nil, is called with the service's address before it is served.
	Ready func(addr string)
}

// callsAtOnce bounds what one service has under way with another.
const callsAtOnce = 64

// grace is how long a stopping service is still there for those who have not heard yet.
const grace = 300 * time.Millisecond

// Run runs one service until ctx ends, then drains it. The error names the variable of the server
// that does not answer.
func Run(ctx context.Context, p Process) error {
	log := p.Log
	if log == nil {
		log = slog.Default()
	}
	log = log.With("service", p.Service, "instance", p.Instance)
	s := p.Settings
	addr, err := p.addr(ctx)
	if err != nil {
		return err
	}
	env := platform.Env{Name: p.Service, Instance: p.Instance, Addr: addr, Lease: s.Lease, Grace: grace, Gate: p.Gate, Log: log}

	if env.Telemetry, err = platform.NewTelemetry(ctx, p.Service, p.Instance, log); err != nil {
		return err
	}
	defer env.Telemetry.Close(log)
	between, err := s.certificates(log)
	if err != nil {
		return err
	}
	if env.Certificates, err = s.front(p.Service, between, log); err != nil {
		return err
	}
	if p.Service == assembly.Gateway {
		env.Proxies = s.Proxies
		if env.Control, err = s.controlled(); err != nil {
			return err
		}
	}
	resolver, registry, err := s.discovery(ctx)
	if err != nil {
		return err
	}
	env.Registry = registry
	wire := platform.NewWire(between)
	transport, err := balance.NewTransport(resolver, balance.TransportConfig{Base: wire.Below(), Balancer: env.Telemetry.Balancing()})
	if err != nil {
		return err
	}
	// The network outlives the service: what it has in hand may need the others.
	network, stopNetwork := context.WithCancel(context.WithoutCancel(ctx))
	var watching sync.WaitGroup
	watching.Go(func() { _ = transport.Run(network) }) // it fails only if it is run twice
	defer watching.Wait()
	defer stopNetwork()
	concurrent := callsAtOnce
	if p.Service == assembly.Gateway {
		concurrent = 0 // what it passes on is bounded where it arrives
	}
	guards, err := platform.NewGuarded(wire.Above(transport), concurrent, env.Telemetry)
	if err != nil {
		return err
	}
	rpc, err := platform.NewRPC(resolver, between, s.ServiceToken, concurrent, env.Telemetry)
	if err != nil {
		return err
	}
	defer func() { _ = rpc.Close() }()
	env.Caller = &platform.Caller{Client: &http.Client{Transport: guards}, Guards: guards, RPC: rpc, Instances: transport.View, Below: wire.Below(), Token: s.ServiceToken}
	if env.Auth, err = platform.NewAuth(s.PublicURL, "http://customer/.well-known/jwks.json", s.ServiceToken, &http.Client{Transport: wire.Above(transport), Timeout: 5 * time.Second}); err != nil {
		return err
	}

	if env.Issuer, err = platform.NewIssuer(s.Issuer, log); err != nil {
		return err
	}

	if withDatabase(p.Service) {
		if env.DB, err = s.database(ctx, p.Service); err != nil {
			return err
		}
		defer func() { _ = env.DB.Close() }()
		if env.Replica, err = s.replica(p.Service); err != nil {
			return err
		}
		if env.Replica != nil {
			defer func() { _ = env.Replica.Close() }()
		}
		if env.News, err = s.news(p.Service, env.DB, log); err != nil {
			return err
		}
	}
	if withBroker(p.Service) {
		broker, err := s.broker(ctx, p.Instance, p.Gate, log)
		if err != nil {
			return err
		}
		defer func() { _ = broker.Close() }()
		env.Broker = p.Gate.Broker(rabbit{broker}, false)
		env.Collectors = append(env.Collectors, promkit.Client("rabbitmq", func() promkit.ClientStats {
			s := broker.Stats()
			return promkit.ClientStats{
				Connected: s.Connected, Consuming: s.Consuming, Blocked: s.Blocked, InFlight: int64(s.InFlight), Handling: s.Handling,
				Delivered: s.Delivered, Lost: s.StaleAcks, Reconnects: s.Reconnects,
			}
		}))
	}
	if withQuotas(p.Service) {
		client, err := s.redis(ctx, log)
		if err != nil {
			return err
		}
		defer func() { _ = client.Close() }()
		env.Quotas = quotas(client, s.Name)
		if env.Cache, err = rediskit.NewCache(client, rediskit.Config{Prefix: s.Name + ":answers"}); err != nil {
			return err
		}
	}

	service, err := assembly.New(ctx, env, assembly.Config{Issuer: s.PublicURL, Accounts: s.staff()})
	if err != nil {
		return err
	}
	if err := assembly.Verify(p.Service, service.Consumers()); err != nil {
		return err
	}
	if p.Serve != nil {
		return p.Serve(ctx, platform.Handler(ctx, env, service))
	}
	if p.Ready != nil {
		p.Ready(addr)
	}
	listeners := []net.Listener{p.Listener}
	if p.Shared != nil {
		listeners = append(listeners, p.Shared)
	}
	return platform.Serve(ctx, env, service, listeners...)
}

// addr is where others reach the process.
func (p Process) addr(ctx context.Context) (string, error) {
	if p.Serve != nil {
		return "", nil
	}
	host, port, err := net.SplitHostPort(p.Listener.Addr().String())
	if err != nil {
		return "", err
	}
	if p.Advertise == "" {
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			return "", fmt.Errorf("it listens on every address (%s): say where others reach it", host)
		}
		return net.JoinHostPort(host, port), nil
	}
	if p.Advertise == HostAddress {
		if p.Advertise, err = hostAddress(ctx); err != nil {
			return "", err
		}
	}
	if _, _, err := net.SplitHostPort(p.Advertise); err == nil {
		return p.Advertise, nil
	}
	return net.JoinHostPort(p.Advertise, port), nil
}

// HostAddress, as an address to advertise, is the one that the machine's own name stands for: in a container,
// where others reach it.
const HostAddress = "host"

func hostAddress(ctx context.Context) (string, error) {
	name, err := os.Hostname()
	if err != nil {
		return "", err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for _, a := range addrs {
		if !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			return a.Unmap().String(), nil
		}
	}
	return "", errors.Join(fmt.Errorf("the name of this machine, %s, stands for no address that others could reach", name), err)
}

// staff are the first accounts, with passwords from outside. They are created once: a password
// that is changed there later does not change here.
func (s Settings) staff() []customer.Account {
	var out []customer.Account
	for _, a := range []customer.Account{
		{Name: "Shop admin", Email: "admin@shop.example", Password: s.AdminPassword, Role: platform.RoleAdmin},
		{Name: "Shop operator", Email: "operator@shop.example", Password: s.OperatorPassword, Role: platform.RoleOperator},
	} {
		if a.Password != "" {
			out = append(out, a)
		}
	}
	return out
}

// Schema is the name of a service's schema.
func (s Settings) Schema(service string) string { return s.Name + "_" + service }

func (s Settings) database(ctx context.Context, service string) (*sql.DB, error) {
	db, err := platform.OpenPostgres(ctx, s.Postgres, s.Schema(service))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", PostgresVar, err)
	}
	return db, nil
}

// replica is the copy of a service's database that its queries go to. Nil if there is none, and for services that have
// no use for one: only the catalogue is read so much that what it shows may be a moment old.
func (s Settings) replica(service string) (*sql.DB, error) {
	if s.Replica == "" || service != "catalog" {
		return nil, nil
	}
	db, err := platform.OpenPostgresReadOnly(s.Replica, s.Schema(service))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ReplicaVar, err)
	}
	return db, nil
}

// news is what the instances of a service tell each other. Nil for services whose people watch nothing live.
func (s Settings) news(service string, db *sql.DB, log *slog.Logger) (*platform.News, error) {
	if service != "order" {
		return nil, nil
	}
	news, err := platform.NewNews(db, s.Postgres, s.Schema(service), log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", PostgresVar, err)
	}
	return news, nil
}

// Look opens a service's schema for reading.
func (s Settings) Look(service string) (*sql.DB, error) {
	db, err := platform.OpenPostgresReadOnly(s.Postgres, s.Schema(service))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", PostgresVar, err)
	}
	return db, nil
}

// broker is RabbitMQ with every group of the shop declared, so that an event reaches those too who
// have not started yet. What is published is also kept, for reporting, which reads from the very beginning.
func (s Settings) broker(ctx context.Context, instance string, gate *platform.Gate, log *slog.Logger) (*rabbitkit.Client, error) {
	secure, err := s.server(s.RabbitMQ, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RabbitMQVar, err)
	}
	client, err := rabbitkit.New(s.RabbitMQ, rabbitkit.Config{
		TLS: secure, Dial: gate.Dial, Exchange: s.Name, Name: s.Name + " " + instance, Log: rabbitkit.Log{MaxAge: 10 * 365 * 24 * time.Hour}, Logger: log,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", RabbitMQVar, err)
	}
	if err := assembly.Declare(ctx, client); err != nil {
		_ = client.Close()
		return nil, fmt.Errorf("%s: %w", RabbitMQVar, err)
	}
	return client, nil
}

// rabbit is RabbitMQ, with what the console asks of it.
type rabbit struct{ *rabbitkit.Client }

// Queues implements [platform.Queues]: the broker does not say what is in hand, the instances do.
func (r rabbit) Queues(ctx context.Context, groups ...string) ([]platform.Queue, error) {
	backlogs, err := r.Backlog(ctx, groups...)
	out := make([]platform.Queue, len(backlogs))
	for i, b := range backlogs {
		out[i] = platform.Queue{Group: b.Group, Waiting: int64(b.Waiting), Consumers: b.Subscribers}
	}
	return out, err
}

// redisOptions are those of the variable, with the authorities of our servers.
func (s Settings) redisOptions(log *slog.Logger) (*redis.Options, error) {
	options, err := redis.ParseURL(s.Redis)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read", RedisVar)
	}
	if options.TLSConfig != nil && s.ServersCA != "" {
		if options.TLSConfig, err = s.server(s.Redis, log); err != nil {
			return nil, fmt.Errorf("%s: %w", RedisVar, err)
		}
	}
	return options, nil
}

// redis is the client, once the server has let it in. A server that is away does not keep the shop
// from opening: quotas are then kept by each instance for its share.
func (s Settings) redis(ctx context.Context, log *slog.Logger) (*redis.Client, error) {
	options, err := s.redisOptions(log)
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(options)
	err = client.Ping(ctx).Err()
	if refused := redis.Error(nil); errors.As(err, &refused) {
		_ = client.Close()
		return nil, fmt.Errorf("%s: %w", RedisVar, err)
	}
	if err != nil {
		log.Warn("Redis does not answer: quotas are this instance's own until it does", "error", err)
	}
	return client, nil
}

// quotas are kept in Redis, so that all instances share them.
func quotas(client *redis.Client, prefix string) func(name string, limit ratelimit.Limit) (platform.Quota, error) {
	return func(name string, limit ratelimit.Limit) (platform.Quota, error) {
		buckets, err := rediskit.NewBuckets(client, rediskit.Config{Prefix: prefix + ":" + name})
		if err != nil {
			return nil, err
		}
		return ratelimit.NewLeased(buckets, limit, ratelimit.LeasedConfig{Name: name})
	}
}

// discovery is Consul, or what somebody else keeps, a file or a domain name server: then nobody registers.
func (s Settings) discovery(ctx context.Context) (discovery.Resolver, discovery.Registry, error) {
	switch {
	case s.Consul != "":
	case s.DiscoveryDNS != "" && s.DiscoveryFile == "":
		names, err := byDNS(s.DiscoveryDNS)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", DiscoveryDNSVar, err)
		}
		return names, nil, nil
	default:
		file, err := discovery.NewFile(s.DiscoveryFile, discovery.FileConfig{})
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", DiscoveryFileVar, err)
		}
		return file, nil, nil
	}
	client, err := consulkit.New(s.consul())
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", ConsulVar, err)
	}
	if _, err := client.API().Status().LeaderWithQueryOptions((&api.QueryOptions{}).WithContext(ctx)); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", ConsulVar, err)
	}
	registry, err := s.registry(client)
	if err != nil {
		return nil, nil, err
	}
	resolver, err := consulkit.NewResolver(client, consulkit.ResolverConfig{})
	if err != nil {
		return nil, nil, err
	}
	names := named{registry, resolver, s.Name + "-"}
	return names, names, nil
}

// registry is the agent's, which looks at the services itself, if it can: it finds a process that hangs sooner than its
// lease would.
func (s Settings) registry(client *consulkit.Client) (discovery.Registry, error) {
	if s.Unseen {
		registry, err := consulkit.NewRegistry(client, consulkit.RegistryConfig{})
		return introspection{registry, s.readiness}, err
	}
	return consulkit.NewRegistry(client, consulkit.RegistryConfig{Checks: s.looks})
}

// named keeps the services of several shops on one Consul apart by the beginning of their names.
type named struct {
	registry discovery.Registry
	resolver discovery.Resolver
	prefix   string
}

// Register implements [discovery.Registry].
func (n named) Register(ctx context.Context, in discovery.Instance) (discovery.Lease, error) {
	in.Service, in.ID = n.prefix+in.Service, n.prefix+in.ID
	return n.registry.Register(ctx, in)
}

// Watch implements [discovery.Resolver].
func (n named) Watch(ctx context.Context, service string) iter.Seq2[discovery.Set, error] {
	return n.resolver.Watch(ctx, n.prefix+service)
}
