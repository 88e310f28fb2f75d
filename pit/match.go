package pit

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// change is what of a change decides which labels see it.
type change struct {
	event     int64 // microseconds
	sequence  int64
	offset    int64
	topic     int64 // its topic as topics compare, see [topics]
	partition int32
	sequenced bool // whether there is a sequence
}

// above reports whether a change stands after another in the order.
func (c *change) above(d *change) bool {
	switch {
	case c.event != d.event:
		return c.event > d.event
	case c.sequenced != d.sequenced:
		return c.sequenced // none is lowest
	}
	return cmp.Or(cmp.Compare(c.sequence, d.sequence), cmp.Compare(c.topic, d.topic), cmp.Compare(c.partition, d.partition),
		cmp.Compare(c.offset, d.offset)) > 0
}

// read takes what settles ties from a batch: topic, partition, offset and sequence, from the column first on.
func (c *change) read(batch arrow.RecordBatch, first, row int, ranks topics) {
	c.topic = ranks.rank(batch.Column(first).(*array.String).Value(row))
	c.partition = int32(batch.Column(first + 1).(*array.Int64).Value(row))
	c.offset = batch.Column(first + 2).(*array.Int64).Value(row)
	if sequence := batch.Column(first + 3).(*array.Int64); sequence.IsValid(row) {
		c.sequenced, c.sequence = true, sequence.Value(row)
	}
}

// topics are the names of topics as they compare: live ones after files and redrives, then by the first 4 bytes of the
// SHA-256 of the name.
type topics map[string]int64

func (t topics) rank(name string) int64 {
	rank, known := t[name]
	if !known {
		sum := sha256.Sum256([]byte(name))
		rank = int64(binary.BigEndian.Uint32(sum[:4]))
		if !strings.HasPrefix(name, "file:") && !strings.HasPrefix(name, "redrive:") {
			rank |= 1 << 32
		}
		t[strings.Clone(name)] = rank
	}
	return rank
}

// seen is a change that a label sees: where it stands, and what has to be known of it for every label.
type seen struct {
	event   int64 // microseconds
	place   int64 // file and row in the log's view
	deleted bool
	there   bool // whether there is one
	tied    bool // whether another one has its event time, and what settles the tie was not read
}

// matcher finds which change each label sees, of those that bear on one value.
type matcher struct {
	slots *slots
	best  []seen // by slot: the greatest change that falls to it, then the greatest that its label sees
	// ties are the orders of the changes in best, by slot, while ties are settled; nil while they are only noted.
	ties map[int32]change
}

// take lets a change fall to the first label of its entity that sees it.
func (m *matcher) take(entity, clock int64, s seen, c *change) {
	slot := m.slots.from(entity, clock)
	if slot == m.slots.starts[entity+1] {
		return
	}
	if m.rises(slot, &s, c) {
		m.best[slot] = s
		if m.ties != nil {
			m.ties[slot] = *c
		}
	}
}

// rises reports whether a change is greater than the one of a slot, or notes that they are tied.
func (m *matcher) rises(slot int32, s *seen, c *change) bool {
	best := &m.best[slot]
	switch {
	case !best.there || s.event != best.event:
		return !best.there || s.event > best.event
	case m.ties == nil:
		best.tied = true
		return false
	}
	other := m.ties[slot]
	return c.above(&other)
}

// settle gives each label of an entity the greatest of the changes that fell to it or to one before it, and reports whether
// one of them is tied.
func (m *matcher) settle(entity int) bool {
	tied := false
	for slot := m.slots.starts[entity]; slot < m.slots.starts[entity+1]; slot++ {
		if before := slot - 1; before >= m.slots.starts[entity] && m.best[before].there {
			order := m.ties[before]
			if m.rises(slot, &m.best[before], &order) {
				m.best[slot] = m.best[before]
				if m.ties != nil {
					m.ties[slot] = order
				}
			}
		}
		tied = tied || m.best[slot].tied
	}
	return tied
}

// again forgets what was found for an entity, so that its ties are settled.
func (m *matcher) again(entity int64) {
	clear(m.best[m.slots.starts[entity]:m.slots.starts[entity+1]])
	if m.ties == nil {
		m.ties = map[int32]change{}
	}
}

// differ counts, by slot, how many changes had happened by a label's time, within its reach, and were not ingested yet: a
// change adds one to a range of its entity's labels, so the counts are kept as their steps until they are settled.
type differ struct {
	slots *slots
	ttl   int64 // microseconds; 0 for none
	steps []int32
}

func newDiffer(s *slots, ttl int64) *differ {
	return &differ{slots: s, ttl: ttl, steps: make([]int32, len(s.bounds)+1)}
}

// take counts a change in where the view's time to live reaches.
func (d *differ) take(entity int64, event, ingested int64) {
	if ingested <= event {
		return
	}
	end := d.slots.starts[entity+1]
	if d.ttl > 0 {
		end = d.slots.from(entity, event+d.ttl+1-d.slots.early)
	}
	d.within(entity, event, ingested, end)
}

// within counts a change in before the slot end. Times of labels count here, not bounds.
func (d *differ) within(entity int64, event, ingested int64, end int32) {
	if ingested <= event {
		return
	}
	first := d.slots.from(entity, event-d.slots.early)
	end = min(end, d.slots.from(entity, ingested-d.slots.early))
	if first < end {
		d.steps[first]++
		d.steps[end]--
	}
}

// rows are those of the labels for which the clocks could differ.
func (d *differ) rows(use func(row int64)) {
	sum := int32(0)
	for slot, row := range d.slots.rows {
		if sum += d.steps[slot]; sum > 0 {
			use(row)
		}
	}
}

// match streams the changes of a view's entities through a matcher for each of the expressions in bears: a change is looked
// at for a value if its expression is true. What settles ties of event time is a third of the bytes and ties are few, so it
// is read only of the entities for which a tie decides what a label sees.
func (b *build) match(ctx context.Context, j *viewJob, s *slots, span lake.Span, log string, bears []sql.Fragment) ([]*matcher, error) {
	matchers := make([]*matcher, len(bears))
	for i := range bears {
		matchers[i] = &matcher{slots: s, best: make([]seen, len(s.bounds))}
	}
	d := newDiffer(s, j.view.TTL.Microseconds())
	scan := matching{build: b, job: j, slots: s, span: span, log: log, bears: bears, matchers: matchers}
	if err := scan.run(ctx, s.entities, d); err != nil {
		return nil, err
	}
	d.rows(b.differs)
	var tied []int64
	for e := range len(s.starts) - 1 {
		any := false
		for _, m := range matchers {
			any = m.settle(e) || any
		}
		if any {
			tied = append(tied, int64(e))
		}
	}
	if len(tied) == 0 {
		return matchers, nil
	}
	if err := b.narrow(ctx, s.entities, tied); err != nil {
		return nil, err
	}
	for _, m := range matchers {
		for _, e := range tied {
			m.again(e)
		}
	}
	scan.settles = true
	if err := scan.run(ctx, tiedEntities, nil); err != nil {
		return nil, err
	}
	for _, m := range matchers {
		for _, e := range tied {
			m.settle(int(e))
		}
	}
	return matchers, nil
}

// tiedEntities is the table of the entities whose ties are to be settled.
const tiedEntities = "tied_entities"

// narrow makes the table of some of the entities.
func (b *build) narrow(ctx context.Context, entities string, some []int64) error {
	schema := arrow.NewSchema([]arrow.Field{{Name: "entity", Type: arrow.PrimitiveTypes.Int64}}, nil)
	rb := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer rb.Release()
	rb.Field(0).(*array.Int64Builder).AppendValues(some, nil)
	batch := rb.NewRecordBatch()
	defer batch.Release()
	if err := b.db.ImportBatches(ctx, "tied", schema, []arrow.RecordBatch{batch}); err != nil {
		return err
	}
	return b.db.Exec(ctx, sql.Render("CREATE OR REPLACE TEMP TABLE {tied} AS SELECT e.* FROM {entities} e SEMI JOIN tied USING (entity)",
		sql.Args{"tied": sql.Ident(tiedEntities), "entities": sql.Ident(entities)}))
}

// matching is a pass over the changes of entities.
type matching struct {
	build    *build
	job      *viewJob
	slots    *slots
	span     lake.Span
	log      string
	bears    []sql.Fragment
	matchers []*matcher
	settles  bool // whether what settles ties is read, too
}

// run streams the changes of the entities of a table to the matchers, and to d if there is one.
func (p *matching) run(ctx context.Context, entities string, d *differ) error {
	args := sql.Args{
		"log": sql.Ident(p.log), "entities": sql.Ident(entities), "key": key("g.", p.job.entity.JoinKeys, p.job.stream), "order": "",
		"only": p.build.recorded() + " AND " + within("g.", p.span), "bears": "",
	}
	if p.settles {
		args["order"] = `, g.topic, g."partition", g."offset", g.sequence`
	}
	for _, bear := range p.bears {
		args["bears"] += ", " + bear
	}
	const order = 5 // the first column of the order
	bears := order
	if p.settles {
		bears += 4
	}
	onEvent := p.build.request.AsOf == feature.EventClock
	ranks := topics{}
	return p.build.db.Batches(ctx, sql.Render(sql.Statement("pit_changes"), args), func(batch arrow.RecordBatch) error {
		entity, event, ingested, place := int64s(batch.Column(0)), int64s(batch.Column(1)), int64s(batch.Column(2)), int64s(batch.Column(3))
		deleted := batch.Column(4).(*array.Boolean)
		for i, e := range entity {
			c := change{event: event[i]}
			if p.settles {
				c.read(batch, order, i, ranks)
			}
			clock := ingested[i]
			if onEvent {
				clock = c.event
			}
			if d != nil {
				d.take(e, c.event, ingested[i])
			}
			for n, m := range p.matchers {
				if batch.Column(bears + n).(*array.Boolean).Value(i) {
					m.take(e, clock, seen{event: c.event, place: place[i], deleted: deleted.Value(i), there: true}, &c)
				}
			}
		}
		return nil
	})
}

// within is the condition on a change's times that a span makes.
func within(prefix sql.Fragment, s lake.Span) sql.Fragment {
	at := func(us int64) sql.Fragment { return sql.Fragment(fmt.Sprintf("make_timestamptz(%d)", us)) }
	condition := prefix + "event_time <= " + at(s.To)
	if s.Ingested {
		condition = "(" + condition + " OR " + prefix + "ingested_at <= " + at(s.To) + ")"
	}
	if s.From != nil {
		condition += " AND " + prefix + "event_time >= " + at(*s.From)
	}
	return condition
}

// imported makes the table matched of what a matcher found: (loam_label_row, loam_place, loam_alive).
func (b *build) imported(ctx context.Context, m *matcher, ttl int64) error {
	schema := arrow.NewSchema([]arrow.Field{
		{Name: "loam_label_row", Type: arrow.PrimitiveTypes.Int64}, {Name: "loam_place", Type: arrow.PrimitiveTypes.Int64},
		{Name: "loam_alive", Type: arrow.FixedWidthTypes.Boolean},
	}, nil)
	rb := array.NewRecordBuilder(memory.DefaultAllocator, schema)
	defer rb.Release()
	rows, places, alive := rb.Field(0).(*array.Int64Builder), rb.Field(1).(*array.Int64Builder), rb.Field(2).(*array.BooleanBuilder)
	for slot := range m.best {
		c := &m.best[slot]
		if !c.there {
			continue
		}
		rows.Append(m.slots.rows[slot])
		places.Append(c.place)
		alive.Append(!c.deleted && (ttl == 0 || m.slots.time(int32(slot))-c.event <= ttl))
	}
	batch := rb.NewRecordBatch()
	defer batch.Release()
	return b.db.ImportBatches(ctx, "matched", schema, []arrow.RecordBatch{batch})
}
