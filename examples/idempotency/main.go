// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

// Command idempotency makes a POST safe to repeat.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/dovetail-go/dovetail/idempotency"
	"github.com/dovetail-go/dovetail/idempotency/idempotencymem"
)

func main() {
	once, err := idempotency.HTTP(idempotencymem.New(), idempotency.HTTPConfig{
		Required: true,
		Scope:    func(r *http.Request) (string, error) { return r.Header.Get("X-Customer"), nil }, // from a verified token in real life
	})
	if err != nil {
		log.Fatal(err)
	}
	orders := 0
	server := httptest.NewServer(once(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		orders++
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, "order %d", orders)
	})))
	defer server.Close()

	post := func(key, body string) {
		req, err := http.NewRequest(http.MethodPost, server.URL+"/orders", strings.NewReader(body))
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("X-Customer", "ada")
		if key != "" {
			req.Header.Set("Idempotency-Key", key)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		if err != nil {
			log.Fatal(err)
		}
		if resp.StatusCode >= 400 {
			answer = []byte("a problem")
		}
		fmt.Println(resp.StatusCode, string(answer))
	}
	post("8e03978e-40d5", "two saws")   // runs
	post("8e03978e-40d5", "two saws")   // the same answer again
	post("8e03978e-40d5", "three saws") // another request under the same key
	post("", "two saws")                // no key
	fmt.Println(orders, "order")
}

// Output:
// 201 order 1
// 201 order 1
// 422 a problem
// 400 a problem
// 1 order
