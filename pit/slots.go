package pit

import (
	"context"
	"fmt"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/sql"
)

// slots are the labels that are worked on as one kind of entity asks for them: an entity's stand together, ordered by the
// bound up to which they see. What one of an entity's labels sees, all after it see, too. So a change is looked at once,
// however many labels see it: it falls to the first that does.
type slots struct {
	entities string  // the table that numbers the entities: (label_key, entity)
	starts   []int32 // by entity: where its labels begin; one more at the end
	bounds   []int64 // by slot: the time, in microseconds, that what a label sees doesn't pass
	rows     []int64 // by slot: the label's row
	early    int64   // what is added to a bound for the label's own time: 1 where that is left out, else 0
}

// slotsOf gives the slots of a view's entity, which views with the same keys share.
func (b *build) slotsOf(ctx context.Context, j *viewJob) (*slots, error) {
	of := string(key("", j.entity.JoinKeys, j.stream))
	if s := b.slots[of]; s != nil {
		return s, nil
	}
	if err := b.ask(ctx, j); err != nil {
		return nil, err
	}
	s := &slots{entities: fmt.Sprintf("entities_%d", len(b.slots))}
	if b.request.ExcludeLabelTime {
		s.early = 1
	}
	if err := b.db.Exec(ctx, sql.Render(sql.Statement("pit_entities"), sql.Args{"entities": sql.Ident(s.entities)})); err != nil {
		return nil, err
	}
	statement := sql.Render(sql.Statement("pit_slots"), sql.Args{"entities": sql.Ident(s.entities)})
	last := int64(-1)
	err := b.db.Batches(ctx, statement, func(batch arrow.RecordBatch) error {
		entities, bounds, rows := int64s(batch.Column(0)), int64s(batch.Column(1)), int64s(batch.Column(2))
		for i, e := range entities {
			for ; last < e; last++ { // entities are numbered without gaps
				s.starts = append(s.starts, int32(len(s.bounds)+i))
			}
		}
		s.bounds, s.rows = append(s.bounds, bounds...), append(s.rows, rows...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.starts = append(s.starts, int32(len(s.bounds)))
	if b.slots == nil {
		b.slots = map[string]*slots{}
	}
	b.slots[of] = s
	return s, nil
}

// from finds the first of an entity's labels whose bound is not before the time: the end of its slots where there is none.
func (s *slots) from(entity int64, us int64) int32 {
	low, high := s.starts[entity], s.starts[entity+1]
	for low < high {
		if middle := (low + high) / 2; s.bounds[middle] < us {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low
}

// time is a slot's label's own time, in microseconds.
func (s *slots) time(slot int32) int64 { return s.bounds[slot] + s.early }

// int64s are the values of a column of 64-bit integers; of a null there is any.
func int64s(column any) []int64 { return column.(*array.Int64).Int64Values() }
