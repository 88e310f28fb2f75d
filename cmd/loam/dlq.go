package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func (a *app) dlqCommand() *cobra.Command {
	return a.parent(&cobra.Command{
		Use:     "dlq",
		Short:   "Look at dead letters, refused events, and take them again",
		Example: "  loam dlq list\n  loam dlq list --reason bad_value --limit 20\n  loam dlq show file:3f2a/0@117",
	}, a.dlqListCommand(), a.dlqShowCommand(), a.dlqExportCommand(), a.dlqRedriveCommand())
}

// letterFilter chooses dead letters.
type letterFilter struct {
	stream, reason, since string
	redriven              bool // those that were taken again, not those that wait
}

func (f *letterFilter) flags(c *cobra.Command) {
	c.Flags().StringVar(&f.stream, "stream", "", "only those of this stream")
	c.Flags().StringVar(&f.reason, "reason", "", "only those with this reason")
	c.Flags().StringVar(&f.since, "since", "", "only those refused since then: RFC 3339, a date, or how long ago, such as 7d")
}

// condition is what holds of the letters' rows, as of now.
func (f *letterFilter) condition(now time.Time) (sql.Fragment, error) {
	condition := lake.Waiting
	if f.redriven {
		condition = "NOT " + lake.Waiting
	}
	if f.stream != "" {
		condition += " AND stream = " + sql.Literal(f.stream)
	}
	if f.reason != "" {
		if !slices.Contains(feature.Reasons, feature.Reason(f.reason)) {
			return "", misused("--reason %q is none; there are %s", f.reason, reasonsText())
		}
		condition += " AND reason = " + sql.Literal(f.reason)
	}
	if f.since != "" {
		since, err := parseSince(f.since, now)
		if err != nil {
			return "", err
		}
		condition += sql.Fragment(fmt.Sprintf(" AND recorded_at >= make_timestamptz(%d)", since.UnixMicro()))
	}
	return condition, nil
}

// parseSince reads a time, a date in UTC, or how long before now.
func parseSince(text string, now time.Time) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return at, nil
	}
	if at, err := time.Parse(time.DateOnly, text); err == nil {
		return at, nil
	}
	if ago, err := feature.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	return time.Time{}, misused("--since %q is no time: write 2026-11-01T00:00:00Z, 2026-11-01, or how long ago, such as 12h or 7d", text)
}

func (a *app) dlqListCommand() *cobra.Command {
	var filter letterFilter
	var limit int
	c := &cobra.Command{
		Use:     "list",
		Short:   "List dead letters, and how many there are by reason",
		Long:    "list shows the dead letters that wait, and with --redriven those that were taken again since.",
		Example: "  loam dlq list\n  loam dlq list --stream contact --reason bad_value --limit 20",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 0 {
				return misused("--limit is at least 0, not %d", limit)
			}
			condition, err := filter.condition(a.now())
			if err != nil {
				return err
			}
			return a.listLetters(c.Context(), filter, condition, limit)
		},
	}
	filter.flags(c)
	c.Flags().BoolVar(&filter.redriven, "redriven", false, "those that were taken again")
	c.Flags().IntVar(&limit, "limit", 10, "how many to list")
	return c
}

func (a *app) dlqShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "show POSITION",
		Short:   "Show a dead letter whole: why, and the original bytes",
		Long:    "show prints a dead letter by its position, <topic>/<partition>@<offset>, as `loam dlq list` gives it; a file's hash may be cut.",
		Example: "  loam dlq show contact.v1/0@117\n  loam dlq show file:3f2a/0@117",
		Args:    arguments(1, 1, "name a position, such as contact.v1/0@117; `loam dlq list` gives them"),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := parsePosition(args[0])
			if err != nil {
				return misuse{err}
			}
			return a.showLetter(c.Context(), p)
		},
	}
}

// letter is a dead letter, for machines.
type letter struct {
	Position   string    `json:"position"`
	Stream     string    `json:"stream,omitempty"`
	Reason     string    `json:"reason"`
	Detail     string    `json:"detail"`
	RecordedAt time.Time `json:"recorded_at"`
	Key        *string   `json:"record_key,omitempty"`
	Body       *string   `json:"body,omitempty"`
	Base64     bool      `json:"base64,omitempty"` // key, body and the values of headers are not text
	Headers    []header  `json:"headers,omitempty"`
	Redriven   *redriven `json:"redriven,omitempty"`
}

// header is a header of a Kafka record.
type header struct {
	Key   string  `json:"key"`
	Value *string `json:"value"`
}

// redriven says what became of a dead letter that was taken again.
type redriven struct {
	Outcome  feature.Outcome `json:"outcome"`
	Stream   string          `json:"stream,omitempty"`
	At       time.Time       `json:"at"`
	By       string          `json:"by"`
	JobID    string          `json:"job_id"`
	Repaired bool            `json:"repaired"`
}

func letterOf(l feature.DeadLetter, whole bool) letter {
	out := letter{
		Position: l.Position.String(), Stream: l.Stream, Reason: string(l.Reason), Detail: l.Detail,
		RecordedAt: time.UnixMicro(l.RecordedAt).UTC(),
	}
	if r := l.Redriven; r != nil {
		out.Redriven = &redriven{r.Outcome, r.Stream, time.UnixMicro(r.At).UTC(), r.By, r.JobID, r.Repaired}
	}
	if !whole {
		return out
	}
	out.Base64 = !utf8.Valid(l.Body) || !utf8.Valid(l.RecordKey)
	for _, h := range l.Headers {
		out.Base64 = out.Base64 || !utf8.Valid(h.Value)
	}
	text := func(b []byte) *string {
		if b == nil {
			return nil
		}
		s := string(b)
		if out.Base64 {
			s = base64.StdEncoding.EncodeToString(b)
		}
		return &s
	}
	out.Key, out.Body = text(l.RecordKey), text(l.Body)
	for _, h := range l.Headers {
		out.Headers = append(out.Headers, header{h.Key, text(h.Value)})
	}
	return out
}

// reasonCount is how many dead letters of a stream have a reason.
type reasonCount struct {
	Stream  string `json:"stream"`
	Reason  string `json:"reason"`
	Letters int64  `json:"letters"`
}

func (a *app) listLetters(ctx context.Context, filter letterFilter, condition sql.Fragment, limit int) error {
	return a.withLetters(ctx, func(p *feature.Project, letters *lake.DeadLetters, db *sql.DB) error {
		return a.printLetters(ctx, p, letters, db, filter, condition, limit)
	})
}

// withLetters opens the project's dead letters for use, and a database to read them in.
func (a *app) withLetters(ctx context.Context, use func(*feature.Project, *lake.DeadLetters, *sql.DB) error) error {
	p, l, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer l.Close()
	letters, err := l.OpenDeadLetters(ctx)
	if err != nil {
		return err
	}
	db, err := sql.Open(ctx, sql.Options{Files: true, Threads: 1})
	if err != nil {
		return err
	}
	defer db.Close()
	return use(p, letters, db)
}

func (a *app) printLetters(ctx context.Context, p *feature.Project, letters *lake.DeadLetters, db *sql.DB, filter letterFilter, condition sql.Fragment, limit int) error {
	result := struct {
		Reasons []reasonCount `json:"reasons"`
		Letters []letter      `json:"letters"`
	}{[]reasonCount{}, []letter{}}
	err := letters.Each(ctx, db, condition, lake.NewestFirst, limit, func(d feature.DeadLetter) error {
		result.Letters = append(result.Letters, letterOf(d, false))
		return nil
	})
	if err != nil {
		return err
	}
	rows, err := db.Query(ctx, sql.Render("SELECT stream, reason, count(*) FROM dead_letters WHERE {condition} GROUP BY ALL ORDER BY 3 DESC, 1, 2",
		sql.Args{"condition": condition}))
	if err != nil {
		return err
	}
	defer rows.Close()
	var total int64
	for rows.Next() {
		var r reasonCount
		if err := rows.Scan(&r.Stream, &r.Reason, &r.Letters); err != nil {
			return fmt.Errorf("count dead letters: %w", err)
		}
		total += r.Letters
		result.Reasons = append(result.Reasons, r)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("count dead letters: %w", err)
	}
	if filter.stream != "" && total == 0 { // a stream that is gone may still have some
		if _, err := streamOf(p, filter.stream); err != nil {
			return err
		}
	}
	return a.result(result, func(w io.Writer) {
		if total == 0 {
			if filter.redriven {
				fmt.Fprintln(w, "no dead letters that were taken again")
			} else {
				fmt.Fprintln(w, "no dead letters")
			}
			return
		}
		cells := [][]string{{"stream", "reason", ">letters"}}
		for _, r := range result.Reasons {
			cells = append(cells, []string{streamText(r.Stream), r.Reason, number(r.Letters)})
		}
		table(w, cells)
		if len(result.Letters) == 0 {
			return
		}
		fmt.Fprintf(w, "\nthe newest %d of %s:\n", len(result.Letters), number(total))
		cells = [][]string{{"position", "stream", "reason", "detail"}}
		if filter.redriven {
			cells[0] = append(cells[0], "outcome", "by", "at")
		}
		for _, d := range result.Letters {
			row := []string{shortPosition(d.Position), streamText(d.Stream), d.Reason, d.Detail}
			if filter.redriven {
				row = append(row, string(d.Redriven.Outcome), d.Redriven.By, moment(d.Redriven.At.UnixMicro()))
			}
			cells = append(cells, row)
		}
		table(w, cells)
	})
}

// shortPosition cuts the hash of a file: `loam dlq show` takes it, too.
func shortPosition(position string) string {
	const digits = len(feature.FileTopicPrefix) + 12
	if slash := strings.IndexByte(position, '/'); strings.HasPrefix(position, feature.FileTopicPrefix) && slash > digits {
		return position[:digits] + position[slash:]
	}
	return position
}

func streamText(stream string) string {
	if stream == "" {
		return "(none)"
	}
	return stream
}

// atPosition is the condition that a letter stands at a position; a file's hash may be cut.
func atPosition(p feature.Position) sql.Fragment {
	topic := "topic = " + string(sql.Literal(p.Topic))
	if strings.HasPrefix(p.Topic, feature.FileTopicPrefix) {
		topic = fmt.Sprintf("starts_with(topic, %s)", sql.Literal(p.Topic))
	}
	return sql.Fragment(fmt.Sprintf(`%s AND "partition" = %d AND "offset" = %d`, topic, p.Partition, p.Offset))
}

func (a *app) showLetter(ctx context.Context, p feature.Position) error {
	var found []letter
	condition := atPosition(p)
	err := a.withLetters(ctx, func(_ *feature.Project, letters *lake.DeadLetters, db *sql.DB) error {
		return letters.Each(ctx, db, condition, lake.NewestFirst, 2, func(d feature.DeadLetter) error {
			found = append(found, letterOf(d, true))
			return nil
		})
	})
	if err != nil {
		return err
	}
	switch len(found) {
	case 0:
		return fmt.Errorf("there is no dead letter at %s; `loam dlq list` gives their positions", p)
	case 1:
	default:
		return fmt.Errorf("%s is of %s and of %s: give more of the hash", p, found[0].Position, found[1].Position)
	}
	return a.result(found[0], func(w io.Writer) { printLetter(w, found[0]) })
}

// printLetter draws a dead letter whole; a body that is JSON is indented.
func printLetter(w io.Writer, l letter) {
	fmt.Fprintf(w, "position     %s\nstream       %s\nreason       %s\ndetail       %s\nrecorded at  %s\n",
		l.Position, streamText(l.Stream), l.Reason, l.Detail, l.RecordedAt.Format(time.RFC3339Nano))
	if r := l.Redriven; r != nil {
		fmt.Fprintf(w, "taken again  %s, by %s at %s", r.Outcome, r.By, r.At.Format(time.RFC3339Nano))
		if r.Repaired {
			fmt.Fprint(w, ", repaired")
		}
		if r.Stream != l.Stream {
			fmt.Fprintf(w, ", as %s", streamText(r.Stream))
		}
		fmt.Fprintln(w)
	}
	if l.Base64 {
		fmt.Fprintln(w, "what follows is not text, and is written in base64")
	}
	if l.Key != nil {
		fmt.Fprintf(w, "record key   %s\n", *l.Key)
	}
	for _, h := range l.Headers {
		value := "(null)"
		if h.Value != nil {
			value = *h.Value
		}
		fmt.Fprintf(w, "header       %s: %s\n", plain(h.Key), plain(value))
	}
	if l.Body == nil {
		return
	}
	var indented strings.Builder
	encoder := json.NewEncoder(&indented)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if json.Valid([]byte(*l.Body)) && encoder.Encode(json.RawMessage(*l.Body)) == nil {
		fmt.Fprint(w, indented.String())
	} else {
		fmt.Fprintln(w, *l.Body)
	}
}

func reasonsText() string {
	names := make([]string, len(feature.Reasons))
	for i, r := range feature.Reasons {
		names[i] = string(r)
	}
	return strings.Join(names, ", ")
}

// parsePosition reads <topic>/<partition>@<offset>.
func parsePosition(text string) (feature.Position, error) {
	bad := fmt.Errorf("%q is not a position: write <topic>/<partition>@<offset>", text)
	at, slash := strings.LastIndexByte(text, '@'), strings.LastIndexByte(text, '/')
	if slash < 1 || at < slash {
		return feature.Position{}, bad
	}
	partition, err1 := strconv.ParseInt(text[slash+1:at], 10, 32)
	offset, err2 := strconv.ParseInt(text[at+1:], 10, 64)
	if err1 != nil || err2 != nil {
		return feature.Position{}, bad
	}
	return feature.Position{Topic: text[:slash], Partition: int32(partition), Offset: offset}, nil
}
