// Package lake keeps streams in Iceberg tables: a log of every accepted event and, of a state stream, the SCD2 history
// that follows from it; dead letters, applied definitions and the cards of training sets besides.
//
// Invariants, which every commit keeps:
//
//   - the rows of a micro-batch, the deletion vectors of the rows they replace and the offsets that the batch moves go
//     out in one snapshot, or none of them does;
//   - a commit names, per partition, the offset it starts from, and is dropped with [ErrFenced] unless the reloaded table
//     stands there; so a worker that lost its partition writes nothing, and a replayed batch changes nothing;
//   - every file a snapshot names, and the folder it is in, is synced before the catalog moves to it;
//   - dead letters are committed before the log, and the log before the history; a history behind its log is caught up
//     from the log when the stream is opened;
//   - the head of a table is a snapshot that loam wrote, or a rewrite of one; anything else stops with [ErrForeign].
//
// Conflicts between writers are settled by reloading the table and building the commit anew, a bounded number of times.
// A commit whose outcome is unknown is looked for by its id before anything is repeated.
package lake
