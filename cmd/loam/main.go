// Command loam keeps the line between a company's CRM topics and its models: events in, SCD2 history, training sets and
// online values out. `loam --help` lists its commands; each has a file of its own here, and this package alone wires the
// others together.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/loamdata/loam/feature"
)

// version is set by the linker.
var version = "dev"

// Exit codes.
const (
	exitFine    = 0
	exitFailed  = 1
	exitMisused = 2
)

func main() { os.Exit(execute(os.Args[1:])) }

func execute(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	a := newApp(os.Stdout, os.Stderr)
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitFine
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintln(os.Stderr, errorText(err))
	}
	if !a.started {
		return exitMisused
	}
	return exitFailed
}

// errReported is returned by a command that has printed what is wrong as its result.
var errReported = errors.New("reported")

// errorText is what is printed of an error: all problems of a project folder, a line each, or the one error.
func errorText(err error) string {
	var problems feature.Problems
	if errors.As(err, &problems) {
		lines := make([]string, len(problems))
		for i, p := range problems {
			lines[i] = "  " + p.Error()
		}
		return fmt.Sprintf("loam: %s in the project folder:\n%s", count(int64(len(problems)), "problem"), strings.Join(lines, "\n"))
	}
	if errors.Is(err, context.Canceled) {
		return "loam: interrupted; what was committed stays, run it again to go on"
	}
	return "loam: " + err.Error()
}
