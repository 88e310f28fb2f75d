package lake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	iceio "github.com/apache/iceberg-go/io"
)

// durableFS is the local file system with one promise more than iceberg-go's: when a written file is closed, it and
// every folder that leads to it are on disk. Table metadata is written last, so all that a catalog entry leads to is synced
// before the catalog moves to it.
type durableFS struct{ iceio.LocalFS }

// diskOp is a kind of step on the disk that decides what a power cut leaves.
type diskOp int

const (
	opCreate diskOp = iota // of a file
	opMkdir
	opSyncFile
	opSyncDir // of the entries in a folder
)

// diskStep takes a step on the disk. A test puts a function in its place that notes the order of steps, or leaves some out.
var diskStep = func(_ diskOp, _ string, take func() error) error { return take() }

func init() {
	durable := func(context.Context, *url.URL, map[string]string) (iceio.IO, error) { return durableFS{}, nil }
	for _, scheme := range []string{"file", ""} {
		iceio.Unregister(scheme)
		iceio.Register(scheme, durable)
	}
}

// Create makes the file and the folders that lead to it.
func (d durableFS) Create(name string) (iceio.FileWriter, error) {
	path, err := localPath(name)
	if err != nil {
		return nil, err
	}
	if err := mkdirAllSynced(filepath.Dir(path)); err != nil {
		return nil, err
	}
	var f *os.File
	err = diskStep(opCreate, path, func() (err error) {
		f, err = os.Create(path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &durableFile{File: f}, nil
}

// WriteFile makes the file with this content.
func (d durableFS) WriteFile(name string, content []byte) error {
	w, err := d.Create(name)
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

// durableFile syncs itself and its folder when it is closed.
type durableFile struct{ *os.File }

func (f *durableFile) Close() error {
	if err := diskStep(opSyncFile, f.Name(), f.Sync); err != nil {
		return errors.Join(err, f.File.Close())
	}
	if err := f.File.Close(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(f.Name()))
}

// entered are the folders that this process has synced in the ones that hold them, up to the root.
var entered sync.Map

// mkdirAllSynced makes dir and the folders above it that are missing, and syncs each in the one that holds it: once, too,
// where it was there, for who made it may have been killed before it came to that, or not have come to it yet.
func mkdirAllSynced(dir string) error {
	above := filepath.Dir(dir)
	if above == dir {
		return nil
	}
	err := diskStep(opMkdir, dir, func() error { return os.Mkdir(dir, 0o755) })
	there := err != nil
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := mkdirAllSynced(above); err != nil {
			return err
		}
		return mkdirAllSynced(dir)
	case there && !isDir(dir):
		return err
	case there:
		if _, done := entered.Load(dir); done {
			return nil
		}
	}
	if err := mkdirAllSynced(above); err != nil {
		return err
	}
	// Folders far above may be somebody else's, or of a file system that has nothing to sync.
	if err := syncDir(above); err != nil && !(there && (errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EINVAL))) {
		return err
	}
	entered.Store(dir, true)
	return nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func syncDir(dir string) error {
	return diskStep(opSyncDir, dir, func() error {
		d, err := os.Open(dir)
		if err != nil {
			return err
		}
		return errors.Join(d.Sync(), d.Close())
	})
}

// localPath is the path of a file:// URI or of a plain path.
func localPath(name string) (string, error) {
	u, err := url.Parse(name)
	if err != nil || u.Scheme == "" {
		return name, nil
	}
	if u.Scheme != "file" {
		return "", fmt.Errorf("%s is not a local file", name)
	}
	return filepath.FromSlash(u.Path), nil
}

// fileURI is the file:// URI of an absolute path.
func fileURI(path string) string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(path)}).String()
}
