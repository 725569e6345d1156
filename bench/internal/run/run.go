// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Package run measures cases beside each other: all of them in one process, one after the
// other in every round, so that whatever else the machine does falls on all alike. What it
// reports are medians over the rounds, of processor time rather than of the clock where that is
// what a case costs.
package run

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Case is one thing to measure.
type Case struct {
	// Group names what is compared, Name who does it.
	Group, Name string
	// Bench is the benchmark. It is nil where Skip says why it cannot run here.
	Bench func(b *testing.B)
	// Skip says why the case cannot run here.
	Skip string
}

// Goal is a ratio to reach between two cases of a group.
type Goal struct {
	// What says it in words.
	What string
	// Group is the cases' group; Ours and Theirs are their names.
	Group, Ours, Theirs string
	// Most is the most that Ours may cost as a share of Theirs, in processor time.
	Most float64
	// Allocs is the most allocations that Ours may make; negative means any number.
	Allocs int64
	// Why explains, if the goal is missed.
	Why string
}

// Result is what a case cost, per operation.
type Result struct {
	Case
	// Wall and CPU are medians, Low and High the fastest and the slowest round's CPU.
	Wall, CPU, Low, High time.Duration
	cpu                  float64 // nanoseconds, with fractions
	wall                 float64
	// Allocs and Bytes are those of the last round.
	Allocs, Bytes int64
}

// Suite is a set of cases and what they must show.
type Suite struct {
	Title string
	Cases []Case
	Goals []Goal
}

// Run measures the cases of a suite in so many rounds of about d each, and writes every
// measurement to w in the format that benchstat reads.
func (s Suite) Run(w io.Writer, rounds int, d time.Duration) ([]Result, error) {
	testing.Init()
	if err := flag.Set("test.benchtime", d.String()); err != nil {
		return nil, err
	}
	type sample struct{ wall, cpu float64 }
	samples := make([][]sample, len(s.Cases))
	results := make([]Result, len(s.Cases))
	for range rounds {
		for i, c := range s.Cases {
			results[i].Case = c
			if c.Bench == nil {
				continue
			}
			runtime.GC()
			var cpu time.Duration
			r := testing.Benchmark(func(b *testing.B) {
				b.ReportAllocs()
				before := processorTime()
				c.Bench(b)
				cpu = processorTime() - before
			})
			if r.N == 0 {
				return nil, fmt.Errorf("%s/%s failed", c.Group, c.Name)
			}
			one := sample{float64(r.T.Nanoseconds()) / float64(r.N), float64(cpu.Nanoseconds()) / float64(r.N)}
			samples[i] = append(samples[i], one)
			results[i].Allocs, results[i].Bytes = r.AllocsPerOp(), r.AllocedBytesPerOp()
			fmt.Fprintf(w, "Benchmark%s/%s\t%d\t%.2f ns/op\t%.2f cpu-ns/op\t%d B/op\t%d allocs/op\n",
				c.Group, c.Name, r.N, one.wall, one.cpu, r.AllocedBytesPerOp(), r.AllocsPerOp())
		}
	}
	for i := range results {
		if len(samples[i]) == 0 {
			continue
		}
		slices.SortFunc(samples[i], func(a, b sample) int { return cmp.Compare(a.cpu, b.cpu) })
		middle := samples[i][len(samples[i])/2]
		results[i].cpu, results[i].wall = middle.cpu, middle.wall
		results[i].CPU, results[i].Wall = time.Duration(middle.cpu), time.Duration(middle.wall)
		results[i].Low, results[i].High = time.Duration(samples[i][0].cpu), time.Duration(samples[i][len(samples[i])-1].cpu)
	}
	return results, nil
}

// processorTime is what this process has used so far, in user and kernel mode, garbage
// collection included.
func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Report writes the results as Markdown: a table per group, then the goals.
func (s Suite) Report(w io.Writer, results []Result) {
	fmt.Fprintf(w, "## %s\n\n", s.Title)
	byName := map[string]Result{}
	group := ""
	for _, r := range results {
		byName[r.Group+"/"+r.Name] = r
		if r.Group != group {
			group = r.Group
			fmt.Fprintf(w, "\n### %s\n\n| | CPU ns | wall ns | allocs | bytes |\n| --- | ---: | ---: | ---: | ---: |\n", group)
		}
		if r.Bench == nil {
			fmt.Fprintf(w, "| %s | not run: %s | | | |\n", r.Name, r.Skip)
			continue
		}
		fmt.Fprintf(w, "| %s | %s | %s | %d | %d |\n", r.Name, number(r.cpu), number(r.wall), r.Allocs, r.Bytes)
	}
	fmt.Fprint(w, "\n### Goals\n\n| goal | ours | theirs | ratio | allocs | |\n| --- | ---: | ---: | ---: | ---: | --- |\n")
	for _, g := range s.Goals {
		ours, theirs := byName[g.Group+"/"+g.Ours], byName[g.Group+"/"+g.Theirs]
		if ours.Bench == nil || theirs.Bench == nil {
			fmt.Fprintf(w, "| %s | | | | | not run |\n", g.What)
			continue
		}
		ratio := ours.cpu / theirs.cpu
		verdict := "reached"
		if ratio > g.Most || g.Allocs >= 0 && ours.Allocs > g.Allocs {
			verdict = strings.TrimSpace("**missed** " + g.Why)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %.2f | %d | %s |\n", g.What, number(ours.cpu), number(theirs.cpu), ratio, ours.Allocs, verdict)
	}
	fmt.Fprintln(w)
}

func number(ns float64) string {
	if ns < 100 {
		return fmt.Sprintf("%.1f", ns)
	}
	return fmt.Sprintf("%.0f", ns)
}

// Versions lists the modules that this program is built from, of the given paths.
func Versions(paths ...string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var out []string
	for _, d := range info.Deps {
		if slices.Contains(paths, d.Path) {
			out = append(out, d.Path+" "+d.Version)
		}
	}
	return strings.Join(out, ", ")
}
