// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package kafkakit_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/dovetail-go/dovetail/fault"
	"github.com/dovetail-go/dovetail/kafkakit"
	"github.com/dovetail-go/dovetail/messaging"
)

// refuse is a fault that refuses what is published to a topic.
func refuse(topic string) kfake.Fault {
	return kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.PolicyViolation, Count: -1}
}

// leaveGroup sends what a member sends that leaves.
func leaveGroup(ctx context.Context, cl *kgo.Client, group, member string) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group, req.MemberID = group, member
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = member
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return err
	}
	return kerr.ErrorForCode(resp.ErrorCode)
}

// certificate is one for 127.0.0.1, and the configuration of a client that trusts it.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}

func TestTLSAndSASL(t *testing.T) {
	t.Parallel()
	server, client := certificate(t)
	k := fake(t, kfake.TLS(server), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "shop", "secret"), kfake.Superuser("PLAIN", "shop", "secret"))
	cfg := config()
	cfg.Timeout = 10 * time.Second
	cfg.TLS, cfg.SASL = client, scram.Auth{User: "shop", Pass: "secret"}.AsSha512Mechanism()
	c := open(t, k, cfg)
	if err := c.Check(t.Context()); err != nil {
		t.Errorf("Check = %v, want nil", err)
	}
	if err := c.Publish(t.Context(), msg("t", "")); err != nil {
		t.Errorf("Publish = %v, want nil", err)
	}
	// The fake broker hangs up on a wrong password; Kafka says that it is wrong.
	k.ControlKey(int16(kmsg.SASLAuthenticate), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		resp := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
		return resp, nil, true
	})
	cfg.SASL = plain.Auth{User: "shop", Pass: "wrong"}.AsMechanism()
	wrong := open(t, k, cfg)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := wrong.Check(ctx); !fault.IsPermanent(err) {
		t.Errorf("Check with a wrong password = %v, want a permanent error", err)
	}
	err := wrong.Subscribe(ctx, messaging.Subscription{Group: "g", Topics: []string{"t"}}, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil }))
	if !fault.IsPermanent(err) {
		t.Errorf("Subscribe with a wrong password = %v, want a permanent error", err)
	}
	if err := wrong.Publish(ctx, msg("t", "")); !errors.Is(err, messaging.ErrRefused) || !fault.IsPermanent(err) {
		t.Errorf("Publish with a wrong password = %v, want it refused for good", err)
	}
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	short := func(t *testing.T) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	t.Run("what the broker refuses is refused", func(t *testing.T) {
		t.Parallel()
		k := fake(t)
		c := open(t, k, config())
		publish(t, c, msg("t", ""))
		k.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.MessageTooLarge, Count: 1})
		if err := c.Publish(t.Context(), msg("t", "")); !errors.Is(err, messaging.ErrRefused) || !fault.IsPermanent(err) || !errors.Is(err, kerr.MessageTooLarge) {
			t.Errorf("Publish = %v, want it refused for good", err)
		}
		if s := c.Stats(); s.Confirmed != 1 || s.Refused != 1 || s.InFlight != 0 {
			t.Errorf("Stats = %+v, want 1 confirmed and 1 refused", s)
		}
	})
	t.Run("what nobody answers is unknown", func(t *testing.T) {
		t.Parallel()
		k := fake(t)
		c := open(t, k, config())
		publish(t, c, msg("t", ""))
		k.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			return nil, errors.New("the connection is lost"), true
		})
		if err := c.Publish(short(t), msg("t", "")); !errors.Is(err, messaging.ErrUnknown) || !fault.IsUnknown(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Publish = %v, want the outcome unknown and the deadline", err)
		}
	})
	t.Run("what waits for the window is blocked", func(t *testing.T) {
		t.Parallel()
		k := fake(t)
		cfg := config()
		cfg.Window = 2
		c := open(t, k, cfg)
		publish(t, c, msg("t", ""))
		k.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			k.KeepControl()
			return nil, errors.New("the connection is lost"), true
		})
		err := c.Publish(short(t), msg("t", ""), msg("t", ""), msg("t", ""))
		var pe *messaging.PublishError
		if !errors.As(err, &pe) || len(pe.Failed) != 3 || !errors.Is(pe.Failed[0].Err, messaging.ErrUnknown) || !errors.Is(pe.Failed[2].Err, messaging.ErrBlocked) {
			t.Errorf("Publish = %v, want two unknown and one blocked", err)
		}
	})
	t.Run("without a broker nothing is sent", func(t *testing.T) {
		t.Parallel()
		c, err := kafkakit.New([]string{"127.0.0.1:1"}, config())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Publish(short(t), msg("t", "")); !errors.Is(err, messaging.ErrBlocked) {
			t.Errorf("Publish = %v, want ErrBlocked", err)
		}
		if err := c.Check(short(t)); err == nil || fault.IsPermanent(err) {
			t.Errorf("Check = %v, want an error that may pass", err)
		}
	})
	t.Run("a closed client says so", func(t *testing.T) {
		t.Parallel()
		k := fake(t)
		c := open(t, k, config())
		s := messaging.Subscription{Group: "g", Topics: []string{"t"}}
		done := make(chan error, 1)
		if err := c.Declare(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		began := make(chan struct{})
		publish(t, c, msg("t", ""))
		go func() {
			done <- c.Subscribe(context.Background(), s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { close(began); return nil }))
		}()
		<-began
		_ = c.Close()
		if err := <-done; !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Subscribe = %v, want ErrClosed", err)
		}
		if err := c.Publish(t.Context(), msg("t", "")); !errors.Is(err, messaging.ErrClosed) || !errors.Is(err, messaging.ErrRefused) {
			t.Errorf("Publish = %v, want ErrClosed", err)
		}
		s.Group = "other"
		if err := c.Declare(t.Context(), s); !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Declare = %v, want ErrClosed", err)
		}
		if err := c.Subscribe(t.Context(), s, messaging.HandlerFunc(func(context.Context, *messaging.Delivery) error { return nil })); !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Subscribe = %v, want ErrClosed", err)
		}
		if err := c.Check(t.Context()); !errors.Is(err, messaging.ErrClosed) {
			t.Errorf("Check = %v, want ErrClosed", err)
		}
	})
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		brokers []string
		cfg     kafkakit.Config
		want    string
	}{
		{nil, kafkakit.Config{}, "brokers are []"},
		{[]string{""}, kafkakit.Config{}, `brokers are [""]`},
		{[]string{"a:1"}, kafkakit.Config{Topic: "a b"}, `Config.Topic is "a b"`},
		{[]string{"a:1"}, kafkakit.Config{Partitions: -1}, "Config.Partitions is -1"},
		{[]string{"a:1"}, kafkakit.Config{CommitEvery: -1}, "Config.CommitEvery is -1ns"},
	} {
		if _, err := kafkakit.New(c.brokers, c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("New = %v, want %s", err, c.want)
		}
	}
}
