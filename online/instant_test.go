package online

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/lake"
)

const historyViews = testViews + `  - name: past
    entity: thing
    stream: thing
    aggregates:
      - {name: changes, fn: changes, windows: [1d, 30d]}
      - {name: high, fn: time_in_state, where: "n > 1", windows: [30d]}
      - {name: days, fn: days_since_change}
  - name: derived
    on_demand: {inputs: ["past:changes_30d", "past:days", "calc:n"]}
    features: [{name: busy, type: double, sql: "changes_30d + n"}, {name: new, type: bool, sql: "days IS NULL"}]
`

// pastRow is what is computed of an entity in the view past.
type pastRow struct {
	a       string
	b       int64
	changes [2]int64
	high    float64
	days    any
}

// instantOf computes these rows, each in a batch of its own.
func instantOf(rows ...pastRow) Instant {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "a", Type: arrow.BinaryTypes.String}, {Name: "b", Type: arrow.PrimitiveTypes.Int64}, {Name: "changes_1d", Type: arrow.PrimitiveTypes.Int64},
		{Name: "changes_30d", Type: arrow.PrimitiveTypes.Int64}, {Name: "high_30d", Type: arrow.PrimitiveTypes.Float64},
		{Name: "days", Type: arrow.PrimitiveTypes.Float64, Nullable: true},
	}, nil)
	return func(_ context.Context, _ *lake.Reading, _ time.Time, use func(arrow.RecordBatch, int64) error) error {
		for _, r := range rows {
			b := array.NewRecordBuilder(memory.DefaultAllocator, schema)
			b.Field(0).(*array.StringBuilder).Append(r.a)
			for i, n := range []int64{r.b, r.changes[0], r.changes[1]} {
				b.Field(1 + i).(*array.Int64Builder).Append(n)
			}
			b.Field(4).(*array.Float64Builder).Append(r.high)
			if days, ok := r.days.(float64); ok {
				b.Field(5).(*array.Float64Builder).Append(days)
			} else {
				b.Field(5).AppendNull()
			}
			batch := b.NewRecordBatch()
			err := use(batch, int64(len(rows)))
			batch.Release()
			b.Release()
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// A view windowed over history is written as of the instant of its build, beside workers that know nothing of it, and read so
// whenever; what isn't there was not known by then.
func TestHistoriesOnline(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		p := loadFiles(t, testProject, historyViews)
		p.Name = s.project
		l := openLake(t, p)
		live, err := NewLive(ctx, s, l, p)
		if err != nil {
			t.Fatal(err)
		}
		defer live.Close()
		missing := func(want bool) {
			t.Helper()
			views, err := live.Missing(ctx)
			if err != nil || slices.Contains(views, "past") != want {
				t.Errorf("missing %v, %v", views, err)
			}
		}
		first := batchOf(t, p.Stream("thing"), 0, []string{event(1, "x", 7, 0, "created", `,"n":1`)})
		defer first.Release()
		commitTo(t, l, first)
		built(t, s, writer(t, s, p, "calc"), l)
		missing(true)
		refs, err := p.Resolve([]string{"past"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewClient(s, p, time.Now).Read(ctx, refs, []map[string]string{{"a": "x", "b": "7"}}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("before it is built: %v", err)
		}
		if err := s.Lease(ctx, "worker"); err != nil { // which won't join
			t.Fatal(err)
		}
		at := base.Add(time.Hour + 123456*time.Microsecond)
		w := writer(t, s, p, "past")
		build := func(at time.Time, rows ...pastRow) {
			t.Helper()
			g, err := w.Build(ctx, l, BuildOptions{Now: func() time.Time { return at }, Instant: instantOf(rows...)})
			if err == nil {
				err = s.Switch(ctx, "past", g)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		build(at.Add(-time.Minute), pastRow{a: "old", b: 1, changes: [2]int64{5, 5}})
		build(at, pastRow{"x", 7, [2]int64{0, 3}, 0.1, 2.5}, pastRow{"a|b", -1, [2]int64{1, 1}, 1e21, nil})
		missing(false)

		all, err := s.Generations(ctx, "past")
		if err != nil || len(all.All) != 1 {
			t.Fatalf("%+v, %v", all, err)
		}
		text, err := json.Marshal(all.All[0])
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`{"definition":%q,"features":["changes_1d","changes_30d","high_30d","days"],"state":"ready","base":{"thing.v1:0":1},"runs":%s,"built_at":"2026-11-01T01:00:00.123Z","as_of":"2026-11-01T01:00:00.123456Z"}`,
			w.hash, jsonText(t, s.runIDs()))
		if string(text) != want {
			t.Errorf("generation\n%s, want\n%s", text, want)
		}
		var hashes []string
		if err := s.EachHash(ctx, "past", 2, func(h Hash) error {
			hashes = append(hashes, strings.TrimPrefix(h.Key, s.project)+" "+jsonText(t, h.Fields))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(hashes)
		order := fmt.Sprintf("%016x", uint64(at.UnixMicro())^1<<63) + strings.Repeat("0", 28)
		if got, want := strings.Join(hashes, "\n"), `:past:2:{thing|a%7Cb|-1} {"0":"1","1":"1","2":"1e+21","_v":"`+order+"\"}\n"+
			`:past:2:{thing|x|7} {"0":"0","1":"3","2":"0.1","3":"2.5","_v":"`+order+`"}`; got != want {
			t.Errorf("hashes\n%s, want\n%s", got, want)
		}

		second := batchOf(t, p.Stream("thing"), 1, []string{event(2, "x", 7, 5, "updated", `,"n":2`), event(3, "new", 1, 5, "created", `,"n":2`)})
		defer second.Release()
		if _, err := live.Write(ctx, second, allKnown); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ a, b, want string }{
			{"x", "7", "changes_1d=0 changes_30d=3 high_30d=0.1 days=2.5 n=3 busy=6 new=false"},
			{"a|b", "-1", "changes_1d=1 changes_30d=1 high_30d=1e+21 days=NULL_VALUE n=NOT_FOUND busy=NULL_VALUE new=true"},
			{"new", "1", "changes_1d=0 changes_30d=0 high_30d=0 days=NOT_FOUND n=3 busy=3 new=true"},
			{"old", "1", "changes_1d=0 changes_30d=0 high_30d=0 days=NOT_FOUND n=NOT_FOUND busy=NULL_VALUE new=true"},
		} {
			if got := show(t, s, p, base.Add(1000*time.Hour), c.a, c.b, "past", "calc:n", "derived"); got != c.want {
				t.Errorf("%s, %s:\n%s, want\n%s", c.a, c.b, got, c.want)
			}
		}
		rows, err := NewClient(s, p, time.Now).Read(ctx, refs, []map[string]string{{"a": "x", "b": "7"}, {"a": "new", "b": "1"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			for _, f := range row {
				if found := f.Status != NotFound; f.EventTime.Equal(at) != found || f.EventTime.IsZero() == found {
					t.Errorf("%s %s is of %s, want %s where it is found", f.Ref, f.Status, f.EventTime, at)
				}
			}
		}
		if err := s.Forget(ctx, "past"); err != nil {
			t.Fatal(err)
		}
		missing(true)
		if left := keys(t, s, s.project+":past:*:{*"); len(left) > 0 {
			t.Errorf("left are %v", left)
		}
	})
}

// A build that fails leaves the generation before it, and nothing of its own.
func TestHistoriesThatFail(t *testing.T) {
	eachStore(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		p := loadFiles(t, testProject, historyViews)
		p.Name = s.project
		l := openLake(t, p)
		w := writer(t, s, p, "past")
		o := BuildOptions{Now: func() time.Time { return base }, Instant: instantOf(pastRow{a: "x", changes: [2]int64{1, 1}})}
		g, err := w.Build(ctx, l, o)
		if err == nil {
			err = s.Switch(ctx, "past", g)
		}
		if err != nil {
			t.Fatal(err)
		}
		half := instantOf(pastRow{a: "x", changes: [2]int64{2, 2}})
		o.Instant = func(ctx context.Context, r *lake.Reading, at time.Time, use func(arrow.RecordBatch, int64) error) error {
			return errors.Join(half(ctx, r, at, use), errors.New("the disk is full"))
		}
		if _, err := w.Build(ctx, l, o); err == nil || !strings.Contains(err.Error(), "build feature view past: the disk is full") {
			t.Errorf("a failed build: %v", err)
		}
		o.Instant = nil
		if _, err := w.Build(ctx, l, o); err == nil {
			t.Error("it was built of nothing")
		}
		if got := show(t, s, p, base, "x", "0", "past:changes_1d"); got != "changes_1d=1" {
			t.Error(got)
		}
		if all, err := s.Generations(ctx, "past"); err != nil || len(all.All) != 1 || len(keys(t, s, s.project+":past:*:{*")) != 1 {
			t.Errorf("left are %+v, %v", all, err)
		}
	})
}

func jsonText(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
