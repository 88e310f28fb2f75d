// Package metamorphic holds the lake against random histories: changes of many keys, in random batches and orders of
// arrival, by two writers on disjoint partitions that take turns or commit at once, restart, are cut off in the middle of
// a commit, and are given events twice. Whatever the way, the tables must be those that an oracle makes of the accepted
// changes, which asks for every event time anew what all changes up to it leave, and shares no code with package scd. It
// has no code of its own.
package metamorphic
