// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package assembly knows which services make up the shop, how each of them is built, and who
// listens to what. It is the same for all ways to run them.
package assembly

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/catalog"
	"github.com/dovetail-go/dovetail/examples/shop/internal/customer"
	"github.com/dovetail-go/dovetail/examples/shop/internal/gateway"
	"github.com/dovetail-go/dovetail/examples/shop/internal/inventory"
	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/notification"
	"github.com/dovetail-go/dovetail/examples/shop/internal/order"
	"github.com/dovetail-go/dovetail/examples/shop/internal/payment"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/provider"
	"github.com/dovetail-go/dovetail/examples/shop/internal/reporting"
	"github.com/dovetail-go/dovetail/examples/shop/internal/shipping"
	"github.com/dovetail-go/dovetail/messaging"
)

// Gateway is the name of the one entry.
const Gateway = "gateway"

// Backends are the services behind the gateway, each with a database of its name.
var Backends = []string{"provider", "customer", "catalog", "inventory", "payment", "shipping", "notification", "reporting", "order"}

// Config is what services need beyond their surroundings.
type Config struct {
	// Issuer is the shop's URL as people see it, which is in every token.
	Issuer string
	// Accounts are created if they do not exist yet.
	Accounts []customer.Account
	// PasswordCost is bcrypt's. Zero means its default.
	PasswordCost int
	// Packing is shipping's. Zero means its default.
	Packing time.Duration
}

// New builds the service that env names.
func New(ctx context.Context, env platform.Env, cfg Config) (platform.Service, error) {
	switch env.Name {
	case Gateway:
		return gateway.New(env, Backends, groups())
	case "provider":
		return provider.New(ctx, env)
	case "customer":
		return customer.New(ctx, env, customer.Config{Issuer: cfg.Issuer, Accounts: cfg.Accounts, PasswordCost: cfg.PasswordCost})
	case "catalog":
		return catalog.New(ctx, env)
	case "inventory":
		return inventory.New(ctx, env)
	case "payment":
		return payment.New(ctx, env, payment.Config{Provider: "http://provider"})
	case "shipping":
		return shipping.New(ctx, env, shipping.Config{Packing: cfg.Packing})
	case "notification":
		return notification.New(ctx, env)
	case "reporting":
		return reporting.New(ctx, env)
	case "order":
		return order.New(ctx, env)
	}
	return nil, fmt.Errorf("there is no service %q, want one of %v", env.Name, append([]string{Gateway}, Backends...))
}

// listeners are all groups of all services. Whoever publishes declares all of them first, so that an
// event reaches those too who have not started yet, and one that finds no group is one that nobody wants
// to hear.
var listeners = map[string][]messaging.Subscription{
	"catalog":   {platform.Group("catalog", kernel.TopicStockChanged)},
	"inventory": {platform.Group("inventory", kernel.TopicProductChanged)},
	"order":     {platform.Group("order", kernel.TopicPaymentChanged, kernel.TopicShipmentDispatched)},
	"shipping": {
		platform.Group("shipping.customers", kernel.TopicCustomerRegistered),
		platform.Group("shipping", kernel.TopicOrderConfirmed),
	},
	"notification": {
		platform.Group("notification.customers", kernel.TopicCustomerRegistered),
		platform.Group("notification.orders", kernel.TopicOrderPlaced, kernel.TopicOrderConfirmed, kernel.TopicOrderRejected, kernel.TopicOrderCancelled,
			kernel.TopicOrderDispatched, kernel.TopicPaymentChanged, kernel.TopicShipmentDispatched),
		platform.Group("notification.products", kernel.TopicProductChanged, kernel.TopicStockChanged),
	},
}

// Listeners returns every group by the service whose it is.
func Listeners() map[string][]messaging.Subscription { return listeners }

// groups returns the names of all groups.
func groups() (names []string) {
	for _, subscriptions := range listeners {
		for _, s := range subscriptions {
			names = append(names, s.Group)
		}
	}
	slices.Sort(names)
	return names
}

// Declare declares all groups of all services.
func Declare(ctx context.Context, broker messaging.Declarer) error {
	for service, groups := range listeners {
		if err := broker.Declare(ctx, groups...); err != nil {
			return fmt.Errorf("%s: %w", service, err)
		}
	}
	return nil
}

// Verify returns an error if a service listens otherwise than everybody thinks.
func Verify(service string, consumers []platform.Consumer) error {
	want := listeners[service]
	if len(consumers) != len(want) {
		return fmt.Errorf("assembly: %s has %d consumers, listeners says %d", service, len(consumers), len(want))
	}
	for i, c := range consumers {
		if s := c.Subscription; s.Group != want[i].Group || !slices.Equal(s.Topics, want[i].Topics) {
			return fmt.Errorf("assembly: %s hears %v as %s, listeners says %v as %s", service, s.Topics, s.Group, want[i].Topics, want[i].Group)
		}
	}
	return nil
}
