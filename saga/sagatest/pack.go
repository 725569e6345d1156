// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import "github.com/dovetail-go/dovetail/saga/internal/core"

// key is a world in few bits, to remember millions of them.
type key [4]uint64

// bits is a key being written or read, field after field in the same order.
type bits struct {
	words key
	at    uint
}

func (b *bits) put(v uint64, width uint) {
	word, shift := b.at/64, b.at%64
	b.words[word] |= v << shift
	if shift+width > 64 {
		b.words[word+1] |= v >> (64 - shift)
	}
	b.at += width
}

func (b *bits) get(width uint) uint64 {
	word, shift := b.at/64, b.at%64
	v := b.words[word] >> shift
	if shift+width > 64 {
		v |= b.words[word+1] << (64 - shift)
	}
	b.at += width
	return v & (1<<width - 1)
}

func (b *bits) putBool(v bool) {
	if v {
		b.put(1, 1)
	} else {
		b.put(0, 1)
	}
}

func (b *bits) getBool() bool { return b.get(1) == 1 }

func (r row) put(b *bits) {
	b.put(uint64(r.status), 3)
	b.put(uint64(r.step+1), 4) // from -1
	b.put(uint64(r.attempt), 2)
	b.putBool(r.cancel)
	b.putBool(r.parked)
	b.putBool(r.waits)
	b.put(uint64(r.chosen), maxSteps)
}

func getRow(b *bits) row {
	return row{
		status: core.Status(b.get(3)), step: int8(b.get(4)) - 1, attempt: uint8(b.get(2)),
		cancel: b.getBool(), parked: b.getBool(), waits: b.getBool(), chosen: uint16(b.get(maxSteps)),
	}
}

func (n node) put(b *bits) {
	b.put(uint64(n.phase), 3)
	b.putBool(n.owns)
	b.putBool(n.fresh)
	n.knows.put(b)
}

func getNode(b *bits) node {
	return node{phase: phase(b.get(3)), owns: b.getBool(), fresh: b.getBool(), knows: getRow(b)}
}

func (m *model) pack(w *world) key {
	var b bits
	w.row.put(&b)
	b.put(uint64(w.owner), 3)
	b.putBool(w.late)
	for i := range m.nodes {
		w.nodes[i].put(&b)
	}
	for i := range m.steps {
		p := w.parts[i]
		b.put(uint64(p.did), 2)
		b.put(uint64(p.undid), 2)
		b.putBool(p.barred)
		b.put(uint64(w.astray[0]>>i&1), 1)
		b.put(uint64(w.astray[1]>>i&1), 1)
		b.put(uint64(w.replies[0]>>i&1), 1)
		b.put(uint64(w.replies[1]>>i&1), 1)
		b.put(uint64(w.no>>i&1), 1)
	}
	for _, v := range []uint8{w.crashes, w.stalls, w.failures, w.duplicates, w.cancels} {
		b.put(uint64(v), 2)
	}
	return b.words
}

func (m *model) unpack(k key) world {
	b := bits{words: k}
	w := world{row: getRow(&b), owner: uint8(b.get(3)), late: b.getBool()}
	for i := range m.nodes {
		w.nodes[i] = getNode(&b)
	}
	for i := range m.steps {
		w.parts[i] = participant{did: uint8(b.get(2)), undid: uint8(b.get(2)), barred: b.getBool()}
		w.astray[0] |= uint16(b.get(1)) << i
		w.astray[1] |= uint16(b.get(1)) << i
		w.replies[0] |= uint16(b.get(1)) << i
		w.replies[1] |= uint16(b.get(1)) << i
		w.no |= uint16(b.get(1)) << i
	}
	for _, v := range []*uint8{&w.crashes, &w.stalls, &w.failures, &w.duplicates, &w.cancels} {
		*v = uint8(b.get(2))
	}
	return w
}
