package main

import "github.com/loamdata/loam/feature"

// defined is what a project defines, for machines that ask for features by name. Lists are in declared order, never null.
type defined struct {
	Entities []definedEntity  `json:"entities"`
	Views    []definedView    `json:"feature_views"`
	Services []definedService `json:"feature_services"`
}

type definedEntity struct {
	Name     string   `json:"name"`
	JoinKeys []string `json:"join_keys"`
}

type definedView struct {
	Name     string           `json:"name"`
	Entity   string           `json:"entity"`
	Stream   string           `json:"stream"`
	TTL      string           `json:"ttl"` // a duration as it is written in the folder; "0" for ever
	Features []definedFeature `json:"features"`
}

type definedFeature struct {
	Name string `json:"name"`
	Type string `json:"type"`
}

type definedService struct {
	Name     string   `json:"name"`
	Features []string `json:"features"` // view:feature, spread out
}

func definedIn(p *feature.Project) defined {
	d := defined{Entities: []definedEntity{}, Views: []definedView{}, Services: []definedService{}}
	for _, e := range p.Entities {
		d.Entities = append(d.Entities, definedEntity{e.Name, e.JoinKeys})
	}
	for _, v := range p.Views {
		view := definedView{Name: v.Name, Entity: v.Entity, Stream: v.Stream, TTL: feature.FormatDuration(v.TTL), Features: []definedFeature{}}
		for _, name := range v.FeatureNames() {
			view.Features = append(view.Features, definedFeature{name, v.FeatureType(p.Stream(v.Stream), name).String()})
		}
		d.Views = append(d.Views, view)
	}
	for _, s := range p.Services {
		service := definedService{Name: s.Name, Features: []string{}}
		for _, f := range s.Features {
			service.Features = append(service.Features, f.String())
		}
		d.Services = append(d.Services, service)
	}
	return d
}
