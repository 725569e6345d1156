// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package resiliencehttp

import (
	"io"
	"sync"
)

// body frees what its response holds on to when it has been read to its end or closed.
type body struct {
	io.ReadCloser
	release func()
	once    sync.Once
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil { // the end, or nothing more will come
		b.once.Do(b.release)
	}
	return n, err
}

func (b *body) Close() error {
	defer b.once.Do(b.release)
	return b.ReadCloser.Close()
}

// duplex is the body of a response to a protocol upgrade, which can be written to. It ends with
// Close only.
type duplex struct {
	*body
	io.Writer
}

func (d *duplex) Read(p []byte) (int, error) { return d.ReadCloser.Read(p) }
