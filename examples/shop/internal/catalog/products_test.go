// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package catalog

import (
	"errors"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/kernel"
)

func TestDecide(t *testing.T) {
	old := changed{ProductID: "p", Revision: 3, Name: "Pen", Category: "Ink", Price: 100, InitialStock: 7} // from before currencies were told
	dearer, same := kernel.Money(120), kernel.Money(100)
	for name, tt := range map[string]struct {
		is   changed
		c    command
		want []changed
		err  error
	}{
		"a new product": {
			changed{}, add{kernel.ProductChanged{ProductID: "p", Name: "Pen", Price: 100, InitialStock: 7}},
			[]changed{{ProductID: "p", Revision: 1, Name: "Pen", Price: 100, Currency: "EUR", InitialStock: 7}}, nil,
		},
		"one that is there": {old, add{kernel.ProductChanged{ProductID: "p"}}, nil, nil},
		"another price": {
			old, revise{draft{Price: &dearer}},
			[]changed{{ProductID: "p", Revision: 4, Name: "Pen", Category: "Ink", Price: 120, Currency: "EUR"}}, nil,
		},
		"the same price":  {old, revise{draft{Price: &same}}, nil, nil},
		"no such product": {changed{}, revise{draft{Price: &dearer}}, nil, errUnknown},
	} {
		got, err := decide(tt.is, tt.c)
		if !errors.Is(err, tt.err) || len(got) != len(tt.want) || len(got) == 1 && got[0] != tt.want[0] {
			t.Errorf("%s: decide = %+v, %v; want %+v, %v", name, got, err, tt.want, tt.err)
		}
	}
}
