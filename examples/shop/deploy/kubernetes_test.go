// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	strictjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/dovetail-go/dovetail/examples/shop/internal/assembly"
	"github.com/dovetail-go/dovetail/examples/shop/internal/stack"
)

// cluster is everything that kubectl apply -k would send, by name.
type cluster struct {
	namespace   corev1.Namespace
	configs     map[string]corev1.ConfigMap
	accounts    map[string]corev1.ServiceAccount
	services    map[string]corev1.Service
	deployments map[string]appsv1.Deployment
	scalers     map[string]autoscalingv2.HorizontalPodAutoscaler
	budgets     map[string]policyv1.PodDisruptionBudget
	policies    map[string]networkingv1.NetworkPolicy
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// decoder reads manifests as an API server that was asked to be strict does: an unknown or repeated field is an error.
func decoder(t *testing.T) *strictjson.Serializer {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, autoscalingv2.AddToScheme, policyv1.AddToScheme, networkingv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return strictjson.NewSerializerWithOptions(strictjson.DefaultMetaFactory, scheme, scheme, strictjson.SerializerOptions{Yaml: true, Strict: true})
}

// objects decodes every document.
func objects(t *testing.T, manifests []byte) (out []runtime.Object) {
	t.Helper()
	strict := decoder(t)
	documents := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(manifests)))
	defer func() { _ = documents.Close() }()
	for buffer := make([]byte, 1<<20); ; {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := strict.Decode(buffer[:n], nil, nil)
		if err != nil {
			t.Fatalf("%v in %s", err, buffer[:n])
		}
		out = append(out, object)
	}
}

// manifests is the folder that kubectl apply -k is given.
const manifests = "kubernetes"

// render is what kubectl apply -k sends: kustomize's own output, decoded.
func render(t *testing.T, dir string) cluster {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		t.Fatalf("kustomize: %v", err)
	}
	text, err := resources.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	c := cluster{
		configs: map[string]corev1.ConfigMap{}, accounts: map[string]corev1.ServiceAccount{}, services: map[string]corev1.Service{},
		deployments: map[string]appsv1.Deployment{}, scalers: map[string]autoscalingv2.HorizontalPodAutoscaler{},
		budgets: map[string]policyv1.PodDisruptionBudget{}, policies: map[string]networkingv1.NetworkPolicy{},
	}
	all := objects(t, text)
	for _, object := range all {
		switch o := object.(type) {
		case *corev1.Namespace:
			c.namespace = *o
		case *corev1.ConfigMap:
			c.configs[o.Name] = *o
		case *corev1.ServiceAccount:
			c.accounts[o.Name] = *o
		case *corev1.Service:
			c.services[o.Name] = *o
		case *appsv1.Deployment:
			c.deployments[o.Name] = *o
		case *autoscalingv2.HorizontalPodAutoscaler:
			c.scalers[o.Name] = *o
		case *policyv1.PodDisruptionBudget:
			c.budgets[o.Name] = *o
		case *networkingv1.NetworkPolicy:
			c.policies[o.Name] = *o
		default:
			t.Errorf("no test knows a %T", object)
		}
	}
	for _, object := range all {
		if o := object.(metav1.Object); o.GetNamespace() != c.namespace.Name && o.GetName() != c.namespace.Name {
			t.Errorf("%T %s is in namespace %q, want %q", object, o.GetName(), o.GetNamespace(), c.namespace.Name)
		}
	}
	return c
}

// TestEveryManifestIsUsed finds the one that was forgotten.
func TestEveryManifestIsUsed(t *testing.T) {
	used := func(dir, file string) bool {
		name, err := filepath.Rel(dir, file)
		return err == nil && strings.Contains(string(read(t, filepath.Join(dir, "kustomization.yaml"))), " "+name+"\n")
	}
	for _, pattern := range []string{"*.yaml", "*/*.yaml"} {
		files, err := filepath.Glob(filepath.Join(manifests, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %v, %v", pattern, files, err)
		}
		for _, file := range files {
			component := filepath.Join(manifests, "oidc")
			if filepath.Base(file) != "kustomization.yaml" && !used(manifests, file) && (filepath.Dir(file) != component || !used(component, file)) {
				t.Errorf("%s is in no kustomization.yaml", file)
			}
		}
	}
}

// withIssuer copies the manifests and adds the component of sign-in by another issuer, as the kustomization says how.
func withIssuer(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(manifests)); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "kustomization.yaml")
	without, with := string(read(t, file)), strings.Replace(string(read(t, file)), "\n# components:", "\ncomponents:", 1)
	if with == without {
		t.Fatal("the kustomization does not say how the component is added")
	}
	if err := os.WriteFile(file, []byte(with), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// With another issuer, gateway and customer are given its settings, and nobody else is.
func TestOtherIssuer(t *testing.T) {
	dir := withIssuer(t)
	base, c := render(t, manifests), render(t, dir)
	variables := func(c cluster, service string) map[string]bool {
		all := map[string]bool{}
		for _, e := range c.deployments[service].Spec.Template.Spec.Containers[0].Env {
			all[e.Name] = true
		}
		return all
	}
	for _, name := range names() {
		for variable := range variables(base, name) {
			if strings.HasPrefix(variable, "SHOP_OIDC_") {
				t.Errorf("%s is given %s, want nothing of the kind unless it is asked for", name, variable)
			}
		}
		if name == assembly.Gateway || name == "customer" {
			checkEnvironment(t, c, name)
			for _, variable := range []string{stack.OIDCIssuerVar, stack.OIDCClientIDVar, stack.OIDCAudienceVar} {
				if !variables(c, name)[variable] {
					t.Errorf("%s is not given %s", name, variable)
				}
			}
		} else if !reflect.DeepEqual(c.deployments[name], base.deployments[name]) {
			t.Errorf("%s is another than before", name)
		}
		if got, want := variables(c, name)[stack.OIDCClientSecretVar], name == "customer"; got != want {
			t.Errorf("%s knows the secret of the shop at the issuer: %v, want %v", name, got, want)
		}
		policy := c.policies["issuer"].Spec
		if got, want := matches(t, &policy.PodSelector, c.deployments[name].Spec.Template.Labels), name == assembly.Gateway || name == "customer"; got != want {
			t.Errorf("%s may ask the issuer: %v, want %v", name, got, want)
		}
	}
	for _, variable := range []string{stack.OIDCNameVar, stack.OIDCScopesVar, stack.OIDCRolesClaimVar, stack.OIDCRolesVar} {
		if !variables(c, "customer")[variable] {
			t.Errorf("customer is not given %s", variable)
		}
	}
	for _, rule := range c.policies["issuer"].Spec.Egress {
		if len(rule.Ports) != 1 || rule.Ports[0].Port.IntValue() != 443 || len(rule.To) == 0 {
			t.Errorf("the issuer's egress is %+v, want port 443 of somebody", rule)
		}
		for _, to := range rule.To {
			block := to.IPBlock
			if block == nil {
				t.Fatalf("the issuer is %+v, want addresses", to)
			}
			cidr := netip.MustParsePrefix(block.CIDR)
			for _, private := range []string{"10.1.2.3", "172.20.0.1", "192.168.1.1", "169.254.169.254", "fd00::1", "fe80::1"} {
				a := netip.MustParseAddr(private)
				excepted := slices.ContainsFunc(block.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(a) })
				if cidr.Contains(a) && !excepted {
					t.Errorf("the policy of the issuer lets %s be asked", private)
				}
			}
		}
	}
}

// names are those of all services.
func names() []string { return append([]string{assembly.Gateway}, assembly.Backends...) }

// example is a value that a service accepts for a setting whose value is not in the manifests.
func example(name, file string) string {
	switch {
	case strings.HasSuffix(name, "_FILE"):
		return file
	case name == stack.PublicURLVar:
		return "https://shop.example"
	case name == stack.ServiceTokenVar:
		return strings.Repeat("x", 32)
	case name == stack.PostgresVar:
		return "postgres://shop:secret@db:5432/shop?sslmode=verify-full"
	case name == stack.RabbitMQVar:
		return "amqps://shop:secret@mq:5671/shop"
	case name == stack.RedisVar:
		return "rediss://:secret@redis:6379/0"
	case name == stack.ConsulVar:
		return "https://consul:8501"
	case strings.HasSuffix(name, "_PORT"):
		return "8081"
	case name == stack.TrustedProxiesVar:
		return "10.0.0.0/8"
	case name == stack.OIDCIssuerVar:
		return "https://cognito-idp.eu-central-1.amazonaws.com/eu-central-1_Ab1"
	case name == stack.OIDCScopesVar:
		return "openid,email"
	case name == stack.OIDCRolesVar:
		return "shop-operators=operator,shop-admins=admin"
	}
	return "a-good-password"
}

// ofProgram are the settings that shop run reads beside those of package stack. What begins with OTEL_ is OpenTelemetry's.
var ofProgram = []string{"SHOP_LISTEN", "SHOP_ADVERTISE", "SHOP_INSTANCE", "SHOP_LOG_FILE", "SHOP_VERBOSE"}

// checkSettings holds an environment to what its service needs and knows.
func checkSettings(t *testing.T, service string, env map[string]string) {
	t.Helper()
	known := map[string]bool{}
	if _, err := stack.Load(service, func(name string) string {
		known[name] = true
		return env[name]
	}); err != nil {
		t.Errorf("%s: %v", service, err)
	}
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if !known[name] && !slices.Contains(ofProgram, name) && !strings.HasPrefix(name, "OTEL_") {
			t.Errorf("%s: nobody reads %s", service, name)
		}
	}
	// Nobody has a secret that it has no use for.
	for _, secret := range []string{stack.PostgresVar, stack.RabbitMQVar, stack.RedisVar, stack.AdminPasswordVar, stack.OperatorPasswordVar} {
		without := maps.Clone(env)
		delete(without, secret)
		_, given := env[secret]
		if _, err := stack.Load(service, func(name string) string { return without[name] }); given && err == nil {
			t.Errorf("%s is given %s and does not need it", service, secret)
		}
	}
}

func TestKubernetes(t *testing.T) {
	c := render(t, manifests)
	if got := slices.Sorted(maps.Keys(c.deployments)); !slices.Equal(got, slices.Sorted(slices.Values(names()))) {
		t.Fatalf("deployments = %v, want one of each service", got)
	}
	for _, name := range names() {
		t.Run(name, func(t *testing.T) {
			d := c.deployments[name]
			pod := d.Spec.Template
			if i := slices.IndexFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == "service" }); i != 0 || len(pod.Spec.Containers) != 1 {
				t.Fatalf("containers = %d, want the service alone beside its sidecars", len(pod.Spec.Containers))
			}
			t.Run("it runs the service that it is called after", func(t *testing.T) {
				if args := pod.Spec.Containers[0].Args; !slices.Equal(args, []string{"run", name}) {
					t.Errorf("args = %q, want run %s", args, name)
				}
			})
			t.Run("its labels and selectors fit", func(t *testing.T) { checkSelectors(t, c, name) })
			t.Run("it has the settings that it needs and no other", func(t *testing.T) { checkEnvironment(t, c, name) })
			t.Run("it has no rights", func(t *testing.T) { checkRights(t, c, name) })
			t.Run("it is looked after", func(t *testing.T) { checkProbes(t, pod.Spec) })
			t.Run("what it mounts is there", func(t *testing.T) { checkVolumes(t, c, pod.Spec) })
			t.Run("it may be called by whom it is called", func(t *testing.T) { checkCallers(t, c, name) })
		})
	}
	t.Run("nothing is allowed that is not allowed somewhere", func(t *testing.T) {
		deny := c.policies["default-deny"].Spec
		if len(deny.PodSelector.MatchLabels)+len(deny.PodSelector.MatchExpressions)+len(deny.Ingress)+len(deny.Egress) != 0 || len(deny.PolicyTypes) != 2 {
			t.Errorf("default-deny = %+v, want all pods and nothing allowed either way", deny)
		}
		for name, p := range c.policies {
			selected := 0
			for _, d := range c.deployments {
				if matches(t, &p.Spec.PodSelector, d.Spec.Template.Labels) {
					selected++
				}
			}
			if selected == 0 {
				t.Errorf("policy %s selects no pods", name)
			}
			for _, rule := range p.Spec.Ingress {
				for _, port := range rule.Ports {
					if port.Port == nil || port.Port.Type != intstr.String || port.Port.StrVal != "http" {
						t.Errorf("policy %s allows %v in, want the port http", name, port.Port)
					}
				}
				if len(rule.Ports) == 0 {
					t.Errorf("policy %s allows every port in", name)
				}
			}
		}
	})
	t.Run("the namespace holds pods to the strictest standard", func(t *testing.T) {
		if got := c.namespace.Labels["pod-security.kubernetes.io/enforce"]; got != "restricted" {
			t.Errorf("pod-security.kubernetes.io/enforce = %q, want restricted", got)
		}
	})
}

func matches(t *testing.T, s *metav1.LabelSelector, of map[string]string) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return selector.Matches(labels.Set(of))
}

// only checks that a selector takes the pods of one service and no others.
func only(t *testing.T, c cluster, what, service string, s *metav1.LabelSelector) {
	t.Helper()
	for name, d := range c.deployments {
		if got := matches(t, s, d.Spec.Template.Labels); got != (name == service) {
			t.Errorf("the selector of %s takes pods of %s: %v", what, name, got)
		}
	}
}

func checkSelectors(t *testing.T, c cluster, name string) {
	d := c.deployments[name]
	only(t, c, "the deployment", name, d.Spec.Selector)
	service, ok := c.services[name]
	if !ok {
		t.Fatal("there is no Service of the name by which it is called")
	}
	only(t, c, "the service", name, &metav1.LabelSelector{MatchLabels: service.Spec.Selector})
	for _, p := range service.Spec.Ports {
		if !hasPort(d.Spec.Template.Spec, p.TargetPort) {
			t.Errorf("the service's port %s goes to %s, which no container has", p.Name, p.TargetPort.String())
		}
		if name != assembly.Gateway && p.Port != 8080 {
			t.Errorf("port %d, want the one of %s", p.Port, stack.DiscoveryDNSVar)
		}
	}
	if name != assembly.Gateway && service.Spec.ClusterIP != corev1.ClusterIPNone {
		t.Errorf("clusterIP = %q, want None: callers balance by themselves", service.Spec.ClusterIP)
	}
	budget, ok := c.budgets[name]
	if !ok {
		t.Fatal("there is no PodDisruptionBudget")
	}
	only(t, c, "the disruption budget", name, budget.Spec.Selector)
	policy, ok := c.policies[name]
	if !ok {
		t.Fatal("there is no NetworkPolicy")
	}
	only(t, c, "the network policy", name, &policy.Spec.PodSelector)
	scaler, scaled := c.scalers[name]
	switch {
	case scaled:
		if ref := scaler.Spec.ScaleTargetRef; ref.Kind != "Deployment" || ref.Name != name || ref.APIVersion != "apps/v1" {
			t.Errorf("the autoscaler scales %+v", ref)
		}
		if d.Spec.Replicas != nil {
			t.Error("replicas are set: each apply would undo what the autoscaler did")
		}
		if least := scaler.Spec.MinReplicas; least == nil || *least < 2 || scaler.Spec.MaxReplicas <= *least {
			t.Errorf("%v to %d replicas, want at least 2 and more than that", least, scaler.Spec.MaxReplicas)
		}
		for _, m := range scaler.Spec.Metrics {
			if m.ContainerResource == nil || m.ContainerResource.Container != "service" {
				t.Errorf("metric %+v, want one of the service's container", m)
				continue
			}
			if request := d.Spec.Template.Spec.Containers[0].Resources.Requests[m.ContainerResource.Name]; request.Sign() <= 0 {
				t.Errorf("metric %+v, want a share of what the container requests", m)
			}
		}
	case d.Spec.Replicas == nil || *d.Spec.Replicas != 1:
		t.Error("it has neither an autoscaler nor one replica")
	}
	for _, spread := range d.Spec.Template.Spec.TopologySpreadConstraints {
		for _, key := range spread.MatchLabelKeys {
			if _, ok := d.Spec.Template.Labels[key]; !ok && key != appsv1.DefaultDeploymentUniqueLabelKey {
				t.Errorf("the spread is by label %s, which pods do not have", key)
			}
		}
		if !matches(t, spread.LabelSelector, d.Spec.Template.Labels) {
			t.Error("the spread does not count its own pods")
		}
	}
}

// hasPort tells whether a container has a port of that name or number.
func hasPort(pod corev1.PodSpec, port intstr.IntOrString) bool {
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		for _, p := range c.Ports {
			if p.Name == port.StrVal && port.Type == intstr.String || p.ContainerPort == port.IntVal && port.Type == intstr.Int {
				return true
			}
		}
	}
	return false
}

func checkEnvironment(t *testing.T, c cluster, name string) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for _, e := range c.deployments[name].Spec.Template.Spec.Containers[0].Env {
		if _, twice := env[e.Name]; twice {
			t.Errorf("%s is set twice", e.Name)
		}
		env[e.Name] = e.Value
		if strings.HasSuffix(e.Name, "_FILE") || e.ValueFrom != nil {
			env[e.Name] = example(e.Name, file)
		}
		if e.ValueFrom == nil {
			continue
		}
		if ref := e.ValueFrom.ConfigMapKeyRef; ref != nil {
			if value, ok := c.configs[ref.Name].Data[ref.Key]; ok {
				env[e.Name] = value
			} else {
				t.Errorf("%s is of ConfigMap %s, key %s, which is not there", e.Name, ref.Name, ref.Key)
			}
		}
		if ref := e.ValueFrom.SecretKeyRef; ref != nil {
			if ref.Name != "shop" && ref.Name != "shop-"+name || ref.Optional != nil {
				t.Errorf("%s is of Secret %s, want shop, or shop-%s, and no way without", e.Name, ref.Name, name)
			}
			if !strings.Contains(string(read(t, guide)), "| `"+ref.Name+"` ") && !strings.Contains(string(read(t, guide)), "| `shop-SERVICE` ") {
				t.Errorf("%s does not tell of Secret %s", guide, ref.Name)
			}
		}
	}
	for _, secret := range []string{stack.ServiceTokenVar, stack.PostgresVar, stack.RabbitMQVar, stack.RedisVar, stack.AdminPasswordVar, stack.OperatorPasswordVar} {
		for _, e := range c.deployments[name].Spec.Template.Spec.Containers[0].Env {
			if e.Name == secret && (e.ValueFrom == nil || e.ValueFrom.SecretKeyRef == nil) {
				t.Errorf("%s is in the manifest, want it from a Secret", secret)
			}
		}
	}
	checkSettings(t, name, env)
}

// guide is where the Secrets are described.
const guide = "../../../docs/deployment.md"

func checkRights(t *testing.T, c cluster, name string) {
	pod := c.deployments[name].Spec.Template.Spec
	account, ok := c.accounts[pod.ServiceAccountName]
	if !ok || pod.ServiceAccountName != name {
		t.Errorf("it runs as account %q, want its own", pod.ServiceAccountName)
	}
	for what, mount := range map[string]*bool{"account": account.AutomountServiceAccountToken, "pod": pod.AutomountServiceAccountToken} {
		if mount == nil || *mount {
			t.Errorf("the %s mounts a token for the API server", what)
		}
	}
	if s := pod.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.RunAsUser == nil || *s.RunAsUser == 0 ||
		s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("the pod's security context is %+v", s)
	}
	if pod.HostNetwork || pod.HostPID || pod.HostIPC {
		t.Error("it shares something with the machine")
	}
	for _, container := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		s := container.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
			s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 || s.Privileged != nil {
			t.Errorf("container %s: security context %+v", container.Name, s)
		}
		for _, resource := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := container.Resources.Requests[resource], container.Resources.Limits[resource]
			if request.Sign() <= 0 || limit.Cmp(request) < 0 {
				t.Errorf("container %s: %s %v to %v, want a request and a limit", container.Name, resource, &request, &limit)
			}
		}
		if !strings.Contains(container.Image, ":") || strings.HasSuffix(container.Image, ":latest") {
			t.Errorf("container %s: image %s, want a version", container.Name, container.Image)
		}
	}
}

func checkProbes(t *testing.T, pod corev1.PodSpec) {
	service := pod.Containers[0]
	for what, want := range map[string]struct {
		probe *corev1.Probe
		path  string
	}{
		"startup": {service.StartupProbe, "/livez"}, "live": {service.LivenessProbe, "/livez"}, "ready": {service.ReadinessProbe, "/readyz"},
	} {
		if want.probe == nil || want.probe.HTTPGet == nil {
			t.Errorf("%s: no probe", what)
			continue
		}
		if get := want.probe.HTTPGet; get.Path != want.path || get.Scheme != corev1.URISchemeHTTPS || !hasPort(pod, get.Port) {
			t.Errorf("%s: %+v, want %s by HTTPS on a port that is there", what, get, want.path)
		}
	}
	// What the drain of package platform takes at most: requests in hand, then the outbox.
	const drain = 10 + 5
	if service.Lifecycle == nil || service.Lifecycle.PreStop == nil || service.Lifecycle.PreStop.Sleep == nil {
		t.Fatal("it is gone before others have heard")
	}
	if pre := service.Lifecycle.PreStop.Sleep.Seconds; pod.TerminationGracePeriodSeconds == nil || *pod.TerminationGracePeriodSeconds < pre+2*drain {
		t.Errorf("%v s to end, want %d before the drain and twice the %d s that it may take", pod.TerminationGracePeriodSeconds, pre, drain)
	}
	for _, sidecar := range []string{"logs", "otel-collector"} {
		i := slices.IndexFunc(pod.InitContainers, func(c corev1.Container) bool { return c.Name == sidecar })
		if i < 0 || pod.InitContainers[i].RestartPolicy == nil || *pod.InitContainers[i].RestartPolicy != corev1.ContainerRestartPolicyAlways {
			t.Errorf("there is no sidecar %s that lives as long as the service", sidecar)
		}
	}
}

func checkVolumes(t *testing.T, c cluster, pod corev1.PodSpec) {
	volumes := map[string]corev1.Volume{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = v
		if v.ConfigMap != nil {
			if _, ok := c.configs[v.ConfigMap.Name]; !ok {
				t.Errorf("volume %s is of ConfigMap %s, which is not there", v.Name, v.ConfigMap.Name)
			}
		}
		if v.HostPath != nil {
			t.Errorf("volume %s is the machine's", v.Name)
		}
	}
	used := map[string]bool{}
	for _, container := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		mounts := map[string]string{}
		for _, m := range container.VolumeMounts {
			if _, ok := volumes[m.Name]; !ok {
				t.Errorf("container %s mounts %s, which is not there", container.Name, m.Name)
			}
			used[m.Name], mounts[m.MountPath] = true, m.Name
		}
		// Every file that a setting or an argument names is in something mounted.
		for _, e := range container.Env {
			if strings.HasSuffix(e.Name, "_FILE") && mounts[filepath.Dir(e.Value)] == "" {
				t.Errorf("%s is %s, where nothing is mounted", e.Name, e.Value)
			}
		}
		for _, arg := range container.Args {
			if file := arg[strings.Index(arg, "=")+1:]; strings.HasPrefix(file, "/") {
				if volume := volumes[mounts[filepath.Dir(file)]]; volume.ConfigMap == nil || c.configs[volume.ConfigMap.Name].Data[filepath.Base(file)] == "" {
					t.Errorf("container %s reads %s, which is not there", container.Name, file)
				}
			}
		}
	}
	for name := range volumes {
		if !used[name] {
			t.Errorf("nobody mounts volume %s", name)
		}
	}
}

var called = regexp.MustCompile(`"http://([a-z]+)[/"]|RPC\.Conn\("([a-z]+)"\)|s\.proxy\("([a-z]+)"`)

// checkCallers reads in the services' code who calls whom.
func checkCallers(t *testing.T, c cluster, name string) {
	for _, caller := range names() {
		files, err := filepath.Glob(filepath.Join("..", "internal", caller, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no code: %v", caller, err)
		}
		calls := name == "customer" || caller == assembly.Gateway // keys of tokens, and the operator's look at everybody
		for _, file := range files {
			for _, m := range called.FindAllStringSubmatch(string(read(t, file)), -1) {
				calls = calls || m[1]+m[2]+m[3] == name
			}
		}
		if caller == "payment" && name == "provider" {
			calls = true // it is told where by package assembly
		}
		if name != assembly.Gateway && caller != name && allowed(t, c, caller, name) != calls {
			t.Errorf("%s calls it: %v; its network policy lets it: %v", caller, calls, !calls)
		}
	}
}

// allowed tells whether the policies let caller's pods reach those of name.
func allowed(t *testing.T, c cluster, caller, name string) bool {
	t.Helper()
	for _, rule := range c.policies[name].Spec.Ingress {
		for _, from := range rule.From {
			if from.NamespaceSelector == nil && from.IPBlock == nil && matches(t, from.PodSelector, c.deployments[caller].Spec.Template.Labels) {
				return true
			}
		}
	}
	return false
}

// TestStrictness shows that the strict decoding refuses what a cluster would only pass over.
func TestStrictness(t *testing.T) {
	_, manifest, found := strings.Cut(string(read(t, "kubernetes/order.yaml")), "apiVersion: apps/v1")
	if !found {
		t.Fatal("the order's manifest has no Deployment")
	}
	manifest, _, _ = strings.Cut("apiVersion: apps/v1"+manifest, "\n---")
	for what, change := range map[string][2]string{
		"a misspelt field":   {"serviceAccountName:", "serviceAcountName:"},
		"another case":       {"containers:", "Containers:"},
		"a field twice":      {"      serviceAccountName: order\n", "      serviceAccountName: order\n      serviceAccountName: order\n"},
		"text for a number":  {"          args: [run, order]", "          args: [run, order]\n          ports: [{containerPort: eighty}]"},
		"no kind of objects": {"kind: Deployment", "kind: Deploiment"},
	} {
		if !strings.Contains(manifest, change[0]) {
			t.Fatalf("%s: there is no %q", what, change[0])
		}
		if _, _, err := decoder(t).Decode([]byte(strings.Replace(manifest, change[0], change[1], 1)), nil, nil); err == nil {
			t.Errorf("%s: Decode = nil, want an error", what)
		}
	}
	if _, _, err := decoder(t).Decode([]byte(manifest), nil, nil); err != nil {
		t.Error(fmt.Errorf("unchanged: %w", err))
	}
}
