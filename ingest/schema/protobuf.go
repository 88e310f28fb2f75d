package schema

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/bufbuild/protocompile"
	"github.com/twmb/franz-go/pkg/sr"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/loamdata/loam/feature"
)

// knownFiles are what schemas may import without a reference, beside what Protobuf itself brings.
//
//go:embed proto
var knownFiles embed.FS

const (
	// schemaFile is the name of a schema among the files that it imports: none that a file could have.
	schemaFile = "<schema>"
	// valuesMax bounds the values of an event: its fields, and the items of lists, each of which takes some hundred bytes. No stream takes an event of more.
	valuesMax = 1 << 18
	// messagesMax bounds how deep messages may be nested. A google.protobuf.Value takes three for each of its own.
	messagesMax = 4 * depthMax
	// indexMax bounds how deep the message that an event is of may stand in its file.
	indexMax = 32
)

// protoFile is a Protobuf schema: a file of messages, of which each event names one.
type protoFile struct {
	file    protoreflect.FileDescriptor
	stream  *feature.Stream
	writers map[protoreflect.FullName]*protoWriter
}

// protoWriter decodes by one message of a schema.
type protoWriter struct {
	message protoreflect.MessageDescriptor
	shaped  *shape
	part    part // what the message is of an event
	patch   bool // the stream takes what is absent as unchanged, so an empty list, which can't be told from it, is absent
}

// parseProtobuf reads a Protobuf schema.
func parseProtobuf(ctx context.Context, stream *feature.Stream, s *source) (*protoFile, error) {
	files := map[string]string{}
	err := fs.WalkDir(knownFiles, "proto", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := knownFiles.ReadFile(path)
		files[strings.TrimPrefix(path, "proto/")] = string(text)
		return err
	})
	if err != nil {
		panic(err) // they are part of the binary
	}
	for _, d := range s.references {
		files[d.name] = d.text
	}
	files[schemaFile] = s.text
	compiler := protocompile.Compiler{
		Resolver:       protocompile.WithStandardImports(&protocompile.SourceResolver{Accessor: protocompile.SourceAccessorFromMap(files)}),
		MaxParallelism: 1,
	}
	compiled, err := compiler.Compile(ctx, schemaFile)
	if err != nil {
		return nil, err
	}
	return &protoFile{file: compiled[0], stream: stream, writers: map[protoreflect.FullName]*protoWriter{}}, nil
}

// writer gives the message that an event's index names, and the event behind the index.
func (f *protoFile) writer(event []byte) (writer, []byte, error) {
	index, event, err := new(sr.ConfluentHeader).DecodeIndex(event, indexMax)
	if err != nil {
		return nil, nil, errors.New("the index of the message can't be read")
	}
	var message protoreflect.MessageDescriptor
	messages := f.file.Messages()
	for _, i := range index {
		if i < 0 || i >= messages.Len() {
			return nil, nil, fmt.Errorf("message %v, which the schema doesn't have", index)
		}
		message = messages.Get(i)
		messages = message.Messages()
	}
	return f.of(message), event, nil
}

// named gives the message of this name, with or without the package, or the first of the file.
func (f *protoFile) named(name string) (writer, error) {
	messages := f.file.Messages()
	if messages.Len() == 0 {
		return nil, unreadable{errors.New("it has no message"), "declare the message that events are"}
	}
	if name == "" {
		return f.of(messages.Get(0)), nil
	}
	name = strings.TrimPrefix(strings.TrimPrefix(name, string(f.file.Package())), ".")
	var found protoreflect.MessageDescriptor
	for part := range strings.SplitSeq(name, ".") {
		if found = messages.ByName(protoreflect.Name(part)); found == nil {
			return nil, unreadable{fmt.Errorf("it has no message %s", name), "name one of the file's, such as " + string(f.file.Messages().Get(0).Name())}
		}
		messages = found.Messages()
	}
	return f.of(found), nil
}

func (f *protoFile) of(message protoreflect.MessageDescriptor) *protoWriter {
	w := f.writers[message.FullName()]
	if w == nil {
		w = &protoWriter{message: message, shaped: protoShapes{}.message(message), patch: f.stream.Payload == feature.PatchPayload}
		if f.stream.Format == feature.EnvelopeFormat {
			w.part = rootPart
		}
		f.writers[message.FullName()] = w
	}
	return w
}

// protoShapes are the shapes of messages.
type protoShapes map[protoreflect.FullName]*shape

// meanings are the messages that are written as what they mean, with the kinds of their fields by number.
var meanings = map[protoreflect.FullName][]protoreflect.Kind{
	"google.protobuf.Timestamp": {protoreflect.Int64Kind, protoreflect.Int32Kind},
	"google.protobuf.Duration":  {protoreflect.Int64Kind, protoreflect.Int32Kind},
	"google.protobuf.Struct":    {protoreflect.MessageKind},
	"google.protobuf.ListValue": {protoreflect.MessageKind},
	"google.protobuf.Value": {protoreflect.EnumKind, protoreflect.DoubleKind, protoreflect.StringKind, protoreflect.BoolKind,
		protoreflect.MessageKind, protoreflect.MessageKind},
	"google.type.Date":            {protoreflect.Int32Kind, protoreflect.Int32Kind, protoreflect.Int32Kind},
	"google.type.Decimal":         {protoreflect.StringKind},
	"confluent.type.Decimal":      {protoreflect.BytesKind, protoreflect.Uint32Kind, protoreflect.Int32Kind},
	"google.protobuf.DoubleValue": {protoreflect.DoubleKind},
	"google.protobuf.FloatValue":  {protoreflect.FloatKind},
	"google.protobuf.Int64Value":  {protoreflect.Int64Kind},
	"google.protobuf.UInt64Value": {protoreflect.Uint64Kind},
	"google.protobuf.Int32Value":  {protoreflect.Int32Kind},
	"google.protobuf.UInt32Value": {protoreflect.Uint32Kind},
	"google.protobuf.BoolValue":   {protoreflect.BoolKind},
	"google.protobuf.StringValue": {protoreflect.StringKind},
	"google.protobuf.BytesValue":  {protoreflect.BytesKind},
}

// meaning is the name of a message that is written as what it means, "" for any other: a schema may bring a message of its own
// under such a name.
func meaning(m protoreflect.MessageDescriptor) protoreflect.FullName {
	name, fields := m.FullName(), m.Fields()
	kinds := meanings[name]
	if len(kinds) == 0 || fields.Len() != len(kinds) {
		return ""
	}
	for i, k := range kinds {
		f := fields.ByNumber(protoreflect.FieldNumber(i + 1))
		if f == nil || f.Kind() != k || f.IsMap() != (name == "google.protobuf.Struct") || (f.IsList() && name != "google.protobuf.ListValue") {
			return ""
		}
	}
	if name == "google.protobuf.Value" && m.Oneofs().Len() != 1 {
		return ""
	}
	return name
}

func (p protoShapes) message(m protoreflect.MessageDescriptor) *shape {
	name, fields := m.FullName(), m.Fields()
	if s := p[name]; s != nil {
		return s
	}
	s := &shape{name: string(name)}
	p[name] = s // before what is inside of it, which may be itself
	switch meaning(m) {
	case "google.protobuf.Timestamp":
		s.kind = moment
	case "google.protobuf.Duration":
		s.kind = word
	case "google.protobuf.Struct":
		s.kind, s.elem = mapping, &shape{kind: anything, name: "value"}
	case "google.protobuf.Value":
		s.kind = anything
	case "google.protobuf.ListValue":
		s.kind, s.elem = list, &shape{kind: anything, name: "value"}
	case "google.type.Date":
		s.kind = date
	case "google.type.Decimal", "confluent.type.Decimal":
		s.kind = decimal
	case "":
		s.kind, s.fields = record, map[string]*shape{}
		for i := range fields.Len() {
			s.fields[string(fields.Get(i).Name())] = p.field(fields.Get(i))
		}
	default: // a wrapper
		*s = *p.value(fields.Get(0))
		s.name = string(name)
	}
	return s
}

func (p protoShapes) field(f protoreflect.FieldDescriptor) *shape {
	switch {
	case f.IsMap():
		return &shape{kind: mapping, name: "map", elem: p.value(f.MapValue()), implicit: true}
	case f.IsList():
		inner := p.value(f)
		return &shape{kind: list, name: "repeated " + inner.name, elem: inner, implicit: true}
	case !f.HasPresence():
		s := *p.value(f) // a scalar, which no other holds
		s.implicit = true
		return &s
	default:
		return p.value(f)
	}
}

// value is the shape of one value of a field.
func (p protoShapes) value(f protoreflect.FieldDescriptor) *shape {
	s := &shape{name: f.Kind().String()}
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return p.message(f.Message())
	case protoreflect.BoolKind:
		s.kind = flag
	case protoreflect.StringKind:
		s.kind = text
	case protoreflect.BytesKind:
		s.kind = binaryText
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		s.kind = float
	case protoreflect.EnumKind:
		s.kind = word
		if f.Enum().FullName() == "google.protobuf.NullValue" {
			s.kind = nothing
		}
	default:
		s.kind = whole
	}
	return s
}

func (w *protoWriter) shape() *shape { return w.shaped }

func (w *protoWriter) json(dst, event []byte) ([]byte, error) {
	if _, err := countValues(w.message, event, 0, 0); err != nil {
		return nil, err
	}
	m := dynamicpb.NewMessage(w.message)
	if err := unmarshal(event, m); err != nil {
		return nil, err
	}
	r := &protoRenderer{out: dst, patch: w.patch}
	if err := r.object(m, w.part); err != nil {
		return nil, err
	}
	if len(r.out) > jsonBytesMax {
		return nil, errTooLarge
	}
	return r.out, nil
}

// unmarshal decodes a message. The library panics at an entry of a map whose key comes again, of another type on the wire.
func unmarshal(event []byte, m proto.Message) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("bytes that can't be read")
		}
	}()
	if err := (proto.UnmarshalOptions{RecursionLimit: messagesMax}).Unmarshal(event, m); err != nil {
		return unmarshalError(err)
	}
	return nil
}

// unmarshalError is the library's error, which quotes no value but of text that isn't UTF-8.
func unmarshalError(err error) error {
	if strings.Contains(err.Error(), "UTF-8") {
		return errUTF8
	}
	return errors.New(strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "proto:")), " "))
}

// countValues adds the values of a message to so many, before memory is taken for any.
func countValues(m protoreflect.MessageDescriptor, b []byte, so, depth int) (int, error) {
	if depth > messagesMax {
		return so, errDeep
	}
	for len(b) > 0 {
		number, wire, n := protowire.ConsumeTag(b)
		if n < 0 {
			return so, errShort
		}
		size := protowire.ConsumeFieldValue(number, wire, b[n:])
		if size < 0 {
			return so, errShort
		}
		value := b[n : n+size]
		b = b[n+size:]
		f := m.Fields().ByNumber(number)
		so++
		switch {
		case f == nil:
		case f.Message() != nil && (wire == protowire.BytesType || wire == protowire.StartGroupType):
			if wire == protowire.BytesType {
				value, _ = protowire.ConsumeBytes(value)
			} else {
				value, _ = protowire.ConsumeGroup(number, value)
			}
			var err error
			if so, err = countValues(f.Message(), value, so, depth+1); err != nil {
				return so, err
			}
		case f.IsList() && wire == protowire.BytesType && f.Kind() != protoreflect.StringKind && f.Kind() != protoreflect.BytesKind:
			so += packed(f.Kind(), len(value))
		}
		if so > valuesMax {
			return so, errTooLarge
		}
	}
	return so, nil
}

// packed is how many values stand in so many bytes at most.
func packed(k protoreflect.Kind, size int) int {
	switch k {
	case protoreflect.Fixed64Kind, protoreflect.Sfixed64Kind, protoreflect.DoubleKind:
		return size / 8
	case protoreflect.Fixed32Kind, protoreflect.Sfixed32Kind, protoreflect.FloatKind:
		return size / 4
	default:
		return size
	}
}

// protoRenderer writes messages as JSON.
type protoRenderer struct {
	out   []byte
	patch bool
}

// object writes a message as an object of the fields that are there: those with presence that are set, and all others. In an
// envelope an empty text without presence is left out, too: an envelope's texts aren't empty.
func (r *protoRenderer) object(m protoreflect.Message, part part) error {
	r.out = append(r.out, '{')
	first := true
	name := func(name string) {
		if !first {
			r.out = append(r.out, ',')
		}
		first = false
		r.out = append(append(append(r.out, '"'), name...), '"', ':')
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		absent := !m.Has(f)
		switch {
		case absent && f.HasPresence():
			continue
		case absent && r.patch && (f.IsList() || f.IsMap()):
			continue
		case absent && part == envelopePart && f.Kind() == protoreflect.StringKind && !f.IsList():
			continue
		}
		name(string(f.Name()))
		var err error
		if part == rootPart && f.Name() == "envelope" && f.Message() != nil && !f.IsList() && !f.IsMap() {
			err = r.object(m.Get(f).Message(), envelopePart)
		} else {
			err = r.field(f, m.Get(f))
		}
		if err != nil {
			return within(string(f.Name()), err)
		}
	}
	if unknown := m.GetUnknown(); len(unknown) > 0 {
		name(unknownFields)
		r.out = appendBase64(r.out, unknown)
	}
	r.out = append(r.out, '}')
	return nil
}

// part says where in an event a message stands.
type part uint8

const (
	innerPart part = iota
	rootPart       // of a stream with envelopes
	envelopePart
)

// unknownFields is the member that holds a message's fields that its schema doesn't have. No field can have the name.
const unknownFields = "unknown fields"

func (r *protoRenderer) field(f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch {
	case f.IsMap():
		return r.entries(f, v.Map())
	case f.IsList():
		r.out = append(r.out, '[')
		for i := range v.List().Len() {
			if i > 0 {
				r.out = append(r.out, ',')
			}
			if err := r.value(f, v.List().Get(i)); err != nil {
				return err
			}
		}
		r.out = append(r.out, ']')
		return nil
	default:
		return r.value(f, v)
	}
}

// entries writes a map, whose keys become text, in their order.
func (r *protoRenderer) entries(f protoreflect.FieldDescriptor, m protoreflect.Map) error {
	var keys []protoreflect.MapKey
	m.Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		keys = append(keys, k)
		return true
	})
	sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
	r.out = append(r.out, '{')
	for i, k := range keys {
		if i > 0 {
			r.out = append(r.out, ',')
		}
		var err error
		if r.out, err = appendText(r.out, []byte(k.String())); err != nil {
			return err
		}
		r.out = append(r.out, ':')
		if err := r.value(f.MapValue(), m.Get(k)); err != nil {
			return err
		}
	}
	r.out = append(r.out, '}')
	return nil
}

func (r *protoRenderer) value(f protoreflect.FieldDescriptor, v protoreflect.Value) (err error) {
	if len(r.out) > jsonBytesMax {
		return errTooLarge
	}
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return r.message(v.Message())
	case protoreflect.BoolKind:
		r.out = strconv.AppendBool(r.out, v.Bool())
	case protoreflect.StringKind:
		r.out, err = appendText(r.out, []byte(v.String()))
	case protoreflect.BytesKind:
		r.out = appendBase64(r.out, v.Bytes())
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		r.out = appendFloat(r.out, v.Float())
	case protoreflect.EnumKind:
		switch symbol := f.Enum().Values().ByNumber(v.Enum()); {
		case f.Enum().FullName() == "google.protobuf.NullValue":
			r.out = append(r.out, "null"...)
		case symbol != nil:
			r.out = append(r.out, quote(string(symbol.Name()))...)
		default: // a symbol that the schema doesn't have
			r.out = strconv.AppendInt(r.out, int64(v.Enum()), 10)
		}
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		r.out = strconv.AppendUint(r.out, v.Uint(), 10)
	default:
		r.out = strconv.AppendInt(r.out, v.Int(), 10)
	}
	return err
}

// message writes a message: one of those whose meaning is known as what it means, any other as an object.
func (r *protoRenderer) message(m protoreflect.Message) error {
	fields := m.Descriptor().Fields()
	get := func(number protoreflect.FieldNumber) protoreflect.Value { return m.Get(fields.ByNumber(number)) }
	switch meaning(m.Descriptor()) {
	case "google.protobuf.Timestamp":
		seconds, nanos := get(1).Int(), get(2).Int()
		if seconds < minSeconds || seconds > maxSeconds || nanos < 0 || nanos > 999_999_999 {
			return badValue{errors.New("a time outside of the years 1 to 9999")}
		}
		r.out = time.Unix(seconds, nanos).UTC().AppendFormat(r.out, `"`+time.RFC3339Nano+`"`)
	case "google.protobuf.Duration":
		return r.duration(get(1).Int(), get(2).Int())
	case "google.protobuf.Struct", "google.protobuf.ListValue":
		return r.field(fields.ByNumber(1), get(1))
	case "google.protobuf.Value":
		set := m.WhichOneof(m.Descriptor().Oneofs().Get(0))
		if set == nil {
			r.out = append(r.out, "null"...)
			return nil
		}
		return r.value(set, m.Get(set))
	case "google.type.Date":
		year, month, day := get(1).Int(), get(2).Int(), get(3).Int()
		t := time.Date(int(year), time.Month(month), int(day), 0, 0, 0, 0, time.UTC)
		if year < 1 || year > 9999 || t.Month() != time.Month(month) || t.Day() != int(day) {
			return badValue{errors.New("no day of the calendar")}
		}
		r.out = t.AppendFormat(r.out, `"`+time.DateOnly+`"`)
	case "google.type.Decimal":
		return r.decimalText(get(1).String())
	case "confluent.type.Decimal":
		value, scale := get(1).Bytes(), get(3).Int()
		if len(value) > decimalBytesMax || scale > decimalScaleMax || scale < -decimalScaleMax {
			return badValue{errors.New("a decimal of more digits than any column has")}
		}
		r.out = appendDecimal(r.out, bigEndian(value), int(scale))
	case "":
		return r.object(m, innerPart)
	default: // a wrapper
		return r.value(fields.Get(0), get(1))
	}
	return nil
}

// Bounds of google.protobuf.Timestamp, and of the scale of a decimal.
const (
	minSeconds      = -62135596800
	maxSeconds      = 253402300799
	decimalScaleMax = 1000
)

func (r *protoRenderer) duration(seconds, nanos int64) error {
	if nanos <= -1_000_000_000 || nanos >= 1_000_000_000 || (seconds < 0 && nanos > 0) || (seconds > 0 && nanos < 0) {
		return badValue{errors.New("no duration")}
	}
	sign := ""
	if seconds < 0 || nanos < 0 {
		sign, nanos = "-", max(nanos, -nanos)
	}
	text := fmt.Sprintf("%s%s.%09d", sign, strings.TrimPrefix(strconv.FormatInt(seconds, 10), "-"), nanos)
	r.out = append(r.out, quote(strings.TrimRight(strings.TrimRight(text, "0"), ".")+"s")...)
	return nil
}

// decimalWords are the texts of google.type.Decimal.
var decimalWords = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$`)

// decimalText writes the text of a decimal as JSON writes numbers; none is 0.
func (r *protoRenderer) decimalText(s string) error {
	if s == "" {
		s = "0"
	}
	if len(s) > decimalScaleMax || !decimalWords.MatchString(s) {
		return badValue{errors.New("no decimal")}
	}
	if s[0] == '-' {
		r.out = append(r.out, '-')
	}
	mantissa := strings.TrimLeft(s, "+-")
	exponent := ""
	if e := strings.IndexAny(mantissa, "eE"); e >= 0 {
		mantissa, exponent = mantissa[:e], mantissa[e:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	if whole = strings.TrimLeft(whole, "0"); whole == "" {
		whole = "0"
	}
	if fraction != "" {
		fraction = "." + fraction
	}
	r.out = append(append(append(r.out, whole...), fraction...), exponent...)
	return nil
}
