package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// Bounds of what is tried again.
const (
	comparisonsMax = 1 + 3 // of an entity: at first, and after three commits
	switchesMax    = 3     // of generations that may come in the way of one comparison
)

// errSwitched: another generation became the one that is read while the values of the first were read.
var errSwitched = errors.New("the generation was replaced while it was read")

// onlineCheck is one run of [Online].
type onlineCheck struct {
	project *feature.Project
	view    *feature.View
	entity  *feature.Entity
	def     *feature.Stream
	lake    *lake.Lake
	store   *online.Store
	db      *sql.DB
	options Options
	report  *OnlineReport
	joins   []string // the entity's join keys in the order of Redis' keys
}

// Online compares what Redis holds of a view with what the log says is served. Of a windowed view see tileCheck, and
// historyCheck. Of an attribute view it compares of every entity the order _v
// of its last change, its tombstone, and every feature's value as text; of a view over a patch stream
// also the guard of each column that it reads, and the last delete.
//
// Redis and the lake are written side by side, so at any instant each may have changes that the other lacks. An entity
// whose guard is at or past the offsets where the lake stands, or whose last change in the lake is at or past the mark
// up to which Redis is written, is not settled: it is compared again after the next commit, for which Options.Wait
// waits, three times at most. Everything else that differs is a finding at once: below offset and mark each side has
// every change, and both must have chosen the same one.
//
// It is an error that wraps [online.ErrUnavailable] where no generation of the view is ready.
func Online(ctx context.Context, l *lake.Lake, s *online.Store, p *feature.Project, view *feature.View, o Options) (*OnlineReport, error) {
	c := &onlineCheck{
		project: p, view: view, entity: p.Entity(view.Entity), def: p.Stream(view.Stream), lake: l, store: s, options: o,
		report: &OnlineReport{View: view.Name},
	}
	if c.options.Now == nil {
		c.options.Now = time.Now
	}
	if err := c.run(ctx); err != nil {
		return nil, fmt.Errorf("verify feature view %s online: %w", view.Name, err)
	}
	return c.report, nil
}

func (c *onlineCheck) run(ctx context.Context) error {
	if why := c.project.Unserved(c.view); why != "" {
		return errors.New(why)
	}
	c.joins = slices.Sorted(slices.Values(c.entity.JoinKeys))
	var err error
	c.db, err = sql.Open(ctx, sql.Options{Files: true, MemoryBytes: c.options.MemoryBytes, TempDir: c.options.TempDir})
	if err != nil {
		return err
	}
	defer c.db.Close()
	var of comparison = c
	switch {
	case c.project.OverHistory(c.view):
		of = &historyCheck{c}
	case c.view.Windowed():
		of = newTileCheck(c)
	}
	unsettled, err := c.compare(ctx, of, nil)
	for err == nil && len(unsettled) > 0 && c.options.Wait != nil && c.report.AsOf == nil && c.report.Compared < comparisonsMax {
		if err = c.options.Wait(ctx); err != nil {
			return fmt.Errorf("wait for the next commit: %w", err)
		}
		unsettled, err = c.compare(ctx, of, unsettled)
	}
	if err != nil {
		return err
	}
	c.report.NotSettled = int64(len(unsettled))
	return nil
}

// comparison is how the values of a view are compared: attributes by onlineCheck itself, windows by tileCheck, those over history by
// historyCheck.
type comparison interface {
	// loadThere fills tables with what Redis holds of a generation, of all entities or only some, given as they stand in braces in
	// Redis' keys; the lake stands at the offsets.
	loadThere(ctx context.Context, g online.Generation, only []string, offsets lake.Offsets) error
	// loadWanted fills tables with what the log makes of them at the report's instant.
	loadWanted(ctx context.Context, reading *lake.Reading, g online.Generation, only []string, offsets lake.Offsets) error
	// judge takes what differs: findings, and the entities that are not settled.
	judge(ctx context.Context) ([]string, error)
}

// compare compares all entities, or only some, given as they stand in braces in Redis' keys. It gives those that are not
// settled.
func (c *onlineCheck) compare(ctx context.Context, of comparison, only []string) ([]string, error) {
	c.report.Compared++
	for switches := 0; ; switches++ {
		err := c.load(ctx, of, only)
		if errors.Is(err, errSwitched) && switches < switchesMax {
			continue
		}
		if err != nil {
			return nil, err
		}
		return of.judge(ctx)
	}
}

// sides is what the two sides say of how far they are.
type sides struct {
	newer   map[string]bool             // entities, as they stand in Redis' keys, of which what was built as of an instant lacks a change
	offsets lake.Offsets                // where the lake stands
	marks   map[feature.Partition]int64 // up to where Redis is written
	written map[source]int64            // the same, by what orders say of partitions
}

// load fills the tables that are compared.
func (c *onlineCheck) load(ctx context.Context, of comparison, only []string) error {
	// The marks come before the values: what is below them was written when the values were read.
	generation, err := c.generation(ctx)
	if err != nil {
		return err
	}
	reading, err := c.lake.Read(ctx, c.def)
	if err != nil {
		return err
	}
	if generation.AsOf != nil {
		reading = reading.IngestedBy(generation.AsOf.UnixMicro())
	}
	offsets, err := reading.Offsets()
	if err != nil {
		return err
	}
	if err := of.loadThere(ctx, generation, only, offsets); err != nil {
		return err
	}
	again, err := c.generation(ctx)
	if err != nil {
		return err
	}
	if again.Number != generation.Number {
		return errSwitched
	}
	// What was not there must have expired by now.
	c.report.Generation, c.report.At, c.report.AsOf = generation.Number, c.options.Now().UTC(), generation.AsOf
	if generation.AsOf != nil {
		c.report.At = *generation.AsOf
	}
	return of.loadWanted(ctx, reading, generation, only, offsets)
}

// generation is the one that is read.
func (c *onlineCheck) generation(ctx context.Context) (online.Generation, error) {
	all, err := c.store.Generations(ctx, c.view.Name)
	if err != nil {
		return online.Generation{}, err
	}
	g, ok := c.store.Usable(all, c.project.ViewDefinition(c.view).Hash)
	if !ok {
		return g, fmt.Errorf("%w: run `loam materialize --view %s`, or the worker", online.ErrUnavailable, c.view.Name)
	}
	return g, nil
}

// Columns of the tables that are compared, all text; the features follow, then the guards of a patch stream's columns.
const (
	colEntity = iota
	colOrder
	colAt // in Feast's layout alone: elsewhere the order tells the event time
	colDeleted
	colOther    // names of fields that no hash of the view may have
	colBeyond   // of a hash: a guard of it is one that the lake has not come to
	colPosition // of an expected entity: where its last change stands
	colBehind   // of an expected entity: Redis is not written up to its last change
	colOld      // of an expected entity: its time to live is over, so its hash may be gone
	colNewer    // of an expected entity: what was built as of an instant lacks a change of it
	colFeatures
)

// tableColumns are the names of the columns of the tables that are compared.
func (c *onlineCheck) tableColumns() []string {
	columns := []string{"loam_entity", "loam_order", "loam_at", "loam_deleted", "loam_other", "loam_beyond", "loam_position", "loam_behind", "loam_old", "loam_newer"}
	for i := range c.view.FeatureNames() {
		columns = append(columns, featureColumn(i))
	}
	for i := range c.guarded() {
		columns = append(columns, guardColumn(i))
	}
	return columns
}

func featureColumn(i int) string { return fmt.Sprintf("loam_feature_%d", i) }

// keyPrefix begins the keys of all entities of a generation: docs/redis.md.
func (c *onlineCheck) keyPrefix(generation int64) string {
	return fmt.Sprintf("%s:%s:%d:", c.project.Name, c.view.Name, generation)
}

// loadThere fills verify_hashes with what Redis holds.
func (c *onlineCheck) loadThere(ctx context.Context, g online.Generation, only []string, offsets lake.Offsets) error {
	table, err := newTextRows(ctx, c.db, "verify_hashes", c.tableColumns())
	if err != nil {
		return err
	}
	defer table.close()
	prefix := c.keyPrefix(g.Number)
	next := nextOffsets(offsets)
	if c.feast() {
		if err := c.loadFeast(ctx, table, g.Number, only, next); err != nil {
			return err
		}
		return table.flush(ctx)
	}
	fields := map[string]int{online.FieldOrder: colOrder, online.FieldDeleted: colDeleted}
	for i := range c.view.FeatureNames() {
		fields[online.FeatureField(i)] = colFeatures + i
	}
	for i, column := range c.guarded() {
		fields[online.FieldGuard+column] = c.colGuards() + i
	}
	take := func(h online.Hash) error {
		table.set(colEntity, strings.TrimPrefix(h.Key, prefix))
		var other []string
		ahead := false
		for name, value := range h.Fields {
			ahead = ahead || g.AsOf == nil && c.guards(name) && beyond(value, next)
			if column, known := fields[name]; known {
				table.set(column, value)
			} else {
				other = append(other, name)
			}
		}
		if len(other) > 0 {
			slices.Sort(other)
			table.set(colOther, strings.Join(other, ","))
		}
		if ahead {
			table.set(colBeyond, "1")
		}
		return table.add(ctx)
	}
	if only == nil {
		err = c.store.EachHash(ctx, c.view.Name, g.Number, take)
	} else {
		keys := make([]string, len(only))
		for i, entity := range only {
			keys[i] = prefix + entity
		}
		err = c.store.Hashes(ctx, keys, take)
	}
	if err != nil {
		return err
	}
	return table.flush(ctx)
}

// source is a partition as an order names it.
type source struct {
	live      bool
	topic     uint32
	partition int32
}

// nextOffsets gives where the lake stands by what orders say of partitions.
func nextOffsets(offsets lake.Offsets) map[source]int64 {
	next := map[source]int64{}
	for p := range allOf(offsets) {
		at, _ := offsets.Of(p)
		next[sourceOf(p)] = at.Next
	}
	return next
}

func sourceOf(p feature.Partition) source {
	return source{feature.Live(p.Topic), feature.TopicHash(p.Topic), p.Index}
}

// beyond reports whether a guard is one that the lake has not come to. What is no order is not: that is a finding.
func beyond(guard string, next map[source]int64) bool {
	o, err := feature.ParseOrder(guard)
	return err == nil && o.Offset >= next[source{o.Live, o.TopicHash, o.Partition}]
}

// judge takes what differs: findings, and the entities that are not settled.
func (c *onlineCheck) judge(ctx context.Context) ([]string, error) {
	rows, err := c.db.Query(ctx, sql.Render(sql.Statement("verify_online"), sql.Args{"differing": c.differing()}))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var unsettled []string
	for rows.Next() {
		var d onlineDifference
		if err := rows.Scan(&d.entity, &d.wanted, &d.there, &d.order, &d.guard, &d.position, &d.unsettled, &d.fields); err != nil {
			return nil, fmt.Errorf("read differences: %w", err)
		}
		if d.unsettled {
			unsettled = append(unsettled, d.entity)
		} else {
			c.report.add(d.finding())
		}
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read differences: %w", err)
	}
	return unsettled, nil
}

// differing is the list of the names of fields that differ between w, what is expected, and h, the hash.
func (c *onlineCheck) differing() sql.Fragment {
	items := []sql.Fragment{"h.loam_other"}
	compare := func(name string, wanted, there sql.Fragment) {
		items = append(items, "CASE WHEN "+wanted+" IS DISTINCT FROM "+there+" THEN "+sql.Literal(name)+" END")
	}
	compare(online.FieldOrder, "w.loam_order", "h.loam_order")
	if c.feast() {
		compare(feature.FeastTimePrefix+c.view.Name, "w.loam_at", "h.loam_at")
	}
	columns := c.tableColumns()
	bounded := func(name string, column, guard int) { // by the age that the guard tells
		compare(name, c.fresh("w.", columns[column], columns[guard]), c.fresh("h.", columns[column], columns[guard]))
	}
	bounded(online.FieldDeleted, colDeleted, colDeleted)
	for i, column := range c.guarded() {
		bounded(online.FieldGuard+column, c.colGuards()+i, c.colGuards()+i)
	}
	for i, name := range c.view.FeatureNames() {
		guard := colOrder
		if c.patches() {
			guard = c.colGuards() + c.guardOf(c.view.Features[i])
		}
		bounded(name, colFeatures+i, guard)
	}
	return "[" + sql.Join(", ", items) + "]"
}

// onlineDifference is a row of verify_online.
type onlineDifference struct {
	entity        string
	wanted, there bool
	order, guard  *string
	position      *string
	unsettled     bool
	fields        string
}

func (d onlineDifference) finding() Finding {
	f := Finding{Key: entityText(d.entity)}
	text := func(s *string) string {
		if s == nil {
			return "missing"
		}
		return *s
	}
	switch {
	case !d.there:
		f.Kind, f.Text = MissingEntity, fmt.Sprintf("Redis lacks it; its last change is at %s", text(d.position))
	case !d.wanted:
		f.Kind, f.Text = ExtraEntity, fmt.Sprintf("the lake doesn't know it; its guard in Redis is %s", text(d.guard))
	case d.order == nil || d.guard == nil || *d.order != *d.guard:
		f.Kind = WrongGuard
		f.Text = fmt.Sprintf("its guard is %s, and that of its last change, at %s, is %s; it differs in %s",
			text(d.guard), text(d.position), text(d.order), strings.ReplaceAll(d.fields, ",", ", "))
	default:
		f.Kind = WrongValue
		if strings.Contains(d.fields, online.FieldGuard) {
			f.Kind = WrongGuard // of a column
		}
		f.Text = fmt.Sprintf("it differs in %s; its last change is at %s", strings.ReplaceAll(d.fields, ",", ", "), text(d.position))
	}
	return f
}
