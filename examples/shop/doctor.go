// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/doctor"
	"github.com/dovetail-go/dovetail/examples/shop/internal/embedded"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

func doctorCommand() *cobra.Command {
	var data, listen string
	var onServers, asJSON bool
	var o stackOptions
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether the shop can run here, and how the running one does",
		Long: `Doctor looks at what the shop needs, and changes nothing: the data folder, its locks and room, the address to listen on, limits
and clocks; with --stack the settings, the certificates and the servers, their versions and the tables in them. If the shop
runs already it also asks how that does: services that are not ready, open breakers, events that are held up on
their way out or in, messages that were given up, sagas that are stuck, and where to read on.

Each line is ok, warn (it works, but not well or not for long) or FAIL (it does not work, or waits for you), with what was found and what to do. All
questions are asked at once. No secret is ever shown. It exits with 1 if something failed.

With --json it prints {"ok": false, "findings": [{"check": "redis", "of": "SHOP_REDIS_URL", "status": "fail", "found": "...",
"do": "...", "see": "docs/..."}]}: "of", "do" and "see" may be missing, "status" is ok, warn or fail.`,
		Example: `  shop doctor                            # before the first shop, and beside one that runs
  shop doctor --stack --instances order=2 # with the settings that shop up would use
  shop doctor --json | jq -e .ok`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if timeout <= 0 {
				return usage(cmd, "--timeout is %v, want more than 0", timeout)
			}
			if err := checkListen(cmd, listen); err != nil {
				return err
			}
			if err := o.check(cmd, onServers); err != nil {
				return err
			}
			if err := checkData(cmd, data); err != nil {
				return err
			}
			var checks []doctor.Check
			var secrets []string
			if onServers {
				getenv, err := o.getenv(data)
				if err != nil {
					return err
				}
				checks, secrets = stack.Checks(getenv, listen, o.instances)
			} else {
				entrance, secure := stack.ChecksOfEntrance(os.Getenv)
				checks = append(entrance, embedded.Checks(data, listen, secure)...)
			}
			out := cmd.OutOrStdout()
			tell := func(f doctor.Finding) { fmt.Fprintln(out, f) }
			if asJSON {
				tell = nil
			}
			report := doctor.Run(cmd.Context(), checks, timeout, secrets, tell)
			if asJSON {
				if err := json.NewEncoder(out).Encode(report); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(out, "\n%d ok, %d to look at, %d failed\n", report.Count(doctor.OK), report.Count(doctor.Warn), report.Count(doctor.Fail))
			}
			if !report.OK {
				return errFound
			}
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&data, "data", "shop-data", "folder of the databases; with --stack the one in which stack.env is looked for")
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:8080", "address of the gateway")
	cmd.Flags().BoolVar(&onServers, "stack", false, "look at the shop on real servers")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long each question may take")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}
