package schema

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

const (
	// schemasMax bounds the schemas that a decoder keeps. One that has not been used for longest goes, and is looked up and
	// judged again when it comes back.
	schemasMax = 256
	// unknownFor is how long the registry isn't asked again for a schema that it doesn't have.
	unknownFor = 10 * time.Second
	// jsonBytesMax bounds the JSON of one event.
	jsonBytesMax = 32 << 20
)

// Refusal is why a value can't be decoded, now or ever.
type Refusal struct {
	Reason feature.Reason
	Detail string
}

// language is a schema that was read. One of Protobuf has a writer for each of its messages, any other is one itself.
type language interface {
	// writer gives by what an event is written, and the event. event is what follows the schema's id.
	writer(event []byte) (writer, []byte, error)
	// named gives the writer of this name, which only one of Protobuf has, or the first for "".
	named(name string) (writer, error)
}

// writer is what values are written by.
type writer interface {
	// shape is what the schema says of its values.
	shape() *shape
	// json appends what an event is as JSON to dst, at most jsonBytesMax.
	json(dst, event []byte) ([]byte, error)
}

// Errors of values. They name fields, never values.
var (
	errShort    = errors.New("the bytes end within the event")
	errTooLarge = fmt.Errorf("as JSON it is longer than %d bytes", jsonBytesMax)
	errDeep     = fmt.Errorf("it is nested deeper than %d", depthMax)
	errUTF8     = errors.New("text that isn't UTF-8")
)

// depthMax bounds how deep the records of a value may be nested.
const depthMax = 100

// Decoder decodes the values of one stream's topic. It is not safe for concurrent use.
type Decoder struct {
	stream   *feature.Stream
	registry *Registry
	now      func() time.Time
	known    *lru.LRU[int, *known]
}

// known is what is known of a schema id: by what it is decoded, or why it can't be.
type known struct {
	language     language                 // nil where the registry doesn't have the schema, or it can't be read
	judged       map[writer]*Incompatible // nil where it fits
	incompatible *Incompatible            // why it can't be read
	unknownUntil time.Time
}

// NewDecoder makes a decoder of a framed stream.
func NewDecoder(s *feature.Stream, r *Registry, now func() time.Time) *Decoder {
	cache, err := lru.NewLRU[int, *known](schemasMax, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &Decoder{stream: s, registry: r, now: now, known: cache}
}

// Decode gives the JSON event that a value of the topic is, or why it is refused. An error means that the value can't be
// judged: [ErrAway] until the registry answers again, [Incompatible] until the schema or the stream is another.
func (d *Decoder) Decode(ctx context.Context, value []byte) ([]byte, *Refusal, error) {
	id, event, err := new(sr.ConfluentHeader).DecodeID(value)
	if err != nil {
		return nil, &Refusal{feature.Undecodable, "not framed: want a zero byte, and the schema's id in 4 bytes"}, nil
	}
	k, err := d.lookUp(ctx, id)
	switch {
	case err != nil:
		return nil, nil, err
	case k.incompatible != nil:
		return nil, nil, k.incompatible
	case k.language == nil:
		return nil, &Refusal{feature.UnknownSchemaID, fmt.Sprintf("schema id %d: the registry doesn't have it", id)}, nil
	}
	w, event, err := k.language.writer(event)
	if err != nil {
		return nil, &Refusal{feature.Undecodable, fmt.Sprintf("not of schema id %d: %v", id, err)}, nil
	}
	incompatible, judged := k.judged[w]
	if !judged {
		if problems := fit(d.stream, w.shape()); len(problems) > 0 {
			incompatible = &Incompatible{Stream: d.stream.Name, ID: id, Problems: problems}
		}
		k.judged[w] = incompatible
	}
	if incompatible != nil {
		return nil, nil, incompatible
	}
	out, err := w.json(make([]byte, 0, 2*len(event)+64), event)
	switch {
	case errors.Is(err, errTooLarge):
		return nil, &Refusal{feature.TooLarge, err.Error()}, nil
	case errors.As(err, new(badValue)):
		return nil, &Refusal{feature.BadValue, err.Error()}, nil
	case err != nil:
		return nil, &Refusal{feature.Undecodable, fmt.Sprintf("not of schema id %d: %v", id, err)}, nil
	}
	return out, nil, nil
}

// badValue is an error of a value that was decoded, and that its schema doesn't allow.
type badValue struct{ error }

// lookUp gives what is known of a schema id, asking the registry where nothing is.
func (d *Decoder) lookUp(ctx context.Context, id int) (*known, error) {
	if k, ok := d.known.Get(id); ok && (k.unknownUntil.IsZero() || d.now().Before(k.unknownUntil)) {
		return k, nil
	}
	k := &known{}
	if id > math.MaxInt32 {
		k.unknownUntil = d.now().Add(unknownFor) // no registry gives such ids
		d.known.Add(id, k)
		return k, nil
	}
	s, err := d.registry.schema(ctx, id)
	if err == nil {
		k.judged = map[writer]*Incompatible{}
		k.language, err = parse(ctx, d.stream, s)
	}
	var bad unreadable
	switch {
	case errors.As(err, &bad):
		k.incompatible = &Incompatible{Stream: d.stream.Name, ID: id, Problems: []Problem{bad.problem()}}
	case errors.Is(err, errUnknown):
		k.unknownUntil = d.now().Add(unknownFor)
	case err != nil:
		return nil, err
	}
	d.known.Add(id, k)
	return k, nil
}

// unreadable is a schema that can't be decoded by, whatever is asked again.
type unreadable struct {
	error
	remedy string // "" for the one that is good for most
}

func (u unreadable) Unwrap() error { return u.error }

func (u unreadable) problem() Problem {
	return Problem{"the schema", "can't be read: " + u.Error(), cmp.Or(u.remedy, "mend it, and register what it refers to")}
}

// parse reads a schema of the stream's encoding, which must be of it.
func parse(ctx context.Context, stream *feature.Stream, s *source) (l language, err error) {
	want := schemaType(stream.Encoding)
	if s.kind != want {
		return nil, unreadable{fmt.Errorf("it is of type %s, and the stream's encoding is %s", s.kind, stream.Encoding),
			"mend the stream's encoding, or have the topic written by one kind of schema"}
	}
	switch want {
	case sr.TypeAvro:
		l, err = parseAvro(s)
	case sr.TypeProtobuf:
		l, err = parseProtobuf(ctx, stream, s)
	default:
		l, err = parseJSONSchema(s)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("read a schema: %w", ctx.Err())
	case err != nil:
		return nil, unreadable{err, ""}
	}
	return l, nil
}

// schemaType is how the registry names the schemas of an encoding.
func schemaType(e feature.Encoding) sr.SchemaType {
	switch e {
	case feature.ProtobufEncoding:
		return sr.TypeProtobuf
	case feature.JSONSchemaEncoding:
		return sr.TypeJSON
	default:
		return sr.TypeAvro
	}
}
