// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package consulkit

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"
)

// Client is the connection to one Consul agent that everything here shares. It is safe for
// concurrent use.
type Client struct {
	api *api.Client
}

// New returns a client of the agent that cfg describes: address, TLS, token, datacentre,
// namespace. Nil means the agent on this machine. What is empty in cfg is taken from the
// environment as the consul command takes it (CONSUL_HTTP_ADDR and so on), which is
// consul/api's own rule.
//
// A timeout in cfg.HttpClient, or cfg.Transport.ResponseHeaderTimeout, is refused: it would cut
// off every query that waits for a change. Queries have limits of their own here.
func New(cfg *api.Config) (*Client, error) {
	own := api.Config{}
	if cfg != nil {
		own = *cfg // NewClient fills the fields in
	}
	if own.HttpClient != nil && own.HttpClient.Timeout != 0 {
		return nil, fmt.Errorf("consulkit: Config.HttpClient.Timeout is %v, want 0: it would end queries that wait", own.HttpClient.Timeout)
	}
	transport := own.Transport
	if own.HttpClient != nil {
		if t, ok := own.HttpClient.Transport.(*http.Transport); ok {
			transport = t
		}
	}
	if transport != nil && transport.ResponseHeaderTimeout != 0 {
		return nil, fmt.Errorf("consulkit: Config.Transport.ResponseHeaderTimeout is %v, want 0: it would end queries that wait", transport.ResponseHeaderTimeout)
	}
	if own.HttpClient == nil && own.Transport == nil {
		own.Transport = api.DefaultConfig().Transport
		// Each watch holds a connection. The default keeps one more than there are processors.
		own.Transport.MaxIdleConnsPerHost = 64
	}
	client, err := api.NewClient(&own)
	if err != nil {
		return nil, fmt.Errorf("consulkit: %w", err)
	}
	return &Client{client}, nil
}

// API returns the client of consul/api, for what is not here.
func (c *Client) API() *api.Client { return c.api }

// unknown reports whether the agent says that there is no such service or check.
func unknown(err error) bool {
	status, ok := errors.AsType[api.StatusError](err)
	return ok && status.Code == http.StatusNotFound
}

// checkWait reports a wait that cannot be asked for: Consul waits for 10 minutes at most.
func checkWait(name string, wait time.Duration) error {
	if wait < 0 || wait > 10*time.Minute {
		return fmt.Errorf("consulkit: %s is %v, want 0 to 10m", name, wait)
	}
	return nil
}
