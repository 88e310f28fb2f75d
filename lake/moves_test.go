package lake

import "testing"

func TestMovedFile(t *testing.T) {
	f := &movedFile{rows: []uint32{0, gone, 5, 3, 9}, starts: []int64{0, 3, 6}}
	for row, want := range []struct {
		file int
		to   uint32
		ok   bool
	}{{0, 0, true}, {0, 0, false}, {1, 2, true}, {1, 0, true}, {2, 3, true}} {
		if file, to, ok := f.at(uint32(row)); file != want.file || to != want.to || ok != want.ok {
			t.Errorf("row %d has gone to row %d of file %d, %v; want %+v", row, to, file, ok, want)
		}
	}
}

// The newest moves are kept, however many rows they are of, and of the older ones as many as there is room for.
func TestMovesAreBounded(t *testing.T) {
	var m moves
	file := func(path string, rows int) []*movedFile {
		return []*movedFile{{path: path, rows: make([]uint32, rows)}}
	}
	known := func(want map[string]bool) {
		t.Helper()
		for path, there := range want {
			if got := m.of(path) != nil; got != there {
				t.Errorf("moves of %s are known: %v, want %v", path, got, there)
			}
		}
	}
	m.add(file("a", movesRowsMax/2))
	m.add(file("b", movesRowsMax/2))
	known(map[string]bool{"a": true, "b": true, "c": false})
	m.add(file("c", 1))
	known(map[string]bool{"a": false, "b": true, "c": true})
	m.add(file("d", movesRowsMax*2))
	known(map[string]bool{"b": false, "c": false, "d": true})
}
