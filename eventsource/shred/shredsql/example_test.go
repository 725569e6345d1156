// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shredsql_test

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/dovetail-go/dovetail/eventsource/shred"
	"github.com/dovetail-go/dovetail/eventsource/shred/shredsql"
)

// The keys have a database of their own, the master key comes from elsewhere.
func Example() {
	open := func(ctx context.Context, db *sql.DB, master []byte) (*shred.Vault, error) {
		keys, err := shredsql.New(db, shredsql.Postgres, shredsql.Config{})
		if err != nil {
			return nil, err
		}
		if err := keys.Migrate(ctx); err != nil {
			return nil, err
		}
		return shred.NewVault(keys, shred.Config{Masters: [][]byte{master}})
	}
	fmt.Println(open != nil)
	// Output: true
}
