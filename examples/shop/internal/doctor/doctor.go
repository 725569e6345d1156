// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package doctor looks at what a shop stands on and at how it does: a list of checks, each of which finds
// something that is well, doubtful or wrong, and says what to do about it. A check changes nothing.
package doctor

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Status is how something is.
type Status string

// What a finding can be.
const (
	OK   Status = "ok"
	Warn Status = "warn" // it works, but not as it should or not for long
	Fail Status = "fail" // it does not work
)

// Finding is one thing that a check found. Its JSON is stable: fields are added, never renamed, and the same goes
// for the names of checks.
type Finding struct {
	// Check is the name of the check, and Of what in particular it is about: a service, or a variable. Of may be empty.
	Check string `json:"check"`
	Of    string `json:"of,omitempty"`
	// Status says how that is, Found what was seen, without any secret.
	Status Status `json:"status"`
	Found  string `json:"found"`
	// Do says what to do, See in which file of the repository more is written. Both are empty where all is well.
	Do  string `json:"do,omitempty"`
	See string `json:"see,omitempty"`
}

// Good finds that something is as it should be.
func Good(format string, args ...any) Finding {
	return Finding{Status: OK, Found: fmt.Sprintf(format, args...)}
}

// Doubt finds what works, but not as it should or not for long.
func Doubt(do, format string, args ...any) Finding {
	return Finding{Status: Warn, Found: fmt.Sprintf(format, args...), Do: do}
}

// Wrong finds what does not work.
func Wrong(do, format string, args ...any) Finding {
	return Finding{Status: Fail, Found: fmt.Sprintf(format, args...), Do: do}
}

// About says what in particular a finding is about.
func (f Finding) About(what string) Finding { f.Of = what; return f }

// Runbook says in which of the runbooks more is written.
func (f Finding) Runbook(name string) Finding { f.See = "docs/runbooks/" + name + ".md"; return f }

// Check is one question to the surroundings. Its Look is called once, in a goroutine of its own; it
// may find several things, or none if the question does not arise.
type Check struct {
	Name string
	Look func(ctx context.Context) []Finding
}

// One is a check that finds one thing.
func One(name string, look func(ctx context.Context) Finding) Check {
	return Check{name, func(ctx context.Context) []Finding { return []Finding{look(ctx)} }}
}

// Report is what all checks found.
type Report struct {
	// OK is false if something failed. Doubts leave it true.
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}

// Count returns how many findings have a status.
func (r Report) Count(s Status) (n int) {
	for _, f := range r.Findings {
		if f.Status == s {
			n++
		}
	}
	return n
}

// Run makes all checks at once, each for at most timeout, and tells of what they find in the order of the checks,
// as soon as it is their turn. One that has no answer by then has failed, whatever it is stuck in. No finding shows
// any of the secrets. Tell may be nil.
func Run(ctx context.Context, checks []Check, timeout time.Duration, secrets []string, tell func(Finding)) Report {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	found := make([]chan []Finding, len(checks))
	for i, c := range checks {
		found[i] = make(chan []Finding, 1) // one that comes too late goes nowhere
		go func() { found[i] <- c.Look(ctx) }()
	}
	report := Report{OK: true, Findings: []Finding{}}
	for i, c := range checks {
		for _, f := range wait(ctx, found[i], timeout) {
			f.Check = c.Name
			f.Found = hide(f.Found, secrets)
			report.OK = report.OK && f.Status != Fail
			report.Findings = append(report.Findings, f)
			if tell != nil {
				tell(f)
			}
		}
	}
	return report
}

// dally is how much longer a check may take than its context, to say why it has no answer.
const dally = 500 * time.Millisecond

func wait(ctx context.Context, found <-chan []Finding, timeout time.Duration) []Finding {
	select {
	case all := <-found:
		return all
	case <-ctx.Done():
	}
	select {
	case all := <-found:
		return all
	case <-time.After(dally):
		return []Finding{Wrong("look at what it asks, or give it longer with --timeout", "no answer within %v", timeout)}
	}
}

// hide takes secrets out of a text: errors of clients quote what they were given.
func hide(text string, secrets []string) string {
	for _, s := range secrets {
		if len(s) >= 4 { // less is no secret, and may be in any word
			text = strings.ReplaceAll(text, s, "…")
		}
	}
	return text
}
