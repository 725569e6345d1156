// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command shop is dovetail's reference shop: run it, order something, kill it in the
// middle, start it again, and see that nothing was lost and nothing was done twice.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/dovetail-go/dovetail/examples/shop/internal/check"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/load"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// started is when this process began, but for the runtime and the packages before this one.
var started = time.Now()

func sinceStart() time.Duration { return time.Since(started) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil && !errors.Is(err, errFound) {
		fmt.Fprintln(os.Stderr, "shop:", err)
	}
	os.Exit(exitCode(err))
}

// The exit codes of every command.
const (
	exitWrong = 1 // something is not as it must be, or could not be done
	exitUsage = 2 // the command was not understood, and nothing was done
)

func exitCode(err error) int {
	usage := (*usageError)(nil)
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return exitUsage
	}
	return exitWrong
}

// errFound says that a command ran well and found something wrong, which it has printed.
var errFound = errors.New("not as it must be")

// usageError says what is wrong with a command line, and where to look.
type usageError struct {
	err  error
	path string
}

func (e *usageError) Error() string { return fmt.Sprintf("%v; see %s --help", e.err, e.path) }
func (e *usageError) Unwrap() error { return e.err }

func usage(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...), cmd.CommandPath()}
}

// strict makes wrong flags and arguments of a command and all below it usage errors.
func strict(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%w", err) })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				if len(args) > 0 && cmd.HasSubCommands() {
					if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
						return usage(cmd, "%w, perhaps %s", err, strings.Join(near, " or "))
					}
				}
				return usage(cmd, "%w", err)
			}
			return nil
		}
	}
	for _, c := range cmd.Commands() {
		strict(c)
	}
}

func command() *cobra.Command {
	var cfg embedded.Config
	var verbose, onServers, asJSON bool
	var o stackOptions
	root := &cobra.Command{
		Use:   "shop",
		Short: "Dovetail's reference shop",
		Long: `Shop runs a whole e-commerce shop in this one process: gateway, customer, catalog, order, inventory, payment with a
simulated provider, shipping, notification and reporting, each a service with its own database.

Stop it with Ctrl-C, or kill it at any moment: started again on the same --data it resumes where
it was.

With --stack the same services run on PostgreSQL, RabbitMQ, Redis and Consul, each in a process of its own.

Every command ends with 0 if all is well, with 1 if something is wrong, and with 2 if it was not understood.

With --json it prints one line of JSON once it is open: {"event": "open", "url": "http://...", "ready_in_ms": 700, "accounts": [{"email": ...,
"password": ..., "role": ...}]}; with --stack those of shop up --json. The log stays on standard error.`,
		Example: `  shop doctor                            # can it run here?
  shop                                   # then open the printed address
  shop load --orders 2000                # in a second terminal: drive it
  shop chaos --for 1m                    # and in a third: break it
  shop check --data shop-data            # verify what must be true of its data`,
		Args: cobra.NoArgs,
		// Two letters may be wrong in the name of a command that is proposed.
		SuggestionsMinimumDistance: 2,

		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkListen(cmd, cfg.Listen); err != nil {
				return err
			}
			if err := o.check(cmd, onServers); err != nil {
				return err
			}
			if err := checkData(cmd, cfg.Data); err != nil {
				return err
			}
			if cfg.Packing < 0 {
				return usage(cmd, "--packing is %v, want 0 or more", cfg.Packing)
			}
			if onServers && cmd.Flags().Changed("packing") {
				return usage(cmd, "--packing cannot be chosen with --stack")
			}
			cfg.Log = logger(cmd.ErrOrStderr(), verbose)
			slog.SetDefault(cfg.Log)
			if onServers {
				return up(cmd, o, cfg.Data, cfg.Listen, cfg.Log, verbose, asJSON)
			}
			settings, err := stack.LoadEntrance(os.Getenv)
			if err != nil {
				return err
			}
			cfg.Issuer, cfg.TLSCert, cfg.TLSKey = settings.Issuer, settings.PublicTLSCert, settings.PublicTLSKey
			cfg.Ready = func(url string) { welcome(cmd.OutOrStdout(), url) }
			if asJSON {
				cfg.Ready = func(url string) {
					open := event{Event: "open", URL: url, ReadyIn: sinceStart().Milliseconds()}
					for _, a := range embedded.DemoAccounts {
						open.Accounts = append(open.Accounts, demoAccount{a.Email, a.Password, a.Role})
					}
					lines{cmd.OutOrStdout()}.tell(open)
				}
			}
			return embedded.Run(cmd.Context(), cfg)
		},
	}
	root.Flags().StringVar(&cfg.Data, "data", "shop-data", "folder of the databases, created if missing")
	root.Flags().StringVar(&cfg.Listen, "listen", "127.0.0.1:8080", "address of the gateway; port 0 takes a free one")
	root.Flags().DurationVar(&cfg.Packing, "packing", 15*time.Second, "how long a parcel takes to leave after the order is confirmed")
	root.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every request")
	root.Flags().BoolVar(&onServers, "stack", false, "run on real servers, one process per service, as shop up does")
	root.Flags().BoolVar(&asJSON, "json", false, "print what happens as lines of JSON")
	o.add(root)
	addLogFlag(root)
	root.AddCommand(upCommand(), runCommand(), healthCommand(), lambdaCommand(), loadCommand(), checkCommand(), chaosCommand(), doctorCommand(), completionCommand())
	root.SetHelpCommand(helpCommand())
	complete(root)
	strict(root)
	return root
}

func welcome(w io.Writer, url string) {
	fmt.Fprintf(w, "The shop is open: %s\nIt was ready after %.1f s.\n\nDemo accounts:\n", url, sinceStart().Seconds())
	for _, a := range embedded.DemoAccounts {
		fmt.Fprintf(w, "  %-22s %-20s %s\n", a.Email, a.Password, a.Role)
	}
	fmt.Fprintf(w, "\nThe operator's console is at %s/ops; the interface is described at %s/openapi.yaml. Ctrl-C stops the shop.\n", url, url)
}

// helpCommand is cobra's, but that it has not understood who asks for help with what there is not.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Explain a command",
		Long:    "Help explains a command, as its flag --help does.",
		Example: `  shop help load`,
		RunE: func(cmd *cobra.Command, args []string) error {
			about, left, err := cmd.Root().Find(args)
			if err != nil || len(left) > 0 {
				return usage(cmd.Root(), "there is no command %q", strings.Join(args, " "))
			}
			return about.Help()
		},
	}
}

// checkData refuses what is no name of a folder.
func checkData(cmd *cobra.Command, data string) error {
	if data == "" {
		return usage(cmd, "--data is empty, want a folder")
	}
	return nil
}

func loadCommand() *cobra.Command {
	var cfg load.Config
	var asJSON bool
	var reportFile string
	cmd := &cobra.Command{
		Use:   "load",
		Short: "Drive a running shop with a realistic mix of customers",
		Long: `Load signs customers up and lets them browse, order, pay in every way that the simulated provider
knows, cancel, and press the button twice. It goes on through outages: a request without an answer is made
again with the same Idempotency-Key. It exits with 1 if an accepted order did not end, if a repeated
request was answered differently, and if it did not come to its end: Ctrl-C prints the report of what was done until then.

The progress is shown where standard error is a terminal, the report is on standard output.

With --json, and in the file of --report, it is {"accepted": ["ID", ...], "ended": {"confirmed": 460, ...}, "unfinished": [], "left": [],
"refused": {"CODE": 1}, "repeats": 25, "mismatches": [], "retries": 0, "accept": {"p50_ns": ..., "p99_ns": ..., "max_ns": ...}, "finish": the same,
"elapsed_ns": ...}: "accept" is how long it took until an order was accepted, "finish" until it had ended.`,
		Example: `  shop load --orders 2000 --concurrency 16 --report load.json
  shop check --data shop-data --load load.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cfg.Orders < 1 {
				return usage(cmd, "--orders is %d, want 1 or more", cfg.Orders)
			}
			if cfg.Concurrency < 1 || cfg.Concurrency > 1000 {
				return usage(cmd, "--concurrency is %d, want 1 to 1000", cfg.Concurrency)
			}
			if cfg.Patience <= 0 {
				return usage(cmd, "--patience is %v, want more than 0", cfg.Patience)
			}
			var err error
			if cfg.URL, err = shopURL(cmd, cfg.URL); err != nil {
				return err
			}
			if reportFile != "" { // who drives a shop for an hour wants to know now
				if err := writable(reportFile); err != nil {
					return err
				}
			}
			progress := cmd.ErrOrStderr()
			seen := !asJSON && isTerminal(progress)
			bar := progressbar.NewOptions(cfg.Orders, progressbar.OptionSetWriter(progress), progressbar.OptionSetDescription("orders"),
				progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("orders"), progressbar.OptionThrottle(100*time.Millisecond),
				progressbar.OptionSetVisibility(seen))
			cfg.Progress = func() { _ = bar.Add(1) }
			cfg.Waiting = func(err error) {
				fmt.Fprintf(progress, "waiting for the shop at %s, for %v at most: %v\n", cfg.URL, cfg.Patience, err)
			}
			report, err := load.Run(cmd.Context(), cfg)
			if report == nil {
				return err
			}
			if seen {
				fmt.Fprintln(progress) // what follows has a line of its own
			}
			if asJSON {
				err = errors.Join(err, json.NewEncoder(cmd.OutOrStdout()).Encode(report))
			} else {
				printLoad(cmd.OutOrStdout(), report)
			}
			if reportFile != "" {
				err = errors.Join(err, writeReport(reportFile, report))
			}
			if err == nil && !report.OK() {
				err = errFound
			}
			return err
		},
	}
	cmd.Flags().StringVar(&cfg.URL, "addr", "http://127.0.0.1:8080", "URL of the shop")
	cmd.Flags().IntVar(&cfg.Orders, "orders", 500, "how many orders to place")
	cmd.Flags().IntVar(&cfg.Concurrency, "concurrency", 8, "how many customers are busy at once")
	cmd.Flags().DurationVar(&cfg.Patience, "patience", 2*time.Minute, "how long to wait for an answer, and for an order to end")
	cmd.Flags().StringVar(&reportFile, "report", "", "also write the report to this file, as JSON")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

// writable reports whether a file can be written, and leaves it as it was.
func writable(path string) error {
	_, err := os.Lstat(path)
	f, failed := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if failed != nil {
		return failed
	}
	failed = f.Close()
	if errors.Is(err, fs.ErrNotExist) {
		failed = errors.Join(failed, os.Remove(path))
	}
	return failed
}

func writeReport(path string, report *load.Report) error {
	body, err := json.Marshal(report)
	if err != nil {
		return err
	}
	return os.WriteFile(path, body, 0o600)
}

func printLoad(w io.Writer, r *load.Report) {
	orders := "orders"
	if len(r.Accepted) == 1 {
		orders = "order"
	}
	fmt.Fprintf(w, "%d %s accepted in %.1f s (%.0f a second), %d requests made again, %d sent twice\n",
		len(r.Accepted), orders, r.Elapsed.Seconds(), float64(len(r.Accepted))/max(r.Elapsed.Seconds(), 0.001), r.Retries, r.Repeats)
	for _, state := range slices.Sorted(maps.Keys(r.Ended)) {
		fmt.Fprintf(w, "  %-12s %d\n", state, r.Ended[state])
	}
	if n := len(r.Left); n > 0 {
		fmt.Fprintf(w, "  %-12s %d: nobody waited for their end\n", "left", n)
	}
	for _, code := range slices.Sorted(maps.Keys(r.Refused)) {
		fmt.Fprintf(w, "  refused at once: %-12s %d\n", code, r.Refused[code])
	}
	fmt.Fprintf(w, "until accepted: p50 %v, p99 %v, max %v\n", round(r.Accept.P50), round(r.Accept.P99), round(r.Accept.Max))
	fmt.Fprintf(w, "until ended:    p50 %v, p99 %v, max %v\n", round(r.Finish.P50), round(r.Finish.P99), round(r.Finish.Max))
	for _, id := range r.Unfinished {
		fmt.Fprintf(w, "NOT ENDED: order %s\n", id)
	}
	for _, m := range r.Mismatches {
		fmt.Fprintf(w, "ANSWERED DIFFERENTLY: %s\n", m)
	}
}

// shopURL is the URL of a shop as it was given on the command line, without a slash at the end.
func shopURL(cmd *cobra.Command, text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", usage(cmd, "--addr is %q, want a URL such as http://127.0.0.1:8080", text)
	}
	return strings.TrimRight(text, "/"), nil
}

// isTerminal reports whether somebody sees a progress bar: elsewhere it would be control characters in a file.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

func checkCommand() *cobra.Command {
	var data, loadFile string
	var onServers bool
	var o stackOptions
	var patience time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Verify the invariants from the databases",
		Long: `Check reads the databases of all services and verifies what must be true whatever happened to the
shop's processes. The shop may be running: check waits until it has come to rest. It exits with 1 if an invariant is broken,
and names what breaks it.

With --json it prints [{"number": 1, "name": "every accepted order ...", "ok": true, "checked": "400 orders ...", "violations": []}, ...]: one
for each invariant, by number.`,
		Example: `  shop check
  shop check --load load.json --wait 1m   # with what shop load --report load.json was promised
  shop check --stack --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkData(cmd, data); err != nil {
				return err
			}
			if patience < 0 {
				return usage(cmd, "--wait is %v, want 0 or more", patience)
			}
			if err := o.check(cmd, onServers); err != nil {
				return err
			}
			var promised load.Report
			if loadFile != "" {
				body, err := os.ReadFile(loadFile)
				if err != nil {
					return err
				}
				if err := json.Unmarshal(body, &promised); err != nil {
					return fmt.Errorf("%s: want a report written by shop load --report: %w", loadFile, err)
				}
				if promised.Accepted == nil {
					return fmt.Errorf("%s: want a report written by shop load --report: it says nothing of accepted orders", loadFile)
				}
			}
			open := check.Files(data)
			if onServers {
				getenv, err := o.getenv(data)
				if err != nil {
					return err
				}
				settings, err := stack.LoadDatabases(getenv)
				if err != nil {
					return err
				}
				open = settings.Look
			}
			waiting, stop := showWaiting(cmd.ErrOrStderr(), asJSON)
			invariants, err := check.Run(cmd.Context(), open, promised.Accepted, patience, waiting)
			stop()
			if env := filepath.Join(data, envFile); !onServers && errors.Is(err, fs.ErrNotExist) {
				if _, found := os.Stat(env); found == nil {
					err = fmt.Errorf("%w; %s is there, so try --stack, which checks the shop on real servers", err, env)
				}
			}
			if err != nil {
				return err
			}
			if asJSON {
				items := make([]check.Item, len(invariants))
				for n, i := range invariants {
					items[n] = i.Item()
				}
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(items)
			} else {
				printCheck(cmd.OutOrStdout(), invariants)
			}
			for _, i := range invariants {
				if !i.OK() {
					err = errors.Join(err, errFound)
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&data, "data", "shop-data", "folder of the shop's databases")
	cmd.Flags().BoolVar(&onServers, "stack", false, "check the databases of the shop on real servers")
	cmd.Flags().StringVar(&o.envFile, "env-file", "", "file of NAME=value lines for what the environment lacks (default stack.env in the --data folder, if it is there)")
	cmd.Flags().StringVar(&loadFile, "load", "", "report of shop load: each order accepted there must exist")
	cmd.Flags().DurationVar(&patience, "wait", 10*time.Second, "how long to wait for a running shop to come to rest")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// showWaiting shows on a terminal what a shop has not finished yet, until stop is called.
func showWaiting(w io.Writer, quiet bool) (waiting func([]check.Invariant), stop func()) {
	if quiet || !isTerminal(w) {
		return nil, func() {}
	}
	bar := progressbar.NewOptions(-1, progressbar.OptionSetWriter(w), progressbar.OptionSpinnerType(14), progressbar.OptionClearOnFinish())
	waiting = func(all []check.Invariant) {
		var first string
		n := 0
		for _, i := range all {
			if i.OK() {
				continue
			}
			if n++; n == 1 {
				first = i.Violations[0]
			}
		}
		bar.Describe(fmt.Sprintf("waiting for rest: %d of %d do not hold yet: %.80s", n, len(all), first))
		_ = bar.Add(1)
	}
	return waiting, func() { _ = bar.Finish() }
}

func printCheck(w io.Writer, invariants []check.Invariant) {
	for _, i := range invariants {
		mark := "ok  "
		if !i.OK() {
			mark = "FAIL"
		}
		fmt.Fprintf(w, "%s %d. %s (%s)\n", mark, i.Number, i.Name, i.Checked)
		for _, v := range i.Violations {
			fmt.Fprintf(w, "       %s\n", v)
		}
	}
}
