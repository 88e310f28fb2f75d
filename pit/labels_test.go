package pit

import (
	"strings"
	"testing"

	"github.com/loamdata/loam/feature"
)

// Labels that would be misread are refused.
func TestLabelsRefused(t *testing.T) {
	w := newWorld(t, viewOf(map[string]string{"k": "string"}, []string{"k"}, map[string]string{"v": "int64"}, "0", ""))
	w.take("s", "file:history", 1, []string{`{"k":"a","at":"2026-01-15T00:00:00Z","v":1}`})
	for _, c := range []struct{ labels, err string }{
		{"k,event_timestamp\na,01/02/2026\n", "1 values of time column event_timestamp are no times as ISO 8601"},
		{"k,event_timestamp\na,2026-01-20\nb,not a time\n", "1 values of time column event_timestamp are no times"},
		{"k,at\na,2026-01-20\n", `there is no time column "event_timestamp"`},
		{"k,event_timestamp,V__v\na,2026-01-20,1\n", "have a column V__v already"},
		{"k,event_timestamp\na,2026-01-20\nb,\nc,2026-01-20T10:00:00.5+02:00\nd,2026-01-20 10:00:00\n", ""},
		{"k,event_timestamp\n", ""},
	} {
		w.put("labels.csv", c.labels)
		_, err := w.build(feature.DatasetRequest{Labels: "labels.csv"}, 0)
		if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: error %v, want %q", c.labels, err, c.err)
		}
	}
}
