// Package feature is loam's vocabulary: what a user declares (streams, entities, feature views, feature services,
// dataset requests) and the few values every other package agrees on (types, positions, the one order of changes, the
// columns of a log).
//
// [Load] reads a project folder into checked values. It never stops at the first mistake: all problems of a folder come
// back at once as [Problems], each naming file, line, field and remedy. Values that Load returned without an error hold
// these invariants, which the rest of loam relies on:
//
//   - names match ^[a-z][a-z0-9_]*$ and contain no double underscore, so <view>__<feature> is unambiguous;
//   - every reference (view to entity and stream, feature to column, service to feature) resolves;
//   - an attribute view stands on a state stream and its entity's join keys are that stream's key;
//   - a feature uses only tracked columns, so nothing a model sees changes inside a version;
//   - no column of a stream has a name that the log or the history uses for itself.
//
// The package does no I/O but reading the folder, knows no clock and imports no other package of loam. Expressions are
// checked by a function that the caller hands in, because only the engine that runs them can.
package feature
