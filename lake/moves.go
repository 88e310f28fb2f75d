package lake

import "sync"

// movesRowsMax bounds the rows whose moves are kept, at four bytes each.
const movesRowsMax = 1 << 22

// moves tell where compactions of this process have put the rows of files, so that a writer beside them finds its open
// versions again without reading what they wrote. They may be of compactions whose commit failed: a move counts where its
// file is gone and the one it leads to is there.
type moves struct {
	mu     sync.Mutex
	files  []*movedFile // oldest first
	byPath map[string]*movedFile
	rows   int
}

// movedFile says where the rows of a data file have gone.
type movedFile struct {
	path   string
	rows   []uint32 // by row: its number among all that were written, or gone
	starts []int64  // numbers of the first rows of the files written
	paths  []string // of these
}

// note keeps where the rows of a compaction's inputs go.
func (m *moves) note(out *rewritten) {
	paths := make([]string, len(out.files))
	for i, f := range out.files {
		paths[i] = f.FilePath()
	}
	files := make([]*movedFile, len(out.inputs))
	for i, f := range out.inputs {
		files[i] = &movedFile{path: f.data.FilePath(), rows: out.moved[i], starts: out.starts, paths: paths}
	}
	m.add(files)
}

// add keeps the moves of one compaction. The oldest of others are forgotten where there are too many.
func (m *moves) add(files []*movedFile) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byPath == nil {
		m.byPath = map[string]*movedFile{}
	}
	for _, f := range files {
		m.files = append(m.files, f)
		m.byPath[f.path] = f
		m.rows += len(f.rows)
	}
	for m.rows > movesRowsMax && len(m.files) > len(files) {
		oldest := m.files[0]
		m.files = m.files[1:]
		m.rows -= len(oldest.rows)
		if m.byPath[oldest.path] == oldest {
			delete(m.byPath, oldest.path)
		}
	}
}

// of gives where the rows of a file have gone, or nil.
func (m *moves) of(path string) *movedFile {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.byPath[path]
}

// at gives the index of the file, among those written, that a row has gone to, and its row there; false for a row that was
// deleted before.
func (f *movedFile) at(row uint32) (file int, to uint32, ok bool) {
	number := f.rows[row]
	if number == gone {
		return 0, 0, false
	}
	file, at := placeAmong(f.starts, number)
	return file, uint32(at), true
}
