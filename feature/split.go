package feature

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Sample says how many of the labels are taken; the zero value takes all.
type Sample struct {
	Rows  int64   // so many
	Share float64 // or this share of them, above 0 and below 1
}

// Given reports whether there is a sample to take.
func (s Sample) Given() bool { return s != Sample{} }

// String is the sample as [ParseSample] reads it.
func (s Sample) String() string {
	if s.Rows > 0 {
		return strconv.FormatInt(s.Rows, 10)
	}
	return strconv.FormatFloat(s.Share, 'f', -1, 64)
}

// ParseSample reads a number of labels, or a share of them below 1.
func ParseSample(text string) (Sample, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 {
		return Sample{Rows: n}, nil
	}
	if share, err := strconv.ParseFloat(text, 64); err == nil && share > 0 && share < 1 {
		return Sample{Share: share}, nil
	}
	return Sample{}, fmt.Errorf("%q is no sample; write how many labels, such as 10000, or which share of them, such as 0.1", text)
}

// SplitColumn is the column of a training set that says which part of a split a row is in.
const SplitColumn = "split"

// Parts of a split, in their order; a split of two has the first and the last.
const (
	TrainPart      = "train"
	ValidationPart = "validation"
	TestPart       = "test"
)

// Split says how the labels are split: at times, or by a hash of an entity's key, so that all labels of an entity are in one
// part. The zero value doesn't.
type Split struct {
	Times  []time.Time // one or two, ascending: the first is where what is no longer for training begins
	Shares []float64   // or one or two shares of the first parts, below 1 together
	Column string      // of a split by shares: the column hashed; "" means the join keys of the first feature's entity
}

// Given reports whether there is a split to make.
func (s Split) Given() bool { return len(s.Times)+len(s.Shares) > 0 }

// Parts are the names of the parts, in their order.
func (s Split) Parts() []string {
	if len(s.Times)+len(s.Shares) == 2 {
		return []string{TrainPart, ValidationPart, TestPart}
	}
	return []string{TrainPart, TestPart}
}

// String is the split as [ParseSplit] reads it.
func (s Split) String() string {
	var parts []string
	for _, t := range s.Times {
		parts = append(parts, t.Format(time.RFC3339Nano))
	}
	for _, share := range s.Shares {
		parts = append(parts, strconv.FormatFloat(share, 'f', -1, 64))
	}
	kind := "time"
	if len(s.Shares) > 0 {
		kind = "key"
		if s.Column != "" {
			kind += "=" + s.Column
		}
	}
	return kind + ":" + strings.Join(parts, ",")
}

// ParseSplit reads time:T1[,T2], times as dates or RFC 3339, or key[=COLUMN]:SHARE[,SHARE].
func ParseSplit(text string) (Split, error) {
	bad := func(why string) (Split, error) {
		return Split{}, fmt.Errorf("%q is no split: %s; write time:2026-10-01, time:2026-10-01,2026-11-01, key:0.8, key:0.8,0.1 or key=account_id:0.8", text, why)
	}
	kind, rest, _ := strings.Cut(text, ":")
	kind, column, named := strings.Cut(kind, "=")
	parts := strings.Split(rest, ",")
	if len(parts) > 2 {
		return bad("it has more than three parts")
	}
	var s Split
	sum := 0.0
	for _, part := range parts {
		part = strings.TrimSpace(part)
		switch {
		case kind == "time" && !named:
			t, err := time.Parse(time.DateOnly, part)
			if err != nil {
				t, err = time.Parse(time.RFC3339Nano, part)
			}
			if err != nil {
				return bad(fmt.Sprintf("%q is neither a date nor a time as RFC 3339 writes it", part))
			}
			t = t.UTC().Truncate(time.Microsecond)
			if len(s.Times) > 0 && !t.After(s.Times[0]) {
				return bad("the second time is not after the first")
			}
			s.Times = append(s.Times, t)
		case kind == "key" && !(named && column == ""):
			share, err := strconv.ParseFloat(part, 64)
			if err != nil || !(share > 0 && share < 1) {
				return bad(fmt.Sprintf("%q is no share between 0 and 1", part))
			}
			if sum += share; sum >= 1 {
				return bad("nothing is left for the last part")
			}
			s.Shares, s.Column = append(s.Shares, share), column
		default:
			return bad("it begins with neither time: nor key:")
		}
	}
	return s, nil
}

func parseSeed(text string) (int64, error) {
	seed, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no seed; write a whole number", text)
	}
	return seed, nil
}

// parsed reads text that parse understands.
func parsed[T any](r *reader, dst *T, parse func(string) (T, error)) func(*yaml.Node, string) {
	return func(n *yaml.Node, field string) {
		text, ok := r.text(n, field)
		if !ok {
			return
		}
		v, err := parse(text)
		if err != nil {
			r.problem(n, field, err.Error(), "")
			return
		}
		*dst = v
	}
}
