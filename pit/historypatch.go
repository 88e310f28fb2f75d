package pit

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// patchesMax bounds the patches that are folded at once, but for an entity's, which stand together.
const patchesMax = 1 << 17

// patchedHistory has the plan of a view over a patch stream read what the patches make together instead of the changes: a patch says
// no more than what it carries, and so a late one makes other states of those that are known after it, until newer ones have carried
// the same columns. Each state that was ever seen by a label is to the plan a change of its event time which came when it was first
// seen, and takes the place of the one before. So patches that come in their order cost what changes do, and one that is late as
// much as the states that it makes another.
func (b *build) patchedHistory(ctx context.Context, w *historyPlan, log string, d *differ) error {
	j, s := w.job, w.slots
	columns, err := w.looked(b.checkExpr(ctx))
	if err != nil {
		return err
	}
	var kept, carried []string // those of the key are the same in all patches of an entity
	var items, flags sql.Fragment
	for _, column := range columns {
		items += ", g." + sql.Ident(column)
		if slices.Contains(j.stream.Key, column) {
			kept = append(kept, column)
			continue
		}
		flag := sql.Fragment(fmt.Sprintf("loam_carried_%d", len(carried)))
		items += ", " + carries(column) + " AS " + flag
		flags += ", " + flag
		carried = append(carried, column)
	}
	err = b.db.Exec(ctx, sql.Render(sql.Statement("pit_patches"), sql.Args{
		"log": sql.Ident(log), "entities": sql.Ident(s.entities), "key": key("g.", j.entity.JoinKeys, j.stream),
		"present": notNull("g.", j.entity.JoinKeys), "recorded": b.recorded(), "items": items,
	}))
	if err != nil {
		return err
	}
	ends, err := b.patchParts(ctx)
	if err != nil {
		return err
	}
	first := int64(0)
	for _, end := range ends {
		part := sql.Fragment(fmt.Sprintf("loam_entity >= %d AND loam_entity < %d", first, end))
		first = end
		if err := b.foldPatches(ctx, w, d, len(carried), flags, part); err != nil {
			return err
		}
		if err := w.read(ctx, b.db, statesStatement(w, kept, carried, part), nil); err != nil {
			return err
		}
	}
	return b.db.Exec(ctx, "DROP TABLE loam_patches; DROP TABLE IF EXISTS loam_states")
}

// statesStatement gives the plan the states of the entities of a part.
func statesStatement(w *historyPlan, kept, carried []string, part sql.Fragment) string {
	columns, joins := sql.Fragment(""), sql.Fragment("")
	add := func(alias, place string, names []string) {
		args := sql.Args{"alias": sql.Ident(alias), "place": sql.Ident(place), "names": sql.Idents("", names), "part": part}
		joins += sql.Fragment(sql.Render(
			"LEFT JOIN (SELECT rowid AS loam_row, {names} FROM loam_patches WHERE {part}) {alias} ON {alias}.loam_row = s.{place}\n", args))
		columns += ", " + sql.Idents(alias+".", names)
	}
	if len(kept) > 0 {
		add("loam_key", "loam_place", kept)
	}
	for i, column := range carried {
		add(fmt.Sprintf("loam_column_%d", i), fmt.Sprintf("loam_from_%d", i), []string{column})
	}
	return sql.Render(sql.Statement("pit_patch_states"), sql.Args{"columns": columns, "joins": joins, "items": w.items()})
}

// looked are the columns that the aggregates look at.
func (w *historyPlan) looked(check feature.CheckExpr) ([]string, error) {
	var all []string
	for _, column := range w.states {
		all = append(all, w.stateColumns(column)...)
	}
	for _, i := range w.aggregates {
		a := w.job.view.Aggregates[i]
		if a.Where == "" {
			continue
		}
		reads, err := check(a.Where, w.job.stream.Columns, feature.Type{Kind: feature.Bool})
		if err != nil {
			return nil, fmt.Errorf("aggregate %s: %w", a.Name, err)
		}
		all = append(all, reads...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// patchParts gives the entities behind each part of loam_patches that is folded at once.
func (b *build) patchParts(ctx context.Context) ([]int64, error) {
	most := b.options.foldRows
	if most == 0 {
		most = patchesMax
	}
	var ends []int64
	held, end := int64(0), int64(0)
	err := b.db.Batches(ctx, "SELECT loam_entity, count(*) FROM loam_patches GROUP BY loam_entity ORDER BY loam_entity", func(batch arrow.RecordBatch) error {
		entities, counts := int64s(batch.Column(0)), int64s(batch.Column(1))
		for i, e := range entities {
			if held > 0 && held+counts[i] > most {
				ends, held = append(ends, end), 0
			}
			held, end = held+counts[i], e+1
		}
		return nil
	})
	if held > 0 {
		ends = append(ends, end)
	}
	return ends, err
}

// foldPatches makes the table loam_states of the patches of a part, and counts in d what the clocks make of them.
func (b *build) foldPatches(ctx context.Context, w *historyPlan, d *differ, columns int, flags, part sql.Fragment) error {
	f := newFold(w.slots, columns)
	defer f.states.Release()
	statement := sql.Render("SELECT loam_entity, loam_event, loam_ingested, loam_deleted, rowid {flags} FROM loam_patches WHERE {part} ORDER BY rowid",
		sql.Args{"flags": flags, "part": part})
	carries := make([]bool, columns)
	err := b.db.Batches(ctx, statement, func(batch arrow.RecordBatch) error {
		entities, event, ingested, places := int64s(batch.Column(0)), int64s(batch.Column(1)), int64s(batch.Column(2)), int64s(batch.Column(4))
		deleted := batch.Column(3).(*array.Boolean)
		for i, e := range entities {
			if e != f.entity {
				f.derive()
				f.begin(e)
			}
			d.take(e, event[i], ingested[i])
			clock := ingested[i]
			if !w.served {
				clock = event[i]
			}
			for n := range carries {
				carries[n] = batch.Column(5 + n).(*array.Boolean).Value(i)
			}
			f.add(event[i], clock, places[i], deleted.Value(i), carries...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.derive()
	batch := f.states.NewRecordBatch()
	defer batch.Release()
	return b.db.ImportBatches(ctx, "loam_states", batch.Schema(), []arrow.RecordBatch{batch})
}

// fold makes states of the patches of one entity. They stand in their order, numbered from 1.
type fold struct {
	slots        *slots
	entity       int64
	event, clock []int64 // microseconds
	place        []int64 // the row of loam_patches
	deleted      []bool
	columns      int
	carries      []bool  // by patch and column
	from         []int32 // by patch and column, the patch that carried it last as far as is known; 0 for none
	states       *array.RecordBuilder
}

func newFold(s *slots, columns int) *fold {
	whole := func(name string) arrow.Field {
		return arrow.Field{Name: name, Type: arrow.PrimitiveTypes.Int64, Nullable: true}
	}
	fields := []arrow.Field{whole("loam_entity"), whole("loam_event"), whole("loam_since"), {Name: "loam_deleted", Type: arrow.FixedWidthTypes.Boolean}, whole("loam_place")}
	for i := range columns {
		fields = append(fields, whole(fmt.Sprintf("loam_from_%d", i)))
	}
	return &fold{slots: s, entity: -1, columns: columns, states: array.NewRecordBuilder(memory.DefaultAllocator, arrow.NewSchema(fields, nil))}
}

func (f *fold) begin(entity int64) {
	f.entity = entity
	f.event, f.clock, f.place, f.deleted, f.carries = f.event[:0], f.clock[:0], f.place[:0], f.deleted[:0], f.carries[:0]
}

// add takes the next patch of the entity, and what it carries; one that no label sees is left out.
func (f *fold) add(event, clock, place int64, deleted bool, carries ...bool) {
	if f.slots.from(f.entity, clock) == f.slots.starts[f.entity+1] {
		return
	}
	f.event, f.clock, f.place = append(f.event, event), append(f.clock, clock), append(f.place, place)
	f.deleted, f.carries = append(f.deleted, deleted), append(f.carries, carries...)
}

// derive tells the states of the entity: those that the patches make which are first seen by one label come together.
func (f *fold) derive() {
	n := int32(len(f.event))
	turns, slot := make([]int32, n), make([]int32, n+1) // the patches as they come, and by which label each is seen first
	for i := range turns {
		turns[i] = int32(i) + 1
		slot[i+1] = f.slots.from(f.entity, f.clock[i])
	}
	slices.SortStableFunc(turns, func(a, b int32) int { return cmp.Compare(slot[a], slot[b]) })
	before, after := neighbours(n, turns)
	f.from = slices.Grow(f.from[:0], int(n+1)*f.columns)[:int(n+1)*f.columns]
	clear(f.from)
	folded := make([]bool, n+1)
	for len(turns) > 0 {
		some := 0
		since := int64(none)
		for ; some < len(turns) && slot[turns[some]] == slot[turns[0]]; some++ {
			p := turns[some]
			since = max(since, f.clock[p-1])
			after[before[p]], before[after[p]] = p, p
		}
		come := turns[:some]
		turns = turns[some:]
		slices.Sort(come)
		done := int32(0)
		for _, p := range come {
			for p > done && p <= n {
				differs := f.fold(p, before[p])
				if folded[p] && !differs {
					break // nor does what follows
				}
				folded[p], done = true, p
				next := after[p]
				if next > n || f.event[next-1] != f.event[p-1] {
					f.tell(p, since)
				}
				p = next
			}
		}
	}
}

// fold makes the state that a patch leaves of the one before it, and reports whether it was another.
func (f *fold) fold(p, before int32) bool {
	differs := false
	for c := range f.columns {
		from := int32(0)
		switch {
		case f.deleted[p-1]:
		case f.carries[int(p-1)*f.columns+c]:
			from = p
		case before > 0:
			from = f.from[int(before)*f.columns+c]
		}
		if at := &f.from[int(p)*f.columns+c]; *at != from {
			*at, differs = from, true
		}
	}
	return differs
}

// tell appends the state that a patch leaves, as it is known from a time on.
func (f *fold) tell(p int32, since int64) {
	field := func(i int) *array.Int64Builder { return f.states.Field(i).(*array.Int64Builder) }
	field(0).Append(f.entity)
	field(1).Append(f.event[p-1])
	field(2).Append(since)
	f.states.Field(3).(*array.BooleanBuilder).Append(f.deleted[p-1])
	field(4).Append(f.place[p-1])
	for c := range f.columns {
		if from := f.from[int(p)*f.columns+c]; from > 0 {
			field(5 + c).Append(f.place[from-1])
		} else {
			field(5 + c).AppendNull()
		}
	}
}
