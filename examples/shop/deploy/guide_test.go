// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
)

// TestGuide follows docs/deployment.md in a copy of this folder. There is no engine: what Compose is told is read as it
// reads it, and has to be there.
func TestGuide(t *testing.T) {
	shown := documents.Of(t)
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	root, own := documents.Root(t), t.TempDir()
	if err := os.CopyFS(own, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	folder := root // in which the reader is
	for _, s := range shown {
		switch words := strings.Fields(s.Text); words[0] {
		case "cd":
			if folder = filepath.Join(root, words[1]); folder != here {
				t.Fatalf("%v: %s leads to %s, want %s", s.Block, s.Text, folder, here)
			}
		case "cp":
			cmd := exec.CommandContext(t.Context(), words[0], words[1:]...)
			cmd.Dir = own
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s: %v: %s", s.Block, s.Text, err, out)
			}
			required, _ := envExample(t)
			values := filled(required...)
			values["SHOP_CERTS"] = "certs"
			fillIn(t, filepath.Join(own, words[2]), values)
		case "docker":
			if _, err := compose(t, own, words); err != nil || folder != here {
				t.Errorf("%v: %s in %s: %v", s.Block, s.Text, folder, err)
			}
		case "go":
			if ci := string(read(t, filepath.Join(root, ".github", "workflows", "ci.yml"))); !strings.Contains(ci, "- run: "+s.Text+"\n") {
				t.Errorf("%v: CI, which has an engine, does not run %s", s.Block, s.Text)
			}
		default:
			t.Errorf("%v: nothing runs %s", s.Block, s.Text)
		}
	}
}

// fillIn gives names in a copy of shop.env.example their values.
func fillIn(t *testing.T, file string, values map[string]string) {
	t.Helper()
	text := string(read(t, file))
	for name, value := range values {
		before := text
		for _, empty := range []string{name + "=", "# " + name + "="} {
			text = strings.Replace(text, "\n"+empty+"\n", "\n"+name+"="+value+"\n", 1)
		}
		if text == before {
			t.Fatalf("%s has no place for %s", file, name)
		}
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// composed is a docker compose line.
type composed struct {
	files    []string
	command  string         // up, run or down
	detached bool           // of up
	scales   map[string]int // of up
	project  *types.Project // with the profiles that are asked for
}

// compose reads a docker compose line as the plugin does: its flags, the file of settings, and the project with its profiles.
func compose(t *testing.T, own string, words []string) (composed, error) {
	t.Helper()
	line := composed{scales: map[string]int{}}
	if len(words) < 2 || words[1] != "compose" {
		return line, errors.New("want docker compose")
	}
	silent := func(name string) *flag.FlagSet {
		flags := flag.NewFlagSet(name, flag.ContinueOnError)
		flags.SetOutput(io.Discard)
		return flags
	}
	global := silent("docker compose")
	var profiles []string
	settings := global.String("env-file", "", "")
	for name, all := range map[string]*[]string{"f": &line.files, "profile": &profiles} {
		global.Func(name, "", func(value string) error {
			*all = append(*all, value)
			return nil
		})
	}
	if err := global.Parse(words[2:]); err != nil {
		return line, err
	}
	if len(line.files) == 0 {
		line.files = []string{"compose.yaml"}
	}
	line.command = global.Arg(0)
	flags := silent(line.command)
	build := false
	switch line.command {
	case "up":
		flags.BoolVar(&build, "build", false, "")
		flags.BoolVar(&line.detached, "d", false, "")
		flags.Func("scale", "", func(text string) error {
			service, number, _ := strings.Cut(text, "=")
			n, err := strconv.Atoi(number)
			line.scales[service] = n
			return err
		})
	case "run":
		flags.Bool("rm", false, "")
		flags.Bool("no-deps", false, "")
	case "down":
	default:
		return line, fmt.Errorf("%s, want up, run or down", line.command)
	}
	if err := flags.Parse(global.Args()[1:]); err != nil {
		return line, err
	}
	env, err := dotenv.Read(filepath.Join(own, *settings))
	if err != nil {
		return line, err
	}
	project, err := load(t, env, line.files...) // with every profile
	if err != nil {
		return line, err
	}
	for _, profile := range profiles {
		of := func(s types.ServiceConfig) bool { return slices.Contains(s.Profiles, profile) }
		if !slices.ContainsFunc(slices.Collect(maps.Values(project.Services)), of) {
			return line, fmt.Errorf("no service is of profile %s", profile)
		}
	}
	if line.project, err = project.WithProfiles(profiles); err != nil {
		return line, err
	}
	for service, n := range line.scales {
		s, ok := project.Services[service]
		if !ok || n < 1 || s.ContainerName != "" || len(s.Ports) > 0 {
			return line, fmt.Errorf("%d of %s: want a service of which there can be several", n, service)
		}
	}
	if build && !builds(project) {
		return line, errors.New("no service is built from a Dockerfile that is there")
	}
	if _, ok := line.project.Services[flags.Arg(0)]; line.command == "run" && (!ok || flags.NArg() < 2) || line.command != "run" && flags.NArg() > 0 {
		return line, fmt.Errorf("%s %v: want run with a service and its command, and all services otherwise", line.command, flags.Args())
	}
	return line, nil
}

// The check of such a line can fail.
func TestWrongComposeLines(t *testing.T) {
	own := t.TempDir()
	if err := os.CopyFS(own, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	required, _ := envExample(t)
	fillIn(t, filepath.Join(own, "shop.env.example"), filled(required...))
	const plugin = "docker compose --env-file shop.env.example "
	for _, line := range []string{"up", "run --rm order check", "down"} {
		if got, err := compose(t, own, strings.Fields(plugin+line)); err != nil || !strings.HasPrefix(line, got.command) {
			t.Errorf("%s%s: %+v and %v, want nil", plugin, line, got, err)
		}
	}
	for _, line := range []string{
		"docker build", "docker compose up", "docker compose --env-file none.env up", "docker compose --envfile shop.env.example up",
		plugin + "stop", plugin + "up --scale order", plugin + "up --scale orders=2", plugin + "up --scale gateway=2",
		plugin + "up --detach=perhaps", plugin + "up order", plugin + "--profile observe up", plugin + "-f none.yaml up",
		plugin + "-f compose.yaml -f compose.tls.yaml up", plugin + "run order", plugin + "run orders check", plugin + "down --all",
	} {
		if _, err := compose(t, own, strings.Fields(line)); err == nil {
			t.Errorf("%s: nil, want an error", line)
		}
	}
}

func builds(project *types.Project) bool {
	for _, s := range project.Services {
		if s.Build != nil {
			if _, err := os.Stat(filepath.Join(s.Build.Context, s.Build.Dockerfile)); err == nil {
				return true
			}
		}
	}
	return false
}
