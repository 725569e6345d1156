// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/saga"
)

// streamPoll is how often a stream looks for news; streamKeep how often it says that it
// is still there.
const (
	streamPoll = 200 * time.Millisecond
	streamKeep = 15 * time.Second
)

// events answers with an order's history: as JSON, or as a stream of server-sent events
// for those who want to watch it happen.
func (s *Service) events(w http.ResponseWriter, r *http.Request) error {
	v, err := s.own(r)
	if err != nil {
		return err
	}
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		return s.stream(w, r, v)
	}
	history, err := s.history(r.Context(), v.ID)
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": history})
}

// stream sends each moment of the history once, and the order's status when it changes. It
// ends with the client, or when the service stops; the client then comes back.
func (s *Service) stream(w http.ResponseWriter, r *http.Request, v view) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	poll, keep := time.NewTicker(streamPoll), time.NewTicker(streamKeep)
	defer poll.Stop()
	defer keep.Stop()

	// By what they say, not by their place: two clocks write the history, and within a millisecond a
	// later moment may come to stand before an earlier one.
	sent := map[moment]bool{}
	status := ""
	for {
		history, err := s.history(r.Context(), v.ID)
		if err != nil {
			return nil // the stream has begun: its end is the only answer left
		}
		for _, m := range history {
			if sent[m] {
				continue
			}
			sent[m] = true
			if err := send(w, "moment", m); err != nil {
				return nil
			}
		}
		if v, err = s.own(r); err != nil {
			return nil
		}
		if v.Status != status {
			status = v.Status
			if err := send(w, "status", v); err != nil {
				return nil
			}
		}
		if err := control.Flush(); err != nil {
			return nil
		}
		select {
		case <-r.Context().Done():
			return nil
		case <-platform.Draining(r.Context()):
			return nil
		case <-keep.C:
			if _, err := fmt.Fprint(w, ": still here\n\n"); err != nil {
				return nil
			}
		case <-poll.C:
		}
	}
}

func send(w http.ResponseWriter, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data)
	return err
}

// operatorRoutes are what an operator asks of this service through the gateway.
func (s *Service) operatorRoutes(mux *http.ServeMux) {
	auth := s.env.Auth
	mux.Handle("GET /ops/sagas", auth.Require(platform.Handle(s.sagas), platform.RoleOperator))
	mux.Handle("GET /ops/sagas/{id}", auth.Require(platform.Handle(s.saga), platform.RoleOperator))
}

// sagaView is a saga as an operator sees it.
type sagaView struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Status  string    `json:"status"`
	Step    string    `json:"step,omitempty"`
	Attempt int       `json:"attempt"`
	Reason  string    `json:"reason,omitempty"`
	Stuck   string    `json:"stuck,omitempty"`
	Created time.Time `json:"created"`
	Updated time.Time `json:"updated"`
}

func viewOf(in saga.Instance) sagaView {
	return sagaView{
		ID: in.ID, Name: in.Name, Status: in.Status.String(), Step: in.Step, Attempt: in.Attempt,
		Reason: in.Reason, Stuck: in.Stuck, Created: in.Created.UTC(), Updated: in.Updated.UTC(),
	}
}

func (s *Service) sagas(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	filter := saga.Filter{Name: q.Get("name"), Stuck: q.Get("stuck") == "true", After: q.Get("after")}
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
	if err != nil {
		return platform.NotFound("saga", id)
	}
	history, err := s.engine.History(r.Context(), id)
	if err != nil {
		return err
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"saga": viewOf(in), "history": history})
}
