// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package rabbitkit

import "time"

// LookAgainAfter lets readers of the log that get nothing attach again sooner.
func (c *Client) LookAgainAfter(d time.Duration) { c.lookAgain = d }

// LoseTopology lets the present connection to publish look as if a channel of it had just been
// closed, perhaps for want of the exchange. It returns false if there is no connection.
func (c *Client) LoseTopology() bool {
	cn := c.pub.link.current()
	if cn == nil {
		return false
	}
	cn.prepared.Store(false)
	return true
}

// SetBlocked lets the present connection to publish look as if the broker had raised an
// alarm, or withdrawn it. It returns false if there is no connection.
func (c *Client) SetBlocked(blocked bool) bool {
	cn := c.pub.link.current()
	if cn == nil {
		return false
	}
	cn.setBlocked(blocked)
	return true
}
