package online

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// engines are DuckDBs that compute features on demand, as many as there are cores. They are started when they are first
// needed, and shared by requests.
type engines struct {
	free   chan *sql.DB // nil is one that isn't started
	closed chan struct{}
}

// engineMemory bounds what each takes, in bytes.
const engineMemory = 256 << 20

func newEngines() *engines {
	e := &engines{free: make(chan *sql.DB, runtime.GOMAXPROCS(0)), closed: make(chan struct{})}
	for range cap(e.free) {
		e.free <- nil
	}
	return e
}

// use hands over an engine, once one is free.
func (e *engines) use(ctx context.Context, use func(*sql.DB) error) error {
	var db *sql.DB
	select {
	case db = <-e.free:
	case <-e.closed:
		return errors.New("the client was closed")
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { e.free <- db }()
	if db == nil {
		var err error
		if db, err = sql.Open(context.WithoutCancel(ctx), sql.Options{Threads: 1, MemoryBytes: engineMemory}); err != nil {
			return err
		}
	}
	return use(db)
}

// close ends the engines, once they are free.
func (e *engines) close() error {
	close(e.closed)
	var failed error
	for range cap(e.free) {
		if db := <-e.free; db != nil {
			failed = errors.Join(failed, db.Close())
		}
	}
	return failed
}

// demand is what a plan has of one view on demand.
type demand struct {
	view     *feature.View
	features []feature.Feature // that are asked for
	places   []int             // by feature: the column that it fills
	inputs   []demandInput
	query    string
}

// demandInput is a column that the expressions read.
type demandInput struct {
	feature.Input
	place int // of the feature that it is, in the rows that are read; -1 for a column of the request
}

// rowNumber is a column of the relation that expressions run over.
const rowNumber = "loam_row"

// plan makes the query. It takes the number of rows, and of each input its values as a JSON list of texts and nulls: text is cast to
// what it is, as it was before it was written.
func (d *demand) plan() {
	columns := []sql.Fragment{"unnest(range($1::BIGINT)) AS " + sql.Ident(rowNumber)}
	for i, in := range d.inputs {
		text := sql.Fragment(fmt.Sprintf("unnest(from_json($%d::JSON, '[\"VARCHAR\"]'))", i+2))
		if in.Type.List {
			text += "::JSON"
		}
		columns = append(columns, text+"::"+sql.Fragment(in.Type.SQL())+" AS "+sql.Ident(in.Name))
	}
	values := make([]sql.Computed, len(d.features))
	for i, f := range d.features {
		values[i] = sql.Computed{Name: f.Name, Expr: f.SQL, Type: f.Type.SQL()}
	}
	d.query = sql.OnDemand("(SELECT "+sql.Join(", ", columns)+")", sql.Ident(rowNumber), values)
}

// compute fills the places of rows. stored are the rows of the features that were read, request the columns of the request.
func (d *demand) compute(ctx context.Context, e *engines, stored, rows [][]Feature, request map[string][]Value) error {
	args := []any{len(rows)}
	for _, in := range d.inputs {
		texts := make([]*string, len(rows))
		for n := range rows {
			v := &Value{Null: true}
			if in.place >= 0 {
				v = &stored[n][in.place].Value
			} else {
				v = &request[in.Name][n]
			}
			if !v.Null {
				texts[n] = &v.Text
			}
		}
		list, err := json.Marshal(texts)
		if err != nil {
			return err
		}
		args = append(args, string(list))
	}
	err := e.use(ctx, func(db *sql.DB) error {
		return db.Arrow(ctx, d.query, func(r array.RecordReader) error {
			for r.Next() {
				d.fill(r.RecordBatch(), rows)
			}
			return nil
		}, args...)
	})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("compute feature view %s: %w", d.view.Name, err)
	}
	return nil
}

// fill sets the places of the rows that a batch of the query's result is of.
func (d *demand) fill(batch arrow.RecordBatch, rows [][]Feature) {
	numbers := batch.Column(0).(*array.Int64)
	for i := range int(batch.NumRows()) {
		row := rows[numbers.Value(i)]
		for f, place := range d.places {
			at := &row[place]
			if c := batch.Column(f + 1); c.IsNull(i) {
				at.Status = NullValue
			} else {
				at.Status, at.Value.Null, at.Value.Text = Present, false, string(appendValue(nil, c, i))
			}
		}
	}
}

// RequestError says that a column of the request, which a view on demand needs, is missing, or that a value isn't of its type.
type RequestError struct {
	View, Column string
	Type         feature.Type
	Entity       int // whose value it is, from 0; -1 where the column is missing
}

func (e *RequestError) Error() string {
	if e.Entity < 0 {
		return fmt.Sprintf("feature view %s needs the column %s of the request, which is %s", e.View, e.Column, e.Type)
	}
	return fmt.Sprintf("feature view %s takes the column %s of the request as %s, and that of entity %d is none", e.View, e.Column, e.Type, e.Entity)
}

// RequestColumn is a column of the request that a plan needs.
type RequestColumn struct {
	Name string
	View string // one that needs it
	Type feature.Type
}

// RequestColumns are the columns of the request that the features read, each once.
func (p *Plan) RequestColumns() []RequestColumn { return p.request }

// planRequest finds the columns of the request that the features read. One column can't be of two types.
func (p *Plan) planRequest() error {
	for _, d := range p.demands {
		for _, in := range d.inputs {
			if in.place >= 0 {
				continue
			}
			i := slices.IndexFunc(p.request, func(o RequestColumn) bool { return o.Name == in.Name })
			if i < 0 {
				p.request = append(p.request, RequestColumn{Name: in.Name, View: d.view.Name, Type: in.Type})
			} else if o := p.request[i]; o.Type != in.Type {
				return fmt.Errorf("the column %s of the request is %s to feature view %s and %s to %s: ask for the two apart", in.Name, o.Type, o.View, in.Type, d.view.Name)
			}
		}
	}
	return nil
}

// checkRequest holds the columns of the request to what the plan needs.
func (p *Plan) checkRequest(e Entities) error {
	for _, c := range p.request {
		given, ok := e.Request[c.Name]
		if !ok || len(given) != e.Len {
			return &RequestError{View: c.View, Column: c.Name, Type: c.Type, Entity: -1}
		}
		for n, v := range given {
			if !v.Null && v.Type != c.Type {
				return &RequestError{View: c.View, Column: c.Name, Type: c.Type, Entity: n}
			}
		}
	}
	return nil
}

// ParseValue reads text as a value of a type: numbers in decimal digits, an int64 without a fraction and a decimal with no more
// digits than it has, bools as true and false, times as RFC 3339, dates as YYYY-MM-DD, json and lists as JSON.
func ParseValue(t feature.Type, text string) (Value, bool) {
	v := Value{Type: t, Text: text}
	if t.List {
		var elements []json.RawMessage
		if json.Unmarshal([]byte(text), &elements) != nil || elements == nil {
			return v, false
		}
		for _, e := range elements {
			if string(e) == "null" {
				continue
			}
			one := string(e)
			if e[0] == '"' && json.Unmarshal(e, &one) != nil {
				return v, false
			}
			if _, ok := ParseValue(t.Elem(), one); !ok {
				return v, false
			}
		}
		return v, true
	}
	switch t.Kind {
	case feature.Timestamp:
		at, err := time.Parse(time.RFC3339Nano, text)
		v.Text = at.UTC().Format(timeFormat)
		return v, err == nil
	case feature.Date:
		at, err := time.Parse(dateFormat, text)
		v.Text = at.Format(dateFormat)
		return v, err == nil
	case feature.JSON:
		return v, json.Valid([]byte(text))
	case feature.Decimal:
		whole, part, _ := strings.Cut(unsigned(text), ".")
		fits := fits(t, text) && len(strings.TrimRight(part, "0")) <= int(t.Scale) && len(strings.TrimLeft(whole, "0")) <= int(t.Precision-t.Scale)
		return v, fits
	}
	return v, fits(t, text)
}
