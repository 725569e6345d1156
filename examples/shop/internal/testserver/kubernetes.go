// SPDX-FileCopyrightText: The dovetail authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package testserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dovetail-go/dovetail/examples/internal/documents"
	"github.com/dovetail-go/dovetail/examples/shop/internal/testca"
)

// Kubernetes starts an API server over an etcd, with no controller and no node beside it: what it admits is kept, and
// nothing is run. It returns the folder of kubectl, and the settings by which that is the administrator.
func Kubernetes(t testing.TB, ca *testca.CA) (bin, kubeconfig string) {
	t.Helper()
	bin = filepath.Join(documents.Root(t), ".services", "kubernetes")
	if _, err := os.Stat(bin); err != nil {
		Missing(t, "no Kubernetes found: scripts/install-kubernetes builds it: %v", err)
	}
	s := home(t, "")
	etcd, peer, p, token := port(t), port(t), port(t), rand.Text()
	local := func(port int) string { return fmt.Sprint("http://127.0.0.1:", port) }
	s.start(t, filepath.Join(bin, "etcd"), nil, "--data-dir="+filepath.Join(s.dir, "etcd"), "--log-level=warn", "--unsafe-no-fsync",
		"--listen-client-urls="+local(etcd), "--advertise-client-urls="+local(etcd),
		"--listen-peer-urls="+local(peer), "--initial-advertise-peer-urls="+local(peer), "--initial-cluster=default="+local(peer))

	cert, key := ca.Issue(t, "kubernetes", "127.0.0.1")
	accounts := s.write(t, "accounts.key", signingKey(t), 0o600)
	ended, _ := s.start(t, filepath.Join(bin, "kube-apiserver"), nil, "--etcd-servers="+local(etcd),
		"--bind-address=127.0.0.1", fmt.Sprint("--secure-port=", p), "--tls-cert-file="+cert, "--tls-private-key-file="+key,
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+accounts, "--service-account-signing-key-file="+accounts,
		"--token-auth-file="+s.write(t, "tokens.csv", token+",admin,1,system:masters\n", 0o600), "--authorization-mode=RBAC", "--anonymous-auth=false")

	addr := fmt.Sprint("https://127.0.0.1:", p)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.Client()}, Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	await(t, "kubernetes", ended, func() error {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, addr+"/readyz", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("/readyz answers %s", resp.Status)
		}
		return err
	})
	return bin, s.write(t, "kubeconfig", fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: test
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: admin, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: admin}}]
`, addr, ca.File, token), 0o600)
}

// signingKey makes the key of service accounts' tokens.
func signingKey(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}
