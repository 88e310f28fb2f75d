package feature

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Credential says where a credential stands. It is read when it is used, so that a project is checked without it.
type Credential struct {
	Text string // the credential itself, which only a name may be
	Env  string // the environment variable that holds it
	File string // the file that holds it, relative to the project folder
}

// Given reports whether it was declared.
func (c Credential) Given() bool { return c != Credential{} }

// Read gives the credential, a file's without the line break at its end. dir is the project folder. Errors name where it
// was looked for, never what was found.
func (c Credential) Read(dir string) (string, error) {
	text := c.Text
	switch {
	case c.Env != "":
		var set bool
		if text, set = os.LookupEnv(c.Env); !set {
			return "", fmt.Errorf("the environment variable %s is not set", c.Env)
		}
	case c.File != "":
		b, err := os.ReadFile(under(dir, c.File))
		if err != nil {
			return "", err
		}
		text = strings.TrimRight(string(b), "\r\n")
	}
	if text == "" && c.Given() {
		return "", fmt.Errorf("%s is empty", c)
	}
	return text, nil
}

func (c Credential) String() string {
	switch {
	case c.Env != "":
		return "the environment variable " + c.Env
	case c.File != "":
		return "file " + c.File
	default:
		return "the text"
	}
}

// under is a path of the project folder, or one that stands alone.
func under(dir, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// credential reads {env: NAME} or {file: path}, or where plain is set the text itself. A secret that stands in the file is refused, and
// not shown.
func (r *reader) credential(dst *Credential, plain bool) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		if n.Kind != yaml.MappingNode {
			if !plain {
				r.problem(n, field, "a secret may not stand in the file",
					"write {env: NAME} or {file: path}, which say where it is; one that has stood here is known to who reads the file: change it")
				return
			}
			if r.str(&dst.Text)(n, field); dst.Text == "" {
				r.problem(n, field, "is empty", "write the name, or {env: NAME} or {file: path}")
			}
			return
		}
		r.mapping(n, field, fields{"env": r.str(&dst.Env), "file": r.str(&dst.File)})
		if (dst.Env == "") == (dst.File == "") {
			r.problem(n, field, "want one of env and file", "write {env: NAME} or {file: path}")
		}
	}
}
