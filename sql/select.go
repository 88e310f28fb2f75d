//go:build duckdb_arrow

package sql

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// table functions that read nothing but their arguments.
var tableFunctions = []string{"unnest", "range", "generate_series", "json_each", "json_tree"}

// sessionFunctions are the functions that DuckDB takes names for where no column has them: they give the time or the session.
var sessionFunctions = map[string]string{
	"current_date": "current_date", "current_time": "get_current_time", "current_timestamp": "get_current_timestamp", "localtime": "current_localtime",
	"localtimestamp": "current_localtimestamp", "current_user": "current_user", "session_user": "session_user", "user": "user",
	"current_role": "current_role", "current_schema": "current_schema", "current_catalog": "current_catalog",
}

// refs are the kinds of FROM items that a query may have; others describe tables or read them elsewhere.
var refs = []string{"BASE_TABLE", "TABLE_FUNCTION", "JOIN", "SUBQUERY", "EMPTY", "EXPRESSION_LIST", "PIVOT"}

// Select is a query that [DB.CheckSelect] has found fit.
type Select struct {
	Text    string
	Tables  []string // those of the tables it may read that it names, in the order it does
	ordered bool     // whether it orders its rows
	quoted  []string // names of sessionFunctions that it has in quotes, as columns
	node    map[string]any
	tree    map[string]any
}

// CheckSelect checks that text is one SELECT that reads these tables alone and gives the same rows whenever it reads the
// same: what depends on the time, on chance or on the session is refused, and so is all that reads files or the network. The
// check is of DuckDB's own parse of the text; [DB.Confine] holds the engine to it besides.
func (db *DB) CheckSelect(ctx context.Context, text string, tables []string) (*Select, error) {
	var serialized string
	if err := db.QueryRow(ctx, "SELECT json_serialize_sql($1::VARCHAR)::VARCHAR", []any{text}, &serialized); err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(strings.NewReader(serialized))
	decoder.UseNumber() // locations are numbers beyond a double's digits
	tree := map[string]any{}
	if err := decoder.Decode(&tree); err != nil {
		return nil, fmt.Errorf("read DuckDB's parse of the query: %w", err)
	}
	if failed, _ := tree["error"].(bool); failed {
		message := firstLine(fmt.Sprint(tree["error_message"]))
		if tree["error_type"] == "not implemented" {
			message = "it is no SELECT; write one that gives the labels"
		}
		return nil, fmt.Errorf("%s", message)
	}
	statements, _ := tree["statements"].([]any)
	if len(statements) != 1 {
		return nil, fmt.Errorf("%d statements; write one SELECT", len(statements))
	}
	w := selectWalk{text: text, functions: map[string]bool{}}
	walk(statements[0], w.visit)
	if w.refused != "" {
		return nil, fmt.Errorf("%s", w.refused)
	}
	s := &Select{Text: strings.TrimRight(text, "; \t\r\n"), quoted: w.quoted, tree: tree}
	for _, name := range w.tables {
		i := slices.IndexFunc(tables, func(t string) bool { return strings.EqualFold(t, name) })
		switch {
		case slices.ContainsFunc(w.ctes, func(c string) bool { return strings.EqualFold(c, name) }):
		case i < 0:
			return nil, fmt.Errorf("there is no table %s; it may read %s", name, strings.Join(tables, ", "))
		case !slices.Contains(s.Tables, tables[i]):
			s.Tables = append(s.Tables, tables[i])
		}
	}
	for name := range w.functions {
		if err := db.checkSelectFunction(ctx, name); err != nil {
			return nil, err
		}
	}
	statement, _ := statements[0].(map[string]any)
	s.node, _ = statement["node"].(map[string]any)
	s.ordered = s.order() != nil
	return s, nil
}

// order is the list of what the query orders its rows by, nil where it doesn't.
func (s *Select) order() map[string]any {
	modifiers, _ := s.node["modifiers"].([]any)
	for _, m := range modifiers {
		if m, _ := m.(map[string]any); m["type"] == "ORDER_MODIFIER" {
			return m
		}
	}
	return nil
}

// Bind gives the columns of the query. The tables it reads must be there, and the database is good for nothing but the query then:
// a name that is quoted as a column is an error where there is no such column.
func (db *DB) Bind(ctx context.Context, s *Select) ([]Column, error) {
	const none = "loam_no_column"
	for _, name := range s.quoted { // a macro stands before the function, and this one can't be called without an argument
		err := db.Exec(ctx, Render("CREATE OR REPLACE MACRO {function}({none}) AS {none}", Args{"function": Ident(sessionFunctions[name]), "none": none}))
		if err != nil {
			return nil, err
		}
	}
	columns, err := db.Columns(ctx, s.Text)
	if err != nil && strings.Contains(err.Error(), none) {
		for _, name := range s.quoted {
			if strings.Contains(err.Error(), sessionFunctions[name]+"("+none) {
				return nil, fmt.Errorf("there is no column %q", name)
			}
		}
	}
	return columns, err
}

// Settled gives the text of the query with one order of its rows: its own, and where that leaves rows tied, or it has none,
// that of all its columns. It binds the query.
func (db *DB) Settled(ctx context.Context, s *Select) (string, error) {
	columns, err := db.Bind(ctx, s)
	if err != nil {
		return "", err
	}
	if !s.ordered {
		return "SELECT * FROM (" + s.Text + "\n) ORDER BY ALL", nil
	}
	order := s.order()
	list, _ := order["orders"].([]any)
	for i := range columns {
		list = append(list, map[string]any{"type": "ORDER_DEFAULT", "null_order": "ORDER_DEFAULT", "expression": map[string]any{
			"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": "", "query_location": json.Number("0"),
			"value": map[string]any{"type": map[string]any{"id": "INTEGER", "type_info": nil}, "is_null": false, "value": i + 1},
		}})
	}
	order["orders"] = list
	tree, err := json.Marshal(s.tree)
	if err != nil {
		return "", fmt.Errorf("order the rows of the query: %w", err)
	}
	var text string
	err = db.QueryRow(ctx, "SELECT json_deserialize_sql($1::JSON)", []any{string(tree)}, &text)
	return text, err
}

// Confine lets all further statements read these files and no others, and nothing else outside the database; no statement can
// undo it. They run on one thread, so that what depends on the order of rows comes out the same every time.
func (db *DB) Confine(ctx context.Context, paths []string) error {
	quoted := make([]Fragment, len(paths))
	for i, p := range paths {
		quoted[i] = Literal(p)
	}
	return db.Exec(ctx, Render("SET threads = 1; SET allowed_paths = [{paths}]; SET enable_external_access = false; SET lock_configuration = true",
		Args{"paths": Join(", ", quoted)}))
}

// selectWalk collects what a query uses from DuckDB's serialized parse tree.
type selectWalk struct {
	text      string
	quoted    []string // names of sessionFunctions, in small letters
	functions map[string]bool
	tables    []string
	ctes      []string
	refused   string
}

func (w *selectWalk) refuse(why string) {
	if w.refused == "" {
		w.refused = why
	}
}

func (w *selectWalk) visit(n map[string]any) {
	if n["sample"] != nil {
		w.refuse("a sample is another one every time; ask for one with `sample` of the request")
	}
	if n["at_clause"] != nil {
		w.refuse("AT reads another snapshot; the snapshots are those that the features are read from")
	}
	if table, ok := n["from_table"].(map[string]any); ok {
		w.ref(table)
	}
	if n["type"] == "JOIN" {
		for _, side := range []string{"left", "right"} {
			if table, ok := n[side].(map[string]any); ok {
				w.ref(table)
			}
		}
	}
	if m, ok := n["cte_map"].(map[string]any); ok {
		list, _ := m["map"].([]any)
		for _, c := range list {
			if c, ok := c.(map[string]any); ok {
				w.ctes = append(w.ctes, fmt.Sprint(c["key"]))
			}
		}
	}
	switch n["class"] {
	case "PARAMETER":
		w.refuse("a parameter has no value here; write the value")
	case "COLUMN_REF":
		names, _ := n["column_names"].([]any)
		if len(names) != 1 {
			return
		}
		name := strings.ToLower(fmt.Sprint(names[0]))
		switch _, known := sessionFunctions[name]; {
		case !known:
		case w.quotes(n):
			w.quoted = append(w.quoted, name)
		default:
			w.refuse(fmt.Sprintf("%v depends on when and by whom it is run; write the value, or quote the name of a column", names[0]))
		}
	case "FUNCTION":
		name, refused := called(n)
		w.functions[name] = true
		w.refuse(refused)
	}
}

// quotes reports whether a node begins with a quote in the text: the parse tree has a name without.
func (w *selectWalk) quotes(n map[string]any) bool {
	location, _ := n["query_location"].(json.Number)
	at, err := location.Int64()
	return err == nil && at >= 0 && at < int64(len(w.text)) && w.text[at] == '"'
}

// ref takes an item of FROM.
func (w *selectWalk) ref(n map[string]any) {
	kind := fmt.Sprint(n["type"])
	if !slices.Contains(refs, kind) {
		w.refuse("it describes tables (" + kind + "), and labels are rows of them")
	}
	if kind != "BASE_TABLE" {
		return
	}
	name := fmt.Sprint(n["table_name"])
	for _, part := range []string{"schema_name", "catalog_name"} {
		if p, _ := n[part].(string); p != "" {
			w.refuse(fmt.Sprintf("table %s is named with %s before it; name it alone", name, p))
		}
	}
	w.tables = append(w.tables, name)
}

// checkSelectFunction refuses functions that read more than their arguments and the rows they are given.
func (db *DB) checkSelectFunction(ctx context.Context, name string) error {
	if slices.Contains(tableFunctions, name) {
		return nil
	}
	if slices.Contains(refusedFunctions, name) || name == "reservoir_quantile" {
		return fmt.Errorf("function %s is not allowed: its value depends on more than the rows", name)
	}
	kinds, err := db.functionKinds(ctx, name)
	if err != nil {
		return err
	}
	allowed := false
	for _, k := range kinds {
		if k.volatile() {
			return fmt.Errorf("function %s is not allowed: its value depends on more than the rows", name)
		}
		allowed = allowed || k.kind == "aggregate" || k.scalar(name)
	}
	switch {
	case len(kinds) == 0:
		return fmt.Errorf("DuckDB has no function %s", name)
	case !allowed:
		return fmt.Errorf("function %s is not allowed: it reads files, settings or the network, or gives other values every time", name)
	}
	return nil
}
