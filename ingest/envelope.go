package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// envelope is what a canonical event says of itself. Texts point into the record.
type envelope struct {
	seen       bool
	eventID    []byte
	eventType  []byte
	source     []byte
	occurredAt int64
	attempt    bool
	version    []byte
	actor      []byte
	reason     []byte
	receivedAt int64
	received   bool
	hasTime    bool
	bad        string // the first field that is malformed, and why
}

// read reads the envelope that comes next in d. It returns an error only for bad syntax; fields that don't belong to it
// become extra.
func (e *envelope) read(d *jsontext.Decoder, all []byte, f *fields) error {
	*e = envelope{seen: true}
	if d.PeekKind() != '{' {
		e.refuse("envelope", errors.New("want an object"))
		if err := d.SkipValue(); err != nil {
			return syntax(err)
		}
		return nil
	}
	if _, err := d.ReadToken(); err != nil {
		return syntax(err)
	}
	for d.PeekKind() != '}' {
		quoted, err := d.ReadValue()
		if err != nil {
			return syntax(err)
		}
		name, err := unquote(quoted)
		if err != nil {
			return syntax(err)
		}
		field := string(name)
		raw, err := value(d, all)
		if err != nil {
			return err
		}
		if err := e.set(field, raw, f); err != nil {
			e.refuse(field, err)
		}
	}
	if _, err := d.ReadToken(); err != nil {
		return syntax(err)
	}
	return nil
}

func (e *envelope) refuse(field string, why error) {
	if e.bad == "" {
		e.bad = field + ": " + why.Error()
	}
}

func (e *envelope) set(field string, raw []byte, f *fields) error {
	text := func(dst *[]byte) error {
		if raw[0] != '"' {
			return errNotText
		}
		s, err := unquote(raw)
		if err == nil && len(s) == 0 {
			return errors.New("is empty")
		}
		*dst = s
		return err
	}
	optional := func(dst *[]byte) error {
		if raw[0] == 'n' {
			return nil
		}
		return text(dst)
	}
	switch field {
	case "event_id":
		if err := text(&e.eventID); err != nil {
			return err
		}
		if !isUUID(e.eventID) {
			return errors.New("want a UUID")
		}
		e.eventID = bytes.ToLower(e.eventID)
	case "event_type":
		if err := text(&e.eventType); err != nil {
			return err
		}
		if name, verb, dotted := strings.Cut(string(e.eventType), "."); !dotted || name == "" || verb == "" {
			return errors.New("want <Name>.<verb>")
		}
	case "source":
		return text(&e.source)
	case "occurred_at":
		var s []byte
		if err := text(&s); err != nil {
			return err
		}
		at, err := parseTime(s, false)
		e.occurredAt, e.hasTime = at, err == nil
		return err
	case "delivery_attempt":
		n, err := strconv.ParseInt(string(raw), 10, 64)
		if err != nil || n < 1 {
			return errors.New("want a whole number from 1")
		}
		e.attempt = true
	case "schema_version":
		if err := text(&e.version); err != nil {
			return err
		}
		if _, err := majorOf(e.version); err != nil {
			return err
		}
	case "actor":
		return optional(&e.actor)
	case "reason":
		return optional(&e.reason)
	case "received_at":
		var s []byte
		if err := optional(&s); err != nil || s == nil {
			return err
		}
		at, err := parseTime(s, false)
		e.receivedAt, e.received = at, err == nil
		return err
	default:
		f.extra = append(f.extra, extraField{path: []string{"envelope", field}, raw: raw})
	}
	return nil
}

// majorOf is the major number of a schema version such as 1.2.
func majorOf(version []byte) (int, error) {
	major, minor, dotted := strings.Cut(string(version), ".")
	n, err := strconv.Atoi(major)
	if err != nil || n < 0 || (dotted && !digits(minor)) {
		return 0, errors.New("want <major>.<minor>")
	}
	return n, nil
}

func digits(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
}

// isUUID reports whether text is a UUID in its canonical form of 36 characters.
func isUUID(s []byte) bool {
	if len(s) != 36 {
		return false
	}
	for i, b := range s {
		switch {
		case i == 8 || i == 13 || i == 18 || i == 23:
			if b != '-' {
				return false
			}
		case (b < '0' || b > '9') && (b < 'a' || b > 'f') && (b < 'A' || b > 'F'):
			return false
		}
	}
	return true
}

// check gives the reason to refuse an event by its envelope, "" for none.
func (e *envelope) check() (feature.Reason, string) {
	if !e.seen {
		return feature.BadEnvelope, "envelope: missing"
	}
	if e.bad != "" {
		return feature.BadEnvelope, e.bad
	}
	for _, f := range []struct {
		name    string
		present bool
	}{
		{"event_id", e.eventID != nil}, {"event_type", e.eventType != nil}, {"source", e.source != nil},
		{"occurred_at", e.hasTime}, {"delivery_attempt", e.attempt}, {"schema_version", e.version != nil},
	} {
		if !f.present {
			return feature.BadEnvelope, f.name + ": missing"
		}
	}
	if major, _ := majorOf(e.version); major != feature.SchemaMajor {
		return feature.UnknownSchema, fmt.Sprintf("schema_version: its major is %d, known is %d", major, feature.SchemaMajor)
	}
	return "", ""
}

// deletes reports whether the event type says that the entity is gone.
func (e *envelope) deletes() bool {
	return slices.Equal(e.eventType[bytes.IndexByte(e.eventType, '.')+1:], []byte("deleted"))
}
