//go:build unix

package lake

import (
	"os"
	"syscall"
)

// mapFile maps a part of a file into memory, for reading and writing.
func mapFile(f *os.File, at int64, size int) ([]byte, error) {
	return syscall.Mmap(int(f.Fd()), at, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
}

func unmapFile(b []byte) { _ = syscall.Munmap(b) }
