// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagamem_test

import (
	"testing"

	"github.com/dovetail-go/dovetail/saga/sagamem"
	"github.com/dovetail-go/dovetail/saga/sagatest"
)

func TestStore(t *testing.T) {
	sagatest.RunStore(t, func(*testing.T) sagatest.Setup { return sagatest.Setup{Store: sagamem.New()} })
}
