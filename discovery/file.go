// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package discovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"
)

// FileConfig configures a [File]. The zero FileConfig is a sound default.
type FileConfig struct {
	// Every is the time between two looks at the file. Zero means 1 second.
	Every time.Duration
}

// File is a resolver that reads a JSON file and follows its changes:
//
//	{"services": {"order": [{"addr": "10.0.0.1:8080", "zone": "a", "weight": 2}]}}
//
// The fields are those of [Instance]. While the file is missing or wrong, watches go on
// with the last good content and are told the error. A service that a good file does not
// name has no instances.
type File struct {
	path  string
	every time.Duration
}

var _ Resolver = (*File)(nil)

// NewFile returns a resolver for the file at path. The file is first read by a watch.
func NewFile(path string, cfg FileConfig) (*File, error) {
	if path == "" {
		return nil, errors.New("discovery: path is empty, want a file")
	}
	if cfg.Every < 0 {
		return nil, fmt.Errorf("discovery: FileConfig.Every is %v, want 0 or more", cfg.Every)
	}
	if cfg.Every == 0 {
		cfg.Every = time.Second
	}
	return &File{path, cfg.Every}, nil
}

// Watch implements [Resolver].
func (f *File) Watch(ctx context.Context, service string) iter.Seq2[Set, error] {
	return func(yield func(Set, error) bool) {
		feed := NewFeed(yield)
		if service == "" {
			feed.refuse(ctx, errNoService)
			return
		}
		var last []byte
		for first := true; ctx.Err() == nil && (first || sleep(ctx, f.every)); first = false {
			// Content is compared, not modification times: those have too coarse a grain to
			// tell two writes within one tick, and a small file costs nothing to read.
			data, err := os.ReadFile(f.path)
			if err == nil && last != nil && bytes.Equal(data, last) && feed.err == "" {
				continue
			}
			set, err := readSet(data, err, service)
			if err != nil {
				if !feed.Fail(fmt.Errorf("discovery: file %s: %w", f.path, err)) {
					return
				}
				continue
			}
			last = data
			if !feed.Set(set) {
				return
			}
		}
	}
}

func readSet(data []byte, err error, service string) (Set, error) {
	if err != nil {
		return Set{}, err
	}
	content, err := parseFile(data)
	if err != nil {
		return Set{}, err
	}
	return NewSet(service, content.Services[service])
}

// fileContent is the format of the file of [File], and of those that [LastKnown] writes.
type fileContent struct {
	// At is when the content was true. LastKnown writes it; File takes no notice.
	At       time.Time             `json:"at,omitzero"`
	Services map[string][]Instance `json:"services"`
}

// parseFile reads and checks a whole file, so that a mistake anywhere in it is seen at once, and not
// on the day when somebody asks for that service.
func parseFile(data []byte) (fileContent, error) {
	var content fileContent
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // a misspelt field must not go unnoticed
	if err := dec.Decode(&content); err != nil {
		return fileContent{}, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fileContent{}, errors.New("text after the end of the JSON value")
	}
	if content.Services == nil {
		return fileContent{}, errors.New(`field "services" is missing`)
	}
	for service, instances := range content.Services {
		if _, err := NewSet(service, instances); err != nil {
			return fileContent{}, fmt.Errorf("service %q: %w", service, err)
		}
	}
	return content, nil
}
