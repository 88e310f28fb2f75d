package online

import (
	"context"
	"encoding/hex"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/decimal128"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
)

func exampleProject(t *testing.T) *feature.Project {
	return loadFiles(t, `stream: engagement
extend: true
columns:
  - {name: amount, type: int64}
`, `entities: [{name: contact, join_keys: [contact_id]}]
views:
  - name: activity
    entity: contact
    stream: engagement
    aggregates:
      - {name: events, fn: count, windows: [1d]}
      - {name: spent, fn: sum, column: amount, windows: [1d, 30d]}
      - {name: last_type, fn: last, column: type, windows: [1d]}
      - {name: channels, fn: distinct, column: channel, windows: [1d, 30d]}
`)
}

// example is the entity that docs/redis.md shows: of the base a call, and written live a chat an hour later and an email.
func exampleEntity(p *tilePlan) *entityTiles {
	e := p.empty()
	at := func(hour, minute int) int64 { return time.Date(2026, 11, 1, hour, minute, 0, 0, time.UTC).UnixMicro() }
	rows := func(amount int64, kind, channel string) *tileRows {
		r := &tileRows{}
		for _, c := range p.columns {
			b := array.NewStringBuilder(memory.DefaultAllocator)
			switch c {
			case "amount":
				n := array.NewInt64Builder(memory.DefaultAllocator)
				n.Append(amount)
				r.columns = append(r.columns, n.NewArray())
				continue
			case "type":
				b.Append(kind)
			case "channel":
				b.Append(channel)
			}
			r.columns = append(r.columns, b.NewArray())
		}
		return r
	}
	order := func(at int64, offset int64) feature.Order {
		return feature.Order{EventTime: at, Live: true, TopicHash: feature.TopicHash("engagement.v1"), Partition: 3, Offset: offset}
	}
	now := at(23, 0)
	for _, of := range []struct {
		rows  *tileRows
		order feature.Order
		live  bool
	}{
		{rows(500, "call", "phone"), order(at(10, 30), 499_900), false},
		{rows(-1, "chat", "web"), order(at(12, 0), 500_001), true},
		{rows(128, "email", "web"), order(at(12, 15), 500_003), true},
	} {
		if !of.live {
			p.add(e, of.rows, 0, &of.order, now)
			e.base = true
			continue
		}
		p.take(e, []tileEvent{{of.rows, 0, of.order}}, map[guardKey]int64{{of.order.TopicHash, 3}: 500_000}, now)
	}
	return e
}

func TestTileBytes(t *testing.T) {
	p := exampleProject(t)
	plan := newTilePlan(p.View("activity"), p.Stream("engagement"), p.Entity("contact"))
	e := exampleEntity(plan)
	text := hex.EncodeToString(plan.encode(e))
	t.Log(text, plan.expiry(e))
	doc, err := os.ReadFile("../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), text) {
		t.Errorf("docs/redis.md doesn't show %s", text)
	}
	again, err := plan.decode(string(plan.encode(e)))
	if err != nil || hex.EncodeToString(plan.encode(again)) != text {
		t.Errorf("read back and written: %v", err)
	}
	for i := range text[2:] { // whatever is cut off is no entity
		if raw, err := hex.DecodeString(text[:len(text)-2-i&^1]); err == nil && len(raw) > 0 {
			if _, err := plan.decode(string(raw)); err == nil {
				t.Fatalf("%x is taken for an entity", raw)
			}
		}
	}
}

// Values come back as they were, and compare as DuckDB compares them.
func TestTileValues(t *testing.T) {
	double := array.NewFloat64Builder(memory.DefaultAllocator)
	double.AppendValues([]float64{math.Inf(-1), -1, math.Copysign(0, -1), 0, 5e-324, math.Inf(1), math.NaN()}, nil)
	integer := array.NewInt64Builder(memory.DefaultAllocator)
	integer.AppendValues([]int64{math.MinInt64, -129, -128, -1, 0, 1, 127, 128, 255, 256, math.MaxInt64}, nil)
	decimal := array.NewDecimal128Builder(memory.DefaultAllocator, &arrow.Decimal128Type{Precision: 38, Scale: 4})
	for _, text := range []string{"-9999999999999999999999999999999999.9999", "-0.0001", "0", "0.0001", "9999999999999999999999999999999999.9999"} {
		n, err := decimal128.FromString(text, 38, 4)
		if err != nil {
			t.Fatal(err)
		}
		decimal.Append(n)
	}
	for _, c := range []struct {
		typ    feature.Type
		column arrow.Array
	}{
		{feature.Type{Kind: feature.Double}, double.NewArray()}, {feature.Type{Kind: feature.Int64}, integer.NewArray()},
		{feature.Type{Kind: feature.Decimal, Precision: 38, Scale: 4}, decimal.NewArray()},
	} {
		before := ""
		for i := range c.column.Len() {
			value, _ := cell(c.column, i)
			if got, want := cellText(c.typ, value), string(appendValue(nil, c.column, i)); got != want {
				t.Errorf("%s comes back as %s", want, got)
			}
			if !checkCell(c.typ, value) || i > 0 && compareCells(c.typ, before, value) >= 0 || compareCells(c.typ, value, value) != 0 {
				t.Errorf("%s isn't above the one before it", cellText(c.typ, value))
			}
			before = value
		}
	}
	if distinctCell(feature.Type{Kind: feature.Double}, doubleBytes(math.Copysign(0, -1))) != doubleBytes(0) {
		t.Error("the zeros are two values")
	}
}

// A window with more values than may be counted is null, and narrower ones with fewer are exact, however many were dropped.
func TestTileDistinctMax(t *testing.T) {
	p := exampleProject(t)
	plan := newTilePlan(p.View("activity"), p.Stream("engagement"), p.Entity("contact"))
	now := time.Now().UnixMicro()
	hour := time.Hour.Microseconds()
	e := plan.empty()
	see := func(from, to int, ago int64) {
		for i := from; i < to; i++ {
			e.sets[0].see(wholeBytes(int64(i)), floorDiv(now-ago*hour, hour))
		}
		plan.trim(e, now)
	}
	read := func(window time.Duration) string {
		text, null := plan.value(e, 3, window, now)
		if null {
			return "null"
		}
		return text
	}
	day, month := 24*time.Hour, 30*24*time.Hour
	see(0, 6_000, 100)
	see(10_000, 14_000, 3)
	if read(month) != "10000" || read(day) != "4000" {
		t.Errorf("%s, %s", read(month), read(day))
	}
	see(20_000, 29_000, 200) // older than all, and too many
	if read(month) != "null" || read(day) != "4000" || len(e.sets[0]) != feature.DistinctMax+1 {
		t.Errorf("%s, %s of %d", read(month), read(day), len(e.sets[0]))
	}
	see(30_000, 36_000, 2)
	if read(month) != "null" || read(day) != "10000" {
		t.Errorf("%s, %s", read(month), read(day))
	}
	see(40_000, 40_001, 1)
	if read(day) != "null" || len(e.sets[0]) != feature.DistinctMax+1 {
		t.Errorf("%s of %d", read(day), len(e.sets[0]))
	}
	back, err := plan.decode(string(plan.encode(e)))
	if err != nil || len(back.sets[0]) != len(e.sets[0]) {
		t.Errorf("read back: %v", err)
	}
	if _, err := NewViewWriter(context.Background(), nil, p, p.View("activity")); err != nil {
		t.Error(err)
	}
}
