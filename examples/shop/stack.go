// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/logfile"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// envFile is what make stack writes into the data folder.
const envFile = "stack.env"

// stackOptions are those of the shop on real servers.
type stackOptions struct {
	envFile   string
	instances map[string]int
}

func (o *stackOptions) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.envFile, "env-file", "", "file of NAME=value lines for what the environment lacks (default stack.env in the --data folder, if it is there)")
	cmd.Flags().StringToIntVar(&o.instances, "instances", nil, "how many processes of a service, such as order=2,inventory=2; one of each otherwise")
}

// check refuses a number of processes for who is none.
func (o *stackOptions) check(cmd *cobra.Command, onServers bool) error {
	if len(o.instances) > 0 && !onServers {
		return usage(cmd, "--instances needs --stack: in one process there is one of each")
	}
	if o.envFile != "" && !onServers {
		return usage(cmd, "--env-file needs --stack: in one process there is nothing to set")
	}
	if err := stack.CheckInstances(o.instances); err != nil {
		return usage(cmd, "--%w", err)
	}
	return nil
}

// checkListen refuses what is no address before anything is done with it.
func checkListen(cmd *cobra.Command, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err == nil {
		_, err = net.DefaultResolver.LookupPort(cmd.Context(), "tcp", port)
	}
	if err != nil {
		return usage(cmd, "--listen is %q, want host:port, such as 127.0.0.1:8080", addr)
	}
	return nil
}

// getenv reads a setting from the environment, or else from the file.
func (o *stackOptions) getenv(data string) (func(name string) string, error) {
	path := o.envFile
	if path == "" {
		path = filepath.Join(data, envFile)
	}
	file, err := stack.ReadEnv(path)
	if err != nil && (o.envFile != "" || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	return func(name string) string {
		if value := os.Getenv(name); value != "" {
			return value
		}
		return file[name]
	}, nil
}

func upCommand() *cobra.Command {
	var o stackOptions
	var listen, data string
	var verbose, asJSON bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the shop on real servers, one process per service",
		Long: `Up starts one process per service on PostgreSQL, RabbitMQ, Redis and Consul, starts again what dies, and
drains all of them on Ctrl-C. "shop --stack" is the same. make stack starts the servers and writes the
settings to shop-data/stack.env; shop doctor --stack says whether all that is needed is there.

With --json it prints a line of JSON for each thing that happens: {"event": "started", "service": "order", "instance": "order-1",
"addr": "127.0.0.1:1234", "pid": 42} for each process that is up, {"event": "open", "url": "http://...", "ready_in_ms": 4000} once every service answers,
{"event": "ended", "service": ..., "instance": ..., "error": "...", "again_in_ms": 200} for one that died and is started again, and
{"event": "closed"} when all are drained. The log stays on standard error.`,
		Example: `  make stack && shop up --instances order=2,inventory=2,payment=2
  shop up --json | jq -r 'select(.event == "open").url'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkListen(cmd, listen); err != nil {
				return err
			}
			if err := o.check(cmd, true); err != nil {
				return err
			}
			return up(cmd, o, data, listen, logger(cmd.ErrOrStderr(), verbose), verbose, asJSON)
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&data, "data", "shop-data", "folder in which stack.env is looked for")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "address of the gateway; port 0 takes a free one")
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every request")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print what happens as lines of JSON")
	return cmd
}

func up(cmd *cobra.Command, o stackOptions, data, listen string, log *slog.Logger, verbose, asJSON bool) error {
	getenv, err := o.getenv(data)
	if err != nil {
		return err
	}
	env := os.Environ()
	if verbose {
		env = append(env, verboseVar+"=1")
	}
	out := cmd.OutOrStdout()
	told := lines{io.Discard}
	if asJSON {
		told.w, out = out, io.Discard
	}
	err = stack.Up(cmd.Context(), stack.UpConfig{
		Listen: listen, Instances: o.instances, Getenv: getenv, Env: env, Output: cmd.ErrOrStderr(), Log: log,
		Started: func(i stack.Instance, up, all int) {
			log.Info("started", "service", i.Service, "instance", i.Instance, "addr", i.Addr, "pid", i.PID, "up", fmt.Sprintf("%d of %d", up, all))
			told.tell(event{Event: "started", Instance: &i})
		},
		Ended: func(i stack.Instance, err error, again time.Duration) {
			e := event{Event: "ended", Instance: &i, AgainIn: again.Milliseconds()}
			if err != nil {
				e.Error = err.Error()
			}
			told.tell(e)
		},
		Ready: func(url string) {
			took := sinceStart()
			told.tell(event{Event: "open", URL: url, ReadyIn: took.Milliseconds()})
			fmt.Fprintf(out, "The shop is open: %s\nIt was ready after %.1f s.\n\nThe passwords of admin@shop.example and operator@shop.example are yours (%s, %s).\nThe interface is described at %s/openapi.yaml. Ctrl-C stops the shop.\n",
				url, took.Seconds(), stack.AdminPasswordVar, stack.OperatorPasswordVar, url)
		},
	})
	switch {
	case err == nil:
		told.tell(event{Event: "closed"})
	case getenv(stack.PostgresVar) == "": // then it is about the settings
		err = fmt.Errorf("%w\nmake stack starts the servers, and writes these settings to shop-data/%s", err, envFile)
	}
	return err
}

// event is something that happened to a shop, as a line of JSON.
type event struct {
	Event string `json:"event"`
	URL   string `json:"url,omitempty"`
	// ReadyIn is how long after the start of this process the shop was open.
	ReadyIn int64 `json:"ready_in_ms,omitempty"`
	// Accounts are those of the demo, which only the shop in one process has.
	Accounts []demoAccount `json:"accounts,omitempty"`
	*stack.Instance
	Error   string `json:"error,omitempty"`
	AgainIn int64  `json:"again_in_ms,omitempty"`
}

// lines are told to somebody's program. It is for use by many goroutines as far as w is: a line is one write.
type lines struct{ w io.Writer }

// demoAccount is one of the embedded shop's.
type demoAccount struct {
	Email    string `json:"email"`
	Password string `json:"password"`
	Role     string `json:"role"`
}

func (l lines) tell(what event) { _ = json.NewEncoder(l.w).Encode(what) }

// verboseVar tells the processes of the stack to log every request.
const verboseVar = "SHOP_VERBOSE"

// logFileVar names a file that shop run also logs to, for a process beside it that ships it: a line of JSON for each
// record, and for each request. In the name {instance} stands for the instance's, where several share a folder. The file and the one before it have logFileSize at most.
const (
	logFileVar  = "SHOP_LOG_FILE"
	logFileSize = 16 << 20
)

func runCommand() *cobra.Command {
	var instance, listen, advertise string
	var supervised bool
	cmd := &cobra.Command{
		Use:   "run SERVICE",
		Short: "Run one service on real servers, in this process",
		Long: `Run runs a single service, configured by its environment; the shop's README has the variables. It prints one
line of JSON that tells where it listens, registers itself with Consul, answers /livez, /readyz and /metrics, and on
SIGTERM drains: not ready, out of the registry, nothing new taken in, what is in hand finished, the outbox flushed.`,
		Example: `  SHOP_POSTGRES_DSN=... SHOP_RABBITMQ_URL=... SHOP_CONSUL_ADDR=... shop run inventory --instance inventory-2`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			service := args[0]
			if err := stack.CheckService(service); err != nil {
				return usage(cmd, "%w", err)
			}
			if !supervised { // who may hand a listener down
				if err := checkListen(cmd, listen); err != nil {
					return err
				}
			}
			settings, err := stack.Load(service, os.Getenv)
			if err != nil {
				return err
			}
			ln, shared, err := stack.Listen(cmd.Context(), listen)
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			defer func() { _ = ln.Close() }()
			if instance == "" {
				machine, _ := os.Hostname() // in containers all have the same process number
				instance = fmt.Sprintf("%s-%s-%d", service, machine, os.Getpid())
			}
			ctx := cmd.Context()
			var gate *platform.Gate
			if supervised {
				gate = platform.NewGate()
				ctx = untilEOF(ctx, cmd.InOrStdin(), gate)
			}
			log := logger(cmd.ErrOrStderr(), os.Getenv(verboseVar) != "")
			if path := os.Getenv(logFileVar); path != "" {
				file, err := logfile.Open(strings.ReplaceAll(path, "{instance}", instance), logFileSize)
				if err != nil {
					return fmt.Errorf("%s: %w", logFileVar, err)
				}
				defer func() { _ = file.Close() }()
				log = alsoTo(file, log)
			}
			slog.SetDefault(log)
			return stack.Run(ctx, stack.Process{
				Service: service, Instance: instance, Listener: ln, Shared: shared, Advertise: advertise, Settings: settings, Gate: gate, Log: log,
				Ready: func(addr string) {
					_ = json.NewEncoder(cmd.OutOrStdout()).Encode(stack.Instance{Service: service, Instance: instance, Addr: addr, PID: os.Getpid()})
				},
			})
		},
	}
	cmd.Flags().StringVar(&instance, "instance", os.Getenv(instanceVar), "name of this instance, unique within the service (default $"+instanceVar+", or else the service, the machine and the process's number)")
	cmd.Flags().StringVar(&listen, "listen", cmp.Or(os.Getenv(listenVar), "127.0.0.1:0"), "address to listen on, $"+listenVar+" if that is set; port 0 takes a free one")
	cmd.Flags().StringVar(&advertise, "advertise", os.Getenv(advertiseVar), "host or host:port that others reach it at, or host for the address of this machine's name (default $"+advertiseVar+", or else the address of --listen)")
	cmd.Flags().BoolVar(&supervised, "supervised", false, "also drain when standard input ends: the supervisor is gone")
	_ = cmd.Flags().MarkHidden("supervised")
	return cmd
}

// untilEOF returns a context that also ends when in does. Until then the gate is what in says.
func untilEOF(ctx context.Context, in io.Reader, gate *platform.Gate) context.Context {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		if err := stack.Obey(in, gate); err != nil {
			slog.Error("the supervisor is not understood", "error", err)
		}
		stop()
	}()
	return ctx
}
