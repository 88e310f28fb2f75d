package feature

import (
	"reflect"
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
