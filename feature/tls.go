package feature

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"go.yaml.in/yaml/v3"
)

// TLS says how a server is known, and how it knows loam.
type TLS struct {
	On         bool
	CA         string // file with the certificates of who signed the server's; "" for the system's own
	Cert, Key  string // files of the client's certificate and its key; "" for none
	ServerName string // in the server's certificate; "" for the host that is connected to
}

// Config reads the files. Without TLS it is nil.
func (t TLS) Config(dir string) (*tls.Config, error) {
	if !t.On {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CA != "" {
		c.RootCAs = x509.NewCertPool()
		if err := t.addCA(c.RootCAs, dir); err != nil {
			return nil, err
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(under(dir, t.Cert), under(dir, t.Key))
		if err != nil {
			return nil, fmt.Errorf("read %s and %s, the tls.cert and tls.key that %s names: %w", t.Cert, t.Key, ProjectFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (t TLS) addCA(pool *x509.CertPool, dir string) error {
	text, err := os.ReadFile(under(dir, t.CA))
	if err != nil {
		return fmt.Errorf("read the tls.ca that %s names: %w", ProjectFile, err)
	}
	if !pool.AppendCertsFromPEM(text) {
		return fmt.Errorf("%s, the tls.ca that %s names, holds no certificate: it must be PEM", t.CA, ProjectFile)
	}
	return nil
}

// Roots are the system's certificates, and those in CA besides.
func (t TLS) Roots(dir string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if t.CA == "" {
		return pool, nil
	}
	return pool, t.addCA(pool, dir)
}

// tls reads how a server is known.
func (r *reader) tls(dst *TLS) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		dst.On = true
		if n.Kind == yaml.ScalarNode && n.Tag == "!!bool" {
			dst.On = n.Value == "true"
			return
		}
		r.given(n, field, "ca", "cert", "key", "server_name")
		seen := r.mapping(n, field, fields{
			"ca": r.str(&dst.CA), "cert": r.str(&dst.Cert), "key": r.str(&dst.Key), "server_name": r.str(&dst.ServerName),
			"insecure": func(n *yaml.Node, field string) {
				r.problem(n, field, "loam talks to no server that it doesn't know", "name in ca the file of who signed its certificate, and in server_name the name in that")
			},
		})
		if (seen["cert"] == nil) != (seen["key"] == nil) {
			r.problem(n, field, "a client's certificate needs cert and key", "name both files, or neither")
		}
	}
}
