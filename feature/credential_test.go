package feature

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Credentials are read where they stand, and no error quotes one.
func TestCredentials(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"secret": "hunter2\n", "spaced": " a b \r\n", "empty": "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("LOAM_TEST_SET", "hunter2")
	t.Setenv("LOAM_TEST_EMPTY", "")
	for _, one := range []struct {
		c           Credential
		want, wrong string
	}{
		{Credential{}, "", ""},
		{Credential{Text: "loam"}, "loam", ""},
		{Credential{Env: "LOAM_TEST_SET"}, "hunter2", ""},
		{Credential{File: "secret"}, "hunter2", ""},
		{Credential{File: filepath.Join(dir, "secret")}, "hunter2", ""},
		{Credential{File: "spaced"}, " a b ", ""},
		{Credential{Env: "LOAM_TEST_UNSET"}, "", "the environment variable LOAM_TEST_UNSET is not set"},
		{Credential{Env: "LOAM_TEST_EMPTY"}, "", "the environment variable LOAM_TEST_EMPTY is empty"},
		{Credential{File: "empty"}, "", "file empty is empty"},
		{Credential{File: "nosuch"}, "", "no such file"},
	} {
		got, err := one.c.Read(dir)
		if got != one.want || (err == nil) != (one.wrong == "") || (err != nil && !strings.Contains(err.Error(), one.wrong)) {
			t.Errorf("%+v gives %q, %v", one.c, got, err)
		}
	}
}

// A project with a registry, and a stream whose definition says how its topic is written; JSON is not said.
func TestEncoding(t *testing.T) {
	p, err := Load(write(t, map[string]string{
		"loam.yaml": "project: x\nbroker: {seeds: [127.0.0.1:9092]}\n" +
			"registry: {url: \"https://registry.example.com/api\", username: loam, password: {file: /run/secrets/registry}}",
		"streams/c.yaml": "stream: contact\nextend: true\nencoding: avro",
	}), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	r := p.Registry
	if r.URL != "https://registry.example.com/api" || r.Username.Text != "loam" || r.Password.File != "/run/secrets/registry" {
		t.Errorf("%+v", r)
	}
	contact, engagement := p.Stream("contact"), p.Stream("engagement")
	if !contact.Framed() || engagement.Framed() {
		t.Errorf("contact is %q, engagement %q", contact.Encoding, engagement.Encoding)
	}
	if text := contact.Definition().Text; !strings.Contains(text, `"encoding":"avro"`) {
		t.Error(text)
	}
	if text := engagement.Definition().Text; strings.Contains(text, "encoding") {
		t.Error(text)
	}
}
