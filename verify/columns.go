package verify

import (
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// keySeparator joins the parts of a key in findings.
const keySeparator = "|"

// keyText is the expression of a stream's key as text.
func keyText(prefix string, def *feature.Stream) sql.Fragment {
	parts := make([]sql.Fragment, len(def.Key))
	for i, k := range def.Key {
		parts[i] = "coalesce(" + sql.Fragment(prefix) + sql.Ident(k) + "::VARCHAR, 'null')"
	}
	return sql.Join(" || "+string(sql.Literal(keySeparator))+" || ", parts)
}

// sameKey is the condition that two rows have the same key.
func sameKey(def *feature.Stream, a, b string) sql.Fragment {
	parts := make([]sql.Fragment, len(def.Key))
	for i, k := range def.Key {
		parts[i] = sql.Fragment(a) + sql.Ident(k) + " IS NOT DISTINCT FROM " + sql.Fragment(b) + sql.Ident(k)
	}
	return sql.Join(" AND ", parts)
}

// originColumns are the columns that a version has of the change that opened it.
var originColumns = []string{
	feature.ColEventID, feature.ColSequence, feature.ColTopic, feature.ColPartition, feature.ColOffset,
	feature.ColRecordedAt, feature.ColIngestedAt,
}

// changeColumns are the columns that are needed of a change.
func changeColumns(def *feature.Stream) []string {
	list := append(feature.ColumnNames(def.Columns), feature.ColEventTime)
	list = append(list, originColumns...)
	if def.Payload == feature.PatchPayload {
		list = append(list, feature.ColPresent)
	}
	return list
}

// logColumns are the columns that are read of the log to derive a history.
func logColumns(def *feature.Stream) []string { return append(changeColumns(def), feature.ColOp) }

// versionColumns are the columns of a version, from o, the settled change that opens its run, and e, the one that ends
// the run.
func versionColumns(def *feature.Stream) sql.Fragment {
	var items []sql.Fragment
	for _, c := range def.Columns {
		from := sql.Fragment("o.")
		if !def.Tracked(c.Name) && !slices.Contains(def.Key, c.Name) {
			from = "e."
		}
		items = append(items, from+sql.Ident(c.Name))
	}
	items = append(items, "o.event_time AS valid_from", "o.loam_to AS valid_to", "o.loam_to IS NULL AS is_current",
		sql.Idents("o.", originColumns))
	return sql.Join(", ", items)
}

// changed is the condition that a tracked column differs from the state before.
func changed(def *feature.Stream) sql.Fragment {
	parts := []sql.Fragment{"false"}
	for _, c := range def.Columns {
		if def.Tracked(c.Name) {
			parts = append(parts, sql.Ident(c.Name)+" IS DISTINCT FROM lag("+sql.Ident(c.Name)+") OVER moments")
		}
	}
	return "(" + sql.Join(" OR ", parts) + ")"
}

// differing is the list of the names of columns that differ between w and h.
func differing(columns []string) sql.Fragment {
	items := make([]sql.Fragment, len(columns))
	for i, c := range columns {
		items[i] = "CASE WHEN w." + sql.Ident(c) + " IS DISTINCT FROM h." + sql.Ident(c) + " THEN " + sql.Literal(c) + " END"
	}
	return "[" + sql.Join(", ", items) + "]"
}

// eitherKey is the key of w, or of h where w has none.
func eitherKey(def *feature.Stream) sql.Fragment {
	items := make([]sql.Fragment, len(def.Key))
	for i, k := range def.Key {
		items[i] = "coalesce(w." + sql.Ident(k) + ", h." + sql.Ident(k) + ") AS " + sql.Ident(k)
	}
	return sql.Join(", ", items)
}

// patched gives the arguments of verify_patches: columns that stay, and those whose value is the last one carried.
func patched(def *feature.Stream) (kept, carried sql.Fragment) {
	stay := append(slices.Clone(def.Key), feature.ColEventTime)
	stay = append(stay, originColumns...)
	stay = append(stay, "loam_deleted", "loam_place", "loam_settles")
	var items []sql.Fragment
	for _, c := range def.Columns {
		if slices.Contains(def.Key, c.Name) {
			continue
		}
		// The struct tells a null that was carried from a field that was not.
		items = append(items, sql.Fragment(sql.Render(
			"last_value(CASE WHEN NOT loam_deleted AND (present IS NULL OR list_contains(present, {name})) "+
				"THEN struct_pack(v := {column}) END IGNORE NULLS) OVER so_far.v AS {column}",
			sql.Args{"name": sql.Literal(c.Name), "column": sql.Ident(c.Name)})))
	}
	if items == nil {
		items = append(items, "NULL AS loam_nothing")
	}
	return sql.Idents("", stay), sql.Join(", ", items)
}
