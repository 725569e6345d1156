// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"context"
	"errors"
)

// ErrLeaseLost says that the registry no longer knows the registration: its time ran
// out, or the registry lost its state. Register again.
var ErrLeaseLost = errors.New("discovery: lease lost")

// Health is what an instance says about itself.
type Health struct {
	// Failing takes the instance out of the sets that callers see, while its lease
	// goes on. The zero Health is passing.
	Failing bool
	// Note is for people: why.
	Note string
}

// Registry takes registrations. Most programs use it through [Announcement], which
// keeps one alive. Package discoverytest checks an implementation against the sentences
// here.
type Registry interface {
	// Register makes the instance known, in place of one with the same service and ID. It
	// may be seen from its first renewal on only. The registration ends with
	// Lease.Deregister, or by itself when it is not renewed within the registry's time
	// to live.
	Register(ctx context.Context, in Instance) (Lease, error)
}

// Lease is one registration. Renew and Maintenance return an error that wraps
// [ErrLeaseLost] once the registry no longer knows it.
type Lease interface {
	// Renew reports that the instance lives, and how it is.
	Renew(ctx context.Context, h Health) error
	// Maintenance takes the instance out of the sets (on) or back in, for the given reason.
	Maintenance(ctx context.Context, on bool, reason string) error
	// Deregister ends the registration. That it has ended already is no error.
	Deregister(ctx context.Context) error
}
