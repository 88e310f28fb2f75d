package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/examples"
	"github.com/loamdata/loam/feature"
)

func (a *app) initCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIR]",
		Short: "Make a project folder to start from",
		Long: `init writes a project folder over the built-in streams contact, opportunity and engagement: loam.yaml, two feature
views, a feature service and a dataset request. It writes over no file.`,
		Example: "  loam init crm && cd crm && loam validate",
		Args:    arguments(0, 1, ""),
		RunE: func(c *cobra.Command, args []string) error {
			dir := a.dir
			if len(args) == 1 {
				if c.Flags().Changed("dir") {
					return misused("-C %s and %s both name the folder: give one", a.dir, args[0])
				}
				dir = args[0]
			}
			name, err := initProject(dir)
			if err != nil {
				return err
			}
			in := ""
			if dir != "." {
				in = "cd " + quoted(dir) + ", then "
			}
			fmt.Fprintf(a.out, "project %s is in %s\nnext: %sloam backfill FILE, or loam simulate --out events for made-up ones\n", name, dir, in)
			return nil
		},
	}
}

var notInNames = regexp.MustCompile(`[^a-z0-9_]+`)

// initProject writes the example project into a folder, named after it.
func initProject(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the folder: %w", err)
	}
	name := strings.Trim(notInNames.ReplaceAllString(strings.ToLower(filepath.Base(abs)), "_"), "_")
	if name == "" {
		name = "project"
	}
	if name[0] < 'a' || name[0] > 'z' {
		name = "p_" + name
	}
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "_")
	}
	files := map[string][]byte{".gitignore": []byte(".loam/\n")}
	example, err := fs.Sub(examples.CRM, "crm")
	if err != nil {
		return "", err
	}
	for _, from := range []struct {
		fs fs.FS
		to string
	}{{example, "."}, {mustSub(feature.Schemas, "schema"), ".schema"}} {
		err := fs.WalkDir(from.fs, ".", func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			text, err := fs.ReadFile(from.fs, path)
			files[filepath.Join(from.to, path)] = text
			return err
		})
		if err != nil {
			return "", fmt.Errorf("read the example project: %w", err)
		}
	}
	project := string(files[feature.ProjectFile])
	files[feature.ProjectFile] = []byte(regexp.MustCompile(`(?m)^project: \S+( *)`).ReplaceAllString(project, "project: "+name+"$1"))
	for _, path := range append([]string{feature.ProjectFile}, slices.Sorted(maps.Keys(files))...) {
		if _, err := os.Stat(filepath.Join(abs, path)); err == nil && path != ".gitignore" {
			return "", fmt.Errorf("%s is there already; init writes over no file", filepath.Join(dir, path))
		}
	}
	for path, text := range files {
		full := filepath.Join(abs, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return "", fmt.Errorf("make the project folder: %w", err)
		}
		if _, err := os.Stat(full); err == nil || !errors.Is(err, fs.ErrNotExist) {
			continue // a .gitignore of the folder's own
		}
		if err := os.WriteFile(full, text, 0o644); err != nil {
			return "", fmt.Errorf("write the project folder: %w", err)
		}
	}
	return name, nil
}

var safeInShell = regexp.MustCompile(`^[A-Za-z0-9_./-]+$`)

// quoted is a path as a shell takes it.
func quoted(path string) string {
	if safeInShell.MatchString(path) {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

func mustSub(f fs.FS, dir string) fs.FS {
	sub, err := fs.Sub(f, dir)
	if err != nil {
		panic(err) // the folder is embedded
	}
	return sub
}
