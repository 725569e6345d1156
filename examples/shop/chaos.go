// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

func chaosCommand() *cobra.Command {
	var storm chaos.Storm
	var o stackOptions
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "chaos",
		Short: "Break a running shop on purpose, for a while",
		Long: `Chaos brings random faults upon a running shop, embedded or on servers: services are slowed down, made to fail, stopped
and killed, the payment provider has its moods, the broker is cut off, messages come twice and overtake each other. Many are
in force at once, each ends by itself, and all are over when the time is. Every kind comes up once before any comes again.

It prints what happened when, and the seed: with the same --seed the same happens again. It needs an operator's password, from
` + stack.OperatorPasswordVar + ` in the environment or in --env-file, or else the demo operator's. Customers should be there meanwhile, and
afterwards everything must be as if nothing had happened: see shop load and shop check.

It exits with 1 if a fault could not be brought about, or did not end, and if Ctrl-C called it off: what is in force ends then too.

With --json it prints {"seed": 42, "seconds": 60, "strikes": [{"at": 0.7, "id": "...", "kind": "latency", "service": "order", "amount": 950, "seconds": 8.5},
...], "kinds": {"latency": 3, ...}, "left": []}: "error" in a strike says why it did not begin, "left" names what did not end.`,
		Example: `  shop load --orders 5000 --report load.json &
  shop chaos --for 2m
  wait; shop check --load load.json --wait 1m

  shop chaos --for 30s --kinds kill,pause --seed 42`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if storm.For < time.Second {
				return usage(cmd, "--for is %v, want 1s or more", storm.For)
			}
			if storm.Patience <= 0 {
				return usage(cmd, "--patience is %v, want more than 0", storm.Patience)
			}
			for _, k := range storm.Kinds {
				if !slices.Contains(chaos.Names(), k) {
					return usage(cmd, "--kinds: there is no fault %q, want some of %s", k, strings.Join(chaos.Names(), ","))
				}
			}
			getenv, err := o.getenv(data)
			if err != nil {
				return err
			}
			if password := getenv(stack.OperatorPasswordVar); password != "" {
				storm.Passwords = append(storm.Passwords, password)
			}
			for _, a := range embedded.DemoAccounts {
				if a.Email == storm.Email {
					storm.Passwords = append(storm.Passwords, a.Password)
				}
			}
			if len(storm.Passwords) == 0 {
				return usage(cmd, "the password of %s is not known, want %s in the environment", storm.Email, stack.OperatorPasswordVar)
			}
			if !cmd.Flags().Changed("seed") {
				storm.Seed = rand.Uint64N(1 << 32) // so that it can be typed
			}
			if storm.URL, err = shopURL(cmd, storm.URL); err != nil {
				return err
			}
			storm.Waiting = func(err error) {
				fmt.Fprintf(cmd.ErrOrStderr(), "waiting for the shop at %s, for %v at most: %v\n", storm.URL, storm.Patience, err)
			}
			stop, told := showStorm(cmd, &storm, asJSON)
			report, err := storm.Rage(cmd.Context())
			stop()
			if report == nil {
				return err
			}
			if asJSON {
				err = errors.Join(err, json.NewEncoder(cmd.OutOrStdout()).Encode(report))
			} else {
				if !told {
					for _, s := range report.Strikes {
						fmt.Fprintln(cmd.OutOrStdout(), s)
					}
				}
				printStorm(cmd.OutOrStdout(), report)
			}
			if err == nil && !report.OK() {
				err = errFound
			}
			return err
		},
	}
	cmd.Flags().StringVar(&storm.URL, "addr", "http://127.0.0.1:8080", "URL of the shop")
	cmd.Flags().DurationVar(&storm.For, "for", time.Minute, "how long it goes on")
	cmd.Flags().DurationVar(&storm.Patience, "patience", time.Minute, "how long to wait for the shop to answer before it begins")
	cmd.Flags().StringSliceVar(&storm.Kinds, "kinds", nil, "the kinds of faults, separated by commas (default all): "+strings.Join(chaos.Names(), ", "))
	cmd.Flags().Uint64Var(&storm.Seed, "seed", 0, "what happens and when; the same seed brings the same again (default a random one, which is printed)")
	cmd.Flags().StringVar(&storm.Email, "operator", "operator@shop.example", "address of the operator's account")
	cmd.Flags().StringVar(&o.envFile, "env-file", "", "file of NAME=value lines for what the environment lacks (default stack.env in the --data folder, if it is there)")
	cmd.Flags().StringVar(&data, "data", "shop-data", "folder in which stack.env is looked for")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

// showStorm shows how a storm goes on, until the returned function is called: by a bar on a terminal, or else by each
// fault in a line of its own when it has begun, which are told then.
func showStorm(cmd *cobra.Command, storm *chaos.Storm, quiet bool) (stop func(), told bool) {
	if quiet {
		return func() {}, false
	}
	w := cmd.ErrOrStderr()
	fmt.Fprintf(w, "seed %d\n", storm.Seed)
	if !isTerminal(w) {
		storm.Struck = func(s chaos.Strike) { fmt.Fprintln(cmd.OutOrStdout(), s) }
		return func() {}, true
	}
	bar := progressbar.NewOptions(int(storm.For.Seconds()), progressbar.OptionSetWriter(w), progressbar.OptionSetDescription("0 faults"),
		progressbar.OptionSetPredictTime(false), progressbar.OptionClearOnFinish())
	var faults atomic.Int64
	storm.Struck = func(s chaos.Strike) {
		bar.Describe(fmt.Sprintf("%d faults, the last: %s %s", faults.Add(1), s.Kind, s.Service))
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				_ = bar.Finish()
				return
			case <-tick.C:
				_ = bar.Add(1)
			}
		}
	}()
	return func() { close(done); <-ended }, false
}

func printStorm(w io.Writer, r *chaos.StormReport) {
	fmt.Fprintf(w, "%d faults in %.0f s, seed %d:", len(r.Strikes), r.Seconds, r.Seed)
	for _, k := range chaos.Names() {
		if n := r.Kinds[k]; n > 0 {
			fmt.Fprintf(w, " %d %s", n, k)
		}
	}
	fmt.Fprintln(w)
	for _, left := range r.Left {
		fmt.Fprintf(w, "DID NOT END: %s\n", left)
	}
}
