package ingest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/loamdata/loam/feature"
)

// Access says how the brokers are talked to.
type Access struct {
	TLS  *tls.Config    // nil for none
	SASL sasl.Mechanism // nil for none
}

// AccessOf reads how a project's brokers are talked to; dir is the project's folder. Secrets are read again for each connection, so that
// they may change, and once now, so that one that is missing is told at once.
func AccessOf(b feature.Broker, dir string) (Access, error) {
	var a Access
	var err error
	if a.TLS, err = b.TLS.Config(dir); err != nil {
		return a, fmt.Errorf("broker: %w", err)
	}
	s := b.SASL
	for key, c := range map[string]feature.Credential{"password": s.Password, "token": s.Token, "client_secret": s.ClientSecret} {
		if _, err := readSecret(c, key, dir); err != nil {
			return a, err
		}
	}
	switch s.Mechanism {
	case feature.Plain:
		a.SASL = plain.Plain(func(context.Context) (plain.Auth, error) {
			password, err := readSecret(s.Password, "password", dir)
			return plain.Auth{User: s.User, Pass: password}, err
		})
	case feature.ScramSHA256, feature.ScramSHA512:
		login := func(context.Context) (scram.Auth, error) {
			password, err := readSecret(s.Password, "password", dir)
			return scram.Auth{User: s.User, Pass: password}, err
		}
		if a.SASL = scram.Sha512(login); s.Mechanism == feature.ScramSHA256 {
			a.SASL = scram.Sha256(login)
		}
	case feature.OAuthBearer:
		tokens, err := newTokens(s, b.TLS, dir)
		if err != nil {
			return a, err
		}
		a.SASL = oauth.Oauth(func(ctx context.Context) (oauth.Auth, error) {
			token, err := tokens.token(ctx)
			return oauth.Auth{Token: token}, err
		})
	}
	return a, nil
}

// readSecret reads what a key of broker.sasl names, if it names anything.
func readSecret(c feature.Credential, key, dir string) (string, error) {
	text, err := c.Read(dir)
	if err != nil {
		return "", fmt.Errorf("read broker.sasl.%s of %s: %w", key, feature.ProjectFile, err)
	}
	return text, nil
}

// connection are the options of a client that say how the brokers are reached.
func (o *KafkaOptions) connection() []kgo.Opt {
	return append(o.Access.Options(), kgo.SeedBrokers(o.Seeds...), kgo.DialTimeout(5*time.Second), kgo.RetryTimeout(connectTimeout))
}

// Options are those of a client that talks to the brokers in this way.
func (a Access) Options() []kgo.Opt {
	var all []kgo.Opt
	if a.TLS != nil {
		all = append(all, kgo.DialTLSConfig(a.TLS))
	}
	if a.SASL != nil {
		all = append(all, kgo.SASL(a.SASL))
	}
	return all
}

// unreachable says what to do where the brokers gave no answer.
func (o *KafkaOptions) unreachable(err error) error {
	remedy := fmt.Sprintf("no broker answers at %v; start it or mend broker.seeds", o.Seeds)
	switch {
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		remedy = fmt.Sprintf("the brokers at %v refuse the login; mend broker.sasl, or the secret in the place that it names,", o.Seeds)
	case errors.Is(err, kerr.UnsupportedSaslMechanism):
		remedy = fmt.Sprintf("the brokers at %v know no such mechanism; mend broker.sasl.mechanism", o.Seeds)
	case errors.Is(err, errNoToken):
		remedy = "no token to log in with; mend broker.sasl"
	case errors.As(err, new(*tls.CertificateVerificationError)):
		remedy = fmt.Sprintf("the certificate of the brokers at %v is not one to trust; mend broker.tls: ca names who signed it, server_name the name in it,", o.Seeds)
	case errors.As(err, new(tls.RecordHeaderError)):
		remedy = fmt.Sprintf("the brokers at %v don't talk TLS on this port; mend broker.seeds, or leave out broker.tls,", o.Seeds)
	case errors.As(err, new(*kgo.ErrFirstReadEOF)), errors.Is(err, io.EOF):
		remedy = fmt.Sprintf("the brokers at %v end the connection, as they do where they want TLS, a client's certificate or a login; see broker.tls and broker.sasl", o.Seeds)
	}
	return fmt.Errorf("%s in %s: %w", remedy, feature.ProjectFile, err)
}

// errNoToken: there is no token to log in with.
var errNoToken = errors.New("get a token")

// Bounds of asking for a token.
const (
	tokenTimeout  = 10 * time.Second
	tokenBytesMax = 1 << 20
	// tokenEarly is how long before its end a token is asked for anew.
	tokenEarly = 30 * time.Second
)

// tokens gives tokens for OAUTHBEARER: one that stands somewhere, or those that an address gives for a client's id and secret, as
// RFC 6749 says in 4.4. It is safe for concurrent use.
type tokens struct {
	sasl   feature.SASL
	dir    string
	client *http.Client
	now    func() time.Time

	mu    sync.Mutex
	value string
	until time.Time
}

func newTokens(s feature.SASL, t feature.TLS, dir string) (*tokens, error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	if t.CA != "" { // who signs certificates in the house may have signed this one, too
		pool, err := t.Roots(dir)
		if err != nil {
			return nil, fmt.Errorf("broker: %w", err)
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	return &tokens{sasl: s, dir: dir, now: time.Now, client: &http.Client{
		Timeout: tokenTimeout, Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the secret goes where it was meant to
	}}, nil
}

func (t *tokens) token(ctx context.Context) (string, error) {
	if t.sasl.Token.Given() {
		token, err := readSecret(t.sasl.Token, "token", t.dir)
		if err != nil {
			return "", fmt.Errorf("%w: %w", errNoToken, err)
		}
		return token, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.now().Before(t.until) {
		return t.value, nil
	}
	value, lasts, err := t.ask(ctx)
	if err != nil {
		return "", fmt.Errorf("%w at %s: %w", errNoToken, t.sasl.TokenURL, err)
	}
	t.value, t.until = value, t.now().Add(lasts-tokenEarly)
	return value, nil
}

// ask asks for a token, and says how long it lasts. What the answer holds is in no error: it may repeat what was sent.
func (t *tokens) ask(ctx context.Context) (string, time.Duration, error) {
	secret, err := readSecret(t.sasl.ClientSecret, "client_secret", t.dir)
	if err != nil {
		return "", 0, err
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	if t.sasl.Scope != "" {
		form.Set("scope", t.sasl.Scope)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, t.sasl.TokenURL, strings.NewReader(form.Encode()))
	if err != nil {
		return "", 0, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	request.Header.Set("Accept", "application/json")
	request.SetBasicAuth(url.QueryEscape(t.sasl.ClientID), url.QueryEscape(secret))
	response, err := t.client.Do(request)
	if err != nil {
		return "", 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", 0, fmt.Errorf("it answers %s; mend client_id, scope, or the secret in the place that client_secret names", response.Status)
	}
	var answer struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_in"` // seconds
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, tokenBytesMax)).Decode(&answer); err != nil || answer.Token == "" {
		return "", 0, errors.New("its answer is not JSON with an access_token")
	}
	return answer.Token, time.Duration(min(max(answer.Expires, 0), 1<<30)) * time.Second, nil
}
