// Package ingest turns what producers wrote into checked, deduplicated Arrow batches.
//
// A [Source] reads records: a topic of a broker, a topic folder, or a file (.jsonl, .jsonl.gz, .csv, .parquet). A
// [Router] hands each to its stream, where one decoder checks it against the stream's schema and appends it to Arrow
// builders, or refuses it. What came of a span of offsets leaves as a [feature.Batch].
//
// Invariants:
//
//   - every record read becomes exactly one of accepted, refused or duplicate, and each batch's spans count them so;
//   - a record is appended to Arrow only after all of it has been checked, so no column is ever half written;
//   - the decision on a duplicate is made here, once, before the ways to lake and online store part, and a replay makes
//     it the same way: an occurrence is a duplicate only of the first accepted one, at another position;
//   - a record for which its stream's delete_when is true is a delete, with the id and event time that it has anyway;
//   - recorded_at never decreases within a partition;
//   - bad input is a dead letter with its reason, original bytes and position; it never panics and never stops a stream.
//
// A Parquet or CSV row is rendered as a JSON object and takes the same way as an event, as does a value that was written by
// a schema of a registry (package ingest/schema), so there is one decoder with one set of checks. Details of refusals name fields, never values.
package ingest
