// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"io/fs"
	"net/http"
	"path"
	"time"
)

//go:embed web
var web embed.FS

// pages serves what people see. Each page is a whole document, put together once, now, from web/layout.html,
// the parts in web/ops.html and one file of web/pages; everything that changes comes from the API. The files are part of this
// program, so a failure here is a mistake in it, and a test would not have passed.
func pages() http.Handler {
	layout := template.Must(template.ParseFS(web, "web/layout.html", "web/ops.html"))
	page := func(name string) []byte {
		var b bytes.Buffer
		t := template.Must(template.Must(layout.Clone()).ParseFS(web, "web/pages/"+name+".html"))
		if err := t.Execute(&b, nil); err != nil {
			panic(err)
		}
		return b.Bytes()
	}
	mux := http.NewServeMux()
	for pattern, name := range map[string]string{
		"GET /{$}":              "products",
		"GET /products/{id}":    "product",
		"GET /basket":           "basket",
		"GET /sign-in":          "sign-in",
		"GET /sign-in/callback": "sign-in-callback",
		"GET /sign-up":          "sign-up",
		"GET /checkout":         "checkout",
		"GET /orders":           "orders",
		"GET /orders/{id}":      "order",
		"GET /mails":            "mails",
		"GET /ops":              "ops",
		"GET /ops/sagas":        "ops-sagas",
		"GET /ops/sagas/{id}":   "ops-saga",
		"GET /ops/messages":     "ops-messages",
		"GET /ops/traces":       "ops-traces",
	} {
		mux.Handle(pattern, file("page.html", page(name)))
	}
	err := fs.WalkDir(web, "web/assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := web.ReadFile(name)
		mux.Handle("GET "+name[len("web"):], file(name, body))
		return err
	})
	if err != nil {
		panic(err)
	}
	missing := page("not-found")
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write(missing)
	})
	return mux
}

// file serves one file. Embedded files have no date, so the browser is told to ask each time,
// and recognises what it has by its hash.
func file(name string, body []byte) http.Handler {
	hash := sha256.Sum256(body)
	etag := `"` + hex.EncodeToString(hash[:8]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		w.Header().Set("Etag", etag)
		http.ServeContent(w, r, path.Base(name), time.Time{}, bytes.NewReader(body))
	})
}
