// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

// pack puts a module into a directory that the go command takes as a proxy
// (GOPROXY=file://...), and returns the number and size of its files.
func pack(m *mod, modules []*mod, proxy, version string) (files int, size int64, err error) {
	escaped, err := module.EscapePath(m.path())
	if err != nil {
		return 0, 0, err
	}
	dir := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, 0, err
	}
	goMod, err := trial(m, modules, version)
	if err != nil {
		return 0, 0, err
	}
	info, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{version, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return 0, 0, err
	}
	for name, text := range map[string][]byte{"list": []byte(version + "\n"), version + ".info": info, version + ".mod": goMod} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return 0, 0, err
		}
	}

	var list []zip.File
	for _, name := range m.files {
		f := file{name: name, on: filepath.Join(m.dir, filepath.FromSlash(name))}
		if name == "go.mod" {
			f.text = goMod
		}
		list = append(list, f)
	}
	if !slices.Contains(m.files, "LICENSE") {
		list = append(list, file{name: "LICENSE", on: m.license})
	}
	for _, f := range list {
		info, err := f.Lstat()
		if err != nil {
			return 0, 0, err
		}
		size += info.Size()
	}
	var packed bytes.Buffer
	if err := zip.Create(&packed, module.Version{Path: m.path(), Version: version}, list); err != nil {
		return 0, 0, err
	}
	return len(list), size, os.WriteFile(filepath.Join(dir, version+".zip"), packed.Bytes(), 0o644)
}

// file is a file to pack: one on disk, or its name with another text.
type file struct {
	name string
	on   string
	text []byte
}

// Path is the file's name in the module.
func (f file) Path() string { return f.name }

// Lstat describes the file.
func (f file) Lstat() (os.FileInfo, error) {
	info, err := os.Lstat(f.on)
	if err != nil || f.text == nil {
		return info, err
	}
	return sized{info, int64(len(f.text))}, nil
}

// Open reads the file.
func (f file) Open() (io.ReadCloser, error) {
	if f.text != nil {
		return io.NopCloser(bytes.NewReader(f.text)), nil
	}
	return os.Open(f.on)
}

type sized struct {
	os.FileInfo
	size int64
}

// Size is that of the other text.
func (s sized) Size() int64 { return s.size }
