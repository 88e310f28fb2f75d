package feature

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// reader walks one YAML file strictly and collects what is wrong instead of stopping at it.
type reader struct {
	file     string
	problems *Problems
}

// document parses the bytes as one YAML document and returns its root, or nil with a problem noted. An empty file gives
// nil without one.
func (r *reader) document(text []byte) *yaml.Node {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := decoder.Decode(&doc); err != nil {
		if !errors.Is(err, io.EOF) {
			r.problems.add(Place{r.file, yamlErrorLine(err)}, "", "not YAML: "+strings.TrimPrefix(err.Error(), "yaml: "), "mend the syntax")
		}
		return nil
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		r.problems.add(Place{r.file, second.Line}, "", "more than one YAML document", "put each stream in a file of its own, without ---")
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	return doc.Content[0]
}

func yamlErrorLine(err error) int {
	text := err.Error()
	if _, after, ok := strings.Cut(text, "line "); ok {
		digits, _, _ := strings.Cut(after, ":")
		if n, err := strconv.Atoi(digits); err == nil {
			return n
		}
	}
	return 0
}

func (r *reader) place(n *yaml.Node) Place { return Place{r.file, n.Line} }

func (r *reader) problem(n *yaml.Node, field, what, remedy string) {
	r.problems.add(r.place(n), field, what, remedy)
}

// fields says how to read each key of a mapping. A nil function marks a key that is known but can't be used yet.
type fields map[string]func(value *yaml.Node, field string)

// mapping reads n's keys by known; any other key, a repeated key and anything but a mapping are problems. It returns
// the keys that were present.
func (r *reader) mapping(n *yaml.Node, path string, known fields) map[string]*yaml.Node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		r.problem(n, path, "want a mapping of keys to values", "see the example that `loam init` writes")
		return nil
	}
	names := make([]string, 0, len(known))
	for name := range known {
		names = append(names, name)
	}
	slices.Sort(names)
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field := join(path, key.Value)
		if seen[key.Value] != nil {
			r.problem(key, field, "the key stands twice", "keep one of them")
			continue
		}
		seen[key.Value] = value
		read, ok := known[key.Value]
		switch {
		case !ok:
			r.problem(key, field, "unknown field", didYouMean(key.Value, names))
		case read == nil:
			r.problem(key, field, "not supported yet", "remove it")
		case value.Tag == "!!null":
			// A key without a value, such as the commented rest of a template, is as if it were absent.
			delete(seen, key.Value)
		default:
			if value.Kind == yaml.AliasNode {
				value = value.Alias
			}
			read(value, field)
		}
	}
	return seen
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// sequence reads each item of a list; a single value counts as a list of one.
func (r *reader) sequence(n *yaml.Node, path string, item func(n *yaml.Node, field string)) {
	if n.Kind != yaml.SequenceNode {
		item(n, path)
		return
	}
	for i, c := range n.Content {
		if c.Kind == yaml.AliasNode {
			c = c.Alias
		}
		item(c, fmt.Sprintf("%s[%d]", path, i))
	}
}

func (r *reader) text(n *yaml.Node, field string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.problem(n, field, "want text", "")
		return "", false
	}
	return n.Value, true
}

// into readers: each returns a function that reads the value into dst.

func (r *reader) str(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		if s, ok := r.text(n, field); ok {
			*dst = s
		}
	}
}

func (r *reader) strs(dst *[]string) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		*dst = []string{}
		r.sequence(n, field, func(n *yaml.Node, field string) {
			if s, ok := r.text(n, field); ok {
				*dst = append(*dst, s)
			}
		})
	}
}

func (r *reader) boolean(dst *bool) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
			r.problem(n, field, "want true or false", "")
			return
		}
		*dst = n.Value == "true"
	}
}

func (r *reader) duration(dst *time.Duration) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		s, ok := r.text(n, field)
		if !ok {
			return
		}
		d, err := ParseDuration(s)
		if err != nil {
			r.problem(n, field, err.Error(), "")
			return
		}
		*dst = d
	}
}

// enum reads one of a few words.
func enum[T ~string](r *reader, dst *T, allowed ...T) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		s, ok := r.text(n, field)
		if !ok {
			return
		}
		if !slices.Contains(allowed, T(s)) {
			words := make([]string, len(allowed))
			for i, a := range allowed {
				words[i] = string(a)
			}
			r.problem(n, field, fmt.Sprintf("%q is not one of the values it may have", s), "use "+strings.Join(words, " or "))
			return
		}
		*dst = T(s)
	}
}
