package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"
	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

func (a *app) dlqExportCommand() *cobra.Command {
	var filter letterFilter
	var out string
	c := &cobra.Command{
		Use:   "export --out FILE.parquet",
		Short: "Write dead letters to a Parquet file",
		Long: `export writes the dead letters that wait, and with --redriven those that were taken again, as a row each: the original bytes, key
and headers, the reason, and the position. Only you may read the file, since it has whatever the events have. One that is there is
written anew.`,
		Example: "  loam dlq export --out letters.parquet\n  loam dlq export --stream contact --reason not_json --since 7d --out letters.parquet",
		Args:    noArguments,
		RunE: func(c *cobra.Command, _ []string) error {
			condition, err := filter.condition(a.now())
			if err != nil {
				return err
			}
			if !strings.HasSuffix(out, ".parquet") {
				return misused("name the file to write with --out, such as --out letters.parquet")
			}
			return a.exportLetters(c.Context(), filter, condition, out)
		},
	}
	filter.flags(c)
	c.Flags().BoolVar(&filter.redriven, "redriven", false, "those that were taken again")
	c.Flags().StringVar(&out, "out", "", "the Parquet file to write")
	return c
}

// exportedLetter is a row of an export. Its columns are frozen.
type exportedLetter struct {
	Position   string           `parquet:"position"` // as `loam dlq show` takes it
	Stream     string           `parquet:"stream"`
	Reason     string           `parquet:"reason"`
	Detail     string           `parquet:"detail"`
	Topic      string           `parquet:"topic"`
	Partition  int32            `parquet:"partition"`
	Offset     int64            `parquet:"offset"`
	RecordKey  []byte           `parquet:"record_key,optional"`
	Body       []byte           `parquet:"body,optional"`
	Headers    []exportedHeader `parquet:"headers,list"`
	RecordTime *int64           `parquet:"record_time,timestamp(microsecond)"`
	RecordedAt int64            `parquet:"recorded_at,timestamp(microsecond)"`
	JobID      string           `parquet:"job_id"`
	Outcome    *string          `parquet:"outcome"`
	RedrivenTo *string          `parquet:"redriven_to"`
	RedrivenAt *int64           `parquet:"redriven_at,timestamp(microsecond)"`
	RedrivenBy *string          `parquet:"redriven_by"`
	Repaired   *bool            `parquet:"repaired"`
}

type exportedHeader struct {
	Key   string `parquet:"key"`
	Value []byte `parquet:"value,optional"`
}

func exportLetter(l feature.DeadLetter) exportedLetter {
	row := exportedLetter{
		Position: l.Position.String(), Stream: l.Stream, Reason: string(l.Reason), Detail: l.Detail, Topic: l.Topic, Partition: l.Partition, Offset: l.Offset,
		RecordKey: l.RecordKey, Body: l.Body, RecordedAt: l.RecordedAt, JobID: l.JobID,
	}
	for _, h := range l.Headers {
		row.Headers = append(row.Headers, exportedHeader(h))
	}
	if l.RecordTime != 0 {
		row.RecordTime = &l.RecordTime
	}
	if r := l.Redriven; r != nil {
		outcome := string(r.Outcome)
		row.Outcome, row.RedrivenTo, row.RedrivenAt, row.RedrivenBy, row.Repaired = &outcome, &r.Stream, &r.At, &r.By, &r.Repaired
	}
	return row
}

// exported says what was written, for machines.
type exported struct {
	Letters int64  `json:"letters"`
	Out     string `json:"out"`
}

// exportRowGroupBytes bounds what of an export waits in memory, in bytes of bodies.
const exportRowGroupBytes = 64 << 20

func (a *app) exportLetters(ctx context.Context, filter letterFilter, condition sql.Fragment, out string) error {
	done := exported{Out: out}
	err := a.withLetters(ctx, func(p *feature.Project, letters *lake.DeadLetters, db *sql.DB) error {
		if filter.stream != "" && p.Stream(filter.stream) == nil { // one that is gone may still have some
			if err := letters.View(ctx, db); err != nil {
				return err
			}
			var any bool
			if err := db.QueryRow(ctx, "SELECT count(*) > 0 FROM dead_letters WHERE "+string(condition), nil, &any); err != nil {
				return err
			}
			if !any {
				_, err := streamOf(p, filter.stream)
				return err
			}
		}
		var err error
		done.Letters, err = writeLetters(ctx, letters, db, condition, out)
		return err
	})
	if err != nil {
		return err
	}
	return a.result(done, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", out, count(done.Letters, "dead letter")) })
}

// writeLetters writes the file under another name first, so that one that is there stays whole until the new one is.
func writeLetters(ctx context.Context, letters *lake.DeadLetters, db *sql.DB, condition sql.Fragment, out string) (n int64, err error) {
	file, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*")
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", out, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", out, err), os.Remove(file.Name()))
		}
	}()
	w := parquet.NewGenericWriter[exportedLetter](file, parquet.Compression(&zstd.Codec{}))
	size := 0
	err = letters.Each(ctx, db, condition, lake.ByPosition, -1, func(l feature.DeadLetter) error {
		if _, err := w.Write([]exportedLetter{exportLetter(l)}); err != nil {
			return err
		}
		n++
		if size += len(l.Body); size < exportRowGroupBytes {
			return nil
		}
		size = 0
		return w.Flush()
	})
	if err == nil {
		err = w.Close()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return n, err
	}
	return n, os.Rename(file.Name(), out)
}
