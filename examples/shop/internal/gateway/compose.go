// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/gateway"
)

// partBudget is how long one part of a composed answer may take. A part that is late, or
// whose service is down, is left out and named.
const partBudget = time.Second

// orderPage puts the order, its payment and its shipment together. Services that have not heard of the
// order yet have no part in it.
func (s *Service) orderPage() http.Handler {
	get := func(url string) func(context.Context, *http.Request) (any, error) {
		return gateway.Get(s.env.Caller.Client, url, gateway.GetConfig{})
	}
	h, err := gateway.Compose(gateway.ComposeConfig{Refuse: refuse, Logger: s.env.Log},
		gateway.Part{Name: "order", Fetch: get("http://order/orders/{id}"), Budget: partBudget, Required: true, Inline: true},
		gateway.Part{Name: "payment", Fetch: get("http://payment/payments/{id}"), Budget: partBudget},
		gateway.Part{Name: "shipment", Fetch: get("http://shipping/shipments/{id}"), Budget: partBudget},
	)
	if err != nil {
		panic(err) // the parts are part of this program
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		h.ServeHTTP(w, r)
	})
}

// ask gets one part in the name of the person who asks, within its budget.
func (s *Service) ask(r *http.Request, from string, out any) error {
	ctx, cancel := context.WithTimeout(r.Context(), partBudget)
	defer cancel()
	return s.env.Caller.Do(ctx, http.MethodGet, from, func(h http.Header) {
		h.Set("Authorization", r.Header.Get("Authorization"))
		h.Set("X-Request-Id", r.Header.Get("X-Request-Id"))
	}, nil, out)
}

// everywhere asks the same of every service and lists the answers. Those that do not answer are named, those that have
// nothing of the kind are left out.
func (s *Service) everywhere(path string) func(w http.ResponseWriter, r *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		answers := make([]json.RawMessage, len(s.services))
		var parts sync.WaitGroup
		for i, service := range s.services {
			parts.Go(func() {
				err := s.ask(r, "http://"+service+path, &answers[i])
				var no *platform.Error
				if err != nil && (!errors.As(err, &no) || no.Status != http.StatusNotFound) {
					answers[i], _ = json.Marshal(map[string]string{"service": service, "error": "does not answer"})
				}
			})
		}
		parts.Wait()
		answers = slices.DeleteFunc(answers, func(a json.RawMessage) bool { return a == nil })
		return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": answers})
	}
}

// health tells which services are ready, and which instances of them there are.
func (s *Service) health(w http.ResponseWriter, r *http.Request) error {
	type instance struct {
		Instance string `json:"instance"`
		Addr     string `json:"addr"`
	}
	type state struct {
		Service   string     `json:"service"`
		Ready     bool       `json:"ready"`
		Instances []instance `json:"instances"`
	}
	states := make([]state, len(s.services))
	var parts sync.WaitGroup
	for i, service := range s.services {
		parts.Go(func() { states[i] = state{service, s.ask(r, "http://"+service+"/readyz", nil) == nil, []instance{}} })
	}
	parts.Wait()
	known := s.env.Caller.Known()
	for i, service := range s.services {
		for _, in := range known[service] {
			states[i].Instances = append(states[i].Instances, instance{ownName(service, in.ID), in.Addr})
		}
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": states})
}
