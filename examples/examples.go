// Package examples holds the project folder that `loam init` starts from. It is a folder to copy, too.
package examples

import "embed"

// CRM is the folder crm: a project over the built-in streams.
//
//go:embed crm
var CRM embed.FS
