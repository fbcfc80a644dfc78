package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Reference returns the page of all keys, in Markdown: path, type, default, meaning.
func Reference() []byte {
	r := reference{meanings: meanings()}
	r.b.WriteString("# Configuration reference\n\n" +
		"Generated from the types of package config. `[x, …]` is a list of x, `{x: …}` are keys of your choice.\n" +
		"Relative file names are relative to the directory of the configuration file.\n")
	t := reflect.TypeFor[Config]()
	for _, f := range keyed(fieldsOf(t)) {
		fmt.Fprintf(&r.b, "\n## %s\n\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n", f.key)
		r.row(f.key, t, f)
		r.below(f.key, f)
	}
	return []byte(r.b.String())
}

type reference struct {
	b        strings.Builder
	meanings map[string]string
}

func (r *reference) row(path string, parent reflect.Type, f field) {
	def := ""
	switch {
	case f.required:
		def = "required"
	case f.def != "":
		def = "`" + f.def + "`"
	}
	cell := strings.NewReplacer("|", `\|`, "<", `\<`)
	fmt.Fprintf(&r.b, "| `%s` | %s | %s | %s |\n", path, cell.Replace(f.about()), def, cell.Replace(meaningOf(r.meanings, parent, f)))
}

// below writes the rows of the keys inside a value.
func (r *reference) below(path string, f field) {
	t := deref(f.typ)
	switch t.Kind() {
	case reflect.Map:
		name := map[string]string{"host": "HOST", "site": "SITE", "domain": "DOMAIN", "vdir": "DIRECTORY"}[f.mapKey]
		r.below(path+"."+name, field{typ: t.Elem()})
	case reflect.Slice:
		r.below(path+"[]", f.element())
	case reflect.Struct:
		for _, k := range keyed(fieldsOf(t)) {
			r.row(path+"."+k.key, t, k)
			r.below(path+"."+k.key, k)
		}
	}
}
