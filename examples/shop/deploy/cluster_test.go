// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testserver"
)

// shell runs command lines as a reader does who is the administrator of a cluster.
type shell struct {
	dir string
	env []string
}

// run runs a line with a text to read, and returns what it prints: on its standard output alone, and in all.
func (s shell) run(t *testing.T, line, in string) (out, all string, err error) {
	t.Helper()
	var both, own strings.Builder
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Dir, cmd.Env, cmd.Stdin = s.dir, s.env, strings.NewReader(in)
	cmd.Stdout, cmd.Stderr = &own, &both
	err = cmd.Run()
	return own.String(), own.String() + both.String(), err
}

func (s shell) works(t *testing.T, line, in string) (out string) {
	t.Helper()
	out, all, err := s.run(t, line, in)
	if err != nil || strings.Contains(all, "Warning:") {
		t.Fatalf("%s: %v: %s", line, err, all)
	}
	return out
}

func (s shell) fails(t *testing.T, line, in, want string) {
	t.Helper()
	if _, all, err := s.run(t, line, in); err == nil || !strings.Contains(all, want) {
		t.Errorf("%s: %v: %s, want an error with %q", line, err, all, want)
	}
}

// TestCluster gives the manifests to a Kubernetes API server by the guide's own lines. The server checks every object as
// it does in production, but it has no nodes: that the pods run is not seen here. What they run is TestDockerfile's, of the shop.
func TestCluster(t *testing.T) {
	shown := documents.Of(t)
	root, home := documents.Root(t), t.TempDir()
	bin, kubeconfig := testserver.Kubernetes(t, testca.New(t, t.TempDir()))
	s := shell{dir: root, env: []string{"HOME=" + home, "KUBECONFIG=" + kubeconfig, "PATH=" + bin + ":" + os.Getenv("PATH")}}

	for _, line := range shown {
		s.works(t, line.Text, "")
	}
	if secrets := s.works(t, "kubectl -n shop get secret shop -o jsonpath='{.data.service-token}' | base64 -d", ""); len(secrets) < 32 {
		t.Errorf("the guide's service token is %d bytes, want at least 32", len(secrets))
	}
	c := render(t, manifests)
	const kinds = "configmaps,serviceaccounts,services,deployments,horizontalpodautoscalers,poddisruptionbudgets,networkpolicies"

	t.Run("all of it is there", func(t *testing.T) {
		want := len(c.configs) + len(c.accounts) + len(c.services) + len(c.deployments) + len(c.scalers) + len(c.budgets) + len(c.policies)
		if got := strings.Fields(s.works(t, "kubectl -n shop get "+kinds+" -o name", "")); len(got) != want {
			t.Errorf("there are %d, want %d: %q", len(got), want, got)
		}
	})
	t.Run("applied again it changes nothing", func(t *testing.T) {
		stored := func() string {
			return s.works(t, "kubectl -n shop get "+kinds+` -o jsonpath='{range .items[*]}{.kind} {.metadata.name} {.metadata.resourceVersion}{"\n"}{end}'`, "")
		}
		before := stored()
		s.works(t, shown[len(shown)-1].Text, "")
		if after := stored(); after != before || before == "" {
			t.Errorf("these are stored:\n%sand then:\n%s", before, after)
		}
	})
	t.Run("its pods are admitted", func(t *testing.T) {
		var stored appsv1.DeploymentList
		if err := json.Unmarshal([]byte(s.works(t, "kubectl -n shop get deployments -o json", "")), &stored); err != nil {
			t.Fatal(err)
		}
		if len(stored.Items) != len(names()) {
			t.Errorf("%d deployments, want one for each service", len(stored.Items))
		}
		for _, d := range stored.Items {
			s.works(t, create, pod(t, d))
		}
	})
	t.Run("others are not", func(t *testing.T) {
		var d appsv1.Deployment
		if err := json.Unmarshal([]byte(s.works(t, "kubectl -n shop get deployment order -o json", "")), &d); err != nil {
			t.Fatal(err)
		}
		root := true
		d.Spec.Template.Spec.Containers[0].SecurityContext.AllowPrivilegeEscalation = &root
		s.fails(t, create, pod(t, d), `violates PodSecurity "restricted`)
		d.Spec.Template.Spec.ServiceAccountName = "orders"
		s.fails(t, create, pod(t, d), `serviceaccount "orders" not found`)
		s.fails(t, "kubectl apply -f -", strings.Replace(string(read(t, "kubernetes/order.yaml")), "  selector: {", "  selectors: {", 1), `unknown field "spec.selectors"`)
	})
	t.Run("with another issuer", func(t *testing.T) {
		changed := strings.Fields(s.works(t, "kubectl apply -k "+withIssuer(t)+" | grep -v unchanged | sed 's/ .*//'", ""))
		for _, want := range []string{"deployment.apps/gateway", "deployment.apps/customer"} {
			if !slices.Contains(changed, want) {
				t.Errorf("it changes %q, want %s among them", changed, want)
			}
		}
		for _, name := range []string{"gateway", "customer"} {
			var d appsv1.Deployment
			if err := json.Unmarshal([]byte(s.works(t, "kubectl -n shop get deployment "+name+" -o json", "")), &d); err != nil {
				t.Fatal(err)
			}
			s.works(t, create, pod(t, d))
		}
	})
	t.Run("and goes again", func(t *testing.T) {
		s.works(t, "kubectl delete --wait=false -k "+filepath.Join("examples/shop/deploy", manifests), "")
	})
}

// create admits an object and does not keep it.
const create = "kubectl -n shop create --dry-run=server --validate=strict -f -"

// pod is the first that a deployment makes.
func pod(t *testing.T, d appsv1.Deployment) string {
	t.Helper()
	template := d.Spec.Template
	text, err := json.Marshal(corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: d.Name + "-1", Labels: template.Labels, Annotations: template.Annotations},
		Spec:       template.Spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
