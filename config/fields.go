package config

import (
	_ "embed"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"
)

// field is one key of a struct in types.go, as its tags describe it:
//
//	yaml      the key
//	form      "scalar" or "sequence": the field also takes the struct's place when that is written as such; a field
//	          with a form and without a yaml tag has no key of its own
//	kind      what sort of text it holds, see kinds; for lists, each element
//	key       for maps: what sort of text the keys are
//	enum      the words it may be
//	default   what it is when the key is missing, as YAML
//	example   a value for the example, as YAML, where the default shows nothing
//	required  the key must be there
//	off       an empty value switches it off
type field struct {
	name     string // of the Go field
	key      string
	form     string
	kind     string
	mapKey   string
	enum     []string
	forms    string // of a struct written as one word: what could stand there
	def      string
	example  string
	required bool
	off      bool
	index    int
	typ      reflect.Type
}

func fieldsOf(t reflect.Type) []field {
	var fields []field
	for sf := range t.Fields() {
		f := field{
			name: sf.Name, key: sf.Tag.Get("yaml"), form: sf.Tag.Get("form"), kind: sf.Tag.Get("kind"), mapKey: sf.Tag.Get("key"),
			def: sf.Tag.Get("default"), example: sf.Tag.Get("example"), required: sf.Tag.Get("required") != "",
			off: sf.Tag.Get("off") != "", index: sf.Index[0], typ: sf.Type,
		}
		if enum := sf.Tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, ",")
		}
		if f.key != "" || f.form != "" {
			fields = append(fields, f)
		}
	}
	return fields
}

// withForm returns the field that takes the struct's place when the struct is written as a scalar or a sequence.
func withForm(fields []field, form string) (field, bool) {
	i := slices.IndexFunc(fields, func(f field) bool { return f.form == form })
	if i < 0 {
		return field{}, false
	}
	return fields[i], true
}

// keyed returns the fields that have a key.
func keyed(fields []field) []field {
	return slices.DeleteFunc(slices.Clone(fields), func(f field) bool { return f.key == "" })
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	sizeType     = reflect.TypeFor[Size]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
)

// isStruct reports whether a value of the type is written with keys, and is not one word such as a duration.
func isStruct(t reflect.Type) bool { return t.Kind() == reflect.Struct && t != prefixType }

// deref is the type behind a pointer.
func deref(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}

// about says in a few words what the value of a field is: for messages and for the reference.
func (f field) about() string {
	t := deref(f.typ)
	switch {
	case t == durationType:
		return "duration"
	case t == sizeType:
		return "size"
	case t == prefixType:
		return "network"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "number"
	case t.Kind() == reflect.String && f.enum != nil:
		return oneOf(f.enum)
	case t.Kind() == reflect.String && f.off:
		return kinds[f.kind].about + ", or []"
	case t.Kind() == reflect.String:
		return kinds[f.kind].about
	case t.Kind() == reflect.Slice:
		return "[" + f.element().about() + ", …]"
	case t.Kind() == reflect.Map:
		value := "…"
		if f.kind != "" {
			value = kinds[f.kind].about
		}
		return "{" + kinds[f.mapKey].about + ": " + value + "}"
	}
	fields := fieldsOf(t)
	var forms []string
	if s, ok := withForm(fields, "scalar"); ok {
		forms = append(forms, s.about())
	}
	if s, ok := withForm(fields, "sequence"); ok {
		forms = append(forms, s.about())
	}
	if keys := keyed(fields); len(keys) > 0 {
		var names []string
		for _, k := range keys {
			names = append(names, k.key)
		}
		forms = append(forms, "keys {"+strings.Join(names, ", ")+"}")
	}
	return strings.Join(forms, "; or ")
}

// element is the field of one element of a list.
func (f field) element() field {
	return field{typ: f.typ.Elem(), kind: f.kind, enum: f.enum}
}

func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

//go:embed types.go
var typesSource string

// meanings reads the comments of types.go: what each field means, by "Type.Field".
func meanings() map[string]string {
	out := make(map[string]string)
	file, err := parser.ParseFile(token.NewFileSet(), "types.go", typesSource, parser.ParseComments)
	if err != nil {
		return out // it is the file this program was compiled from
	}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if st, ok := spec.Type.(*ast.StructType); ok {
			for _, f := range st.Fields.List {
				for _, name := range f.Names {
					out[spec.Name.Name+"."+name.Name] = strings.Join(strings.Fields(f.Doc.Text()), " ")
				}
			}
		}
		return false
	})
	return out
}

// meaningOf is what a field means. For a value that may be one of several words instead of keys, it says what the
// words mean, too.
func meaningOf(all map[string]string, parent reflect.Type, f field) string {
	meaning := all[parent.Name()+"."+f.name]
	if t := deref(f.typ); isStruct(t) {
		if word, ok := withForm(fieldsOf(t), "scalar"); ok && word.key == "" && word.enum != nil {
			meaning += " " + all[t.Name()+"."+word.name]
		}
	}
	return meaning
}
