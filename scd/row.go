package scd

import (
	"bytes"
	"encoding/binary"
)

// Row is the state of an entity in one slice of bytes: the length of the tracked part, the tracked columns, the other
// columns, each in a fixed order that the caller keeps. A value is its length plus one and its bytes; a null is a zero
// alone. Equal values must be given as equal bytes. A Row is not changed once made.
type Row []byte

// AppendValue appends a column's value to a part of a row.
func AppendValue(part, value []byte) []byte {
	part = binary.AppendUvarint(part, uint64(len(value))+1)
	return append(part, value...)
}

// AppendNull appends a null to a part of a row.
func AppendNull(part []byte) []byte { return append(part, 0) }

// AppendRow appends the row made of a tracked part and the rest to dst, and returns dst and the row inside it.
func AppendRow(dst, tracked, rest []byte) ([]byte, Row) {
	start := len(dst)
	dst = binary.AppendUvarint(dst, uint64(len(tracked)))
	dst = append(dst, tracked...)
	dst = append(dst, rest...)
	return dst, Row(dst[start:len(dst):len(dst)])
}

// parts splits a row into its tracked part and the rest.
func (r Row) parts() (tracked, rest []byte) {
	n, w := binary.Uvarint(r)
	return r[w : w+int(n)], r[w+int(n):]
}

// TrackedEqual reports whether no tracked column differs.
func (r Row) TrackedEqual(other Row) bool {
	a, _ := r.parts()
	b, _ := other.parts()
	return bytes.Equal(a, b)
}

// Next splits the first value off a part of a row; null has a nil value.
func Next(part []byte) (value, rest []byte) {
	n, w := binary.Uvarint(part)
	if n == 0 {
		return nil, part[w:]
	}
	end := w + int(n) - 1
	return part[w:end:end], part[end:]
}

// Values calls yield with each column's value, the tracked columns first; null has a nil value.
func (r Row) Values(yield func(column int, value []byte) bool) {
	tracked, rest := r.parts()
	column := 0
	for _, part := range [][]byte{tracked, rest} {
		for len(part) > 0 {
			var value []byte
			value, part = Next(part)
			if !yield(column, value) {
				return
			}
			column++
		}
	}
}

// overlay is base with the columns that are present taken from patch. A nil base counts as all nulls.
func overlay(base, patch Row, present []bool) Row {
	var baseParts [2][]byte
	if base != nil {
		baseParts[0], baseParts[1] = base.parts()
	}
	var patchParts, out [2][]byte
	patchParts[0], patchParts[1] = patch.parts()
	column := 0
	for i := range patchParts {
		b, p := baseParts[i], patchParts[i]
		for len(p) > 0 {
			var old, value []byte
			value, p = Next(p)
			if base != nil {
				old, b = Next(b)
			}
			if !present[column] {
				value = old
			}
			if value == nil {
				out[i] = AppendNull(out[i])
			} else {
				out[i] = AppendValue(out[i], value)
			}
			column++
		}
	}
	_, row := AppendRow(nil, out[0], out[1])
	return row
}
