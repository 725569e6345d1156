// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package order

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// streamPoll is how often a stream looks for news without having been told of any: word of what another instance does
// may be lost. StreamKeep is how often it says that it is still there.
const (
	streamPoll = 500 * time.Millisecond
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

// stream sends each moment of the history once, and the order when its status or that of its payment changes. It
// ends with the client, or when the service stops; the client then comes back.
func (s *Service) stream(w http.ResponseWriter, r *http.Request, v view) error {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	poll, keep := time.NewTicker(s.poll), time.NewTicker(s.keep)
	defer poll.Stop()
	defer keep.Stop()

	// By what they say, not by their place: two clocks write the history, and within a millisecond a
	// later moment may come to stand before an earlier one.
	sent := map[moment]bool{}
	shown := view{}
	news, stop := s.watchers.watch(v.ID)
	defer stop()
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
		if v.Status != shown.Status || v.Payment != shown.Payment {
			shown = v
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
		case <-news:
		}
	}
}

// cancelPrefix and an order's ID name the saga that takes the order back.
const cancelPrefix = "cancel-"

// tell wakes those who watch the order of a saga, here and at the other instances.
func (s *Service) tell(sagaID string) {
	order := strings.TrimPrefix(sagaID, cancelPrefix)
	s.watchers.tell(order)
	s.env.News.Tell(order)
}

// watchers are the streams that want to know at once when something has happened to an order.
type watchers struct {
	mu      sync.Mutex
	byOrder map[string]map[chan struct{}]bool
}

// watch returns a channel that has something in it after each tell of the order.
func (w *watchers) watch(order string) (news <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byOrder == nil {
		w.byOrder = map[string]map[chan struct{}]bool{}
	}
	if w.byOrder[order] == nil {
		w.byOrder[order] = map[chan struct{}]bool{}
	}
	w.byOrder[order][ch] = true
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.byOrder[order], ch)
		if len(w.byOrder[order]) == 0 {
			delete(w.byOrder, order)
		}
	}
}

// tell wakes those who watch an order here.
func (w *watchers) tell(order string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for ch := range w.byOrder[order] {
		select {
		case ch <- struct{}{}:
		default:
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
