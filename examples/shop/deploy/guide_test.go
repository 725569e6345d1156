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

// TestGuide follows docs/deployment.md in a copy of this folder. There is neither an engine nor a cluster: what Compose and
// kubectl are told is read as they read it, and has to be there.
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
			fillIn(t, filepath.Join(own, words[2]))
		case "docker":
			if err := compose(t, own, words); err != nil || folder != here {
				t.Errorf("%v: %s in %s: %v", s.Block, s.Text, folder, err)
			}
		case "kubectl":
			folder = root // another block, so another beginning
			if len(words) != 4 || words[1] != "apply" || words[2] != "-k" || filepath.Join(root, words[3]) != filepath.Join(here, manifests) {
				t.Errorf("%v: %s, want it to apply %s", s.Block, s.Text, manifests)
				continue
			}
			if c := render(t, words[3][strings.LastIndex(words[3], "/")+1:]); len(c.deployments) != len(names()) {
				t.Errorf("%v: %s makes %d deployments, want one for each service", s.Block, s.Text, len(c.deployments))
			}
		default:
			t.Errorf("%v: nothing runs %s", s.Block, s.Text)
		}
	}
}

// fillIn gives every name in a copy of shop.env.example a value, and no more.
func fillIn(t *testing.T, file string) {
	t.Helper()
	required, _ := envExample(t)
	text := string(read(t, file))
	for name, value := range filled(required...) {
		text = strings.Replace(text, "\n"+name+"=\n", "\n"+name+"="+value+"\n", 1)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// compose reads a docker compose up as the plugin does: its flags, the file of settings, and the project with its profiles.
func compose(t *testing.T, own string, words []string) error {
	t.Helper()
	if len(words) < 2 || words[1] != "compose" {
		return errors.New("want docker compose")
	}
	global, up := flag.NewFlagSet("docker compose", flag.ContinueOnError), flag.NewFlagSet("up", flag.ContinueOnError)
	global.SetOutput(io.Discard)
	up.SetOutput(io.Discard)
	var profiles []string
	scales := map[string]int{}
	settings := global.String("env-file", "", "")
	global.Func("profile", "", func(name string) error {
		profiles = append(profiles, name)
		return nil
	})
	build := up.Bool("build", false, "")
	up.Bool("d", false, "")
	up.Func("scale", "", func(text string) error {
		service, number, _ := strings.Cut(text, "=")
		n, err := strconv.Atoi(number)
		scales[service] = n
		return err
	})
	if err := global.Parse(words[2:]); err != nil {
		return err
	}
	if global.Arg(0) != "up" {
		return fmt.Errorf("%s, want up", global.Arg(0))
	}
	if err := up.Parse(global.Args()[1:]); err != nil || up.NArg() > 0 {
		return fmt.Errorf("up %v: %w", up.Args(), err)
	}
	env, err := dotenv.Read(filepath.Join(own, *settings))
	if err != nil {
		return err
	}
	project, err := load(t, env, "compose.yaml") // with every profile
	if err != nil {
		return err
	}
	for _, profile := range profiles {
		of := func(s types.ServiceConfig) bool { return slices.Contains(s.Profiles, profile) }
		if !slices.ContainsFunc(slices.Collect(maps.Values(project.Services)), of) {
			return fmt.Errorf("no service is of profile %s", profile)
		}
	}
	if project, err = project.WithProfiles(profiles); err != nil {
		return err
	}
	for service, n := range scales {
		s, ok := project.Services[service]
		if !ok || n < 1 || s.ContainerName != "" || len(s.Ports) > 0 {
			return fmt.Errorf("%d of %s: want a service of which there can be several", n, service)
		}
	}
	if *build && !builds(project) {
		return errors.New("no service is built from a Dockerfile that is there")
	}
	return nil
}

// The check of such a line can fail.
func TestWrongComposeLines(t *testing.T) {
	own := t.TempDir()
	if err := os.CopyFS(own, os.DirFS(".")); err != nil {
		t.Fatal(err)
	}
	const fine = "docker compose --env-file shop.env.example up"
	fillIn(t, filepath.Join(own, "shop.env.example"))
	if err := compose(t, own, strings.Fields(fine)); err != nil {
		t.Errorf("%s: %v, want nil", fine, err)
	}
	for _, line := range []string{
		"docker build", "docker compose up", "docker compose --env-file none.env up", "docker compose --envfile shop.env.example up",
		"docker compose --env-file shop.env.example down", fine + " --scale order", fine + " --scale orders=2", fine + " --scale gateway=2",
		fine + " --detach=perhaps", fine + " order", "docker compose --env-file shop.env.example --profile observe up",
	} {
		if err := compose(t, own, strings.Fields(line)); err == nil {
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
