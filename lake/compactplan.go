package lake

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/apache/iceberg-go"
)

// What is compacted, and when. The files of a partition stand in tiers by their number of rows, each tier holding some times
// the rows of the one below. A tier that holds so many files becomes one file with those below it: so a row is written again
// once a tier, and the files of a partition are as many as the logarithm of its rows.
//
// Large files are cut by time, and those of one time are no burden to the reader of another. They are due only where
// enough of them cover one instant.

// deletedShareMax is the share of a file's rows that are read in vain at most. A file with half of its rows deleted costs as
// many rows to write as were deleted from it.
const deletedShareMax = 0.5

// deleteFilesMax is the number of position delete files that a file of a table in format v2 has at most.
const deleteFilesMax = 100

// sizes are those of files and tiers.
type sizes struct {
	// tierFiles are the files of a tier that become one. Files of open versions weigh on every commit, since each deletes
	// rows from most of them; others on readers alone.
	tierFiles, openTierFiles int
	// fileRowsMax ends a file. A file of more than half of it is full: it stays until enough of its rows are deleted.
	fileRowsMax int64
	// cutRows is the least size of a file that is cut by time.
	cutRows int64
}

var usualSizes = sizes{tierFiles: 32, openTierFiles: 8, fileRowsMax: 1 << 20, cutRows: 1 << 17}

// tierOf is the number of files that a tier of this file's kind holds.
func (z sizes) tierOf(open bool) int {
	if open {
		return z.openTierFiles
	}
	return z.tierFiles
}

// job is a set of files of one partition to write again as one, or several where they are large.
type job struct {
	partition []any // values in the order of the spec
	files     []*liveFile
}

// rows is the number of rows to write.
func (j job) rows() int64 {
	var n int64
	for _, f := range j.files {
		n += f.rows()
	}
	return n
}

// planJobs lists what there is to compact, what does away with the most files first. With all, small files needn't
// fill a tier. open tells files of open versions, and span the times that a file covers.
func (z sizes) planJobs(spec iceberg.PartitionSpec, files []*liveFile, open func(*liveFile) bool, span func(*liveFile) (from, to int64), all bool) []job {
	var jobs []job
	for _, g := range partitions(spec, files) {
		if chosen := z.choose(g.files, z.tierOf(open(g.files[0])), span, all); len(chosen) > 0 {
			jobs = append(jobs, job{g.partition, chosen})
		}
	}
	slices.SortStableFunc(jobs, func(a, b job) int {
		return cmp.Or(cmp.Compare(len(b.files), len(a.files)), cmp.Compare(a.rows(), b.rows()))
	})
	return jobs
}

// partitions groups files by their partitions.
func partitions(spec iceberg.PartitionSpec, files []*liveFile) []*job {
	groups := map[string]*job{}
	for _, f := range files {
		partition := make([]any, spec.NumFields())
		for i := range partition {
			partition[i] = f.data.Partition()[spec.Field(i).FieldID]
		}
		name := fmt.Sprint(partition)
		if groups[name] == nil {
			groups[name] = &job{partition: partition}
		}
		groups[name].files = append(groups[name].files, f)
	}
	all := make([]*job, 0, len(groups))
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		all = append(all, groups[name])
	}
	return all
}

// choose gives the files of a partition to compact into one, or none.
func (z sizes) choose(files []*liveFile, tierFiles int, span func(*liveFile) (from, to int64), all bool) []*liveFile {
	var small, large []*liveFile
	for _, f := range files {
		switch rows := f.rows(); {
		case rows < z.cutRows:
			small = append(small, f)
		case rows <= z.fileRowsMax/2:
			large = append(large, f)
		}
	}
	slices.SortStableFunc(small, func(a, b *liveFile) int { return cmp.Compare(a.rows(), b.rows()) })
	due, from := 0, 0
	for i, f := range small {
		if i > 0 && tier(f.rows(), tierFiles) > tier(small[i-1].rows(), tierFiles) {
			from = i
		}
		if i+1-from >= tierFiles {
			due = i + 1
		}
	}
	if all && len(small) > 1 {
		due = len(small)
	}
	if due > 0 {
		return small[:due]
	}
	if deep := deepest(large, span); len(deep) >= tierFiles {
		return deep
	}
	for _, f := range files {
		if len(f.positions) > deleteFilesMax || f.deleted != nil && float64(f.deleted.Cardinality()) > deletedShareMax*float64(f.data.Count()) {
			return []*liveFile{f}
		}
	}
	return nil
}

// deepest gives the files that cover the instant that the most files cover.
func deepest(files []*liveFile, span func(*liveFile) (from, to int64)) []*liveFile {
	var most []*liveFile
	for _, f := range files {
		at, _ := span(f) // the most files cover the beginning of one of them
		var covering []*liveFile
		for _, g := range files {
			if from, to := span(g); from <= at && at <= to {
				covering = append(covering, g)
			}
		}
		if len(covering) > len(most) {
			most = covering
		}
	}
	return most
}

// tier is the logarithm of a file's rows to the base of a tier's files.
func tier(rows int64, base int) int {
	n := 0
	for ; rows >= int64(base); rows /= int64(base) {
		n++
	}
	return n
}

// cuts divides the rows of weeks, in order of time, into parts of at least cutRows. It gives the beginnings of the second
// part and those after it.
func (z sizes) cuts(weeks []week) []int64 {
	var total, rows int64
	for _, w := range weeks {
		total += w.rows
	}
	var starts []int64
	for _, w := range weeks {
		if rows >= z.cutRows && total >= z.cutRows {
			starts = append(starts, w.start)
			rows = 0
		}
		rows += w.rows
		total -= w.rows
	}
	return starts
}

// Weeks, in microseconds since 1970 UTC.
const (
	weekLength  = "604800000000"
	firstMonday = "345600000000"
)

// week is a week of event time and how many rows are of it.
type week struct {
	start int64 // microseconds since 1970 UTC
	rows  int64
}
