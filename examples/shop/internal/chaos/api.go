// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"net/http"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// Desk is where an operator controls the shop as a whole.
type Desk struct {
	Control    *Control
	Invariants *check.Watch
	Load       *load.Generator
}

// Handler answers for the gateway. Who asks is the gateway's to know.
func (d Desk) Handler() http.Handler {
	mux := http.NewServeMux()
	for pattern, fn := range map[string]func(w http.ResponseWriter, r *http.Request) error{
		"GET /ops/api/chaos":         d.list,
		"POST /ops/api/chaos":        d.begin,
		"DELETE /ops/api/chaos":      d.endAll,
		"DELETE /ops/api/chaos/{id}": d.end,
		"GET /ops/api/invariants":    d.invariants,
		"GET /ops/api/load":          d.load,
		"PUT /ops/api/load":          d.setLoad,
	} {
		mux.Handle(pattern, platform.Handle(fn))
	}
	return mux
}

func (d Desk) list(w http.ResponseWriter, _ *http.Request) error {
	faults := d.Control.Faults()
	if faults == nil {
		faults = []Fault{}
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"kinds": d.Control.Kinds(), "instances": d.Control.Instances(), "faults": faults})
}

func (d Desk) begin(w http.ResponseWriter, r *http.Request) error {
	var in Request
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	fault, err := d.Control.Begin(in)
	if errors.Is(err, ErrClosed) {
		return &platform.Error{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "the shop is closing", RetryAfter: time.Second}
	}
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/ops/api/chaos/"+fault.ID)
	return platform.WriteJSON(w, http.StatusCreated, fault)
}

func (d Desk) end(w http.ResponseWriter, r *http.Request) error {
	if !d.Control.End(r.PathValue("id")) {
		return platform.NotFound("fault", r.PathValue("id"))
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d Desk) endAll(w http.ResponseWriter, _ *http.Request) error {
	d.Control.EndAll()
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (d Desk) invariants(w http.ResponseWriter, r *http.Request) error {
	state, err := d.Invariants.Get(r.Context())
	if err != nil {
		return &platform.Error{Status: http.StatusServiceUnavailable, Code: "unavailable", Detail: "the databases cannot be read at present", RetryAfter: time.Second, Err: err}
	}
	return platform.WriteJSON(w, http.StatusOK, state)
}

func (d Desk) load(w http.ResponseWriter, _ *http.Request) error {
	return platform.WriteJSON(w, http.StatusOK, d.Load.Counts())
}

func (d Desk) setLoad(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Rate *float64 `json:"rate"`
	}
	if err := platform.Decode(w, r, &in); err != nil {
		return err
	}
	if in.Rate == nil || !(*in.Rate >= 0 && *in.Rate <= load.MaxRate) {
		return platform.Invalid("rate", "want orders per second, 0 to %d", load.MaxRate)
	}
	d.Load.SetRate(*in.Rate)
	return platform.WriteJSON(w, http.StatusOK, d.Load.Counts())
}
