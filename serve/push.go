package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/sql"
)

// Producer takes events to a topic. It gives how many are acknowledged; with an error, others may have been produced, too.
type Producer interface {
	Produce(ctx context.Context, topic string, events []ingest.Event) (acknowledged int, err error)
}

// Codes of errors of pushes. They are frozen.
const (
	codeNotOffered  = "not_offered"
	codeSource      = "missing_push_source"
	codeNoSource    = "unknown_push_source"
	codeNotPushable = "not_pushable"
	codeOneLine     = "one_line"
	codeRows        = "rows_refused"
	codeManyRows    = "too_many_rows"
	codeIdempotency = "not_idempotent"
	codeArrow       = "malformed_arrow"
	codeBroker      = "broker_away"
	codeEventLarge  = "event_too_large"
)

// refusedRowsMax bounds the rows that an answer tells of, and idempotencyBytesMax the header that names a push.
const (
	refusedRowsMax      = 100
	idempotencyBytesMax = 256
)

const arrowType = "application/vnd.apache.arrow.stream"

// pushSuffix is what Feast's users put behind the name of a view to name its push source.
const pushSuffix = "_push"

// pushRequest is the body of a push, in Feast's shape.
type pushRequest struct {
	source  string
	to      string
	columns []ingest.PushColumn
}

// push takes rows of features that were computed elsewhere: they become events of their stream's topic, whence the worker writes lake and
// online store.
func (s *Server) push(w http.ResponseWriter, r *http.Request, c *caller) error {
	if s.Producer == nil {
		return notOffered("pushes")
	}
	key := r.Header.Get("Idempotency-Key")
	if len(key) > idempotencyBytesMax {
		return wrong(codeIdempotency, "", "give a shorter one, such as a UUID", "the header Idempotency-Key has more than %d bytes", idempotencyBytesMax)
	}
	media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")) // body tells what is wrong with it
	asked, stream, err := &pushRequest{}, (*feature.Stream)(nil), error(nil)
	if media == arrowType {
		asked, stream, err = s.pushedArrow(w, r, c)
	} else {
		asked, stream, err = s.pushedJSON(w, r, c)
	}
	if err != nil {
		return err
	}
	rows := 0
	if len(asked.columns) > 0 {
		rows = len(asked.columns[0].Values)
	}
	if rows > s.Limits.PushRows {
		return &Error{Status: http.StatusRequestEntityTooLarge, Code: codeManyRows, Field: "df", Offset: -1,
			Message: fmt.Sprintf("%d rows are pushed, and %d are taken at once", rows, s.Limits.PushRows), Remedy: "push fewer at once"}
	}
	p := ingest.Push{Stream: stream, Source: "loam:push", IdempotencyKey: key}
	if c != nil {
		p.Source += ":" + c.name
	}
	events, err := p.Events(r.Context(), asked.columns, time.Now())
	if err != nil {
		return pushError(err)
	}
	// Once events are on their way, that the caller leaves ends nothing: the time that they take is bounded.
	n, err := s.Producer.Produce(context.WithoutCancel(r.Context()), stream.Topic, events)
	if err != nil {
		return produceError(err, n, len(events), key != "")
	}
	writeJSON(w, http.StatusOK, fmt.Appendf(nil, "{\"accepted\":%d,\"stream\":%q}\n", n, stream.Name))
	return nil
}

// pushedJSON reads a push as JSON.
func (s *Server) pushedJSON(w http.ResponseWriter, r *http.Request, c *caller) (*pushRequest, *feature.Stream, error) {
	body, err := s.body(w, r)
	if err != nil {
		return nil, nil, err
	}
	asked, err := readPush(jsontext.NewDecoder(bytes.NewReader(bytes.Clone(body.Bytes()))))
	buffers.Put(body)
	if err != nil {
		return nil, nil, err
	}
	stream, err := s.pushedStream(asked, c)
	return asked, stream, err
}

// pushedArrow reads a push as an Arrow stream, whose parameters are the URL's.
func (s *Server) pushedArrow(w http.ResponseWriter, r *http.Request, c *caller) (*pushRequest, *feature.Stream, error) {
	asked := &pushRequest{}
	for name, values := range r.URL.Query() {
		switch name {
		case "push_source_name":
			asked.source = values[0]
		case "to":
			asked.to = values[0]
		default:
			return nil, nil, wrong(codeUnknownField, name, "remove it; known are push_source_name and to", "a push has no parameter %q", name)
		}
	}
	stream, err := s.pushedStream(asked, c)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) error { return arrowError(err, "rows", s.Limits.BodyBytes) }
	body := &limited{r: http.MaxBytesReader(plainWriter(w), r.Body, s.Limits.BodyBytes)}
	in, err := sql.OpenStream(body, s.Limits.BodyBytes)
	if err != nil {
		return nil, nil, fail(errors.Join(err, body.err))
	}
	defer in.Close()
	rows := int64(0)
	for batch, err := range in.Batches() {
		if err != nil {
			return nil, nil, fail(errors.Join(err, body.err))
		}
		if rows += batch.NumRows(); rows <= int64(s.Limits.PushRows) {
			asked.columns, err = ingest.ArrowColumns(stream, asked.columns, batch)
		}
		batch.Release()
		if err != nil {
			return nil, nil, pushError(err)
		}
	}
	if rows > int64(s.Limits.PushRows) {
		return nil, nil, &Error{Status: http.StatusRequestEntityTooLarge, Code: codeManyRows, Offset: -1,
			Message: fmt.Sprintf("%d rows are pushed, and %d are taken at once", rows, s.Limits.PushRows), Remedy: "push fewer at once"}
	}
	return asked, stream, nil
}

// limited keeps the error of a reader, which others pass on by its words alone.
type limited struct {
	r   io.Reader
	err error
}

func (l *limited) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}

// plainWriter is the writer that the HTTP server gave: only that ends the connection where a body is too large.
func plainWriter(w http.ResponseWriter) http.ResponseWriter {
	if n, ok := w.(*noting); ok {
		return n.ResponseWriter
	}
	return w
}

// arrowError is an error of a body that is to be an Arrow stream.
func arrowError(err error, what string, bytesMax int64) error {
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return err
	case errors.Is(err, sql.ErrStreamTooLong):
		return &Error{Status: http.StatusRequestEntityTooLarge, Code: codeTooLarge, Offset: -1,
			Message: fmt.Sprintf("the %s take more than %d bytes, or rows, or %d times as much memory", what, bytesMax, sql.StreamSpread), Remedy: "send fewer at once"}
	}
	return wrong(codeArrow, "", "send an Arrow IPC stream, as pyarrow.ipc.new_stream writes it", "the body can't be read: %s", err)
}

// pushedStream finds the stream that is pushed to, and holds the request to what can be pushed.
func (s *Server) pushedStream(asked *pushRequest, c *caller) (*feature.Stream, error) {
	if asked.source == "" {
		return nil, wrong(codeSource, "push_source_name", "name a stream, or a feature view whose stream it is", "nothing says where the rows are pushed to")
	}
	stream, err := s.pushSource(asked.source, c)
	if err != nil {
		return nil, err
	}
	if err := c.mayPush(stream.Name); err != nil {
		return nil, err
	}
	switch asked.to {
	case "", "online_and_offline":
	case "online", "offline":
		return nil, wrong(codeOneLine, "to", `push to "online_and_offline"`, "rows can't be pushed %s alone: they become events of one topic, from which lake and online store "+
			"are both written, so that they agree", asked.to)
	default:
		return nil, wrong(codeWrongType, "to", `push to "online_and_offline"`, "there is nothing called %q to push to", asked.to)
	}
	if err := ingest.Pushable(stream); err != nil {
		return nil, wrong(codeNotPushable, "push_source_name", "push to another stream", "%s", err)
	}
	return stream, nil
}

// pushSource is the stream of a name, or of the view of that name; Feast's suffix may stand behind either.
func (s *Server) pushSource(name string, c *caller) (*feature.Stream, error) {
	p := s.Project
	short, _ := strings.CutSuffix(name, pushSuffix)
	for _, n := range []string{name, short} {
		if stream := p.Stream(n); stream != nil {
			return stream, nil
		}
		if v := p.View(n); v != nil {
			if v.OnDemand != nil {
				return nil, wrong(codeNotPushable, "push_source_name", "push to the streams of the views that it reads", "feature view %s is computed when it is read", n)
			}
			return p.Stream(v.Stream), nil
		}
	}
	known := []string{}
	for _, stream := range p.Streams {
		if c.mayPush(stream.Name) == nil {
			known = append(known, stream.Name)
		}
	}
	for _, v := range c.sees(p).Views {
		if v.OnDemand == nil && c.mayPush(v.Stream) == nil {
			known = append(known, v.Name)
		}
	}
	slices.Sort(known)
	return nil, unknown(codeNoSource, "push_source_name", "stream or feature view", name, slices.Compact(known))
}

// pushError is an error of the rows, as [ingest.Push.Events] gives it.
func pushError(err error) error {
	var column *ingest.ColumnError
	var rows *ingest.RowsError
	switch {
	case errors.As(err, &column):
		e := wrong(codeColumn, "df."+column.Column, "mend the columns; no row was taken", "%s", column)
		e.Status = http.StatusUnprocessableEntity
		return e
	case errors.As(err, &rows):
		e := wrong(codeRows, "df", "mend the rows that are named; none was taken", "%s", rows)
		e.Status, e.Rows = http.StatusUnprocessableEntity, rows.Rows[:min(len(rows.Rows), refusedRowsMax)]
		if first := rows.Rows[0]; first.Column != "" {
			e.Field = fmt.Sprintf("df.%s[%d]", first.Column, first.Row)
		}
		return e
	case errors.Is(err, ingest.ErrNotIdempotent):
		e := wrong(codeIdempotency, "", "give the stream an id, or leave the header out", "%s", err)
		e.Status = http.StatusUnprocessableEntity
		return e
	}
	return err
}

// produceError tells what may have happened to events of which not all are acknowledged.
func produceError(err error, acknowledged, of int, named bool) error {
	happened := fmt.Sprintf("%d of %d rows are acknowledged, and of the others nobody knows whether they will be taken", acknowledged, of)
	remedy := "push all of them again under the same Idempotency-Key: each counts once"
	if !named {
		remedy = "push all of them again, under an Idempotency-Key from now on: what was taken may count twice where a row has no id of its own"
	}
	if errors.Is(err, ingest.ErrTooLarge) {
		return &Error{Status: http.StatusRequestEntityTooLarge, Code: codeEventLarge, Offset: -1, Message: fmt.Sprintf("%s; %s", err, happened), Remedy: remedy}
	}
	return fmt.Errorf("%w: %w", &Error{Status: http.StatusServiceUnavailable, Code: codeBroker, Offset: -1, RetryAfter: 1,
		Message: "the topic did not take the rows in time; " + happened, Remedy: remedy}, err)
}

func notOffered(what string) error {
	return &Error{Status: http.StatusNotFound, Code: codeNotOffered, Offset: -1, Message: "this server takes no " + what, Remedy: "ask a `loam serve` of the project"}
}

// pushFields are the members that a push may have. The last two are Feast's, and change nothing here.
var pushFields = []string{"push_source_name", "df", "to", "allow_registry_cache", "transform_on_write"}

// readPush reads the body of a push.
func readPush(d *jsontext.Decoder) (*pushRequest, error) {
	p := &pushRequest{}
	err := readBody(d, `{"push_source_name": "contact", "df": {"contact_id": ["c1"]}}`, func(name string) (err error) {
		switch name {
		case "push_source_name":
			err = readNullable(d, name, &p.source)
		case "to":
			err = readNullable(d, name, &p.to)
		case "df":
			p.columns, err = readFrame(d)
		case "allow_registry_cache", "transform_on_write":
			_, err = readBool(d, name)
		default:
			err = wrong(codeUnknownField, name, "remove it; known are "+strings.Join(pushFields, ", "), "a push has no member %q", name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// readFrame reads columns of rows, each value as it is written.
func readFrame(d *jsontext.Decoder) ([]ingest.PushColumn, error) {
	var columns []ingest.PushColumn
	err := readObject(d, "df", "an object of columns", columnsExample, func(name string) error {
		c := ingest.PushColumn{Name: name}
		err := readList(d, "df."+name, "a value for each row", func() error {
			v, err := d.ReadValue()
			if err != nil {
				return malformed(err)
			}
			v = v.Clone()
			if err := v.Compact(); err != nil { // an event is one line
				return malformed(err)
			}
			c.Values = append(c.Values, v)
			return nil
		})
		if err != nil {
			return err
		}
		if columns = append(columns, c); len(c.Values) != len(columns[0].Values) {
			return wrong(codeRagged, "df."+name, "give each column a value for each row", "column %s has %d values, and %s has %d",
				name, len(c.Values), columns[0].Name, len(columns[0].Values))
		}
		return nil
	})
	return columns, err
}
