package online

import (
	"strconv"

	"github.com/loamdata/loam/feature"
)

// fits reports whether text is one that loam writes of a value of this type. Text, json, lists, dates and times are given as
// they are.
func fits(t feature.Type, text string) bool {
	if t.List {
		return true
	}
	switch t.Kind {
	case feature.Bool:
		return text == "true" || text == "false"
	case feature.Int64:
		if len(text) < 18 { // it can't overflow
			rest, ok := cutWhole(unsigned(text))
			return ok && rest == ""
		}
		_, err := strconv.ParseInt(text, 10, 64)
		return err == nil && text[0] != '+'
	case feature.Decimal:
		whole, part := unsigned(text), ""
		for i := range len(whole) {
			if whole[i] == '.' {
				whole, part = whole[:i], whole[i+1:]
				if !digits(part) {
					return false
				}
				break
			}
		}
		return digits(whole)
	case feature.Double:
		return text == "NaN" || text == "+Inf" || text == "-Inf" || number(text)
	}
	return true
}

// number reports whether text is a number of JSON.
func number(text string) bool {
	rest, ok := cutWhole(unsigned(text))
	if !ok {
		return false
	}
	if rest != "" && rest[0] == '.' {
		if rest, ok = cutDigits(rest[1:]); !ok {
			return false
		}
	}
	if rest != "" && (rest[0] == 'e' || rest[0] == 'E') {
		if rest = rest[1:]; rest != "" && (rest[0] == '+' || rest[0] == '-') {
			rest = rest[1:]
		}
		if rest, ok = cutDigits(rest); !ok {
			return false
		}
	}
	return rest == ""
}

func unsigned(text string) string {
	if text != "" && text[0] == '-' {
		return text[1:]
	}
	return text
}

// cutWhole cuts off a whole number, which begins with no zero but is one.
func cutWhole(text string) (string, bool) {
	if len(text) > 1 && text[0] == '0' && text[1] >= '0' && text[1] <= '9' {
		return text, false
	}
	return cutDigits(text)
}

// cutDigits cuts off the digits that text begins with, if there are any.
func cutDigits(text string) (string, bool) {
	i := 0
	for i < len(text) && text[i] >= '0' && text[i] <= '9' {
		i++
	}
	return text[i:], i > 0
}

func digits(text string) bool {
	rest, ok := cutDigits(text)
	return ok && rest == ""
}
