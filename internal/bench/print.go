package bench

import (
	"fmt"
	"io"
	"time"
)

// Print tells what a run with these options has measured.
func (r *Report) Print(w io.Writer, o Options) {
	rounded := func(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
	fmt.Fprintf(w, "filled with %d contacts in %s; opened in %s, with %d bytes of heap a contact\n",
		o.Keys, rounded(r.Fill), rounded(r.Open), r.HeapBytes/uint64(o.Keys))
	fmt.Fprintf(w, "%d batches of %d changes in %s\n", len(r.Samples), o.Batch, rounded(r.Elapsed))
	fmt.Fprintf(w, "  all:       %s\n", Summarize(r.Samples))
	if n := len(r.Samples); n >= 100 {
		fmt.Fprintf(w, "  first 50:  %s\n  last 50:   %s\n", Summarize(r.Samples[:50]), Summarize(r.Samples[n-50:]))
	}
	fmt.Fprintf(w, "%d rounds of compaction wrote %d rows in %s\n", r.Compactions, r.CompactedRows, rounded(r.Compaction))
	fmt.Fprintf(w, "reading all of the history: %s, and %s once it was written anew\n", rounded(r.Read), rounded(r.ReadFresh))
}
