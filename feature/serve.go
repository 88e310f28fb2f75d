package feature

import (
	"crypto/tls"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"go.yaml.in/yaml/v3"
)

// Serve says how the feature server answers. Numbers that are 0 leave its defaults.
type Serve struct {
	Cert, Key  string // files of the server's certificate and its key, "" for plain HTTP
	Keys       []APIKey
	BodyBytes  int64         // of a request
	LabelBytes int64         // of the labels of a training set
	Entities   int           // of a request
	Concurrent int           // requests that are answered at once
	Timeout    time.Duration // of a request
	keysAt     []Place       // of the keys, in their order
}

// APIKey lets who presents it read some views, and push to some streams.
type APIKey struct {
	Name  string
	Key   Credential
	Views []string // their names, or "*" for all there are
	Push  []string // streams that it may push to, or "*" for all there are
}

// TLS reads the certificate that the server shows. Without one it is nil.
func (s Serve) TLS(dir string) (*tls.Config, error) {
	if s.Cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(under(dir, s.Cert), under(dir, s.Key))
	if err != nil {
		return nil, fmt.Errorf("read %s and %s, the certificate and key that the server is to show: %w", s.Cert, s.Key, err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}, nil
}

// serve reads how the feature server answers.
func (r *reader) serve(dst *Serve) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		r.given(n, field, "tls", "keys")
		r.mapping(n, field, fields{
			"tls": func(n *yaml.Node, field string) {
				seen := r.mapping(n, field, fields{"cert": r.str(&dst.Cert), "key": r.str(&dst.Key)})
				if seen != nil && (seen["cert"] == nil || seen["key"] == nil) {
					r.problem(n, field, "a server shows a certificate, and needs its key", "name both files: {cert: certs/serve.crt, key: certs/serve.key}")
				}
			},
			"keys": func(n *yaml.Node, field string) {
				r.sequence(n, field, func(n *yaml.Node, field string) { r.apiKey(n, field, dst) })
			},
			"body":       parsed(r, &dst.BodyBytes, parseBody),
			"labels":     parsed(r, &dst.LabelBytes, parseBody),
			"entities":   parsed(r, &dst.Entities, parseCount),
			"concurrent": parsed(r, &dst.Concurrent, parseCount),
			"timeout":    parsed(r, &dst.Timeout, parseTimeout),
		})
	}
}

func (r *reader) apiKey(n *yaml.Node, field string, dst *Serve) {
	var k APIKey
	seen := r.mapping(n, field, fields{"name": r.str(&k.Name), "key": r.credential(&k.Key, false), "views": r.strs(&k.Views), "push": r.strs(&k.Push)})
	if seen == nil {
		return
	}
	for _, name := range []string{"name", "key", "views"} {
		if seen[name] == nil {
			r.problem(n, join(field, name), "missing", `a key is {name, key, views}, such as {name: scoring, key: {env: SCORING_KEY}, views: [profile]}, or views: ["*"] for all`)
			return
		}
	}
	if slices.ContainsFunc(dst.Keys, func(o APIKey) bool { return o.Name == k.Name }) {
		r.problem(n, join(field, "name"), fmt.Sprintf("two keys are called %s", k.Name), "give each a name of its own")
		return
	}
	dst.Keys, dst.keysAt = append(dst.Keys, k), append(dst.keysAt, r.place(n))
}

// checkServe holds keys to the views that there are.
func (l *loader) checkServe() {
	for i, k := range l.project.Serve.Keys {
		for _, v := range k.Views {
			if v != "*" && l.project.View(v) == nil {
				l.problems.add(l.project.Serve.keysAt[i], "serve.keys."+k.Name+".views", fmt.Sprintf("there is no feature view %q", v), didYouMean(v, l.project.viewNames()))
			}
		}
		for _, s := range k.Push {
			if s != "*" && l.project.Stream(s) == nil {
				var known []string
				for _, o := range l.project.Streams {
					known = append(known, o.Name)
				}
				l.problems.add(l.project.Serve.keysAt[i], "serve.keys."+k.Name+".push", fmt.Sprintf("there is no stream %q", s), didYouMean(s, known))
			}
		}
	}
}

// bodyMin and bodyMax bound serve.body, in bytes.
const (
	bodyMin = 1 << 10
	bodyMax = 1 << 30
)

func parseBody(text string) (int64, error) {
	m := bytesText.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is no size; write a whole number and KiB, MiB, GiB, KB, MB or GB, such as 1MiB", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no size: %w", text, err)
	}
	if n *= bytesUnits[m[2]]; n < bodyMin || n > bodyMax {
		return 0, fmt.Errorf("%s is not between 1KiB and 1GiB", text)
	}
	return n, nil
}

var countText = regexp.MustCompile(`^[1-9][0-9]{0,5}$`)

func parseCount(text string) (int, error) {
	if !countText.MatchString(text) {
		return 0, fmt.Errorf("%q is no number between 1 and 999999", text)
	}
	return strconv.Atoi(text)
}

func parseTimeout(text string) (time.Duration, error) {
	d, err := ParseDuration(text)
	if err == nil && (d < time.Millisecond || d > 10*time.Second) {
		return 0, fmt.Errorf("%s is not between 1ms and 10s", text)
	}
	return d, err
}
