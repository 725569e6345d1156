// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/messaging"
)

// What the broker answers with that no waiting can mend. They come with what the broker
// said, and satisfy [fault.IsPermanent].
var (
	// ErrCredentials means that the broker does not know the user or the password.
	ErrCredentials = fault.Permanent(errors.New("rabbitkit: user or password refused"))
	// ErrVhost means that there is no such vhost, or none for this user.
	ErrVhost = fault.Permanent(errors.New("rabbitkit: vhost refused"))
	// ErrAccess means that the user lacks a right, such as to declare a queue.
	ErrAccess = fault.Permanent(errors.New("rabbitkit: access refused"))
)

// Config configures a Client. The zero value is ready for production.
type Config struct {
	// Exchange is the name of the durable topic exchange that everything is published to,
	// and the first part of the name of every queue: letters, digits, - and _, at most 32.
	// Clients with the same Exchange see each other's messages. Empty means "dovetail".
	Exchange string
	// Vhost overrides the vhost of the URL. Empty means that of the URL.
	Vhost string
	// TLS is for amqps URLs. Nil means the system's roots and the server's name from the URL.
	TLS *tls.Config
	// Dial makes the network connections, below TLS: through a proxy, or such that a test can cut them. Nil means
	// net.Dialer's DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Name is shown beside the connections in the broker's management. Empty means "dovetail".
	Name string
	// Window is how many messages may be on their way to the broker without its
	// confirmation, those that wait for a connection included; more wait in Publish. Zero
	// means 1000.
	Window int
	// Channels is over how many channels of one connection messages are published: those of one
	// key over the same, which keeps their order. RabbitMQ holds a channel up while 32 of its
	// messages wait for the majority of a quorum queue (quorum_commands_soft_limit), so
	// several are a good deal faster. At most 64. Zero means 4.
	Channels int
	// DeliveryLimit is how many times a queue delivers a message without any answer, as to
	// processes that it kills or connections that are lost, before the broker itself makes
	// it a dead letter. It belongs to the queue: all clients must agree. Zero means 100.
	DeliveryLimit int
	// Log keeps everything that is published in a stream, for groups that begin in the past
	// (Subscription.From). It belongs to the exchange: all clients that set it must agree.
	// The zero Log keeps nothing: such groups are messaging.ErrUnsupported.
	Log Log
	// Heartbeat is after how long without a sign of life the other end is held to be gone,
	// in whole seconds. Zero means 10 s. A heartbeat parameter in the URL overrides it.
	Heartbeat time.Duration
	// Timeout bounds the making of a connection, every answer but a confirmation, and
	// every write to the socket. When a message waits six times as long for its confirmation
	// the connection is given up. Zero means 10 s.
	Timeout time.Duration
	// MaxReconnectDelay bounds the growing delay between attempts to connect. Zero means 5 s.
	MaxReconnectDelay time.Duration
	// Hooks tell what happens.
	Hooks messaging.Hooks
	// Logger is told of lost connections, panics, and dead letters. Nil means
	// slog.Default() at the time.
	Logger *slog.Logger
}

const (
	closeTimeout = time.Second
	// maxBody is what RabbitMQ takes by default; it closes the channel on more, and with
	// it on all that is in flight.
	maxBody = 128 << 20
	// maxHeaders keeps the header frame, which cannot be split, well below the smallest
	// usual frame_max of 128 KiB, with room for what a dead letter adds.
	maxHeaders  = 96 << 10
	maxAgain    = 120 << 10 // of what is published again, with a note on it
	maxChannels = 64        // of a connection's 2047, some of which are for declarations
	// maxPrefetch is the largest number that basic.qos can say.
	maxPrefetch = 65535
)

var exchangeName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)

// Client publishes and subscribes through RabbitMQ. It is a [messaging.Publisher],
// [messaging.Subscriber] and [messaging.Declarer], for use by many goroutines. It
// connects when it is first used, and again whenever the connection is lost.
type Client struct {
	url string
	cfg Config

	ctx   context.Context // ends with Close; not a caller's
	close context.CancelFunc

	pub     *publisher
	consume *link

	lookAgain time.Duration // the constant, but for tests

	mu       sync.Mutex
	declared map[string]messaging.Subscription // by group, what Declare made
	rungs    map[string]bool                   // retry queues known to exist

	reconnects                                    atomic.Int64
	confirmed, unroutable, refused, unknown, busy atomic.Int64
	handling                                      atomic.Int64
	delivered, acked, retried, dead, dropped      atomic.Int64
	stale                                         atomic.Int64
}

// New returns a client of the broker at an amqp or amqps URL. It does not connect yet:
// see [Client.Check]. Parameters in the URL are those of [amqp.ParseURI].
func New(rawURL string, cfg Config) (*Client, error) {
	if _, err := amqp.ParseURI(rawURL); err != nil {
		// The text of url.Error has the whole URL in it, the password included.
		if ue := (*url.Error)(nil); errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("rabbitkit: URL is not valid, want amqp://user:password@host:port/vhost: %w", err)
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	cfg.Exchange = cmp.Or(cfg.Exchange, "dovetail")
	cfg.Name = cmp.Or(cfg.Name, "dovetail")
	cfg.Window = cmp.Or(cfg.Window, 1000)
	cfg.Channels = cmp.Or(cfg.Channels, 4)
	cfg.DeliveryLimit = cmp.Or(cfg.DeliveryLimit, 100)
	cfg.Heartbeat = cmp.Or(cfg.Heartbeat, 10*time.Second)
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.MaxReconnectDelay = cmp.Or(cfg.MaxReconnectDelay, 5*time.Second)
	switch {
	case !exchangeName.MatchString(cfg.Exchange):
		return nil, fmt.Errorf("rabbitkit: Config.Exchange is %.40q, want 1 to 32 letters, digits, - and _", cfg.Exchange)
	case cfg.Window < 0:
		return nil, fmt.Errorf("rabbitkit: Config.Window is %d, want 0 or more", cfg.Window)
	case cfg.Channels < 0 || cfg.Channels > maxChannels:
		return nil, fmt.Errorf("rabbitkit: Config.Channels is %d, want 0 to %d", cfg.Channels, maxChannels)
	case cfg.DeliveryLimit < 0:
		return nil, fmt.Errorf("rabbitkit: Config.DeliveryLimit is %d, want 0 or more", cfg.DeliveryLimit)
	case cfg.Log.MaxAge < 0 || cfg.Log.MaxAge > 0 && cfg.Log.MaxAge < time.Second:
		return nil, fmt.Errorf("rabbitkit: Config.Log.MaxAge is %v, want 0 or at least 1s", cfg.Log.MaxAge)
	case cfg.Log.MaxBytes < 0:
		return nil, fmt.Errorf("rabbitkit: Config.Log.MaxBytes is %d, want 0 or more", cfg.Log.MaxBytes)
	case cfg.Log.SegmentBytes < 0 || cfg.Log.SegmentBytes > maxSegment:
		return nil, fmt.Errorf("rabbitkit: Config.Log.SegmentBytes is %d, want 0 to %d", cfg.Log.SegmentBytes, maxSegment)
	case cfg.Log.MaxBytes > 0 && cfg.Log.MaxBytes < 2*cfg.Log.SegmentBytes:
		return nil, fmt.Errorf("rabbitkit: Config.Log.MaxBytes is %d, want 0 or at least twice SegmentBytes, which is %d", cfg.Log.MaxBytes, cfg.Log.SegmentBytes)
	case cfg.Log.SegmentBytes != 0 && cfg.Log.MaxAge == 0 && cfg.Log.MaxBytes == 0:
		return nil, errors.New("rabbitkit: Config.Log.SegmentBytes is set, and neither MaxAge nor MaxBytes is: want one at least")
	case cfg.Heartbeat < time.Second:
		return nil, fmt.Errorf("rabbitkit: Config.Heartbeat is %v, want 0 or at least 1s", cfg.Heartbeat)
	case cfg.Timeout < 0:
		return nil, fmt.Errorf("rabbitkit: Config.Timeout is %v, want 0 or more", cfg.Timeout)
	case cfg.MaxReconnectDelay < 0:
		return nil, fmt.Errorf("rabbitkit: Config.MaxReconnectDelay is %v, want 0 or more", cfg.MaxReconnectDelay)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		url: rawURL, cfg: cfg, ctx: ctx, close: cancel, lookAgain: lookAgain,
		declared: make(map[string]messaging.Subscription), rungs: make(map[string]bool),
	}
	c.pub = newPublisher(c)
	c.consume = newLink(c, "consume")
	return c, nil
}

// Close closes the connections. It takes a second or two at most, whatever the broker
// does. Publishers that still wait get an error, subscribers return
// [messaging.ErrClosed], and what they did not acknowledge is delivered again: end
// their contexts first and wait for them.
func (c *Client) Close() error {
	c.close()
	var wg sync.WaitGroup
	wg.Go(c.pub.link.end)
	wg.Go(c.consume.end)
	wg.Wait()
	c.pub.stopped()
	return nil
}

// Check returns nil if the broker can be published to now, and otherwise why not: for a
// health check. It connects if need be, and waits for that until ctx ends.
func (c *Client) Check(ctx context.Context) error {
	if c.ctx.Err() != nil {
		return messaging.ErrClosed
	}
	cn, err := c.pub.link.get(ctx)
	if err != nil {
		return err
	}
	if _, blocked := cn.room(); blocked {
		return fmt.Errorf("%w: it has raised an alarm for memory or disk", messaging.ErrBlocked)
	}
	return nil
}

// Stats are the numbers of a Client. Counters run since New.
type Stats struct {
	// Connected says whether there is a connection to publish, Consuming one to consume.
	Connected, Consuming bool
	// Blocked says that the broker has asked publishers to stop, such as for want of memory.
	Blocked bool
	// InFlight is how many messages of the Window are on their way or wait for a connection.
	InFlight int
	// Confirmed, Unroutable, Refused, Unknown and NotSent count the outcomes of publishing.
	Confirmed, Unroutable, Refused, Unknown, NotSent int64
	// Handling is how many handlers run.
	Handling int64
	// Delivered counts calls of handlers.
	Delivered int64
	// Acked, Retried, DeadLettered and Dropped count what was decided and carried out.
	Acked, Retried, DeadLettered, Dropped int64
	// StaleAcks counts messages whose connection was lost before they could be
	// acknowledged. They were, or will be, delivered again.
	StaleAcks int64
	// Reconnects counts connections made after the first of each kind.
	Reconnects int64
}

// Stats returns the numbers of now.
func (c *Client) Stats() Stats {
	s := Stats{
		Consuming: c.consume.current() != nil,
		InFlight:  len(c.pub.window),
		Confirmed: c.confirmed.Load(), Unroutable: c.unroutable.Load(), Refused: c.refused.Load(),
		Unknown: c.unknown.Load(), NotSent: c.busy.Load(),
		Handling: c.handling.Load(), Delivered: c.delivered.Load(),
		Acked: c.acked.Load(), Retried: c.retried.Load(), DeadLettered: c.dead.Load(), Dropped: c.dropped.Load(),
		StaleAcks: c.stale.Load(), Reconnects: c.reconnects.Load(),
	}
	if cn := c.pub.link.current(); cn != nil {
		s.Connected = true
		_, s.Blocked = cn.room()
	}
	return s
}

func (c *Client) logger() *slog.Logger {
	if c.cfg.Logger != nil {
		return c.cfg.Logger
	}
	return slog.Default()
}
