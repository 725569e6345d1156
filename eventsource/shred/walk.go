// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package shred

import (
	"errors"
	"reflect"
	"sync"
)

// walk calls fn for each Personal that v leads to.
func walk(v any, fn func(sealable) error) error {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return errors.New("shred: the value is no pointer, want one so that it can be changed")
	}
	w := walker{fn: fn, seen: make(map[uintptr]bool)}
	return w.visit(p)
}

type walker struct {
	fn   func(sealable) error
	seen map[uintptr]bool // pointers, which may lead back
}

func (w *walker) visit(v reflect.Value) error {
	if !mayHold(v.Type()) {
		return nil
	}
	if v.CanAddr() && v.Addr().CanInterface() {
		if s, ok := v.Addr().Interface().(sealable); ok {
			return w.fn(s)
		}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() || w.seen[v.Pointer()] {
			return nil
		}
		w.seen[v.Pointer()] = true
		return w.visit(v.Elem())
	case reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return w.replace(v.Elem(), func(changed reflect.Value) {
			if v.CanSet() {
				v.Set(changed)
			}
		})
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() || v.Type().Field(i).Anonymous {
				if err := w.visit(v.Field(i)); err != nil {
					return err
				}
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			if err := w.visit(v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			if err := w.replace(v.MapIndex(key), func(changed reflect.Value) { v.SetMapIndex(key, changed) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// replace visits a copy of what cannot be changed in its place, and has it put there.
func (w *walker) replace(v reflect.Value, put func(reflect.Value)) error {
	if !mayHold(v.Type()) {
		return nil
	}
	if v.Kind() == reflect.Pointer {
		return w.visit(v)
	}
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	if err := w.visit(c); err != nil {
		return err
	}
	put(c)
	return nil
}

// holds remembers of each type whether a value of it can lead to a Personal, so that the
// bytes of a picture are not looked at one by one.
var holds sync.Map // reflect.Type to bool

var sealableType = reflect.TypeFor[sealable]()

func mayHold(t reflect.Type) bool {
	if known, ok := holds.Load(t); ok {
		return known.(bool)
	}
	may := find(t, make(map[reflect.Type]bool))
	holds.Store(t, may)
	return may
}

func find(t reflect.Type, seen map[reflect.Type]bool) bool {
	if seen[t] {
		return false // being looked at already
	}
	seen[t] = true
	if reflect.PointerTo(t).Implements(sealableType) {
		return true
	}
	switch t.Kind() {
	case reflect.Interface:
		return true
	case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Map:
		return find(t.Elem(), seen)
	case reflect.Struct:
		for i := range t.NumField() {
			if f := t.Field(i); (f.IsExported() || f.Anonymous) && find(f.Type, seen) {
				return true
			}
		}
	}
	return false
}
