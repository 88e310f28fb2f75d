package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/online"
)

// Error is what a request is answered with that isn't served: {"error": {…}}, the members in this order, those that are empty
// left out.
type Error struct {
	Status  int      // of HTTP
	Code    string   // which case it is, for machines; frozen
	Message string   // what is wrong, for people
	Remedy  string   // what to do
	Field   string   // where in the body it is, such as entities.contact_id[2]
	Offset  int64    // of the byte in a body that is no JSON, from 0; -1 where there is none
	Known   []string // the names that there are, where one was unknown
	// Rows are the rows of a push that are refused, the first of them.
	Rows []ingest.RefusedRow
	// RetryAfter is when to try again, in seconds; 0 where that is of no use.
	RetryAfter int
}

func (e *Error) Error() string { return e.Message }

// Codes of errors. They are frozen.
const (
	codeMalformed    = "malformed_json"
	codeUnknownField = "unknown_field"
	codeWrongType    = "wrong_type"
	codeFeatures     = "missing_features"
	codeMissingKey   = "missing_join_key"
	codeRequest      = "missing_request_column"
	codeColumn       = "unknown_column"
	codeRagged       = "ragged_columns"
	codeManyEntities = "too_many_entities"
	codeCollision    = "name_collision"
	codeNoKey        = "unauthenticated"
	codeForbidden    = "forbidden"
	codeNoRoute      = "unknown_route"
	codeNoView       = "unknown_view"
	codeNoFeature    = "unknown_feature"
	codeNoService    = "unknown_service"
	codeMethod       = "method_not_allowed"
	codeTooLarge     = "body_too_large"
	codeMedia        = "unsupported_media_type"
	codeSlow         = "request_timeout"
	codeForeign      = "foreign_value"
	codeInternal     = "internal"
	codeNotReady     = "not_ready"
	codeAway         = "store_away"
	codeOverload     = "overloaded"
	codeTimeout      = "timeout"
)

// wrong is an error of the caller's that stands at a place of the body.
func wrong(code, field, remedy, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: code, Field: field, Offset: -1, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// unknown is an error of the caller's that names something that there is not.
func unknown(code, field, what, name string, known []string) *Error {
	return &Error{Status: http.StatusNotFound, Code: code, Field: field, Offset: -1, Known: known,
		Message: fmt.Sprintf("there is no %s %q", what, name), Remedy: "use one of those that are known"}
}

// explain makes an [Error] of any error that a handler gives.
func explain(err error) *Error {
	var (
		own     *Error
		missing *online.EntityError
		key     *online.KeyError
		request *online.RequestError
		foreign *online.ForeignError
		tooLong *http.MaxBytesError
	)
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &missing):
		return wrong(codeMissingKey, "entities."+missing.JoinKey, "add the column to entities, a value for each entity",
			"feature view %s needs the join key %s", missing.View, missing.JoinKey)
	case errors.As(err, &key):
		return wrong(codeWrongType, fmt.Sprintf("entities.%s[%d]", key.JoinKey, key.Entity), "give a value of the key's type",
			"feature view %s takes the join key %s as %s", key.View, key.JoinKey, key.Type)
	case errors.As(err, &request):
		return wrong(codeRequest, "entities."+request.Column, "add the column to entities or request_data, a value for each entity",
			"feature view %s needs the column %s of the request, which is %s", request.View, request.Column, request.Type)
	case errors.As(err, &tooLong):
		return &Error{Status: http.StatusRequestEntityTooLarge, Code: codeTooLarge, Offset: -1,
			Message: fmt.Sprintf("the body has more than the %d bytes that are taken", tooLong.Limit), Remedy: "ask for fewer entities at once, or raise serve.body in loam.yaml"}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Status: http.StatusServiceUnavailable, Code: codeTimeout, Offset: -1, RetryAfter: 1,
			Message: "the online store did not answer in time", Remedy: "try again; see whether Redis is slow or away"}
	case errors.Is(err, online.ErrUnavailable):
		return &Error{Status: http.StatusServiceUnavailable, Code: codeNotReady, Offset: -1, RetryAfter: 1,
			Message: err.Error(), Remedy: "try again once a worker or `loam materialize` has built the view; GET /ready tells which are missing"}
	case errors.Is(err, online.ErrAway):
		return &Error{Status: http.StatusServiceUnavailable, Code: codeAway, Offset: -1, RetryAfter: 1,
			Message: online.ErrAway.Error(), Remedy: "try again; the server's log says what Redis answered"}
	case errors.As(err, &foreign):
		return &Error{Status: http.StatusInternalServerError, Code: codeForeign, Offset: -1,
			Message: fmt.Sprintf("feature view %s: what Redis holds of entity %d was not written by loam", foreign.View, foreign.Entity),
			Remedy:  "the server's log says what is there; `loam materialize --view " + foreign.View + "` builds the view anew"}
	}
	return &Error{Status: http.StatusInternalServerError, Code: codeInternal, Offset: -1,
		Message: "the server met an error that it doesn't know", Remedy: "see the server's log, and report it"}
}

// append appends the error as JSON.
func (e *Error) append(b []byte) []byte {
	text := func(name, value string) {
		if value != "" {
			if b[len(b)-1] != '{' {
				b = append(b, ',')
			}
			b = append(appendString(append(b, '"'), name), '"', ':')
			b = appendQuoted(b, value)
		}
	}
	b = append(b, `{"error":{`...)
	text("code", e.Code)
	text("message", e.Message)
	text("remedy", e.Remedy)
	text("field", e.Field)
	if e.Offset >= 0 {
		b = strconv.AppendInt(append(b, `,"offset":`...), e.Offset, 10)
	}
	if e.Known != nil {
		b = append(b, `,"known":[`...)
		for i, k := range e.Known {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendQuoted(b, k)
		}
		b = append(b, ']')
	}
	if e.Rows != nil {
		rows, err := json.Marshal(e.Rows)
		if err != nil {
			panic(err) // numbers and text always encode
		}
		b = append(append(b, `,"rows":`...), rows...)
	}
	return append(b, "}}\n"...)
}

func appendString(b []byte, s string) []byte { return append(b, s...) }

// appendQuoted appends text as a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendQuoted(b []byte, s string) []byte {
	if plain(s) {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	quoted, _ := jsontext.AppendQuote(b, s) // the error is of bytes that are no UTF-8
	return quoted
}

// plain reports whether text stands in JSON as it is.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}
