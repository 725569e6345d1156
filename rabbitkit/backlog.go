// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import "context"

// Backlog is what waits for a group.
type Backlog struct {
	Group string
	// Waiting messages are in the group's queue and with no subscriber. What subscribers were given
	// and have not answered, up to Prefetch for each, is not among them, nor what waits for a retry.
	// It is 0 for a group that does not exist. Of a group that reads the log only retries and
	// replays are in its queue.
	Waiting int
	// Subscribers is how many subscriptions there are, of all processes. In an ordered group all
	// but one of them stand by.
	Subscribers int
}

// Backlog returns what waits for each of the groups, in their order. It asks over a connection
// of its own, which is well once a second and too much for each message.
func (c *Client) Backlog(ctx context.Context, groups ...string) ([]Backlog, error) {
	out := make([]Backlog, len(groups))
	err := c.admin(ctx, func(cn *conn) error {
		for i, group := range groups {
			q, err := c.inspect(cn, c.groupQueue(group))
			if err != nil {
				return err
			}
			out[i] = Backlog{Group: group, Waiting: q.Messages, Subscribers: q.Consumers}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
