// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package embedded runs the whole shop in one process: every service with its own SQLite
// file and its own listener, found through a static registry, joined by a broker in memory that
// confirms a message only when every group has handled it. So nothing is ever only in
// memory, and the process may be killed at any moment.
package embedded

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/dovetail-go/dovetail/discovery"
	"github.com/dovetail-go/dovetail/discovery/balance"
	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/customer"
	"github.com/dovetail-go/dovetail/examples/shop/internal/journal"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
)

// DemoAccounts exist from the first start. They are for looking around on one's own
// machine: no other mode has them.
var DemoAccounts = []customer.Account{
	{Name: "Ada Joiner", Email: "ada@shop.example", Password: "dovetail-ada", Role: platform.RoleCustomer},
	{Name: "Ben Carver", Email: "ben@shop.example", Password: "dovetail-ben", Role: platform.RoleCustomer},
	{Name: "Shop admin", Email: "admin@shop.example", Password: "dovetail-admin", Role: platform.RoleAdmin},
	{Name: "Shop operator", Email: "operator@shop.example", Password: "dovetail-operator", Role: platform.RoleOperator},
}

// takeover is how long a start waits for the process before it to be dead for sure. The lock
// on the data says so already, but the databases' leases do not know of it.
const takeover = 5 * time.Second

// flush is how long a stopping service waits for the confirmation of its events. The consumers of
// other services may have stopped before it; what they did not confirm stays in the outbox, so there is
// little to wait for.
const flush = 500 * time.Millisecond

// Config says where the shop lives.
type Config struct {
	// Data is the folder of the databases. It is created if it does not exist.
	Data string
	// Listen is the address of the gateway. Port 0 takes a free one.
	Listen string
	// PasswordCost is bcrypt's. Zero means its default.
	PasswordCost int
	// Packing is how long a parcel takes to leave. Zero means shipping's default.
	Packing time.Duration
	// Issuer is another one than the shop's own whose people may enter. Zero means none.
	Issuer platform.IssuerConfig
	// TLSCert and TLSKey are files of the gateway's certificate for people. Empty means plain HTTP.
	TLSCert, TLSKey string
	// Log is nil for slog.Default().
	Log *slog.Logger
	// Ready, if not nil, is called with the shop's URL once it answers.
	Ready func(url string)
}

// Run runs the shop until ctx ends, then drains it: first the gateway takes nothing new,
// then the services finish what they have in hand. What they cannot finish is resumed by the next Run on
// the same data.
func Run(ctx context.Context, cfg Config) (err error) {
	log := cfg.Log
	if log == nil {
		log = slog.Default()
	}
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	unlock, err := lock(cfg.Data)
	if err != nil {
		return err
	}
	defer unlock()
	token, err := serviceToken(cfg.Data)
	if err != nil {
		return err
	}
	front, err := (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w; choose another address with --listen", err)
	}
	defer func() { _ = front.Close() }()

	s := &shop{
		url: "http://" + front.Addr().String(), data: cfg.Data, token: token, log: log,
	}
	if s.issuer, err = platform.NewIssuer(cfg.Issuer, log); err != nil {
		return err
	}
	if cfg.TLSCert != "" {
		s.url = "https://" + front.Addr().String()
		if s.front, err = platform.LoadCertificates(cfg.TLSCert, cfg.TLSKey, "", log); err != nil {
			return err
		}
		s.beside = platform.Beside(cfg.TLSCert, cfg.TLSKey)
	}
	s.assembly = assembly.Config{Issuer: s.url, Accounts: DemoAccounts, PasswordCost: cfg.PasswordCost, Packing: cfg.Packing}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx, front); err != nil {
		return err
	}
	return s.run(ctx, cfg.Ready)
}

// shop is what Run holds together.
type shop struct {
	url, data, token string
	assembly         assembly.Config
	log              *slog.Logger
	broker           platform.Broker
	wire             *http.Transport // below transport
	transport        *balance.Transport
	auth             *platform.Auth
	issuer           *platform.Issuer
	front            *platform.Certificates // of the gateway; nil for plain HTTP
	beside           *tls.Config            // by which our own load reaches it
	resolver         *discovery.Static
	stream           *sql.DB
	units            []*unit // the gateway last
	desk             chaos.Desk
}

// open builds every service on its own database and listener, and declares every consumer
// before anybody can publish.
func (s *shop) open(ctx context.Context, front net.Listener) (err error) {
	if s.resolver, err = discovery.NewStatic(nil); err != nil {
		return err
	}
	s.wire = http.DefaultTransport.(*http.Transport).Clone()
	s.wire.MaxIdleConns, s.wire.MaxIdleConnsPerHost = 0, 128
	if s.transport, err = balance.NewTransport(s.resolver, balance.TransportConfig{Base: s.wire}); err != nil {
		return err
	}
	// Every consumer is declared before the first message, so an event that finds no group is
	// one that nobody wants to hear.
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true, DropUnroutable: true, DeadLetter: s.keepDeadLetter, Logger: s.log})
	if err != nil {
		return err
	}
	if s.stream, err = platform.OpenSQLite(filepath.Join(s.data, "journal.db")); err != nil {
		return err
	}
	if s.broker, err = journal.Open(ctx, s.stream, memory{broker}, s.keepDeadLetter); err != nil {
		return err
	}
	if s.auth, err = platform.NewAuth(s.url, "http://customer/.well-known/jwks.json", s.token, &http.Client{Transport: s.transport, Timeout: 5 * time.Second}); err != nil {
		return err
	}
	for _, name := range append(slices.Clone(assembly.Backends), assembly.Gateway) {
		s.units = append(s.units, newUnit(name))
	}
	entrance := s.units[len(s.units)-1]
	// All lives of the gateway accept from one listener, which is ours: one that is killed refuses nobody.
	if entrance.file, err = front.(*net.TCPListener).File(); err != nil {
		return err
	}
	entrance.addr = front.Addr().String()
	s.desk.Control = chaos.New(s)
	s.desk.Invariants = check.NewWatch(check.Files(s.data), s.desk.Control.Quiet, nil)
	if s.desk.Load, err = load.NewGenerator(s.url, s.log); err != nil {
		return err
	}
	s.desk.Load.UseTLS(s.beside)
	for _, u := range s.units {
		if u.telemetry, err = platform.NewTelemetry(ctx, u.name, u.name+"-1", s.log); err != nil {
			return err
		}
		if err := s.begin(ctx, u); err != nil {
			return fmt.Errorf("%s: %w", u.name, err)
		}
	}
	return assembly.Declare(ctx, s.broker)
}

// memory is the broker in memory, with what the console asks of it.
type memory struct{ *messagingmem.Broker }

// Queues implements [platform.Queues].
func (m memory) Queues(_ context.Context, groups ...string) ([]platform.Queue, error) {
	known := map[string]messagingmem.GroupStats{}
	for _, g := range m.Stats().Groups {
		known[g.Group] = g
	}
	out := make([]platform.Queue, len(groups))
	for i, group := range groups {
		g := known[group]
		out[i] = platform.Queue{Group: group, Waiting: int64(g.Ready + g.Held), InHand: int64(g.InFlight + g.Delayed), Consumers: g.Subscribers}
	}
	return out, nil
}

// callsAtOnce bounds what one service has under way with another.
const callsAtOnce = 64

func (s *shop) env(u *unit, callsAtOnce int) (platform.Env, error) {
	guards, err := platform.NewGuarded(s.transport, callsAtOnce, u.telemetry)
	if err != nil {
		return platform.Env{}, err
	}
	rpc, err := platform.NewRPC(s.resolver, nil, s.token, callsAtOnce, u.telemetry)
	if err != nil {
		return platform.Env{}, err
	}
	u.closers = append(u.closers, rpc.Close)
	gate := u.newGate()
	return platform.Env{
		Name: u.name, Instance: u.name + "-1", Broker: gate.Broker(s.broker, true), Gate: gate, Auth: s.auth, Issuer: s.issuer, Lease: takeover, Flush: flush, Log: s.log.With("service", u.name), Telemetry: u.telemetry,
		Caller: &platform.Caller{Client: &http.Client{Transport: guards}, Guards: guards, RPC: rpc, Instances: s.transport.View, Below: s.wire, Token: s.token},
	}, nil
}

// run serves everything. The services outlive the gateway, so that what it accepted can
// still be answered.
func (s *shop) run(ctx context.Context, ready func(url string)) error {
	entrance := s.units[len(s.units)-1]
	if err := s.tellPrometheus(); err != nil {
		return err
	}
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	network, stopNetwork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNetwork()

	var wires errgroup.Group
	wires.Go(func() error { return s.transport.Run(network) })

	g, gctx := errgroup.WithContext(behind)
	for _, u := range s.units[:len(s.units)-1] {
		g.Go(func() error { return s.live(gctx, u) })
	}
	entry, stopEntry := context.WithCancel(ctx)
	defer stopEntry()
	g.Go(func() error {
		<-gctx.Done() // a service failed, or all are told to stop
		stopEntry()
		return nil
	})
	g.Go(func() error { return s.desk.Load.Run(entry) })
	// What is paused or cut off could not drain.
	cut := context.AfterFunc(entry, s.desk.Control.Close)
	defer cut()
	g.Go(func() error {
		defer stopBehind()
		// A connection that was made and never used would hold up the drain of its server.
		defer s.wire.CloseIdleConnections()
		return s.live(entry, entrance)
	})
	if ready != nil {
		ready(s.url)
	}
	err := g.Wait()
	stopNetwork()
	return errors.Join(err, wires.Wait())
}

func (s *shop) close() error {
	var errs []error
	for _, u := range s.units {
		errs = append(errs, u.bury())
		if u.telemetry != nil {
			u.telemetry.Close(s.log)
		}
		if u.file != nil {
			errs = append(errs, u.file.Close())
		}
	}
	if s.stream != nil {
		errs = append(errs, s.stream.Close())
	}
	return errors.Join(errs...)
}

// keepDeadLetter gives a dead letter to the service whose consumer it is: a group is
// named after its service, and a part of it after a dot.
func (s *shop) keepDeadLetter(ctx context.Context, dead messaging.DeadLetter) error {
	name, _, _ := strings.Cut(dead.Group, ".")
	bus, err := s.busOf(name)
	if err != nil {
		return err
	}
	return bus.KeepDeadLetter(ctx, dead)
}

// serviceToken returns the secret by which services know each other, made at the first start.
func serviceToken(data string) (string, error) {
	path := filepath.Join(data, "service.token")
	token, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret := make([]byte, 32)
		if _, err := rand.Read(secret); err != nil {
			return "", err
		}
		token = []byte(hex.EncodeToString(secret))
		// Written beside and renamed, so that a kill in the middle leaves no half of it.
		if err := os.WriteFile(path+".new", token, 0o600); err != nil {
			return "", err
		}
		return string(token), os.Rename(path+".new", path)
	}
	if err != nil {
		return "", err
	}
	if len(token) != 64 {
		return "", fmt.Errorf("%s: has %d bytes, want 64; delete it to have a new one made", path, len(token))
	}
	return string(token), nil
}
