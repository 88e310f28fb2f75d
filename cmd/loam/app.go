package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/online"
	"github.com/loamdata/loam/sql"
)

// app is what all commands share.
type app struct {
	dir      string // of the project
	json     bool
	out, err io.Writer
	terminal bool // whether err is one: long work then shows a bar
	now      func() time.Time
	started  bool // flags and arguments were understood
}

func newApp(out, err *os.File) *app {
	return &app{out: out, err: err, terminal: term.IsTerminal(int(err.Fd())), now: time.Now}
}

// root is the command that holds all others.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "loam",
		Short: "History, training sets and online features from CRM topics",
		Long: `loam takes canonical CRM topics in, keeps every change as SCD2 history in Iceberg, builds point-in-time-correct
training sets, and keeps the newest feature values in Redis.

All commands work on a project folder: the one they are run in, or the one that -C names.`,
		Example: "  loam demo                                   # the whole line on made-up events, in a minute\n" +
			"  loam init crm && loam -C crm validate       # a project of your own",
		Version:       version,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { a.started = true },
	}
	root.PersistentFlags().StringVarP(&a.dir, "dir", "C", ".", "project folder")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON for machines")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddGroup(&cobra.Group{ID: "define", Title: "Define:"}, &cobra.Group{ID: "take", Title: "Take events in:"},
		&cobra.Group{ID: "use", Title: "Use features:"}, &cobra.Group{ID: "look", Title: "Look and check:"}, &cobra.Group{ID: "try", Title: "Try it:"})
	for group, commands := range map[string][]*cobra.Command{
		"define": {a.initCommand(), a.validateCommand(), a.planCommand(), a.applyCommand(), a.schemaCommand(), a.mappingCommand()},
		"take":   {a.runCommand(), a.backfillCommand(), a.dlqCommand()},
		"use":    {a.datasetCommand(), a.materializeCommand(), a.getCommand(), a.serveCommand()},
		"look":   {a.historyCommand(), a.statusCommand(), a.verifyCommand(), a.rebuildCommand(), a.rewindCommand(), a.maintainCommand()},
		"try":    {a.simulateCommand(), a.benchCommand(), a.demoCommand()},
	} {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	return root
}

// parent makes a command that only holds others: alone it prints its help, and it refuses what it doesn't hold.
func (a *app) parent(c *cobra.Command, children ...*cobra.Command) *cobra.Command {
	c.AddCommand(children...)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return misused("unknown command %q for %q", args[0], c.CommandPath())
	}
	return c
}

// arguments lets a command take from least to most arguments, any number where most is negative. missing says what to give.
func arguments(least, most int, missing string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return misused("%s", missing)
		case most == 0 && len(args) > 0:
			return misused("%q is too much: only flags are taken", args[0])
		case most >= 0 && len(args) > most:
			return misused("%q is one argument too many", args[most])
		}
		return nil
	}
}

var noArguments = arguments(0, 0, "")

// load reads and checks the project folder.
func (a *app) load(ctx context.Context) (*feature.Project, error) { return loadProject(ctx, a.dir) }

func loadProject(ctx context.Context, dir string) (*feature.Project, error) {
	db, err := sql.Open(ctx, sql.Options{Threads: 1})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	return feature.Load(dir, exprChecker(ctx, db))
}

// exprChecker checks users' expressions in the engine that will run them.
func exprChecker(ctx context.Context, db *sql.DB) feature.CheckExpr {
	return func(expr string, columns []feature.Column, want feature.Type) ([]string, error) {
		list := make([]sql.Column, len(columns))
		for i, c := range columns {
			list[i] = sql.Column{Name: c.Name, Type: c.Type.SQL()}
		}
		return db.CheckScalar(ctx, expr, list, want.SQL())
	}
}

// open reads the project and opens its lake, which the caller closes.
func (a *app) open(ctx context.Context) (*feature.Project, *lake.Lake, error) {
	p, err := a.load(ctx)
	if err != nil {
		return nil, nil, err
	}
	l, err := openLake(ctx, p)
	return p, l, err
}

func openLake(ctx context.Context, p *feature.Project) (*lake.Lake, error) {
	return lake.Open(ctx, lake.Config{Lake: p.Lake, Namespace: p.Name, Dir: p.Dir})
}

// openStore connects to the project's Redis, nil where it has none.
func openStore(ctx context.Context, p *feature.Project) (*online.Store, error) {
	if p.Online.Redis == "" {
		return nil, nil
	}
	as := online.Access{User: p.Online.User, Cluster: p.Online.Cluster}
	var err error
	if as.TLS, err = p.Online.TLS.Config(p.Dir); err != nil {
		return nil, fmt.Errorf("online: %w", err)
	}
	if p.Online.Password.Given() {
		if as.Password, err = p.Online.Password.Read(p.Dir); err != nil {
			return nil, fmt.Errorf("read online.password of %s: %w", feature.ProjectFile, err)
		}
	}
	return online.OpenAs(ctx, p.Name, p.Online.Redis, as)
}

// tempDir is where DuckDB may spill to.
func tempDir(p *feature.Project) string { return filepath.Join(p.Dir, ".loam", "tmp") }

// newJobID names a run of a command in the rows that it writes.
func newJobID(command string) string { return command + "-" + uuid.NewString() }

// say prints a line of what is going on, to where results don't go.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.err, format+"\n", args...) }

// result prints what a command found: v as JSON where a machine asked, else what text prints.
func (a *app) result(v any, text func(w io.Writer)) error {
	if !a.json {
		text(a.out)
		return nil
	}
	encoder := json.NewEncoder(a.out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// number writes n with a comma between groups of three digits.
func number(n int64) string {
	text := strconv.FormatInt(n, 10)
	sign := ""
	if n < 0 {
		sign, text = "-", text[1:]
	}
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return sign + text
}

// count writes a number of things: 1 event, 2,000 events.
func count(n int64, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "ty"):
		what = what[:len(what)-1] + "ies"
	default:
		what += "s"
	}
	return number(n) + " " + what
}

// flagTime reads the time that a flag gives, to the microsecond, in UTC.
func flagTime(flag, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return t, misused("%s %q is not a time: write RFC 3339, such as 2026-11-01T00:00:00Z", flag, text)
	}
	return t.UTC().Truncate(time.Microsecond), nil
}

// moment writes a time of microseconds since 1970 UTC as people read it.
func moment(us int64) string {
	t := time.UnixMicro(us).UTC()
	if us%1_000_000 == 0 {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05.000000")
}

// elapsed writes a span of time as people read it: to the day and hour where it is long.
func elapsed(d time.Duration) string {
	if d < 0 {
		return "-" + elapsed(-d)
	}
	switch day := 24 * time.Hour; {
	case d >= 2*day:
		return fmt.Sprintf("%sd%dh", number(int64(d/day)), d%day/time.Hour)
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(time.Millisecond).String()
	default:
		return d.String()
	}
}

// plain is text with no control characters, which would spoil what is drawn around it.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '·'
		}
		return r
	}, text)
}

// table prints rows in columns, the first row being their names. Columns whose name begins with > stand to the right.
func table(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	right := make([]bool, len(rows[0]))
	for i, name := range rows[0] {
		if rest, ok := strings.CutPrefix(name, ">"); ok {
			right[i], rows[0][i] = true, rest
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			row[i] = plain(cell)
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			b.WriteString("  " + cell)
		}
		fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}
