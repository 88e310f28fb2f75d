package feature

import (
	"reflect"
	"strings"
	"testing"
)

// How broker and Redis are reached is read whole.
func TestLoadAccess(t *testing.T) {
	p, err := Load(write(t, map[string]string{
		"loam.yaml": `project: x
broker:
  seeds: [a:1]
  tls: {}
  sasl: {mechanism: OAUTHBEARER, token_url: "https://id.example/token", client_id: c, client_secret: {file: f}, scope: s}
online:
  redis: b:2
  tls: {ca: ca.crt, cert: c.crt, key: c.key, server_name: n}
  user: u
  password: {env: P}
`}), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	broker := Broker{
		Seeds: []string{"a:1"}, TLS: TLS{On: true},
		SASL: SASL{Mechanism: OAuthBearer, TokenURL: "https://id.example/token", ClientID: "c", ClientSecret: Credential{File: "f"}, Scope: "s"},
	}
	online := Online{Redis: "b:2", TLS: TLS{On: true, CA: "ca.crt", Cert: "c.crt", Key: "c.key", ServerName: "n"}, User: "u", Password: Credential{Env: "P"}}
	if !reflect.DeepEqual(p.Broker, broker) || p.Online != online {
		t.Errorf("%+v, %+v", p.Broker, p.Online)
	}
	if c, err := (TLS{}).Config(""); c != nil || err != nil {
		t.Errorf("without TLS: %v, %v", c, err)
	}
}

// A cluster is named by one address and the word, or by several of its servers.
func TestClusterAddresses(t *testing.T) {
	for yaml, want := range map[string]Online{
		"{redis: a:1}":                          {Redis: "a:1"},
		"{redis: a:1, cluster: true}":           {Redis: "a:1", Cluster: true},
		"{redis: 'a:1, b:2'}":                   {Redis: "a:1,b:2", Cluster: true},
		"{redis: [a:1, b:2, c:3]}":              {Redis: "a:1,b:2,c:3", Cluster: true},
		"{redis: [a:1, b:2], cluster: true}":    {Redis: "a:1,b:2", Cluster: true},
		"{redis: ['a:1'], cluster: false}":      {Redis: "a:1"},
		"{redis: [a:1, b:2], cluster: false}":   {},
		"{redis: 'a:1,b'}":                      {},
		"{redis: []}":                           {},
		"{redis: 'a:1,,b:2'}":                   {},
		"{redis: ['redis://u:p@h:1'], user: u}": {},
	} {
		p, err := Load(write(t, map[string]string{"loam.yaml": "project: x\nonline: " + yaml}), columnsIn)
		switch {
		case want == Online{}:
			if err == nil || !strings.Contains(err.Error(), "online.") {
				t.Errorf("%s: %v", yaml, err)
			}
		case err != nil || p.Online != want:
			t.Errorf("%s: %+v, %v, want %+v", yaml, p.Online, err, want)
		}
	}
}
