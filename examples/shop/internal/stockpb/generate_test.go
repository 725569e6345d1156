// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stockpb_test

import (
	"os"
	"os/exec"
	"testing"
)

// TestGeneratedCodeFitsTheDefinition makes the code once more and compares.
func TestGeneratedCodeFitsTheDefinition(t *testing.T) {
	// Under make test the script may install protoc.
	if _, err := exec.LookPath("protoc"); err != nil && os.Getenv("DOVETAIL_REQUIRE_SERVICES") != "1" {
		t.Skip("there is no protoc here; scripts/generate --check installs it")
	}
	out, err := exec.CommandContext(t.Context(), "bash", "../../../../scripts/generate", "--check").CombinedOutput()
	if err != nil {
		t.Errorf("scripts/generate --check: %v\n%s", err, out)
	}
}
