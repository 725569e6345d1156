// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/gateway"
)

// MaxBody is the largest request body that any service reads, in bytes.
const MaxBody = 1 << 20

// Error is an answer other than success. It becomes an RFC 9457 problem body.
type Error struct {
	// Status is the HTTP status.
	Status int
	// Code is the last part of the problem's type, such as "unknown-product".
	Code string
	// Field names the input that is wrong, as a JSON path such as "items[0].quantity".
	Field string
	// Detail says what is wanted, for people.
	Detail string
	// RetryAfter, if positive, tells when to come back.
	RetryAfter time.Duration
	// Err is the cause. It is logged and never shown.
	Err error
}

// Error returns status, code, field and detail in one line.
func (e *Error) Error() string {
	s := strconv.Itoa(e.Status) + " " + e.Code
	if e.Field != "" {
		s += " " + e.Field
	}
	if e.Detail != "" {
		s += ": " + e.Detail
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Invalid is a request whose field cannot be accepted.
func Invalid(field, format string, args ...any) error {
	return &Error{Status: http.StatusUnprocessableEntity, Code: "invalid-input", Field: field, Detail: fmt.Sprintf(format, args...)}
}

// NotFound says that the thing does not exist, or not for this caller.
func NotFound(what, id string) error {
	return &Error{Status: http.StatusNotFound, Code: "not-found", Detail: fmt.Sprintf("there is no %s %.100q", what, id)}
}

// Refused is a business refusal: a saga that asked gives up and compensates.
func Refused(code, detail string) error {
	return &Error{Status: http.StatusConflict, Code: code, Detail: detail}
}

// BodyTooLarge is a request body of more than limit bytes.
func BodyTooLarge(limit int64) error {
	return &Error{Status: http.StatusRequestEntityTooLarge, Code: "body-too-large", Detail: fmt.Sprintf("want at most %d bytes", limit)}
}

// problem is the body of an error answer, RFC 9457, as far as a caller reads it.
type problem struct {
	Type   string `json:"type"`
	Detail string `json:"detail"`
	Field  string `json:"field"`
}

// WriteProblem answers with a problem body.
func WriteProblem(w http.ResponseWriter, e *Error) {
	p := gateway.Problem{Type: "/problems/" + e.Code, Status: e.Status, Detail: e.Detail, RetryAfter: e.RetryAfter}
	if e.Field != "" {
		p.Members = map[string]any{"field": e.Field}
	}
	gateway.WriteProblem(w, p)
}

// WriteJSON answers with v, which no cache keeps unless the answer says otherwise already: most of what the shop says is
// one person's business.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may have gone
	return nil
}

// Handle turns a function that may fail into a handler: an [*Error] is answered as
// it is, a guard's refusal as 503, anything else as 500 without details.
func Handle(fn func(w http.ResponseWriter, r *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := fn(w, r)
		if err == nil {
			return
		}
		WriteProblem(w, toError(r, err))
	})
}

func toError(r *http.Request, err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		if e.Status >= http.StatusInternalServerError {
			slog.WarnContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		}
		return e
	}
	var rejection *fault.Rejection
	if errors.As(err, &rejection) {
		return &Error{Status: http.StatusServiceUnavailable, Code: "overloaded", Detail: "please try again", RetryAfter: max(rejection.RetryAfter, time.Second)}
	}
	if r.Context().Err() != nil {
		return &Error{Status: http.StatusServiceUnavailable, Code: "interrupted", Detail: "the request was interrupted; please try again", RetryAfter: time.Second}
	}
	slog.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "error", err)
	return &Error{Status: http.StatusInternalServerError, Code: "internal", Detail: "something went wrong on our side"}
}

// Decode reads the JSON body of a request into v. What cannot be read is an
// [*Error] that says why. So is an object that has a key twice, of which two readers may take a different one, and a
// text with a NUL character in it, which PostgreSQL would not take.
func Decode(w http.ResponseWriter, r *http.Request, v any) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &Error{Status: http.StatusUnsupportedMediaType, Code: "unsupported-media-type", Detail: "want Content-Type: application/json"}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody))
	switch {
	case err != nil:
		return decodeError(nil, err)
	case !utf8.Valid(body): // what is not would be replaced, and two passwords could become one
		return &Error{Status: http.StatusBadRequest, Code: "malformed-json", Detail: "the body is not UTF-8"}
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return decodeError(body, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return &Error{Status: http.StatusBadRequest, Code: "malformed-json", Detail: "want one JSON value and nothing after it"}
	}
	if field, found := repeated(body); found {
		return &Error{Status: http.StatusBadRequest, Code: "malformed-json", Field: field, Detail: "is there twice in one object, want it once"}
	}
	if field, found := withNUL(reflect.ValueOf(v), ""); found {
		return Invalid(field, "has a NUL character in it")
	}
	return nil
}

// repeated returns the path of a key that an object in body, which is valid, has twice. Keys that differ in upper and lower
// case alone are the same to encoding/json.
func repeated(body []byte) (field string, found bool) {
	walk(json.NewDecoder(bytes.NewReader(body)), "", false, func(path string, again bool) bool {
		field, found = path, again
		return !again
	})
	return field, found
}

// fieldAt returns the path of the value in body of which encoding/json had read offset bytes when it refused it.
func fieldAt(body []byte, offset int64) (field string) {
	d := json.NewDecoder(bytes.NewReader(body))
	walk(d, "", false, func(path string, _ bool) bool {
		field = path
		return d.InputOffset() < offset
	})
	return field
}

// walk goes through the next value of d, which is valid, and all in it. It calls visit with the path of each, such as
// "items[0].quantity", and with whether its key was in the same object before, until visit returns false.
func walk(d *json.Decoder, path string, again bool, visit func(path string, again bool) bool) bool {
	token, _ := d.Token()
	if !visit(path, again) {
		return false
	}
	switch token {
	case json.Delim('['):
		for i := 0; d.More(); i++ {
			if !walk(d, path+"["+strconv.Itoa(i)+"]", false, visit) {
				return false
			}
		}
	case json.Delim('{'):
		keys := map[string]bool{}
		for d.More() {
			name, _ := d.Token()
			key, _ := name.(string)
			folded := strings.Map(foldedRune, key)
			if !walk(d, strings.TrimPrefix(path+"."+key, "."), keys[folded], visit) {
				return false
			}
			keys[folded] = true
		}
	default:
		return true
	}
	_, _ = d.Token() // its end
	return true
}

// foldedRune is the least of the characters that differ in case alone.
func foldedRune(r rune) rune {
	for {
		next := unicode.SimpleFold(r)
		if next <= r {
			return next
		}
		r = next
	}
}

// withNUL returns the path of a text that has a NUL character in it.
func withNUL(v reflect.Value, path string) (field string, found bool) {
	switch v.Kind() {
	case reflect.String:
		return path, strings.ContainsRune(v.String(), 0)
	case reflect.Pointer:
		if !v.IsNil() {
			return withNUL(v.Elem(), path)
		}
	case reflect.Slice:
		for i := range v.Len() {
			if field, found = withNUL(v.Index(i), fmt.Sprintf("%s[%d]", path, i)); found {
				return field, true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if field, found = withNUL(v.Field(i), strings.TrimPrefix(path+"."+name, ".")); found {
				return field, true
			}
		}
	}
	return "", false
}

// Text reports whether s can be stored as text: it is UTF-8 and has no NUL character.
func Text(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }

// Line reports whether s is a line that people can read: something is to be seen, and nothing in it breaks the line or
// turns its direction around.
func Line(s string) bool {
	seen := false
	for _, r := range s {
		graphic := unicode.IsGraphic(r)
		if !graphic && (!unicode.Is(unicode.Cf, r) || unicode.Is(unicode.Bidi_Control, r)) {
			return false
		}
		seen = seen || graphic && !unicode.IsSpace(r)
	}
	return seen
}

// decodeError is what to answer when a body could not be read, or what has been read of it not decoded.
func decodeError(body []byte, err error) error {
	var tooLarge *http.MaxBytesError
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &tooLarge):
		return BodyTooLarge(tooLarge.Limit)
	case errors.As(err, &wrongType):
		return Invalid(fieldAt(body, wrongType.Offset), "is %s, want %s", jsonWord(wrongType.Value), typeWord(wrongType.Type))
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &Error{Status: http.StatusBadRequest, Code: "malformed-json", Detail: "the body is not complete, valid JSON"}
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return &Error{Status: http.StatusUnprocessableEntity, Code: "invalid-input", Field: strings.Trim(field, `"`), Detail: "is not a known field"}
	}
	return &Error{Status: http.StatusBadRequest, Code: "unreadable-body", Detail: "the body could not be read", Err: err}
}

// jsonWord says in words what encoding/json calls a value.
func jsonWord(value string) string {
	if number, ok := strings.CutPrefix(value, "number "); ok {
		return "the number " + number
	}
	switch value {
	case "array":
		return "a list"
	case "object":
		return "an object"
	case "bool":
		return "true or false"
	}
	return "a " + value
}

// typeWord says in words what a field takes.
func typeWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a whole number of up to 18 digits"
}
