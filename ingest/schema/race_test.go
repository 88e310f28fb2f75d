//go:build race

package schema

// underRace says that the race detector counts its own allocations among those of a test.
const underRace = true
