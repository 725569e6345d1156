// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// Names of the variables that set the flags of shop run where there is no shell to write them: in an image.
const (
	listenVar    = "SHOP_LISTEN"
	advertiseVar = "SHOP_ADVERTISE"
	instanceVar  = "SHOP_INSTANCE"
)

func healthCommand() *cobra.Command {
	var addr string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "health [SERVICE]",
		Short: "Ask whether the service on this machine is ready",
		Long: `Health asks /readyz of the service that listens on --listen, in the environment of shop run, and exits with 1 if it
is not ready. It is for the health checks of containers, whose image has neither a shell nor curl in it. SERVICE matters where
there is TLS: the gateway has its own certificate, or none.`,
		Example: `  SHOP_LISTEN=0.0.0.0:8080 shop health order`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkListen(cmd, addr); err != nil {
				return err
			}
			if timeout <= 0 {
				return usage(cmd, "--timeout is %v, want more than 0", timeout)
			}
			secure := os.Getenv(stack.TLSCertVar) != ""
			if len(args) == 1 {
				if err := stack.CheckService(args[0]); err != nil {
					return usage(cmd, "%w", err)
				}
				if args[0] == assembly.Gateway {
					secure = os.Getenv(stack.PublicTLSCertVar) != ""
				}
			}
			return health(cmd.Context(), addr, secure, timeout)
		},
	}
	cmd.Flags().StringVar(&addr, "listen", cmp.Or(os.Getenv(listenVar), "127.0.0.1:8080"), "address that the service listens on")
	cmd.Flags().DurationVar(&timeout, "timeout", 3*time.Second, "how long to wait for the answer")
	return cmd
}

func health(ctx context.Context, addr string, secure bool, timeout time.Duration) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return stack.CheckReady(ctx, net.JoinHostPort(host, port), secure)
}
