// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/dovetail-go/dovetail/breaker"
	"github.com/dovetail-go/dovetail/consulkit"
)

// The threshold of a breaker follows a key. What the breaker refuses is logged, and the value
// before it stays in force.
func ExampleNewSetting() {
	client, err := consulkit.New(&api.Config{Address: "127.0.0.1:8500"})
	if err != nil {
		log.Fatal(err)
	}
	payments, err := breaker.New(breaker.Config{Name: "payments"})
	if err != nil {
		log.Fatal(err)
	}
	type limits struct {
		FailureRate float64 `json:"failure_rate"`
		OpenMS      int     `json:"open_ms"`
	}
	setting, err := consulkit.NewSetting(client, "order/payments", func(l limits) error {
		return payments.Reconfigure(breaker.Config{
			Name: "payments", FailureRate: l.FailureRate, OpenFor: time.Duration(l.OpenMS) * time.Millisecond,
		})
	}, consulkit.SettingConfig[limits]{})
	if err != nil {
		log.Fatal(err)
	}
	_ = setting.Run(context.Background())
}

// One of many processes writes the report. The token keeps a process that was stopped for
// longer than its session lives from overwriting what its successor wrote.
func ExampleElection() {
	client, err := consulkit.New(&api.Config{Address: "127.0.0.1:8500"})
	if err != nil {
		log.Fatal(err)
	}
	election, err := consulkit.NewElection(client, "report/leader", consulkit.ElectionConfig{Name: "report-1"})
	if err != nil {
		log.Fatal(err)
	}
	var db *sql.DB
	_ = election.Run(context.Background(), func(ctx context.Context, term consulkit.Term) error {
		for ctx.Err() == nil {
			result, err := db.ExecContext(ctx, "UPDATE report SET body = ?, token = ? WHERE id = 1 AND token <= ?", "…", term.Token, term.Token)
			if err != nil {
				return err
			}
			if n, err := result.RowsAffected(); err == nil && n == 0 {
				return fmt.Errorf("token %d is not the newest", term.Token)
			}
			time.Sleep(time.Second)
		}
		return nil
	})
}
