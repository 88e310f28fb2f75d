// Package quality looks at the log and the history of a state stream for the errors that nothing refuses: event times that
// settle nothing, columns that make most versions without meaning to, clocks that are wrong, patches that are taken for full
// states, and changes that say nothing or come late.
//
// [Of] measures them, bucket of keys by bucket, so that memory is bounded whatever the size of a table. Each [Measure] has
// its number, the share it is of, a few keys as examples and, where it is beyond its bound, the remedy. The package only reads,
// and it names keys and columns, never other values.
package quality
