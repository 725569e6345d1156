// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// Config configures a [Client]. The zero value is ready for production.
type Config struct {
	// Topic is the Kafka topic that everything is published to, and the first part of the names of
	// the other topics: letters, digits, -, _ and ., at most 64. Clients with the same Topic see each
	// other's messages. Empty means "dovetail".
	Topic string
	// Partitions is how many partitions the topic gets when it is created; more cannot be had
	// later without breaking the order of keys. It bounds how many subscriptions of a group
	// have work. Zero means 12.
	Partitions int
	// Replicas is how many brokers keep each partition. Zero means the brokers' default.
	Replicas int
	// Configs are settings of the topic when it is created, such as "retention.ms" or
	// "min.insync.replicas". Nil means the brokers' defaults.
	Configs map[string]string
	// ClientID names this program in the brokers' logs. Empty means "dovetail".
	ClientID string
	// TLS encrypts the connections. Nil means plain text.
	TLS *tls.Config
	// SASL authenticates, such as scram.Auth{User: user, Pass: password}.AsSha512Mechanism()
	// of franz-go's pkg/sasl/scram. Nil means not at all.
	SASL sasl.Mechanism
	// Dial connects to a broker, instead of a dialer with Timeout. With TLS the connection is
	// wrapped.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Window is how many messages may be on their way to the brokers without their
	// confirmation; more wait in Publish. Zero means 1000.
	Window int
	// CommitEvery is how often a subscription's progress is saved. What was handled after the last
	// save is delivered again if the process is killed. Zero means 250 ms.
	CommitEvery time.Duration
	// Waiting is how many messages of one subscription may wait in memory for their retry. Zero
	// means 10,000.
	Waiting int
	// SessionTimeout is after how long without a sign of life a subscription's partitions go to others.
	// Zero means 30 s.
	SessionTimeout time.Duration
	// RebalanceTimeout is how long a partition that is to go to another subscription waits for the
	// handlers that run. Zero means 30 s.
	RebalanceTimeout time.Duration
	// Timeout bounds the making of a connection and every request but that of a subscription that
	// waits for messages. Zero means 10 s.
	Timeout time.Duration
	// Hooks tell what happens.
	Hooks messaging.Hooks
	// Logger is told of lost partitions, panics, and dead letters. Nil means slog.Default() at
	// the time.
	Logger *slog.Logger
}

var topicName = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// Client publishes and subscribes through Kafka. It is a [messaging.Publisher],
// [messaging.Subscriber] and [messaging.Declarer], for use by many goroutines. It connects when it is
// first used, and again whenever a connection is lost.
type Client struct {
	brokers []string
	cfg     Config

	ctx    context.Context // ends with Close; not a caller's
	close  context.CancelFunc
	kgo    *kgo.Client // to publish and to administer
	adm    *kadm.Client
	window chan struct{}

	mu       sync.Mutex
	topics   map[string]bool                 // known to exist
	declared map[string]map[string]groupMode // by group: its patterns that are known to be in the log of groups

	confirmed, refused, unknown, notSent     atomic.Int64
	handling, waiting, partitions            atomic.Int64
	delivered, acked, retried, dead, dropped atomic.Int64
	late                                     atomic.Int64
}

// New returns a client of the brokers at some host:port addresses, one of which must answer. It does
// not connect yet: see [Client.Check].
func New(brokers []string, cfg Config) (*Client, error) {
	cfg.Topic = cmp.Or(cfg.Topic, "dovetail")
	cfg.ClientID = cmp.Or(cfg.ClientID, "dovetail")
	for _, f := range []struct {
		name  string
		value *int
		zero  int
	}{{"Partitions", &cfg.Partitions, 12}, {"Replicas", &cfg.Replicas, -1}, {"Window", &cfg.Window, 1000}, {"Waiting", &cfg.Waiting, 10_000}} {
		if *f.value < 0 {
			return nil, fmt.Errorf("kafkakit: Config.%s is %d, want 0 or more", f.name, *f.value)
		}
		*f.value = cmp.Or(*f.value, f.zero)
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		zero  time.Duration
	}{
		{"CommitEvery", &cfg.CommitEvery, 250 * time.Millisecond}, {"SessionTimeout", &cfg.SessionTimeout, 30 * time.Second},
		{"RebalanceTimeout", &cfg.RebalanceTimeout, 30 * time.Second}, {"Timeout", &cfg.Timeout, 10 * time.Second},
	} {
		if *f.value < 0 {
			return nil, fmt.Errorf("kafkakit: Config.%s is %v, want 0 or more", f.name, *f.value)
		}
		*f.value = cmp.Or(*f.value, f.zero)
	}
	if len(brokers) == 0 || slices.Contains(brokers, "") {
		return nil, fmt.Errorf("kafkakit: brokers are %q, want host:port addresses", brokers)
	}
	if !topicName.MatchString(cfg.Topic) {
		return nil, fmt.Errorf("kafkakit: Config.Topic is %.80q, want 1 to 64 of letters, digits, ., - and _", cfg.Topic)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		brokers: slices.Clone(brokers), cfg: cfg, ctx: ctx, close: cancel, window: make(chan struct{}, cfg.Window),
		topics: map[string]bool{}, declared: map[string]map[string]groupMode{},
	}
	var err error
	if c.kgo, err = c.connect(
		// All replicas that are in sync have what is confirmed, and a repetition inside the
		// client is recognised by the broker: franz-go's defaults, which Publish relies on.
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(spread{kgo.StickyKeyPartitioner(nil)}),
		kgo.MaxBufferedRecords(2*cfg.Window+cfg.Waiting),
		kgo.ProducerLinger(0),
	); err != nil {
		cancel()
		return nil, fmt.Errorf("kafkakit: %w", err)
	}
	c.adm = kadm.NewClient(c.kgo)
	c.adm.SetTimeoutMillis(int32(cfg.Timeout.Milliseconds()))
	return c, nil
}

// connect returns a Kafka client with the connection's settings and more.
func (c *Client) connect(more ...kgo.Opt) (*kgo.Client, error) {
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.brokers...), kgo.ClientID(c.cfg.ClientID), kgo.RetryTimeout(c.cfg.Timeout),
		kgo.RequestTimeoutOverhead(c.cfg.Timeout), kgo.MetadataMinAge(100 * time.Millisecond),
	}
	dial := c.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: c.cfg.Timeout}).DialContext
	}
	if c.cfg.TLS != nil {
		plain := dial
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := plain(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			t := c.cfg.TLS.Clone()
			if t.ServerName == "" {
				t.ServerName, _, _ = net.SplitHostPort(addr)
			}
			return tls.Client(conn, t), nil // the first write shakes hands
		}
	}
	opts = append(opts, kgo.Dialer(dial))
	if c.cfg.SASL != nil {
		opts = append(opts, kgo.SASL(c.cfg.SASL))
	}
	return kgo.NewClient(append(opts, more...)...)
}

// Close closes the connections. Publishers that still wait get an error, subscribers drain and return
// [messaging.ErrClosed]: end their contexts first and wait for them.
func (c *Client) Close() error {
	c.close()
	c.kgo.Close()
	return nil
}

// Check returns nil if a broker answers now, and otherwise why not: for a health check.
func (c *Client) Check(ctx context.Context) error {
	if c.ctx.Err() != nil {
		return messaging.ErrClosed
	}
	if err := c.kgo.Ping(ctx); err != nil {
		return fmt.Errorf("kafkakit: no broker answers: %w", judge(err))
	}
	return nil
}

// Stats are the numbers of a Client. Counters run since New.
type Stats struct {
	// InFlight is how many messages of the Window are on their way.
	InFlight int
	// Confirmed, Refused, Unknown and NotSent count the outcomes of publishing.
	Confirmed, Refused, Unknown, NotSent int64
	// Partitions is how many partitions the subscriptions have now, those of retries included.
	Partitions int64
	// Handling is how many handlers run, Waiting how many messages wait for their retry.
	Handling, Waiting int64
	// Delivered counts calls of handlers.
	Delivered int64
	// Acked, Retried, Dead and Dropped count what was decided.
	Acked, Retried, Dead, Dropped int64
	// Late counts handlers that ended when their partition was another's already: the message
	// is delivered again.
	Late int64
}

// Stats returns the numbers at this moment.
func (c *Client) Stats() Stats {
	return Stats{
		InFlight: len(c.window), Confirmed: c.confirmed.Load(), Refused: c.refused.Load(), Unknown: c.unknown.Load(), NotSent: c.notSent.Load(),
		Partitions: c.partitions.Load(), Handling: c.handling.Load(), Waiting: c.waiting.Load(), Delivered: c.delivered.Load(),
		Acked: c.acked.Load(), Retried: c.retried.Load(), Dead: c.dead.Load(), Dropped: c.dropped.Load(), Late: c.late.Load(),
	}
}

func (c *Client) logger() *slog.Logger {
	if c.cfg.Logger != nil {
		return c.cfg.Logger
	}
	return slog.Default()
}

// judge marks what a broker says that no waiting can mend as permanent.
func judge(err error) error {
	for _, e := range []error{
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.SaslAuthenticationFailed,
		kerr.UnsupportedSaslMechanism, kerr.InvalidTopicException, kerr.PolicyViolation, kerr.InvalidReplicationFactor, kerr.InvalidConfig,
		kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.InvalidRecord,
	} {
		if errors.Is(err, e) {
			return fault.Permanent(err)
		}
	}
	return err
}

// sleep waits, or returns how ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return fault.Ended(ctx)
	}
}

// spread sends a key to its partition, as Kafka's own clients do, and what has no key to each partition
// in turn, so that all subscriptions of a group have work.
type spread struct{ keyed kgo.Partitioner }

func (s spread) ForTopic(topic string) kgo.TopicPartitioner {
	return &spreadTopic{TopicPartitioner: s.keyed.ForTopic(topic)}
}

type spreadTopic struct {
	kgo.TopicPartitioner
	next int
}

func (s *spreadTopic) Partition(r *kgo.Record, n int) int {
	if r.Key != nil {
		return s.TopicPartitioner.Partition(r, n)
	}
	s.next++
	return s.next % n
}
