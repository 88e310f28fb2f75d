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
			c.Cost = addCost(i.kind)
		case !is:
			c.Action = RemoveAction
			c.Cost = removeCost(i.kind)
		default:
			c.Action = ChangeAction
			c.describe(b.Text, a.Text)
		}
		changes = append(changes, c)
	}
	return changes
}

func addCost(kind DefinitionKind) []string {
	switch kind {
	case StreamDefinition:
		return []string{"creates its tables, empty"}
	case ViewDefinition:
		return []string{"is served online once a generation of it has been built: `loam materialize`, or the worker's next start"}
	default:
		return nil
	}
}

func removeCost(kind DefinitionKind) []string {
	switch kind {
	case StreamDefinition:
		return []string{"its topic is read no more; its tables stay"}
	case ViewDefinition:
		return []string{"is served no more"}
	default:
		return nil
	}
}

// describe fills in what differs between two definitions of the same thing and what that costs.
func (c *Change) describe(before, after string) {
	var b, a map[string]any
	if json.Unmarshal([]byte(before), &b) != nil || json.Unmarshal([]byte(after), &a) != nil {
		c.Detail = []string{"the text differs"}
		return
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
	switch c.Kind {
	case StreamDefinition:
		c.describeStream(b, a)
	case ViewDefinition:
		c.Cost = append(c.Cost, "its online values are built anew; reads of the old ones go on until then")
	}
}

// describeStream tells compatible changes of a stream from those that its tables can't follow.
func (c *Change) describeStream(b, a map[string]any) {
	block := func(why string) {
		if c.Blocked == "" {
			c.Blocked = why
		}
	}
	for _, key := range []string{"kind", "format", "key", "payload"} {
		if !reflect.DeepEqual(b[key], a[key]) {
			block(fmt.Sprintf("the %s of a stream with tables can't change: declare a new stream under another name", key))
		}
	}
	before, after := columnsByName(b), columnsByName(a)
	for _, name := range slices.Sorted(maps.Keys(union(before, after))) {
		was, is := before[name], after[name]
		switch {
		case was == nil:
			c.Detail = append(c.Detail, fmt.Sprintf("column %s %s added", name, is["type"]))
			c.Cost = append(c.Cost, fmt.Sprintf("old rows read null in column %s", name))
		case is == nil:
			c.Detail = append(c.Detail, fmt.Sprintf("column %s removed", name))
			block(fmt.Sprintf("column %s has history: keep it declared, and leave it out of views that should not see it", name))
		case was["type"] != is["type"]:
			c.Detail = append(c.Detail, fmt.Sprintf("column %s: %s becomes %s", name, was["type"], is["type"]))
			if !widens(fmt.Sprint(was["type"]), fmt.Sprint(is["type"])) {
				block(fmt.Sprintf("column %s can't become %s without rewriting history: add a column under another name with path: %s", name, is["type"], name))
			}
		case !reflect.DeepEqual(was, is):
			c.Detail = append(c.Detail, fmt.Sprintf("column %s: %s becomes %s", name, compact(was), compact(is)))
		}
	}
	for name := range union(before, after) {
		if before[name] != nil && after[name] != nil && contains(b["track"], name) != contains(a["track"], name) {
			block("what a stream tracks can't change yet once it has tables: declare a new stream under another name")
		}
	}
}

func contains(list any, name string) bool {
	items, _ := list.([]any)
	return slices.Contains(items, any(name))
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

// widens reports whether every value of the one type is one of the other, and Iceberg lets the column follow.
func widens(from, to string) bool {
	f, err1 := ParseType(from)
	t, err2 := ParseType(to)
	return err1 == nil && err2 == nil && f.Kind == Decimal && t.Kind == Decimal && !f.List && !t.List &&
		f.Scale == t.Scale && f.Precision <= t.Precision
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
