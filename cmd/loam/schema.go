package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/loamdata/loam/feature"
	"github.com/loamdata/loam/ingest/schema"
)

func (a *app) schemaCommand() *cobra.Command {
	return a.parent(&cobra.Command{
		Use:     "schema",
		Short:   "Check the schemas that topics are written by",
		Example: "  loam schema check contact.avsc --stream contact",
	}, a.schemaCheckCommand())
}

// schemaCheck is what a schema is checked against.
type schemaCheck struct {
	stream     string
	references []string
	message    string
	registry   bool
	subject    string
}

func (a *app) schemaCheckCommand() *cobra.Command {
	var o schemaCheck
	c := &cobra.Command{
		Use:   "check FILE",
		Short: "Hold a schema file against a stream's columns",
		Long: `check tells in what a schema, of Avro (.avsc), Protobuf (.proto) or JSON Schema (.json), doesn't fit the columns of a stream,
a problem a line, and then ends with 1: a worker would end at the first event that is written by it. It is meant for the CI
of those who write topics. What the schema refers to is given as --reference NAME=FILE, each before what refers to it.

With --registry it also asks the project's registry whether the subject, <topic>-value unless --subject names it, could have the
schema as its next version. References are then those of the registry, --reference NAME=SUBJECT@VERSION.`,
		Example: "  loam schema check contact.avsc --stream contact",
		Args:    arguments(1, 1, "name a schema file, such as contact.avsc"),
		RunE: func(c *cobra.Command, args []string) error {
			f := schema.File{Name: args[0], Message: o.message}
			switch {
			case o.stream == "":
				return misused("name the stream with --stream")
			case f.Encoding() == "":
				return misused("%s is no schema file: its name ends in .avsc, .proto or .json", args[0])
			case o.subject != "" && !o.registry:
				return misused("--subject is one of the registry's: give --registry, too")
			case o.message != "" && f.Encoding() != feature.ProtobufEncoding:
				return misused("--message is of a .proto file")
			}
			for _, text := range o.references {
				r, err := parseReference(text, o.registry)
				if err != nil {
					return misuse{err}
				}
				f.References = append(f.References, r)
			}
			return a.checkSchema(c.Context(), f, o)
		},
	}
	c.Flags().StringVar(&o.stream, "stream", "", "the stream whose topic is written by the schema")
	c.Flags().StringArrayVar(&o.references, "reference", nil, "what the schema refers to: NAME=FILE, or with --registry NAME=SUBJECT@VERSION")
	c.Flags().StringVar(&o.message, "message", "", "of a .proto file: the message that events are (default: the first)")
	c.Flags().BoolVar(&o.registry, "registry", false, "ask the project's registry, too, whether the subject could have the schema")
	c.Flags().StringVar(&o.subject, "subject", "", "the subject that would have the schema (default: <topic>-value)")
	return c
}

// parseReference reads NAME=FILE, whose text is read later, or NAME=SUBJECT@VERSION.
func parseReference(text string, registered bool) (schema.Reference, error) {
	name, of, _ := strings.Cut(text, "=")
	if !registered {
		if name == "" || of == "" {
			return schema.Reference{}, fmt.Errorf("--reference %q: write NAME=FILE", text)
		}
		return schema.Reference{Name: name, Text: of}, nil
	}
	at := strings.LastIndexByte(of, '@')
	version, err := strconv.Atoi(of[at+1:])
	if name == "" || at < 1 || err != nil || version < 1 {
		return schema.Reference{}, fmt.Errorf("--reference %q: write NAME=SUBJECT@VERSION", text)
	}
	return schema.Reference{Name: name, Subject: of[:at], Version: version}, nil
}

// schemaReport is what was found of a schema, for machines.
type schemaReport struct {
	Stream   string           `json:"stream"`
	Schema   string           `json:"schema"`
	Problems []schema.Problem `json:"problems"`
	Subject  string           `json:"subject,omitempty"`
	New      bool             `json:"new_subject,omitempty"` // the registry doesn't have it yet
	Against  []string         `json:"against,omitempty"`     // what the registry says
}

func (a *app) checkSchema(ctx context.Context, f schema.File, o schemaCheck) error {
	p, err := a.load(ctx)
	if err != nil {
		return err
	}
	s, err := streamOf(p, o.stream)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(f.Name)
	if err != nil {
		return fmt.Errorf("read the schema: %w", err)
	}
	f.Text = string(text)
	var registry *schema.Registry
	if o.registry {
		if p.Registry.URL == "" {
			return fmt.Errorf("the project has no registry: say where it is in %s, such as registry: {url: https://registry.example.com}", feature.ProjectFile)
		}
		if registry, err = schema.Open(p.Registry, p.Dir); err != nil {
			return err
		}
	} else {
		for i, r := range f.References {
			text, err := os.ReadFile(r.Text)
			if err != nil {
				return fmt.Errorf("read what the schema refers to: %w", err)
			}
			f.References[i].Text = string(text)
		}
	}
	r := schemaReport{Stream: s.Name, Schema: f.Name}
	if r.Problems, err = schema.Check(ctx, s, f, registry); err != nil {
		return err
	}
	if registry != nil {
		r.Subject = cmp.Or(o.subject, s.Topic+"-value")
		var known bool
		if r.Against, known, err = registry.Compatible(ctx, r.Subject, f); err != nil {
			return err
		}
		r.New = !known
	}
	if err := a.result(r, func(w io.Writer) { drawSchema(w, r) }); err != nil {
		return err
	}
	if len(r.Problems)+len(r.Against) > 0 {
		return errReported
	}
	return nil
}

func drawSchema(w io.Writer, r schemaReport) {
	for _, p := range r.Problems {
		fmt.Fprintf(w, "%s: %s\n", r.Schema, plain(p.String()))
	}
	for _, m := range r.Against {
		fmt.Fprintf(w, "%s: subject %s: %s\n", r.Schema, r.Subject, plain(m))
	}
	if len(r.Problems) == 0 {
		fmt.Fprintf(w, "%s fits stream %s\n", r.Schema, r.Stream)
	}
	switch {
	case r.New:
		fmt.Fprintf(w, "subject %s has no version yet\n", r.Subject)
	case r.Subject != "" && len(r.Against) == 0:
		fmt.Fprintf(w, "subject %s could have it as its next version\n", r.Subject)
	}
}
