package serve

import (
	"time"

	"github.com/loamdata/loam/online"
)

// noTime is the event time of what has none: Feast's.
const noTime = `"1970-01-01T00:00:00Z"`

// appendAnswer appends the answer to a request: columns in the order of the names, join keys first.
func appendAnswer(b []byte, keys []column, names []byte, r *online.Result, features int) []byte {
	b = append(b, `{"metadata":{"feature_names":[`...)
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendQuoted(b, k.name)
	}
	if len(keys) > 0 && len(names) > 0 {
		b = append(b, ',')
	}
	b = append(append(b, names...), `]},"results":[`...)
	for i, k := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendKeys(b, k)
	}
	for f := range features {
		if f > 0 || len(keys) > 0 {
			b = append(b, ',')
		}
		b = appendColumn(b, r.Rows, f)
	}
	return append(b, "]}\n"...)
}

// appendKeys appends a join key as a column, the values as they were given.
func appendKeys(b []byte, k column) []byte {
	b = append(b, `{"values":[`...)
	for i, c := range k.cells {
		if i > 0 {
			b = append(b, ',')
		}
		if c.kind == '"' {
			b = appendQuoted(b, c.text)
		} else {
			b = append(b, c.text...)
		}
	}
	b = append(b, `],"statuses":[`...)
	for i := range k.cells {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `"PRESENT"`...)
	}
	b = append(b, `],"event_timestamps":[`...)
	for i := range k.cells {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, noTime...)
	}
	return append(b, "]}"...)
}

// appendColumn appends a feature of all entities.
func appendColumn(b []byte, rows [][]online.Feature, f int) []byte {
	b = append(b, `{"values":[`...)
	for n := range rows {
		if n > 0 {
			b = append(b, ',')
		}
		b = rows[n][f].Value.AppendJSON(b)
	}
	b = append(b, `],"statuses":[`...)
	for n := range rows {
		if n > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), rows[n][f].Status...), '"')
	}
	b = append(b, `],"event_timestamps":[`...)
	for n := range rows {
		if n > 0 {
			b = append(b, ',')
		}
		if at := rows[n][f].EventTime; at.IsZero() {
			b = append(b, noTime...)
		} else {
			b = append(appendTime(append(b, '"'), at), '"')
		}
	}
	return append(b, "]}"...)
}

// appendTime appends a time as Protobuf's JSON has timestamps: RFC 3339 in UTC with 0, 3 or 6 digits behind the point.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return t.AppendFormat(b, time.RFC3339Nano)
	}
	hour, minute, second := t.Clock()
	b = append(b, byte('0'+year/1000), byte('0'+year/100%10), byte('0'+year/10%10), byte('0'+year%10), '-')
	b = append(two(b, int(month)), '-')
	b = append(two(b, day), 'T')
	b = append(two(b, hour), ':')
	b = append(two(b, minute), ':')
	b = two(b, second)
	switch us := t.Nanosecond() / 1000; {
	case us == 0:
	case us%1000 == 0:
		b = append(b, '.')
		b = append(b, byte('0'+us/100_000), byte('0'+us/10_000%10), byte('0'+us/1000%10))
	default:
		b = append(b, '.')
		b = append(b, byte('0'+us/100_000), byte('0'+us/10_000%10), byte('0'+us/1000%10), byte('0'+us/100%10), byte('0'+us/10%10), byte('0'+us%10))
	}
	return append(b, 'Z')
}

func two(b []byte, n int) []byte { return append(b, byte('0'+n/10), byte('0'+n%10)) }
