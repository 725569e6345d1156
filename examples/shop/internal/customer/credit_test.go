// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package customer

import (
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// TestCreditIsInACurrency reserves amounts of the shop's currency and of another.
func TestCreditIsInACurrency(t *testing.T) {
	db, err := platform.OpenSQLite(filepath.Join(t.TempDir(), "customer.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := platform.CreateTables(t.Context(), db, schema); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `INSERT INTO customers (id, name, email, password_hash, role, credit_limit, credit_reserved, created_at)
		VALUES ('c', 'C', 'c@shop.example', '', 'customer', 1000, 0, 1)`); err != nil {
		t.Fatal(err)
	}
	for currency, want := range map[string]string{"": "", "EUR": "", "USD": "currency"} {
		err := platform.InTx(t.Context(), db, func(tx *sql.Tx) error {
			return (&Service{}).reserveCredit(t.Context(), tx, reservation{OrderID: "o-" + currency, CustomerID: "c", Amount: 300, Currency: currency})
		})
		var no *platform.Error
		if errors.As(err, &no); err != nil != (want != "") || err != nil && (no == nil || no.Code != want) {
			t.Errorf("300 %s = %v, want refusal %q", currency, err, want)
		}
	}
	var reserved int
	if err := db.QueryRowContext(t.Context(), `SELECT credit_reserved FROM customers`).Scan(&reserved); err != nil || reserved != 600 {
		t.Errorf("reserved = %d, %v; want 600: nothing of the refused", reserved, err)
	}
}
