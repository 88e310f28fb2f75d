package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/sql"
)

// What `loam verify --online` names is repaired by `loam materialize --entities`, of views of every kind, by files of each form.
func TestRepairEntities(t *testing.T) {
	redis := miniredis.RunT(t)
	p := newScoreProject(t, 3, fmt.Sprintf("online: {redis: %q}\n", redis.Addr()))
	p.write("streams/part.yaml", "stream: part\nkind: state\nformat: row\nkey: [id, m]\nevent_time: at\nid: position\npayload: patch\ncolumns: [{name: id, type: string}, {name: m, type: int64}, {name: n, type: double}]\n")
	p.write("features/part.yaml", "entities: [{name: piece, join_keys: [id, m]}]\nviews: [{name: parts, entity: piece, stream: part, ttl: 10000d, features: [n]}]\n")
	p.write("streams/visit.yaml", "stream: visit\nkind: event\nformat: row\nkey: [visit]\nevent_time: at\nid: position\ncolumns: [{name: visit, type: string}, {name: who, type: string}]\n")
	p.write("features/visit.yaml", "entities: [{name: guest, join_keys: [who]}]\nviews: [{name: visits, entity: guest, stream: visit, aggregates: [{name: n, fn: count, windows: [30d]}]}]\n")
	p.write("streams/deal.yaml", "stream: deal\nkind: state\nformat: row\nkey: [deal]\nevent_time: at\nid: position\ncolumns: [{name: deal, type: int64}, {name: n, type: int64}]\n")
	p.write("features/deal.yaml", "entities: [{name: deal, join_keys: [deal]}]\nviews: [{name: deals, entity: deal, stream: deal, layout: feast, features: [n]}]\n")
	var parts, visits, deals strings.Builder
	for i := range 40 {
		fmt.Fprintf(&parts, `{"id": "a%d", "m": %d, "n": %d, "at": "2026-01-01T00:00:%02dZ"}`+"\n", i%10, i%2, i, i)
		fmt.Fprintf(&visits, `{"visit": "v%d", "who": "g%d", "at": %q}`+"\n", i, i%8, time.Now().Add(-time.Duration(i)*time.Hour).UTC().Format(time.RFC3339))
		fmt.Fprintf(&deals, `{"deal": %d, "n": %d, "at": "2026-01-01T00:00:%02dZ"}`+"\n", i%8, i, i)
	}
	p.write(".loam/topics/score.v1/0.jsonl", scores(0, 20))
	p.write(".loam/topics/part.v1/0.jsonl", parts.String())
	p.write(".loam/topics/visit.v1/0.jsonl", visits.String())
	p.write(".loam/topics/deal.v1/0.jsonl", deals.String())
	p.loam("apply")
	p.loam("run", "--until-end")
	ctx := t.Context()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for view, c := range map[string]struct {
		keys   string // what they have
		names  string // of the join keys
		ending string
		value  string // a field, "" where there is a string
	}{
		"scores": {"scores:scores:", "id", "csv", "0"},
		"parts":  {"scores:parts:", "id, m", "parquet", "0"},
		"visits": {"scores:visits:", "who", "csv.gz", ""},
		"deals":  {"deal", "deal", "parquet", "_ts:deals"},
	} {
		t.Run(view, func(t *testing.T) {
			if r := verifiedView(t, p, redis, view); r.Total > 0 || r.Entities == 0 {
				t.Fatalf("before: %+v", r)
			}
			var keys []string
			for _, key := range redis.Keys() {
				if strings.Contains(key, c.keys) && !strings.HasSuffix(key, ":generations") {
					keys = append(keys, key)
				}
			}
			redis.Del(keys[0])
			if c.value == "" {
				text, err := redis.Get(keys[1])
				if err != nil {
					t.Fatal(err)
				}
				redis.Set(keys[1], text[:len(text)-1]+"\x09")
				redis.Set(strings.Replace(keys[1], "|g", "|x", 1), text)
			} else {
				redis.HSet(keys[1], c.value, "9")
				redis.HDel(keys[2], c.value)
			}
			found := verifiedView(t, p, redis, view)
			if found.Total < 3 || found.NotSettled > 0 {
				t.Fatalf("altered: %+v", found)
			}
			var rows []string
			for _, f := range found.First {
				rows = append(rows, "('"+strings.ReplaceAll(f.Key, "|", "', '")+"', 'more')")
			}
			file := filepath.Join(t.TempDir(), "entities."+c.ending)
			err := db.Exec(ctx, fmt.Sprintf("COPY (SELECT * FROM (VALUES %s) AS v(%s, besides)) TO %s", strings.Join(rows, ", "), c.names, sql.Literal(file)))
			if err != nil {
				t.Fatal(err)
			}
			p.loam("materialize", "--view", view, "--entities", file)
			if r := verifiedView(t, p, redis, view); r.Total > 0 || r.NotSettled > 0 || r.Generation != found.Generation {
				t.Errorf("repaired: %+v", r)
			}
		})
	}
	text := p.loam("materialize", "--view", "parts", "--entity", "m=1,id=a1", "--entity", "id=a1,m=1", "--entity", "id=no,m=1", "--json")
	if !strings.Contains(text, `"written": 1`) || !strings.Contains(text, `"removed": 1`) {
		t.Errorf("%s", text)
	}
}

// Bad entities are refused with the place and the remedy, whatever form they come in.
func TestRefusedEntities(t *testing.T) {
	redis := miniredis.RunT(t)
	p := newScoreProject(t, 3, fmt.Sprintf("online: {redis: %q}\n", redis.Addr()))
	p.write("features/pair.yaml", "entities: [{name: pair, join_keys: [id, m]}]\nviews: [{name: pairs, entity: pair, stream: pair, features: [n]}]\n")
	p.write("streams/pair.yaml", "stream: pair\nkind: state\nformat: row\nkey: [id, m]\nevent_time: at\nid: position\ncolumns: [{name: id, type: string}, {name: m, type: int64}, {name: n, type: double}]\n")
	p.loam("apply")
	p.write("good.csv", "id,m\na,1\n")
	p.write("few.csv", "id,x\na,1\n")
	p.write("empty.csv", "id,m\na,1\nb,\n")
	p.write("rounded.csv", "id,m\na,1.5\n")
	p.write("kind.txt", "id,m\n")
	at := func(name string) string { return filepath.Join(p.dir, name) }
	ctx := t.Context()
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Exec(ctx, "COPY (SELECT 7::DOUBLE AS id, 1 AS m) TO "+string(sql.Literal(at("pointed.parquet")))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--entities", at("good.csv")}, "run `loam materialize --view pairs`"},
		{[]string{"--entities", at("few.csv")}, "few.csv has no column m, which is a join key; it has id, x"},
		{[]string{"--entities", at("empty.csv")}, "empty.csv: row 1, counted from 0, has no value for a join key, or one that can't be of its type in the stream: id is string, m is int64"},
		{[]string{"--entities", at("rounded.csv")}, "rounded.csv: row 0, counted from 0"},
		{[]string{"--entities", at("pointed.parquet")}, "pointed.parquet: column id, a join key, is DOUBLE, and its stream has it as text"},
		{[]string{"--entities", at("kind.txt")}, "its name must end in .parquet"},
		{[]string{"--entities", at("none.csv")}, "none.csv"},
		{[]string{"--entity", "id=a"}, "--entity id=a: feature view pairs has the join keys id, m"},
		{[]string{"--entity", "id=a,m=one"}, "1 values of join key m can't be int64"},
		{[]string{"--entity", "id"}, "write join keys and values, such as contact_id=c1"},
		{[]string{"--entity", "id=a,m=1", "--entities", "x.csv"}, "give one --view"},
		{[]string{"--entity", "id=a,m=1", "--view", "scores"}, "give one --view"},
		{[]string{"--entity", "id=a,m=1", "--as-of", "2026-01-01T00:00:00Z"}, "--as-of freezes whole views"},
		{[]string{"--as-of", "2026-01-01T00:00:00Z"}, ""},
		{[]string{"--entity", "id=a,m=1"}, "its values are as of 2026-01-01T00:00:00Z, which can't be said of some of its entities: run `loam materialize --view pairs`"},
	} {
		root := p.app().root()
		root.SetArgs(append([]string{"materialize", "-C", p.dir, "--view", "pairs"}, c.args...))
		if err := root.ExecuteContext(t.Context()); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}
