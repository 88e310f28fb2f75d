// Package pit builds training sets: for each label the features of its entities as they were at the label's time, with
// nothing from after it.
//
// Two clocks say what that means. On the clock `served` a label sees what loam had ingested by then, which is what a
// model would have been given; on the clock `event` it sees what was true in the source, whenever loam learnt of it.
// Labels keep their rows, their order and their columns: none is multiplied, none is lost, and one whose entity is
// unknown has nulls (a count or distinct 0).
//
// DuckDB does the work over the files that the lake's scan planning gives. An attribute feature is the value of its
// expression on the change that the label sees, unless that is a delete or older than the view's time to live; a windowed
// feature aggregates the events that the label sees, or the versions that the changes it sees make; a feature on demand is computed last, of the others and of columns of the
// label itself. Over a patch stream a label sees a change for each column: the last one
// that carried the column or deleted the entity. [Build] writes Parquet and beside it a card: what was asked, of
// which snapshots, and an audit of how close to a label's time a feature it uses came, which is never after.
package pit
