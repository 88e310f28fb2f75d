package lake

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/apache/iceberg-go"

	"github.com/loamdata/loam/feature"
)

// Table properties and snapshot summary keys of loam. They are frozen.
const (
	propertyFormat  = "loam.format" // the version of these tables' layout
	tableFormat     = "1"
	propertyHead    = "loam.head"    // id of the newest snapshot that loam wrote
	propertyOffset  = "loam.offset." // + <topic>.<partition>: an Offset as JSON
	propertyFiles   = "loam.files"   // the newest files read, oldest first, as JSON
	propertyHold    = "loam.hold"    // other writers wait until then, microseconds since 1970, unless it is removed before
	propertyRewind  = "loam.rewind"  // of a log: the rewind that was the last, as JSON
	propertyRedrive = "loam.redrive" // the redrive that was the last, as JSON; see Redrive
	propertyAsOf    = "loam.as_of."  // + <view>, of a log: the instant that the view is served as of, RFC 3339; see Lake.Freeze
	propertyStream  = "loam.stream"  // of a log or a history: what of its stream's definitions it rests on, as JSON
	summaryCommit   = "loam.commit"  // id of the commit
	summaryOffsets  = "loam.offsets" // {"<topic>.<partition>": next offset} that the commit moved
	summaryRewound  = "loam.rewound" // "true" where the commit took rows back that were accepted
	summaryRebuilt  = "loam.rebuilt" // "true" where the commit put a history derived anew in place of all that was there
)

// filesMax bounds how many files a table remembers; the events of older ones are known by their ids.
const filesMax = 1000

// Offset is where a table stands in one partition.
type Offset struct {
	TopicID    string `json:"topic_id,omitempty"` // the broker's id of the topic
	Next       int64  `json:"next"`               // the first offset that the table has not taken
	Commit     string `json:"commit"`             // id of the commit that moved it here
	Watermark  int64  `json:"watermark"`          // event time up to which the partition is complete, microseconds
	RecordedAt int64  `json:"recorded_at"`        // newest recorded_at, microseconds
	Newest     *int64 `json:"newest,omitempty"`   // newest event time of what was accepted, microseconds
	feature.Counts
}

// File is where a table stands in one file.
type File struct {
	SHA256 string `json:"sha256"`
	Next   int64  `json:"next"` // the first line or row that the table has not taken
	Done   bool   `json:"done,omitempty"`
	Commit string `json:"commit"`
	// Watermark is the newest event time in the file, microseconds.
	Watermark int64  `json:"watermark"`
	Newest    *int64 `json:"newest,omitempty"` // newest event time of what was accepted, microseconds
	feature.Counts
}

// Offsets are all that a table has taken.
type Offsets struct {
	Partitions map[feature.Partition]Offset
	Files      []File // oldest first
	Redrive    Redrive
}

// Of gives where the table stands in a partition, or in a file by its topic, and whether it has any of it.
func (o *Offsets) Of(p feature.Partition) (Offset, bool) {
	if sha, ok := strings.CutPrefix(p.Topic, feature.FileTopicPrefix); ok {
		if i := o.file(sha); i >= 0 {
			f := o.Files[i]
			return Offset{Next: f.Next, Commit: f.Commit, Watermark: f.Watermark, Newest: f.Newest, Counts: f.Counts}, true
		}
		return Offset{}, false
	}
	offset, ok := o.Partitions[p]
	return offset, ok
}

// Passed reports whether the table has taken a position. A file that it doesn't know counts as one that it has forgotten, once there are
// so many that it forgets any.
func (o *Offsets) Passed(p feature.Position) bool {
	at, known := o.Of(partitionOf(p))
	if strings.HasPrefix(p.Topic, feature.FileTopicPrefix) && !known {
		return len(o.Files) == filesMax
	}
	return p.Offset < at.Next
}

func (o *Offsets) file(sha string) int {
	return slices.IndexFunc(o.Files, func(f File) bool { return f.SHA256 == sha })
}

// Watermark is the event time up to which everything is taken as complete: the least of the partitions', or where there
// are only files the newest event time in them. It is false for an empty table.
func (o *Offsets) Watermark() (int64, bool) {
	var mark int64
	found := false
	for _, p := range o.Partitions {
		if !found || p.Watermark < mark {
			mark, found = p.Watermark, true
		}
	}
	if found {
		return mark, true
	}
	for _, f := range o.Files {
		if !found || f.Watermark > mark {
			mark, found = f.Watermark, true
		}
	}
	return mark, found
}

// Counts are the sums over partitions and the files that are remembered.
func (o *Offsets) Counts() feature.Counts {
	var sum feature.Counts
	for _, p := range o.Partitions {
		sum.Add(p.Counts)
	}
	for _, f := range o.Files {
		sum.Add(f.Counts)
	}
	return sum
}

// Besides tells what files and redrives have brought to a log, whose rows no topic's offsets tell of: where it is the same as it was, they
// have brought none since. It is "" of a log that has none, else 16 hexadecimal digits. It changes, too, when a file that brought rows is
// forgotten.
func (o *Offsets) Besides() string {
	var came []string
	for _, f := range o.Files {
		if f.Accepted > 0 {
			came = append(came, f.SHA256+" "+strconv.FormatInt(f.Accepted, 10))
		}
	}
	if o.Redrive.JobID != "" {
		came = append(came, o.Redrive.JobID)
	}
	if came == nil {
		return ""
	}
	slices.Sort(came)
	sum := sha256.Sum256([]byte(strings.Join(came, "\n")))
	return hex.EncodeToString(sum[:8])
}

// parseOffsets reads a table's properties.
func parseOffsets(props iceberg.Properties) (Offsets, error) {
	o := Offsets{Partitions: map[feature.Partition]Offset{}}
	for key, value := range props {
		name, ok := strings.CutPrefix(key, propertyOffset)
		if !ok {
			continue
		}
		dot := strings.LastIndexByte(name, '.')
		index, err := strconv.ParseInt(name[dot+1:], 10, 32)
		var offset Offset
		if dot < 1 || err != nil || json.Unmarshal([]byte(value), &offset) != nil {
			return o, fmt.Errorf("table property %s is not an offset: %q", key, value)
		}
		o.Partitions[feature.Partition{Topic: name[:dot], Index: int32(index)}] = offset
	}
	if text, ok := props[propertyFiles]; ok {
		if err := json.Unmarshal([]byte(text), &o.Files); err != nil {
			return o, fmt.Errorf("table property %s is not a list of files: %w", propertyFiles, err)
		}
	}
	if text, ok := props[propertyRedrive]; ok {
		if err := json.Unmarshal([]byte(text), &o.Redrive); err != nil {
			return o, fmt.Errorf("table property %s is not a redrive: %w", propertyRedrive, err)
		}
		if !strings.HasPrefix(o.Redrive.JobID, feature.RedriveJobPrefix) {
			return o, fmt.Errorf("table property %s names no redrive: %q", propertyRedrive, o.Redrive.JobID)
		}
	}
	return o, nil
}

// move applies the spans of a batch: every one must start where the table stands. It returns the properties to set.
func (o *Offsets) move(spans []feature.Span, commit string) (iceberg.Properties, error) {
	props := iceberg.Properties{}
	files := false
	for _, s := range spans {
		if job, ok := feature.RedriveJob(s.Topic); ok {
			o.Redrive = Redrive{JobID: job}
			props[propertyRedrive] = mustJSON(o.Redrive)
			continue
		}
		at, known := o.Of(s.Partition)
		if at.Next != s.From {
			return nil, fmt.Errorf("%w: partition %d of %s stands at offset %d, the batch starts at %d", ErrFenced, s.Index, s.Topic, at.Next, s.From)
		}
		if known && at.TopicID != s.TopicID {
			return nil, fmt.Errorf("topic %s has id %q, and the table was filled from one with id %q: the topic was made anew; "+
				"give the stream another name, or remove its tables", s.Topic, s.TopicID, at.TopicID)
		}
		at.Next, at.Commit, at.TopicID = s.To, commit, s.TopicID
		at.Counts.Add(s.Counts)
		at.Watermark, at.RecordedAt = max(at.Watermark, s.Watermark), max(at.RecordedAt, s.RecordedAt)
		if s.Newest != nil {
			at.Newest = s.Newest
		}
		if sha, ok := strings.CutPrefix(s.Topic, feature.FileTopicPrefix); ok {
			o.putFile(File{SHA256: sha, Next: at.Next, Done: s.Done, Commit: commit, Watermark: at.Watermark, Newest: at.Newest, Counts: at.Counts})
			files = true
			continue
		}
		o.Partitions[s.Partition] = at
		props[offsetProperty(s.Partition)] = mustJSON(at)
	}
	if files {
		props[propertyFiles] = mustJSON(o.Files)
	}
	return props, nil
}

// tally is a number of events by partition.
type tally map[feature.Partition]int64

// tie adds ties to the counts, and sets the properties of where they are kept. Those of a file that is forgotten are forgotten with it.
func (o *Offsets) tie(ties tally, props iceberg.Properties) {
	for p, n := range ties {
		if sha, ok := strings.CutPrefix(p.Topic, feature.FileTopicPrefix); ok {
			if i := o.file(sha); i >= 0 {
				o.Files[i].Ties += n
				props[propertyFiles] = mustJSON(o.Files)
			}
			continue
		}
		if at, ok := o.Partitions[p]; ok {
			at.Ties += n
			o.Partitions[p] = at
			props[offsetProperty(p)] = mustJSON(at)
		}
	}
}

func offsetProperty(p feature.Partition) string {
	return propertyOffset + p.Topic + "." + strconv.Itoa(int(p.Index))
}

// putFile moves a file to the end of the list and forgets the oldest ones beyond filesMax.
func (o *Offsets) putFile(f File) {
	if i := o.file(f.SHA256); i >= 0 {
		o.Files = slices.Delete(o.Files, i, i+1)
	}
	o.Files = append(o.Files, f)
	if n := len(o.Files) - filesMax; n > 0 {
		o.Files = slices.Delete(o.Files, 0, n)
	}
}

// offsetsSummary is what a commit's summary says of the offsets that it moved.
func offsetsSummary(spans []feature.Span) string {
	moved := map[string]int64{}
	for _, s := range spans {
		moved[s.Topic+"."+strconv.Itoa(int(s.Index))] = s.To
	}
	return mustJSON(moved)
}

func mustJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // plain values always encode
	}
	return string(text)
}
