// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/dovetail-go/dovetail/messaging"
)

// The log of groups is a topic of one partition that is never cleaned. Kafka's own groups know offsets but
// neither patterns nor where a group began, and committing an offset is not a comparison: two
// processes that declare a group at the same time could skip what is published between them. In this log
// the first note about a group decides, whoever else writes one.

// note is one record in the log of groups.
type note struct {
	Group   string   `json:"group"`
	Topics  []string `json:"topics"`
	Ordered bool     `json:"ordered,omitempty"`
	// Temporary groups end with their last member; Gone says that one has.
	Temporary bool `json:"temporary,omitempty"`
	Gone      bool `json:"gone,omitempty"`
	// Start is the first offset by partition. It counts in a group's first note.
	Start map[int32]int64 `json:"start,omitempty"`
}

// group is what the log of groups says of one.
type group struct {
	note
	topics map[string]bool
}

func (g *group) match(topic string) bool {
	for p := range g.topics {
		if messaging.Match(p, topic) {
			return true
		}
	}
	return false
}

// groupMode is how a group was declared.
type groupMode struct{ ordered bool }

func (c *Client) groupsTopic() string { return c.cfg.Topic + ".groups" }

// retryTopic, deadTopic and consumerGroup return the names that belong to a group.
func (c *Client) retryTopic(group string) string    { return c.cfg.Topic + ".retry." + escape(group) }
func (c *Client) deadTopic(group string) string     { return c.cfg.Topic + ".dead." + escape(group) }
func (c *Client) consumerGroup(group string) string { return c.cfg.Topic + "." + escape(group) }

// maxName is the longest part of a topic's name that a group may need.
const maxName = 160

// escape turns the name of a group into what Kafka allows in the name of a topic, no two into the same.
func escape(group string) string {
	var b strings.Builder
	for i := range len(group) {
		switch c := group[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	if s := b.String(); len(s) <= maxName {
		return s
	}
	sum := sha256.Sum256([]byte(group))
	return "_sha256_" + hex.EncodeToString(sum[:])
}

// ensure creates a topic unless it is there.
func (c *Client) ensure(ctx context.Context, topic string) error {
	c.mu.Lock()
	known := c.topics[topic]
	c.mu.Unlock()
	if known {
		return nil
	}
	partitions, configs := int32(c.cfg.Partitions), map[string]*string{}
	switch {
	case topic == c.cfg.Topic:
		for k, v := range c.cfg.Configs {
			configs[k] = &v
		}
	case topic == c.groupsTopic():
		partitions = 1
		configs["cleanup.policy"], configs["retention.ms"], configs["retention.bytes"] = kadm.StringPtr("delete"), kadm.StringPtr("-1"), kadm.StringPtr("-1")
	case strings.HasPrefix(topic, c.cfg.Topic+".dead."):
		partitions = 1
		configs["cleanup.policy"] = kadm.StringPtr("compact") // a key without a value is a dead letter that was taken away
	}
	_, err := c.adm.CreateTopic(ctx, partitions, int16(c.cfg.Replicas), configs, topic)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		if errors.Is(err, kerr.TopicAuthorizationFailed) || errors.Is(err, kerr.ClusterAuthorizationFailed) {
			// Whoever may not create may still use what is there.
			if d, lerr := c.adm.ListTopics(ctx, topic); lerr == nil && d.Has(topic) {
				err = nil
			}
		}
		if err != nil {
			return fmt.Errorf("kafkakit: create topic %s: %w", topic, judge(err))
		}
	}
	c.mu.Lock()
	c.topics[topic] = true
	c.mu.Unlock()
	return nil
}

// scan calls fn for every record that is in a topic now, in the order of each partition.
func (c *Client) scan(ctx context.Context, topic string, fn func(*kgo.Record)) error {
	ends, err := c.adm.ListEndOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return nil
	}
	starts, serr := c.adm.ListStartOffsets(ctx, topic)
	if err = errors.Join(err, serr, starts.Error()); err != nil {
		return fmt.Errorf("kafkakit: read %s: %w", topic, judge(err))
	}
	left, from := map[int32]int64{}, map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		if s, ok := starts.Lookup(topic, o.Partition); ok && s.Offset < o.Offset {
			left[o.Partition], from[o.Partition] = o.Offset, kgo.NewOffset().At(s.Offset)
		}
	})
	if len(left) == 0 {
		return nil
	}
	cl, err := c.connect(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		return fmt.Errorf("kafkakit: read %s: %w", topic, err)
	}
	defer cl.Close()
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("kafkakit: read %s: %w", topic, judge(err))
		}
		fetches.EachRecord(func(r *kgo.Record) {
			end, ok := left[r.Partition]
			if !ok || r.Offset >= end {
				return
			}
			fn(r)
			if r.Offset == end-1 {
				delete(left, r.Partition)
			}
		})
	}
	return nil
}

// groups reads the log of groups.
func (c *Client) groups(ctx context.Context) (map[string]*group, error) {
	all := map[string]*group{}
	err := c.scan(ctx, c.groupsTopic(), func(r *kgo.Record) {
		var n note
		if json.Unmarshal(r.Value, &n) != nil || n.Group == "" {
			return // of somebody else
		}
		if n.Gone {
			delete(all, n.Group)
			return
		}
		g := all[n.Group]
		if g == nil {
			g = &group{note: n, topics: map[string]bool{}}
			all[n.Group] = g
		}
		for _, t := range n.Topics {
			g.topics[t] = true
		}
	})
	return all, err
}

// Declare makes groups; see [messaging.Declarer].
func (c *Client) Declare(ctx context.Context, subs ...messaging.Subscription) error {
	for _, s := range subs {
		if err := s.Validate(); err != nil {
			return err
		}
	}
	for _, s := range subs {
		if err := c.declare(ctx, s); err != nil {
			if c.ctx.Err() != nil {
				return messaging.ErrClosed
			}
			return err
		}
	}
	return nil
}

// agrees returns an error if the group was declared otherwise.
func (g *group) agrees(s messaging.Subscription) error {
	switch {
	case g.Ordered != s.Ordered:
		return fmt.Errorf("%w: group %q has Ordered = %t, Subscription.Ordered is %t", messaging.ErrMismatch, s.Group, g.Ordered, s.Ordered)
	case g.Temporary != s.Temporary:
		return fmt.Errorf("%w: group %q has Temporary = %t, Subscription.Temporary is %t", messaging.ErrMismatch, s.Group, g.Temporary, s.Temporary)
	}
	return nil
}

// known reports whether the log of groups is known to hold all of s.
func (c *Client) known(s messaging.Subscription) bool {
	if s.Temporary {
		return false // it may be gone
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range s.Topics {
		if m, ok := c.declared[s.Group][t]; !ok || m.ordered != s.Ordered {
			return false
		}
	}
	return true
}

func (c *Client) declare(ctx context.Context, s messaging.Subscription) error {
	if c.known(s) {
		return nil
	}
	topics := []string{c.cfg.Topic, c.groupsTopic()}
	if !s.Temporary { // which would leave them behind
		topics = append(topics, c.retryTopic(s.Group), c.deadTopic(s.Group))
	}
	for _, t := range topics {
		if err := c.ensure(ctx, t); err != nil {
			return err
		}
	}
	all, err := c.groups(ctx)
	if err != nil {
		return err
	}
	g := all[s.Group]
	existed := g != nil
	added := !existed
	for _, t := range s.Topics {
		added = added || !g.topics[t]
	}
	if existed {
		if err := g.agrees(s); err != nil {
			return err
		}
	}
	if added {
		n := note{Group: s.Group, Topics: s.Topics, Ordered: s.Ordered, Temporary: s.Temporary}
		if !existed {
			if n.Start, err = c.start(ctx, s.From); err != nil {
				return err
			}
		}
		if err := c.note(ctx, n); err != nil {
			return fmt.Errorf("kafkakit: declare group %q: %w", s.Group, err)
		}
		if all, err = c.groups(ctx); err != nil { // another one may have been first
			return err
		}
		if g = all[s.Group]; g == nil {
			return fmt.Errorf("kafkakit: declare group %q: the log of groups has lost it", s.Group)
		}
		if err := g.agrees(s); err != nil {
			return err
		}
	}
	if err := c.begin(ctx, g); err != nil {
		return err
	}
	if added && existed {
		if err := c.mark(ctx, s.Group); err != nil {
			return err
		}
	}
	if s.Temporary {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.declared[s.Group] == nil {
		c.declared[s.Group] = map[string]groupMode{}
	}
	for t := range g.topics {
		c.declared[s.Group][t] = groupMode{g.Ordered}
	}
	return nil
}

// note appends to the log of groups.
func (c *Client) note(ctx context.Context, n note) error {
	value, err := json.Marshal(n)
	if err != nil {
		return err
	}
	return c.put(ctx, &kgo.Record{Topic: c.groupsTopic(), Key: []byte(n.Group), Value: value})
}

// remove ends a temporary group, unless it has members.
func (c *Client) remove(ctx context.Context, group string) error {
	name := c.consumerGroup(group)
	_, err := c.adm.DeleteGroup(ctx, name)
	switch {
	case errors.Is(err, kerr.NonEmptyGroup):
		return nil
	case err == nil, errors.Is(err, kerr.GroupIDNotFound):
		err = c.note(ctx, note{Group: group, Gone: true})
	}
	if err != nil {
		return fmt.Errorf("kafkakit: end temporary group %q: %w", group, judge(err))
	}
	return nil
}

// start returns where a group begins, by partition of the log.
func (c *Client) start(ctx context.Context, from messaging.Start) (map[int32]int64, error) {
	ends, err := c.adm.ListEndOffsets(ctx, c.cfg.Topic)
	at := ends
	if err == nil {
		switch from.Kind {
		case messaging.StartFirst, messaging.StartOffset:
			at, err = c.adm.ListStartOffsets(ctx, c.cfg.Topic)
		case messaging.StartTime:
			// Rounded up to the milliseconds that a log knows would skip some.
			at, err = c.adm.ListOffsetsAfterMilli(ctx, from.Time.UnixMilli(), c.cfg.Topic)
		}
	}
	if err = errors.Join(err, ends.Error(), at.Error()); err != nil {
		return nil, fmt.Errorf("kafkakit: where the group begins: %w", judge(err))
	}
	start := map[int32]int64{}
	ends.Each(func(end kadm.ListedOffset) {
		o, ok := at.Lookup(c.cfg.Topic, end.Partition)
		switch {
		case !ok || o.Offset < 0: // nothing so young
			start[end.Partition] = end.Offset
		case from.Kind == messaging.StartOffset:
			start[end.Partition] = min(max(o.Offset, from.Offset), end.Offset)
		default:
			start[end.Partition] = o.Offset
		}
	})
	return start, nil
}

// begin commits where g begins in each partition in which it has not committed anything.
func (c *Client) begin(ctx context.Context, g *group) error {
	name := c.consumerGroup(g.Group)
	done, err := c.adm.FetchOffsets(ctx, name)
	if err == nil {
		err = done.Error()
	}
	if errors.Is(err, kerr.GroupIDNotFound) {
		done, err = nil, nil // nobody has committed or joined
	}
	if err != nil {
		return fmt.Errorf("kafkakit: offsets of group %q: %w", g.Group, judge(err))
	}
	missing := kadm.Offsets{}
	for _, p := range slices.Sorted(maps.Keys(g.Start)) {
		if o, ok := done.Lookup(c.cfg.Topic, p); !ok || o.At < 0 {
			missing.AddOffset(c.cfg.Topic, p, g.Start[p], -1)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	err = c.adm.CommitAllOffsets(ctx, name, missing)
	if errors.Is(err, kerr.UnknownMemberID) || errors.Is(err, kerr.IllegalGeneration) {
		return nil // it has members, who began there
	}
	if err != nil {
		return fmt.Errorf("kafkakit: begin group %q: %w", g.Group, judge(err))
	}
	return nil
}

// mark tells the readers of a group, in every partition, that its patterns have changed: what is published
// from now on stands behind the mark, and they read the log of groups before they go on.
func (c *Client) mark(ctx context.Context, group string) error {
	ends, err := c.adm.ListEndOffsets(ctx, c.cfg.Topic)
	if err = errors.Join(err, ends.Error()); err != nil {
		return fmt.Errorf("kafkakit: declare group %q: %w", group, judge(err))
	}
	cl, err := c.connect(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return fmt.Errorf("kafkakit: declare group %q: %w", group, err)
	}
	defer cl.Close()
	var marks []*kgo.Record
	ends.Each(func(o kadm.ListedOffset) {
		marks = append(marks, &kgo.Record{Topic: c.cfg.Topic, Partition: o.Partition, Headers: []kgo.RecordHeader{{Key: headerGroup, Value: []byte(group)}}})
	})
	if err := cl.ProduceSync(ctx, marks...).FirstErr(); err != nil {
		return fmt.Errorf("kafkakit: declare group %q: %w", group, judge(err))
	}
	return nil
}
