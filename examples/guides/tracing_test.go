// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package guides

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/messaging/messagingmem"
	"github.com/dovetail-go/dovetail/otelkit"
)

// snippet: tracing/before
func oldService(mux *http.ServeMux, log io.Writer) (http.Handler, *slog.Logger) {
	return mux, slog.New(slog.NewJSONHandler(log, nil)) // which of a thousand requests wrote this line?
}

// end

// snippet: tracing/after
type Traced struct {
	Handler http.Handler
	Client  *http.Client
	Publish messaging.Publisher
	Hear    messaging.Middleware
	Log     *slog.Logger
}

// newTraced has what a service does in spans. The provider is OpenTelemetry's: it decides where they go, and which are kept.
func newTraced(provider *trace.TracerProvider, mux *http.ServeMux, broker messaging.Publisher, log io.Writer) (*Traced, error) {
	kit, err := otelkit.New(otelkit.Config{TracerProvider: provider, MessagingSystem: "rabbitmq"})
	if err != nil {
		return nil, err
	}
	return &Traced{
		Handler: kit.Server()(otelkit.Routes(mux)),                             // continues the caller's trace
		Client:  &http.Client{Transport: kit.Transport(http.DefaultTransport)}, // and tells it to who is called
		Publish: kit.Publisher(broker),                                         // the message carries it
		Hear:    kit.Consumer(),                                                // and its consumer goes on with it
		Log:     slog.New(otelkit.LogHandler(slog.NewJSONHandler(log, nil))),
	}, nil
}

// end

func TestTracing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		broker, err := messagingmem.New(messagingmem.Config{})
		if err != nil {
			t.Fatal(err)
		}
		mails := messaging.Subscription{Group: "mails", Topics: []string{"order.*"}}
		if err := broker.Declare(t.Context(), mails); err != nil {
			t.Fatal(err)
		}
		mux := http.NewServeMux()
		provider := trace.NewTracerProvider()
		traced, err := newTraced(provider, mux, broker, &log)
		if err != nil {
			t.Fatal(err)
		}
		mux.HandleFunc("POST /orders", func(w http.ResponseWriter, r *http.Request) {
			traced.Log.InfoContext(r.Context(), "ordered")
			if err := traced.Publish.Publish(r.Context(), &messaging.Message{ID: "m-1", Topic: "order.placed"}); err != nil {
				t.Error(err)
			}
			w.WriteHeader(http.StatusAccepted)
		})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			mail := messaging.HandlerFunc(func(ctx context.Context, _ *messaging.Delivery) error {
				traced.Log.InfoContext(ctx, "written to")
				return nil
			})
			ended <- broker.Subscribe(ctx, mails, messaging.Chain(mail, traced.Hear))
		}()
		synctest.Wait()
		traced.Handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodPost, "/orders", nil))
		time.Sleep(time.Second)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		var ids []string
		for line := range bytes.Lines(log.Bytes()) {
			var said struct {
				ID string `json:"trace_id"`
			}
			if err := json.Unmarshal(line, &said); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, said.ID)
		}
		if len(ids) != 2 || ids[0] != ids[1] || ids[0] == "" {
			t.Errorf("the lines are of the traces %q, want both of one", ids)
		}
		if _, plain := oldService(mux, io.Discard); plain == nil || traced.Client.Transport == nil {
			t.Error("something is missing")
		}
	})
}
