// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit_test

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/dovetail-go/dovetail/kafkakit"
	"github.com/dovetail-go/dovetail/messaging"
)

// A group that begins in the past replays the log. The broker is one in this process.
func Example() {
	broker, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer broker.Close()
	client, err := kafkakit.New(broker.ListenAddrs(), kafkakit.Config{Topic: "shop", Partitions: 3})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, topic := range []string{"order.placed", "order.paid", "order.shipped"} {
		if err := client.Publish(ctx, &messaging.Message{ID: messaging.NewID(), Topic: topic, Key: "order-1"}); err != nil {
			fmt.Println(err)
			return
		}
	}
	n := 0
	report := messaging.Subscription{Group: "report", Topics: []string{"order.*"}, Ordered: true, From: messaging.FromFirst()}
	err = client.Subscribe(ctx, report, messaging.HandlerFunc(func(_ context.Context, d *messaging.Delivery) error {
		fmt.Println(d.Message.Topic, d.Offset)
		if n++; n == 3 {
			cancel()
		}
		return nil
	}))
	fmt.Println(err)
	// Output:
	// order.placed 0
	// order.paid 1
	// order.shipped 2
	// <nil>
}

func ExampleNew() {
	_, err := kafkakit.New([]string{"127.0.0.1:9092"}, kafkakit.Config{Topic: "a topic with spaces"})
	fmt.Println(err)
	// Output:
	// kafkakit: Config.Topic is "a topic with spaces", want 1 to 64 of letters, digits, ., - and _
}
