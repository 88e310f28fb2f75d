package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest"
	"github.com/loamdata/loam/lake"
	"github.com/loamdata/loam/sql"
)

// Bounds of the letters that are taken in one commit.
const (
	redriveLetters = 2000
	redriveBytes   = 64 << 20
)

// redriveRetriesMax bounds how often letters are chosen anew because another redrive was faster.
const redriveRetriesMax = 20

// take takes the letters of a stream, or those of none where it is nil, page by page.
func (r *redrive) take(ctx context.Context, s *openStream, condition sql.Fragment) error {
	var behind *feature.Position // the last letter that was looked at
	for retries := 0; ; {
		lasts, err := r.lasts(ctx, s)
		if err != nil {
			return err
		}
		page, more, err := r.choose(ctx, s, condition, behind)
		if err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		unsettled, err := r.page(ctx, s, page, lasts)
		if errors.Is(err, lake.ErrRedriven) && retries < redriveRetriesMax {
			retries++
			for _, o := range r.candidates(s) { // what was decided on has not come about
				if err := o.fill(ctx); err != nil {
					return err
				}
			}
			continue
		}
		if err != nil {
			return err
		}
		r.report.Unsettled += unsettled
		if !more {
			return nil
		}
		retries, behind = 0, &page[len(page)-1].Position
	}
}

// candidates are the streams that letters of a stream, or of none where it is nil, may go to.
func (r *redrive) candidates(s *openStream) []*openStream {
	if s != nil {
		return []*openStream{s}
	}
	return slices.DeleteFunc(r.line.all(), func(o *openStream) bool { return o.def.Format != feature.EnvelopeFormat })
}

// lasts are the last redrives of the streams that letters may go to, all of which have ended.
func (r *redrive) lasts(ctx context.Context, s *openStream) (map[string]string, error) {
	lasts := map[string]string{}
	for _, o := range r.candidates(s) {
		last, err := r.finish(ctx, o)
		if err != nil {
			return nil, err
		}
		lasts[o.def.Name] = last
	}
	return lasts, nil
}

var errEnough = errors.New("enough")

// choose gives the next letters behind a position, and whether there may be more.
func (r *redrive) choose(ctx context.Context, s *openStream, condition sql.Fragment, behind *feature.Position) (page []feature.DeadLetter, more bool, err error) {
	name := ""
	if s != nil {
		name = s.def.Name
	}
	condition += " AND stream = " + sql.Literal(name)
	if behind != nil {
		condition += sql.Fragment(fmt.Sprintf(` AND (topic, "partition", "offset") > (%s, %d, %d)`, sql.Literal(behind.Topic), behind.Partition, behind.Offset))
	}
	size := 0
	err = r.line.letters.Each(ctx, r.db, condition, lake.ByPosition, redriveLetters+1, func(l feature.DeadLetter) error {
		if len(page) > 0 && page[len(page)-1].Position == l.Position {
			return nil
		}
		if size += len(l.Body); len(page) == redriveLetters || size > redriveBytes && len(page) > 0 {
			return errEnough
		}
		page = append(page, l)
		return nil
	})
	if errors.Is(err, errEnough) {
		return page, true, nil
	}
	return page, false, err
}

// routedLetters is what came of letters in a stream.
type routedLetters struct {
	batch *feature.Batch
	// decided are the letters, with what became of them if nothing comes between.
	decided map[feature.Position]*lake.Marked
}

// page takes letters again, and gives how many of them were left because their stream's log has not passed them yet: what is read there
// may be refused again, or it was and has not been noted.
func (r *redrive) page(ctx context.Context, s *openStream, letters []feature.DeadLetter, lasts map[string]string) (unsettled int64, err error) {
	if s != nil {
		offsets, err := s.offsets()
		if err != nil {
			return 0, err
		}
		all := len(letters)
		letters = slices.DeleteFunc(slices.Clone(letters), func(l feature.DeadLetter) bool {
			return !offsets.Passed(l.Position)
		})
		unsettled = int64(all - len(letters))
	}
	jobID, at := newJobID("redrive"), r.now()
	byStream, err := r.route(ctx, s, letters, jobID, at)
	defer func() {
		for _, routed := range byStream {
			routed.batch.Release()
		}
	}()
	if err != nil {
		return unsettled, err
	}
	from := ""
	if s != nil {
		from = s.def.Name
	}
	// Backward, so that those of no stream come last: whatever another stream's commit fails of, they are counted once.
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(byStream))) {
		if err := r.commit(ctx, name, byStream[name], lake.Redrive{JobID: jobID, By: r.by, At: at, Repaired: r.with != nil}, lasts[name]); err != nil {
			return unsettled, err
		}
		r.count(from, byStream[name].decided)
	}
	return unsettled, nil
}

// route has the letters read and decided on again, by stream; "" has those that are still of none.
func (r *redrive) route(ctx context.Context, s *openStream, letters []feature.DeadLetter, jobID string, at int64) (map[string]*routedLetters, error) {
	byStream := map[string]*routedLetters{}
	of := func(name string) *routedLetters {
		if byStream[name] == nil {
			byStream[name] = &routedLetters{batch: &feature.Batch{}, decided: map[feature.Position]*lake.Marked{}}
		}
		return byStream[name]
	}
	decide := func(stream string, l feature.DeadLetter, outcome feature.Outcome, reason feature.Reason, detail string) {
		of(stream).decided[l.Position] = &lake.Marked{Position: l.Position, RecordedAt: l.RecordedAt, Reason: reason, Detail: detail, Redriven: feature.Redriven{
			Outcome: outcome, Stream: stream, At: at, By: r.by, JobID: jobID, Repaired: r.with != nil,
		}}
	}
	candidates := r.candidates(s)
	left, err := r.notHeld(ctx, candidates, letters, func(stream string, l feature.DeadLetter) { decide(stream, l, feature.RedriveDuplicate, "", "") })
	if err != nil {
		return byStream, err
	}
	defer lockIDs(candidates)()
	options := ingest.RouterOptions{
		JobID: jobID, Dedups: r.line.dedups(), Deletes: r.line.deletes(), Mappings: r.line.mappings(), Starts: func(string, feature.Partition) int64 { return 0 },
	}
	for _, o := range candidates {
		options.Streams = append(options.Streams, o.def)
	}
	groups := [][]feature.DeadLetter{left}
	if s != nil {
		options.Only = s.def
	} else { // one by one: else it couldn't be told which stream had one as a duplicate
		groups = slices.Collect(slices.Chunk(left, 1))
	}
	router := ingest.NewRouter(options)
	for _, group := range groups {
		for _, l := range group {
			rec := r.record(l)
			if err := r.decode(ctx, s, rec); err != nil {
				return byStream, err
			}
			if err := router.AddAll(ctx, []ingest.Record{*rec}, at); err != nil {
				return byStream, err
			}
		}
		batches, err := router.Flush(ctx, nil)
		if err != nil {
			return byStream, err
		}
		for _, b := range batches {
			name := ""
			if b.Stream != nil {
				name = b.Stream.Name
			}
			refused := map[feature.Position]feature.DeadLetter{}
			for _, l := range b.Refused {
				refused[l.Position] = l
			}
			for _, l := range group {
				if again, ok := refused[l.Position]; ok {
					decide(name, l, feature.RedriveRefused, again.Reason, again.Detail)
				} else {
					decide(name, l, feature.RedriveDuplicate, "", "") // until a row of it is written
				}
			}
			of(name).batch.Stream = b.Stream
			of(name).batch.Rows = append(of(name).batch.Rows, b.Rows...)
		}
	}
	return byStream, nil
}

// notHeld leaves out letters at whose position one of the streams' logs has a row already, as of a file that was read again.
func (r *redrive) notHeld(ctx context.Context, streams []*openStream, letters []feature.DeadLetter, held func(stream string, l feature.DeadLetter)) ([]feature.DeadLetter, error) {
	for _, o := range streams {
		positions := make([]feature.Position, len(letters))
		for i, l := range letters {
			positions[i] = l.Position
		}
		o.tables.Lock()
		there, err := o.lake.Holds(ctx, positions)
		o.tables.Unlock()
		if err != nil {
			return nil, err
		}
		letters = slices.DeleteFunc(slices.Clone(letters), func(l feature.DeadLetter) bool {
			if there[l.Position] {
				held(o.def.Name, l)
			}
			return there[l.Position]
		})
	}
	return letters, nil
}

// record is a letter as it was read, or the repaired record in its place.
func (r *redrive) record(l feature.DeadLetter) *ingest.Record {
	rec := &ingest.Record{
		Position: l.Position, Key: l.RecordKey, Value: l.Body, Headers: l.Headers, Timestamp: l.RecordTime, Text: l.Text, Cut: l.Reason == feature.TooLarge && len(l.Body) <= ingest.CutBytes,
	}
	if one, ok := r.with[l.Position]; ok {
		rec.Value, rec.Cut = one.body, len(one.body) > ingest.EventBytesMax
		if one.key != nil {
			rec.Key = one.key
		}
	}
	return rec
}

// decode makes JSON of a record that names a schema. A repaired one is JSON, unless it is framed as its letter was.
func (r *redrive) decode(ctx context.Context, s *openStream, rec *ingest.Record) error {
	if s == nil || !s.def.Framed() || rec.Topic != s.def.Topic || rec.Value == nil || rec.Cut {
		return nil
	}
	if _, repaired := r.with[rec.Position]; repaired && !bytes.HasPrefix(rec.Value, []byte{0}) {
		return nil
	}
	if r.decoders == nil {
		var err error
		if r.decoders, err = openDecoders(r.project, r.line.all(), func() time.Time { return time.UnixMicro(r.now()) }); err != nil {
			return err
		}
	}
	event, refused, err := r.decoders[rec.Topic].Decode(ctx, rec.Value)
	if err != nil {
		return fmt.Errorf("read the letter at %s: %w", rec.Position, err)
	}
	if rec.JSON = event; refused != nil {
		rec.Malformed, rec.Reason = refused.Detail, refused.Reason
	}
	return nil
}

// commit commits what came of letters in a stream, and all that follows. Letters that are still of no stream are marked alone.
func (r *redrive) commit(ctx context.Context, stream string, routed *routedLetters, redrive lake.Redrive, after string) error {
	marks := func() (all []lake.Marked) {
		for _, m := range routed.decided {
			all = append(all, *m)
		}
		return all
	}
	if stream == "" || routed.batch.NumRows() == 0 {
		return r.mark(ctx, marks())
	}
	s := r.line.streams[stream]
	known := s.knows()
	s.tables.Lock()
	defer s.tables.Unlock()
	did, rows, err := s.lake.Redrive(ctx, routed.batch, known, redrive, after)
	defer func() { releaseRows(rows) }()
	if err != nil {
		return err
	}
	s.tell(did.Foreign, s.lake.Head())
	for _, batch := range rows {
		written, err := lake.Positions(batch)
		if err != nil {
			return err
		}
		for _, p := range written {
			routed.decided[p].Outcome = feature.RedriveAccepted
		}
	}
	if did.Rows == 0 {
		return r.mark(ctx, marks())
	}
	if err := r.after("committed"); err != nil {
		return err
	}
	return r.follow(ctx, s, rows, marks(), redrive.JobID)
}
