package feature

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:embed builtin/*.yaml
var builtinFiles embed.FS

// ProjectFile is the file that makes a folder a project.
const ProjectFile = "loam.yaml"

// CheckExpr checks an expression over the columns: that it parses, is a deterministic scalar expression, and casts to
// want. It returns the names of the columns that the expression reads. The engine that will run the expression
// implements it.
type CheckExpr func(expr string, columns []Column, want Type) (reads []string, err error)

// Load reads and checks the project folder dir. Where anything is wrong the error is a [Problems] with all of it, except
// for a folder that can't be read at all.
func Load(dir string, check CheckExpr) (*Project, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find the project folder: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(abs, ProjectFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no %s: run `loam init %s` to make it a project, or give its folder with -C", dir, ProjectFile, dir)
	} else if err != nil {
		return nil, fmt.Errorf("read the project: %w", err)
	}
	var problems Problems
	l := &loader{
		problems: &problems,
		onDemand: map[*View][]string{},
		project: &Project{
			Dir:  abs,
			Lake: Lake{Catalog: ".loam/catalog.db", Warehouse: ".loam/warehouse", FormatVersion: 3},
		},
	}
	l.loadProject(text)
	l.loadBuiltins()
	for _, part := range []struct {
		folder string
		load   func(*reader, *yaml.Node)
	}{
		{"streams", l.loadStream}, {"features", l.loadFeatures}, {"datasets", l.loadDataset},
	} {
		if err := l.loadFolder(part.folder, part.load); err != nil {
			return nil, err
		}
	}
	l.check(check)
	if err := problems.err(); err != nil {
		return nil, err
	}
	return l.project, nil
}

// loader holds a project while its files are read; references are resolved once all of them have been.
type loader struct {
	project  *Project
	problems *Problems
	builtins map[string]*Stream
	declared map[string]Place // streams declared by the user
	requests []request
	services []service
	onDemand map[*View][]string // inputs of views on demand, as they were written
	expr     CheckExpr          // of the engine, once references are resolved
}

// request and service are what was written, before its features are resolved.
type request struct {
	*DatasetRequest
	features []string
	reader   *reader
	keys     map[string]*yaml.Node // that the file has
}

type service struct {
	*Service
	features []string
}

func (l *loader) reader(file string) *reader { return &reader{file: file, problems: l.problems} }

func (l *loader) loadFolder(folder string, load func(*reader, *yaml.Node)) error {
	entries, err := os.ReadDir(filepath.Join(l.project.Dir, folder))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read the project: %w", err)
	}
	for _, e := range entries {
		file := path.Join(folder, e.Name())
		if ext := filepath.Ext(e.Name()); e.IsDir() || strings.HasPrefix(e.Name(), ".") || (ext != ".yaml" && ext != ".yml") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(l.project.Dir, file))
		if err != nil {
			return fmt.Errorf("read the project: %w", err)
		}
		r := l.reader(file)
		if root := r.document(text); root != nil {
			load(r, root)
		}
	}
	return nil
}

var projectName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)

func (l *loader) loadProject(text []byte) {
	r, p := l.reader(ProjectFile), l.project
	root := r.document(text)
	if root == nil {
		root = &yaml.Node{Kind: yaml.MappingNode, Line: 1}
	}
	seen := r.mapping(root, "", fields{
		"project": r.str(&p.Name),
		"lake": func(n *yaml.Node, field string) {
			r.mapping(n, field, fields{
				"catalog":        r.str(&p.Lake.Catalog),
				"warehouse":      r.str(&p.Lake.Warehouse),
				"format_version": r.formatVersion(&p.Lake.FormatVersion),
				"view_catalog":   r.viewCatalog(&p.Lake.ViewCatalog),
				"properties":     r.stringMap(&p.Lake.Properties),
			})
		},
		"broker": func(n *yaml.Node, field string) {
			r.given(n, field, "tls", "sasl")
			seen := r.mapping(n, field, fields{"seeds": r.strs(&p.Broker.Seeds), "group": r.str(&p.Broker.Group), "tls": r.tls(&p.Broker.TLS), "sasl": r.sasl(&p.Broker.SASL)})
			if m := p.Broker.SASL.Mechanism; (m == Plain || m == OAuthBearer) && !p.Broker.TLS.On {
				r.problem(seen["sasl"], join(field, "sasl"), fmt.Sprintf("%s sends the secret as it is, and without tls anybody on the way can read it", m), "add tls: {}, or use SCRAM-SHA-512")
			}
			if seen["seeds"] == nil || len(p.Broker.Seeds) == 0 {
				r.problem(n, field+".seeds", "missing", "name the brokers, such as [127.0.0.1:9092], or leave broker out to use topic folders")
			}
			for _, seed := range p.Broker.Seeds {
				r.hostPort(n, field+".seeds", seed)
			}
		},
		"serve":    r.serve(&p.Serve),
		"memory":   parsed(r, &p.MemoryBytes, ParseMemory),
		"registry": func(n *yaml.Node, field string) { r.registry(n, field, &p.Registry) },
		"online": func(n *yaml.Node, field string) {
			r.given(n, field, "tls", "user", "password")
			seen := r.mapping(n, field, fields{
				"redis": r.addresses(&p.Online.Redis), "cluster": r.boolean(&p.Online.Cluster), "tls": r.tls(&p.Online.TLS), "user": r.str(&p.Online.User), "password": r.credential(&p.Online.Password, false),
			})
			if seen["user"] != nil && seen["password"] == nil {
				r.problem(n, join(field, "password"), "missing", "say where the user's password is: {env: NAME} or {file: path}")
			}
			if seen["redis"] == nil {
				r.problem(n, field+".redis", "missing", "give the address, such as 127.0.0.1:6379, or leave online out")
				return
			}
			addresses := strings.Split(p.Online.Redis, ",")
			for _, address := range addresses {
				r.hostPort(n, field+".redis", address)
			}
			if len(addresses) > 1 {
				if seen["cluster"] != nil && !p.Online.Cluster {
					r.problem(seen["cluster"], join(field, "cluster"), "several addresses are those of a cluster", "give one address, or remove the line")
				}
				p.Online.Cluster = true
			}
		},
	})
	switch {
	case seen["project"] == nil:
		r.problem(root, "project", "missing", "name the project, such as project: crm")
	case !projectName.MatchString(p.Name):
		r.problem(seen["project"], "project", fmt.Sprintf("%q is not a project name", p.Name),
			"use lower-case letters, digits and _, starting with a letter, 63 at most")
	}
}

// given notes keys that are there without a value. Left out they would turn off what they are to turn on.
func (r *reader) given(n *yaml.Node, path string, keys ...string) {
	if n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if key, value := n.Content[i], n.Content[i+1]; value.Tag == "!!null" && slices.Contains(keys, key.Value) {
			r.problem(key, join(path, key.Value), "the key has no value", "give it one, such as {}, or remove the line")
		}
	}
}

// addresses reads one address, several joined by commas, or a list of them, and joins them by commas.
func (r *reader) addresses(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		var list []string
		if n.Kind == yaml.SequenceNode {
			r.strs(&list)(n, field)
		} else if text, ok := r.text(n, field); ok {
			list = strings.Split(text, ",")
		}
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		*dst = strings.Join(list, ",")
	}
}

// hostPort notes a problem unless text is host:port.
func (r *reader) hostPort(n *yaml.Node, field, text string) {
	if strings.ContainsAny(text, "@/") { // which may hold a password
		r.problem(n, field, "an address is host:port, and holds no user or password", "name the user and the place of the password in keys of their own")
		return
	}
	i := strings.LastIndexByte(text, ':')
	port, err := strconv.Atoi(text[i+1:])
	if i < 1 || err != nil || port < 1 || port > 65535 {
		r.problem(n, field, fmt.Sprintf("%q is not host:port", text), "write an address such as 127.0.0.1:9092")
	}
}

// registry reads where the registry is, and where its credentials stand.
func (r *reader) registry(n *yaml.Node, field string, dst *Registry) {
	seen := r.mapping(n, field, fields{
		"url": r.str(&dst.URL), "username": r.credential(&dst.Username, true), "password": r.credential(&dst.Password, false),
	})
	if seen == nil {
		return
	}
	if seen["url"] == nil {
		r.problem(n, field+".url", "missing", "give the registry's address, such as https://registry.example.com, or leave registry out")
		return
	}
	u, err := url.Parse(dst.URL)
	switch {
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		// The text isn't quoted: it may hold a password.
		r.problem(seen["url"], field+".url", "not an address that begins with http:// or https://", "write an address such as https://registry.example.com")
	case u.User != nil:
		r.problem(seen["url"], field+".url", "an address doesn't hold credentials", "give them as username and password: {env: REGISTRY_PASSWORD}")
	case u.RawQuery != "" || u.Fragment != "":
		r.problem(seen["url"], field+".url", "an address ends before ? and #", "write an address such as https://registry.example.com")
	}
	if (seen["username"] == nil) != (seen["password"] == nil) {
		r.problem(n, field, "a username and a password go together", "give both, or neither")
	}
}

// formatVersion reads the version of Iceberg's format that tables are made with.
func (r *reader) formatVersion(dst *int) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		if n.Value != "2" && n.Value != "3" {
			r.problem(n, field, fmt.Sprintf("format version %s is not supported", n.Value), "write 3, or 2 for readers without deletion vectors, or leave the line out")
			return
		}
		*dst = int(n.Value[0] - '0')
	}
}

var catalogName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)

// viewCatalog reads the name of a catalog in another engine.
func (r *reader) viewCatalog(dst *string) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		name, ok := r.text(n, field)
		if ok && !catalogName.MatchString(name) {
			r.problem(n, field, fmt.Sprintf("%q is not a catalog's name", name),
				"write the name that Trino has for this catalog, of letters, digits, _ and -, or leave the line out")
			return
		}
		*dst = name
	}
}

func (r *reader) stringMap(dst *map[string]string) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		if n.Kind != yaml.MappingNode {
			r.problem(n, field, "want a mapping of names to text", "")
			return
		}
		*dst = map[string]string{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			if s, ok := r.text(n.Content[i+1], join(field, n.Content[i].Value)); ok {
				(*dst)[n.Content[i].Value] = s
			}
		}
	}
}

// loadBuiltins reads the canonical streams. They are part of the binary: a problem in them is a defect of loam.
func (l *loader) loadBuiltins() {
	l.builtins, l.declared = map[string]*Stream{}, map[string]Place{}
	names, err := fs.Glob(builtinFiles, "builtin/*.yaml")
	if err != nil {
		panic(err)
	}
	for _, name := range names {
		text, err := builtinFiles.ReadFile(name)
		if err != nil {
			panic(err)
		}
		r := l.reader("built-in/" + path.Base(name))
		s := newStream(Place{File: r.file})
		l.readStream(r, r.document(text), s)
		l.builtins[s.Name] = s
		l.project.Streams = append(l.project.Streams, s)
	}
}

// Builtins are the names of the streams that loam brings.
func (l *loader) builtinNames() []string { return slices.Sorted(maps.Keys(l.builtins)) }

// Builtin gives the built-in stream of that name. There must be one.
func Builtin(name string) *Stream {
	l := &loader{project: &Project{}, problems: new(Problems)}
	l.loadBuiltins()
	return l.builtins[name]
}
