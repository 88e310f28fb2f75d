//go:build loamcrash

package step

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// PollRecords is how many records a poll gives at most: few, so that few events make many micro-batches.
const PollRecords = 256

var (
	mu     sync.Mutex
	crash  Step // where to end, "" for nowhere
	left   int  // how often that is passed before
	passed *os.File
)

func init() {
	if text := os.Getenv("LOAM_CRASH"); text != "" {
		name, count, _ := strings.Cut(text, ":")
		n, err := strconv.Atoi(count)
		if err != nil || n < 0 || !slices.Contains(All, Step(name)) {
			panic(fmt.Sprintf("LOAM_CRASH is <step>:<n>, not %q", text))
		}
		crash, left = Step(name), n
	}
	if path := os.Getenv("LOAM_STEPS"); path != "" {
		var err error
		if passed, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			panic(err)
		}
	}
}

// At marks a step, and ends the process there where it is asked to. No goroutine comes past a step meanwhile.
func At(s Step) {
	mu.Lock()
	defer mu.Unlock()
	if passed != nil {
		if _, err := fmt.Fprintln(passed, s); err != nil {
			panic(err)
		}
	}
	if s != crash {
		return
	}
	if left--; left >= 0 {
		return
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(fmt.Sprintf("end at step %s: %v", s, err))
	}
	select {}
}
