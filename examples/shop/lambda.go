// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/spf13/cobra"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
	"github.com/dovetail-go/dovetail/examples/shop/internal/serverless"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

func lambdaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "lambda SERVICE",
		Short: "Run one service as an AWS Lambda function",
		Long: `Lambda serves the HTTP side of a service as an AWS Lambda function behind API Gateway, a function URL or a load
balancer, configured by its environment as shop run is. Its background work is not done here: relays, sagas and consumers need a
process that lives, so run shop run SERVICE too for every service with a database. The gateway has none.`,
		Example: `  shop lambda gateway       # the entry point of a function's image`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			service := args[0]
			if err := stack.CheckService(service); err != nil {
				return usage(cmd, "%w", err)
			}
			settings, err := stack.Load(service, os.Getenv)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), nil)) // CloudWatch reads it
			slog.SetDefault(log)
			instance := "lambda"
			if stream := os.Getenv("AWS_LAMBDA_LOG_STREAM_NAME"); stream != "" {
				instance = stream
			}
			return stack.Run(cmd.Context(), stack.Process{
				Service: service, Instance: instance, Settings: settings, Log: log,
				Serve: func(ctx context.Context, h http.Handler) error { return serveLambda(ctx, h, log) },
			})
		},
	}
}

// serveLambda answers events until ctx ends.
func serveLambda(ctx context.Context, h http.Handler, log *slog.Logger) error {
	f, err := serverless.New(http.MaxBytesHandler(h, platform.MaxBody), serverless.Config{
		Draining: platform.WithDraining, Log: log,
		Refuse: func(w http.ResponseWriter, status int, detail string) {
			platform.WriteProblem(w, &platform.Error{Status: status, Code: refusals[status], Detail: detail})
		},
	})
	if err != nil {
		return err
	}
	go lambda.StartWithOptions(f, lambda.WithContext(context.WithoutCancel(ctx))) // it returns with the process only
	<-ctx.Done()
	return nil
}

var refusals = map[int]string{
	http.StatusBadRequest: "bad-request", http.StatusInternalServerError: "internal", http.StatusGatewayTimeout: "timeout",
}
