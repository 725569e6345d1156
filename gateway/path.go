// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// StrictPath refuses requests whose path may be read in more than one way with 400, before next
// decides anything by it: segments "." and "..", also encoded and with parameters as in
// "..;", empty segments, encoded slashes, backslashes, control characters.
func StrictPath(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkPath(r.URL, false); err != nil {
			WriteProblem(w, Problem{Status: http.StatusBadRequest, Detail: err.Error()})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// checkPath returns an error, for the client, if the path is ambiguous.
func checkPath(u *url.URL, encodedSlash bool) error {
	rest, ok := strings.CutPrefix(u.EscapedPath(), "/")
	if !ok {
		return errors.New("the path does not begin with a slash")
	}
	for rest != "" {
		var segment string
		segment, rest, ok = strings.Cut(rest, "/")
		plain, err := url.PathUnescape(segment)
		if err != nil {
			return errors.New("the path is not well encoded")
		}
		name, _, _ := strings.Cut(plain, ";")
		switch {
		case segment == "" && ok:
			return errors.New("the path has an empty segment")
		case name == "." || name == "..":
			return errors.New("the path has a dot segment")
		case strings.Contains(plain, "/") && !encodedSlash:
			return errors.New("the path has an encoded slash")
		case strings.ContainsFunc(plain, func(c rune) bool { return c == '\\' || c < ' ' || c == 0x7f }):
			return errors.New("the path has a backslash or a control character")
		}
		if encodedSlash {
			for part := range strings.SplitSeq(plain, "/") {
				if part == "." || part == ".." {
					return errors.New("the path has a dot segment")
				}
			}
		}
	}
	return nil
}
