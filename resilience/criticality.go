// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resilience

import (
	"context"
	"fmt"
)

// Criticality says how bad it is to refuse a call, in the four levels of Beyer et al., Site
// Reliability Engineering, chapter 21. Under overload lower levels are refused first. A
// higher value is more critical, so that it can serve as a bulkhead's priority:
//
//	bulkhead.Config{Priority: func(ctx context.Context) int { return int(resilience.CriticalityOf(ctx)) }}
type Criticality int8

const (
	// Sheddable may be refused often: batch work that will be repeated.
	Sheddable Criticality = iota - 2
	// SheddablePlus may be refused at times: work that is expected to be repeated in minutes or hours.
	SheddablePlus
	// Critical is what people see, and the zero value.
	Critical
	// CriticalPlus is what people see and would call a disaster.
	CriticalPlus

	criticalities = 4
)

func (c Criticality) index() int { return int(c - Sheddable) }

// String returns "sheddable", "sheddable-plus", "critical" or "critical-plus".
func (c Criticality) String() string {
	switch c {
	case Sheddable:
		return "sheddable"
	case SheddablePlus:
		return "sheddable-plus"
	case Critical:
		return "critical"
	case CriticalPlus:
		return "critical-plus"
	}
	return fmt.Sprintf("resilience.Criticality(%d)", int8(c))
}

// ParseCriticality is the inverse of String, for headers.
func ParseCriticality(s string) (Criticality, error) {
	for c := Sheddable; c <= CriticalPlus; c++ {
		if c.String() == s {
			return c, nil
		}
	}
	return Critical, fmt.Errorf("resilience: criticality is %.40q, want sheddable, sheddable-plus, critical or critical-plus", s)
}

type criticalityKey struct{}

// WithCriticality returns ctx for calls of criticality c. It panics if c is none of the constants.
func WithCriticality(ctx context.Context, c Criticality) context.Context {
	if c < Sheddable || c > CriticalPlus {
		panic("resilience: WithCriticality(" + c.String() + "), want Sheddable to CriticalPlus")
	}
	return context.WithValue(ctx, criticalityKey{}, c)
}

// CriticalityOf returns the criticality of calls made with ctx, Critical unless WithCriticality has
// set another.
func CriticalityOf(ctx context.Context) Criticality {
	c, _ := ctx.Value(criticalityKey{}).(Criticality)
	return c
}
