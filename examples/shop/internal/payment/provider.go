// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package payment

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/resilience"
)

// Provider speaks the payment provider's interface. Every charge is booked under the order's ID,
// which makes each call safe to repeat.
type Provider struct {
	// URL is where the provider is, without a slash at the end.
	URL string
	// Caller makes the calls.
	Caller *platform.Caller
	// Key is what the provider knows the shop by.
	Key string
	// Timeout bounds one call. Zero means 3 seconds.
	Timeout time.Duration
	// Reads asks a second time where the provider's answer to a question is late. Nothing that moves money
	// goes through it. Nil asks once.
	Reads *resilience.Hedge
}

// Authorise asks the provider to hold the money. A refusal is an answer, not an error. Where
// no answer comes it looks up what became of the request: a charge may have been booked although
// nobody said so.
func (p *Provider) Authorise(ctx context.Context, pay payment) (refusal string, err error) {
	err = p.call(ctx, http.MethodPost, "", pay.OrderID, map[string]any{
		"reference": pay.OrderID, "amount": pay.Amount, "currency": pay.Currency, "method": pay.Method,
	}, nil)
	var answered *platform.Error
	if err == nil {
		return "", nil
	}
	if errors.As(err, &answered) {
		switch answered.Status {
		case http.StatusPaymentRequired, http.StatusConflict, http.StatusUnprocessableEntity:
			return answered.Code, nil
		}
		return "", err
	}
	booked, lookup := p.lookUp(ctx, pay.OrderID)
	if lookup != nil {
		return "", err // it did not come, or we cannot know yet: ask again
	}
	switch booked.Status {
	case "authorised", "captured":
		return "", nil
	case "declined":
		return booked.Reason, nil
	}
	return booked.Status, nil
}

// charge is what the provider has in its books.
type charge struct {
	Status string `json:"status"`
	Reason string `json:"reason"`
}

// lookUp asks what became of an order's charge. It changes nothing, so it may be asked twice at once.
func (p *Provider) lookUp(ctx context.Context, order string) (charge, error) {
	ask := func(ctx context.Context) (c charge, err error) {
		err = p.call(ctx, http.MethodGet, "/"+url.PathEscape(order), "", nil, &c)
		return c, err
	}
	if p.Reads == nil {
		return ask(ctx)
	}
	c, release, err := resilience.OpenHedged(ctx, p.Reads, ask)
	release()
	return c, err
}

// Void asks the provider to let the held money go.
func (p *Provider) Void(ctx context.Context, order string) error {
	return p.call(ctx, http.MethodPost, "/"+url.PathEscape(order)+"/void", order, struct{}{}, nil)
}

// Capture asks the provider to take the held money.
func (p *Provider) Capture(ctx context.Context, order string) error {
	return p.call(ctx, http.MethodPost, "/"+url.PathEscape(order)+"/capture", order, struct{}{}, nil)
}

// Refund asks the provider to give the taken money back.
func (p *Provider) Refund(ctx context.Context, order string) error {
	return p.call(ctx, http.MethodPost, "/"+url.PathEscape(order)+"/refund", order, struct{}{}, nil)
}

func (p *Provider) call(ctx context.Context, method, path, key string, in, out any) error {
	timeout := p.Timeout
	if timeout == 0 {
		timeout = 3 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return p.Caller.Do(ctx, method, p.URL+"/v1/charges"+path, func(h http.Header) {
		h.Set("Authorization", "Bearer "+p.Key) // in the place of the service token, which is no stranger's
		if key != "" {
			h.Set("Idempotency-Key", key)
		}
	}, in, out)
}
