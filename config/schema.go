package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"

	"github.com/goccy/go-yaml"
)

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	key   string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		var value bytes.Buffer
		enc := json.NewEncoder(&value)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(m.value); err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value.Bytes())
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// Schema returns the JSON Schema (draft 2020-12) of the configuration file, for editors. It knows keys, types and words;
// what several values say together, only Parse knows.
func Schema() []byte {
	s := schema{meanings: meanings(), done: map[reflect.Type]bool{}}
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", "autodgate configuration"},
	}
	t := reflect.TypeFor[Config]()
	s.done[t] = true
	root = append(root, s.keys(t)...)
	root = append(root, member{"$defs", s.defs})

	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		return nil // nothing in it can fail to encode
	}
	return b.Bytes()
}

type schema struct {
	meanings map[string]string
	defs     object
	done     map[reflect.Type]bool
}

// keys is the schema of a struct that is written with keys.
func (s *schema) keys(t reflect.Type) object {
	var properties object
	var required []string
	for _, f := range keyed(fieldsOf(t)) {
		p := object{{"description", s.meanings[t.Name()+"."+f.name]}}
		p = append(p, s.value(f)...)
		if f.def != "" {
			p = append(p, member{"default", yamlValue(f.def)})
		}
		if f.example != "" {
			p = append(p, member{"examples", []any{yamlValue(f.example)}})
		}
		properties = append(properties, member{f.key, p})
		if f.required {
			required = append(required, f.key)
		}
	}
	o := object{{"type", "object"}, {"additionalProperties", false}, {"properties", properties}}
	if required != nil {
		o = append(o, member{"required", required})
	}
	return o
}

// value is the schema of a field's value.
func (s *schema) value(f field) object {
	t := deref(f.typ)
	switch {
	case t == durationType:
		return object{{"type", "string"}, {"pattern", `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`}}
	case t == sizeType:
		return object{{"anyOf", []object{
			{{"type", "string"}, {"pattern", "^(none|[0-9]+ *([KMGT]iB)?)$"}}, {{"type", "integer"}, {"minimum", 0}},
		}}}
	case t == prefixType:
		return object{{"type", "string"}}
	case t.Kind() == reflect.Bool:
		return object{{"type", "boolean"}}
	case t.Kind() == reflect.Int:
		return object{{"type", "integer"}, {"minimum", 0}}
	case t.Kind() == reflect.Slice:
		return object{{"type", "array"}, {"items", s.value(f.element())}}
	case t.Kind() == reflect.Map:
		return object{{"type", "object"}, {"additionalProperties", s.value(field{typ: t.Elem(), kind: f.kind})}}
	case isStruct(t):
		s.define(t)
		return object{{"$ref", "#/$defs/" + t.Name()}}
	}
	return wordSchema(f)
}

// wordSchema is the schema of a word.
func wordSchema(f field) object {
	if f.enum != nil {
		var words []any
		for _, w := range f.enum {
			words = append(words, w)
		}
		for _, w := range f.enum {
			if n, err := strconv.ParseFloat(w, 64); err == nil { // exchange: 2019 and min_version: 1.2 need no quotes
				words = append(words, n)
			}
		}
		return object{{"enum", words}}
	}
	o := object{{"type", "string"}}
	k := kinds[f.kind]
	if k.format != "" {
		o = append(o, member{"format", k.format})
	}
	if k.pattern != "" {
		o = append(o, member{"pattern", k.pattern})
	}
	if f.off {
		return object{{"anyOf", []object{o, {{"type", "array"}, {"maxItems", 0}}}}}
	}
	return o
}

// define adds a struct to the definitions.
func (s *schema) define(t reflect.Type) {
	if s.done[t] {
		return
	}
	s.done[t] = true
	fields := fieldsOf(t)
	var forms []object
	for _, form := range []string{"scalar", "sequence"} {
		if f, ok := withForm(fields, form); ok {
			o := object{{"description", s.meanings[t.Name()+"."+f.name]}}
			forms = append(forms, append(o, s.value(f)...))
		}
	}
	if len(keyed(fields)) > 0 {
		forms = append(forms, s.keys(t))
	}
	def := object{{"anyOf", forms}}
	if len(forms) == 1 {
		def = forms[0]
	}
	s.defs = append(s.defs, member{t.Name(), def})
}

// yamlValue is the value of a default or an example from a struct tag.
func yamlValue(src string) any {
	var v any
	if err := yaml.Unmarshal([]byte(src), &v); err != nil {
		return src
	}
	return v
}
