// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"sync"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// traceView is one trace, put together from what every instance of every service kept of it.
type traceView struct {
	TraceID string          `json:"trace_id"`
	Spans   []platform.Span `json:"spans"`
}

var traceID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// traces shows one trace, or all that an order took part in. A span of another trace that only links to
// one, as that of a batch does, is shown with it.
func (s *Service) traces(w http.ResponseWriter, r *http.Request) error {
	order, id := r.URL.Query().Get("order"), r.URL.Query().Get("trace")
	switch {
	case (order == "") == (id == ""):
		return platform.Invalid("order", "give an order or a trace, and not both: ?order=ID or ?trace=ID")
	case id != "" && !traceID.MatchString(id):
		return platform.Invalid("trace", "is %q, want 32 hexadecimal digits", id)
	}
	wanted := []string{id}
	if order != "" {
		wanted = nil
		for _, found := range s.askSpans(r.Context(), url.Values{"order": {order}}) {
			wanted = append(wanted, found.Traces...)
		}
		slices.Sort(wanted)
		wanted = slices.Compact(wanted)
	}
	items := []traceView{}
	if len(wanted) > 0 {
		var spans []platform.Span
		for _, found := range s.askSpans(r.Context(), url.Values{"trace": wanted}) {
			spans = append(spans, found.Spans...)
		}
		items = together(wanted, spans)
	}
	return platform.WriteJSON(w, http.StatusOK, map[string]any{"items": items})
}

// together makes traces of spans, those with the earliest beginning first, and leaves out what nobody knew.
func together(wanted []string, spans []platform.Span) []traceView {
	slices.SortFunc(spans, func(a, b platform.Span) int {
		return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.SpanID, b.SpanID))
	})
	items := []traceView{}
	for _, id := range wanted {
		item := traceView{TraceID: id}
		for _, span := range spans {
			if span.TraceID == id || slices.ContainsFunc(span.Links, func(l platform.SpanLink) bool { return l.TraceID == id }) {
				item.Spans = append(item.Spans, span)
			}
		}
		if len(item.Spans) > 0 {
			items = append(items, item)
		}
	}
	slices.SortStableFunc(items, func(a, b traceView) int { return a.Spans[0].Start.Compare(b.Spans[0].Start) })
	return items
}

// askSpans asks every instance of every service, this one too. Who does not answer in time has nothing to say.
func (s *Service) askSpans(ctx context.Context, query url.Values) []platform.FoundSpans {
	type target struct{ service, addr string }
	var targets []target
	known := s.env.Caller.Known()
	for _, service := range append([]string{s.env.Name}, s.services...) {
		if len(known[service]) == 0 && service != s.env.Name {
			targets = append(targets, target{service, ""}) // any that there is
		}
		for _, in := range known[service] {
			targets = append(targets, target{service, in.Addr})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, partBudget)
	defer cancel()
	answers := make([]platform.FoundSpans, len(targets)+1)
	var asking sync.WaitGroup
	for i, t := range targets {
		asking.Go(func() {
			var found platform.FoundSpans
			if s.env.Caller.Ask(ctx, t.service, t.addr, "/ops/spans?"+query.Encode(), &found) == nil {
				answers[i] = found
			}
		})
	}
	asking.Wait()
	if s.env.Telemetry != nil {
		answers[len(targets)] = s.env.Telemetry.Spans.Look(query.Get("order"), query["trace"])
	}
	return distinct(answers)
}

// distinct leaves out spans that were told twice: an instance of the gateway may have asked itself.
func distinct(answers []platform.FoundSpans) []platform.FoundSpans {
	seen := map[string]bool{}
	for i := range answers {
		answers[i].Spans = slices.DeleteFunc(answers[i].Spans, func(span platform.Span) bool {
			again := seen[span.SpanID]
			seen[span.SpanID] = true
			return again
		})
	}
	return answers
}
