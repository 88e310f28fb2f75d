package feature

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Lake says where the Iceberg tables are.
type Lake struct {
	Catalog       string            // path of a sqlite file, or the address of an Iceberg REST catalog
	Warehouse     string            // a folder, or s3://bucket/prefix
	FormatVersion int               // of Iceberg: 2 or 3
	ViewCatalog   string            // the name that readers of the views give to the catalog; "" leaves it to them
	Properties    map[string]string // handed to the catalog and its file IO: s3.endpoint, token, …
}

// REST reports whether the catalog is a REST catalog.
func (l Lake) REST() bool {
	return strings.HasPrefix(l.Catalog, "http://") || strings.HasPrefix(l.Catalog, "https://")
}

// Broker says where the topics are; without seeds they are folders under .loam/topics.
type Broker struct {
	Seeds []string // host:port
	Group string   // of the consumers that share the topics
	TLS   TLS
	SASL  SASL
}

// Online says where the online values are; without an address get and serve load them from the lake.
type Online struct {
	Redis    string // host:port, several joined by commas, or "" for none
	Cluster  bool   // it is a Redis Cluster
	TLS      TLS
	User     string // "" for the default user
	Password Credential
}

// Registry says where the schemas of framed topics are.
type Registry struct {
	URL      string // http:// or https://, "" for none
	Username Credential
	Password Credential // never with a Text
}

// Project is a checked project folder.
type Project struct {
	Name     string // namespace of the tables, prefix of the Redis keys
	Dir      string // the folder, absolute
	Lake     Lake
	Broker   Broker
	Registry Registry
	Online   Online
	Serve    Serve
	// MemoryBytes bounds the memory of the DuckDB that builds training sets; 0 leaves its default of 80 % of the machine's.
	MemoryBytes int64
	Streams     []*Stream // built-in and declared, by name
	Entities    []*Entity
	Views       []*View
	Services    []*Service
	Datasets    []*DatasetRequest
}

// Stream returns the stream with this name, or nil.
func (p *Project) Stream(name string) *Stream {
	return find(p.Streams, func(s *Stream) bool { return s.Name == name })
}

// Entity returns the entity with this name, or nil.
func (p *Project) Entity(name string) *Entity {
	return find(p.Entities, func(e *Entity) bool { return e.Name == name })
}

// View returns the feature view with this name, or nil.
func (p *Project) View(name string) *View {
	return find(p.Views, func(v *View) bool { return v.Name == name })
}

// Service returns the feature service with this name, or nil.
func (p *Project) Service(name string) *Service {
	return find(p.Services, func(s *Service) bool { return s.Name == name })
}

// StreamOf returns the stream that takes events of this type, or nil.
func (p *Project) StreamOf(eventType string) *Stream {
	return find(p.Streams, func(s *Stream) bool { return s.Format == EnvelopeFormat && s.Takes(eventType) })
}

func find[T any](list []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(list, is); i >= 0 {
		return list[i]
	}
	return nil
}

// Resolve turns feature references as users write them into features that exist, in the order asked for, wildcards
// spread out and repeats dropped.
func (p *Project) Resolve(texts []string) ([]Ref, error) {
	var refs []Ref
	for _, text := range texts {
		ref, err := ParseRef(strings.TrimSpace(text))
		if err != nil {
			return nil, err
		}
		view := p.View(ref.View)
		if view == nil {
			return nil, fmt.Errorf("there is no feature view %q; %s", ref.View, didYouMean(ref.View, p.viewNames()))
		}
		names := view.FeatureNames()
		if ref.Feature != "*" {
			if !slices.Contains(names, ref.Feature) {
				return nil, fmt.Errorf("feature view %s has no feature %q; %s", view.Name, ref.Feature, didYouMean(ref.Feature, names))
			}
			names = []string{ref.Feature}
		}
		for _, name := range names {
			if r := (Ref{View: view.Name, Feature: name}); !slices.Contains(refs, r) {
				refs = append(refs, r)
			}
		}
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("no features are asked for; name a service or features such as profile:mkt_status")
	}
	return refs, nil
}

func (p *Project) viewNames() []string {
	names := make([]string, len(p.Views))
	for i, v := range p.Views {
		names[i] = v.Name
	}
	sort.Strings(names)
	return names
}
