// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/otelkit"
)

// logVar names the form of the log, for this process and those that it starts.
const logVar = "SHOP_LOG"

// addLogFlag lets every command choose the form of its log.
func addLogFlag(root *cobra.Command) {
	var form string
	root.PersistentFlags().StringVar(&form, "log", cmp.Or(os.Getenv(logVar), "text"), "form of the log: text, or json with the trace and the order of each line")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if form != "text" && form != "json" {
			return usage(cmd, "--log is %q, want text or json", form)
		}
		return os.Setenv(logVar, form)
	}
}

// logger writes the log in the chosen form.
func logger(w io.Writer, verbose bool) *slog.Logger {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if verbose {
		options.Level = slog.LevelDebug
	}
	if os.Getenv(logVar) == "json" {
		return slog.New(correlated(slog.NewJSONHandler(w, options)))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

// alsoTo returns log with a copy of each line in w as JSON, the access log among them, which is too much for a terminal.
func alsoTo(w io.Writer, log *slog.Logger) *slog.Logger {
	all := slog.NewJSONHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})
	return slog.New(slog.NewMultiHandler(log.Handler(), correlated(all)))
}

// correlated has each line say which trace and which order it is about.
func correlated(h slog.Handler) slog.Handler { return otelkit.LogHandler(h, platform.OrderMember) }
