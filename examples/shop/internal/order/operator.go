// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/eventsource"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/saga"
)

// operatorRoutes are what an operator asks of this service through the gateway.
func (s *Service) operatorRoutes(mux *http.ServeMux) {
	operator := func(fn func(http.ResponseWriter, *http.Request) error) http.Handler {
		return s.env.Auth.Require(platform.Handle(fn), platform.RoleOperator)
	}
	mux.Handle("GET /ops/sagas", operator(s.sagas))
	mux.Handle("GET /ops/sagas/{id}", operator(s.saga))
	mux.Handle("POST /ops/sagas/{id}/retry", operator(s.decide(s.engine.Retry)))
	mux.Handle("POST /ops/sagas/{id}/skip", operator(s.decide(s.engine.Skip)))
	mux.Handle("POST /ops/sagas/{id}/cancel", operator(s.decide(s.engine.Cancel)))
	mux.Handle("GET /ops/events", operator(s.recorded))
}

// Gauges are what the console shows of the sagas.
func (s *Service) Gauges(ctx context.Context) (map[string]float64, error) {
	n, err := s.engine.Count(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]float64{
		"sagas": float64(n.Running + n.Compensating), "compensating": float64(n.Compensating), "stuck": float64(n.Stuck),
	}, nil
}

// sagaView is a saga as an operator sees it.
type sagaView struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Version int       `json:"version"`
	Status  string    `json:"status"`
	Step    string    `json:"step,omitempty"`
	Attempt int       `json:"attempt"`
	Cause   string    `json:"cause,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Stuck   string    `json:"stuck,omitempty"`
	Parked  bool      `json:"parked,omitempty"`
	Owner   string    `json:"owner,omitempty"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
	WakeAt  time.Time `json:"wake_at,omitzero"`
}

// entryView is one line of a saga's history as an operator sees it.
type entryView struct {
	N           int64     `json:"n"`
	At          time.Time `json:"at"`
	Step        string    `json:"step,omitempty"`
	Op          string    `json:"op"`
	Attempt     int       `json:"attempt,omitempty"`
	Outcome     string    `json:"outcome"`
	Text        string    `json:"text,omitempty"`
	Who         string    `json:"who,omitempty"`
	TookSeconds float64   `json:"took_seconds"`
	Node        string    `json:"node"`
}

// stepView is one step of a saga's plan.
type stepView struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"`
	Undo  string `json:"undo,omitempty"`
	Pivot bool   `json:"pivot,omitempty"`
}

func viewOf(in saga.Instance) sagaView {
	v := sagaView{
		ID: in.ID, Name: in.Name, Version: in.Version, Status: in.Status.String(), Step: in.Step, Attempt: in.Attempt,
		Reason: in.Reason, Stuck: in.Stuck, Parked: in.Parked, Owner: in.Owner, Created: in.Created.UTC(), Updated: in.Updated.UTC(),
	}
	if in.Cause != saga.CauseNone {
		v.Cause = in.Cause.String()
	}
	if !in.WakeAt.IsZero() {
		v.WakeAt = in.WakeAt.UTC()
	}
	return v
}

func (s *Service) sagas(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if stuck := q.Get("stuck"); stuck != "" && stuck != "true" && stuck != "false" {
		return platform.Invalid("stuck", "is %.100q, want true or false", stuck)
	}
	filter := saga.Filter{Name: q.Get("name"), Prefix: q.Get("id"), Stuck: q.Get("stuck") == "true", After: q.Get("after")}
	for _, status := range []saga.Status{saga.Running, saga.Compensating, saga.Completed, saga.Compensated} {
		if q.Get("status") == status.String() {
			filter.Status = status
		}
	}
	if text := q.Get("status"); text != "" && filter.Status == 0 {
		return platform.Invalid("status", "is %q, want running, compensating, completed or compensated", text)
	}
	list, err := s.engine.List(r.Context(), filter)
	if err != nil {
		return err
	}
	views := make([]sagaView, len(list))
	for i, in := range list {
		views[i] = viewOf(in)
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": views})
}

func (s *Service) saga(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	in, err := s.engine.Get(r.Context(), id)
	if errors.Is(err, saga.ErrNotFound) {
		return platform.NotFound("saga", id)
	}
	if err != nil {
		return err
	}
	history, err := s.engine.History(r.Context(), id)
	if err != nil {
		return err
	}
	entries := make([]entryView, len(history))
	for i, e := range history {
		entries[i] = entryView{
			N: e.N, At: e.At.UTC(), Step: e.Step, Op: e.Op, Attempt: e.Attempt, Outcome: e.Outcome, Text: e.Text,
			Who: e.Who, TookSeconds: e.Took.Seconds(), Node: e.Node,
		}
	}
	plan := []stepView{} // of a version that is not known here
	for _, d := range []interface {
		Name() string
		Version() int
		Steps() []saga.StepInfo
	}{s.place, s.cancel} {
		if d.Name() != in.Name || d.Version() != in.Version {
			continue
		}
		for _, step := range d.Steps() {
			v := stepView{Name: step.Name, Kind: step.Kind.String(), Pivot: step.Pivot}
			if step.Undo != saga.KindNone {
				v.Undo = step.Undo.String()
			}
			plan = append(plan, v)
		}
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"saga": viewOf(in), "steps": plan, "history": entries, "data": json.RawMessage(in.Data)})
}

// decide is one of an operator's verbs. The saga's history keeps who decided, and why.
func (s *Service) decide(verb func(ctx context.Context, id string, by saga.By) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		why, err := platform.Why(w, r)
		if err != nil {
			return err
		}
		id := r.PathValue("id")
		err = verb(r.Context(), id, saga.By{Who: platform.Who(r.Context()), Why: why})
		switch {
		case errors.Is(err, saga.ErrNotFound):
			return platform.NotFound("saga", id)
		case errors.Is(err, saga.ErrNotStuck):
			return &platform.Error{Status: http.StatusConflict, Code: "not-stuck", Detail: "the saga goes on by itself; there is nothing to decide", Err: err}
		case errors.Is(err, saga.ErrPastPivot):
			return &platform.Error{Status: http.StatusConflict, Code: "past-pivot", Detail: "the saga is past its pivot: from there on it is finished, not undone", Err: err}
		case err != nil:
			return err
		}
		now, err := s.engine.Get(r.Context(), id)
		if err != nil {
			return err
		}
		return platform.WriteJSON(w, http.StatusOK, viewOf(now))
	}
}

// recordedView is an event in its place in the log.
type recordedView struct {
	Cursor  eventsource.Cursor `json:"cursor"`
	Order   string             `json:"order"`
	Version int64              `json:"version"`
	Type    string             `json:"type"`
	ID      string             `json:"id"`
	At      time.Time          `json:"at"`
	Header  map[string]string  `json:"header,omitempty"`
	Data    json.RawMessage    `json:"data"`
}

// recentEvents is how many events of the log's end are shown at once.
const recentEvents = 50

// recorded shows the log: all events of one order, or the last of all orders, newest first.
func (s *Service) recorded(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var events []eventsource.Recorded
	if order := r.URL.Query().Get("order"); order != "" {
		for e, err := range s.orders.log.Read(ctx, streamPrefix+order, 0) {
			if err != nil {
				return err
			}
			events = append(events, e)
		}
	} else {
		end, err := s.orders.log.Horizon(ctx)
		if err != nil {
			return err
		}
		before := end.Cursor + 1
		if text := r.URL.Query().Get("before"); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil || n < 1 {
				return platform.Invalid("before", "is %q, want the cursor of an event", text)
			}
			before = eventsource.Cursor(n)
		}
		if events, err = s.lastBefore(ctx, before); err != nil {
			return err
		}
	}
	views := make([]recordedView, len(events))
	for i, e := range events {
		views[len(events)-1-i] = recordedView{
			Cursor: e.Cursor, Order: strings.TrimPrefix(e.Stream, streamPrefix), Version: e.Version, Type: e.Type, ID: e.ID,
			At: e.Recorded.UTC(), Header: e.Header, Data: e.Data,
		}
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": views})
}

// lastBefore reads what stands at most recentEvents before a cursor. A log is read forwards and its cursors have gaps,
// so it begins a little way back, and further if that was not enough.
func (s *Service) lastBefore(ctx context.Context, before eventsource.Cursor) ([]eventsource.Recorded, error) {
	for back := eventsource.Cursor(2 * recentEvents); ; back *= 8 {
		var events []eventsource.Recorded
		after := max(before-back, 0)
		for e, err := range s.orders.log.All(ctx, after, eventsource.Filter{}) {
			if err != nil {
				return nil, err
			}
			if e.Cursor >= before {
				break
			}
			if events = append(events, e); len(events) > 2*recentEvents {
				events = append(events[:0], events[recentEvents:]...)
			}
		}
		if len(events) >= recentEvents || after == 0 {
			return events[max(len(events)-recentEvents, 0):], nil
		}
	}
}
