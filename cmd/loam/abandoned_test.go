package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"

	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/verify"
)

// A worker removes what a build left unfinished and nobody can go on with, and leaves the rest.
func TestWorkerDiscardsAbandoned(t *testing.T) {
	redis := miniredis.RunT(t)
	p := newScoreProject(t, 3, fmt.Sprintf("online: {redis: %q}\n", redis.Addr()))
	p.write(".loam/topics/score.v1/0.jsonl", scores(0, 20))
	p.loam("apply")
	p.loam("run", "--until-end")
	const generations = "scores:scores:generations"
	text := redis.HGet(generations, "1")
	const begins = `{"definition":"`
	definition := text[len(begins) : len(begins)+16]
	of := func(number int, as, lease string) {
		building := strings.Replace(strings.Replace(text, `"ready"`, `"building"`, 1), definition, as, 1)
		redis.HSet(generations, fmt.Sprint(number), building, fmt.Sprint(number, "/build"), lease, fmt.Sprint(number, ":score.v1:0"), "3")
		redis.HSet(fmt.Sprintf("scores:scores:%d:{thing|a}", number), "_v", "1")
	}
	of(2, "0123456789abcdef", "0123456789abcdef 3 1")
	of(3, definition, "0123456789abcdef 3 1") // not the newest
	of(4, "0123456789abcdef", "0123456789abcdef 3 9999999999999")
	of(5, definition, "0123456789abcdef 3 1")
	redis.HSet(generations, "next", "5")
	p.write(".loam/topics/score.v1/0.jsonl", scores(0, 30))
	p.loam("run", "--until-end")
	fields, err := redis.HKeys(generations)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, f := range fields {
		if !strings.ContainsAny(f, ":@/") && f != "current" && f != "next" {
			left = append(left, f)
		}
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"1", "4", "5"}) {
		t.Errorf("left are the generations %v: %v", left, fields)
	}
	for _, f := range fields {
		if strings.HasPrefix(f, "2") || strings.HasPrefix(f, "3") {
			t.Errorf("left is %s", f)
		}
	}
	for number, want := range map[string]int{"2": 0, "3": 0, "4": 1, "5": 1} { // nobody writes them on
		n := 0
		for _, key := range redis.Keys() {
			if strings.HasPrefix(key, "scores:scores:"+number+":{") {
				n++
			}
		}
		if n != want {
			t.Errorf("generation %s has %d entities, want %d", number, n, want)
		}
	}
	if r := verifiedView(t, p, redis, "scores"); r.Total > 0 {
		t.Errorf("%+v", r)
	}
}

// verifiedView is what is compared of a view.
func verifiedView(t *testing.T, p *scoreProject, redis *miniredis.Miniredis, view string) *verify.OnlineReport {
	t.Helper()
	ctx := context.Background()
	project, l, err := p.app().open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	store, err := online.Open(ctx, project.Name, redis.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	r, err := verify.Online(ctx, l, store, project, project.View(view), verify.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}
