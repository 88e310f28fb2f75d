package quality

import (
	"slices"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/sql"
)

// keyText is the expression of a stream's key as text.
func keyText(def *feature.Stream) sql.Fragment {
	parts := make([]sql.Fragment, len(def.Key))
	for i, k := range def.Key {
		parts[i] = sql.Ident(k) + "::VARCHAR"
	}
	return sql.Join(" || '|' || ", parts)
}

// tracked are the names of the stream's tracked columns.
func tracked(def *feature.Stream) []string {
	var names []string
	for _, c := range def.Columns {
		if def.Tracked(c.Name) {
			names = append(names, c.Name)
		}
	}
	return names
}

// changeColumns are the columns that are needed of a change.
func changeColumns(def *feature.Stream) []string {
	names := slices.Concat(def.Key, tracked(def), []string{
		feature.ColEventTime, feature.ColSequence, feature.ColRecordedAt, feature.ColIngestedAt, feature.ColAssumed,
		feature.ColTopic, feature.ColPartition, feature.ColOffset, feature.ColOp,
	})
	if def.Payload == feature.PatchPayload {
		names = append(names, feature.ColPresent)
	}
	return names
}

// versionColumns are the columns that are needed of a version.
func versionColumns(def *feature.Stream) []string {
	return slices.Concat(def.Key, tracked(def), []string{feature.ColValidFrom, feature.ColValidTo})
}

// named is the list of the names of those tracked columns for which the condition holds, and null for the others; {c}
// stands for the column in it.
func named(def *feature.Stream, condition string) sql.Fragment {
	items := []sql.Fragment{"NULL::VARCHAR"}
	for _, name := range tracked(def) {
		args := sql.Args{"c": sql.Ident(name), "name": sql.Literal(name)}
		items = append(items, "CASE WHEN "+sql.Fragment(sql.Render(condition, args))+" THEN "+sql.Literal(name)+" END")
	}
	return "[" + sql.Join(", ", items) + "]"
}

// lists are the lists that quality_changes keeps of a change.
func lists(def *feature.Stream) sql.Args {
	if def.Payload == feature.PatchPayload {
		// A struct tells a null that a patch carries from a column that it doesn't; two patches disagree in what both carry.
		const carried = "CASE WHEN present IS NULL OR list_contains(present, {name}) THEN struct_pack(v := {c}) END"
		return sql.Args{
			"disputes": named(def, "("+carried+") <> lag("+carried+" IGNORE NULLS) OVER ties"),
			"lost":     "[NULL::VARCHAR]", "back": "[NULL::VARCHAR]",
		}
	}
	const lost = "{c} IS NULL AND lag({c}) OVER places IS NOT NULL"
	return sql.Args{
		"disputes": named(def, "{c} IS DISTINCT FROM lag({c}) OVER ties"),
		"lost":     named(def, lost),
		"back":     named(def, lost+" AND lead({c}) OVER places IS NOT NULL"),
	}
}
