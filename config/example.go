package config

import (
	_ "embed"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// exampleValues is the example without a word of explanation: those come from types.go.
//
//go:embed example.yaml
var exampleValues string

// Example returns a configuration file that shows every key with its meaning. It loads as it is, given its files. Keys that
// it has no use for are there as comments without a space after the #.
func Example() []byte {
	body := parseTag(exampleValues)
	e := example{meanings: meanings(), used: map[string]bool{}, said: map[string]bool{}}
	e.use(body, reflect.TypeFor[Config]())
	e.b.WriteString("# A configuration that shows every key. Lines such as\n#key: value\n" +
		"# are keys this example has no use for. File names are relative to the directory of this file.\n")
	e.keys(body, reflect.TypeFor[Config](), layout{})
	return []byte(e.b.String())
}

type example struct {
	b        strings.Builder
	meanings map[string]string
	used     map[string]bool // Type.Field that has a value somewhere
	said     map[string]bool // Type.Field whose meaning is written
}

// layout is how a line begins.
type layout struct {
	indent  int
	hidden  bool // behind a #, which stands at column hiddenAt
	hideAt  int
	element bool // the first line is the first of a list's element
}

func (l layout) deeper() layout {
	l.indent += 2
	return l
}

func (l layout) prefix(indent int) string {
	if l.hidden {
		return strings.Repeat(" ", l.hideAt) + "#" + strings.Repeat(" ", indent-l.hideAt)
	}
	return strings.Repeat(" ", indent)
}

// use notes which keys have a value.
func (e *example) use(n ast.Node, t reflect.Type) {
	t = deref(t)
	switch {
	case isStruct(t):
		for _, f := range keyed(fieldsOf(t)) {
			if v := lookup(n, f.key); v != nil {
				e.used[t.Name()+"."+f.name] = true
				e.use(v, f.typ)
			}
		}
	case t.Kind() == reflect.Map:
		for it := n.(ast.MapNode).MapRange(); it.Next(); {
			e.use(it.Value(), t.Elem())
		}
	case t.Kind() == reflect.Slice:
		for _, v := range n.(*ast.SequenceNode).Values {
			e.use(v, t.Elem())
		}
	}
}

// lookup returns the value of a key, or nil.
func lookup(n ast.Node, key string) ast.Node {
	m, ok := n.(ast.MapNode)
	if !ok {
		return nil
	}
	for it := m.MapRange(); it.Next(); {
		if text(it.Key()) == key {
			return it.Value()
		}
	}
	return nil
}

// keys writes a struct with its meanings. Without a node all of it is hidden.
func (e *example) keys(n ast.Node, t reflect.Type, l layout) {
	for _, f := range keyed(fieldsOf(t)) {
		id := t.Name() + "." + f.name
		v := lookup(n, f.key)
		if v == nil && (e.used[id] || e.said[id]) {
			continue
		}
		if t == reflect.TypeFor[Config]() {
			e.b.WriteByte('\n')
		}
		line := l
		if v == nil && !line.hidden {
			line.hidden, line.hideAt = true, line.indent
		}
		e.meaning(id, t, f, l)
		key := line.prefix(line.indent) + f.key + ":"
		if l.element {
			key = l.prefix(l.indent-2) + "- " + f.key + ":"
			l.element = false
		}
		e.b.WriteString(key)
		line.element = false
		switch {
		case v != nil:
			e.value(v, f, line)
		case isStruct(deref(f.typ)) && f.example == "":
			e.b.WriteByte('\n')
			e.keys(nil, deref(f.typ), line.deeper())
		default:
			value := f.example
			if value == "" {
				value = f.def
			}
			e.b.WriteString(" " + value + "\n")
			if isStruct(deref(f.typ)) {
				e.said[id] = true
			}
		}
	}
}

// meaning writes what a key means, once.
func (e *example) meaning(id string, parent reflect.Type, f field, l layout) {
	if e.said[id] {
		return
	}
	e.said[id] = true
	indent := l.indent
	if l.element {
		indent -= 2
	}
	about := meaningOf(e.meanings, parent, f)
	if f.enum != nil {
		about += " Values: " + oneOf(f.enum) + "."
	}
	if f.def != "" {
		about += " Default: " + f.def
	}
	prefix := l.prefix(indent) + "#"
	line := prefix
	for word := range strings.FieldsSeq(about) {
		if len(line)+1+len(word) > 110 && line != prefix {
			e.b.WriteString(line + "\n")
			line = prefix
		}
		line += " " + word
	}
	e.b.WriteString(line + "\n")
}

// value writes what stands after a key's colon.
func (e *example) value(n ast.Node, f field, l layout) {
	t := deref(f.typ)
	switch shapeOf(n) {
	case shapeMap:
		e.b.WriteByte('\n')
		if isStruct(t) {
			e.keys(n, t, l.deeper())
			return
		}
		for it := n.(ast.MapNode).MapRange(); it.Next(); {
			fmt.Fprintf(&e.b, "%s%s:", l.prefix(l.indent+2), it.Key().String())
			e.value(it.Value(), field{typ: t.Elem()}, l.deeper())
		}
	case shapeList:
		e.list(n.(*ast.SequenceNode), f, l)
	default:
		e.b.WriteString(" " + n.String() + "\n")
	}
}

func (e *example) list(n *ast.SequenceNode, f field, l layout) {
	var words []string
	for _, v := range n.Values {
		if shapeOf(v).word() {
			words = append(words, v.String())
		}
	}
	if len(words) == len(n.Values) {
		e.b.WriteString(" [" + strings.Join(words, ", ") + "]\n")
		return
	}
	e.b.WriteByte('\n')
	for _, v := range n.Values {
		if shapeOf(v).word() {
			e.b.WriteString(l.prefix(l.indent+2) + "- " + v.String() + "\n")
			continue
		}
		inner := l.deeper().deeper()
		inner.element = true
		e.keys(v, deref(f.typ).Elem(), inner)
	}
}
