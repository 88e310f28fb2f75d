package feature

import "testing"

func TestParseMemory(t *testing.T) {
	for text, want := range map[string]int64{
		"2GiB": 2 << 30, "500MB": 500e6, "65536KiB": 64 << 20, "64MiB": 64 << 20, "1GB": 1e9, "100000KB": 1e8, "999999999GiB": 999999999 << 30,
		"63MiB": 0, "2": 0, "2G": 0, "2 GiB": 0, "-2GiB": 0, "1.5GiB": 0, "2gib": 0, "": 0, "9999999999GiB": 0, "0GiB": 0,
	} {
		if got, err := ParseMemory(text); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v, want %d", text, got, err, want)
		}
	}
}
