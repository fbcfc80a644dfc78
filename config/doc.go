// Package config is what the YAML file of the front door may say.
//
// A file goes through four steps, each in a file of its own:
//
//	source.go    bytes → syntax tree; only plain YAML of a bounded size gets through
//	decode.go    tree → types; unknown keys, doubled keys, wrong types, unreadable values
//	validate*.go types → problems; everything that takes more than one value to judge
//	report.go    problems → text with the source line and a caret
//
// The first step stops at its first fault, because nothing after it could be trusted. The two steps after
// it collect everything they find, so one run shows all of a file's faults.
//
// types.go is the one description of the file. The decoder, the JSON Schema (Schema), the commented example
// (Example) and the reference table (Reference) all read it: the keys, kinds, defaults and permitted values from
// the struct tags (fields.go explains them), the meanings from the comments.
//
// Parse opens nothing. Whether a named file exists, a backend answers, or a certificate covers its names is
// for whoever opens them.
//
// Anchors, aliases, merge keys, tags, directives and several documents are refused: the file says in one place what
// holds in that place. A reader who follows a host's lines sees everything that applies to it.
package config
