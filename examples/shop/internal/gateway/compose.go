// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// partBudget is how long one part of a composed answer may take. A part that is late, or
// whose service is down, is left out and named.
const partBudget = time.Second

// orderPage puts the order, its payment and its shipment together.
func (s *Service) orderPage(w http.ResponseWriter, r *http.Request) error {
	id := url.PathEscape(r.PathValue("id"))
	var page map[string]json.RawMessage
	var orderErr error
	var parts sync.WaitGroup
	parts.Go(func() { orderErr = s.ask(r, "http://order/orders/"+id, &page) })
	others := []struct {
		name, url string
		body      json.RawMessage
		err       error
	}{{name: "payment", url: "http://payment/payments/" + id}, {name: "shipment", url: "http://shipping/shipments/" + id}}
	for i := range others {
		parts.Go(func() { others[i].err = s.ask(r, others[i].url, &others[i].body) })
	}
	parts.Wait()
	var answer *platform.Error
	switch {
	case errors.As(orderErr, &answer):
		return answer
	case orderErr != nil: // no answer, or too late
		return &platform.Error{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "the shop is busy; please try again", RetryAfter: time.Second, Err: orderErr}
	}
	var missing []string
	for _, part := range others {
		switch {
		case part.err == nil:
			page[part.name] = part.body
		case errors.As(part.err, &answer) && answer.Status == http.StatusNotFound:
			page[part.name] = json.RawMessage(`null`) // the service has not heard of the order yet
		default:
			missing = append(missing, part.name)
		}
	}
	if missing != nil {
		page["partial"], _ = json.Marshal(missing)
		w.Header().Set("X-Partial", strings.Join(missing, ", "))
	}
	return platform.WriteJSON(w, http.StatusOK, page)
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

// everywhere asks the same of every service and lists the answers; those that do not answer are named.
func (s *Service) everywhere(path string) func(w http.ResponseWriter, r *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		answers := make([]json.RawMessage, len(s.services))
		var parts sync.WaitGroup
		for i, service := range s.services {
			parts.Go(func() {
				if err := s.ask(r, "http://"+service+path, &answers[i]); err != nil {
					answers[i], _ = json.Marshal(map[string]string{"service": service, "error": "does not answer"})
				}
			})
		}
		parts.Wait()
		return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": answers})
	}
}

// health tells which services are ready.
func (s *Service) health(w http.ResponseWriter, r *http.Request) error {
	type state struct {
		Service string `json:"service"`
		Ready   bool   `json:"ready"`
	}
	states := make([]state, len(s.services))
	var parts sync.WaitGroup
	for i, service := range s.services {
		parts.Go(func() { states[i] = state{service, s.ask(r, "http://"+service+"/readyz", nil) == nil} })
	}
	parts.Wait()
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": states})
}
