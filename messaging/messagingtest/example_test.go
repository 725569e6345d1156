// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package messagingtest_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/messaging/messagingtest"
)

func ExampleChecker() {
	broker, err := messagingmem.New(messagingmem.Config{ConfirmOnAck: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	mails := messaging.Subscription{Group: "mails", Topics: []string{"order.#"}, Ordered: true}
	_ = broker.Declare(ctx, mails)

	check := messagingtest.NewChecker(mails)
	var consumer sync.WaitGroup
	consumer.Go(func() {
		// This one forgets every fourth message that it acknowledges.
		n := 0
		_ = broker.Subscribe(ctx, mails, messaging.HandlerFunc(func(ctx context.Context, d *messaging.Delivery) error {
			if n++; n == 4 {
				return nil
			}
			return check.Handler(mails, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })).Handle(ctx, d)
		}))
	})
	pub := check.Publisher(broker)
	for i := range 6 {
		_ = pub.Publish(ctx, &messaging.Message{ID: fmt.Sprint("m", i), Topic: "order.placed", Key: "A7"})
	}
	cancel()
	consumer.Wait()

	fmt.Print(check.Report())
	fmt.Println(check.Report().Err())
	// Output:
	// sent 6: confirmed 6, unknown 0, refused 0
	// group mails: handled 5, duplicates 0, lost 1, inversions 0, strangers 0, ghosts 0
	// messagingtest: group "mails": 1 lost: m3
}

func ExampleProxy() {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = server.Close() }()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()

	proxy, err := messagingtest.StartProxy(server.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = proxy.Close() }()
	c, err := net.Dial("tcp", proxy.Addr())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = c.Close() }()

	proxy.CutAfter(messagingtest.ToClient, 5) // in the middle of the answer
	_, _ = c.Write([]byte("hello, world"))
	got, err := io.ReadAll(c)
	fmt.Println(string(got) == "hello" || len(got) < 5, err != nil)
	fmt.Println("arrived:", proxy.Forwarded(messagingtest.ToClient))
	// Output:
	// true true
	// arrived: 5
}
