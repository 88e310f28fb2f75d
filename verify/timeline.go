package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/sql"
)

// moment is a time of a table that may be null.
type moment struct {
	time  time.Time
	known bool
}

// Scan implements [database/sql.Scanner].
func (m *moment) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*m = moment{}
	case time.Time:
		*m = moment{v, true}
	default:
		return fmt.Errorf("a time is %T", src)
	}
	return nil
}

func (m moment) String() string {
	if !m.known {
		return "null"
	}
	return m.time.UTC().Format(time.RFC3339Nano)
}

// interval is a version as it is drawn.
type interval struct {
	state    int64
	from, to moment // to is unknown while the version is open
}

func (i interval) covers(at time.Time) bool {
	return i.from.known && !i.from.time.After(at) && (!i.to.known || i.to.time.After(at))
}

// draw draws the history of a key of the bucket as it should be and as it is.
func (c *check) draw(ctx context.Context, key string) (string, error) {
	var columns []string
	for _, column := range c.def.Columns {
		if !slices.Contains(c.def.Key, column.Name) {
			columns = append(columns, column.Name)
		}
	}
	if len(columns) == 0 {
		columns = c.def.Key
	}
	rows, err := c.db.Query(ctx, sql.Render(sql.Statement("verify_timeline"), sql.Args{
		"columns": sql.Idents("", columns), "key_text": keyText("", c.def),
	}), key)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	sides := map[string][]interval{}
	for rows.Next() {
		var side string
		var i interval
		if err := rows.Scan(&side, &i.state, &i.from, &i.to); err != nil {
			return "", fmt.Errorf("read the versions to draw: %w", err)
		}
		sides[side] = append(sides[side], i)
	}
	if err := rows.Err(); err != nil {
		return "", fmt.Errorf("read the versions to draw: %w", err)
	}
	return timeline(sides["want"], sides["have"]), nil
}

// Measures of a drawing: a cell a span between two neighbouring bounds, the last one without end.
const (
	cellWidth   = 5
	cellsMax    = 12
	cellsBefore = 3 // that are kept before the first difference
)

// timeline draws two lists of versions over the times at which one of either begins or ends. A letter begins a version,
// the same letter the same state; dashes go on until it ends; where versions overlap stands #.
func timeline(want, have []interval) string {
	bounds := boundsOf(want, have)
	if len(bounds) == 0 {
		return ""
	}
	letters := map[int64]byte{}
	wanted, had := cells(want, bounds, letters), cells(have, bounds, letters)
	first := 0
	for first < len(bounds)-1 && wanted[first] == had[first] {
		first++
	}
	from := max(0, min(first-cellsBefore, len(bounds)-cellsMax))
	to := min(len(bounds), from+cellsMax)
	var b strings.Builder
	line := func(name string, parts []string) {
		b.WriteString(strings.TrimRight(name+strings.Join(parts, ""), " ") + "\n")
	}
	ruler := make([]string, to-from)
	for i := range ruler {
		ruler[i] = fmt.Sprintf("%-*d", cellWidth, i+1)
	}
	line("      ", ruler)
	line("want  ", wanted[from:to])
	line("have  ", had[from:to])
	for i, at := range bounds[from:to] {
		fmt.Fprintf(&b, "%5d = %s\n", i+1, moment{at, true})
	}
	if left := len(bounds) - (to - from); left > 0 {
		fmt.Fprintf(&b, "      (%d other times are not drawn)\n", left)
	}
	return b.String()
}

// boundsOf lists the times at which a version begins or ends.
func boundsOf(sides ...[]interval) []time.Time {
	at := map[int64]time.Time{}
	for _, side := range sides {
		for _, i := range side {
			for _, m := range []moment{i.from, i.to} {
				if m.known {
					at[m.time.UnixMicro()] = m.time
				}
			}
		}
	}
	var bounds []time.Time
	for _, us := range slices.Sorted(maps.Keys(at)) {
		bounds = append(bounds, at[us])
	}
	return bounds
}

// cells draws versions, a cell a bound, and gives letters to states that have none.
func cells(versions []interval, bounds []time.Time, letters map[int64]byte) []string {
	drawn := make([]string, len(bounds))
	for n, at := range bounds {
		var covering []interval
		for _, v := range versions {
			if v.covers(at) {
				covering = append(covering, v)
			}
		}
		switch {
		case len(covering) == 0:
			drawn[n] = strings.Repeat(" ", cellWidth)
		case len(covering) > 1:
			drawn[n] = strings.Repeat("#", cellWidth)
		case covering[0].from.time.Equal(at):
			drawn[n] = string(letter(letters, covering[0].state)) + strings.Repeat("-", cellWidth-1)
		default:
			drawn[n] = strings.Repeat("-", cellWidth)
		}
	}
	return drawn
}

func letter(letters map[int64]byte, state int64) byte {
	l, ok := letters[state]
	if !ok {
		l = '*' // there are more states than letters
		if n := len(letters); n < 26 {
			l = byte('A' + n)
		}
		letters[state] = l
	}
	return l
}
