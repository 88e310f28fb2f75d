package feature

import (
	"fmt"
	"regexp"
	"strconv"
)

var bytesText = regexp.MustCompile(`^(\d{1,9})(KiB|MiB|GiB|KB|MB|GB)$`)

var bytesUnits = map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 1e3, "MB": 1e6, "GB": 1e9}

// MemoryMin is the least memory that DuckDB is run with, in bytes: with less it can't hold what it reads at once.
const MemoryMin = 64 << 20

// ParseMemory reads an amount of memory, a whole number and a unit such as 2GiB or 500MB, of at least [MemoryMin], in bytes.
func ParseMemory(text string) (int64, error) {
	m := bytesText.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%q is no amount of memory; write a whole number and KiB, MiB, GiB, KB, MB or GB, such as 2GiB", text)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is no amount of memory: %w", text, err)
	}
	if n *= bytesUnits[m[2]]; n < MemoryMin {
		return 0, fmt.Errorf("%s is too little memory for DuckDB; give it at least %dMiB", text, MemoryMin>>20)
	}
	return n, nil
}
