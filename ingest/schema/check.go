package schema

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

// File is a schema in a file, before a registry has it.
type File struct {
	Name       string // by whose ending the language is told: .avsc, .proto or .json
	Text       string
	References []Reference // of Avro each behind what it refers to itself
	Message    string      // of Protobuf: the message that events are, "" for the first of the file
}

// Reference is what a schema refers to: by its text, or where the registry has it.
type Reference struct {
	Name    string
	Text    string
	Subject string
	Version int
}

// Encoding is that of a schema file, "" where its name doesn't tell.
func (f File) Encoding() feature.Encoding {
	return map[string]feature.Encoding{
		".avsc": feature.AvroEncoding, ".proto": feature.ProtobufEncoding, ".json": feature.JSONSchemaEncoding,
	}[strings.ToLower(filepath.Ext(f.Name))]
}

// Check tells in what a schema file doesn't fit a stream: what would end a worker at the first event by it. r is the registry
// that has what the file refers to, nil where texts are given.
func Check(ctx context.Context, s *feature.Stream, f File, r *Registry) ([]Problem, error) {
	encoding := f.Encoding()
	if s.Framed() && s.Encoding != encoding {
		return []Problem{{"the schema", fmt.Sprintf("is of encoding %s, and the stream's is %s", encoding, s.Encoding),
			"mend the stream's encoding, or have the topic written by one kind of schema"}}, nil
	}
	as := *s
	as.Encoding = encoding
	problems, err := check(ctx, &as, f, r)
	var bad unreadable
	if errors.As(err, &bad) {
		return []Problem{bad.problem()}, nil
	}
	return problems, err
}

func check(ctx context.Context, s *feature.Stream, f File, r *Registry) ([]Problem, error) {
	from := &source{kind: schemaType(s.Encoding), text: f.Text}
	if r != nil {
		var err error
		if from, err = r.resolve(ctx, f.registered()); err != nil {
			return nil, err
		}
	} else {
		for _, ref := range f.References {
			from.references = append(from.references, document{ref.Name, ref.Text})
		}
	}
	l, err := parse(ctx, s, from)
	if err != nil {
		return nil, err
	}
	w, err := l.named(f.Message)
	if err != nil {
		return nil, err
	}
	return fit(s, w.shape()), nil
}

// registered is the file as the registry would have it.
func (f File) registered() sr.Schema {
	s := sr.Schema{Schema: f.Text, Type: schemaType(f.Encoding())}
	for _, ref := range f.References {
		s.References = append(s.References, sr.SchemaReference{Name: ref.Name, Subject: ref.Subject, Version: ref.Version})
	}
	return s
}

// Compatible asks the registry whether a subject could have the file as its next version, by the subject's own rule, and gives
// what it says against that: nothing where it could. known is false where the registry has no such subject yet.
func (r *Registry) Compatible(ctx context.Context, subject string, f File) (against []string, known bool, err error) {
	const allVersions = -2
	answer, err := r.client.CheckCompatibility(sr.WithParams(ctx, sr.Verbose), subject, allVersions, f.registered())
	if err != nil {
		err = r.classify("ask whether the schema is compatible with subject "+subject, err)
		if errors.Is(err, errUnknown) {
			return nil, false, nil
		}
		return nil, false, err
	}
	if !answer.Is && len(answer.Messages) == 0 {
		answer.Messages = []string{"the registry doesn't say why"}
	}
	if answer.Is {
		answer.Messages = nil
	}
	return answer.Messages, true, nil
}
