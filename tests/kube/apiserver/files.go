package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

const validity = 10 * 365 * 24 * time.Hour

// files are the names of what the server reads, in the state folder.
type files struct {
	authority     string
	server, admin pair
	// The key that signs service accounts' tokens.
	tokens string
}

type pair struct{ certificate, key string }

// makeFiles makes an authority for servers and clients, a certificate of the server, one of an administrator, and the key
// for tokens; or takes those that are there. The authority's own key is kept nowhere.
func makeFiles() (files, error) {
	made := files{
		authority: "ca.crt",
		server:    pair{"server.crt", "server.key"},
		admin:     pair{"admin.crt", "admin.key"},
		tokens:    "tokens.key",
	}
	// Written last, so that it stands for all.
	if _, err := os.Stat(made.authority); !errors.Is(err, os.ErrNotExist) {
		return made, err
	}
	root := certificate("ambit-tests")
	root.IsCA, root.KeyUsage = true, x509.KeyUsageCertSign
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return made, err
	}
	server := certificate("kube-apiserver")
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, net.IPv4(10, 96, 0, 1)}
	server.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local"}
	admin := certificate("admin")
	admin.Subject.Organization = []string{"system:masters"}
	admin.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

	if err := made.server.write(server, root, rootKey); err != nil {
		return made, err
	}
	if err := made.admin.write(admin, root, rootKey); err != nil {
		return made, err
	}
	tokens, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return made, err
	}
	if err := writeKey(made.tokens, tokens); err != nil {
		return made, err
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		return made, err
	}
	return made, writePEM(made.authority, "CERTIFICATE", der)
}

func certificate(name string) *x509.Certificate {
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          big.NewInt(now.UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
}

func (to pair) write(certificate, root *x509.Certificate, rootKey *ecdsa.PrivateKey) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate, root, &key.PublicKey, rootKey)
	if err != nil {
		return err
	}
	if err := writeKey(to.key, key); err != nil {
		return err
	}
	return writePEM(to.certificate, "CERTIFICATE", der)
}

func writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	// The form that the keys of service accounts must have.
	return writePEM(name, "EC PRIVATE KEY", der)
}

func writePEM(name, kind string, der []byte) error {
	return replace(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// replace writes a file that only its owner may read, whole or not at all.
func replace(name string, content []byte) error {
	if err := os.WriteFile(name+".new", content, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// writeKubeconfig writes one that needs no other file.
func writeKubeconfig(files files, url string) error {
	contents := make([][]byte, 0, 3)
	for _, name := range []string{files.authority, files.admin.certificate, files.admin.key} {
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		contents = append(contents, content)
	}
	config := api.NewConfig()
	config.Clusters["ambit-tests"] = &api.Cluster{Server: url, CertificateAuthorityData: contents[0]}
	config.AuthInfos["admin"] = &api.AuthInfo{ClientCertificateData: contents[1], ClientKeyData: contents[2]}
	config.Contexts["ambit-tests"] = &api.Context{Cluster: "ambit-tests", AuthInfo: "admin"}
	config.CurrentContext = "ambit-tests"
	text, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return replace(kubeconfigFile, text)
}
