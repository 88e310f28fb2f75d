//go:build !loamcrash

package step

// At marks a step.
func At(Step) {}

// PollRecords is how many records a poll gives at most.
const PollRecords = 4096
