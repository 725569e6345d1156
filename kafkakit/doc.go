// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package kafkakit is messaging on Kafka, and on what speaks its protocol, through franz-go.
//
//	client, err := kafkakit.New([]string{"kafka-1:9092", "kafka-2:9092"}, kafkakit.Config{Topic: "shop"})
//	...
//	defer client.Close()
//	err = client.Declare(ctx, mails)
//	g.Go(func() error { return client.Subscribe(ctx, mails, handler) })
//	err = client.Publish(ctx, msg)
//
// Choose it where history matters: everything that is published stays for as long as the topic
// retains it, and a new group may begin in the past (Subscription.From). Choose rabbitkit for work
// queues: in a log, one slow message holds up the saving of progress behind it, and a group has no more
// workers than the topic has partitions.
//
// # Topics
//
// There is one Kafka topic, named by Config.Topic, for all messages; what messaging calls a topic is
// a header. So the order of a key holds over all topics, and a pattern may ask for any of them.
// Each group reads the whole log and passes over what its patterns do not match: give
// parts of a system that have nothing to do with each other a Config.Topic each.
//
// A message goes to the partition of its Key, by the hash of Kafka's own clients, and one without a key
// to each in turn. Beside the log there is TOPIC.groups, which knows the groups' patterns and where they
// begin, and for each group TOPIC.retry.GROUP and TOPIC.dead.GROUP. They are created when they are
// first needed; whoever may not create topics needs them made beforehand, TOPIC.groups with one partition
// and without retention, TOPIC.dead.GROUP with one and compacted.
//
// # Guarantees
//
// Publish returns nil when all replicas in sync have the message. Messages of one key, of one call and of calls
// that follow one another, keep their order, over lost connections and new leaders: the producer
// is idempotent. What a context's end leaves unsent is messaging.ErrBlocked where it waited for
// the Window, and messaging.ErrUnknown from there on.
//
// A group's committed offset moves only over messages that are finished, from the oldest on; what is
// finished behind one that is not stands in the commit's metadata, some thousands of messages, and is not
// handled again by the next member either. While a partition goes to another member (the cooperative protocol: only those that move stop), the
// handlers that run are waited for and their progress is committed first, so an orderly rebalance, start
// or stop delivers nothing twice. What a handler decides after its partition has gone counts for
// nothing: see Stats.Late.
//
// What is published after Declare has returned reaches the group, also when two processes declare it
// at the same time, when it consumes only later, and when a running group gets more patterns.
//
// A message that fails is published to its group's retry topic with the time when it is due, and its
// place in the log is finished when that is confirmed: it blocks nothing. The members of the group
// read the retry topic ahead, up to Config.Waiting messages, and hold them in memory until they are
// due, so one that waits for long does not hold up one that waits for less.
//
// In an Ordered group the message waits in the process instead, and its key behind it; other
// keys go on, but the committed offset stays. Per key nothing overtakes, retries, drains and rebalances
// included.
//
// A dead letter is confirmed in its topic before its message is finished. Delivery.Partition and
// Delivery.Offset are those in the log, also of a retry and of a replayed dead letter.
//
// # Caveats
//
// It has been tested against franz-go's in-process broker only, through a proxy that breaks the
// connections, not against a real cluster.
//
// A process that is killed leaves what it handled since the last commit (Config.CommitEvery) to be
// delivered again. Redelivered is false then: a log does not know. Use an inbox, as with every
// duplicate.
//
// A handler that outlives Config.RebalanceTimeout, or a process that was stopped for longer than
// Config.SessionTimeout, may run beside the one that has the partition next, in an ordered group too.
//
// A message that waits for its retry in an Ordered group counts for Prefetch: when as many wait,
// the others wait too. Choose a Prefetch well above the number of keys that may fail at the same time.
//
// A change of the number of partitions breaks the order of keys at that moment, as ever in Kafka.
//
// A time in Subscription.From is compared with the time of publication by the publisher's clock, unless the
// topic has message.timestamp.type=LogAppendTime, in milliseconds. A group that is new begins where its
// first Declare said. When Kafka forgets the offsets of a group that nobody uses (offsets.retention.minutes, 7
// days), it begins there again.
//
// A Temporary group ends with its last member's orderly end, and has no retry topic: what fails waits in
// the process, and its dead letters cannot be replayed. One whose last process was killed stays until Kafka
// forgets its offsets, so its name should be used once.
//
// No topic is unroutable: a log takes what nobody reads.
//
// Records of other producers are messages of the topic that is named like the Kafka topic, with their
// place as ID.
package kafkakit
