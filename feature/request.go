package feature

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"unicode"
)

// MarshalText writes a reference as view:feature.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads view:feature.
func (r *Ref) UnmarshalText(text []byte) error {
	ref, err := ParseRef(string(text))
	if err != nil {
		return err
	}
	*r = ref
	return nil
}

// MarshalJSON writes a request whole but for where it stands: its fields that aren't zero, each under its name in lower
// case, with _ between the words: {"labels": …, "time_column": …}. A field that has no JSON of its own is written as
// encoding/json does.
func (d DatasetRequest) MarshalJSON() ([]byte, error) {
	v := reflect.ValueOf(d)
	out := []byte{'{'}
	for i := range v.NumField() {
		field := v.Type().Field(i)
		if !field.IsExported() || field.Type == reflect.TypeFor[Place]() || v.Field(i).IsZero() {
			continue
		}
		var value bytes.Buffer
		encoder := json.NewEncoder(&value)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(v.Field(i).Interface()); err != nil {
			return nil, fmt.Errorf("write %s of a request: %w", field.Name, err)
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, `"`+snakeCase(field.Name)+`":`...)
		out = append(out, bytes.TrimRight(value.Bytes(), "\n")...)
	}
	return append(out, '}'), nil
}

// UnmarshalJSON reads what [DatasetRequest.MarshalJSON] wrote. A member that no field has is an error: a newer loam made
// the request, and what it asks for would be left out.
func (d *DatasetRequest) UnmarshalJSON(text []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return fmt.Errorf("read a request: %w", err)
	}
	*d = DatasetRequest{}
	v := reflect.ValueOf(d).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name := snakeCase(field.Name)
		member, ok := members[name]
		if !ok || !field.IsExported() || field.Type == reflect.TypeFor[Place]() {
			continue
		}
		delete(members, name)
		if err := json.Unmarshal(member, v.Field(i).Addr().Interface()); err != nil {
			return fmt.Errorf("read %s of a request: %w", name, err)
		}
	}
	for name := range members {
		return fmt.Errorf("a request asks for %s, which this loam doesn't know: use the one that made it, or a newer one", name)
	}
	return nil
}

// snakeCase writes a Go name in lower case: TimeColumn is time_column, LabelsSQL is labels_sql.
func snakeCase(name string) string {
	var b strings.Builder
	letters := []rune(name)
	for i, c := range letters {
		if i > 0 && unicode.IsUpper(c) && (unicode.IsLower(letters[i-1]) || i+1 < len(letters) && unicode.IsLower(letters[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}
