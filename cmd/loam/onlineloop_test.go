package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow/memory"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/online"
)

// A store that went away for good is said so once, never ends a worker that reads on, and holds one that shall end up for
// drainMax at most.
func TestOnlineLoopGivesUp(t *testing.T) {
	ctx := t.Context()
	store, err := online.InProcess("test")
	if err != nil {
		t.Fatal(err)
	}
	live, err := online.NewLive(ctx, store, nil, &feature.Project{})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 100)
	clock := time.Unix(0, 0)
	o := &onlineLoop{
		queue: newQueue(rows(100), amount{}, true), store: store, live: live, worker: "test", once: true,
		now: func() time.Time {
			clock = clock.Add(drainMax / 2)
			return clock
		},
		say:       func(format string, args ...any) { said <- fmt.Sprintf(format, args...) },
		positions: map[string]map[feature.Partition]int64{}, building: map[string]bool{},
	}
	done := make(chan error, 1)
	go func() { done <- o.run(ctx, ctx) }()
	put(t, o.queue, batchOf(memory.DefaultAllocator, queued, span(0, 0, 10)))
	if text := <-said; !strings.Contains(text, "is away") {
		t.Errorf("said %q", text)
	}
	select {
	case err := <-done:
		t.Fatalf("it ended with its queue: %v", err)
	case <-time.After(5 * backoffMin): // time enough to fail again
	}
	o.queue.close()
	if err := <-done; err == nil || !strings.Contains(err.Error(), "still away") {
		t.Errorf("it ended with %v", err)
	}
	if len(said) > 0 {
		t.Errorf("said besides: %q", <-said)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := o.run(ctx, ctx); err != nil {
		t.Errorf("where another part of the worker has failed it ends with %v", err)
	}
}
