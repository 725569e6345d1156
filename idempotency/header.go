// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package idempotency

import (
	"errors"
	"fmt"
	"strings"
)

const (
	// HeaderKey is the request header that names a command: draft-ietf-httpapi-idempotency-key-header.
	HeaderKey = "Idempotency-Key"
	// HeaderReplayed is the response header that marks a stored answer: its value is "true".
	HeaderReplayed = "Idempotency-Replayed"
	// HeaderBodyOmitted is the response header that marks a stored answer whose body was too
	// large to keep, or cut off when its client went: its value is "true".
	HeaderBodyOmitted = "Idempotency-Body-Omitted"
)

// ParseKey returns the key in the value of an Idempotency-Key header.
//
// The draft wants a string of RFC 8941, in double quotes with \" and \\ as the only
// escapes. Most clients send the bare key, so that is accepted too where it is visible
// ASCII without the characters that mean something in a structured header: quote,
// backslash, comma and semicolon. "a" and a are the same key. It has 1 to 255 characters.
func ParseKey(value string) (string, error) {
	value = strings.Trim(value, " \t")
	key := value
	if strings.HasPrefix(value, `"`) {
		var err error
		if key, err = unquote(value); err != nil {
			return "", err
		}
	} else if i := strings.IndexFunc(value, notBare); i >= 0 {
		return "", fmt.Errorf("character %d is %q, want visible ASCII without \", \\, comma and semicolon, or a quoted string", i+1, rune(value[i]))
	}
	if key == "" || len(key) > maxName {
		return "", fmt.Errorf("key has %d characters, want 1 to %d", len(key), maxName)
	}
	return key, nil
}

func notBare(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"\,;`, c) }

// unquote is RFC 8941, section 4.2.5, on a value that is nothing but the string.
func unquote(value string) (string, error) {
	var b strings.Builder
	for i := 1; i < len(value); i++ {
		switch c := value[i]; {
		case c == '"' && i == len(value)-1:
			return b.String(), nil
		case c == '"':
			return "", fmt.Errorf("%q follows the closing quote, want nothing", value[i+1])
		case c == '\\' && i+1 < len(value) && (value[i+1] == '"' || value[i+1] == '\\'):
			i++
			b.WriteByte(value[i])
		case c == '\\':
			return "", errors.New(`a backslash is followed by neither " nor \`)
		case c < ' ' || c >= 0x7f:
			return "", fmt.Errorf("character %d is %q, want printable ASCII", i+1, rune(c))
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("the closing quote is missing")
}
