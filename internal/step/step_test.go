package step

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// Every step that is named is one of all, once.
func TestAll(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "step.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var named []Step
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 {
			if text, ok := spec.Values[0].(*ast.BasicLit); ok {
				name, err := strconv.Unquote(text.Value)
				if err != nil {
					t.Fatal(err)
				}
				named = append(named, Step(name))
			}
		}
		return true
	})
	all := slices.Clone(All)
	slices.Sort(all)
	slices.Sort(named)
	if len(named) == 0 || !slices.Equal(all, named) {
		t.Errorf("named are %v, all are %v", named, all)
	}
	if len(slices.Compact(all)) != len(All) {
		t.Errorf("a step stands twice: %v", all)
	}
}
