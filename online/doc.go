// Package online keeps the newest feature values in Redis.
//
// The hash of an entity in a view holds its features as text, and the order _v of the change they come from, which begins
// with the event time. A write applies only if its order is greater, so writes may be repeated and arrive in any order, and what stays is
// what history says is last. A delete leaves a tombstone that outranks older changes. Of a patch stream each column has such
// an order of its own, and the last delete.
//
// An entity of a windowed view is a string of tiles, partial aggregates of a step of event time, which a reader puts together
// as of its clock. Guards tell which events are in it, so that each is counted once.
//
// A view windowed over history is computed as of an instant, of all entities at once, and stays so until it is built anew.
//
// A view in Redis is a generation: its hashes carry the generation's number in their keys, and one hash a view tells of
// all its generations. A generation is built from a snapshot of the lake, caught up from the offsets of that snapshot,
// and only then switched to; the one before is removed. A new or changed definition, a Redis that restarted and a repair
// are all a new generation. Until one is ready, reads answer [ErrUnavailable], never nulls.
//
// The layout is frozen; docs/redis.md gives it byte by byte. No command newer than Redis 6.2 is used.
package online
