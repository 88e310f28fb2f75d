//go:build duckdb_arrow

package sql

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Column is a name and DuckDB's name of its type.
type Column struct{ Name, Type string }

// macros that are deterministic scalar functions; DuckDB doesn't say so of any macro.
var scalarMacros = []string{
	"nullif", "split_part", "date_add", "days_in_month", "fdiv", "fmod", "round_even", "roundbankers", "json",
	"array_append", "array_pop_back", "array_pop_front", "array_prepend", "array_push_back", "array_push_front",
	"array_reverse", "array_to_string", "array_to_string_comma_default", "list_any_value", "list_append", "list_avg",
	"list_bit_and", "list_bit_or", "list_bit_xor", "list_bool_and", "list_bool_or", "list_count", "list_first",
	"list_last", "list_max", "list_median", "list_min", "list_prepend", "list_product", "list_reverse",
	"list_stddev_pop", "list_stddev_samp", "list_string_agg", "list_sum", "list_var_pop", "list_var_samp",
}

// scalar functions that DuckDB calls consistent and that still depend on more than their arguments, or give several rows.
var refusedFunctions = []string{"getvariable", "current_setting", "unnest", "in_search_path", "getenv", "version", "txid_current"}

// CheckScalar checks that expr is one deterministic scalar expression over the columns that casts to the type want, and
// returns the columns that it reads. Refused are functions that depend on the time, on chance or on the session,
// aggregates, windows, subqueries, table functions and parameters.
func (db *DB) CheckScalar(ctx context.Context, expr string, columns []Column, want string) ([]string, error) {
	var serialized string
	err := db.QueryRow(ctx, "SELECT json_serialize_sql($1::VARCHAR)::VARCHAR", []any{"SELECT " + expr + "\n"}, &serialized)
	if err != nil {
		return nil, err
	}
	var parsed struct {
		Error      bool   `json:"error"`
		Message    string `json:"error_message"`
		Statements []struct {
			Node map[string]any `json:"node"`
		} `json:"statements"`
	}
	if err := json.Unmarshal([]byte(serialized), &parsed); err != nil {
		return nil, fmt.Errorf("read DuckDB's parse of the expression: %w", err)
	}
	if parsed.Error {
		return nil, fmt.Errorf("not a DuckDB expression: %s", firstLine(parsed.Message))
	}
	if len(parsed.Statements) != 1 {
		return nil, fmt.Errorf("more than one statement; write one expression")
	}
	node := parsed.Statements[0].Node
	list, _ := node["select_list"].([]any)
	if len(list) != 1 || !bareSelect(node) {
		return nil, fmt.Errorf("not one scalar expression; write what would stand between SELECT and FROM, once")
	}
	w := exprWalk{functions: map[string]bool{}}
	walk(list[0], w.visit)
	if w.refused != "" {
		return nil, fmt.Errorf("%s", w.refused)
	}
	for name := range w.functions {
		if err := db.checkFunction(ctx, name); err != nil {
			return nil, err
		}
	}
	var reads []string
	for _, name := range w.columns {
		i := slices.IndexFunc(columns, func(c Column) bool { return strings.EqualFold(c.Name, name) })
		switch {
		case i >= 0 && !slices.Contains(reads, columns[i].Name):
			reads = append(reads, columns[i].Name)
		case i < 0 && !slices.Contains(w.lambdas, name):
			return nil, fmt.Errorf("there is no column %q", name)
		}
	}
	nulls := make([]Fragment, len(columns))
	for i, c := range columns {
		nulls[i] = Fragment(fmt.Sprintf("NULL::%s AS %s", c.Type, Ident(c.Name)))
	}
	statement := Render("SELECT {value} FROM (SELECT {nulls}) LIMIT 0", Args{"value": Try(expr, want), "nulls": Join(", ", nulls)})
	rows, err := db.conn.QueryContext(ctx, statement)
	if err != nil {
		return nil, fmt.Errorf("does not bind: %s", firstLine(err.Error()))
	}
	return reads, rows.Close()
}

// Try is the one way an expression of a user is run: an error on a row is null.
func Try(expr, sqlType string) Fragment {
	return Fragment("TRY((" + expr + "\n)::" + sqlType + ")")
}

// bareSelect reports whether a SELECT node is nothing but its list.
func bareSelect(node map[string]any) bool {
	if node["type"] != "SELECT_NODE" {
		return false
	}
	for _, key := range []string{"where_clause", "having", "qualify", "sample"} {
		if node[key] != nil {
			return false
		}
	}
	for _, key := range []string{"modifiers", "group_expressions", "group_sets"} {
		if l, _ := node[key].([]any); len(l) > 0 {
			return false
		}
	}
	if cte, _ := node["cte_map"].(map[string]any); cte != nil {
		if l, _ := cte["map"].([]any); len(l) > 0 {
			return false
		}
	}
	from, _ := node["from_table"].(map[string]any)
	return from == nil || from["type"] == "EMPTY"
}

// exprWalk collects what an expression uses from DuckDB's serialized parse tree.
type exprWalk struct {
	functions map[string]bool
	columns   []string
	lambdas   []string // names that lambdas bind
	refused   string
}

// refuse keeps the first reason to refuse; "" is none.
func (w *exprWalk) refuse(why string) {
	if w.refused == "" {
		w.refused = why
	}
}

// walk calls visit with every node of DuckDB's serialized parse tree, a node before those in it.
func walk(tree any, visit func(map[string]any)) {
	switch v := tree.(type) {
	case []any:
		for _, item := range v {
			walk(item, visit)
		}
	case map[string]any:
		visit(v)
		for _, item := range v {
			walk(item, visit)
		}
	}
}

// called is the name of the function that a node calls. Refused is the one whose stability doesn't tell that it depends on the
// current time.
func called(n map[string]any) (name, refused string) {
	name = strings.ToLower(fmt.Sprint(n["function_name"]))
	if children, _ := n["children"].([]any); name == "age" && len(children) == 1 {
		refused = "age of one argument depends on the current time; give it two"
	}
	return name, refused
}

func (w *exprWalk) visit(n map[string]any) {
	switch n["class"] {
	case "SUBQUERY":
		w.refuse("a subquery reads other rows; use the columns of the row alone")
	case "WINDOW":
		w.refuse("a window function reads other rows; use the columns of the row alone")
	case "PARAMETER":
		w.refuse("a parameter has no value here; write the value")
	case "STAR":
		w.refuse("* is not one value; name the column")
	case "DEFAULT", "POSITIONAL_REFERENCE":
		w.refuse("not a scalar expression")
	case "LAMBDA":
		var bound exprWalk
		bound.functions = map[string]bool{}
		walk(n["lhs"], bound.visit)
		w.lambdas = append(w.lambdas, bound.columns...)
	case "COLUMN_REF":
		if names, _ := n["column_names"].([]any); len(names) > 0 {
			w.columns = append(w.columns, fmt.Sprint(names[0]))
		}
	case "FUNCTION":
		name, refused := called(n)
		w.functions[name] = true
		w.refuse(refused)
	}
}

func (db *DB) checkFunction(ctx context.Context, name string) error {
	if slices.Contains(refusedFunctions, name) {
		return fmt.Errorf("function %s is not allowed: its value depends on more than the row, or it gives several rows", name)
	}
	kinds, err := db.functionKinds(ctx, name)
	if err != nil {
		return err
	}
	var scalar bool
	for _, k := range kinds {
		if k.volatile() {
			return fmt.Errorf("function %s is not allowed: its value depends on more than the row", name)
		}
		scalar = scalar || k.scalar(name)
	}
	switch {
	case len(kinds) == 0:
		return fmt.Errorf("DuckDB has no function %s", name)
	case !scalar && slices.ContainsFunc(kinds, func(k functionKind) bool { return k.kind == "aggregate" }):
		return fmt.Errorf("function %s is an aggregate; use a windowed view for those", name)
	case !scalar:
		return fmt.Errorf("function %s is not a deterministic scalar function", name)
	}
	return nil
}

// functionKind is one of the things that a name of a function stands for.
type functionKind struct{ kind, stability string }

// volatile reports whether it is a scalar function whose value depends on more than its arguments.
func (k functionKind) volatile() bool { return k.kind == "scalar" && k.stability != "CONSISTENT" }

// scalar reports whether it gives one value for its arguments.
func (k functionKind) scalar(name string) bool {
	return k.kind == "scalar" || (k.kind == "macro" && slices.Contains(scalarMacros, name))
}

// functionKinds are what DuckDB knows by the name of a function; none where it knows none.
func (db *DB) functionKinds(ctx context.Context, name string) ([]functionKind, error) {
	rows, err := db.conn.QueryContext(ctx,
		"SELECT DISTINCT function_type, coalesce(stability, '') FROM duckdb_functions() WHERE function_name = $1", name)
	if err != nil {
		return nil, fmt.Errorf("look function %s up: %w", name, err)
	}
	defer rows.Close()
	var kinds []functionKind
	for rows.Next() {
		var k functionKind
		if err := rows.Scan(&k.kind, &k.stability); err != nil {
			return nil, fmt.Errorf("look function %s up: %w", name, err)
		}
		kinds = append(kinds, k)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look function %s up: %w", name, err)
	}
	return kinds, nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
