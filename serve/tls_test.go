package serve

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/certs"
)

// Over TLS the server shows its certificate, and no old version of TLS is spoken.
func TestTLS(t *testing.T) {
	files := certs.New(t)
	shown, err := feature.Serve{Cert: files.ServerCert, Key: files.ServerKey}.TLS("")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, miniredis.RunT(t).Addr(), func(o *Options) { o.TLS = shown }).filled()
	address := f.listening()[len("http://"):]
	text, err := os.ReadFile(files.CA)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	get := func(config *tls.Config) error {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		defer c.CloseIdleConnections()
		r, err := c.Get("https://" + address + "/health")
		if err == nil {
			r.Body.Close()
		}
		return err
	}
	if err := get(&tls.Config{RootCAs: pool}); err != nil {
		t.Error(err)
	}
	if err := get(&tls.Config{}); err == nil {
		t.Error("a client that doesn't know who signed the certificate takes it")
	}
	if err := get(&tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if _, err := (feature.Serve{Cert: files.ServerCert, Key: files.CA}).TLS(""); err == nil {
		t.Error("a key that is none is taken")
	}
}
