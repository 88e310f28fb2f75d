package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
)

func (a *app) datasetCommand() *cobra.Command {
	return a.parent(&cobra.Command{
		Use:     "dataset",
		Short:   "Build training sets, show, verify and rebuild them",
		Example: "  loam dataset build datasets/churn.yaml\n  loam dataset show churn.card.json",
	}, a.datasetBuildCommand(), a.datasetShowCommand(), a.datasetListCommand(), a.datasetDiffCommand(), a.datasetVerifyCommand(),
		a.datasetRebuildCommand(), a.datasetUnpinCommand())
}

// findRequest finds a request by its name or its file.
func findRequest(p *feature.Project, text string) (*feature.DatasetRequest, error) {
	for _, d := range p.Datasets {
		if d.Name == text || d.At.File == text {
			return d, nil
		}
		if same(filepath.Join(p.Dir, d.At.File), text) {
			return d, nil
		}
	}
	if _, err := os.Stat(text); errors.Is(err, fs.ErrNotExist) {
		var names []string
		for _, d := range p.Datasets {
			names = append(names, d.Name)
		}
		if len(names) == 0 {
			names = []string{"none: write one under datasets/, or give flags"}
		}
		return nil, fmt.Errorf("there is no request %s; the project has %s", text, strings.Join(names, ", "))
	}
	return nil, fmt.Errorf("%s is not under %s: move it there, so that it is checked with the project", text, filepath.Join(p.Dir, "datasets"))
}

func noService(p *feature.Project, name string) error {
	known := "the project has none"
	if len(p.Services) > 0 {
		names := make([]string, len(p.Services))
		for i, s := range p.Services {
			names[i] = s.Name
		}
		known = "known: " + strings.Join(names, ", ")
	}
	return fmt.Errorf("there is no feature service %q; %s", name, known)
}

// same reports whether two paths lead to one file.
func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
