package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// progress shows how far long work is: a bar on a terminal, elsewhere a line now and then. It is not safe for concurrent
// use.
type progress struct {
	w        io.Writer
	terminal bool
	what     string
	now      func() time.Time
	begun    time.Time
	shown    time.Time
	drawn    bool
}

// How often progress is shown on a terminal, and elsewhere.
const (
	barEvery  = 100 * time.Millisecond
	lineEvery = 10 * time.Second
	barCells  = 24
)

func (a *app) progress(what string) *progress {
	now := a.now()
	return &progress{w: a.err, terminal: a.terminal, what: short(&what), now: a.now, begun: now, shown: now}
}

// at tells how far the work is, and what else there is to say.
func (p *progress) at(done, of int64, note string) {
	now, every := p.now(), lineEvery
	if p.terminal {
		every = barEvery
	}
	if now.Sub(p.shown) < every {
		return
	}
	p.shown = now
	share := 0.0
	if of > 0 {
		share = min(float64(done)/float64(of), 1)
	}
	if note != "" {
		note = "  " + note
	}
	if p.terminal {
		filled := int(share * barCells)
		bar := strings.Repeat("█", filled) + strings.Repeat("░", barCells-filled)
		fmt.Fprintf(p.w, "\r\x1b[K%s %s %3.0f %%%s", p.what, bar, share*100, note)
		p.drawn = true
		return
	}
	fmt.Fprintf(p.w, "%s: %.0f %% after %s%s\n", p.what, share*100, now.Sub(p.begun).Round(time.Second), note)
}

// end removes the bar.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}
