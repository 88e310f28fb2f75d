package serve

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// What the log can't take is dropped and counted, and nothing waits for it.
func TestFeatureLogDrops(t *testing.T) {
	store, err := online.InProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	f := NewFeatureLog(FeatureLogOptions{
		Rate: 1, Project: &feature.Project{Name: "test"}, Store: store, Now: time.Now,
		Write: func(context.Context, []feature.ServedRow) error { return errors.New("the lake is away") }, Say: t.Logf,
	})
	one := Served{Plan: &online.Plan{}, Keys: online.Entities{Len: 1000}, Result: &online.Result{}}
	begun := time.Now()
	for range 1000 {
		f.Sample()(one)
	}
	if f.Dropped() != 1000-logRowsMax/1000 || time.Since(begun) > time.Second {
		t.Errorf("%d dropped within %s", f.Dropped(), time.Since(begun))
	}
	small := Served{Plan: &online.Plan{}, Keys: online.Entities{Len: 0}, Result: &online.Result{}}
	for range logRequestMax {
		f.take(small)
	}
	if f.Dropped() != 1000-logRowsMax/1000+logRowsMax/1000 {
		t.Errorf("%d dropped", f.Dropped())
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.Run(ctx); err != nil {
		t.Errorf("requests without entities: %v", err)
	}
	if f.waiting.Load() != 0 {
		t.Errorf("%d rows wait once all are drained", f.waiting.Load())
	}
}

// What was logged, and what was dropped, is in the metrics of a server that logs, and nothing of it in those of one that doesn't.
func TestFeatureLogMetrics(t *testing.T) {
	m := miniredis.RunT(t)
	f := newFixture(t, m.Addr(), func(o *Options) {
		o.Log = NewFeatureLog(FeatureLogOptions{Rate: 1, Project: o.Project, Say: t.Logf})
	}).filled()
	f.server.Log.waiting.Store(logRowsMax) // it takes no more
	for range 3 {
		if status, answer := f.post("/get-online-features", oneEntity); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
	}
	f.server.Log.logged.Store(7)
	text := f.ask("GET", "/metrics", "").Body.String()
	for _, want := range []string{"loam_feature_log_rows_total 7\n", "loam_feature_log_dropped_total 3\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the metrics lack %q:\n%s", want, text)
		}
	}
	if text := newFixture(t, m.Addr(), nil).ask("GET", "/metrics", "").Body.String(); strings.Contains(text, "loam_feature_log") {
		t.Errorf("a server that logs nothing counts it:\n%s", text)
	}
}

// A share of the requests is chosen.
func TestFeatureLogRate(t *testing.T) {
	f := NewFeatureLog(FeatureLogOptions{Rate: 0.25})
	chosen := 0
	for range 10_000 {
		if f.Sample() != nil {
			chosen++
		}
	}
	if chosen < 2000 || chosen > 3000 {
		t.Errorf("%d of 10,000 requests are logged", chosen)
	}
}

// Marks are those that were read before the values.
func TestFeatureLogMarks(t *testing.T) {
	f := NewFeatureLog(FeatureLogOptions{})
	at := time.Now()
	for i := range 5 {
		f.marks = append(f.marks, marked{at: at.Add(time.Duration(i) * time.Second), views: map[string]online.Generation{"v": {Number: int64(i)}}})
	}
	for after, want := range map[time.Duration]int64{0: 0, time.Second - 1: 0, time.Second: 1, time.Hour: 4} {
		if g := f.marksBefore(at.Add(after))["v"]; g.Number != want {
			t.Errorf("after %s those of %d, want %d", after, g.Number, want)
		}
	}
	if f.marksBefore(at.Add(-1)) != nil {
		t.Error("marks that were read later are taken")
	}
}

// Numbers of generations come again with a Redis that restarted empty: marks of the one before are not those of what was seen.
func TestFeatureLogGenerations(t *testing.T) {
	at := time.Now()
	of := online.Generation{BuiltAt: at}
	seen := online.Seen{View: "v", Generation: 1, Of: &of}
	for _, c := range []struct {
		g    online.Generation
		want bool
	}{
		{online.Generation{Number: 1, BuiltAt: at}, true},
		{online.Generation{Number: 2, BuiltAt: at}, false},
		{online.Generation{Number: 1, BuiltAt: at.Add(-time.Second)}, false},
	} {
		if got := sameGeneration(c.g, seen); got != c.want {
			t.Errorf("%+v: %v", c.g, got)
		}
	}
}

// What was read of a generation that is switched to between two readings of the marks is logged with its base.
func TestFeatureLogReadsMarksBeforeRows(t *testing.T) {
	store, err := online.InProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	f := NewFeatureLog(FeatureLogOptions{
		Rate: 1, Project: &feature.Project{Name: "test"}, Store: store, Now: time.Now,
		Write: func(context.Context, []feature.ServedRow) error { return nil }, Say: t.Logf,
	})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := f.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if len(f.marks) != 2 {
		t.Errorf("marks were read %d times, want once at the beginning and once before the last rows", len(f.marks))
	}
}
