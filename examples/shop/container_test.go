// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/elf"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

const dockerfile = "deploy/Dockerfile"

// instruction is one of the Dockerfile's, as BuildKit reads it.
type instruction struct {
	name  string // upper case
	flags []string
	args  []string
	json  bool // args were written as a list, so no shell is needed
	stage int
}

func instructions() ([]instruction, error) {
	f, err := os.Open(dockerfile)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return parseDockerfile(f)
}

func parseDockerfile(text io.Reader) ([]instruction, error) {
	parsed, err := parser.Parse(text)
	if err != nil {
		return nil, err
	}
	var out []instruction
	stage := -1
	for _, node := range parsed.AST.Children {
		in := instruction{name: strings.ToUpper(node.Value), flags: node.Flags, json: node.Attributes["json"]}
		if in.name == "FROM" {
			stage++
		}
		in.stage = stage
		for arg := node.Next; arg != nil; arg = arg.Next {
			in.args = append(in.args, arg.Value)
		}
		out = append(out, in)
	}
	return out, nil
}

// buildImage runs the Dockerfile's build line as it is, but for where the program goes.
func buildImage(path string) error {
	all, err := instructions()
	if err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c")
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "TARGETOS="+runtime.GOOS, "TARGETARCH="+runtime.GOARCH)
	for _, in := range all {
		switch {
		case in.stage != 0:
		case in.name == "ENV": // name, value, and what was between them
			for i := 0; i+1 < len(in.args); i += 3 {
				cmd.Env = append(cmd.Env, in.args[i]+"="+strings.Trim(in.args[i+1], `'"`))
			}
		case in.name == "RUN" && strings.Contains(in.args[0], "go build"):
			line := strings.Replace(in.args[0], "/out/shop", `"$OUT"`, 1)
			if strings.Contains(line, "/out/") || line == in.args[0] {
				return fmt.Errorf("%s: the build line is %q, want it to write /out/shop and nothing else", dockerfile, in.args[0])
			}
			cmd.Args = append(cmd.Args, line)
		}
	}
	if len(cmd.Args) != 3 {
		return fmt.Errorf("%s: there are %d build lines, want one", dockerfile, len(cmd.Args)-2)
	}
	cmd.Env = append(cmd.Env, "OUT="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Args[2], err, out)
	}
	return nil
}

// image is what the deployments run.
const image = "dovetail-shop:dev"

// builtTag checks a docker build and returns the name that it gives to the image. There is no engine here: what it would do with the
// file and the folder is done by buildImage, which runs the build line, and by testContext, which builds from what would be sent.
func builtTag(t *testing.T, line string) (tag string) {
	t.Helper()
	args, ok := strings.CutPrefix(line, "docker build ")
	flags := flag.NewFlagSet("docker build", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("f", "Dockerfile", "")
	flags.StringVar(&tag, "t", "", "")
	if err := flags.Parse(strings.Fields(args)); err != nil || !ok || !slices.Equal(flags.Args(), []string{"."}) {
		t.Errorf("%s: %v, want docker build with -f and -t of the repository's root", line, err)
	}
	if want := "examples/shop/" + dockerfile; *file != want {
		t.Errorf("%s builds %s, want %s", line, *file, want)
	}
	return tag
}

func TestDockerfile(t *testing.T) {
	all, err := instructions()
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]instruction{} // of the last stage
	for _, in := range all {
		if in.stage == all[len(all)-1].stage {
			last[in.name] = in
		}
	}
	shown := documents.Of(t)
	t.Run("the documents build it", func(t *testing.T) {
		for _, s := range shown {
			if tag := builtTag(t, s.Text); tag != image {
				t.Errorf("%v: %s names it %s, want %s as in the deployments", s.Block, s.Text, tag, image)
			}
		}
		for file, want := range map[string]string{
			"deploy/compose.yaml":                  "  image: " + image + "\n",
			"deploy/kubernetes/kustomization.yaml": strings.Replace("  - name: "+image, ":dev", "\n    newTag: dev", 1),
		} {
			if text, err := os.ReadFile(file); err != nil || !strings.Contains(string(text), want) {
				t.Errorf("%s does not have %q (%v)", file, want, err)
			}
		}
	})
	t.Run("the image begins with nothing", func(t *testing.T) {
		if got := last["FROM"].args; !slices.Equal(got, []string{"scratch"}) {
			t.Errorf("FROM %v, want scratch", got)
		}
		if run, ok := last["RUN"]; ok {
			t.Errorf("RUN %v: there is no shell", run.args)
		}
	})
	t.Run("it runs as somebody without rights, by number", func(t *testing.T) {
		// Kubernetes cannot tell that a name is not root's.
		uid, _, _ := strings.Cut(strings.Join(last["USER"].args, " "), ":")
		if n, err := strconv.Atoi(uid); err != nil || n == 0 {
			t.Errorf("USER %v, want a number other than 0", last["USER"].args)
		}
	})
	t.Run("it needs no shell", func(t *testing.T) {
		for _, name := range []string{"ENTRYPOINT", "CMD"} {
			if !last[name].json {
				t.Errorf("%s %v, want a list", name, last[name].args)
			}
		}
		if entry := last["ENTRYPOINT"].args; !slices.Equal(entry, []string{"/shop"}) {
			t.Errorf("ENTRYPOINT %v, want the program", entry)
		}
		if health := last["HEALTHCHECK"]; !slices.Equal(health.args, []string{"CMD", "/shop", "health"}) || len(health.flags) == 0 {
			t.Errorf("HEALTHCHECK %v %v, want shop health, and how often", health.flags, health.args)
		}
	})
	t.Run("what is sent to the builder builds", func(t *testing.T) {
		if testing.Short() {
			t.Skip("it copies the repository")
		}
		buildShop(t) // so that the next one finds everything compiled
		testContext(t)
	})
}

// testContext builds the shop from the files that Dockerfile.dockerignore lets through.
func testContext(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := os.ReadFile(dockerfile + ".dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	var patterns []string
	for line := range strings.Lines(string(ignored)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			patterns = append(patterns, line)
		}
	}
	// The patterns are of two simple kinds: a path, or ** and a pattern for the last element of one.
	skip := func(path string) bool {
		for _, p := range patterns {
			if name, anywhere := strings.CutPrefix(p, "**/"); anywhere {
				if ok, _ := filepath.Match(name, filepath.Base(path)); ok {
					return true
				}
			} else if p == path {
				return true
			}
		}
		return false
	}
	sent := t.TempDir()
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		switch {
		case skip(rel) && d.IsDir():
			return filepath.SkipDir
		case skip(rel) || !d.IsDir() && !d.Type().IsRegular():
			return nil
		case d.IsDir():
			return os.Mkdir(filepath.Join(sent, rel), 0o700)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(sent, rel), content, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", os.DevNull, "./examples/shop")
	cmd.Dir, cmd.Env = sent, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go build: %v: %s", err, out)
	}
	for _, secret := range []string{".git", "shop-data", ".services"} {
		if _, err := os.Stat(filepath.Join(sent, secret)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is sent to the builder", secret)
		}
	}
}

func TestStaticProgram(t *testing.T) {
	f, err := elf.Open(buildShop(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a segment %v, want a program that needs no loader and no libraries", p.Type)
		}
	}
	if libraries, _ := f.ImportedLibraries(); len(libraries) > 0 {
		t.Errorf("it needs %v", libraries)
	}
}

// TestContainer runs a service as a container does: a root file system that is read-only and has nothing in it but
// the program, a user without a name, no capabilities.
func TestContainer(t *testing.T) {
	if os.Getuid() != 0 {
		testserver.Missing(t, "not tested here: only root may change the root of the file system")
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil { //nolint:gosec // somebody else has to read it
		t.Fatal(err)
	}
	program, err := os.ReadFile(buildShop(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "shop"), program, 0o755); err != nil { //nolint:gosec // and run it
		t.Fatal(err)
	}
	const uid = "65532"
	// A mount namespace of its own, in which the root is bound read-only; then the program takes the shell's place.
	const enter = `mount --bind "$ROOT" "$ROOT" && mount -o remount,ro,bind "$ROOT" && exec chroot --userspec=` + uid + `:` + uid + ` --groups= "$ROOT" /shop "$@"`
	command := func(env []string, args ...string) *exec.Cmd {
		cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", enter, "sh"}, args...)...)
		cmd.Env = append([]string{"ROOT=" + root, "PATH=" + os.Getenv("PATH")}, env...)
		return cmd
	}
	if out, err := command(nil, "--help").CombinedOutput(); err != nil {
		// Root in a container of its own may have no right to mount. Anything else is a defect.
		if what, _, _ := strings.Cut(string(out), ":"); (what == "unshare" || what == "mount") && (strings.Contains(string(out), "not permitted") || strings.Contains(string(out), "denied")) {
			testserver.Missing(t, "not tested here: the kernel refuses a mount namespace or a read-only root: %s", out)
		}
		t.Fatalf("shop --help: %v: %s", err, out)
	}

	settings := maps.Clone(stackSettings(t))
	nobody := `{"services": {}}`
	if err := os.WriteFile(filepath.Join(root, "services.json"), []byte(nobody), 0o644); err != nil { //nolint:gosec // see above
		t.Fatal(err)
	}
	delete(settings, stack.ConsulVar)
	settings[stack.DiscoveryFileVar], settings[stack.PublicURLVar] = "/services.json", "http://shop.example"
	settings[advertiseVar] = "127.0.0.1"
	var env []string
	for name, value := range settings {
		env = append(env, name+"="+value)
	}
	cmd := command(append(env, listenVar+"=127.0.0.1:0"), "run", "catalog")
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said stack.Instance
	if err := json.NewDecoder(out).Decode(&said); err != nil {
		_ = cmd.Process.Kill()
		t.Fatalf("it said %+v (%v)", said, err)
	}

	t.Run("it has no rights", func(t *testing.T) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			fields[name] = strings.Join(strings.Fields(value), " ")
		}
		if four := strings.Repeat(uid+" ", 3) + uid; fields["Uid"] != four || fields["Gid"] != four || fields["Groups"] != "" || strings.Trim(fields["CapEff"], "0") != "" {
			t.Errorf("uid %s, gid %s, groups %q, capabilities %s", fields["Uid"], fields["Gid"], fields["Groups"], fields["CapEff"])
		}
	})
	t.Run("shop health says when it is ready, and when it is not", func(t *testing.T) {
		eventually(t, func() error {
			out, err := command([]string{listenVar + "=" + said.Addr}, "health").CombinedOutput()
			if err != nil {
				return fmt.Errorf("shop health: %w: %s", err, out)
			}
			return nil
		})
		// Port 1 of this machine: nothing listens there.
		if out, err := command([]string{listenVar + "=127.0.0.1:1"}, "health").CombinedOutput(); err == nil {
			t.Errorf("shop health of nothing = %s, want an error", out)
		}
	})
	t.Run("told to stop, it drains", func(t *testing.T) {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ended with %v, want exit code 0", err)
		}
	})
	t.Run("it has left nothing behind", func(t *testing.T) {
		entries, err := os.ReadDir(root)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 2 {
			t.Errorf("%v is there, want the program and the file of addresses", entries)
		}
	})
}
