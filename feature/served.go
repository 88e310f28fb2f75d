package feature

// ServedRow is what was served of one entity in one view, as the table feature_log keeps it.
type ServedRow struct {
	ServedAt   int64  // the instant that the values are of, microseconds since 1970 UTC
	Request    string // rows of one request share it
	Service    string // "" where features were asked for by name
	View       string
	Definition string   // hash of the view's definition
	Generation int64    // of the view in Redis
	Entity     []string // join keys as text, in the order of their names
	Features   []string
	Values     []*string // by feature, as text: docs/redis.md; nil where no value was served
	Statuses   []string  // by feature
	Order      string    // the guard _v that was seen, "" without one
	// Guards are further guards that were seen: of a patch stream by column, and _d; of a windowed view by source; of values as of an instant as_of alone.
	Guards map[string]string
	// Marks are the offsets up to which Redis was written, at the read or before it. Nil where they were not known.
	Marks map[Partition]int64
}
