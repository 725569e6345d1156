// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// Moods of the provider as a whole, whatever the payment method.
const (
	moodWell      = "well"
	moodDown      = "down"      // connections are cut
	moodSlow      = "slow"      // every answer takes two seconds longer
	moodDeclining = "declining" // every new charge is declined
)

// longestMood bounds how long an operator's experiment lasts.
const longestMood = time.Hour

// mood is how the provider feels, and until when.
type mood struct {
	mu    sync.Mutex
	now   string
	until time.Time
}

func (m *mood) set(name string, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.now, m.until = name, time.Now().Add(d)
}

func (m *mood) get() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now == "" || time.Now().After(m.until) {
		return moodWell
	}
	return m.now
}

// moody lets the mood have its way before a request is served.
func (s *Service) moody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		harm := s.env.Gate.Harm()
		if harm.Down {
			panic(http.ErrAbortHandler)
		}
		if harm.Delay > 0 && pause(r.Context(), harm.Delay) != nil {
			return // nobody waits any more
		}
		switch s.mood.get() {
		case moodDown:
			panic(http.ErrAbortHandler)
		case moodSlow:
			if pause(r.Context(), 2*time.Second) != nil {
				return // nobody waits any more
			}
		}
		next.ServeHTTP(w, r)
	})
}

// setMood changes the mood for a while, for experiments.
func (s *Service) setMood(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Mood    string  `json:"mood"`
		Seconds float64 `json:"seconds"`
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	moods := []string{moodWell, moodDown, moodSlow, moodDeclining}
	if !slices.Contains(moods, in.Mood) {
		return platform.Invalid("mood", "is %q, want one of %v", in.Mood, moods)
	}
	if in.Seconds <= 0 || in.Seconds > longestMood.Seconds() {
		return platform.Invalid("seconds", "is %v, want more than 0 and at most %v", in.Seconds, longestMood.Seconds())
	}
	s.mood.set(in.Mood, time.Duration(in.Seconds*float64(time.Second)))
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"mood": in.Mood, "seconds": in.Seconds})
}
