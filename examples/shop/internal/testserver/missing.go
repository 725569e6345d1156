// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package testserver

import (
	"os"
	"testing"
)

// Required reports whether all that tests need must be there, as under make test.
func Required() bool { return os.Getenv("DOVETAIL_REQUIRE_SERVICES") == "1" }

// Missing ends a test that cannot be run, and says why not: it fails where everything is [Required], and is skipped
// elsewhere.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if Required() {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}
