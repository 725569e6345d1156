// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"path/filepath"
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

// filled is shop.env.example with a value for every name that it leaves to its reader.
func filled(t *testing.T) map[string]string {
	t.Helper()
	env, err := stack.ReadEnv("shop.env.example")
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range env {
		if value != "" {
			t.Errorf("shop.env.example has a value of %s, want none: it would be everybody's", name)
		}
		env[name] = example(name, "")
		if name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" {
			env[name] = "http://otel-collector:4318/v1/traces"
		}
	}
	return env
}

// load reads compose.yaml as Docker Compose does: against the schema, unknown names refused.
func load(t *testing.T, env map[string]string) (*types.Project, error) {
	t.Helper()
	dir, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	return loader.LoadWithContext(t.Context(), types.ConfigDetails{
		WorkingDir: dir, Environment: env, ConfigFiles: []types.ConfigFile{{Filename: filepath.Join(dir, "compose.yaml")}},
	}, func(o *loader.Options) { o.Profiles = []string{"*"} })
}

func TestCompose(t *testing.T) {
	project, err := load(t, filled(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("every secret has to be given", func(t *testing.T) {
		for name := range filled(t) {
			if name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" || name == "GRAFANA_PASSWORD" { // of a profile
				continue
			}
			without := filled(t)
			delete(without, name)
			if _, err := load(t, without); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("without %s: %v, want an error that names it", name, err)
			}
			without = filled(t)
			without[name] = ""
			if _, err := load(t, without); err == nil {
				t.Errorf("with an empty %s: nil, want an error", name)
			}
		}
	})
	c := render(t)
	for _, name := range names() {
		t.Run(name, func(t *testing.T) {
			s, ok := project.Services[name]
			if !ok {
				t.Fatal("it has no container")
			}
			if !slices.Equal(s.Command, []string{"run", name}) {
				t.Errorf("command = %q, want run %s", s.Command, name)
			}
			settings := map[string]string{}
			for variable, value := range s.Environment {
				if value == nil {
					t.Errorf("%s is whatever the shell has", variable)
					continue
				}
				settings[variable] = *value
			}
			checkSettings(t, name, settings)
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
