package online

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Features on demand are computed by as many engines as there are cores; a read waits for one, no longer than its context.
func TestEnginesAreShared(t *testing.T) {
	s, err := InProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := loadFiles(t, testProject, testViews+"  - {name: derived, on_demand: {inputs: [\"all:n\"]}, features: [{name: twice, type: int64, sql: \"n * 2\"}]}\n")
	l := openLake(t, p)
	b := batchOf(t, p.Stream("thing"), 0, []string{event(1, "a", 1, 0, "updated", `,"n":21`)})
	defer b.Release()
	commitTo(t, l, b)
	built(t, s, writer(t, s, p, "all"), l)
	refs, err := p.Resolve([]string{"derived:twice"})
	if err != nil {
		t.Fatal(err)
	}
	c := NewClient(s, p, time.Now)
	defer c.Close()
	read := func(ctx context.Context) (string, error) {
		rows, err := c.Read(ctx, refs, []map[string]string{{"a": "a", "b": "1"}})
		if err != nil {
			return "", err
		}
		return rows[0][0].Value.Text, nil
	}
	for range cap(c.engines.free) {
		<-c.engines.free
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if got, err := read(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with every engine taken: %q, %v", got, err)
	}
	for range cap(c.engines.free) {
		c.engines.free <- nil
	}
	if got, err := read(context.Background()); got != "42" || err != nil {
		t.Errorf("once one is free: %q, %v", got, err)
	}
}
