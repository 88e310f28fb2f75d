package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/loamdata/loam/feature"
)

// instancesMax bounds how many workers of one project folder are known across restarts.
const instancesMax = 64

// takeInstance gives a name that no other worker of this machine's has, and the next one gets once this has ended, however it ends:
// a consumer group knows a worker by it that was killed, and gives it its partitions at once. It is "" where there is none.
func takeInstance(p *feature.Project) (name string, free func()) {
	host, err := os.Hostname()
	if err != nil {
		return "", func() {}
	}
	dir, err := filepath.Abs(p.Dir)
	if err != nil {
		return "", func() {}
	}
	where := sha256.Sum256([]byte(host + "\x00" + dir))
	slots := filepath.Join(p.Dir, ".loam", "workers")
	if err := os.MkdirAll(slots, 0o755); err != nil {
		return "", func() {}
	}
	for i := range instancesMax {
		f, err := os.OpenFile(filepath.Join(slots, fmt.Sprint(i)), os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return "", func() {}
		}
		if locked, err := lockFile(f); err == nil && locked {
			return fmt.Sprintf("loam-%s-%d", hex.EncodeToString(where[:6]), i), func() { f.Close() }
		}
		f.Close()
	}
	return "", func() {}
}
