package feature

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Mechanism is how a client proves to a broker who it is.
type Mechanism string

// Mechanisms of SASL.
const (
	Plain       Mechanism = "PLAIN"
	ScramSHA256 Mechanism = "SCRAM-SHA-256"
	ScramSHA512 Mechanism = "SCRAM-SHA-512"
	OAuthBearer Mechanism = "OAUTHBEARER"
)

// SASL says who loam is to a broker; without a mechanism it says nothing.
type SASL struct {
	Mechanism Mechanism
	User      string
	Password  Credential
	// Of OAUTHBEARER: a token, or what one is got for.
	Token        Credential
	TokenURL     string
	ClientID     string
	ClientSecret Credential
	Scope        string
}

// sasl reads who loam is to a broker.
func (r *reader) sasl(dst *SASL) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		keys := []string{"mechanism", "user", "password", "token", "token_url", "client_id", "client_secret", "scope"}
		r.given(n, field, keys...)
		seen := r.mapping(n, field, fields{
			"mechanism": enum(r, &dst.Mechanism, Plain, ScramSHA256, ScramSHA512, OAuthBearer),
			"user":      r.str(&dst.User), "password": r.credential(&dst.Password, false),
			"token": r.credential(&dst.Token, false), "token_url": r.tokenURL(&dst.TokenURL), "client_id": r.str(&dst.ClientID),
			"client_secret": r.credential(&dst.ClientSecret, false), "scope": r.str(&dst.Scope),
		})
		wants := []string{"mechanism", "user", "password"}
		switch {
		case dst.Mechanism == OAuthBearer && seen["token"] != nil:
			wants = []string{"mechanism", "token"}
		case dst.Mechanism == OAuthBearer:
			wants = []string{"mechanism", "token_url", "client_id", "client_secret"}
		}
		for _, key := range wants {
			if seen[key] == nil {
				r.problem(n, join(field, key), "missing", "give "+strings.Join(wants, ", ")+"; OAUTHBEARER takes token, or token_url, client_id and client_secret")
			}
		}
		for _, key := range keys {
			if seen[key] != nil && !slices.Contains(wants, key) && !(key == "scope" && slices.Contains(wants, "token_url")) {
				r.problem(seen[key], join(field, key), fmt.Sprintf("has no use beside %s", strings.Join(wants, ", ")), "remove it")
			}
		}
	}
}

// tokenURL reads the address that tokens are got from.
func (r *reader) tokenURL(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		text, ok := r.text(n, field)
		if !ok {
			return
		}
		if err := checkTokenURL(text); err != nil {
			r.problem(n, field, err.Error(), "write https://host/path; the secret has its place in client_secret")
			return
		}
		*dst = text
	}
}

func checkTokenURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return errors.New("this is not an address")
	}
	local := u.Hostname() == "localhost" || u.Hostname() == "127.0.0.1" || u.Hostname() == "::1"
	switch {
	case u.User != nil || u.RawQuery != "":
		return errors.New("the address may hold no user, password or parameters")
	case u.Scheme != "https" && !(u.Scheme == "http" && local):
		return errors.New("the secret would be sent where anybody can read it")
	}
	return nil
}
