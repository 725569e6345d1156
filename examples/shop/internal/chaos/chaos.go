// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package chaos harms the shop on purpose, for a while: it knows every kind of fault, which of them are in
// force, and when each ends by itself. How a fault is brought about is for the [World] that it happens in:
// one process with everything in it, or many.
package chaos

import (
	"cmp"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// The kinds of faults.
const (
	Latency           = "latency"
	Errors            = "errors"
	Pause             = "pause"
	Kill              = "kill"
	ProviderDown      = "provider-down"
	ProviderSlow      = "provider-slow"
	ProviderDeclining = "provider-declining"
	BrokerCut         = "broker-cut"
	Duplicate         = "duplicate"
	Reorder           = "reorder"
)

// Kind describes a kind of fault.
type Kind struct {
	// Kind is its name, one of the constants.
	Kind string `json:"kind"`
	// Title says what it does, for people.
	Title string `json:"title"`
	// Target is "service" if it happens to one service, "none" if there is nothing to choose.
	Target string `json:"target"`
	// Services are those that it can happen to. Where a service has several instances, the name of one
	// of them does as well.
	Services []string `json:"services"`
	// Amount is how much of it there can be. Nil if there is no more and less.
	Amount *Amount `json:"amount"`
	// Seconds is how long it can last.
	Seconds Seconds `json:"seconds"`

	harm func(h *platform.Harm, amount int)
}

// Amount is a range of how much.
type Amount struct {
	Unit    string `json:"unit"` // "ms" or "percent"
	Min     int    `json:"min"`
	Max     int    `json:"max"`
	Default int    `json:"default"`
}

// Seconds is how long a fault may last at most, and lasts if nobody says.
type Seconds struct {
	Max     int `json:"max"`
	Default int `json:"default"`
}

const (
	atService = "service"
	atNone    = "none"
)

var percent = &Amount{Unit: "percent", Min: 1, Max: 100, Default: 30}

// all is every kind. Who is told of it gets the services beside it.
var all = []Kind{
	{
		Kind: Latency, Title: "Every request waits", Target: atService, Amount: &Amount{"ms", 1, 10_000, 500}, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, n int) { h.Latency += milliseconds(n) },
	},
	{
		Kind: Errors, Title: "Requests fail", Target: atService, Amount: percent, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, n int) { h.Errors = max(h.Errors, n) },
	},
	{
		Kind: Pause, Title: "The service stands still", Target: atService, Seconds: Seconds{300, 15},
		harm: func(h *platform.Harm, _ int) { h.Paused = true },
	},
	{Kind: Kill, Title: "The service is killed, and comes back", Target: atService, Seconds: Seconds{300, 10}},
	{
		Kind: ProviderDown, Title: "The payment provider does not answer", Target: atNone, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, _ int) { h.Down = true },
	},
	{
		Kind: ProviderSlow, Title: "The payment provider is slow", Target: atNone, Amount: &Amount{"ms", 1, 10_000, 2000}, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, n int) { h.Delay += milliseconds(n) },
	},
	{
		Kind: ProviderDeclining, Title: "The payment provider declines every charge", Target: atNone, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, _ int) { h.Declining = true },
	},
	{
		Kind: BrokerCut, Title: "The service is cut off from the broker", Target: atService, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, _ int) { h.Cut = true },
	},
	{
		Kind: Duplicate, Title: "Messages are delivered twice", Target: atService, Amount: percent, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, n int) { h.Duplicate = max(h.Duplicate, n) },
	},
	{
		Kind: Reorder, Title: "Messages overtake those of other keys", Target: atService, Amount: percent, Seconds: Seconds{3600, 30},
		harm: func(h *platform.Harm, n int) { h.Reorder = max(h.Reorder, n) },
	},
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// Names returns the names of all kinds.
func Names() []string {
	var out []string
	for _, k := range all {
		out = append(out, k.Kind)
	}
	return out
}

// Fault is one fault in force.
type Fault struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	Service   string    `json:"service"`
	Amount    int       `json:"amount"`
	StartedAt time.Time `json:"started_at"`
	EndsAt    time.Time `json:"ends_at"`
}

// Strikes reports whether the fault happens to an instance of a service.
func (f Fault) Strikes(service, instance string) bool {
	if strings.HasPrefix(f.Kind, "provider-") {
		return service == "provider"
	}
	return f.Service == service || f.Service == instance
}

// Harm is what faults add up to for one instance, and whether it is dead.
func Harm(faults []Fault, service, instance string) (h platform.Harm, dead bool) {
	for _, f := range faults {
		if !f.Strikes(service, instance) {
			continue
		}
		dead = dead || f.Kind == Kill
		for _, k := range all {
			if k.Kind == f.Kind && k.harm != nil {
				k.harm(&h, f.Amount)
			}
		}
	}
	return h, dead
}

// World is what faults happen to.
type World interface {
	// Services returns the names of the services.
	Services() []string
	// Instances returns the names of the instances of all services.
	Instances() []string
	// Suffer makes exactly these faults the ones in force: see [Harm]. It does not block for long, and is
	// not called twice at once.
	Suffer(faults []Fault)
}

// Control keeps the faults that are in force. It is for use by many goroutines.
type Control struct {
	world World

	mu      sync.Mutex
	faults  []Fault // by start
	timers  map[string]*time.Timer
	begun   []Fault   // the last ones that were given an ID, for who asks again
	quietAt time.Time // when the last fault ended
	closed  bool
}

// New returns a Control of the world without a fault.
func New(world World) *Control {
	return &Control{world: world, timers: map[string]*time.Timer{}}
}

// Request asks for a fault.
type Request struct {
	// ID, if not empty, is what the fault is to be called. Asked for twice with one ID it begins once: who kills the
	// gateway gets no answer, and may have to ask again.
	ID   string `json:"id,omitempty"`
	Kind string `json:"kind"`
	// Service is the name of a service, or of one of its instances. Empty where the kind has no target.
	Service string `json:"service"`
	// Amount is in the kind's unit. Zero means its default.
	Amount int `json:"amount"`
	// Seconds is how long it lasts. Zero means the kind's default.
	Seconds float64 `json:"seconds"`
}

// remembered is how many faults are kept for who asks again.
const remembered = 1000

var validID = regexp.MustCompile(`^[A-Za-z0-9_-]{8,64}$`)

// ErrClosed is returned when the shop is closing.
var ErrClosed = errors.New("chaos: the shop is closing")

// Kinds returns all kinds, with what they can happen to.
func (c *Control) Kinds() []Kind {
	services := c.world.Services()
	out := slices.Clone(all)
	for i := range out {
		out[i].Services = []string{}
		switch {
		case out[i].Target == atNone:
		case out[i].Kind == Duplicate || out[i].Kind == Reorder || out[i].Kind == BrokerCut:
			// The provider is somebody else's, and has nothing to do with the broker.
			out[i].Services = slices.DeleteFunc(slices.Clone(services), func(s string) bool { return s == "provider" })
		default:
			out[i].Services = services
		}
	}
	return out
}

// Instances returns the names of the instances of all services.
func (c *Control) Instances() []string { return c.world.Instances() }

// Begin brings a fault about. An error of a request that is wrong is a [*platform.Error] that names the field.
func (c *Control) Begin(r Request) (Fault, error) {
	kinds := c.Kinds()
	at := slices.IndexFunc(kinds, func(k Kind) bool { return k.Kind == r.Kind })
	if at < 0 {
		return Fault{}, platform.Invalid("kind", "is %q, want one of %s", r.Kind, strings.Join(Names(), ", "))
	}
	kind := kinds[at]
	if kind.Target == atNone && r.Service != "" {
		return Fault{}, platform.Invalid("service", "is %q, want none: %s happens to the payment provider", r.Service, r.Kind)
	}
	if kind.Target == atService && !slices.Contains(kind.Services, r.Service) && !c.instance(kind, r.Service) {
		return Fault{}, platform.Invalid("service", "is %q, want one of %s, or an instance of one", r.Service, strings.Join(kind.Services, ", "))
	}
	switch {
	case kind.Amount == nil && r.Amount != 0:
		return Fault{}, platform.Invalid("amount", "is %d, want none: there is no more and less of %s", r.Amount, r.Kind)
	case kind.Amount != nil && r.Amount == 0:
		r.Amount = kind.Amount.Default
	case kind.Amount != nil && (r.Amount < kind.Amount.Min || r.Amount > kind.Amount.Max):
		return Fault{}, platform.Invalid("amount", "is %d, want %d to %d %s", r.Amount, kind.Amount.Min, kind.Amount.Max, kind.Amount.Unit)
	}
	if r.Seconds == 0 {
		r.Seconds = float64(kind.Seconds.Default)
	}
	if !(r.Seconds > 0 && r.Seconds <= float64(kind.Seconds.Max)) {
		return Fault{}, platform.Invalid("seconds", "is %v, want more than 0 and at most %d", r.Seconds, kind.Seconds.Max)
	}
	if r.ID != "" && !validID.MatchString(r.ID) {
		return Fault{}, platform.Invalid("id", "want 8 to 64 letters, digits, - and _")
	}
	now := time.Now().UTC()
	d := time.Duration(r.Seconds * float64(time.Second))
	f := Fault{ID: cmp.Or(r.ID, kernel.NewID()), Kind: r.Kind, Service: r.Service, Amount: r.Amount, StartedAt: now, EndsAt: now.Add(d)}

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return Fault{}, ErrClosed
	}
	if r.ID != "" {
		if at := slices.IndexFunc(c.begun, func(b Fault) bool { return b.ID == r.ID }); at >= 0 {
			return c.begun[at], nil
		}
		c.begun = append(c.begun, f)
		c.begun = c.begun[max(len(c.begun)-remembered, 0):]
	}
	c.faults = append(c.faults, f)
	c.timers[f.ID] = time.AfterFunc(d, func() { c.End(f.ID) })
	c.world.Suffer(slices.Clone(c.faults))
	return f, nil
}

// instance reports whether name is an instance of a service that the kind can happen to.
func (c *Control) instance(kind Kind, name string) bool {
	if !slices.Contains(c.world.Instances(), name) {
		return false
	}
	at := strings.LastIndexByte(name, '-')
	return at > 0 && slices.Contains(kind.Services, name[:at])
}

// End ends a fault before its time, and reports whether there was one.
func (c *Control) End(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.IndexFunc(c.faults, func(f Fault) bool { return f.ID == id })
	if at < 0 {
		return false
	}
	c.timers[id].Stop()
	delete(c.timers, id)
	c.faults = slices.Delete(c.faults, at, at+1)
	c.quietAt = time.Now()
	c.world.Suffer(slices.Clone(c.faults))
	return true
}

// EndAll ends all faults.
func (c *Control) EndAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endAll()
}

func (c *Control) endAll() {
	for _, t := range c.timers {
		t.Stop()
	}
	clear(c.timers)
	if len(c.faults) > 0 {
		c.quietAt = time.Now()
	}
	c.faults = nil
	c.world.Suffer(nil)
}

// Close ends all faults and begins no other: a shop that is to drain must be able to.
func (c *Control) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.endAll()
}

// Faults returns what is in force, by start.
func (c *Control) Faults() []Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.faults)
}

// Quiet reports whether no fault has been in force for that long.
func (c *Control) Quiet(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.faults) == 0 && time.Since(c.quietAt) >= d
}
