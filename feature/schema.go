package feature

import "embed"

// Schemas are the JSON Schemas of the project's files, for editors: loam.json, stream.json, features.json and
// dataset.json under schema/. A test holds them against what [Load] takes.
//
//go:embed schema/*.json
var Schemas embed.FS
