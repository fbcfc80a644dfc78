package config

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
)

// path is the way to a value: keys, and [n] for the elements of lists.
type path []string

func (p path) key(k string) path {
	plain := k != "" && strings.IndexFunc(k, func(c rune) bool {
		return c != '_' && c != '-' && (c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c))
	}) < 0
	if !plain {
		k = "'" + k + "'"
	}
	return append(slices.Clip(p), k)
}

func (p path) index(i int) path { return append(slices.Clip(p), "["+strconv.Itoa(i)+"]") }

func (p path) parent() path { return p[:len(p)-1] }

func (p path) String() string {
	var b strings.Builder
	for i, s := range p {
		if i > 0 && !strings.HasPrefix(s, "[") {
			b.WriteByte('.')
		}
		b.WriteString(s)
	}
	return b.String()
}

// entry is where a value stands in the file. Elements of lists have no key of their own.
type entry struct {
	keyLine, keyColumn int
	line, column       int
	shape              shape
}

// findings gathers problems by path. It knows where in the file every path stands.
type findings struct {
	report  *Report
	entries map[string]entry
	faulty  map[string]bool // paths with an error
}

func newFindings(r *Report) *findings {
	return &findings{report: r, entries: map[string]entry{}, faulty: map[string]bool{}}
}

// has reports whether the file holds a value at the path, be it right or wrong.
func (f *findings) has(p path) bool {
	_, ok := f.entries[p.String()]
	return ok
}

// fail reports an error in the value at p. When p is not in the file, its nearest parent is shown.
func (f *findings) fail(p path, rule Rule, want, format string, args ...any) {
	f.add(Error, p, false, rule, want, fmt.Sprintf(format, args...))
}

// failKey is fail for a key that should not be there, whatever its value.
func (f *findings) failKey(p path, rule Rule, want, format string, args ...any) {
	f.add(Error, p, true, rule, want, fmt.Sprintf(format, args...))
}

// warn is fail for what does not keep the file from being used.
func (f *findings) warn(p path, rule Rule, want, format string, args ...any) {
	f.add(Warning, p, false, rule, want, fmt.Sprintf(format, args...))
}

func (f *findings) add(s Severity, p path, atKey bool, rule Rule, want, message string) {
	problem := Problem{Severity: s, Rule: rule, Path: p.String(), Message: message, Want: want}
	for q := p; ; q = q.parent() {
		if e, ok := f.entries[q.String()]; ok {
			problem.Line, problem.Column = e.line, e.column
			if e.keyLine > 0 && (atKey || !e.shape.word() || len(q) < len(p)) {
				problem.Line, problem.Column = e.keyLine, e.keyColumn
			}
			break
		}
		if len(q) == 0 {
			break
		}
	}
	f.report.add(problem)
	if s == Error {
		f.faulty[problem.Path] = true
	}
}

// decoder carries a syntax tree into the types, and everything that does not fit into the report.
type decoder struct{ *findings }

// value decodes one node. The field says what is expected.
func (d decoder) value(n ast.Node, v reflect.Value, f field, p path) {
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.typ = v.Type().Elem()
		d.value(n, v.Elem(), f, p)
	case shapeOf(n) == shapeNull:
		d.fail(p, RuleEmptyValue, f.about()+"; or the line removed", "there is no value")
	case f.off && isOff(n):
		v.SetString("")
	case isStruct(v.Type()):
		d.structure(n, v, f, p)
	case v.Kind() == reflect.Map:
		d.table(n, v, f, p)
	case v.Kind() == reflect.Slice:
		d.list(n, v, f, p)
	default:
		d.word(n, v, f, p)
	}
}

func (d decoder) wrongType(n ast.Node, f field, p path) {
	want := f.about()
	switch {
	case f.enum != nil:
	case f.example != "":
		want += ", such as " + f.example
	case strings.HasPrefix(f.def, "[") && f.def != "[]":
		want += ", such as " + f.def
	}
	d.fail(p, RuleWrongType, want, "%s does not belong here", shapeOf(n))
}

func (d decoder) structure(n ast.Node, v reflect.Value, f field, p path) {
	fields := fieldsOf(v.Type())
	keys := keyed(fields)
	defer func() { d.defaults(v, keys, p) }()
	switch shape := shapeOf(n); {
	case shape == shapeMap && len(keys) > 0:
		var known []string
		for _, k := range keys {
			known = append(known, k.key)
		}
		for key, value := range d.pairs(n, p, func(s string) (string, *fault) { return s, nil }) {
			i := slices.IndexFunc(keys, func(k field) bool { return k.key == key })
			if i < 0 {
				want := didYouMean(key, slices.Values(known), oneOf(known))
				d.failKey(p.key(key), RuleUnknownKey, want, "there is no key %q here", key)
				continue
			}
			d.value(value, v.Field(keys[i].index), keys[i], p.key(key))
		}
		for _, k := range keys {
			if k.required && !d.has(p.key(k.key)) {
				d.fail(p.key(k.key), RuleMissingKey, k.key+": "+k.example, "the key %q is missing", k.key)
			}
		}
	case shape == shapeList:
		if s, ok := withForm(fields, "sequence"); ok {
			d.value(n, v.Field(s.index), s, p)
			return
		}
		d.wrongType(n, f, p)
	case shape != shapeMap:
		if s, ok := withForm(fields, "scalar"); ok {
			if !d.fits(n, s) {
				d.wrongType(n, f, p)
				return
			}
			s.forms = f.about()
			d.value(n, v.Field(s.index), s, p)
			return
		}
		d.wrongType(n, f, p)
	default:
		d.wrongType(n, f, p)
	}
}

// fits keeps the message about the whole structure when its short form is not what was meant.
func (d decoder) fits(n ast.Node, s field) bool {
	return (s.typ.Kind() == reflect.Bool) == (shapeOf(n) == shapeBool)
}

// table decodes keys that the file is free to choose.
func (d decoder) table(n ast.Node, v reflect.Value, f field, p path) {
	if shapeOf(n) != shapeMap {
		d.wrongType(n, f, p)
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	for key, node := range d.pairs(n, p, kinds[f.mapKey].read) {
		value := reflect.New(v.Type().Elem()).Elem()
		d.value(node, value, field{typ: value.Type(), kind: f.kind}, p.key(key))
		v.SetMapIndex(reflect.ValueOf(key), value)
	}
}

func (d decoder) list(n ast.Node, v reflect.Value, f field, p path) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.wrongType(n, f, p)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	seen := make(map[string]int)
	for i, node := range seq.Values {
		q := p.index(i)
		d.place(q, nil, node)
		d.value(node, v.Index(i), f.element(), q)
		if s := v.Index(i); s.Kind() == reflect.String && s.Len() > 0 {
			if first, ok := seen[s.String()]; ok {
				d.fail(q, RuleListTwice, "each value once", "%q is in the list already, on line %d", s.String(), first)
			} else {
				seen[s.String()] = d.entries[q.String()].line
			}
		}
	}
}

// word decodes what is written as one word.
func (d decoder) word(n ast.Node, v reflect.Value, f field, p path) {
	shape, s := shapeOf(n), text(n)
	bad := func(problem *fault) bool {
		if problem != nil {
			d.fail(p, problem.rule, problem.want, "%s", problem.message)
		}
		return problem != nil
	}
	switch {
	case shape == shapeMap || shape == shapeList:
		d.wrongType(n, f, p)
	case v.Kind() == reflect.Bool:
		if shape != shapeBool {
			d.wrongType(n, f, p)
			return
		}
		v.SetBool(strings.EqualFold(s, "true"))
	case shape == shapeBool:
		d.wrongType(n, f, p)
	case strings.ContainsFunc(s, unicode.IsControl):
		d.fail(p, RuleControlCharacter, "one line of text", "the value holds a line break or another control character")
	case s == "":
		d.fail(p, RuleEmptyValue, f.about()+"; or the line removed", "the value is empty")
	case v.Type() == durationType:
		if duration, problem := readDuration(s); !bad(problem) {
			v.SetInt(int64(duration))
		}
	case v.Type() == sizeType:
		if size, problem := readSize(s); !bad(problem) {
			v.SetInt(int64(size))
		}
	case v.Type() == prefixType:
		if prefix, problem := readPrefix(s); !bad(problem) {
			v.Set(reflect.ValueOf(prefix))
		}
	case v.Kind() == reflect.Int:
		i, err := strconv.Atoi(s)
		if err != nil || i < 0 {
			d.fail(p, RuleNumber, "a whole number, 0 or more", "%q is not a number that makes sense here", s)
			return
		}
		v.SetInt(int64(i))
	case f.enum != nil:
		if !slices.Contains(f.enum, s) {
			d.fail(p, RuleUnknownValue, cmp.Or(f.forms, oneOf(f.enum)), "%q is none of the values known here", s)
			return
		}
		v.SetString(s)
	default:
		if canonical, problem := kinds[f.kind].read(s); !bad(problem) {
			v.SetString(canonical)
		}
	}
}

// pairs yields the keys of a mapping in canonical form, with their values, and notes where they stand. A key that is
// there twice is reported and left out the second time; a key that cannot be read is reported and yielded as it is.
func (d decoder) pairs(n ast.Node, p path, read func(string) (string, *fault)) func(func(string, ast.Node) bool) {
	return func(yield func(string, ast.Node) bool) {
		for it := n.(ast.MapNode).MapRange(); it.Next(); {
			written := text(it.Key())
			key, problem := read(written)
			if problem != nil {
				key = written
			}
			q := p.key(key)
			if first, ok := d.entries[q.String()]; ok {
				line, column := d.report.at(it.Key().GetToken())
				d.report.add(Problem{
					Rule: RuleDuplicateKey, Path: q.String(), Line: line, Column: column,
					Message: fmt.Sprintf("%q is here twice, first on line %d", key, first.keyLine), Want: "each key once",
				})
				continue
			}
			d.place(q, it.Key(), it.Value())
			if problem != nil {
				d.failKey(q, problem.rule, problem.want, "%s", problem.message)
			}
			if !yield(key, it.Value()) {
				return
			}
		}
	}
}

// place notes where a value stands.
func (d decoder) place(p path, key, value ast.Node) {
	var e entry
	e.line, e.column = d.report.at(start(value).GetToken())
	if key != nil {
		e.keyLine, e.keyColumn = d.report.at(key.GetToken())
	}
	e.shape = shapeOf(value)
	d.entries[p.String()] = e
}

// start is the node whose token a reader sees first: the token of a mapping is the colon after its first key.
func start(n ast.Node) ast.Node {
	if m, ok := n.(*ast.MappingNode); ok && !m.IsFlowStyle && len(m.Values) > 0 {
		return m.Values[0].Key
	}
	return n
}

// defaults fills in what the file leaves out.
func (d decoder) defaults(v reflect.Value, keys []field, p path) {
	for _, k := range keys {
		target := v.Field(k.index)
		switch {
		case d.has(p.key(k.key)):
		case k.def != "":
			body := parseTag(k.def)
			// Written by us, and held right by a test: nothing to report, nowhere to point.
			var r Report
			r.setLines(k.def)
			decoder{newFindings(&r)}.value(body, target, k, nil)
		case isStruct(k.typ):
			d.defaults(target, keyed(fieldsOf(k.typ)), p.key(k.key))
		}
	}
}

// parseTag parses the YAML of a struct tag.
func parseTag(src string) ast.Node {
	file, err := parser.Parse(lexer.Tokenize(src), 0)
	if err != nil || len(file.Docs) == 0 {
		return nil
	}
	return file.Docs[0].Body
}

// shape is what a value looks like, in words for messages.
type shape string

const (
	shapeNull   shape = "nothing"
	shapeBool   shape = "true or false"
	shapeNumber shape = "a number"
	shapeText   shape = "text"
	shapeList   shape = "a list"
	shapeMap    shape = "a set of keys"
)

// word reports whether the value is neither a list nor keys nor missing.
func (s shape) word() bool { return s != shapeMap && s != shapeList && s != shapeNull }

func shapeOf(n ast.Node) shape {
	switch n.(type) {
	case nil, *ast.NullNode:
		return shapeNull
	case *ast.BoolNode:
		return shapeBool
	case *ast.IntegerNode, *ast.FloatNode:
		return shapeNumber
	case *ast.SequenceNode:
		return shapeList
	case *ast.MappingNode, *ast.MappingValueNode:
		return shapeMap
	}
	return shapeText
}

// text is a word as it is written, without its quotes. Numbers keep their spelling: 2010 may be a version or a name.
func text(n ast.Node) string {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	}
	return n.GetToken().Value
}

// isOff reports whether a value says "none": an empty list or an empty text.
func isOff(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.SequenceNode:
		return len(n.Values) == 0
	case *ast.StringNode:
		return n.Value == ""
	}
	return false
}

// sortedKeys are the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
