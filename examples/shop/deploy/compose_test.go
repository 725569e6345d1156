// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"sigs.k8s.io/yaml"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// envExample has the names of shop.env.example: those that need a value, and those that may do without, each after "# ".
func envExample(t *testing.T) (required, optional []string) {
	t.Helper()
	for line := range strings.Lines(string(read(t, "shop.env.example"))) {
		name, value, found := strings.Cut(strings.TrimSpace(line), "=")
		plain := strings.TrimPrefix(name, "# ")
		switch {
		case !found || strings.Contains(plain, " "): // words
		case value != "":
			t.Errorf("shop.env.example has a value of %s, want none: it would be everybody's", plain)
		case plain == name:
			required = append(required, name)
		default:
			optional = append(optional, plain)
		}
	}
	return required, optional
}

// filled has a value for every name.
func filled(names ...string) map[string]string {
	env := map[string]string{}
	for _, name := range names {
		env[name] = example(name, "/tls/ca.crt")
	}
	return env
}

// load reads files as Docker Compose does: against the schema, unknown names refused, each upon those before it.
func load(t *testing.T, env map[string]string, files ...string) (*types.Project, error) {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	details := types.ConfigDetails{WorkingDir: dir, Environment: env}
	for _, file := range files {
		details.ConfigFiles = append(details.ConfigFiles, types.ConfigFile{Filename: filepath.Join(dir, file)})
	}
	return loader.LoadWithContext(t.Context(), details, func(o *loader.Options) { o.Profiles = []string{"*"} })
}

// environment is that of a service's container.
func environment(t *testing.T, s types.ServiceConfig) map[string]string {
	t.Helper()
	env := map[string]string{}
	for variable, value := range s.Environment {
		if value == nil {
			t.Errorf("%s is whatever the shell has", variable)
			continue
		}
		env[variable] = *value
	}
	return env
}

var interpolated = regexp.MustCompile(`\$\{([A-Z_]+)`)

func TestComposeSettings(t *testing.T) {
	const base, tls = "compose.yaml", "compose.tls.yaml"
	required, optional := envExample(t)
	t.Run("every name is explained, and no other", func(t *testing.T) {
		var used []string
		for _, file := range []string{base, tls} {
			for _, m := range interpolated.FindAllStringSubmatch(string(read(t, file)), -1) {
				used = append(used, m[1])
			}
		}
		slices.Sort(used)
		if explained := slices.Sorted(slices.Values(append(slices.Clone(required), optional...))); !slices.Equal(slices.Compact(used), explained) {
			t.Errorf("used are %v, shop.env.example has %v", slices.Compact(used), explained)
		}
	})
	t.Run("every secret has to be given", func(t *testing.T) {
		for _, name := range required {
			without := filled(required...)
			delete(without, name)
			if _, err := load(t, without, base); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("without %s: %v, want an error that names it", name, err)
			}
			without[name] = ""
			if _, err := load(t, without, base); err == nil {
				t.Errorf("with an empty %s: nil, want an error", name)
			}
		}
	})
	t.Run("what may be given arrives", func(t *testing.T) {
		env := filled(append(required, optional...)...)
		project, err := load(t, env, base)
		if err != nil {
			t.Fatal(err)
		}
		arrived := map[string]bool{}
		for _, service := range names() {
			settings := environment(t, project.Services[service])
			for _, name := range optional {
				value, given := settings[name]
				arrived[name] = arrived[name] || given && value == env[name]
			}
			if strings.HasPrefix(settings[stack.ServersCAVar], "/") {
				settings[stack.ServersCAVar] = base // a file that is there
			}
			checkSettings(t, service, settings)
		}
		for _, name := range optional {
			if !arrived[name] && !strings.HasSuffix(name, "_PORT") && name != "SHOP_CERTS" { // which are for Compose itself
				t.Errorf("no service is given %s as it is", name)
			}
		}
		for _, service := range names() {
			if got := project.Services[service].Environment; service != "customer" && got[stack.OIDCClientSecretVar] != nil {
				t.Errorf("%s knows the secret of the shop at the other issuer, and has no use for it", service)
			}
		}
	})
	t.Run("certificates have to be given", func(t *testing.T) {
		if _, err := load(t, filled(required...), base, tls); err == nil || !strings.Contains(err.Error(), "SHOP_CERTS") {
			t.Errorf("without SHOP_CERTS: %v, want an error that names it", err)
		}
	})
	t.Run("every service has a certificate of its own", func(t *testing.T) {
		certs := t.TempDir()
		env := filled(required...)
		env["SHOP_CERTS"] = certs
		project, err := load(t, env, base, tls)
		if err != nil {
			t.Fatal(err)
		}
		for _, service := range names() {
			for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
				path := filepath.Join(certs, service, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := os.CopyFS(filepath.Join(certs, "public"), os.DirFS(filepath.Join(certs, "gateway"))); err != nil {
			t.Fatal(err)
		}
		for _, service := range names() {
			s := project.Services[service]
			settings := environment(t, s)
			for variable, file := range settings { // as they are outside of the container
				for _, v := range s.Volumes {
					rest, inside := strings.CutPrefix(file, v.Target+"/")
					if inside && strings.HasSuffix(variable, "_FILE") && v.Type == types.VolumeTypeBind {
						settings[variable] = filepath.Join(v.Source, rest)
					}
				}
			}
			checkSettings(t, service, settings)
			for variable, file := range map[string]string{stack.TLSCertVar: "tls.crt", stack.TLSKeyVar: "tls.key", stack.TLSCAVar: "ca.crt"} {
				if want := filepath.Join(certs, service, file); settings[variable] != want {
					t.Errorf("%s: %s is %s, want %s", service, variable, settings[variable], want)
				}
			}
			if got, want := settings[stack.PublicTLSCertVar] != "", service == assembly.Gateway; got != want {
				t.Errorf("%s has a certificate for people: %v, want %v", service, got, want)
			}
			for _, v := range s.Volumes {
				if v.Type == types.VolumeTypeBind && !v.ReadOnly {
					t.Errorf("%s may change %s", service, v.Source)
				}
			}
		}
	})
	t.Run("Prometheus asks by TLS for the same", func(t *testing.T) {
		plain, secure := map[string]any{}, map[string]any{}
		for file, into := range map[string]*map[string]any{"prometheus-compose.yml": &plain, "prometheus-compose-tls.yml": &secure} {
			if err := yaml.UnmarshalStrict(read(t, file), into); err != nil {
				t.Fatal(err)
			}
		}
		job := secure["scrape_configs"].([]any)[0].(map[string]any)
		if job["scheme"] != "https" {
			t.Errorf("scheme = %v, want https", job["scheme"])
		}
		delete(job, "scheme")
		delete(job, "tls_config")
		if !reflect.DeepEqual(plain, secure) {
			t.Errorf("by TLS it is %v, want %v", secure, plain)
		}
	})
}

func TestCompose(t *testing.T) {
	required, _ := envExample(t)
	project, err := load(t, filled(required...), "compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := render(t, manifests)
	for _, name := range names() {
		t.Run(name, func(t *testing.T) {
			s, ok := project.Services[name]
			if !ok {
				t.Fatal("it has no container")
			}
			if !slices.Equal(s.Command, []string{"run", name}) {
				t.Errorf("command = %q, want run %s", s.Command, name)
			}
			checkSettings(t, name, environment(t, s))
			if s.Image != c.deployments[name].Spec.Template.Spec.Containers[0].Image {
				t.Errorf("image %s, on Kubernetes %s, want the same", s.Image, c.deployments[name].Spec.Template.Spec.Containers[0].Image)
			}
			if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || s.Privileged || s.User != "" {
				t.Errorf("read-only %v, drops %v, %v, user %q: want no rights, and the image's user", s.ReadOnly, s.CapDrop, s.SecurityOpt, s.User)
			}
			if s.Deploy == nil || s.Deploy.Resources.Limits == nil || s.Deploy.Resources.Limits.MemoryBytes == 0 || s.Deploy.Resources.Limits.NanoCPUs == 0 {
				t.Error("it may take all memory and processors")
			}
			if s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) < 20*time.Second {
				t.Error("it is killed before it has drained")
			}
			want := []string{"CMD", "/shop", "health"}
			if name == assembly.Gateway {
				want = append(want, name)
			}
			if s.HealthCheck == nil || !slices.Equal(s.HealthCheck.Test, want) {
				t.Errorf("health check %+v, want %q", s.HealthCheck, want)
			}
			for _, server := range []string{"postgres", "rabbitmq", "redis", "consul"} {
				if s.DependsOn[server].Condition != types.ServiceConditionHealthy {
					t.Errorf("it does not wait for %s", server)
				}
			}
			if name != assembly.Gateway && len(s.Ports) > 0 {
				t.Error("it can be reached from outside")
			}
		})
	}
	t.Run("what is depended on has a health check", func(t *testing.T) {
		for name, s := range project.Services {
			for other, d := range s.DependsOn {
				if d.Condition == types.ServiceConditionHealthy && project.Services[other].HealthCheck == nil {
					t.Errorf("%s waits for the health of %s, which has no check", name, other)
				}
			}
			if !strings.Contains(s.Image, ":") || strings.HasSuffix(s.Image, ":latest") {
				t.Errorf("%s: image %s, want a version", name, s.Image)
			}
		}
	})
	t.Run("every file that is mounted is there", func(t *testing.T) {
		for name, s := range project.Services {
			for _, v := range s.Volumes {
				if v.Type != types.VolumeTypeBind {
					continue
				}
				if found, err := filepath.Glob(v.Source); err != nil || len(found) != 1 {
					t.Errorf("%s mounts %s, which is not there", name, v.Source)
				}
				if !v.ReadOnly {
					t.Errorf("%s may change %s", name, v.Source)
				}
			}
		}
	})
	t.Run("sidecars are those of Kubernetes", func(t *testing.T) {
		for _, sidecar := range c.deployments["order"].Spec.Template.Spec.InitContainers {
			if s := project.Services[sidecar.Name]; s.Image != sidecar.Image {
				t.Errorf("%s: image %s, on Kubernetes %s, want the same", sidecar.Name, s.Image, sidecar.Image)
			}
		}
	})
}

// TestSidecars checks that what the sidecars' files refer to is in them.
func TestSidecars(t *testing.T) {
	var otel struct {
		Receivers, Processors, Exporters, Extensions map[string]any
		Service                                      struct {
			Extensions []string
			Telemetry  map[string]any
			Pipelines  map[string]struct{ Receivers, Processors, Exporters []string }
		}
	}
	if err := yaml.UnmarshalStrict(read(t, "kubernetes/sidecars/otel-collector.yaml"), &otel); err != nil {
		t.Fatal(err)
	}
	defined := func(what string, names []string, in map[string]any) {
		t.Helper()
		for _, name := range names {
			if _, ok := in[name]; !ok {
				t.Errorf("%s %s is used and not defined", what, name)
			}
		}
	}
	defined("extension", otel.Service.Extensions, otel.Extensions)
	for _, p := range otel.Service.Pipelines {
		defined("receiver", p.Receivers, otel.Receivers)
		defined("processor", p.Processors, otel.Processors)
		defined("exporter", p.Exporters, otel.Exporters)
	}
	if _, ok := otel.Service.Pipelines["traces"]; !ok {
		t.Error("there is no pipeline of traces")
	}
	var fluent struct {
		Service  map[string]any
		Parsers  []map[string]any
		Pipeline struct{ Inputs, Filters, Outputs []map[string]any }
	}
	if err := yaml.UnmarshalStrict(read(t, "kubernetes/sidecars/fluent-bit.yaml"), &fluent); err != nil {
		t.Fatal(err)
	}
	if len(fluent.Pipeline.Inputs) != 1 || fluent.Pipeline.Inputs[0]["path"] != "/var/log/shop/*.json" || fluent.Pipeline.Inputs[0]["parser"] != fluent.Parsers[0]["name"] {
		t.Errorf("inputs = %v, want the services' files and a parser that is there", fluent.Pipeline.Inputs)
	}
	tag := fluent.Pipeline.Inputs[0]["tag"]
	for _, next := range append(fluent.Pipeline.Filters, fluent.Pipeline.Outputs...) {
		if next["match"] != tag {
			t.Errorf("%v matches %v, want %v", next["name"], next["match"], tag)
		}
	}
}
