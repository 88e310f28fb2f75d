// Package verify recomputes what loam has derived, by statements of its own, and compares.
//
// [History] derives the versions of a state stream from its log in DuckDB and holds them row by row, over all columns,
// against the history; it holds the intervals against their rules, and the log of any stream against its offsets, its
// counts and the promise that no position and no event is in it twice. [Online] holds what Redis has of an attribute view
// against what the log says is served; over a patch stream that is a change for each column.
//
// [Served] recomputes what the log of served features says was served, at the positions that it rests on.
//
// [Dataset] recomputes rows of a training set from the logs that its card names. There DuckDB evaluates expressions alone:
// files are read by parquet-go, and what a label sees is found by loops, as are outcomes, samples and splits.
//
// The package shares no code with what it checks: it doesn't import scd or pit, and of lake and online it uses what reads tables
// and hashes, not what derives them. Keys are taken bucket by bucket, so that memory is bounded whatever the size of a
// table. It only reads. What it finds is a [Finding]; an error says that it could not look.
//
// Findings name keys, columns, times and positions, and never values but in Redis' own bookkeeping fields
// and in training sets, whose keys are left out instead.
package verify
