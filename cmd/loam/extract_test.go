package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/sql"
)

// accountProject is a project with a stream of full extracts and a view of it.
func accountProject(t *testing.T, more string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"loam.yaml": "project: crm\n" + more,
		"streams/account.yaml": "stream: account\nkind: state\nformat: row\nkey: [region, account_id]\nevent_time: changed_at\nload: full\ncolumns:\n" +
			"  - {name: account_id, type: int64}\n  - {name: region, type: string}\n  - {name: plan, type: string}\n",
		"features/account.yaml": "entities: [{name: account, join_keys: [region, account_id]}]\n" +
			"views: [{name: accounts, entity: account, stream: account, features: [plan]}]\n",
	} {
		writeFile(t, filepath.Join(dir, name), text)
	}
	return dir
}

// accountRow is a row of an extract: the state of an account since at, a number of hours.
type accountRow struct {
	id   int
	at   int
	plan string
}

// epoch is hour 0.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func hour(at int) time.Time { return epoch.Add(time.Duration(at) * time.Hour) }

// csvOf writes an extract.
func csvOf(rows []accountRow) []byte {
	var b bytes.Buffer
	b.WriteString("region,account_id,plan,changed_at\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "r%d,%d,%s,%s\n", r.id%2, r.id, r.plan, hour(r.at).Format(time.RFC3339))
	}
	return b.Bytes()
}

func backfillIn(t *testing.T, dir string, o backfillOptions, paths ...string) (string, error) {
	t.Helper()
	var text strings.Builder
	a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
	o.stream = "account"
	err := a.backfill(t.Context(), paths, o)
	return text.String(), err
}

// versionsIn are the versions of all accounts, as text.
func versionsIn(t *testing.T, dir string) []string {
	t.Helper()
	ctx := t.Context()
	a := &app{dir: dir, out: io.Discard, err: io.Discard, now: time.Now}
	p, l, err := a.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reading, err := l.Read(ctx, p.Stream("account"))
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := reading.HistoryView(ctx, db, "h", nil); err != nil {
		t.Fatal(err)
	}
	rows, err := db.Query(ctx, "SELECT account_id, epoch_us(valid_from), coalesce(epoch_us(valid_to), -1), plan FROM h")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var id, from, to int64
		var plan string
		if err := rows.Scan(&id, &from, &to, &plan); err != nil {
			t.Fatal(err)
		}
		all = append(all, versionText(id, from, to, plan))
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func versionText(id, from, to int64, plan string) string {
	end := "…"
	if to >= 0 {
		end = moment(to)
	}
	return fmt.Sprintf("%d %s to %s: %s", id, moment(from), end, plan)
}

// world is what the oracle knows: the changes that were taken, by account.
type world map[int][]worldChange

type worldChange struct {
	at      int
	plan    string // "" of a delete
	file    uint32 // how files of equal times compare
	offset  int
	deleted bool
}

func fileOrder(text []byte) uint32 {
	content := sha256.Sum256(text)
	topic := sha256.Sum256([]byte("file:" + hex.EncodeToString(content[:])))
	return binary.BigEndian.Uint32(topic[:4])
}

func (w world) sorted(id int) []worldChange {
	return slices.SortedFunc(slices.Values(w[id]), func(a, b worldChange) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.file, b.file), cmp.Compare(a.offset, b.offset))
	})
}

// take adds the rows of a file that are new.
func (w world) take(rows []accountRow, text []byte) {
	for i, r := range rows {
		known := slices.ContainsFunc(w[r.id], func(c worldChange) bool { return !c.deleted && c.at == r.at && c.plan == r.plan })
		if !known {
			w[r.id] = append(w[r.id], worldChange{at: r.at, plan: r.plan, file: fileOrder(text), offset: i})
		}
	}
}

// gone are the accounts that exist at a time, existing of them, and have no row; ambiguous counts those without a row that
// changed then or later.
func (w world) gone(rows []accountRow, at int) (gone []int, existing, ambiguous int) {
	has := map[int]bool{}
	for _, r := range rows {
		has[r.id] = true
	}
	for id := range w {
		exists, ended, changed, later := false, false, false, false
		for _, c := range w.sorted(id) {
			switch {
			case c.at < at:
				exists = !c.deleted
			case c.at == at && c.deleted:
				ended = true
			case c.at == at:
				changed = true
			}
			later = later || c.at >= at && !c.deleted
		}
		// What counts as existing at its time, though it isn't deleted: what a row of that very time left as it was.
		if exists && !ended {
			if !changed || w.spans(id, at) {
				existing++
			}
		}
		if exists && !ended && !changed && !has[id] {
			gone = append(gone, id)
		}
		if later && !has[id] {
			ambiguous++
		}
	}
	// In the order of the key: region, then account.
	slices.SortFunc(gone, func(a, b int) int { return cmp.Or(cmp.Compare(a%2, b%2), cmp.Compare(a, b)) })
	return gone, existing, ambiguous
}

// spans reports whether a version of the account lies around a time.
func (w world) spans(id, at int) bool {
	for _, v := range w.versions(id) {
		if v.from < at && (v.to < 0 || v.to > at) {
			return true
		}
	}
	return false
}

type worldVersion struct {
	from, to int // to is -1 while it is open
	plan     string
}

// versions is what the changes of an account make: at each time the last counts; equal neighbours are one.
func (w world) versions(id int) []worldVersion {
	states := map[int]worldChange{}
	for _, c := range w.sorted(id) {
		states[c.at] = c
	}
	var all []worldVersion
	for _, at := range slices.Sorted(maps.Keys(states)) {
		c := states[at]
		open := len(all) > 0 && all[len(all)-1].to < 0
		if open && !c.deleted && all[len(all)-1].plan == c.plan {
			continue
		}
		if open {
			all[len(all)-1].to = at
		}
		if !c.deleted {
			all = append(all, worldVersion{at, -1, c.plan})
		}
	}
	return all
}

func (w world) text() []string {
	var all []string
	for id := range w {
		for _, v := range w.versions(id) {
			to := int64(-1)
			if v.to >= 0 {
				to = hour(v.to).UnixMicro()
			}
			all = append(all, versionText(int64(id), hour(v.from).UnixMicro(), to, v.plan))
		}
	}
	slices.Sort(all)
	return all
}

// loadable is an extract of the random test.
type loadable struct {
	at    int
	rows  []accountRow
	parts [][]accountRow
	paths []string
	texts [][]byte
}

// Random extracts, some of them cut off, of several files, late, repeated, or of a time that isn't told, loaded in random
// order, make the history that a slow oracle makes of them.
func TestRandomExtracts(t *testing.T) {
	t.Parallel()
	for range 2 {
		seed := rand.Uint64()
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			dir := accountProject(t, "")
			var loads []*loadable
			for n := range 7 {
				loads = append(loads, randomExtract(t, random, dir, n))
			}
			w := world{}
			done := map[*loadable]bool{}
			behind := map[string]int{} // deletes that stand behind a file's rows
			for step := range 10 {
				e := loads[random.IntN(len(loads))]
				o := backfillOptions{}
				told, allowed, dry := random.IntN(4) > 0, random.IntN(2) == 0, random.IntN(6) == 0
				at := e.at
				switch {
				case told:
					o.extract.time = hour(at).Format(time.RFC3339)
				default:
					at = slices.MaxFunc(e.rows, func(a, b accountRow) int { return cmp.Compare(a.at, b.at) }).at
				}
				o.extract.allowDeletes, o.extract.dryRun = allowed, dry
				known := done[e]
				if !dry {
					for i, part := range e.parts {
						w.take(part, e.texts[i])
					}
				}
				gone, existing, ambiguous := w.gone(e.rows, at)
				want, deletes := "", false
				switch {
				case known && !told:
				case !told && ambiguous > 0:
					want = "say when it was taken with --extract-time"
				case 2*len(gone) > existing && !allowed:
					want = "--allow-deletes"
				default:
					deletes = !dry
				}
				if deletes {
					// Behind the last file by content; of an extract that was not loaded whole before no file but that is left.
					last := slices.MaxFunc(e.texts, func(a, b []byte) int { return bytes.Compare(sum(a), sum(b)) })
					rows := bytes.Count(last, []byte("\n")) - 1
					for _, id := range gone {
						w[id] = append(w[id], worldChange{at: at, deleted: true, file: fileOrder(last), offset: rows + behind[string(last)]})
						behind[string(last)]++
					}
					done[e] = true
				}
				text, err := backfillIn(t, dir, o, e.paths...)
				if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
					t.Fatalf("step %d: error %v, want one with %q\n%s", step, err, want, text)
				}
				if got := versionsIn(t, dir); !slices.Equal(got, w.text()) {
					t.Fatalf("step %d, extract at %s, told %v, loaded before %v, dry %v, gone %v\n%s\nhistory\n%s\nwant\n%s", step, hour(at), told, known, dry,
						gone, text, strings.Join(got, "\n"), strings.Join(w.text(), "\n"))
				}
			}
			var text strings.Builder
			a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
			if err := a.verify(t.Context(), []string{"account"}, 0); err != nil || !strings.Contains(text.String(), " 0 differences") {
				t.Errorf("verify: %v\n%s", err, &text)
			}
		})
	}
}

func sum(text []byte) []byte {
	s := sha256.Sum256(text)
	return s[:]
}

// randomExtract writes what a source held at some time: a few accounts, each with the newest of its states.
func randomExtract(t *testing.T, random *rand.Rand, dir string, n int) *loadable {
	t.Helper()
	e := &loadable{at: 1 + random.IntN(12)}
	for id := range 8 {
		// An account's state of an hour is a function of both, so that extracts agree.
		states := rand.New(rand.NewPCG(uint64(id), 7))
		row := accountRow{id: id, at: -1}
		for at := range e.at + 1 {
			if states.IntN(3) == 0 {
				row.at, row.plan = at, []string{"free", "free", "pro"}[states.IntN(3)]
			}
		}
		if row.at >= 0 && random.IntN(4) > 0 {
			e.rows = append(e.rows, row)
		}
	}
	if len(e.rows) == 0 {
		e.rows = []accountRow{{id: 9, at: e.at, plan: "free"}}
	}
	e.parts = [][]accountRow{e.rows}
	if len(e.rows) > 2 && random.IntN(3) == 0 {
		cut := 1 + random.IntN(len(e.rows)-1)
		e.parts = [][]accountRow{e.rows[:cut], e.rows[cut:]}
	}
	for i, part := range e.parts {
		// A line of its own keeps extracts apart that have the same rows; the rows stay the same events.
		text := append(csvOf(part), fmt.Sprintf("r0,%d,only %d,%s\n", 100+n, i, hour(0).Format(time.RFC3339))...)
		part = append(slices.Clone(part), accountRow{id: 100 + n, at: 0, plan: fmt.Sprintf("only %d", i)})
		e.parts[i] = part
		path := filepath.Join(dir, fmt.Sprintf("extract_%d_%d.csv", n, i))
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		e.paths, e.texts = append(e.paths, path), append(e.texts, text)
	}
	e.rows = slices.Concat(e.parts...)
	return e
}

// An extract whose load ended between its rows and its deletes is ended by the same command, and nothing of it comes twice.
func TestExtractThatWasCutOff(t *testing.T) {
	t.Parallel()
	dir := accountProject(t, "")
	before, after, rest := filepath.Join(dir, "before.csv"), filepath.Join(dir, "after.csv"), filepath.Join(dir, "rest.csv")
	var rows []accountRow
	for id := range 5000 {
		rows = append(rows, accountRow{id, 1, "free"})
	}
	for path, text := range map[string][]byte{
		before: csvOf(rows), after: csvOf(append([]accountRow{{6000, 3, "pro"}}, rows[1000:4000]...)), rest: csvOf(rows[4000:]),
	} {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := backfillIn(t, dir, backfillOptions{}, before); err != nil {
		t.Fatal(err)
	}
	// A process that ends where take would: after a part of the rows, then after all of them.
	for _, stop := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		a := &app{dir: dir, out: io.Discard, err: io.Discard, now: time.Now}
		p, l, err := a.open(ctx)
		if err != nil {
			t.Fatal(err)
		}
		b := &backfill{project: p, now: time.Now, did: outcome{}, streams: []*feature.Stream{p.Stream("account")}, only: p.Stream("account")}
		if b.line, err = openLine(ctx, p, l, b.streams, newJobID("backfill")); err != nil {
			t.Fatal(err)
		}
		var files []ingest.File
		for _, path := range []string{after, rest} {
			f, err := ingest.StatFile(ctx, path)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		if b.full, err = newFullExtract(b.only, files, extractOptions{}, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := b.full.begin(b.line); err != nil {
			t.Fatal(err)
		}
		for _, f := range b.full.files {
			err := b.take(ctx, f, func(int64) {
				if stop {
					cancel()
				}
			})
			if err = errors.Join(err, b.settle()); (err != nil) != stop {
				t.Fatal(err)
			}
		}
		if b.full.loaded {
			t.Error("an extract without its deletes counts as loaded")
		}
		cancel()
		if err := b.line.close(); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if n := len(versionsIn(t, dir)); n > 5001 {
			t.Errorf("%d versions", n)
		}
	}
	for i, want := range []string{"of which without a row in it: 1,000, deleted as of then", "nothing new"} {
		text, err := backfillIn(t, dir, backfillOptions{}, rest, after)
		if err != nil || !strings.Contains(text, want) {
			t.Errorf("try %d: %v\n%s\nwant %s", i, err, text, want)
		}
	}
	open := slices.DeleteFunc(versionsIn(t, dir), func(v string) bool { return !strings.Contains(v, "…") })
	if len(open) != 4001 {
		t.Errorf("%d accounts exist, want 4,001", len(open))
	}
}

// An extract that the tables have forgotten, as they do with the oldest of many files, is known by its events: it deletes
// nothing again, and nothing of it stands where its deletes stand.
func TestExtractThatWasForgotten(t *testing.T) {
	t.Parallel()
	dir := accountProject(t, "")
	rows := []accountRow{{0, 1, "free"}, {1, 1, "free"}, {2, 1, "pro"}}
	var paths []string
	for i, some := range [][]accountRow{rows, rows[:2], append(rows, accountRow{3, 7, "free"})} {
		path := filepath.Join(dir, fmt.Sprintf("extract_%d.csv", i))
		if err := os.WriteFile(path, csvOf(some), 0o644); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	at := func(n int) backfillOptions {
		return backfillOptions{extract: extractOptions{time: hour(n).Format(time.RFC3339)}}
	}
	for i, path := range paths {
		if _, err := backfillIn(t, dir, at(5+i), path); err != nil {
			t.Fatal(err)
		}
	}
	want := versionsIn(t, dir)
	for _, table := range []string{"account_log", "account_history"} {
		files, err := filepath.Glob(filepath.Join(dir, ".loam", "warehouse", "*", table, "metadata", "*.metadata.json"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%v: no metadata", err)
		}
		was, err := os.ReadFile(slices.Max(files))
		if err != nil {
			t.Fatal(err)
		}
		now := regexp.MustCompile(`("loam.files": ?)"([^"\\]|\\.)*"`).ReplaceAll(was, []byte(`$1"[]"`))
		if bytes.Equal(was, now) {
			t.Fatalf("no files in %s", was)
		}
		if err := os.WriteFile(slices.Max(files), now, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, o := range []backfillOptions{{}, {}, at(6)} {
		if text, err := backfillIn(t, dir, o, paths[1]); err != nil {
			t.Errorf("again, %d: %v\n%s", i, err, text)
		}
		if got := versionsIn(t, dir); !slices.Equal(got, want) {
			t.Errorf("again, %d: history\n%s\nwant\n%s", i, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	var text strings.Builder
	a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
	_ = a.verify(t.Context(), []string{"account"}, 0) // what it says of counts is what was forgotten
	if strings.Contains(text.String(), "duplicate") {
		t.Errorf("verify: %s", &text)
	}
}

// Implied deletes reach the online store as the rows do.
func TestImpliedDeletesOnline(t *testing.T) {
	t.Parallel()
	redis := miniredis.RunT(t)
	dir := accountProject(t, "online: {redis: "+redis.Addr()+"}\n")
	first, second := filepath.Join(dir, "first.csv"), filepath.Join(dir, "second.csv")
	rows := []accountRow{{0, 1, "free"}, {1, 1, "free"}, {2, 1, "pro"}}
	for path, text := range map[string][]byte{first: csvOf(rows), second: csvOf(rows[:2])} {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	get := func() string {
		t.Helper()
		var text strings.Builder
		a := &app{dir: dir, out: &text, err: io.Discard, now: time.Now}
		root := a.root()
		root.SetArgs([]string{"get", "-C", dir, "--features", "accounts:plan", "--entity", "account_id=2,region=r0"})
		if err := root.ExecuteContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		return text.String()
	}
	if _, err := backfillIn(t, dir, backfillOptions{}, first); err != nil {
		t.Fatal(err)
	}
	a := &app{dir: dir, out: io.Discard, err: io.Discard, now: time.Now}
	root := a.root()
	root.SetArgs([]string{"materialize", "-C", dir})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := get(); !strings.Contains(text, "PRESENT") {
		t.Fatalf("before: %s", text)
	}
	if _, err := backfillIn(t, dir, backfillOptions{extract: extractOptions{time: hour(5).Format(time.RFC3339)}}, second); err != nil {
		t.Fatal(err)
	}
	if text := get(); !strings.Contains(text, "NOT_FOUND") {
		t.Errorf("after: %s", text)
	}
}
