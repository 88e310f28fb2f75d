package ingest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"github.com/loamdata/loam/feature"
)

// PushBytesMax bounds an event that is pushed, below what a broker takes unless it is told otherwise.
const PushBytesMax = 900_000

// PushColumn is a column of rows that are pushed.
type PushColumn struct {
	Name   string
	Values [][]byte // one JSON value a row
}

// Event is an event as it goes to its topic.
type Event struct {
	Key   []byte // nil where the row has no value for it
	Value []byte
}

// Push makes events of rows that a caller hands over, and checks each as whoever reads its topic will.
type Push struct {
	Stream *feature.Stream
	// Source is who pushes, which an envelope says of its event.
	Source string
	// IdempotencyKey, unless it is "", names the push: events of rows that are pushed again under it have the ids that they had, and so
	// count once. Rows with other values are other events.
	IdempotencyKey string
}

// Pushable says why nothing can be pushed to a stream, nil where it can.
func Pushable(s *feature.Stream) error {
	switch {
	case s.Full():
		return fmt.Errorf("stream %s has no topic: its load is full, so `loam backfill` alone feeds it", s.Name)
	case s.Format == feature.DebeziumFormat:
		return fmt.Errorf("stream %s takes change events of Debezium, which a push can't make: push to a stream of format row or envelope", s.Name)
	case s.Mapping != nil:
		return fmt.Errorf("stream %s makes its columns of a vendor's records by its mapping: produce records to topic %s, or push to a stream without one", s.Name, s.Topic)
	case s.Framed():
		return fmt.Errorf("values of topic %s name schemas of a registry (encoding %s): produce to it with a serializer, or push to a stream of encoding json",
			s.Topic, s.Encoding)
	}
	return nil
}

// ColumnError is a column that rows which are pushed can't have, or lack. Nothing was looked at but the columns.
type ColumnError struct {
	Column string
	What   string // what is wrong, and the remedy
}

func (e *ColumnError) Error() string { return "column " + e.Column + ": " + e.What }

// RefusedRow is a row that its stream would refuse.
type RefusedRow struct {
	Row    int            `json:"row"`              // from 0
	Column string         `json:"column,omitempty"` // as the caller named it; "" where it is none's
	Reason feature.Reason `json:"reason"`           // as that of a dead letter
	Detail string         `json:"detail"`
}

// RowsError says which rows of a push are refused, in their order.
type RowsError struct{ Rows []RefusedRow }

func (e *RowsError) Error() string {
	r := e.Rows[0]
	text := fmt.Sprintf("row %d: ", r.Row)
	if r.Column != "" {
		text += r.Column + ": "
	}
	if text += r.Detail; len(e.Rows) > 1 {
		text += fmt.Sprintf(" (and %d more rows are refused)", len(e.Rows)-1)
	}
	return text
}

// ErrNotIdempotent: a stream tells events apart by their positions, so that a push which is repeated counts twice.
var ErrNotIdempotent = errors.New("the ids of the stream's events are their positions")

// Events makes an event of each row, in their order, as of now. An error says that no row was taken: a [ColumnError] or [RowsError] where the
// rows are at fault, [ErrNotIdempotent] where the stream can't keep what an idempotency key promises.
func (p *Push) Events(ctx context.Context, columns []PushColumn, now time.Time) ([]Event, error) {
	if p.IdempotencyKey != "" && p.Stream.ID == feature.PositionID {
		return nil, fmt.Errorf("%w, so what is pushed to %s twice counts twice: name a column by `id:`, or push without an idempotency key",
			ErrNotIdempotent, p.Stream.Name)
	}
	l, err := newPushLayout(p.Stream, columns)
	if err != nil {
		return nil, err
	}
	if len(columns) == 0 {
		return nil, nil
	}
	events := make([]Event, len(columns[0].Values))
	for row := range events {
		events[row] = p.event(l, row)
	}
	if err := p.check(ctx, l, events, now); err != nil {
		return nil, err
	}
	return events, nil
}

// check has a router of the stream take the events, as that of a worker will, and gives those that it refuses.
func (p *Push) check(ctx context.Context, l *pushLayout, events []Event, now time.Time) error {
	s := p.Stream
	o := RouterOptions{
		Streams: []*feature.Stream{s}, Only: s, Starts: func(string, feature.Partition) int64 { return 0 },
		Dedups: map[string]*Dedup{s.Name: NewDedup(2*len(events)+1, nil)},
	}
	if s.DeleteWhen != "" { // what it says of a row is no reason to refuse it
		o.Deletes = map[string]Condition{s.Name: func(_ context.Context, rows arrow.RecordBatch) ([]bool, error) {
			return make([]bool, rows.NumRows()), nil
		}}
	}
	r := NewRouter(o)
	var refused []RefusedRow
	for i, e := range events {
		if len(e.Key)+len(e.Value) > PushBytesMax {
			refused = append(refused, RefusedRow{Row: i, Reason: feature.TooLarge, Detail: fmt.Sprintf("its event is longer than %d bytes", PushBytesMax)})
			continue
		}
		r.Add(&Record{Position: feature.Position{Topic: s.Topic, Offset: int64(i)}, Key: e.Key, Value: e.Value}, now.UnixMicro())
	}
	batches, err := r.Flush(ctx, nil)
	if err != nil {
		return err
	}
	for _, b := range batches {
		for _, letter := range b.Refused {
			row := RefusedRow{Row: int(letter.Offset), Reason: letter.Reason, Detail: letter.Detail}
			row.Column, row.Detail = l.blame(letter.Reason, letter.Detail)
			refused = append(refused, row)
		}
		b.Release()
	}
	if len(refused) == 0 {
		return nil
	}
	slices.SortFunc(refused, func(a, b RefusedRow) int { return cmp.Compare(a.Row, b.Row) })
	return &RowsError{refused}
}

// pushSpace is the name space of ids of events that are pushed under an idempotency key. It is frozen.
var pushSpace = uuid.MustParse("6f6d1f5e-7f0c-5f2e-9a43-6c6f616d0002")

// id is the id of a row's event: the same for the same row of the same push, or one that was never given before.
func (p *Push) id(row int, content []byte) []byte {
	if p.IdempotencyKey == "" {
		return []byte(uuid.NewString())
	}
	sum := sha256.Sum256(content)
	name := fmt.Appendf(nil, "%s\x00%s\x00%d\x00%x", p.Stream.Name, p.IdempotencyKey, row, sum)
	return []byte(uuid.NewSHA1(pushSpace, name).String())
}

// event makes the event of a row.
func (p *Push) event(l *pushLayout, row int) Event {
	content := l.root.append(nil, l.columns, row)
	e := Event{Key: l.recordKey(row), Value: content}
	switch {
	case p.Stream.Format == feature.EnvelopeFormat:
		e.Value = p.envelope(l, row, content)
	case l.id != "" && p.IdempotencyKey != "":
		e.Value = l.withID(content, p.id(row, content))
	}
	return e
}

// envelope puts the envelope of a canonical event around a row's payload. Its members are those of the row where it has them.
func (p *Push) envelope(l *pushLayout, row int, payload []byte) []byte {
	var b []byte
	member := func(name string, raw []byte) {
		if len(b) > len(`{"envelope":{`) {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), `":`...)
		b = append(b, raw...)
	}
	text := func(s []byte) []byte {
		quoted, err := jsontext.AppendQuote(nil, s)
		if err != nil { // it isn't UTF-8, and refused when it is read
			return []byte("null")
		}
		return quoted
	}
	b = append(b, `{"envelope":{`...)
	for _, name := range envelopeColumns {
		if raw := l.envelopeValue(name, row); raw != nil && raw[0] != 'n' {
			member(name, raw)
			continue
		}
		switch name {
		case "event_id":
			member(name, text(p.id(row, slices.Concat(l.envelopeValue("event_type", row), l.envelopeValue("occurred_at", row), payload))))
		case "event_type":
			member(name, text([]byte(l.eventType)))
		case "source":
			member(name, text([]byte(p.Source)))
		}
	}
	b = append(b, `,"delivery_attempt":1,"schema_version":"1.0"},"payload":`...)
	return append(append(b, payload...), '}')
}

// pushLayout says where the values of pushed columns stand in an event.
type pushLayout struct {
	stream  *feature.Stream
	columns []PushColumn
	root    *pushNode
	// inEnvelope is the column of a member of the envelope.
	inEnvelope map[string]int
	eventType  string            // where no column says it
	key        []keyPart         // what the record's key is made of; nil where the rows lack some of it
	id         string            // the member that an id is to be put into, which the rows lack; "" for none
	names      map[string]string // of places, as details of refusals name them -> the caller's column
	time       string            // the caller's column with the event time, else the name that it should have
}

// keyPart is a column of the rows, and the stream's column that it is.
type keyPart struct {
	index  int
	column feature.Column
}

// envelopeColumns are the members of an envelope that a column may give, in their order.
var envelopeColumns = []string{"event_id", "event_type", "source", "occurred_at", "actor", "reason"}

// pushNode is a member of an event.
type pushNode struct {
	name     string
	column   int // -1 for an object
	children []*pushNode
}

func (n *pushNode) append(b []byte, columns []PushColumn, row int) []byte {
	if n.column >= 0 {
		return append(b, columns[n.column].Values[row]...)
	}
	b = append(b, '{')
	for i, child := range n.children {
		if i > 0 {
			b = append(b, ',')
		}
		b, _ = jsontext.AppendQuote(b, child.name) // names come from the project's folder, which is UTF-8
		b = child.append(append(b, ':'), columns, row)
	}
	return append(b, '}')
}

// put adds a column at a path, and reports whether the place was free.
func (n *pushNode) put(path []string, column int) bool {
	for i, name := range path {
		var child *pushNode
		for _, c := range n.children {
			if c.name == name {
				child = c
			}
		}
		last := i == len(path)-1
		if child != nil && (last || child.column >= 0) {
			return false
		}
		if child == nil {
			child = &pushNode{name: name, column: -1}
			n.children = append(n.children, child)
		}
		if n = child; last {
			n.column = column
		}
	}
	return true
}

// pushPlaces are the names that a stream's columns may be pushed by, and where their values stand in its events.
func pushPlaces(s *feature.Stream) map[string][]string {
	places := map[string][]string{}
	for _, name := range []string{s.EventTime, s.Sequence, s.ProcessedTime, s.ID} {
		if name != "" && name != feature.PositionID {
			places[name] = strings.Split(name, ".")
		}
	}
	for _, c := range s.Columns {
		places[strings.Join(c.Path, ".")] = c.Path
	}
	for _, c := range s.Columns { // last: its name is a column's own before it is a place of another's
		places[c.Name] = c.Path
	}
	if _, own := places[feature.DefaultTimeColumn]; !own && s.EventTime != "" {
		places[feature.DefaultTimeColumn] = places[s.EventTime]
	}
	return places
}

func newPushLayout(s *feature.Stream, columns []PushColumn) (*pushLayout, error) {
	l := &pushLayout{stream: s, columns: columns, root: &pushNode{column: -1}, inEnvelope: map[string]int{}, names: map[string]string{}}
	l.eventType, l.time = pushedType(s), cmp.Or(s.EventTime, feature.DefaultTimeColumn)
	places := pushPlaces(s)
	timePath := places[s.EventTime]
	for i, c := range columns {
		path, known := places[c.Name]
		switch {
		case known:
			if !l.root.put(path, i) {
				return nil, &ColumnError{c.Name, "another column stands in its place: leave one of them out"}
			}
			l.names[strings.Join(path, ".")] = c.Name
			if s.EventTime != "" && slices.Equal(path, timePath) {
				l.time = c.Name
				if s.Format == feature.EnvelopeFormat {
					l.inEnvelope["occurred_at"] = i
				}
			}
		case s.Format == feature.EnvelopeFormat && s.EventTime == "" && c.Name == feature.DefaultTimeColumn:
			l.inEnvelope["occurred_at"], l.time = i, c.Name
		case s.Format == feature.EnvelopeFormat && slices.Contains(envelopeColumns, c.Name):
			if _, taken := l.inEnvelope[c.Name]; !taken {
				l.inEnvelope[c.Name] = i
			}
			l.names[c.Name] = c.Name
		default:
			return nil, &ColumnError{c.Name, fmt.Sprintf("stream %s has no such column; it has %s", s.Name, strings.Join(pushNames(s), ", "))}
		}
	}
	l.names["occurred_at"] = l.time
	l.findKey()
	l.findID(places)
	return l, l.checkWhole()
}

// pushNames are the names of what can be pushed to a stream.
func pushNames(s *feature.Stream) []string {
	names := feature.ColumnNames(s.Columns)
	for _, name := range []string{s.EventTime, s.Sequence, s.ProcessedTime, s.ID} {
		if name != "" && name != feature.PositionID && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if s.Format == feature.EnvelopeFormat {
		names = append(names, "and of the envelope "+strings.Join(envelopeColumns, ", "))
	}
	return names
}

// findKey finds the columns of the record's key: the one that the stream's partitions go by, or of a state stream that isn't promised to be
// keyed by it, its whole key.
func (l *pushLayout) findKey() {
	s := l.stream
	names := []string{s.ClusterBy}
	if !s.Keyed && s.Kind == feature.StateStream {
		names = s.Key
	}
	for _, name := range names {
		c, _ := s.Column(name)
		index := l.columnAt(c.Path)
		if index < 0 {
			l.key = nil
			return
		}
		l.key = append(l.key, keyPart{index, c})
	}
}

// columnAt is the column at a path, -1 for none.
func (l *pushLayout) columnAt(path []string) int {
	n := l.root
	for _, name := range path {
		i := slices.IndexFunc(n.children, func(c *pushNode) bool { return c.name == name })
		if i < 0 {
			return -1
		}
		n = n.children[i]
	}
	return n.column
}

// findID finds where the ids of rows go that bring none.
func (l *pushLayout) findID(places map[string][]string) {
	if s := l.stream; s.Format == feature.RowFormat && s.ID != "" && s.ID != feature.PositionID {
		if path := places[s.ID]; len(path) == 1 && l.columnAt(path) < 0 {
			l.id = path[0]
		}
	}
}

// pushedType is the event type of what is pushed: an update of a state, or a fact that has come to be.
func pushedType(s *feature.Stream) string {
	for _, t := range s.EventTypes {
		name, verb, _ := strings.Cut(t, ".")
		switch {
		case verb == "*" && s.Kind == feature.EventStream:
			return name + ".created"
		case verb == "*":
			return name + ".updated"
		case verb != "deleted" && !feature.Truncates(t):
			return t
		}
	}
	return ""
}

// withID adds an id to the object of a row that lacks it.
func (l *pushLayout) withID(row, id []byte) []byte {
	b, _ := jsontext.AppendQuote([]byte{'{'}, l.id)
	b = append(append(append(b, `:"`...), id...), '"')
	if len(row) > len("{}") {
		b = append(b, ',')
	}
	return append(b, row[1:]...)
}

// checkWhole refuses rows that lack columns of a stream whose events carry the whole state: what they lack would become null.
func (l *pushLayout) checkWhole() error {
	s := l.stream
	if s.Kind != feature.StateStream || s.Payload == feature.PatchPayload || l.deletesAlone() {
		return nil
	}
	for _, c := range s.Columns {
		if s.Tracked(c.Name) && l.columnAt(c.Path) < 0 {
			return &ColumnError{c.Name, fmt.Sprintf("missing: an event of %s carries the whole state, so it would become null; push it, with null where there is nothing, "+
				"or give the stream `payload: patch`", s.Name)}
		}
	}
	return nil
}

// deletesAlone reports whether all rows are deletes, which need no more than their key.
func (l *pushLayout) deletesAlone() bool {
	i, ok := l.inEnvelope["event_type"]
	return ok && !slices.ContainsFunc(l.columns[i].Values, func(raw []byte) bool { return !strings.HasSuffix(string(raw), `.deleted"`) })
}

func (l *pushLayout) envelopeValue(name string, row int) []byte {
	i, ok := l.inEnvelope[name]
	if !ok {
		return nil
	}
	return l.columns[i].Values[row]
}

// recordKey is the record key of a row, nil where it has none or a value that is refused.
func (l *pushLayout) recordKey(row int) []byte {
	var parts []string
	for _, k := range l.key {
		var c cell
		if err := c.parse(l.columns[k.index].Values[row], &k.column, false); err != nil || c.state != present {
			return nil
		}
		parts = append(parts, cellText(&c, k.column.Type))
	}
	if parts == nil {
		return nil
	}
	return []byte(strings.Join(parts, feature.KeySeparator))
}

// blame finds the caller's column in the detail of a refusal, and gives the rest of it.
func (l *pushLayout) blame(why feature.Reason, detail string) (column, rest string) {
	if why == feature.FutureEventTime || why == feature.NoEventTime {
		if _, after, ok := strings.Cut(detail, ": "); ok {
			detail = after
		}
		return l.time, detail
	}
	place, after, ok := strings.Cut(detail, ": ")
	if !ok {
		return "", detail
	}
	if name, known := l.names[place]; known {
		return name, after
	}
	for _, c := range l.stream.Columns {
		if c.Name == place || strings.Join(c.Path, ".") == place {
			return c.Name, after
		}
	}
	return place, after
}
