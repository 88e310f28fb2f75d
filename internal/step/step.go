// Package step names the steps at which a test may end the process, as a crash would, to see that nothing is lost and nothing
// stands twice. Built without the tag loamcrash, [At] does nothing and costs nothing.
//
// With the tag, LOAM_CRASH=<step>:<n> has the process killed at the step once that has been passed n times before, by any of its
// goroutines, and LOAM_STEPS=<file> has the name of every step that is passed appended to the file.
package step

// Step is a place between two effects that outlive the process. What a crash there leaves and what mends it is in docs/crashes.md.
type Step string

// The worker, up to the lake.
const (
	Polled           Step = "polled"               // records are read
	Decoded          Step = "decoded"              // and those that name a schema are JSON
	Routed           Step = "routed"               // duplicates are decided on
	LettersProduced  Step = "letters-produced"     // dead letters are on their topics
	LettersWritten   Step = "letters-written"      // the files of dead letters are written
	LettersCommitted Step = "letters-committed"    // the table of dead letters names them
	LogWritten       Step = "log-written"          // the files of the log are written
	LogStaged        Step = "log-staged"           // and the commit that names them is put together
	CatalogMoved     Step = "catalog-moved"        // a commit of any table is taken, and nobody has been told
	LogCommitted     Step = "log-committed"        // the log has the batch, the history has nothing of it
	OffsetsCommitted Step = "offsets-committed"    // the log has moved its offsets alone
	HistoryPlanned   Step = "history-planned"      // versions are derived
	HistoryWritten   Step = "history-written"      // files and deletion vectors of the history are written
	HistoryStaged    Step = "history-staged"       // and the commit that names them is put together
	HistoryCommitted Step = "history-committed"    // the history has the batch
	ManifestsMerged  Step = "manifests-merged"     // upkeep has merged manifests
	Expired          Step = "snapshots-expired"    // upkeep has expired snapshots
	CompactPlanned   Step = "compaction-planned"   // it is chosen which files are written again
	CompactWritten   Step = "compaction-written"   // new files are written
	CompactCommitted Step = "compaction-committed" // and stand in place of the old ones
)

// The online store.
const (
	OnlineBegun         Step = "online-begun"         // marks say from where on a generation is written
	OnlineWritten       Step = "online-written"       // values are written, marks are behind
	OnlineMarked        Step = "online-marked"        // marks say so
	OnlineCaughtUp      Step = "online-caught-up"     // what a generation lacked is written, marks are behind
	GenerationEntered   Step = "generation-entered"   // a generation is there, and empty
	GenerationPart      Step = "generation-part"      // parts of its entities are written, and it says so
	GenerationFilled    Step = "generation-filled"    // it has the values of its snapshot
	GenerationCompleted Step = "generation-completed" // and the offsets of that
	GenerationSwitched  Step = "generation-switched"  // it is the one that is read, the older ones are there
	GenerationAlone     Step = "generation-alone"     // the older ones are removed
)

// Commands of their own.
const (
	RedriveCommitted  Step = "redrive-committed"  // rows of dead letters are in the log, the history has nothing of them
	RedriveOnline     Step = "redrive-online"     // what follows is in history and online store
	RedriveMarked     Step = "redrive-marked"     // the letters say so, the log doesn't
	RewindLog         Step = "rewind-log"         // the log is taken back
	RewindLetters     Step = "rewind-letters"     // and the dead letters
	RewindHistory     Step = "rewind-history"     // and the history
	RewindViews       Step = "rewind-views"       // and the views are forgotten
	RebuildDerived    Step = "rebuild-derived"    // the files of a new history are written
	RebuildHeld       Step = "rebuild-held"       // others are asked to wait
	RebuildCommitted  Step = "rebuild-committed"  // the new history stands
	BackfillCommitted Step = "backfill-committed" // a batch of a file is in the lake, the online store lacks it
)

// All are the steps.
var All = []Step{
	Polled, Decoded, Routed, LettersProduced, LettersWritten, LettersCommitted, LogWritten, LogStaged, CatalogMoved, LogCommitted, OffsetsCommitted,
	HistoryPlanned, HistoryWritten, HistoryStaged, HistoryCommitted, ManifestsMerged, Expired, CompactPlanned, CompactWritten, CompactCommitted,
	OnlineBegun, OnlineWritten, OnlineMarked, OnlineCaughtUp, GenerationEntered, GenerationPart, GenerationFilled, GenerationCompleted, GenerationSwitched,
	GenerationAlone, RedriveCommitted, RedriveOnline, RedriveMarked, RewindLog, RewindLetters, RewindHistory, RewindViews,
	RebuildDerived, RebuildHeld, RebuildCommitted, BackfillCommitted,
}
