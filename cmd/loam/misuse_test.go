package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A command line that can't be understood is told from a command that failed: it ends with 2, one error that says what to
// give, and how the command is used. Nothing was done.
func TestMisused(t *testing.T) {
	t.Chdir(t.TempDir())
	if _, err := initProject("crm"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ line, err, usage string }{
		{`frobnicate`, `unknown command "frobnicate" for "loam"`, `loam [flags]`},
		{`--nosuch`, `unknown flag: --nosuch`, `loam [flags]`},
		{`dataset frobnicate`, `unknown command "frobnicate" for "loam dataset"`, `loam dataset [flags]`},
		{`dlq redo`, `unknown command "redo" for "loam dlq"`, `loam dlq [flags]`},
		{`-C a init b`, `-C a and b both name the folder: give one`, `loam init [DIR]`},
		{`init a b`, `"b" is one argument too many`, ``},
		{`validate crm`, `"crm" is too much: only flags are taken`, `loam validate`},
		{`plan --stream contact`, `unknown flag: --stream`, ``},
		{`backfill`, `name the files to take, such as events.jsonl.gz`, `loam backfill FILE... [flags]`},
		{`run --nosuch`, `unknown flag: --nosuch`, `loam run [flags]`},
		{`run contact`, `"contact" is too much: only flags are taken`, ``},
		{`run --on-gap never`, `--on-gap is stop or earliest, not "never"`, ``},
		{`run --commit-every 0s`, `--commit-every is more than 0s, --commit-rows at least 1 and --commit-mb between 1 and 1048576`, ``},
		{`run --commit-rows 0`, `--commit-every is more than 0s, --commit-rows at least 1 and --commit-mb between 1 and 1048576`, ``},
		{`run --commit-mb 0`, `--commit-every is more than 0s, --commit-rows at least 1 and --commit-mb between 1 and 1048576`, ``},
		{`run --commit-every soon`, `invalid argument "soon" for "--commit-every"`, ``},
		{`dlq list --reason nosuch`, `--reason "nosuch" is none; there are not_json, bad_envelope, `, ``},
		{`dlq list --limit -1`, `--limit is at least 0, not -1`, ``},
		{`dlq show`, "name a position, such as contact.v1/0@117; `loam dlq list` gives them", `loam dlq show POSITION`},
		{`dlq show here`, `"here" is not a position: write <topic>/<partition>@<offset>`, ``},
		{`schema drop`, `unknown command "drop" for "loam schema"`, `loam schema [flags]`},
		{`schema check`, `name a schema file, such as contact.avsc`, `loam schema check FILE [flags]`},
		{`schema check x.avsc`, `name the stream with --stream`, ``},
		{`schema check x.xsd --stream contact`, `x.xsd is no schema file: its name ends in .avsc, .proto or .json`, ``},
		{`schema check x.avsc --stream contact --subject y`, `--subject is one of the registry's: give --registry, too`, ``},
		{`schema check x.avsc --stream contact --message y`, `--message is of a .proto file`, ``},
		{`schema check x.avsc --stream contact --reference y`, `--reference "y": write NAME=FILE`, ``},
		{`schema check x.avsc --stream contact --registry --reference y=z`, `--reference "y=z": write NAME=SUBJECT@VERSION`, ``},
		{`dataset build`, `name a request, or give --labels, --labels-table or --labels-sql, --out, and --features or --service`, `loam dataset build [REQUEST.yaml | NAME]`},
		{`dataset build --labels l.csv --service churn_v1`, `name a request, or give --labels, --labels-table or --labels-sql, --out,`, ``},
		{`dataset build churn again`, `"again" is one argument too many`, ``},
		{`dataset build churn -C crm --as-of now`, `--as-of is served or event, not "now"`, ``},
		{`dataset build churn -C crm --known-at yesterday`, `--known-at "yesterday" is not a time: write RFC 3339, such as`, ``},
		{`dataset build churn -C crm --out churn.txt`, `--out churn.txt names no format: end its name in .parquet, .csv, .csv.gz, .arrow or .arrows`, ``},
		{`dataset build churn -C crm --service churn_v1 --features profile:*`, `--service and --features exclude each other: give one`, ``},
		{`dataset show`, `name a card, such as churn.card.json`, `loam dataset show CARD.json`},
		{`dataset show churn.card.json --rows -1`, `--rows is at least 0, not -1`, ``},
		{`materialize profile`, `"profile" is too much: only flags are taken`, ``},
		{`get`, `give --entity, and --features or --service`, `loam get [flags]`},
		{`get --features profile:*`, `give --entity, and --features or --service`, ``},
		{`get --entity contact_id=c1`, `give --entity, and --features or --service`, ``},
		{`get --features profile:* --service churn_v1 --entity contact_id=c1`, `give --entity, and --features or --service`, ``},
		{`get --features profile:* --entity c1`, `--entity "c1": write join keys and values, such as contact_id=c1`, ``},
		{`get --features profile:* --entity =c1`, `--entity "=c1": write join keys and values, such as contact_id=c1`, ``},
		{`history contact`, `name a stream and a key, such as contact c1`, `loam history STREAM KEY`},
		{`history --report`, `name a stream, such as contact`, ``},
		{`history contact c1 --report`, `--report is of a whole stream: leave the key out`, ``},
		{`history contact --report --changes`, `--report and --changes exclude each other: give one`, ``},
		{`status contact`, `"contact" is too much: only flags are taken`, ``},
		{`verify --buckets -1`, `--buckets is at least 0, not -1`, ``},
		{`simulate`, `give --out DIR for files, or --topics for the project's topics`, ``},
		{`simulate --topics --out x`, `give --out DIR for files, or --topics for the project's topics`, ``},
		{`simulate --topics --labels 3`, `--labels are written beside files: give --out DIR`, ``},
		{`simulate --format csv --out x`, `--format is jsonl, jsonl.gz or parquet, not "csv"`, ``},
		{`simulate --start tomorrow --out x`, `--start "tomorrow" is not a time: write RFC 3339, such as`, ``},
		{`simulate --contacts 0 --out x`, `contacts: 0 is not a number of contacts`, ``},
		{`simulate --duplicates 2 --out x`, `duplicates: 2 is not a share of events`, ``},
		{`demo --contacts 0 --dir x`, `contacts: 0 is not a number of contacts`, `loam demo [flags]`},
	} {
		t.Run(c.line, func(t *testing.T) {
			code, out, text := executed(t, strings.Fields(c.line)...)
			if code != exitMisused || out != "" {
				t.Errorf("exit code %d, output %q", code, out)
			}
			told, usage, _ := strings.Cut(text, "\nusage: ")
			if !strings.HasPrefix(told, "loam: "+c.err) || !strings.HasPrefix(usage, c.usage) || !strings.Contains(usage, "--help` tells more\n") {
				t.Errorf("want %q and usage of %q, got\n%s", c.err, c.usage, text)
			}
		})
	}
	for _, made := range []string{"a", "b", "x"} {
		if _, err := os.Stat(made); err == nil {
			t.Errorf("%s was made", made)
		}
	}
}

// executed runs a command line in this process.
func executed(t *testing.T, args ...string) (code int, out, err string) {
	t.Helper()
	dir := t.TempDir()
	var files [2]*os.File
	for i, name := range []string{"out", "err"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	code = execute(args, files[0], files[1])
	var texts [2]string
	for i, f := range files {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		texts[i] = string(text)
	}
	return code, texts[0], texts[1]
}
