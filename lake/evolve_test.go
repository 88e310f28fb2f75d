package lake

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/iceberg-go/catalog"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// evolving is a stream whose columns change: key id, and columns of these names, types and former names.
func evolving(columns ...feature.Column) *feature.Stream {
	s := &feature.Stream{
		Name: "thing", Kind: feature.StateStream, Format: feature.RowFormat, Topic: "thing.v1", Key: []string{"id"}, ClusterBy: "id",
		EventTime: "at", Payload: feature.FullPayload, Columns: columns,
	}
	if c := columns[0]; c.Name != "id" {
		s.Key, s.ClusterBy = []string{c.Name}, c.Name
	}
	return s
}

func column(name, typ string, from ...string) feature.Column {
	t, err := feature.ParseType(typ)
	if err != nil {
		panic(err)
	}
	c := feature.Column{Name: name, Type: t, Path: []string{name}}
	if len(from) > 0 {
		c.RenamedFrom = from[0]
	}
	return c
}

// event is an accepted event: at, its offset, and the text of each column that is not null.
type event struct {
	at, offset int64
	values     map[string]string
}

// eventsOf makes a batch of events of the stream as it is.
func eventsOf(t *testing.T, def *feature.Stream, events []event) *feature.Batch {
	t.Helper()
	b := array.NewRecordBuilder(memory.DefaultAllocator, def.LogSchema())
	defer b.Release()
	for _, e := range events {
		for i, c := range def.LogColumns() {
			text, ok := e.values[c.Name]
			switch c.Name {
			case feature.ColEventTime, feature.ColRecordedAt, feature.ColIngestedAt:
				b.Field(i).(*array.TimestampBuilder).Append(arrow.Timestamp(e.at * 1e6))
			case feature.ColEventID:
				b.Field(i).(*array.StringBuilder).Append(fmt.Sprint(e.offset))
			case feature.ColTopic:
				b.Field(i).(*array.StringBuilder).Append("thing.v1")
			case feature.ColPartition:
				b.Field(i).(*array.Int64Builder).Append(0)
			case feature.ColOffset:
				b.Field(i).(*array.Int64Builder).Append(e.offset)
			case feature.ColOp:
				b.Field(i).(*array.StringBuilder).Append(feature.OpUpsert)
			default:
				if !ok {
					b.Field(i).AppendNull()
				} else if list, isList := b.Field(i).(*array.ListBuilder); isList {
					list.Append(true)
					for part := range strings.SplitSeq(text, ",") {
						if err := list.ValueBuilder().AppendValueFromString(part); err != nil {
							t.Fatal(err)
						}
					}
				} else if err := b.Field(i).AppendValueFromString(text); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	first, last := events[0].offset, events[len(events)-1].offset
	n := int64(len(events))
	return &feature.Batch{Stream: def, Rows: []arrow.RecordBatch{b.NewRecordBatch()}, Spans: []feature.Span{{
		Partition: feature.Partition{Topic: "thing.v1"}, From: first, To: last + 1, Counts: feature.Counts{Read: n, Accepted: n},
	}}}
}

// take commits events, each batch a commit, and says how many keys went the late way.
func takeEvents(t *testing.T, s *Stream, events ...event) int64 {
	t.Helper()
	b := eventsOf(t, s.Definition(), events)
	defer b.Release()
	r, err := s.Commit(context.Background(), b, s.Head())
	if err != nil {
		t.Fatal(err)
	}
	return r.LateKeys
}

// rowsOf gives the rows of one of the stream's tables as lines: the columns' texts, then for a history its interval.
func rowsOf(t *testing.T, l *Lake, name string, columns ...string) []string {
	t.Helper()
	ctx := context.Background()
	opened, err := l.OpenTable(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	relation, err := opened.Scan(ctx, ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open(ctx, sql.Options{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.LakeView(ctx, "t", relation, false); err != nil {
		t.Fatal(err)
	}
	parts := []sql.Fragment{}
	for _, c := range columns {
		parts = append(parts, "coalesce("+sql.Ident(c)+"::VARCHAR, '-')")
	}
	order := sql.Fragment("epoch(event_time)")
	if strings.HasSuffix(name, "_history") {
		order = "epoch(valid_from)"
		parts = append(parts, "'[' || epoch(valid_from)::BIGINT || ',' || coalesce(epoch(valid_to)::BIGINT::VARCHAR, '') || ')'")
	}
	rows, err := db.Query(ctx, sql.Render("SELECT {line} FROM t ORDER BY {order}, {line}", sql.Args{"line": sql.Join(" || ' ' || ", parts), "order": order}))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var lines []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return lines
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// A renamed column, also one of the key, keeps its rows; later changes go on from them, whichever way they take.
func TestRename(t *testing.T) {
	l := openLake(t)
	s := openStream(t, l, evolving(column("id", "string"), column("a", "string"), column("b", "int64")))
	takeEvents(t, s, event{10, 0, map[string]string{"id": "k", "a": "A", "b": "1"}}, event{30, 1, map[string]string{"id": "k", "a": "B", "b": "1"}})
	for _, def := range []*feature.Stream{
		evolving(column("ident", "string", "id"), column("n", "string", "a"), column("b", "int64")),
		evolving(column("ident", "string", "id"), column("n", "string", "a"), column("b", "int64")), // and again
		evolving(column("ident", "string"), column("n", "string"), column("b", "int64")),            // the line was removed
	} {
		s = openStream(t, l, def)
		same(t, "log", rowsOf(t, l, "thing_log", "ident", "n", "b"), "k A 1", "k B 1")
		same(t, "history", rowsOf(t, l, "thing_history", "ident", "n", "b"), "k A 1 [10,30)", "k B 1 [30,)")
	}
	takeEvents(t, s, event{40, 2, map[string]string{"ident": "k", "n": "B", "b": "1"}}) // loads the index
	if late := takeEvents(t, s, event{50, 3, map[string]string{"ident": "k", "n": "C", "b": "1"}}); late != 0 {
		t.Error("a change after the rename went the late way")
	}
	if late := takeEvents(t, s, event{20, 4, map[string]string{"ident": "k", "n": "A", "b": "2"}}); late != 1 {
		t.Error("a late change went the fast way")
	}
	same(t, "history", rowsOf(t, l, "thing_history", "ident", "n", "b"), "k A 1 [10,20)", "k A 2 [20,30)", "k B 1 [30,50)", "k C 1 [50,)")

	// The chain goes on, and the first name is free for a column of its own.
	s = openStream(t, l, evolving(column("ident", "string"), column("m", "string", "n"), column("b", "int64"), column("a", "string")))
	takeEvents(t, s, event{60, 5, map[string]string{"ident": "k", "m": "C", "b": "1", "a": "new"}}, event{5, 6, map[string]string{"ident": "k", "m": "0"}})
	same(t, "history", rowsOf(t, l, "thing_history", "ident", "m", "b", "a"),
		"k 0 - - [5,10)", "k A 1 - [10,20)", "k A 2 - [20,30)", "k B 1 - [30,50)", "k C 1 - [50,60)", "k C 1 new [60,)")
}

// Wider decimals, also in lists, hold old and new values as one; one that is equal to an old one is no change.
func TestWiden(t *testing.T) {
	l := openLake(t)
	s := openStream(t, l, evolving(column("id", "string"), column("d", "decimal(4,2)"), column("l", "list<decimal(10,2)>")))
	takeEvents(t, s, event{10, 0, map[string]string{"id": "k", "d": "12.50", "l": "1.25,2.50"}}, event{30, 1, map[string]string{"id": "k", "d": "-9.99", "l": "1.25,2.50"}})
	wide := evolving(column("id", "string"), column("d", "decimal(30,2)"), column("m", "list<decimal(38,2)>", "l"))
	s = openStream(t, l, wide)
	same(t, "history", rowsOf(t, l, "thing_history", "d", "m"), "12.50 [1.25, 2.50] [10,30)", "-9.99 [1.25, 2.50] [30,)")
	takeEvents(t, s, event{40, 2, map[string]string{"id": "k", "d": "-9.99", "m": "1.25,2.50"}}) // loads the index
	if late := takeEvents(t, s, event{45, 3, map[string]string{"id": "k", "d": "-9.99", "m": "1.25,2.50"}}); late != 0 {
		t.Error("a no-op after the widening went the late way")
	}
	if late := takeEvents(t, s, event{50, 4, map[string]string{"id": "k", "d": "1234567890123456789012345678.25", "m": "1.25,2.50"}}); late != 0 {
		t.Error("a change after the widening went the late way")
	}
	if late := takeEvents(t, s, event{20, 5, map[string]string{"id": "k", "d": "12.50", "m": "1.25,2.50"}}); late != 1 {
		t.Error("a late no-op went the fast way")
	}
	if late := takeEvents(t, s, event{15, 6, map[string]string{"id": "k", "d": "12.50", "m": "99999999999999999999.25"}}); late != 1 {
		t.Error("a late change went the fast way")
	}
	same(t, "history", rowsOf(t, l, "thing_history", "d", "m"),
		"12.50 [1.25, 2.50] [10,15)", "12.50 [99999999999999999999.25] [15,20)", "12.50 [1.25, 2.50] [20,30)",
		"-9.99 [1.25, 2.50] [30,50)", "1234567890123456789012345678.25 [1.25, 2.50] [50,)")
	same(t, "log", rowsOf(t, l, "thing_log", "d"), "12.50", "12.50", "12.50", "-9.99", "-9.99", "-9.99", "1234567890123456789012345678.25")
}

// A dropped column keeps what it held, also in versions that are written anew; later rows are null in it, until it is
// declared again.
func TestDropAndAddAgain(t *testing.T) {
	l := openLake(t)
	both := evolving(column("id", "string"), column("a", "string"), column("d", "int64"))
	s := openStream(t, l, both)
	takeEvents(t, s, event{10, 0, map[string]string{"id": "k", "a": "A", "d": "1"}}, event{20, 1, map[string]string{"id": "k", "a": "A", "d": "2"}})
	s = openStream(t, l, evolving(column("id", "string"), column("a", "string")))
	takeEvents(t, s, event{30, 2, map[string]string{"id": "k", "a": "B"}})
	takeEvents(t, s, event{40, 3, map[string]string{"id": "k", "a": "B"}})
	dropped := []string{"k A 1 [10,20)", "k A 2 [20,30)", "k B - [30,)"}
	same(t, "dropped", rowsOf(t, l, "thing_history", "id", "a", "d"), dropped...)
	if late := takeEvents(t, s, event{25, 4, map[string]string{"id": "k", "a": "A"}}); late != 1 {
		t.Error("a late change went the fast way")
	}
	same(t, "late", rowsOf(t, l, "thing_history", "id", "a", "d"), "k A 1 [10,20)", "k A 2 [20,25)", "k A - [25,30)", "k B - [30,)")
	s = openStream(t, l, both)
	takeEvents(t, s, event{50, 5, map[string]string{"id": "k", "a": "B", "d": "3"}})
	same(t, "again", rowsOf(t, l, "thing_history", "id", "a", "d"),
		"k A 1 [10,20)", "k A 2 [20,25)", "k A - [25,30)", "k B - [30,50)", "k B 3 [50,)")
	same(t, "log", rowsOf(t, l, "thing_log", "id", "a", "d"), "k A 1", "k A 2", "k A -", "k B -", "k B -", "k B 3")
}

// What a table can't follow is refused with what to do instead, and leaves it as it was; also where the definition before
// no longer tells.
func TestRefusals(t *testing.T) {
	id := column("id", "string")
	base := evolving(id, column("a", "int64"), column("s", "string"), column("d", "decimal(10,2)"), column("l", "list<decimal(10,2)>"), column("day", "date"))
	but := func(change func(s *feature.Stream)) *feature.Stream {
		s := *base
		s.Columns = slices.Clone(base.Columns)
		change(&s)
		return &s
	}
	become := func(i int, typ string) *feature.Stream {
		return but(func(s *feature.Stream) { s.Columns[i] = column(s.Columns[i].Name, typ) })
	}
	l := openLake(t)
	openStream(t, l, base)
	for _, c := range []struct {
		def  *feature.Stream
		want string
	}{
		{become(1, "double"), "column a of table test.thing_log is int64 and can't become double: declare a column under another name, with path: a, or a new stream under another name"},
		{become(1, "decimal(38,0)"), "can't become decimal(38,0)"},
		{become(1, "list<int64>"), "can't become list<int64>"},
		{become(2, "json"), "column s of table test.thing_log is string and can't become json"},
		{become(3, "decimal(9,2)"), "can't become decimal(9,2)"},
		{become(3, "decimal(12,3)"), "can't become decimal(12,3)"},
		{become(3, "double"), "can't become double"},
		{become(4, "list<decimal(12,4)>"), "can't become list<decimal(12,4)>"},
		{become(5, "timestamp"), "column day of table test.thing_log is date and can't become timestamp"},
		{but(func(s *feature.Stream) { s.Columns[1] = column("a", "int64", "s") }), "column a is renamed from s, and table test.thing_log has both: remove renamed_from"},
		{but(func(s *feature.Stream) { s.Columns[1] = column("b", "int64", "x") }), "column b is renamed from x, and table test.thing_log has neither: name in renamed_from what"},
		{but(func(s *feature.Stream) { s.Columns[1] = column("b", "double", "a") }), "column b of table test.thing_log is int64 and can't become double"},
		{but(func(s *feature.Stream) { s.Key = []string{"a"} }), "table test.thing_log has the key id, which can't become a"},
		{but(func(s *feature.Stream) { s.ClusterBy = "a" }), "table test.thing_log is clustered by id"},
		{but(func(s *feature.Stream) { s.Kind = feature.EventStream }), "is that of a stream of kind state, which can't become event"},
		{but(func(s *feature.Stream) { s.Payload = feature.PatchPayload }), "with payload full, which can't become patch"},
	} {
		ctx := context.Background()
		if refusal, err := l.Refusal(ctx, c.def); err != nil || !strings.Contains(refusal, c.want) {
			t.Errorf("refusal %q, %v; want %q", refusal, err, c.want)
		}
		if err := l.CreateStream(ctx, c.def); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
		if _, err := l.OpenStream(ctx, c.def, StreamOptions{}); c.def.Columns[1].Name == "b" && (err == nil || !strings.Contains(err.Error(), "table test.thing_log has no column b of type")) {
			t.Errorf("open: %v", err)
		}
	}
	// Dropped, and declared again as another thing.
	openStream(t, l, evolving(id, column("a", "int64")))
	for i, want := range map[int]string{2: "column s of table test.thing_log is string and can't become json", 5: "column day of table test.thing_log is date and can't become timestamp"} {
		def := evolving(id, column("a", "int64"), column(base.Columns[i].Name, map[int]string{2: "json", 5: "timestamp"}[i]))
		if refusal, err := l.Refusal(context.Background(), def); err != nil || !strings.Contains(refusal, want) {
			t.Errorf("refusal %q, %v; want %q", refusal, err, want)
		}
	}
	if refusal, err := l.Refusal(context.Background(), base); err != nil || refusal != "" {
		t.Errorf("as it was: %q, %v", refusal, err)
	}
	openStream(t, l, base)
}

// changingCatalog evolves a stream's tables right before it takes a commit, as an apply beside a worker may.
type changingCatalog struct {
	catalog.Catalog
	skip   int // commits that are let pass before
	change func()
}

func (c *changingCatalog) LoadTable(ctx context.Context, ident table.Identifier) (*table.Table, error) {
	t, err := c.Catalog.LoadTable(ctx, ident)
	if err != nil {
		return nil, err
	}
	return table.New(t.Identifier(), t.Metadata(), t.MetadataLocation(), t.FS, c), nil
}

func (c *changingCatalog) CommitTable(ctx context.Context, ident table.Identifier, reqs []table.Requirement, updates []table.Update) (table.Metadata, string, error) {
	if change := c.change; change != nil && c.skip == 0 {
		c.change = nil
		change()
	}
	c.skip--
	return c.Catalog.CommitTable(ctx, ident, reqs, updates)
}

// A worker that was opened before its tables changed writes nothing more, and loses nothing; what it was committing in
// that very moment is right under the new names.
func TestTablesChangeUnderAWorker(t *testing.T) {
	ctx := context.Background()
	before := evolving(column("id", "string"), column("a", "string"), column("d", "decimal(4,2)"))
	after := evolving(column("id", "string"), column("b", "string", "a"), column("d", "decimal(30,2)"), column("n", "int64"))
	values := func(a, d string) map[string]string { return map[string]string{"id": "k", "a": a, "d": d} }
	for name, at := range map[string]string{"before a commit": "before", "within the log's": "log", "within the history's": "history"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l := openLakeAt(t, dir, 3)
			s := openStream(t, l, before)
			takeEvents(t, s, event{10, 0, values("A", "1.25")})
			other := openLakeAt(t, dir, 3)
			evolve := func() {
				if err := other.CreateStream(ctx, after); err != nil {
					t.Fatal(err)
				}
			}
			real := l.catalog
			b := eventsOf(t, before, []event{{20, 1, values("B", "2.50")}})
			defer b.Release()
			switch at {
			case "before":
				evolve()
			case "log":
				l.catalog = &changingCatalog{Catalog: real, change: evolve}
			case "history":
				l.catalog = &changingCatalog{Catalog: real, skip: 1, change: evolve}
			}
			r, err := s.Commit(ctx, b, s.Head())
			l.catalog = real
			if r.Logged != (at != "before") {
				t.Errorf("logged is %v", r.Logged)
			}
			if committed := at == "history"; committed != (err == nil) || !committed && !errors.Is(err, ErrChanged) {
				t.Fatalf("error %v", err)
			}
			logged := []string{"k A 1.25 -"}
			if at != "before" {
				logged = append(logged, "k B 2.50 -")
			}
			same(t, "log", rowsOf(t, l, "thing_log", "id", "b", "d", "n"), logged...)
			if _, err := s.Commit(ctx, eventsOf(t, before, []event{{30, 2, values("C", "1.25")}}), s.Head()); !errors.Is(err, ErrChanged) {
				t.Errorf("and again: %v, want %v", err, ErrChanged)
			}
			s = openStream(t, l, after) // catches the history up
			o, err := s.Offsets()
			if next := o.Partitions[feature.Partition{Topic: "thing.v1"}].Next; err != nil || next != int64(len(logged)) {
				t.Errorf("the log stands at %d, %v", next, err)
			}
			if at == "before" {
				takeEvents(t, s, event{20, 1, map[string]string{"id": "k", "b": "B", "d": "2.50"}})
			}
			takeEvents(t, s, event{30, 2, map[string]string{"id": "k", "b": "B", "d": "99999.50", "n": "7"}})
			same(t, "history", rowsOf(t, l, "thing_history", "id", "b", "d", "n"), "k A 1.25 - [10,20)", "k B 2.50 - [20,30)", "k B 99999.50 7 [30,)")
		})
	}
}

// Whatever becomes of a stream's columns between its commits, the history is what scd makes of the log's rows as they read
// at the end: here of one column that is renamed, widened, dropped and declared again, beside one that stays.
func TestAnyEvolution(t *testing.T) {
	sd := seedOf(t)
	r := rand.New(rand.NewPCG(sd, 9))
	for range 2 {
		l := openLake(t)
		name, digits, declared := "c0", 6, true
		def := func(from ...string) *feature.Stream {
			columns := []feature.Column{column("id", "string"), column("a", "string")}
			if declared {
				columns = append(columns, column(name, fmt.Sprintf("decimal(%d,2)", digits), from...))
			}
			return evolving(columns...)
		}
		s := openStream(t, l, def())
		var all []event
		for step := range 20 {
			switch r.IntN(6) {
			case 0:
				if declared {
					old := name
					name = fmt.Sprintf("c%d", step+1)
					s = openStream(t, l, def(old))
				}
			case 1:
				if declared {
					digits++
					s = openStream(t, l, def())
				}
			case 2:
				declared = !declared
				s = openStream(t, l, def())
			}
			var batch []event
			for range 1 + r.IntN(4) {
				e := event{at: int64(100 + step*10 - r.IntN(60)), offset: int64(len(all)), values: map[string]string{"id": string(rune('a' + r.IntN(3))), "a": string(rune('A' + r.IntN(2)))}}
				if declared && r.IntN(4) > 0 {
					e.values["c"] = fmt.Sprintf("%d.50", r.IntN(2))
				}
				all = append(all, e)
				sent := event{e.at, e.offset, map[string]string{"id": e.values["id"], "a": e.values["a"]}}
				if c, ok := e.values["c"]; ok {
					sent.values[name] = c
				}
				batch = append(batch, sent)
			}
			takeEvents(t, s, batch...)
		}
		same(t, "history", sorted(rowsOf(t, l, "thing_history", "id", "a", name)), versionsOf(all)...)
	}
}

func sorted(lines []string) []string {
	slices.Sort(lines)
	return lines
}

// versionsOf is the oracle of TestAnyEvolution: of each key's events in their order, those that differ from the one before.
func versionsOf(all []event) []string {
	byKey := map[string][]event{}
	for _, e := range all {
		byKey[e.values["id"]] = append(byKey[e.values["id"]], e)
	}
	var lines []string
	for id, events := range byKey {
		slices.SortFunc(events, func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.offset, b.offset)) })
		type version struct {
			state string
			from  int64
		}
		var versions []version
		for i, e := range events {
			if i+1 < len(events) && events[i+1].at == e.at {
				continue // the last of a time counts
			}
			state := id + " " + e.values["a"] + " " + cmp.Or(e.values["c"], "-")
			if n := len(versions); n == 0 || versions[n-1].state != state {
				versions = append(versions, version{state, e.at})
			}
		}
		for i, v := range versions {
			to := ""
			if i+1 < len(versions) {
				to = fmt.Sprint(versions[i+1].from)
			}
			lines = append(lines, fmt.Sprintf("%s [%d,%s)", v.state, v.from, to))
		}
	}
	return sorted(lines)
}
