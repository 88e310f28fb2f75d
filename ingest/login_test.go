package ingest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/internal/certs"
)

const rightPassword, wrongPassword = "right-Xq71", "wrong-Zk93"

// connect opens the topic of a broker as a project says that it is to be reached.
func connect(b feature.Broker, dir string) error {
	access, err := AccessOf(b, dir)
	if err != nil {
		return err
	}
	k, err := OpenKafka(context.Background(), KafkaOptions{
		Seeds: b.Seeds, Access: access, Topics: []string{"contact.v1"}, UntilEnd: true,
		Starts: func(feature.Partition) int64 { return 0 }, TopicID: func(string) string { return "" },
	})
	if err != nil {
		return err
	}
	_, err = k.Poll(context.Background())
	k.Close()
	return err
}

// refusedWith fails unless the error says what was wrong, and no secret.
func refusedWith(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
	if err != nil && (strings.Contains(err.Error(), wrongPassword) || strings.Contains(err.Error(), rightPassword)) {
		t.Errorf("the error tells the secret: %v", err)
	}
}

// A broker that wants TLS, a client's certificate and a login gets them, and what is wrong is told.
func TestKafkaLogin(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "contact.v1"), kfake.TLS(files.Server(t)), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "loam", rightPassword), kfake.Superuser("SCRAM-SHA-256", "loam", rightPassword), kfake.Superuser("SCRAM-SHA-512", "loam", rightPassword))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	dir := t.TempDir()
	for name, text := range map[string]string{"right": rightPassword + "\n", "wrong": wrongPassword + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	right := feature.Broker{
		Seeds: cluster.ListenAddrs(), TLS: feature.TLS{On: true, CA: files.CA, Cert: files.ClientCert, Key: files.ClientKey},
		SASL: feature.SASL{Mechanism: feature.ScramSHA512, User: "loam", Password: feature.Credential{File: "right"}},
	}
	for _, m := range []feature.Mechanism{feature.Plain, feature.ScramSHA256, feature.ScramSHA512} {
		b := right
		b.SASL.Mechanism = m
		if err := connect(b, dir); err != nil {
			t.Errorf("%s: %v", m, err)
		}
		b.SASL.Password.File = "wrong"
		refusedWith(t, connect(b, dir), "see broker.tls and broker.sasl") // kfake ends the connection without a word
	}
	for name, c := range map[string]struct {
		change func(b *feature.Broker)
		want   string
	}{
		"another CA":         {func(b *feature.Broker) { b.TLS.CA = files.OtherCA }, "is not one to trust; mend broker.tls"},
		"the system's CAs":   {func(b *feature.Broker) { b.TLS.CA = "" }, "is not one to trust; mend broker.tls"},
		"another name":       {func(b *feature.Broker) { b.TLS.ServerName = "elsewhere.example" }, "is not one to trust; mend broker.tls"},
		"no certificate":     {func(b *feature.Broker) { b.TLS.Cert, b.TLS.Key = "", "" }, "loam.yaml"},
		"no TLS":             {func(b *feature.Broker) { b.TLS = feature.TLS{} }, "see broker.tls and broker.sasl"},
		"no login":           {func(b *feature.Broker) { b.SASL = feature.SASL{} }, "loam.yaml"},
		"another user":       {func(b *feature.Broker) { b.SASL.User = "nobody" }, "see broker.tls and broker.sasl"},
		"no CA file":         {func(b *feature.Broker) { b.TLS.CA = "no.crt" }, "read the tls.ca that loam.yaml names"},
		"a CA that is none":  {func(b *feature.Broker) { b.TLS.CA = "right" }, "holds no certificate"},
		"a key that is none": {func(b *feature.Broker) { b.TLS.Key = "right" }, "the tls.cert and tls.key that loam.yaml names"},
		"no secret":          {func(b *feature.Broker) { b.SASL.Password = feature.Credential{Env: "LOAM_TEST_NOT_SET"} }, "read broker.sasl.password of loam.yaml: the environment variable LOAM_TEST_NOT_SET is not set"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := right
			c.change(&b)
			refusedWith(t, connect(b, dir), c.want)
		})
	}
	right.TLS.ServerName = "localhost"
	if err := connect(right, dir); err != nil {
		t.Errorf("by name: %v", err)
	}
	letters, err := AccessOf(right, dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := OpenLetters(t.Context(), KafkaOptions{Seeds: right.Seeds, Access: letters}, []string{"contact.v1"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Produce(t.Context(), "contact.v1", []feature.DeadLetter{{Stream: "contact"}}); err != nil {
		t.Error(err)
	}
}

// A broker without TLS is told from one that doesn't answer.
func TestKafkaWithoutTLS(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "contact.v1"))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	refusedWith(t, connect(feature.Broker{Seeds: cluster.ListenAddrs(), TLS: feature.TLS{On: true, CA: files.CA}}, ""), "loam.yaml")
}

// A token is read where it stands, or got for a client's id and secret, and kept as long as it lasts.
func TestTokens(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"secret": rightPassword, "wrong": wrongPassword, "token": "tok-1\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		want := "Basic " + base64.StdEncoding.EncodeToString([]byte("the+id:"+rightPassword))
		switch {
		case r.URL.Path == "/elsewhere":
			http.Redirect(w, r, "/token", http.StatusTemporaryRedirect)
		case r.URL.Path == "/odd":
			fmt.Fprint(w, r.Header.Get("Authorization"))
		case r.Method != http.MethodPost || r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") != "kafka" || r.Header.Get("Authorization") != want:
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, r.Header.Get("Authorization"), wrongPassword) // an answer may repeat what it got
		default:
			_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "tok-2", "expires_in": 60})
		}
	}))
	defer server.Close()
	endpoint := feature.SASL{
		Mechanism: feature.OAuthBearer, TokenURL: server.URL + "/token", ClientID: "the id", ClientSecret: feature.Credential{File: "secret"}, Scope: "kafka",
	}
	now := time.Unix(1000, 0)
	ask := func(s feature.SASL) *tokens {
		t.Helper()
		got, err := newTokens(s, feature.TLS{}, dir)
		if err != nil {
			t.Fatal(err)
		}
		got.now = func() time.Time { return now }
		return got
	}
	kept := ask(endpoint)
	for _, c := range []struct{ after, asked int64 }{{0, 1}, {29, 1}, {1, 2}, {29, 2}, {60, 3}} {
		now = now.Add(time.Duration(c.after) * time.Second)
		if got, err := kept.token(t.Context()); err != nil || got != "tok-2" || asked.Load() != c.asked {
			t.Errorf("%+v: %q, %v, asked %d times", c, got, err, asked.Load())
		}
	}
	for name, c := range map[string]struct {
		change func(s *feature.SASL)
		want   string
	}{
		"another secret":     {func(s *feature.SASL) { s.ClientSecret.File = "wrong" }, "it answers 401 Unauthorized; mend client_id"},
		"somewhere else":     {func(s *feature.SASL) { s.TokenURL = server.URL + "/elsewhere" }, "it answers 307 Temporary Redirect"},
		"no JSON":            {func(s *feature.SASL) { s.TokenURL = server.URL + "/odd" }, "its answer is not JSON with an access_token"},
		"nobody":             {func(s *feature.SASL) { s.TokenURL = "http://127.0.0.1:1/token" }, "get a token at http://127.0.0.1:1/token"},
		"a secret that went": {func(s *feature.SASL) { s.ClientSecret.File = "gone" }, "read broker.sasl.client_secret of loam.yaml: open "},
	} {
		s := endpoint
		c.change(&s)
		_, err := ask(s).token(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), rightPassword) || strings.Contains(err.Error(), wrongPassword) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The broker gets the token.
func TestKafkaBearer(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "contact.v1"), kfake.TLS(files.Server(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	cluster.ControlKey(int16(kmsg.SASLHandshake), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		answer := r.ResponseKind().(*kmsg.SASLHandshakeResponse)
		answer.SupportedMechanisms = []string{"OAUTHBEARER"}
		return answer, nil, true
	})
	cluster.ControlKey(int16(kmsg.SASLAuthenticate), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		answer := r.ResponseKind().(*kmsg.SASLAuthenticateResponse)
		if !bytes.Contains(r.(*kmsg.SASLAuthenticateRequest).SASLAuthBytes, []byte("auth=Bearer "+rightPassword+"\x01")) {
			answer.ErrorCode = kerr.SaslAuthenticationFailed.Code
		}
		return answer, nil, true
	})
	dir := t.TempDir()
	for name, text := range map[string]string{"right": rightPassword, "wrong": wrongPassword} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := feature.Broker{
		Seeds: cluster.ListenAddrs(), TLS: feature.TLS{On: true, CA: files.CA, Cert: files.ClientCert, Key: files.ClientKey},
		SASL: feature.SASL{Mechanism: feature.OAuthBearer, Token: feature.Credential{File: "right"}},
	}
	if err := connect(b, dir); err != nil {
		t.Error(err)
	}
	b.SASL.Token.File = "wrong"
	refusedWith(t, connect(b, dir), "refuse the login; mend broker.sasl")
}
