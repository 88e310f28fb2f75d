package ingest

import (
	"bytes"
	"errors"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/loamdata/loam/feature"
)

// cell is a checked value of one column. Bytes point into the record, or into memory of their own.
type cell struct {
	state   cellState
	integer int64 // int64, timestamp, date, bool
	double  float64
	decimal decimal128.Num
	text    []byte // string, json
	list    []cell
}

type cellState uint8

const (
	absent cellState = iota // the record does not name it
	null
	present
)

// Errors of values, as details of dead letters.
var (
	errNotText      = errors.New("want a string")
	errNotNumber    = errors.New("want a number")
	errNotInteger   = errors.New("want a whole number of 64 bits")
	errNotBool      = errors.New("want true or false")
	errNotList      = errors.New("want a list")
	errNotTime      = errors.New("want an RFC 3339 time with a zone")
	errNotDate      = errors.New("want a date such as 2026-11-01")
	errRange        = errors.New("out of the type's range")
	errDigits       = errors.New("does not fit the decimal's precision and scale")
	errEnum         = errors.New("not one of the values it may have")
	errBounds       = errors.New("outside the bounds")
	errNotJSONValue = errors.New("not a JSON value")
)

// parse reads raw, one JSON value, as a value of the column.
func (c *cell) parse(raw []byte, column *feature.Column, text bool) error {
	*c = cell{state: present, list: emptied(c.list)}
	if column.Type.List {
		return c.parseList(raw, column, text)
	}
	if err := c.parseScalar(raw, column.Type, text); err != nil || c.state == null {
		return err
	}
	if column.Enum != nil && !slices.Contains(column.Enum, string(c.text)) {
		return errEnum
	}
	return c.checkBounds(column)
}

func (c *cell) parseScalar(raw []byte, t feature.Type, text bool) error {
	if t.Kind == feature.JSON {
		return c.parseJSON(raw, text)
	}
	if raw[0] == 'n' {
		c.state = null
		return nil
	}
	if raw[0] != '"' {
		return c.parseBare(raw, t)
	}
	s, err := unquote(raw)
	if err != nil {
		return err
	}
	return c.parseText(s, t, text)
}

// parseBare reads a number, a bool, a list or an object.
func (c *cell) parseBare(raw []byte, t feature.Type) error {
	switch t.Kind {
	case feature.Bool:
		switch raw[0] {
		case 't':
			c.integer = 1
		case 'f':
		default:
			return errNotBool
		}
		return nil
	case feature.Int64, feature.Double, feature.Decimal:
		if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
			return errNotNumber
		}
		return c.parseNumber(raw, t)
	case feature.Timestamp:
		return errNotTime
	case feature.Date:
		return errNotDate
	default:
		return errNotText
	}
}

// parseText reads a JSON string. Decimals may be written so, to be exact; where text is set, every type may.
func (c *cell) parseText(s []byte, t feature.Type, text bool) error {
	if text && len(s) == 0 && t.Kind != feature.String {
		c.state = null
		return nil
	}
	switch t.Kind {
	case feature.String:
		c.text = s
		return nil
	case feature.Timestamp:
		us, err := parseTime(s, text)
		c.integer = us
		return err
	case feature.Date:
		days, err := parseDate(s, text)
		c.integer = days
		return err
	case feature.Bool:
		if !text {
			return errNotBool
		}
		switch strings.ToLower(string(s)) {
		case "true", "t", "1":
			c.integer = 1
		case "false", "f", "0":
		default:
			return errNotBool
		}
		return nil
	case feature.Double:
		if !text {
			return errNotNumber
		}
		v, err := strconv.ParseFloat(string(s), 64)
		if errors.Is(err, strconv.ErrRange) {
			return errRange
		} else if err != nil {
			return errNotNumber
		}
		c.setDouble(v)
		return nil
	case feature.Int64:
		if !text {
			return errNotInteger
		}
		return c.parseNumber(s, t)
	default: // decimal
		if !numeric(s) {
			return errNotNumber
		}
		return c.parseNumber(s, t)
	}
}

// numeric reports whether text is a number as JSON writes them.
func numeric(s []byte) bool {
	return len(s) > 0 && jsontext.Value(s).IsValid() && (s[0] == '-' || (s[0] >= '0' && s[0] <= '9')) && !bytes.ContainsAny(s, " \t\r\n")
}

func (c *cell) parseNumber(s []byte, t feature.Type) error {
	switch t.Kind {
	case feature.Int64:
		v, err := strconv.ParseInt(string(s), 10, 64)
		if err == nil {
			c.integer = v
			return nil
		}
		// 5.0 and 5e2 are whole numbers, too.
		unscaled, err := parseDecimal(s, 0)
		if err != nil || !unscaled.IsInt64() {
			return errNotInteger
		}
		c.integer = unscaled.Int64()
		return nil
	case feature.Double:
		v, err := strconv.ParseFloat(string(s), 64)
		if err != nil {
			return errRange
		}
		c.setDouble(v)
		return nil
	default:
		unscaled, err := parseDecimal(s, t.Scale)
		if err != nil {
			return err
		}
		if len(new(big.Int).Abs(unscaled).String()) > int(t.Precision) && unscaled.Sign() != 0 {
			return errDigits
		}
		c.decimal = decimal128.FromBigInt(unscaled)
		return nil
	}
}

// setDouble keeps one zero and one NaN, as every comparison of loam's does.
func (c *cell) setDouble(v float64) {
	switch {
	case v == 0:
		v = 0
	case v != v:
		v = math.NaN()
	}
	c.double = v
}

// exponentMax bounds the exponents of exact numbers: a short text must not become a long number.
const exponentMax = 100

// parseDecimal reads a number exactly, as units of 10^-scale. Digits beyond the scale must be zeros.
func parseDecimal(s []byte, scale int32) (*big.Int, error) {
	mantissa, exponentText, hasExponent := strings.Cut(strings.ToLower(string(s)), "e")
	exponent := 0
	if hasExponent {
		var err error
		if exponent, err = strconv.Atoi(exponentText); err != nil || exponent > exponentMax || exponent < -exponentMax {
			return nil, errDigits
		}
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := whole + fraction
	if len(digits) > 2*exponentMax {
		return nil, errDigits
	}
	// The number is digits x 10^(exponent - len(fraction)).
	shift := exponent - len(fraction) + int(scale)
	if shift < 0 {
		cut := max(len(digits)+shift, 0)
		sign := ""
		if strings.HasPrefix(digits, "-") {
			sign, digits, cut = "-", digits[1:], max(cut-1, 0)
		}
		if strings.Trim(digits[cut:], "0") != "" {
			return nil, errDigits
		}
		if digits = sign + digits[:cut]; digits == sign {
			digits = "0"
		}
		shift = 0
	}
	v, ok := new(big.Int).SetString(digits+strings.Repeat("0", shift), 10)
	if !ok {
		return nil, errNotNumber
	}
	return v, nil
}

func (c *cell) checkBounds(column *feature.Column) error {
	if column.Min == nil && column.Max == nil {
		return nil
	}
	v := c.double
	switch column.Type.Kind {
	case feature.Int64:
		v = float64(c.integer)
	case feature.Decimal:
		v = c.decimal.ToFloat64(column.Type.Scale)
	}
	if (column.Min != nil && !(v >= *column.Min)) || (column.Max != nil && !(v <= *column.Max)) {
		return errBounds
	}
	return nil
}

func (c *cell) parseList(raw []byte, column *feature.Column, text bool) error {
	if raw[0] == 'n' {
		c.state = null
		return nil
	}
	if raw[0] == '"' && text {
		s, err := unquote(raw)
		if err != nil {
			return err
		}
		if len(s) == 0 {
			c.state = null
			return nil
		}
		if s[0] != '[' || !jsontext.Value(s).IsValid() {
			return errNotList
		}
		raw = s
	}
	if raw[0] != '[' {
		return errNotList
	}
	d := jsontext.NewDecoder(bytes.NewBuffer(raw))
	if _, err := d.ReadToken(); err != nil {
		return errNotList
	}
	element := column.Type.Elem()
	for d.PeekKind() != ']' {
		v, err := d.ReadValue()
		if err != nil {
			return errNotList
		}
		e := cell{state: present}
		if err := e.parseScalar(slices.Clone(v), element, text); err != nil {
			return err
		}
		c.list = append(c.list, e)
	}
	return nil
}

// parseJSON keeps any JSON value as text: members sorted by name, no white space, numbers as they were written.
func (c *cell) parseJSON(raw []byte, text bool) error {
	if raw[0] == 'n' {
		c.state = null
		return nil
	}
	if text && raw[0] == '"' {
		// A CSV or Parquet column holds JSON as text.
		s, err := unquote(raw)
		if err != nil {
			return err
		}
		if len(s) == 0 {
			c.state = null
			return nil
		}
		if v := jsontext.Value(s); v.IsValid() {
			raw = s
			if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
				c.state = null
				return nil
			}
		}
	}
	v := jsontext.Value(slices.Clone(raw))
	if err := v.Format(jsontext.ReorderRawObjects(true)); err != nil {
		return errNotJSONValue
	}
	c.text = v
	return nil
}

// unquote gives the text of a JSON string, in place where it has no escapes.
func unquote(raw []byte) ([]byte, error) {
	if bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : len(raw)-1], nil
	}
	s, err := jsontext.AppendUnquote(nil, raw)
	if err != nil {
		return nil, errNotText
	}
	return s, nil
}

// Times outside these years would not survive every reader of the tables.
var (
	timeMin = time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro()
	timeMax = time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC).UnixMicro()
)

// parseTime reads an RFC 3339 time as microseconds since 1970 UTC, finer digits rounded up: an event is never taken for
// older than it was. Where naive is set, a time may lack its zone or be a date alone, and is UTC.
func parseTime(s []byte, naive bool) (int64, error) {
	var t time.Time
	if err := t.UnmarshalText(s); err != nil {
		if !naive || t.UnmarshalText(withZone(s)) != nil {
			return 0, errNotTime
		}
	}
	us := t.UnixMicro()
	if finer(s) {
		us++
	}
	if us < timeMin || us > timeMax {
		return 0, errRange
	}
	return us, nil
}

// withZone completes a time that lacks its zone, or a date.
func withZone(s []byte) []byte {
	full := bytes.Replace(s, []byte(" "), []byte("T"), 1)
	if len(full) == len("2006-01-02") {
		full = append(slices.Clone(full), "T00:00:00"...)
	}
	return append(slices.Clone(full), 'Z')
}

// finer reports whether a fraction of a second has digits other than zero behind the sixth.
func finer(s []byte) bool {
	dot := bytes.IndexByte(s, '.')
	if dot < 0 {
		return false
	}
	for i, b := range s[dot+1:] {
		if b < '0' || b > '9' {
			return false
		}
		if i >= 6 && b != '0' {
			return true
		}
	}
	return false
}

// parseDate reads a date as days since 1970. Where naive is set, a time at midnight is one, too.
func parseDate(s []byte, naive bool) (int64, error) {
	t, err := time.Parse(time.DateOnly, string(s))
	if err == nil {
		if t.Year() < 1 {
			return 0, errRange
		}
		return t.Unix() / 86400, nil
	}
	if naive {
		if us, err := parseTime(s, true); err == nil && us%(86400*1e6) == 0 {
			return us / (86400 * 1e6), nil
		}
	}
	return 0, errNotDate
}

// bigEndian reads a two's complement number.
func bigEndian(b []byte) *big.Int {
	v := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(len(b))*8))
	}
	return v
}
