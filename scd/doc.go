// Package scd turns the accepted changes of an entity into its versions: slowly changing dimension, type 2.
//
// A version holds the entity's state on the half-open interval [From, To) of event time. The versions of a key are
// disjoint and in order; where two touch, their tracked columns differ; the last is open, [Open] being its To, unless the
// last change was a delete. The history is a pure function of the accepted changes and their orders:
//
//   - changes apply in [feature.Order]; at one event time only the state after the last of them counts, so there is no
//     version of zero length;
//   - a change that leaves every tracked column as it was opens no version; the columns that are not tracked take the
//     value of the run's last change, in place;
//   - a delete ends the open version and leaves a gap; deleting what does not exist does nothing;
//   - a patch changes the columns it carries and leaves the others as they were; after a gap it starts from nulls.
//
// [Fold] is that function. [Advance] continues an open version where all changes are newer than everything the key has
// seen, and [Recompute] derives what an older change alters; both say it as a [Patch] to the stored versions, and give
// the same history. The package does no I/O, knows no clock and no column types: a [Row] is bytes in which equal values
// are equal bytes.
package scd
