// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stockpb_test

import (
	"os/exec"
	"testing"
)

// TestGeneratedCodeFitsTheDefinition makes the code once more and compares.
func TestGeneratedCodeFitsTheDefinition(t *testing.T) {
	for _, tool := range []string{"bash", "protoc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("there is no %s here; scripts/generate --check installs what it needs", tool)
		}
	}
	out, err := exec.CommandContext(t.Context(), "bash", "../../../../scripts/generate", "--check").CombinedOutput()
	if err != nil {
		t.Errorf("scripts/generate --check: %v\n%s", err, out)
	}
}
