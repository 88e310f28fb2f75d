package lake

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	iceio "github.com/apache/iceberg-go/io"
)

// durableFS is the local file system with one promise more than iceberg-go's: when a written file is closed, it and
// every folder made for it are on disk. Table metadata is written last, so all that a catalog entry leads to is synced
// before the catalog moves to it.
type durableFS struct{ iceio.LocalFS }

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
	f, err := os.Create(path)
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
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.File.Close())
	}
	if err := f.File.Close(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(f.Name()))
}

// mkdirAllSynced makes dir and the folders above it that are missing, each synced in the one that holds it.
func mkdirAllSynced(dir string) error {
	err := os.Mkdir(dir, 0o755)
	switch {
	case err == nil:
		return syncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := mkdirAllSynced(filepath.Dir(dir)); err != nil {
			return err
		}
		return mkdirAllSynced(dir)
	default:
		return err
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
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
