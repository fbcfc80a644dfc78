package directory

import (
	"bytes"
	"errors"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxYAMLSize keeps a file that belongs into CSV from stopping a start for
// minutes: the YAML parser builds a tree of everything, the CSV reader streams.
const maxYAMLSize = 16 << 20

// readYAML adds every mailbox of a mailboxes.yaml to b. The tree is walked by
// hand instead of being unmarshalled: that is how all problems get their line,
// and how no value is converted on the way (a password of 0123 is no number).
func readYAML(data []byte, b *builder) {
	if len(data) > maxYAMLSize {
		b.problem(0, "has more than %d MiB; write large directories as .csv", maxYAMLSize>>20)
		return
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(data) {
		for i, text := range bytes.Split(data, []byte("\n")) {
			if !utf8.Valid(text) {
				b.problem(i+1, "the line is not UTF-8; save the file as UTF-8")
			}
		}
		return
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		// The library's own text quotes the source, passwords and all.
		var e yaml.Error
		if errors.As(err, &e) && e.GetToken() != nil && e.GetToken().Position != nil {
			b.problem(e.GetToken().Position.Line, "no valid YAML: %s", e.GetMessage())
		} else {
			b.problem(0, "no valid YAML")
		}
		return
	}
	var docs []ast.Node
	for _, doc := range file.Docs {
		if doc.Body != nil {
			docs = append(docs, doc.Body)
		}
	}
	switch len(docs) {
	case 0:
		b.problem(1, "the file is empty; write mailboxes: and a list")
		return
	case 1:
	default:
		b.problem(line(docs[1]), "a second YAML document; write all mailboxes in one")
		return
	}
	y := yamlReader{b}
	var list *ast.SequenceNode
	y.eachKey(docs[0], "the file", func(key string, at int, value ast.Node) {
		if key != "mailboxes" {
			y.b.problem(at, "unknown key; the only one at the top is mailboxes")
			return
		}
		if list, _ = value.(*ast.SequenceNode); list == nil {
			y.b.problem(at, "mailboxes is not a list")
		}
	})
	if list == nil {
		if len(b.err.Problems) == 0 {
			b.problem(1, "the key mailboxes is missing")
		}
		return
	}
	for _, item := range list.Values {
		y.mailbox(item)
	}
}

type yamlReader struct{ b *builder }

func (y yamlReader) mailbox(n ast.Node) {
	var m Mailbox
	sound := y.eachKey(n, "a mailbox", func(key string, at int, value ast.Node) {
		switch key {
		case "aliases":
			for _, item := range y.list(key, value) {
				if s, ok := y.text(key, item); ok {
					m.Aliases = append(m.Aliases, s)
				}
			}
		case "alternative_mailboxes":
			for _, item := range y.list(key, value) {
				if a, ok := y.alternative(item); ok {
					m.Alternatives = append(m.Alternatives, a)
				}
			}
		default:
			field := scalarFields[key]
			if field == nil {
				y.b.problem(at, "unknown key %s; a mailbox has %s", printable(key), mailboxKeys)
				return
			}
			if s, ok := y.text(key, value); ok {
				field(&m, s)
			}
		}
	})
	if sound {
		y.b.add(line(n), m)
	}
}

// alternative reads the short form, [type:]address, or the mapping.
func (y yamlReader) alternative(n ast.Node) (AlternativeMailbox, bool) {
	const key = "alternative_mailboxes"
	if _, ok := n.(ast.MapNode); !ok {
		s, ok := y.text(key, n)
		return parseAlternative(s), ok
	}
	var a AlternativeMailbox
	fields := map[string]*string{
		"type":               &a.Type,
		"display_name":       &a.DisplayName,
		"smtp_address":       &a.SMTPAddress,
		"owner_smtp_address": &a.OwnerSMTPAddress,
		"legacy_dn":          &a.LegacyDN,
		"server":             &a.Server,
	}
	sound := true
	y.eachKey(n, key, func(k string, at int, value ast.Node) {
		field, known := fields[k]
		if !known {
			y.b.problem(at, "unknown key %s; %s have type, display_name, smtp_address, owner_smtp_address, legacy_dn, server", printable(k), key)
			sound = false
			return
		}
		s, ok := y.text(k, value)
		*field, sound = s, sound && ok
	})
	return a, sound
}

// eachKey calls f for every key of a mapping, or reports that n is none.
func (y yamlReader) eachKey(n ast.Node, what string, f func(key string, line int, value ast.Node)) bool {
	m, ok := n.(ast.MapNode)
	if !ok {
		y.b.problem(line(n), "%s is not a set of key: value", what)
		return false
	}
	for it := m.MapRange(); it.Next(); {
		key, ok := it.Key().(*ast.StringNode)
		if !ok {
			// Anchors, merge keys and numbers end up here.
			y.b.problem(line(it.Key()), "a key of %s is not plain text", what)
			continue
		}
		f(key.Value, line(key), it.Value())
	}
	return true
}

func (y yamlReader) list(key string, n ast.Node) []ast.Node {
	if s, ok := n.(*ast.SequenceNode); ok {
		return s.Values
	}
	y.b.problem(line(n), "%s is not a list; write [one, two]", key)
	return nil
}

func (y yamlReader) text(key string, n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.NullNode:
		y.b.problem(line(n), "%s is empty; leave the key out", key)
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode:
		y.b.problem(line(n), "%s uses an anchor, alias or tag, which this file does not have", key)
	default:
		y.b.problem(line(n), "%s is not text; put it into quotes", key)
	}
	return "", false
}

func line(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		// The token of a mapping is its first colon, on the line of its first key.
		return t.Position.Line
	}
	return 0
}
