package feature

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/loamdata/loam/examples"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the goldens under testdata with what the code gives")

// columnsIn stands in for the engine's check: it finds columns by their names and takes everything else.
func columnsIn(expr string, columns []Column, _ Type) ([]string, error) {
	if strings.Contains(expr, "now(") {
		return nil, fmt.Errorf("function now is not allowed")
	}
	var reads []string
	for _, c := range columns {
		if strings.Contains(expr, c.Name) {
			reads = append(reads, c.Name)
		}
	}
	return reads, nil
}

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func exampleFiles(t *testing.T) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := fs.WalkDir(examples.CRM, "crm", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := examples.CRM.ReadFile(path)
		files[strings.TrimPrefix(path, "crm/")] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestLoadTheExample(t *testing.T) {
	p, err := Load(write(t, exampleFiles(t)), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "crm" || p.Lake.Catalog != ".loam/catalog.db" || p.Lake.FormatVersion != 3 || p.Online.Redis != "" {
		t.Errorf("project %+v", p)
	}
	var streams []string
	for _, s := range p.Streams {
		streams = append(streams, s.Name)
	}
	if want := []string{"contact", "engagement", "opportunity"}; !slices.Equal(streams, want) {
		t.Errorf("streams %v, want %v", streams, want)
	}
	contact := p.Stream("contact")
	if contact.Tracked("contact_id") || contact.Tracked("source_metadata") || !contact.Tracked("attributes") {
		t.Error("contact tracks the wrong columns")
	}
	if p.StreamOf("Contact.merged") != contact || p.StreamOf("Contacts.merged") != nil || p.StreamOf("Contact") != nil {
		t.Error("event types go to the wrong stream")
	}
	profile := p.View("profile")
	if profile.TTL != 90*24*time.Hour || profile.Features[0].Type.Kind != String || profile.Features[1].Type.Kind != Int64 {
		t.Errorf("view %+v", profile)
	}
	if got, want := p.View("activity").FeatureNames(), []string{"emails_opened_1d", "emails_opened_7d", "emails_opened_30d"}; !slices.Equal(got, want) {
		t.Errorf("features %v, want %v", got, want)
	}
	if d := p.Datasets[0]; len(d.Features) != 3 || d.AsOf != ServedClock || d.TimeColumn != DefaultTimeColumn {
		t.Errorf("dataset %+v", d)
	}
}

// A key appended to the example's loam.yaml gives a valid file, for every other line of it is a comment.
func TestAppendedKeysAreValid(t *testing.T) {
	files := exampleFiles(t)
	files["loam.yaml"] += "online: {redis: 127.0.0.1:6390}\nbroker: {seeds: [127.0.0.1:9093]}\n"
	p, err := Load(write(t, files), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	if p.Online.Redis != "127.0.0.1:6390" || p.Broker.Seeds[0] != "127.0.0.1:9093" {
		t.Errorf("project %+v", p)
	}
}

func TestLoadWithoutProjectFile(t *testing.T) {
	_, err := Load(t.TempDir(), columnsIn)
	if err == nil || !strings.Contains(err.Error(), "loam init") {
		t.Errorf("error %v, want one that tells of loam init", err)
	}
}

// TestProblems holds that all problems of a folder come at once, each with file, line, field and remedy.
func TestProblems(t *testing.T) {
	cases, err := filepath.Glob("testdata/bad/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range cases {
		t.Run(filepath.Base(path), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string]string{}
			var want *txtar.File
			for i, f := range archive.Files {
				if f.Name == "want" {
					want = &archive.Files[i]
					continue
				}
				files[f.Name] = string(f.Data)
			}
			_, err = Load(write(t, files), columnsIn)
			if err == nil {
				t.Fatal("no error")
			}
			got := err.Error() + "\n"
			if *rewrite {
				want.Data = []byte(got)
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(want.Data) {
				t.Errorf("problems\n%s\nwant\n%s", got, want.Data)
			}
		})
	}
}

func TestExtendAndReplace(t *testing.T) {
	p, err := Load(write(t, map[string]string{
		"loam.yaml":           "project: x",
		"streams/more.yaml":   "stream: contact\nextend: true\nallowed_lateness: 1h\ncolumns: [{name: plan, type: string, path: attributes.plan}]",
		"streams/other.yaml":  "stream: opportunity\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ncolumns: [{name: id, type: int64}]",
		"streams/custom.yaml": "stream: crm_account\nkind: state\nformat: envelope\nkey: [id]\ncolumns: [{name: id, type: int64}, {name: tags, type: list<string>}]",
	}), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	contact := p.Stream("contact")
	if plan, ok := contact.Column("plan"); !ok || !slices.Equal(plan.Path, []string{"attributes", "plan"}) || !contact.Tracked("plan") {
		t.Errorf("contact is not extended: %+v", contact)
	}
	if contact.AllowedLateness != time.Hour || contact.EventTime != "updated_at" {
		t.Errorf("contact lost or kept the wrong settings: %+v", contact)
	}
	if o := p.Stream("opportunity"); o.Format != RowFormat || len(o.Columns) != 1 || o.Topic != "opportunity.v1" {
		t.Errorf("opportunity is not replaced whole: %+v", o)
	}
	if s := p.StreamOf("CrmAccount.updated"); s == nil || s.Name != "crm_account" || s.MaxClockSkew != 5*time.Minute {
		t.Errorf("crm_account takes no events: %+v", s)
	}
}

func TestTypes(t *testing.T) {
	for _, text := range []string{"bool", "int64", "double", "decimal(18,4)", "string", "timestamp", "date", "json", "list<string>", "list<decimal(38,0)>"} {
		typ, err := ParseType(text)
		if err != nil || typ.String() != text {
			t.Errorf("%s: %v, %v", text, typ, err)
		}
	}
	for _, text := range []string{"", "decimal", "decimal(39,0)", "decimal(3,4)", "decimal(0,0)", "list<>", "list<list<string>>", "String", "text"} {
		if typ, err := ParseType(text); err == nil {
			t.Errorf("%q is taken as %v", text, typ)
		}
	}
}

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{"90d": 90 * 24 * time.Hour, "5m": 5 * time.Minute, "0": 0, "0s": 0, "250ms": 250 * time.Millisecond, "7us": 7 * time.Microsecond, "36h": 36 * time.Hour} {
		d, err := ParseDuration(text)
		if err != nil || d != want {
			t.Errorf("%s: %v, %v", text, d, err)
		}
		if back, err := ParseDuration(FormatDuration(d)); err != nil || back != d {
			t.Errorf("%s does not come back: %v, %v", text, back, err)
		}
	}
	for _, text := range []string{"", "5", "-5m", "1.5h", "1w", "999999999d", "5 m"} {
		if d, err := ParseDuration(text); err == nil {
			t.Errorf("%q is taken as %v", text, d)
		}
	}
}

func TestHop(t *testing.T) {
	for window, want := range map[time.Duration]time.Duration{
		5 * time.Minute: 5 * time.Minute, 12*time.Hour - time.Minute: 5 * time.Minute, 12 * time.Hour: time.Hour,
		12*24*time.Hour - time.Hour: time.Hour, 12 * 24 * time.Hour: 24 * time.Hour,
	} {
		if got := Hop(window); got != want {
			t.Errorf("hop of %v is %v, want %v", window, got, want)
		}
	}
}

func randomOrder(r *rand.Rand) Order {
	edge := func(least, greatest int64) int64 {
		switch r.IntN(4) {
		case 0:
			return least
		case 1:
			return greatest
		default:
			return least + r.Int64N(3)
		}
	}
	o := Order{
		EventTime: edge(-1<<63, 1<<63-1), Live: r.IntN(2) == 0, TopicHash: uint32(edge(0, 1<<32-1)),
		Partition: int32(edge(0, PartitionMax)), Offset: edge(0, OffsetMax),
	}
	if r.IntN(3) > 0 {
		o.HasSequence, o.Sequence = true, edge(-1<<63, 1<<63-1)
	}
	return o
}

// Orders compare as their texts do, and come back from them.
func TestOrderText(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		a, b := randomOrder(r), randomOrder(r)
		ta, tb := a.String(), b.String()
		if want := OrderDigits + OrderSequenceDigits*int(bit(a.HasSequence)); len(ta) != want {
			t.Fatalf("%+v is %q", a, ta)
		}
		if got, want := strings.Compare(ta, tb), a.Compare(b); got != want {
			t.Fatalf("%+v and %+v compare %d as text, %d as orders", a, b, got, want)
		}
		if back, err := ParseOrder(ta); err != nil || back != a {
			t.Fatalf("%+v comes back as %+v, %v", a, back, err)
		}
	}
	o := Order{EventTime: 1751328000000000, HasSequence: true, Sequence: 7, Live: true, TopicHash: TopicHash("contact.v1"), Partition: 3, Offset: 41}
	if got, frozen := o.String(), "800638d2d353400018000000000000007114b8536c000003000000000029"; got != frozen {
		t.Errorf("%q, frozen %q", got, frozen)
	}
	o.HasSequence = false
	if got, frozen := o.String(), "800638d2d35340000114b8536c000003000000000029"; got != frozen {
		t.Errorf("%q, frozen %q", got, frozen)
	}
	for _, text := range []string{
		"", strings.Repeat("0", 43), strings.Repeat("0", 60), strings.Repeat("g", 44), strings.Repeat("A", 44), strings.Repeat("f", 44),
		"800638d2d353400010114b8536c000003000000000029", "800638d2d35340000214b8536c000003000000000029",
	} {
		if o, err := ParseOrder(text); err == nil {
			t.Errorf("%q is taken as %+v", text, o)
		}
	}
}

// A rename is told as one, whatever else the plan says of the stream.
func TestPlanOfARename(t *testing.T) {
	stream := func(columns, more string) []Definition {
		p, err := Load(write(t, map[string]string{"loam.yaml": "project: x", "streams/p.yaml": "stream: p\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ncolumns: " +
			columns + "\n" + more}), columnsIn)
		if err != nil {
			t.Fatal(err)
		}
		return p.Definitions()
	}
	a := stream("[{name: id, type: string}, {name: a, type: string}]", "track: [a]")
	b := stream("[{name: id, type: string}, {name: b, type: string, renamed_from: a}]", "track: [b]")
	c := stream("[{name: id, type: string}, {name: c, type: string, renamed_from: b}]", "track: [c]")
	later := stream("[{name: id, type: string}, {name: b, type: string}]", "track: [b]")
	again := stream("[{name: id, type: string}, {name: b, type: string}, {name: a, type: string}]", "track: [b, a]")
	for _, one := range []struct {
		name           string
		applied, now   []Definition
		detail, noMore string
	}{
		{"rename", a, b, `column a renamed to b, with all of its rows|column b: {"name":"b","path":["a"],"renamed_from":"a","type":"string"} becomes {"name":"b","path":["b"],"renamed_from":"a","type":"string"}`, "added"},
		{"chain", b, c, "column b renamed to c, with all of its rows", "removed"},
		{"the line removed", b, later, "column b: ", "renamed to"},
		{"the old name anew", later, again, "column a string added", "renamed to"},
	} {
		changes := Plan(one.applied, one.now)
		if len(changes) != 1 || changes[0].Blocked != "" {
			t.Fatalf("%s: %+v", one.name, changes)
		}
		details := strings.Join(changes[0].Detail, "|")
		if !strings.Contains(details, one.detail) || strings.Contains(details, one.noMore) {
			t.Errorf("%s: %s", one.name, details)
		}
	}
}

// TestSchemas holds the JSON Schemas against what Load takes: both know the same keys, and the example is valid.
func TestSchemas(t *testing.T) {
	kinds := map[string]string{"loam": "loam.yaml", "stream": "streams/x.yaml", "features": "features/x.yaml", "dataset": "datasets/x.yaml"}
	for kind, file := range kinds {
		text, err := Schemas.ReadFile("schema/" + kind + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var schema map[string]any
		if err := json.Unmarshal(text, &schema); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		for path, properties := range objects(schema, "") {
			// An unknown key makes Load list those it knows there.
			files := map[string]string{"loam.yaml": "project: x\n"}
			files[file] = probe(path)
			_, err := Load(write(t, files), columnsIn)
			var known []string
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if _, list, ok := strings.Cut(line, "unknown field; known: "); ok {
					known = strings.Split(list, ", ")
				}
			}
			sort.Strings(properties)
			if !slices.Equal(known, properties) {
				t.Errorf("%s at %q: schema has %v, Load knows %v", kind, path, properties, known)
			}
		}
	}
	for name, text := range exampleFiles(t) {
		kind := map[string]string{".": "loam", "features": "features", "datasets": "dataset"}[filepath.Dir(name)]
		validate(t, kind, name, text)
	}
	builtin, _ := fs.Glob(builtinFiles, "builtin/*")
	for _, name := range builtin {
		text, _ := builtinFiles.ReadFile(name)
		validate(t, "stream", name, string(text))
	}
}

// objects lists the objects of a schema with the names of their properties; a path is the keys that lead there.
func objects(schema map[string]any, path string) map[string][]string {
	found := map[string][]string{}
	if choices, ok := schema["anyOf"].([]any); ok {
		for _, s := range choices {
			for p, names := range objects(s.(map[string]any), path) {
				found[p] = names
			}
		}
	}
	if items, ok := schema["items"].(map[string]any); ok {
		for p, names := range objects(items, path) {
			found[p] = names
		}
	}
	if properties, ok := schema["properties"].(map[string]any); ok {
		for name, s := range properties {
			found[path] = append(found[path], name)
			for p, names := range objects(s.(map[string]any), strings.TrimPrefix(path+"/"+name, "/")) {
				found[p] = names
			}
		}
	}
	return found
}

// probe is a document with an unknown key inside the given keys. Every object but these stands in a list.
func probe(path string) string {
	body := "{qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq: 1}"
	if path == "" {
		return body
	}
	keys := strings.Split(path, "/")
	slices.Reverse(keys)
	for _, key := range keys {
		if slices.Contains([]string{"lake", "broker", "sasl", "registry", "username", "password", "online", "serve", "tls", "key", "on_demand", "labels"}, key) {
			body = "{" + key + ": " + body + "}"
		} else {
			body = "{" + key + ": [" + body + "]}"
		}
	}
	return body
}

func validate(t *testing.T, kind, name, text string) {
	t.Helper()
	raw, err := Schemas.ReadFile("schema/" + kind + ".json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource(kind, doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile(kind)
	if err != nil {
		t.Fatal(err)
	}
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(instance); err != nil {
		t.Errorf("%s is not valid by %s.json: %v", name, kind, err)
	}
}

func TestPlan(t *testing.T) {
	base := map[string]string{
		"loam.yaml":         "project: x",
		"streams/p.yaml":    "stream: p\nkind: state\nformat: row\nkey: [id]\nevent_time: at\ncolumns: [{name: id, type: string}, {name: a, type: int64}, {name: s, type: string}, {name: d, type: 'decimal(10,2)'}]",
		"features/all.yaml": "entities: [{name: e, join_keys: [id]}]\nviews: [{name: v, entity: e, stream: p, features: [a]}]\nservices: [{name: s, features: [v]}]",
	}
	load := func(edit func(map[string]string)) []Definition {
		files := map[string]string{}
		for k, v := range base {
			files[k] = v
		}
		edit(files)
		p, err := Load(write(t, files), columnsIn)
		if err != nil {
			t.Fatal(err)
		}
		return p.Definitions()
	}
	replace := func(file, old, text string) func(map[string]string) {
		return func(f map[string]string) { f[file] = strings.Replace(f[file], old, text, 1) }
	}
	before := load(func(map[string]string) {})
	if changes := Plan(before, before); len(changes) != 0 {
		t.Errorf("nothing changed, and the plan is %+v", changes)
	}
	if changes := Plan(nil, before); len(changes) != 7 || changes[0].Action != AddAction {
		t.Errorf("first plan %+v", changes)
	}
	for _, c := range []struct {
		name    string
		edit    func(map[string]string)
		want    []string // action kind name
		blocked string
	}{
		{"comment", replace("streams/p.yaml", "kind", "# a comment\nkind"), nil, ""},
		{"default spelt out", replace("streams/p.yaml", "kind: state", "kind: state\nkeyed: true\ntopic: p.v1"), nil, ""},
		{"new column", replace("streams/p.yaml", "{name: a,", "{name: b, type: string}, {name: a,"), []string{"change stream p", "change view v"}, ""},
		{"wider decimal", replace("streams/p.yaml", "(10,2)", "(12,2)"), []string{"change stream p", "change view v"}, ""},
		{"narrower decimal", replace("streams/p.yaml", "(10,2)", "(9,2)"), []string{"change stream p", "change view v"}, "can't become"},
		{"wider list", replace("streams/p.yaml", "'decimal(10,2)'", "'list<decimal(10,2)>'"), []string{"change stream p", "change view v"}, "can't become"},
		{"text to json", replace("streams/p.yaml", "{name: s, type: string}", "{name: s, type: json}"), []string{"change stream p", "change view v"}, "can't become"},
		{"removed column", replace("streams/p.yaml", ", {name: d, type: 'decimal(10,2)'}", ""), []string{"change stream p", "change view v"}, ""},
		{"renamed column", replace("streams/p.yaml", "{name: d,", "{name: e, renamed_from: d,"), []string{"change stream p", "change view v"}, ""},
		{"renamed and widened", replace("streams/p.yaml", "{name: d, type: 'decimal(10,2)'", "{name: e, renamed_from: d, type: 'decimal(12,2)'"), []string{"change stream p", "change view v"}, ""},
		{"renamed to another type", replace("streams/p.yaml", "{name: d, type: 'decimal(10,2)'", "{name: e, renamed_from: d, type: double"), []string{"change stream p", "change view v"}, "can't become"},
		{"renamed key", func(f map[string]string) {
			f["streams/p.yaml"] = strings.NewReplacer("key: [id]", "key: [ident]", "{name: id,", "{name: ident, renamed_from: id,").Replace(f["streams/p.yaml"])
			f["features/all.yaml"] = strings.Replace(f["features/all.yaml"], "join_keys: [id]", "join_keys: [ident]", 1)
		}, []string{"change stream p", "change entity e", "change view v"}, ""},
		{"another key", func(f map[string]string) {
			f["streams/p.yaml"] = strings.Replace(f["streams/p.yaml"], "key: [id]", "key: [s]", 1)
			f["features/all.yaml"] = strings.Replace(f["features/all.yaml"], "join_keys: [id]", "join_keys: [s]", 1)
		}, []string{"change stream p", "change entity e", "change view v"}, "the key of a stream"},
		{"delete_when", replace("streams/p.yaml", "kind: state", "kind: state\ndelete_when: a = 1"), []string{"change stream p"}, ""},
		{"load", replace("streams/p.yaml", "kind: state", "kind: state\nload: full"), []string{"change stream p"}, ""},
		{"default load spelt out", replace("streams/p.yaml", "kind: state", "kind: state\nload: changes"), nil, ""},
		{"track", replace("streams/p.yaml", "kind: state", "kind: state\ntrack: [a]"), []string{"change stream p"}, ""},
		{"key", replace("streams/p.yaml", "kind: state", "kind: event\nid: position"), []string{"change stream p", "change view v"}, "kind of a stream"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.name == "key" {
				c.edit = func(f map[string]string) {
					replace("streams/p.yaml", "kind: state", "kind: event\nid: position")(f)
					replace("features/all.yaml", "features: [a]}]", "aggregates: [{name: a, fn: count, windows: [1d]}]}]")(f)
				}
			}
			var got []string
			var blocked string
			for _, change := range Plan(before, load(c.edit)) {
				if change.Kind == ServiceDefinition {
					continue
				}
				got = append(got, fmt.Sprintf("%s %s %s", change.Action, change.Kind, change.Name))
				blocked += change.Blocked
			}
			if !slices.Equal(got, c.want) || !strings.Contains(blocked, c.blocked) || (c.blocked == "") != (blocked == "") {
				t.Errorf("plan %v, blocked %q; want %v, %q", got, blocked, c.want, c.blocked)
			}
		})
	}
}

// A view on demand is made of features under their own names where these tell them apart, has a definition of its own, and
// costs nothing online.
func TestOnDemand(t *testing.T) {
	files := exampleFiles(t)
	files["features/more.yaml"] = `views:
  - {name: other, entity: contact, stream: contact, features: [mkt_status, email]}
  - name: derived
    on_demand:
      inputs: ["profile:*", "other", "activity:emails_opened_7d"]
      request: [{name: cart_value, type: double}]
    features: [{name: big_cart, type: bool, sql: "cart_value > emails_opened_7d"}]
services: [{name: checkout, features: ["derived:*"]}]
`
	p, err := Load(write(t, files), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	var inputs []string
	for _, in := range p.Inputs(p.View("derived")) {
		inputs = append(inputs, in.Name+" "+in.Type.String())
	}
	want := "profile__mkt_status string, profile__open_tickets int64, open_tickets int64, other__mkt_status string, " +
		"other__email string, email string, activity__emails_opened_7d int64, emails_opened_7d int64, cart_value double"
	if got := strings.Join(inputs, ", "); got != want {
		t.Errorf("inputs %s, want %s", got, want)
	}
	if refs := p.Service("checkout").Features; len(refs) != 1 || p.FeatureType(refs[0]).Kind != Bool {
		t.Errorf("service of %v", refs)
	}
	validate(t, "features", "more.yaml", files["features/more.yaml"])
	files["features/more.yaml"] = strings.Replace(files["features/more.yaml"], "value, type: double", "value, type: int64", 1)
	q, err := Load(write(t, files), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	delete(files, "features/more.yaml")
	none, err := Load(write(t, files), columnsIn)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before, after *Project
		action        Action
		detail        string
	}{{none, p, AddAction, ""}, {p, q, ChangeAction, `"type":"int64"}]}`}, {p, none, RemoveAction, ""}} {
		changes := Plan(c.before.Definitions(), c.after.Definitions())
		i := slices.IndexFunc(changes, func(c Change) bool { return c.Name == "derived" })
		if i < 0 || changes[i].Action != c.action || changes[i].Cost != nil || !strings.Contains(strings.Join(changes[i].Detail, "|"), c.detail) {
			t.Errorf("%s: %+v", c.action, changes)
		}
	}
}
