// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package platform

import (
	"context"
	"testing"

	"github.com/dovetail-go/dovetail/messaging"
)

// pipelined is a broker that publishes without a goroutine for each message.
type pipelined struct {
	Broker
	begun int
}

func (p *pipelined) PublishAsync(_ context.Context, _ *messaging.Message, done func(error)) bool {
	p.begun++
	done(nil)
	return true
}

// The relay looks for a pipelined publisher behind the gate. One in this process it must not
// find: there Publish is what waits at the gate.
func TestGatePipelines(t *testing.T) {
	for _, c := range []struct {
		name      string
		next      Broker
		inProcess bool
		want      bool
	}{
		{"over a connection", &pipelined{}, false, true},
		{"in this process", &pipelined{}, true, false},
		{"one message after the other", &fake{}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			async, ok := new(Gate).Broker(c.next, c.inProcess).(messaging.AsyncPublisher)
			if !ok {
				t.Fatal("the broker behind the gate is no AsyncPublisher")
			}
			told := false
			if got := async.PublishAsync(t.Context(), &messaging.Message{}, func(error) { told = true }); got != c.want || told != c.want {
				t.Errorf("PublishAsync = %v, told %v, want both %v", got, told, c.want)
			}
			if p, ok := c.next.(*pipelined); ok && (p.begun == 1) != c.want {
				t.Errorf("begun %d times, want %v", p.begun, c.want)
			}
		})
	}
}
