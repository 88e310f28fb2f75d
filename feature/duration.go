package feature

import (
	"fmt"
	"regexp"
	"strconv"
	"time"
)

var durationText = regexp.MustCompile(`^(\d{1,18})(us|ms|s|m|h|d)$`)

var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute},
	{"s", time.Second}, {"ms", time.Millisecond}, {"us", time.Microsecond},
}

// durationMax bounds every duration a user writes, so that adding one to a time can't overflow.
const durationMax = 100 * 365 * 24 * time.Hour

// ParseDuration reads <n>us|ms|s|m|h|d, or 0. A day is 24 hours: all times are UTC.
func ParseDuration(text string) (time.Duration, error) {
	if text == "0" {
		return 0, nil
	}
	m := durationText.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is not a duration; write a whole number and us, ms, s, m, h or d, such as 90d", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: %w", text, err)
	}
	for _, u := range durationUnits {
		if u.name != m[2] {
			continue
		}
		if n > int64(durationMax/u.unit) {
			return 0, fmt.Errorf("%q is longer than 100 years", text)
		}
		return time.Duration(n) * u.unit, nil
	}
	panic("unreachable: the pattern lists the units")
}

// FormatDuration writes d in the largest unit that divides it; [ParseDuration] reads it back.
func FormatDuration(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	for _, u := range durationUnits {
		if d%u.unit == 0 {
			return strconv.FormatInt(int64(d/u.unit), 10) + u.name
		}
	}
	return d.String()
}
