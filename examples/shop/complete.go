// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/chaos"
)

func completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print what teaches your shell to complete this command",
		Long: `Completion prints a script for bash, zsh, fish or powershell. Loaded into the shell, it completes commands, flags and what
follows them: services, faults, files. Bash needs its package bash-completion, zsh "autoload -U compinit; compinit".`,
		Example: `  source <(shop completion bash)          # in this shell; in ~/.bashrc for all
  shop completion zsh > "${fpath[1]}/_shop"
  shop completion fish > ~/.config/fish/completions/shop.fish`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			}
			return root.GenPowerShellCompletionWithDesc(out)
		},
	}
}

// complete teaches the shell what can follow: "shop completion --help" says how it is asked.
func complete(root *cobra.Command) {
	services := append(slices.Clone(assembly.Backends), assembly.Gateway)
	for _, cmd := range append(root.Commands(), root) {
		switch {
		case slices.Contains([]string{"run", "health", "lambda"}, cmd.Name()):
			cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				if len(args) > 0 {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return services, cobra.ShellCompDirectiveNoFileComp
			}
		case cmd.ValidArgsFunction == nil && cmd.ValidArgs == nil:
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
		for flag, values := range map[string]cobra.CompletionFunc{
			"kinds":     list(chaos.Names(), ""),
			"instances": list(services, "="),
			"timeout":   fixed("5s", "30s"),
			"log":       fixed("text", "json"),
			"addr":      fixed("http://127.0.0.1:8080"),
			"listen":    fixed("127.0.0.1:8080", "127.0.0.1:0"),
			"for":       fixed("30s", "1m", "3m", "20m"),
			"wait":      fixed("10s", "1m"),
			"patience":  fixed("2m", "10m"),
			"seed":      cobra.NoFileCompletions,
			"operator":  fixed("operator@shop.example"),
		} {
			if cmd.Flags().Lookup(flag) != nil || cmd == root && cmd.PersistentFlags().Lookup(flag) != nil {
				_ = cmd.RegisterFlagCompletionFunc(flag, values) // it fails only for a flag that is not there
			}
		}
		if cmd.Flags().Lookup("data") != nil {
			_ = cmd.MarkFlagDirname("data")
		}
	}
}

func fixed(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// list completes the last of several values between commas, each of them once.
func list(values []string, suffix string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		before, _ := typed[:strings.LastIndexByte(typed, ',')+1], typed
		given := strings.Split(before, ",")
		var out []string
		for _, v := range values {
			if !slices.ContainsFunc(given, func(g string) bool { name, _, _ := strings.Cut(g, "="); return name == v }) {
				out = append(out, before+v+suffix)
			}
		}
		directive := cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		return out, directive
	}
}
