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

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }

// execute runs a command line and gives its exit code.
func execute(args []string, out, err *os.File) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	a := newApp(out, err)
	root := a.root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(err)
	c, failed := root.ExecuteContextC(ctx)
	if failed == nil {
		return exitFine
	}
	if !errors.Is(failed, errReported) {
		a.say("%s", errorText(failed))
	}
	if a.started && !errors.As(failed, new(misuse)) {
		return exitFailed
	}
	a.say("usage: %s; `%s --help` tells more", c.UseLine(), c.CommandPath())
	return exitMisused
}

// misuse is an error of the command line itself: nothing was done.
type misuse struct{ error }

func misused(format string, args ...any) error { return misuse{fmt.Errorf(format, args...)} }

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
