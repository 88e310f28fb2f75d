package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// tileCheck compares what Redis holds of a windowed view with what the events in the log make: of every entity each tile
// that a window still needs, the values of its distincts, its newest event time and its guards.
//
// An entity of which Redis has events that the lake hasn't come to, or the lake some that Redis isn't written up to, is not
// settled, and neither is one with rows of files or redrives while the generation's base lacks any. A guard must be that of
// the last event that a window still needs, or of a later one: an event that no window needs leaves nothing behind where
// there is nothing else of its entity.
type tileCheck struct {
	*onlineCheck
	levels []checkedLevel
	sets   []checkedSet
	lacks  bool // rows of files or redrives
}

type checkedLevel struct {
	hop, window int64 // microseconds
	aggregates  []int
}

type checkedSet struct {
	aggregate   int
	hop, window int64
	tail        int64 // the hop in which its longest window moves
}

func newTileCheck(c *onlineCheck) *tileCheck {
	t := &tileCheck{onlineCheck: c}
	for _, hop := range []time.Duration{5 * time.Minute, time.Hour, 24 * time.Hour} {
		level := checkedLevel{hop: hop.Microseconds()}
		for i, a := range c.view.Aggregates {
			for _, w := range a.Windows {
				if a.Fn != feature.Distinct && feature.Hop(w) == hop {
					level.window = max(level.window, w.Microseconds())
					if !slices.Contains(level.aggregates, i) {
						level.aggregates = append(level.aggregates, i)
					}
				}
			}
		}
		if level.aggregates != nil {
			t.levels = append(t.levels, level)
		}
	}
	for i, a := range c.view.Aggregates {
		if a.Fn == feature.Distinct {
			longest := slices.Max(a.Windows)
			t.sets = append(t.sets, checkedSet{i, feature.Hop(slices.Min(a.Windows)).Microseconds(), longest.Microseconds(), feature.Hop(longest).Microseconds()})
		}
	}
	return t
}

// typeOf is the type of an aggregate's column.
func (c *tileCheck) typeOf(aggregate int) feature.Type {
	column, _ := c.def.Column(c.view.Aggregates[aggregate].Column)
	return column.Type
}

// from is when what a window still needs begins: the hop that holds that time before the instant that is compared.
func (c *tileCheck) from(window, hop int64) int64 {
	at := c.report.At.UnixMicro() - window
	return at - ((at%hop)+hop)%hop
}

// oldest is when the longest window of any aggregate begins.
func (c *tileCheck) oldest() int64 {
	oldest := c.report.At.UnixMicro()
	for _, l := range c.levels {
		oldest = min(oldest, c.from(l.window, l.hop))
	}
	for _, s := range c.sets {
		oldest = min(oldest, c.from(s.window, s.tail))
	}
	return oldest
}

// Columns of the tables that are compared; see sql/verify_tiles.sql.
var (
	wantedColumns = []string{"loam_entity", "kind", "part", "low", "value", "sums", "sizes"}
	thereColumns  = []string{"loam_entity", "kind", "part", "level", "begins", "value", "sums"}
)

// loadThere fills verify_there and verify_there_entities with what Redis holds.
func (c *tileCheck) loadThere(ctx context.Context, g online.Generation, only []string, offsets lake.Offsets) error {
	parts, err := newTextRows(ctx, c.db, "verify_there", thereColumns)
	if err != nil {
		return err
	}
	defer parts.close()
	entities, err := newTextRows(ctx, c.db, "verify_there_entities", []string{"loam_entity", "unsettled"})
	if err != nil {
		return err
	}
	defer entities.close()
	next := map[string]int64{}
	for p, at := range offsets.Partitions {
		next[fmt.Sprintf("%08x:%d", feature.TopicHash(p.Topic), p.Index)] = at.Next
	}
	prefix := c.keyPrefix(g.Number)
	take := func(key, text string) error {
		entity := strings.TrimPrefix(key, prefix)
		ahead := ""
		add := func(values ...string) error {
			for i, v := range append([]string{entity}, values...) {
				if v != "" || thereColumns[i] == "value" {
					parts.set(i, v)
				}
			}
			return parts.add(ctx)
		}
		stored, err := c.parse(text)
		if err != nil {
			err = add("string", "its string", "", "", errStored.Error(), "")
			return errors.Join(err, addRow(ctx, entities, entity, ""))
		}
		err = add("newest", "its newest event time", "", "", strconv.FormatInt(stored.newest, 10), "")
		for _, g := range stored.guards {
			if g.next > next[g.source] {
				ahead = "1"
			}
			err = errors.Join(err, add("guard", g.source, "", "", strconv.FormatInt(g.next, 10), ""))
		}
		for _, t := range stored.tiles {
			if len(t.parts) > 0 {
				level := fmt.Sprintf("tile %d", t.level)
				err = errors.Join(err, add("tile", c.tileName(t.level, t.begins), level, strconv.FormatInt(t.begins, 10),
					strings.Join(t.parts, "; "), strings.Join(t.sums, ",")))
			}
		}
		for _, v := range stored.values {
			level := fmt.Sprintf("set %d", v.set)
			err = errors.Join(err, add("set", c.setName(v.set), level, strconv.FormatInt(v.begins, 10), setValue(v.text, v.begins), ""))
		}
		return errors.Join(err, addRow(ctx, entities, entity, ahead))
	}
	if only == nil {
		err = c.store.EachTiles(ctx, c.view.Name, g.Number, take)
	} else {
		keys := make([]string, len(only))
		for i, entity := range only {
			keys[i] = prefix + entity
		}
		err = c.store.Tiles(ctx, keys, take)
	}
	if err != nil {
		return err
	}
	return errors.Join(parts.flush(ctx), entities.flush(ctx))
}

// addRow adds a row of texts, of which "" is null.
func addRow(ctx context.Context, t *textRows, values ...string) error {
	for i, v := range values {
		if v != "" {
			t.set(i, v)
		}
	}
	return t.add(ctx)
}

func (c *tileCheck) tileName(level int, begins int64) string {
	hop := time.Duration(c.levels[level].hop) * time.Microsecond
	return fmt.Sprintf("the tile of %s at %s", feature.FormatDuration(hop), time.UnixMicro(begins).UTC().Format(time.RFC3339))
}

func (c *tileCheck) setName(set int) string {
	return "the values of " + c.view.Aggregates[c.sets[set].aggregate].Name
}

func setValue(text string, begins int64) string {
	return fmt.Sprintf("%q until %s", text, time.UnixMicro(begins).UTC().Format(time.RFC3339))
}

// needed is the condition of what Redis holds that a window still needs.
func (c *tileCheck) needed() sql.Fragment {
	condition := sql.Fragment("CASE level")
	for l, level := range c.levels {
		condition += sql.Fragment(fmt.Sprintf(" WHEN 'tile %d' THEN begins::BIGINT >= %d", l, c.from(level.window, level.hop)))
	}
	for s, set := range c.sets {
		condition += sql.Fragment(fmt.Sprintf(" WHEN 'set %d' THEN begins::BIGINT >= %d", s, c.from(set.window, set.tail)))
	}
	return condition + " ELSE true END"
}

// judge takes what differs: findings, and the entities that are not settled.
func (c *tileCheck) judge(ctx context.Context) ([]string, error) {
	rows, err := c.db.Query(ctx, sql.Render(sql.Statement("verify_tiles"), sql.Args{
		"needed": c.needed(), "most": sql.Fragment(strconv.Itoa(feature.DistinctMax)),
	}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var unsettled []string
	for rows.Next() {
		var entity string
		var wanted, there, open bool
		var kind, part, want, got *string
		if err := rows.Scan(&entity, &wanted, &there, &open, &kind, &part, &want, &got); err != nil {
			return nil, fmt.Errorf("read differences: %w", err)
		}
		if open {
			if n := len(unsettled); n == 0 || unsettled[n-1] != entity {
				unsettled = append(unsettled, entity)
			}
			continue
		}
		f := Finding{Key: entityText(entity)}
		switch {
		case !there:
			f.Kind, f.Text = MissingEntity, "Redis lacks it, and it has events in the view's windows"
		case !wanted:
			f.Kind, f.Text = ExtraEntity, "the lake knows no event of it"
		default:
			f.Kind = map[string]Kind{"guard": WrongGuard, "tile": WrongTile, "set": WrongTile}[*kind]
			if f.Kind == "" {
				f.Kind = WrongValue
			}
			name := *part
			if *kind == "guard" {
				name = "its guard of " + name
			}
			f.Text = fmt.Sprintf("%s: its events make %s, Redis has %s", name, brief(want), brief(got))
		}
		c.report.add(f)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read differences: %w", err)
	}
	return unsettled, nil
}

// briefMax is how much of a value a finding shows.
const briefMax = 200

func brief(text *string) string {
	switch {
	case text == nil:
		return "nothing"
	case len(*text) > briefMax:
		return strings.ToValidUTF8((*text)[:briefMax], "") + "…"
	}
	return *text
}

// otherRows reports whether the base of a generation lacks rows of files and redrives that the log has.
func (c *tileCheck) otherRows(ctx context.Context, g online.Generation) error {
	var rows int64
	err := c.db.QueryRow(ctx, "SELECT count(*) FROM verify_log WHERE topic LIKE 'file:%' OR topic LIKE 'redrive:%' OR job_id LIKE 'redrive-%'", nil, &rows)
	c.lacks = rows != g.Others
	return err
}
