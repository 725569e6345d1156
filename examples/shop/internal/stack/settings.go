// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package stack

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/platform"
)

// bearer is what a header can carry as a token (RFC 6750, section 2.1).
var bearer = regexp.MustCompile(`^[A-Za-z0-9._~+/-]+=*$`)

// Names of the variables that configure a process of the stack.
const (
	NameVar             = "SHOP_NAME"
	PublicURLVar        = "SHOP_PUBLIC_URL"
	ServiceTokenVar     = "SHOP_SERVICE_TOKEN"
	PostgresVar         = "SHOP_POSTGRES_DSN"
	ReplicaVar          = "SHOP_POSTGRES_REPLICA_DSN"
	RabbitMQVar         = "SHOP_RABBITMQ_URL"
	RedisVar            = "SHOP_REDIS_URL"
	ConsulVar           = "SHOP_CONSUL_ADDR"
	ConsulLooksVar      = "SHOP_CONSUL_LOOKS"
	DiscoveryFileVar    = "SHOP_DISCOVERY_FILE"
	DiscoveryDNSVar     = "SHOP_DISCOVERY_DNS"
	TLSCertVar          = "SHOP_TLS_CERT_FILE"
	TLSKeyVar           = "SHOP_TLS_KEY_FILE"
	TLSCAVar            = "SHOP_TLS_CA_FILE"
	PublicTLSCertVar    = "SHOP_PUBLIC_TLS_CERT_FILE"
	PublicTLSKeyVar     = "SHOP_PUBLIC_TLS_KEY_FILE"
	TrustedProxiesVar   = "SHOP_TRUSTED_PROXIES"
	ServersCAVar        = "SHOP_SERVERS_CA_FILE"
	AdminPasswordVar    = "SHOP_ADMIN_PASSWORD"
	OperatorPasswordVar = "SHOP_OPERATOR_PASSWORD"
	LeaseVar            = "SHOP_LEASE"

	OIDCIssuerVar       = "SHOP_OIDC_ISSUER"
	OIDCNameVar         = "SHOP_OIDC_NAME"
	OIDCClientIDVar     = "SHOP_OIDC_CLIENT_ID"
	OIDCClientSecretVar = "SHOP_OIDC_CLIENT_SECRET"
	OIDCAudienceVar     = "SHOP_OIDC_AUDIENCE"
	OIDCScopesVar       = "SHOP_OIDC_SCOPES"
	OIDCRolesClaimVar   = "SHOP_OIDC_ROLES_CLAIM"
	OIDCRolesVar        = "SHOP_OIDC_ROLES"
)

// Settings are what a process of the stack is configured with.
type Settings struct {
	// Name keeps several shops on the same servers apart: it begins the names of schemas, queues,
	// keys and services.
	Name string
	// PublicURL is where people reach the shop. It is the issuer of every token.
	PublicURL string
	// ServiceToken is the secret by which services know each other.
	ServiceToken string
	// Postgres, RabbitMQ and Redis are where the servers are, with user and password.
	Postgres, RabbitMQ, Redis string
	// Replica, if not empty, is a read replica of Postgres.
	Replica string
	// Consul is the agent's address, as host:port or https://host:port; DiscoveryFile, or else DiscoveryDNS, takes its
	// place if it is empty.
	Consul, DiscoveryFile, DiscoveryDNS string
	// Unseen says that the agent does not reach the services. They then look at their readiness themselves.
	Unseen bool
	// TLSCert, TLSKey and TLSCA are files: the certificate of this service, its key, and the authorities of all
	// services' certificates. With them, services talk to each other by mutual TLS only.
	TLSCert, TLSKey, TLSCA string
	// PublicTLSCert and PublicTLSKey are the files of the gateway's certificate for people. Without them it speaks
	// plain HTTP, to a proxy that does.
	PublicTLSCert, PublicTLSKey string
	// Proxies are those before the gateway whose word is taken on where a request comes from.
	Proxies []netip.Prefix
	// ServersCA is a file of the authorities of the certificates of RabbitMQ, Redis and Consul. Empty means the
	// system's. PostgreSQL has its own in the DSN, as sslrootcert.
	ServersCA string
	// AdminPassword and OperatorPassword are those of the first members of staff.
	AdminPassword, OperatorPassword string
	// Issuer is another one than the shop's own whose people may enter. Zero means none.
	Issuer platform.IssuerConfig
	// ControlURL and ControlToken, which Up gives to its gateways, are where faults, invariants and load of the whole
	// shop are kept, and the secret that opens it.
	ControlURL, ControlToken string
	// Lease is how long after the death of a process another takes over its work.
	Lease time.Duration
}

// variable is one setting: who needs it, what is wanted of it, and where it goes.
type variable struct {
	name string
	// neededBy tells which services cannot do without. Nil means none.
	neededBy func(service string) bool
	want     string
	check    func(value string) error
	set      func(s *Settings, value string)
}

func everybody(string) bool              { return true }
func withDatabase(service string) bool   { return service != assembly.Gateway }
func withBroker(service string) bool     { return service != "provider" }
func withQuotas(service string) bool     { return service == assembly.Gateway || service == "customer" }
func withAccounts(service string) bool   { return service == "customer" }
func anything(string) error              { return nil }
func parsed[T any](_ T, err error) error { return err }

var plainName = regexp.MustCompile(`^[a-z][a-z0-9]{0,15}$`)

var variables = []variable{
	{
		NameVar, nil, "1 to 16 lower-case letters and digits", func(v string) error {
			if !plainName.MatchString(v) {
				return errors.New("has something else in it")
			}
			return nil
		}, func(s *Settings, v string) { s.Name = v },
	},
	{
		PublicURLVar, everybody, "the URL that people reach the shop at, such as https://shop.example", func(v string) error {
			u, err := url.Parse(v)
			if err == nil && (u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "") {
				return errors.New("is no http or https URL without a path")
			}
			return err
		}, func(s *Settings, v string) { s.PublicURL = v },
	},
	{
		ServiceTokenVar, everybody, "a secret of at least 32 letters, digits and -._~+/=, the same for all processes", func(v string) error {
			if len(v) < 32 {
				return fmt.Errorf("has %d bytes", len(v))
			}
			if !bearer.MatchString(v) {
				return errors.New("has a character that cannot be in a token")
			}
			return nil
		}, func(s *Settings, v string) { s.ServiceToken = v },
	},
	{
		PostgresVar, withDatabase, "postgres://user:password@host:port/database", func(v string) error { return parsed(pgx.ParseConfig(v)) },
		func(s *Settings, v string) { s.Postgres = v },
	},
	{
		ReplicaVar, nil, "postgres://user:password@host:port/database of a read replica", func(v string) error { return parsed(pgx.ParseConfig(v)) },
		func(s *Settings, v string) { s.Replica = v },
	},
	{
		RabbitMQVar, withBroker, "amqp://user:password@host:port/vhost", func(v string) error { return parsed(amqp091.ParseURI(v)) },
		func(s *Settings, v string) { s.RabbitMQ = v },
	},
	{
		RedisVar, withQuotas, "redis://user:password@host:port/number", func(v string) error { return parsed(redis.ParseURL(v)) },
		func(s *Settings, v string) { s.Redis = v },
	},
	{
		ConsulVar, nil, "host:port of the Consul agent, or https://host:port", func(v string) error {
			_, _, err := net.SplitHostPort(strings.TrimPrefix(v, "https://"))
			return err
		}, func(s *Settings, v string) { s.Consul = v },
	},
	{
		ConsulLooksVar, nil, "on, or off where the Consul agent does not reach the services", func(v string) error {
			if v != "on" && v != "off" {
				return errors.New("is neither")
			}
			return nil
		}, func(s *Settings, v string) { s.Unseen = v == "off" },
	},
	{
		DiscoveryFileVar, nil, "a JSON file of the services' addresses", anything, func(s *Settings, v string) { s.DiscoveryFile = v },
	},
	{
		DiscoveryDNSVar, nil, "a name with {service} in it, and :port where it has addresses only, such as {service}.shop.svc.cluster.local.:8080",
		func(v string) error { return parsed(byDNS(v)) }, func(s *Settings, v string) { s.DiscoveryDNS = v },
	},
	{TLSCertVar, nil, "a PEM file", file, func(s *Settings, v string) { s.TLSCert = v }},
	{TLSKeyVar, nil, "a PEM file", file, func(s *Settings, v string) { s.TLSKey = v }},
	{TLSCAVar, nil, "a PEM file", file, func(s *Settings, v string) { s.TLSCA = v }},
	{PublicTLSCertVar, nil, "a PEM file", file, func(s *Settings, v string) { s.PublicTLSCert = v }},
	{PublicTLSKeyVar, nil, "a PEM file", file, func(s *Settings, v string) { s.PublicTLSKey = v }},
	{
		TrustedProxiesVar, nil, "addresses or networks of the proxies before the gateway, such as 10.0.0.0/8, with commas between",
		func(v string) error { return parsed(prefixes(v)) }, func(s *Settings, v string) { s.Proxies, _ = prefixes(v) },
	},
	{ServersCAVar, nil, "a PEM file", file, func(s *Settings, v string) { s.ServersCA = v }},
	{AdminPasswordVar, withAccounts, "a password of 8 to 72 bytes", password, func(s *Settings, v string) { s.AdminPassword = v }},
	{OperatorPasswordVar, withAccounts, "a password of 8 to 72 bytes", password, func(s *Settings, v string) { s.OperatorPassword = v }},
	{
		OIDCIssuerVar, nil, "the https URL of an OpenID Connect issuer, as in its tokens", func(v string) error {
			u, err := url.Parse(v)
			if err == nil && (u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "") {
				return errors.New("is no such URL")
			}
			return err
		}, func(s *Settings, v string) { s.Issuer.URL = v },
	},
	{OIDCNameVar, nil, "what people know the issuer by", anything, func(s *Settings, v string) { s.Issuer.Name = v }},
	{OIDCClientIDVar, nil, "the shop's client ID there", anything, func(s *Settings, v string) { s.Issuer.ClientID = v }},
	{OIDCClientSecretVar, nil, "the secret of that client", anything, func(s *Settings, v string) { s.Issuer.ClientSecret = v }},
	{OIDCAudienceVar, nil, "names with commas between", anything, func(s *Settings, v string) { s.Issuer.Audience = list(v) }},
	{OIDCScopesVar, nil, "scopes with commas between, openid among them", func(v string) error {
		if !slices.Contains(list(v), "openid") {
			return errors.New("has no openid")
		}
		return nil
	}, func(s *Settings, v string) { s.Issuer.Scopes = list(v) }},
	{OIDCRolesClaimVar, nil, "the claim of a person's groups, such as cognito:groups", anything, func(s *Settings, v string) { s.Issuer.RolesClaim = v }},
	{OIDCRolesVar, nil, "group=admin or group=operator, with commas between", func(v string) error { return parsed(groupRoles(v)) }, func(s *Settings, v string) {
		s.Issuer.Roles, _ = groupRoles(v)
	}},
	{controlURLVar, nil, "a URL", anything, func(s *Settings, v string) { s.ControlURL = v }},
	{controlTokenVar, nil, "a secret", anything, func(s *Settings, v string) { s.ControlToken = v }},
	{
		LeaseVar, nil, "a duration of 1s or more", func(v string) error {
			d, err := time.ParseDuration(v)
			if err == nil && d < time.Second {
				return errors.New("is too short")
			}
			return err
		}, func(s *Settings, v string) { s.Lease, _ = time.ParseDuration(v) },
	},
}

// file is one that can be read.
func file(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return errors.New("cannot be opened")
	}
	return f.Close()
}

func password(v string) error {
	if len(v) < 8 || len(v) > 72 {
		return fmt.Errorf("has %d bytes", len(v))
	}
	return nil
}

// list are the values between commas.
func list(v string) (out []string) {
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func prefixes(v string) (out []netip.Prefix, err error) {
	for _, part := range list(v) {
		p, err := netip.ParsePrefix(part)
		if err != nil {
			addr, err := netip.ParseAddr(part)
			if err != nil {
				return nil, errors.New("has something else in it")
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}

func groupRoles(v string) (out []platform.GroupRole, err error) {
	for _, pair := range list(v) {
		at := strings.LastIndex(pair, "=") // a group may be a distinguished name
		if at < 1 || pair[at+1:] != platform.RoleAdmin && pair[at+1:] != platform.RoleOperator {
			return nil, errors.New("has something else in it")
		}
		out = append(out, platform.GroupRole{Group: pair[:at], Role: pair[at+1:]})
	}
	return out, nil
}

// LoadEntrance reads only what there is to set of a shop without servers: which other issuer's people may enter, and the
// gateway's certificate.
func LoadEntrance(getenv func(name string) string) (Settings, error) {
	s, err := load(func(name string) string {
		if strings.HasPrefix(name, "SHOP_OIDC_") || name == PublicTLSCertVar || name == PublicTLSKeyVar {
			return getenv(name)
		}
		return ""
	}, func(variable) bool { return false })
	return s, errors.Join(err, s.together())
}

// errNowhere says that a service would not find the others.
var errNowhere = fmt.Errorf("none of %s, %s and %s is set, want one of them", ConsulVar, DiscoveryFileVar, DiscoveryDNSVar)

// Load reads the settings of one service. The error names every variable that is missing or wrong, and what
// is wanted of it. It never shows a value: many of them are secrets.
func Load(service string, getenv func(name string) string) (Settings, error) {
	if err := CheckService(service); err != nil {
		return Settings{}, err
	}
	s, err := load(getenv, func(v variable) bool { return v.neededBy != nil && v.neededBy(service) })
	if s.Consul == "" && s.DiscoveryFile == "" && s.DiscoveryDNS == "" {
		err = errors.Join(err, errNowhere)
	}
	return s, errors.Join(err, s.together())
}

// together says which settings are of no use without each other.
func (s Settings) together() error {
	var wrong []error
	if n := given(s.TLSCert, s.TLSKey, s.TLSCA); n != 0 && n != 3 {
		wrong = append(wrong, fmt.Errorf("%s, %s and %s: %d of them are set, want all or none", TLSCertVar, TLSKeyVar, TLSCAVar, n))
	}
	if n := given(s.PublicTLSCert, s.PublicTLSKey); n == 1 {
		wrong = append(wrong, fmt.Errorf("%s and %s: one of them is set, want both or none", PublicTLSCertVar, PublicTLSKeyVar))
	}
	if s.Issuer.URL != "" && s.Issuer.ClientID == "" {
		wrong = append(wrong, fmt.Errorf("%s is not set, want the shop's client ID at %s", OIDCClientIDVar, OIDCIssuerVar))
	}
	return errors.Join(wrong...)
}

func given(values ...string) (n int) {
	for _, v := range values {
		if v != "" {
			n++
		}
	}
	return n
}

// LoadDatabases reads what is needed to look at the databases.
func LoadDatabases(getenv func(name string) string) (Settings, error) {
	return load(getenv, func(v variable) bool { return v.name == PostgresVar })
}

func load(getenv func(name string) string, needed func(v variable) bool) (Settings, error) {
	s := Settings{Name: "shop"}
	var wrong []error
	for _, v := range variables {
		value := getenv(v.name)
		if value == "" {
			if needed(v) {
				wrong = append(wrong, fmt.Errorf("%s is not set, want %s", v.name, v.want))
			}
			continue
		}
		if err := v.check(value); err != nil {
			wrong = append(wrong, fmt.Errorf("%s %s, want %s", v.name, reason(err, value), v.want))
			continue
		}
		v.set(&s, value)
	}
	return s, errors.Join(wrong...)
}

// reason says what is wrong with a value without showing it: errors of parsers often quote what
// they were given, passwords included.
func reason(err error, value string) string {
	text := err.Error()
	if strings.ContainsAny(text, ":/@") || strings.Contains(text, value) {
		return "cannot be read"
	}
	return text
}

// ReadEnv reads a file of NAME=value lines, as make stack writes it. Values may be in single
// quotes; empty lines and those that begin with # are passed over.
func ReadEnv(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	out := map[string]string{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%s: line %d: want NAME=value", path, n)
		}
		if len(value) >= 2 && value[0] == '\'' && value[len(value)-1] == '\'' {
			value = value[1 : len(value)-1]
		}
		out[name] = value
	}
	return out, lines.Err()
}
