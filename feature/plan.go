package feature

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Action says what applying a definition does.
type Action string

// Actions of a plan.
const (
	AddAction    Action = "add"
	ChangeAction Action = "change"
	RemoveAction Action = "remove"
)

// Change is one difference between the applied definitions and the project folder.
type Change struct {
	Kind   DefinitionKind `json:"kind"`
	Name   string         `json:"name"`
	Action Action         `json:"action"`
	Detail []string       `json:"detail,omitempty"` // what differs, a line each
	Cost   []string       `json:"cost,omitempty"`   // what applying it does, a line each
	// Rebuilds says that applying it derives the history of a stream anew. Plan can't tell: the tables do.
	Rebuilds bool `json:"rebuilds,omitempty"`
	// Blocked says why the change can't be applied and what to do instead; empty where it can.
	Blocked string `json:"blocked,omitempty"`
}

// Plan holds the definitions wanted against those applied. Both may be in any order; the changes come by kind in the
// order of application and by name.
func Plan(applied, wanted []Definition) []Change {
	type id struct {
		kind DefinitionKind
		name string
	}
	index := func(ds []Definition) map[id]Definition {
		m := make(map[id]Definition, len(ds))
		for _, d := range ds {
			m[id{d.Kind, d.Name}] = d
		}
		return m
	}
	before, after := index(applied), index(wanted)
	ids := slices.Collect(maps.Keys(before))
	for i := range after {
		if _, both := before[i]; !both {
			ids = append(ids, i)
		}
	}
	rank := []DefinitionKind{StreamDefinition, EntityDefinition, ViewDefinition, ServiceDefinition}
	slices.SortFunc(ids, func(a, b id) int {
		if a.kind != b.kind {
			return slices.Index(rank, a.kind) - slices.Index(rank, b.kind)
		}
		return strings.Compare(a.name, b.name)
	})
	var changes []Change
	for _, i := range ids {
		b, was := before[i]
		a, is := after[i]
		c := Change{Kind: i.kind, Name: i.name}
		switch {
		case was && is && b.Hash == a.Hash:
			continue
		case !was:
			c.Action = AddAction
			c.Cost = addCost(a)
		case !is:
			c.Action = RemoveAction
			c.Cost = removeCost(b)
		default:
			c.Action = ChangeAction
			c.describe(b.Text, a.Text)
			if a.served() {
				c.Cost = append(c.Cost, "its online values are built anew; reads of the old ones go on until then")
			}
		}
		changes = append(changes, c)
	}
	return changes
}

func addCost(d Definition) []string {
	switch {
	case d.Kind == StreamDefinition:
		return []string{"creates its tables, or goes on with those that are there"}
	case d.ofHistory():
		return []string{"is served online as of the last `loam materialize`: windows over history are not streamed"}
	case d.served():
		return []string{"is served online once a generation of it has been built: `loam materialize`, or the worker's next start"}
	default:
		return nil
	}
}

func removeCost(d Definition) []string {
	switch {
	case d.Kind == StreamDefinition:
		return []string{"its topic is read no more; its tables stay"}
	case d.served():
		return []string{"is served no more"}
	default:
		return nil
	}
}

// served reports whether the definition is of a view whose values are kept online: one on demand has none to keep.
func (d Definition) served() bool {
	return d.Kind == ViewDefinition && d.view().OnDemand == nil
}

// ofHistory reports whether the definition is of a view windowed over history.
func (d Definition) ofHistory() bool {
	return d.Kind == ViewDefinition && len(d.view().Aggregates) > 0 && d.view().Source.Kind == StateStream
}

// viewText is what tells the kinds of views apart in their definitions.
type viewText struct {
	OnDemand   any   `json:"on_demand"`
	Aggregates []any `json:"aggregates"`
	Source     struct {
		Kind StreamKind `json:"kind"`
	} `json:"source"`
}

func (d Definition) view() viewText {
	var v viewText
	if err := json.Unmarshal([]byte(d.Text), &v); err != nil {
		return viewText{} // a text of another loam: taken as one of attributes
	}
	return v
}

// describe fills in what differs between two definitions of the same thing and what that costs.
func (c *Change) describe(before, after string) {
	var b, a map[string]any
	if json.Unmarshal([]byte(before), &b) != nil || json.Unmarshal([]byte(after), &a) != nil {
		c.Detail = []string{"the text differs"}
		return
	}
	if c.Kind == StreamDefinition {
		b = c.renamed(b, a)
	}
	for _, key := range slices.Sorted(maps.Keys(union(b, a))) {
		if key == "columns" || reflect.DeepEqual(b[key], a[key]) {
			continue
		}
		if b[key] == nil {
			c.Detail = append(c.Detail, fmt.Sprintf("%s: %s added", key, compact(a[key])))
		} else if a[key] == nil {
			c.Detail = append(c.Detail, fmt.Sprintf("%s: %s removed", key, compact(b[key])))
		} else {
			c.Detail = append(c.Detail, fmt.Sprintf("%s: %s becomes %s", key, compact(b[key]), compact(a[key])))
		}
	}
	if c.Kind == StreamDefinition {
		c.describeStream(b, a)
	}
}

// renamed gives the definition before with the columns' names after, wherever they stand in it.
func (c *Change) renamed(b, a map[string]any) map[string]any {
	before, after := columnsByName(b), columnsByName(a)
	names := map[any]any{}
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if from, ok := after[name]["renamed_from"].(string); ok && before[from] != nil && before[name] == nil {
			names[from] = name
			c.Detail = append(c.Detail, fmt.Sprintf("column %s renamed to %s, with all of its rows", from, name))
		}
	}
	if len(names) == 0 {
		return b
	}
	b = maps.Clone(b)
	columns := []any{}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		column := before[name]
		if to, ok := names[name]; ok {
			column = maps.Clone(column)
			column["name"], column["renamed_from"] = to, name
		}
		columns = append(columns, column)
	}
	b["columns"] = columns
	for _, key := range []string{"key", "track", "cluster_by", "event_time", "sequence", "processed_time", "id"} {
		if list, ok := b[key].([]any); ok {
			list = slices.Clone(list)
			for i, name := range list {
				if to, ok := names[name]; ok {
					list[i] = to
				}
			}
			b[key] = list
		} else if to, ok := names[b[key]]; ok {
			b[key] = to
		}
	}
	return b
}

// describeStream tells compatible changes of a stream from those that its tables can't follow.
func (c *Change) describeStream(b, a map[string]any) {
	block := func(why string) {
		if c.Blocked == "" {
			c.Blocked = why
		}
	}
	for _, key := range []string{"kind", "format", "key", "payload", "cluster_by"} {
		if !reflect.DeepEqual(b[key], a[key]) {
			block(fmt.Sprintf("the %s of a stream with tables can't change: declare a new stream under another name", key))
		}
	}
	if !reflect.DeepEqual(b["delete_when"], a["delete_when"]) {
		c.Cost = append(c.Cost, "decides on what is taken from then on; what was taken before stays as it is")
	}
	if !reflect.DeepEqual(b["encoding"], a["encoding"]) {
		c.Cost = append(c.Cost, "its topic's values are read so from then on; what the topic holds already, too, where it hasn't been taken")
	}
	switch {
	case reflect.DeepEqual(b["load"], a["load"]):
	case a["load"] == string(FullLoad):
		c.Cost = append(c.Cost, "its topic is read no more, and entities that the next file lacks are deleted")
	default:
		c.Cost = append(c.Cost, "its topic is read, and what a file lacks stays")
	}
	before, after := columnsByName(b), columnsByName(a)
	for _, name := range slices.Sorted(maps.Keys(union(before, after))) {
		was, is := before[name], after[name]
		switch {
		case was == nil:
			c.Detail = append(c.Detail, fmt.Sprintf("column %s %s added", name, is["type"]))
			c.Cost = append(c.Cost, fmt.Sprintf("old rows read null in column %s, unless it was declared before", name))
		case is == nil:
			c.Detail = append(c.Detail, fmt.Sprintf("column %s removed", name))
			c.Cost = append(c.Cost, fmt.Sprintf("column %s stays in the tables with what it holds; later rows are null in it", name))
		case was["type"] != is["type"]:
			c.Detail = append(c.Detail, fmt.Sprintf("column %s: %s becomes %s", name, was["type"], is["type"]))
			if !widens(fmt.Sprint(was["type"]), fmt.Sprint(is["type"])) {
				block(fmt.Sprintf("column %s can't become %s without rewriting history: add a column under another name with path: %s", name, is["type"], name))
			}
		case !reflect.DeepEqual(was, is):
			c.Detail = append(c.Detail, fmt.Sprintf("column %s: %s becomes %s", name, compact(was), compact(is)))
		}
	}
}

func columnsByName(definition map[string]any) map[string]map[string]any {
	byName := map[string]map[string]any{}
	list, _ := definition["columns"].([]any)
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			byName[fmt.Sprint(m["name"])] = m
		}
	}
	return byName
}

func widens(from, to string) bool {
	f, err1 := ParseType(from)
	t, err2 := ParseType(to)
	return err1 == nil && err2 == nil && Widens(f, t)
}

func union[V any](a, b map[string]V) map[string]bool {
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	return keys
}

func compact(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(text)
}
