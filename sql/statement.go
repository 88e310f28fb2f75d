//go:build duckdb_arrow

package sql

import (
	"embed"
	"fmt"
	"regexp"
	"strings"
)

//go:embed *.sql
var statements embed.FS

// Statement returns the embedded statement <name>.sql.
func Statement(name string) string {
	text, err := statements.ReadFile(name + ".sql")
	if err != nil {
		panic(fmt.Sprintf("no statement %s.sql is embedded", name))
	}
	return string(text)
}

// Args are the values of a statement's placeholders.
type Args map[string]Fragment

// Fragment is SQL text that is safe to place in a statement: made by Ident, Idents, Literal, or written by loam.
type Fragment string

var placeholder = regexp.MustCompile(`(?m)^--.*$|\{[a-z_]+\}`)

// Render replaces each {name} of the statement by its argument, but for those in lines that are comments. Every placeholder
// must have one: a missing one is a defect of loam.
func Render(statement string, args Args) string {
	return placeholder.ReplaceAllStringFunc(statement, func(p string) string {
		if p[0] == '-' {
			return p
		}
		fragment, ok := args[p[1:len(p)-1]]
		if !ok {
			panic("no argument for " + p)
		}
		return string(fragment)
	})
}

// Ident quotes a name.
func Ident(name string) Fragment {
	return Fragment(`"` + strings.ReplaceAll(name, `"`, `""`) + `"`)
}

// Idents quotes names and joins them with commas; prefix, such as "l.", stands before each.
func Idents(prefix string, names []string) Fragment {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = prefix + string(Ident(n))
	}
	return Fragment(strings.Join(quoted, ", "))
}

// Literal quotes text. Values of data are bound instead; this is for paths and names inside table functions, which take
// no parameters.
func Literal(text string) Fragment {
	return Fragment("'" + strings.ReplaceAll(text, "'", "''") + "'")
}

// Path quotes the path of one file that a table function reads: what would be a pattern there stands for itself.
func Path(path string) Fragment {
	return Literal(strings.NewReplacer("[", "[[]", "*", "[*]", "?", "[?]").Replace(path))
}

// Join joins fragments.
func Join(separator string, fragments []Fragment) Fragment {
	texts := make([]string, len(fragments))
	for i, f := range fragments {
		texts[i] = string(f)
	}
	return Fragment(strings.Join(texts, separator))
}
