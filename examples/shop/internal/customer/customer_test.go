// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package customer

import (
	"errors"
	"strings"
	"testing"

	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

func TestValidate(t *testing.T) {
	good := Account{Name: "Ada", Email: "ada@shop.example", Password: "a-password"}
	for name, c := range map[string]struct {
		change func(*Account)
		field  string
	}{
		"nothing wrong":               {func(*Account) {}, ""},
		"a name of another script":    {func(a *Account) { a.Name = "Zoë 日本" }, ""},
		"an address of another":       {func(a *Account) { a.Email = "zoë@bücher.example" }, ""},
		"no name":                     {func(a *Account) { a.Name = "" }, "name"},
		"a long name":                 {func(a *Account) { a.Name = strings.Repeat("ä", 101) }, "name"},
		"two lines":                   {func(a *Account) { a.Name = "Ada\nBcc: ben@shop.example" }, "name"},
		"nothing to be seen":          {func(a *Account) { a.Name = "\u200b" }, "name"},
		"no address":                  {func(a *Account) { a.Email = "ada" }, "email"},
		"two addresses":               {func(a *Account) { a.Email = "ada@shop.example, ben@shop.example" }, "email"},
		"an address with a name":      {func(a *Account) { a.Email = "Ada <ada@shop.example>" }, "email"},
		"an address of two lines":     {func(a *Account) { a.Email = "ada@shop.example\r\nBcc: ben@shop.example" }, "email"},
		"an address that looks alike": {func(a *Account) { a.Email = "ada\u200b@shop.example" }, "email"},
		"a long address":              {func(a *Account) { a.Email = strings.Repeat("a", 254) + "@shop.example" }, "email"},
		"a short password":            {func(a *Account) { a.Password = "1234567" }, "password"},
		"more than bcrypt reads":      {func(a *Account) { a.Password = strings.Repeat("x", 73) }, "password"},
	} {
		a := good
		c.change(&a)
		var no *platform.Error
		if err := validate(a); err != nil != (c.field != "") || err != nil && (!errors.As(err, &no) || no.Field != c.field) {
			t.Errorf("%s: %v, want it about %q", name, err, c.field)
		}
	}
}
