// Package schema makes JSON events of values that are written by a schema: Avro, Protobuf or JSON Schema, framed as the
// serializers of a schema registry do it. What comes out takes the same way as an event that was JSON from the start, so
// there is one decoder with one set of checks.
//
// A [Registry] is a client of a registry that speaks Confluent's API. A [Decoder] belongs to one stream: it looks the
// writer's schema of a value up by the id in its frame, decides once for each id whether that schema fits the stream's
// columns, and then decodes by it.
//
// Invariants:
//
//   - a schema that doesn't fit is an [Incompatible] error before a value of it is decoded, and never a dead letter;
//   - a registry that can't be asked is [ErrAway], and never a dead letter: the value can be decoded later;
//   - a value that isn't framed, names a schema that the registry doesn't have, or isn't of its schema is a [Refusal];
//   - no bytes make it panic, and what it holds is bounded: the JSON of an event, the text of a schema with all that it
//     refers to, the schemas that are kept;
//   - nothing is read but from the registry: what a schema refers to otherwise is unknown;
//   - no error holds a credential or a value.
//
// Values are written as JSON by the type that the writer's schema says, not by that of the column: times as RFC 3339,
// dates as 2026-11-01, decimals with all of their digits, enums by name, bytes in base64. Fields are found by name.
package schema
