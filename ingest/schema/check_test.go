package schema

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/sr"

	"github.com/loamdata/loam/feature"
)

// A file is checked as a worker would judge it, with what it refers to from files or from the registry, whatever the stream is
// written in today.
func TestCheck(t *testing.T) {
	registry := newDouble(t)
	registry.versions["amount/3"] = sr.Schema{Schema: amountAvro}
	s := streamOf(feature.JSONEncoding, feature.EnvelopeFormat, thingColumns)
	file := File{Name: "thing.AVSC", Text: thingAvro, References: []Reference{{Name: "com.example.Amount", Text: amountAvro, Subject: "amount", Version: 3}}}
	for name, r := range map[string]*Registry{"files": nil, "registry": registry.open(t)} {
		if problems, err := Check(t.Context(), s, file, r); err != nil || len(problems) > 0 {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
		lacking := file
		lacking.References = []Reference{{Name: "com.example.Amount", Text: `"string"`, Subject: "amount", Version: 4}}
		if problems, err := Check(t.Context(), s, lacking, r); err != nil || len(problems) != 1 || problems[0].Field != "the schema" {
			t.Errorf("%s: %v, %v", name, problems, err)
		}
	}
	other := *s
	other.Columns = slices.Clone(s.Columns)
	other.Columns[2].Type = feature.Type{Kind: feature.Bool}
	problems, err := Check(t.Context(), &other, file, nil)
	if err != nil || len(problems) != 1 || problems[0].Field != "payload.amount.value" {
		t.Errorf("%v, %v", problems, err)
	}
	proto := File{Name: "thing.proto", Text: thingProto, References: []Reference{{Name: "example/amount.proto", Text: amountProto}}}
	for message, want := range map[string]string{
		"": "payload.thing_id: the schema lacks it", "Event": "", "example.Event": "", "Event.Envelope": "envelope.event_id: the schema lacks it",
		"Nosuch": "it has no message Nosuch",
	} {
		proto.Message = message
		problems, err := Check(t.Context(), s, proto, nil)
		all := ""
		for _, p := range problems {
			all += p.String() + "\n"
		}
		if err != nil || (want == "") != (len(problems) == 0) || !strings.Contains(all, want) {
			t.Errorf("message %q: %s, %v", message, all, err)
		}
	}
}

// The registry says whether a subject could have a schema, why not, or that it has no such subject.
func TestCompatible(t *testing.T) {
	registry := newDouble(t)
	registry.breaks["strict"], registry.breaks["lax"] = []string{"a field was removed"}, nil
	r := registry.open(t)
	for subject, want := range map[string]string{"strict": "a field was removed true", "lax": " true", "new": " false"} {
		against, known, err := r.Compatible(t.Context(), subject, File{Name: "x.avsc", Text: amountAvro})
		if got := strings.Join(against, ", ") + map[bool]string{true: " true", false: " false"}[known]; err != nil || got != want {
			t.Errorf("%s: %q, %v", subject, got, err)
		}
	}
	registry.with(func() { registry.broken = 503 })
	if _, _, err := r.Compatible(t.Context(), "lax", File{Name: "x.avsc"}); !errors.Is(err, ErrAway) {
		t.Error(err)
	}
}
