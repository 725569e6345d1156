// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// traffic is what of the gateway's /ops/api/traffic matters here.
type traffic struct {
	Services []struct {
		Service   string
		Instances []struct {
			Instance string
			Up       bool
		}
		Outbox *platform.OutboxState
	}
	Calls []struct {
		From, To string
		Breaker  platform.BreakerState
	}
	Groups []struct {
		Service, Group string
		Behind         int64
		OldestSeconds  float64 `json:"oldest_seconds"`
	}
	Totals struct{ Stuck float64 }
}

// slow is how old the oldest message of an outbox, or of a group that hears it, may be; the alert ShopOutboxStalled goes by the same age.
const slow = time.Minute

// Running looks at how the shop does whose gateway is at url. Token is the services' own. What ends by itself when its
// cause does is a doubt; what waits for a person has failed.
func Running(ctx context.Context, url, token string, secure *tls.Config) []Finding {
	transport := &http.Transport{TLSClientConfig: secure, DisableKeepAlives: true}
	caller := &platform.Caller{Client: &http.Client{Transport: transport}, Token: token}
	var list struct {
		Items []struct {
			Service string
			Ready   bool
		}
	}
	if err := caller.Do(ctx, http.MethodGet, url+"/ops/api/services", nil, nil, &list); err != nil {
		return []Finding{Wrong("look at the gateway's log", "the gateway does not say how the services are: %v", err).About("gateway").Runbook("service-down")}
	}
	var t traffic
	if err := caller.Do(ctx, http.MethodGet, url+"/ops/api/traffic", nil, nil, &t); err != nil {
		return []Finding{Wrong("look at the gateway's log", "the gateway does not say what goes on: %v", err).About("gateway").Runbook("service-down")}
	}
	var found []Finding
	for _, s := range list.Items {
		if !s.Ready {
			found = append(found, Wrong("look at its log; it is started again by itself if it ended", "no instance is ready").About(s.Service).Runbook("service-down"))
		}
	}
	ready := func(service string) bool {
		return !slices.ContainsFunc(found, func(f Finding) bool { return f.Of == service })
	}
	instances := 0
	for _, s := range t.Services {
		for _, in := range s.Instances {
			instances++
			if !in.Up && ready(s.Service) {
				found = append(found, Doubt("look at its log", "%s does not answer", in.Instance).About(s.Service).Runbook("instance-down"))
			}
		}
	}
	for _, s := range t.Services {
		if s.Outbox != nil {
			found = append(found, box(s.Service, *s.Outbox)...)
		}
	}
	for _, g := range t.Groups {
		if age := seconds(g.OldestSeconds); age > slow {
			found = append(found, Doubt("look at its log for what is not handled", "%d messages wait for its group %s, the oldest for %v", g.Behind, g.Group, age).About(g.Service).Runbook("consumer-fails"))
		}
	}
	for _, c := range t.Calls {
		if c.Breaker.State != "" && c.Breaker.State != "closed" {
			found = append(found, Doubt("look at "+c.To, "its breaker to %s is %s", c.To, c.Breaker.State).About(c.From).Runbook("breaker-open"))
		}
	}
	if n := t.Totals.Stuck; n > 0 {
		found = append(found, Wrong("decide on the console: retry, skip or compensate", "%.0f sagas are stuck", n).About("order").Runbook("saga-stuck"))
	}
	if len(found) > 0 {
		return found
	}
	return []Finding{Good("%d services, %d instances; no breaker is open, nothing is held up, given up or stuck", len(t.Services), instances)}
}

func seconds(n float64) time.Duration { return time.Duration(n) * time.Second }

// box judges the outbox of a service and what its consumers have given up.
func box(service string, o platform.OutboxState) (found []Finding) {
	if age := seconds(o.OldestSeconds); age > slow {
		found = append(found, Doubt("look whether the broker answers, and whether consumers fail", "%d events wait to be published, the oldest for %v", o.Waiting, age).About(service).Runbook("outbox-stalled"))
	}
	if o.Parked > 0 {
		found = append(found, Wrong("mend the cause, then retry them on the console", "%d events were refused by the broker and set aside", o.Parked).About(service).Runbook("outbox-parked"))
	}
	if o.DeadLetters > 0 {
		found = append(found, Wrong("mend the cause, then replay them on the console", "%d messages were given up by its consumers", o.DeadLetters).About(service).Runbook("dead-letters"))
	}
	return found
}

// String is a finding as a line or two for people.
func (f Finding) String() string {
	mark := map[Status]string{OK: "ok  ", Warn: "warn", Fail: "FAIL"}[f.Status]
	what := f.Check
	if f.Of != "" && !strings.HasPrefix(f.Of, "SHOP_") { // what to do has the variable's name
		what += " " + f.Of
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s  %-22s %s", mark, what, f.Found)
	var more []string
	if f.Do != "" {
		more = append(more, f.Do)
	}
	if f.See != "" {
		more = append(more, "see "+f.See)
	}
	if len(more) > 0 {
		fmt.Fprintf(&b, "\n%*s-> %s", 29, "", strings.Join(more, "; "))
	}
	return b.String()
}
