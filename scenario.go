// Package autodgate carries the scenarios of the lab inside the program, so that an installed binary needs no source tree to run
// them. Nothing else lives here: the program is cmd/autodgate, the packages are beside this file.
package autodgate

import "embed"

// Scenarios holds testdata/scenario/*.yaml, which package lab loads by name.
//
//go:embed testdata/scenario/*.yaml
var Scenarios embed.FS
