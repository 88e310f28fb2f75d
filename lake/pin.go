package lake

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apache/iceberg-go"
	"github.com/apache/iceberg-go/table"

	"github.com/loamdata/loam/feature"
)

// ErrGone: a table is no longer what was pinned of it.
var ErrGone = errors.New("is gone")

// Pin says what a reading had of one table, so that the same can be read again. It is part of a training set's card, and
// frozen.
type Pin struct {
	UUID     string `json:"uuid"`
	Snapshot int64  `json:"snapshot"` // 0 where the table was empty
	Schema   int    `json:"schema"`   // whose names the columns had
	// Beyond are rows of a log that its history had not taken, and that were left out.
	Beyond []PinSpan `json:"beyond,omitempty"`
	// Former are the columns of a log that its stream's definition didn't have any more. A history is made of them, too.
	Former []PinColumn `json:"former,omitempty"`
}

// PinColumn is a column of a former definition, by the name that it had in the schema of the pin.
type PinColumn struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Tracked bool   `json:"tracked,omitempty"`
}

// PinSpan is a span of offsets of one partition: those from From to before To. A redrive is a topic of its own.
type PinSpan struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	From      int64  `json:"from"`
	To        int64  `json:"to"`
}

// Pins are what the reading has of its tables, by their full names.
func (r *Reading) Pins() map[string]Pin {
	pins := map[string]Pin{}
	for _, t := range []*Table{r.Log, r.History} {
		if t == nil {
			continue
		}
		pin := Pin{UUID: t.tbl.Metadata().TableUUID().String(), Snapshot: t.SnapshotID(), Schema: t.readSchema().ID}
		if t == r.Log {
			for _, s := range r.beyond {
				pin.Beyond = append(pin.Beyond, PinSpan{Topic: s.Topic, Partition: s.Index, From: s.From, To: s.To})
			}
			for _, c := range r.Stream.Columns[r.declared:] {
				pin.Former = append(pin.Former, PinColumn{Name: c.Name, Type: c.Type.String(), Tracked: r.Stream.Kind == feature.StateStream && r.Stream.Tracked(c.Name)})
			}
		}
		pins[t.Name()] = pin
	}
	return pins
}

// ReadAt opens a stream's tables as a reading before had them, whose pins these are. The definition is that of then. What
// was pinned and is no longer there is [ErrGone].
func (l *Lake) ReadAt(ctx context.Context, def *feature.Stream, pins map[string]Pin) (*Reading, error) {
	r := &Reading{declared: len(def.Columns)}
	var err error
	if def.Kind == feature.StateStream {
		if r.History, err = l.openAt(ctx, HistoryName(def.Name), pins); err != nil {
			return nil, err
		}
	}
	if r.Log, err = l.openAt(ctx, LogName(def.Name), pins); err != nil {
		return nil, err
	}
	former := rests{}
	for _, c := range pins[r.Log.Name()].Former {
		former.Columns = append(former.Columns, restsColumn(c))
	}
	if r.Stream, err = withDropped(def, &former); err != nil {
		return nil, err
	}
	for _, s := range pins[r.Log.Name()].Beyond {
		r.beyond = append(r.beyond, feature.Span{Partition: feature.Partition{Topic: s.Topic, Index: s.Partition}, From: s.From, To: s.To})
	}
	return r, nil
}

func (l *Lake) openAt(ctx context.Context, name string, pins map[string]Pin) (*Table, error) {
	pin, ok := pins[l.TableName(name)]
	if !ok {
		return nil, fmt.Errorf("the card names no snapshot of table %s", l.TableName(name))
	}
	t, err := l.openTable(ctx, name)
	if errors.Is(err, ErrNoTable) {
		return nil, fmt.Errorf("table %s %w: it was removed", l.TableName(name), ErrGone)
	} else if err != nil {
		return nil, err
	}
	meta := t.tbl.Metadata()
	if uuid := meta.TableUUID().String(); uuid != pin.UUID {
		return nil, fmt.Errorf("table %s %w: one of that name was made anew since", t.Name(), ErrGone)
	}
	if pin.Snapshot != 0 && t.tbl.SnapshotByID(pin.Snapshot) == nil {
		return nil, fmt.Errorf("snapshot %d of %s %w: it was unpinned, and has expired", pin.Snapshot, t.Name(), ErrGone)
	}
	if schema(meta, pin.Schema) == nil {
		return nil, fmt.Errorf("schema %d of %s %w: another engine has removed it", pin.Schema, t.Name(), ErrGone)
	}
	t.pin = &pin
	return t, nil
}

// readSchema is the schema whose columns a scan of the table has.
func (t *Table) readSchema() *iceberg.Schema {
	if t.pin != nil {
		return schema(t.tbl.Metadata(), t.pin.Schema)
	}
	return t.tbl.Schema()
}

func schema(meta table.Metadata, id int) *iceberg.Schema {
	all := meta.Schemas()
	if i := slices.IndexFunc(all, func(s *iceberg.Schema) bool { return s.ID == id }); i >= 0 {
		return all[i]
	}
	return nil
}

// Tags are the tags of a table, by the table's full name; none where the table is gone.
func (l *Lake) Tags(ctx context.Context, name string) ([]string, error) {
	t, err := l.openNamed(ctx, name)
	if errors.Is(err, ErrNoTable) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return t.tags(), nil
}

func (t *Table) tags() []string {
	var names []string
	for name, ref := range t.tbl.Metadata().Refs() {
		if ref.SnapshotRefType == table.TagRef {
			names = append(names, name)
		}
	}
	return names
}

// Tagged are the tags of all tables of the project that begin with a prefix, each with the full names of the tables that have it.
func (l *Lake) Tagged(ctx context.Context, prefix string) (map[string][]string, error) {
	tagged := map[string][]string{}
	for ident, err := range l.catalog.ListTables(ctx, table.Identifier{l.config.Namespace}) {
		if err != nil {
			return nil, fmt.Errorf("list the tables of %s: %w", l.config.Namespace, err)
		}
		name := strings.Join(ident, ".")
		tags, err := l.Tags(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, tag := range tags {
			if strings.HasPrefix(tag, prefix) {
				tagged[tag] = append(tagged[tag], name)
			}
		}
	}
	for _, tables := range tagged {
		slices.Sort(tables)
	}
	return tagged, nil
}

// Unpin takes a tag from a snapshot of a table, by its full name, so that it may expire. It
// reports whether the tag was there.
func (l *Lake) Unpin(ctx context.Context, name, tag string) (bool, error) {
	t, err := l.openNamed(ctx, name)
	if errors.Is(err, ErrNoTable) {
		return false, nil
	} else if err != nil || !slices.Contains(t.tags(), tag) {
		return false, err
	}
	return true, t.Untag(ctx, tag)
}

// openNamed opens a table by its full name.
func (l *Lake) openNamed(ctx context.Context, full string) (*Table, error) {
	prefix := l.TableName("")
	if len(full) <= len(prefix) || full[:len(prefix)] != prefix { // a table of others that labels came from
		return l.OpenForeign(ctx, full, 0)
	}
	return l.openTable(ctx, full[len(prefix):])
}
