// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package sagatest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/dovetail-go/dovetail/messaging"
	"github.com/dovetail-go/dovetail/saga"
)

func (s *storeTest) begun(list ...saga.Beginning) []saga.Begun {
	s.Helper()
	begun, err := s.Store.Begin(s.Context(), list)
	if s.ok("Begin", err); len(begun) != len(list) {
		s.Fatalf("Begin of %d = %d outcomes", len(list), len(begun))
	}
	return begun
}

func (s *storeTest) begin() {
	s.deliver(reply("waits", "pay", "do", "1"))
	// One by itself and several at once, which a store may do in different ways.
	for round, names := range [][]string{{"z"}, {"plain", "full", "waits", "free"}} {
		list := make([]saga.Beginning, len(names))
		for i, id := range names {
			b := beginning(id)
			b.Owner = "n"
			switch id {
			case "full", "z":
				b.Data = []byte(`{"s":"` + strings.Repeat("ü😀'\\u0000?\\\\", 1000) + `"}`)
				b.Header, b.Notes = messaging.Header{"☃": "it's \"$1\" \\ ?"}, []byte(`{"parent":"a/b/do"}`)
				b.Deadline, b.Root = time.Hour, "root"
			case "waits":
				b.Owner, b.Waits = "", true
			case "free":
				b.Owner = ""
			}
			list[i] = b
		}
		for i, out := range s.begun(list...) {
			b := list[i]
			got := s.load(b.ID)
			if got.Status != saga.Running || got.Owner != b.Owner || got.Epoch != int64(boolInt(b.Owner != "")) || got.Revision != 0 ||
				string(got.Data) != string(b.Data) || string(got.Notes) != string(b.Notes) || !maps.Equal(got.Header, b.Header) ||
				got.Signals != int64(boolInt(b.Waits)) || got.Deadline.IsZero() == (b.Deadline > 0) || got.WakeAt.IsZero() {
				s.Errorf("round %d: Load %s = %+v, want what was begun, %+v", round, b.ID, got, b)
			}
			if out.Err != nil || out.Record != nil && (out.Record.ID != b.ID || out.Record.Owner != b.Owner || out.Record.Epoch != 1 || string(out.Record.Data) != string(b.Data) ||
				!maps.Equal(out.Record.Header, b.Header) || !out.Record.Created.Equal(got.Created) || !out.Record.Deadline.Equal(got.Deadline) || out.Record.Now.IsZero()) {
				s.Errorf("round %d: Begin %s = %+v, %v, want the saga", round, b.ID, out.Record, out.Err)
			}
			if owned := out.Record != nil; owned != (b.Owner != "") {
				s.Errorf("round %d: Begin %s gave a record: %v, want it for an owner only", round, b.ID, owned)
			}
		}
	}
	s.beat("n", time.Hour)
	for _, r := range s.claim("m", 10) {
		if r.ID != "free" && r.ID != "waits" {
			s.Errorf("%s was claimed, although a living node owns it", r.ID)
		}
	}
	s.beat("n", -time.Second)
	taken := map[string]int{}
	for _, r := range s.claim("m", 10) {
		taken[r.ID] = r.Takeovers
	}
	if taken["plain"] != 1 || taken["z"] != 1 {
		s.Errorf("taken over %v, want what a dead node had begun", taken)
	}
	if lost := s.save(change(saga.Record{Instance: saga.Instance{ID: "plain", Epoch: 1, Status: saga.Running}})); len(lost) != 1 {
		s.Errorf("Save by the dead node was not lost")
	}
}

func (s *storeTest) beginAgain() {
	s.start("a", "c")
	s.end(saga.Completed, s.claim("n", 1)...)
	s.archived(-time.Hour, 10, 1)
	for _, owner := range []string{"n", ""} {
		same, input, name, fresh, old := beginning("a"), beginning("a"), beginning("c"), beginning("new"+owner), beginning("c")
		input.ID, input.Input = "c", "input-2"
		name.ID, name.Name = "a", "refund"
		list := []saga.Beginning{same, fresh, old}
		for i := range list {
			list[i].Owner = owner
		}
		list = append(list, input, name)
		for i, out := range s.begun(list...) {
			conflict := i > 2
			if errors.Is(out.Err, saga.ErrConflict) != conflict || !conflict && out.Err != nil {
				s.Errorf("Begin %s again with another input or name: %v: %v", list[i].ID, conflict, out.Err)
			}
			if new := i == 1 && owner != ""; (out.Record != nil) != new {
				s.Errorf("Begin %s for %q gave the record %+v", list[i].ID, owner, out.Record)
			}
		}
	}
	if r := s.load("a"); r.Status != saga.Completed || !r.Archived {
		s.Errorf("the archived saga is %+v", r)
	}
	if r := s.load("c"); r.Owner != "" || r.Epoch != 0 {
		s.Errorf("the saga that existed is %+v, want it without an owner", r)
	}
}

func (s *storeTest) beginRace() {
	const sagas, nodes = 20, 4
	var mu sync.Mutex
	owners := map[string][]string{}
	var wg sync.WaitGroup
	for n := range nodes {
		wg.Go(func() {
			list := make([]saga.Beginning, sagas)
			for i := range list {
				// Each begins with another one.
				list[i] = beginning(fmt.Sprintf("s%02d", (i+n*sagas/nodes)%sagas))
				list[i].Owner = fmt.Sprint("n", n)
			}
			begun, err := s.Store.Begin(s.Context(), list)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.Errorf("Begin = %v, want nil", err)
				return
			}
			for i, out := range begun {
				if out.Err != nil {
					s.Errorf("Begin %s = %v, want nil", list[i].ID, out.Err)
				}
				if out.Record != nil {
					owners[list[i].ID] = append(owners[list[i].ID], out.Record.Owner)
				}
			}
		})
	}
	wg.Wait()
	for i := range sagas {
		id := fmt.Sprintf("s%02d", i)
		if got := s.load(id).Owner; len(owners[id]) != 1 || owners[id][0] != got {
			s.Errorf("%s was given to %v, its owner is %q, want one", id, owners[id], got)
		}
	}
}
