// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/rabbitkit"
)

// Nobody listens at this address. Publish waits for a connection as long as its context
// lets it, and then says that the message was certainly not sent.
func Example() {
	client, err := rabbitkit.New("amqp://guest:guest@127.0.0.1:1/", rabbitkit.Config{
		Exchange: "shop",
		Logger:   slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = client.Close() }()
	m, err := messaging.Encode(messaging.JSON, messaging.Message{Topic: "order.placed", Key: "order-7"}, map[string]int{"total": 42})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err = client.Publish(ctx, m)
	fmt.Println("not sent:", errors.Is(err, messaging.ErrBlocked))
	fmt.Println("perhaps sent:", errors.Is(err, messaging.ErrUnknown))
	// Output:
	// not sent: true
	// perhaps sent: false
}

func ExampleNew() {
	_, err := rabbitkit.New("amqp://127.0.0.1", rabbitkit.Config{Exchange: "orders and payments"})
	fmt.Println(err)
	// Output:
	// rabbitkit: Config.Exchange is "orders and payments", want 1 to 32 letters, digits, - and _
}
