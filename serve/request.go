package serve

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// request is the body of a request for features, in Feast's shape.
type request struct {
	features    []string // view:feature
	service     string
	fullNames   bool     // view__feature in the answer
	entities    []column // in the order of the body
	requestData []column // columns of the request, which may stand among entities as well
}

// column is a column of entities: a value for each of them.
type column struct {
	name  string
	cells []cell
}

// cell is a value of the body.
type cell struct {
	kind jsontext.Kind // '"', '0', 't', 'f', 'n', '{' or '['
	text string        // what a string holds, and JSON of all else
}

// requestFields are the members that a body may have. The last is Feast's, and changes nothing here.
var requestFields = []string{"features", "feature_service", "entities", "request_data", "full_feature_names", "include_feature_view_version_metadata"}

// readRequest reads the body of a request for features.
func readRequest(d *jsontext.Decoder) (*request, error) {
	r := &request{}
	err := readBody(d, `{"features": ["view:feature"], "entities": {"join_key": [...]}}`, func(name string) (err error) {
		switch name {
		case "features":
			err = r.readFeatures(d)
		case "feature_service":
			err = readNullable(d, name, &r.service)
		case "entities":
			r.entities, err = readColumns(d, name)
		case "request_data":
			r.requestData, err = readColumns(d, name)
		case "full_feature_names":
			r.fullNames, err = readBool(d, name)
		case "include_feature_view_version_metadata":
			_, err = readBool(d, name)
		default:
			err = wrong(codeUnknownField, name, "remove it; known are "+strings.Join(requestFields, ", "), "a request has no member %q", name)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, r.check()
}

// check holds a request to what is asked of every one.
func (r *request) check() error {
	switch {
	case r.service != "" && len(r.features) > 0:
		return wrong(codeFeatures, "feature_service", "give one of the two", "features and feature_service are both given")
	case r.service == "" && len(r.features) == 0:
		return wrong(codeFeatures, "features", `give features, such as ["profile:mkt_status"], or feature_service`, "no features are asked for")
	case len(r.entities)+len(r.requestData) == 0:
		return wrong(codeMissingKey, "entities", `give the join keys as columns, such as {"contact_id": ["c1"]}`, "no entities are asked for")
	}
	for _, of := range []struct {
		name    string
		columns []column
	}{{"entities", r.entities}, {"request_data", r.requestData}} {
		for _, c := range of.columns {
			if len(c.cells) != r.len() {
				return wrong(codeRagged, of.name+"."+c.name, "give each column a value for each entity", "column %s has %d values, and the first one has %d",
					c.name, len(c.cells), r.len())
			}
		}
	}
	return nil
}

// len is how many entities are asked for.
func (r *request) len() int {
	if len(r.entities) > 0 {
		return len(r.entities[0].cells)
	}
	return len(r.requestData[0].cells)
}

func (r *request) readFeatures(d *jsontext.Decoder) error {
	if d.PeekKind() == 'n' {
		_, err := d.ReadToken()
		return malformed(err)
	}
	return readList(d, "features", `["view:feature"]`, func() error {
		if d.PeekKind() != '"' {
			return notA(d, fmt.Sprintf("features[%d]", len(r.features)), "text", `"view:feature"`)
		}
		text, err := readText(d)
		r.features = append(r.features, text)
		return err
	})
}

// readColumns reads an object of columns.
func readColumns(d *jsontext.Decoder, field string) ([]column, error) {
	if d.PeekKind() == 'n' {
		_, err := d.ReadToken()
		return nil, malformed(err)
	}
	var columns []column
	err := readObject(d, field, "an object of columns", columnsExample, func(name string) error {
		c := column{name: name}
		err := readList(d, field+"."+name, "a value for each entity", func() error {
			one, err := readCell(d)
			c.cells = append(c.cells, one)
			return err
		})
		columns = append(columns, c)
		return err
	})
	return columns, err
}

// columnsExample is what an object of columns looks like.
const columnsExample = `{"contact_id": ["c1", "c2"]}`

// readBody reads a body that is one object; member reads the value of a member.
func readBody(d *jsontext.Decoder, example string, member func(name string) error) error {
	if err := readObject(d, "", "an object", example, member); err != nil {
		return err
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("there is more behind the object")
		}
		return malformedAt(d.InputOffset(), err)
	}
	return nil
}

// readObject reads an object; member reads the value of a member.
func readObject(d *jsontext.Decoder, field, want, example string, member func(name string) error) error {
	if d.PeekKind() != '{' {
		return notA(d, field, want, example)
	}
	if _, err := d.ReadToken(); err != nil {
		return malformed(err)
	}
	for d.PeekKind() != '}' {
		name, err := readText(d)
		if err != nil {
			return err
		}
		if err := member(name); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return malformed(err)
}

// readList reads a list; value reads one of its values.
func readList(d *jsontext.Decoder, field, example string, value func() error) error {
	if d.PeekKind() != '[' {
		return notA(d, field, "a list", example)
	}
	if _, err := d.ReadToken(); err != nil {
		return malformed(err)
	}
	for d.PeekKind() != ']' {
		if err := value(); err != nil {
			return err
		}
	}
	_, err := d.ReadToken()
	return malformed(err)
}

func readCell(d *jsontext.Decoder) (cell, error) {
	kind := d.PeekKind()
	if kind == '{' || kind == '[' {
		v, err := d.ReadValue()
		return cell{kind, string(v)}, malformed(err)
	}
	t, err := d.ReadToken()
	if err != nil {
		return cell{}, malformed(err)
	}
	return cell{kind, t.String()}, nil
}

func readText(d *jsontext.Decoder) (string, error) {
	t, err := d.ReadToken()
	if err != nil {
		return "", malformed(err)
	}
	return t.String(), nil
}

// readNullable reads text, or null, which leaves it as it is.
func readNullable(d *jsontext.Decoder, field string, dst *string) (err error) {
	switch d.PeekKind() {
	case 'n':
		_, err = d.ReadToken()
		return malformed(err)
	case '"':
		*dst, err = readText(d)
		return err
	}
	return notA(d, field, "text", `"churn_v1"`)
}

func readBool(d *jsontext.Decoder, field string) (bool, error) {
	switch d.PeekKind() {
	case 't', 'f', 'n':
		t, err := d.ReadToken()
		return err == nil && t.Kind() == 't', malformed(err)
	}
	return false, notA(d, field, "true or false", "true")
}

// notA is the error of a value of another type, or of what is no JSON at all.
func notA(d *jsontext.Decoder, field, want, example string) error {
	if d.PeekKind() == 0 { // the next token says why
		_, err := d.ReadToken()
		return malformed(err)
	}
	if field == "" {
		return wrong(codeWrongType, field, "such as "+example, "the body is not %s", want)
	}
	return wrong(codeWrongType, field, "such as "+example, "%s is not %s", field, want)
}

// malformed is the error of a body that is no JSON, nil for none.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		return malformedAt(syntax.ByteOffset, syntax.Err)
	}
	if errors.Is(err, io.EOF) {
		return malformedAt(0, errors.New("it is empty"))
	}
	return err
}

func malformedAt(offset int64, err error) error {
	e := wrong(codeMalformed, "", "send JSON as RFC 8259 has it", "the body is no JSON: %s", err)
	e.Offset = offset
	return e
}

// named gives the column of a name, nil where there is none.
func named(columns []column, name string) *column {
	if i := slices.IndexFunc(columns, func(c column) bool { return c.name == name }); i >= 0 {
		return &columns[i]
	}
	return nil
}
