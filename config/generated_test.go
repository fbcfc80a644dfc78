package config

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

func TestGenerated(t *testing.T) {
	golden(t, filepath.Join(testdata, "generated", "schema.json"), string(Schema()))
	golden(t, filepath.Join(testdata, "generated", "example.yaml"), string(Example()))
	golden(t, filepath.Join(testdata, "generated", "reference.md"), string(Reference()))
}

// walkTypes calls visit for every field of every struct that a file may hold.
func walkTypes(t reflect.Type, visit func(parent reflect.Type, f field)) {
	for _, f := range fieldsOf(t) {
		visit(t, f)
		inner := deref(f.typ)
		if inner.Kind() == reflect.Map || inner.Kind() == reflect.Slice {
			inner = deref(inner.Elem())
		}
		if isStruct(inner) {
			walkTypes(inner, visit)
		}
	}
}

// Every key of the types is in the schema, the example and the reference, with a meaning. No key of theirs is not.
func TestEveryKeyIsDescribed(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	example, reference, meanings := string(Example()), string(Reference()), meanings()
	rows := 0
	walkTypes(reflect.TypeFor[Config](), func(parent reflect.Type, f field) {
		id := parent.Name() + "." + f.name
		if meanings[id] == "" {
			t.Errorf("%s has no comment", id)
		}
		if f.key == "" {
			return
		}
		rows++
		if got := strings.ReplaceAll(f.key, "_", ""); !strings.EqualFold(got, f.name) {
			t.Errorf("%s and its key %s are not one name", id, f.key)
		}
		properties := schema["properties"]
		if parent != reflect.TypeFor[Config]() {
			properties = find(schema["$defs"].(map[string]any)[parent.Name()], "properties")
		}
		p, ok := properties.(map[string]any)[f.key].(map[string]any)
		if !ok || p["description"] != meanings[id] {
			t.Errorf("%s is not described in the schema", id)
		}
		if !regexp.MustCompile(`(?m)^ *#? *(- )?` + f.key + `:`).MatchString(example) {
			t.Errorf("%s is not in the example", id)
		}
		if !strings.Contains(reference, "."+f.key+"` |") && !strings.Contains(reference, "`"+f.key+"` |") {
			t.Errorf("%s is not in the reference", id)
		}
	})
	if got := strings.Count(reference, "\n| `"); got != rows {
		t.Errorf("the reference has %d rows, the types have %d keys", got, rows)
	}
}

// find returns the first value under a key, however deep.
func find(v any, key string) any {
	switch v := v.(type) {
	case map[string]any:
		if found, ok := v[key]; ok {
			return found
		}
		for _, inner := range v {
			if found := find(inner, key); found != nil {
				return found
			}
		}
	case []any:
		for _, inner := range v {
			if found := find(inner, key); found != nil {
				return found
			}
		}
	}
	return nil
}

// The defaults and examples of the struct tags are values their own keys accept.
func TestTagsAreValid(t *testing.T) {
	walkTypes(reflect.TypeFor[Config](), func(parent reflect.Type, f field) {
		for _, src := range []string{f.def, f.example} {
			if src == "" {
				continue
			}
			var r Report
			r.setLines(src)
			d := decoder{newFindings(&r)}
			d.value(parseTag(src), reflect.New(f.typ).Elem(), f, path{"x"})
			if len(r.Problems) > 0 {
				t.Errorf("%s.%s: %q: %+v", parent.Name(), f.name, src, r.Problems)
			}
		}
	})
}

func TestExample(t *testing.T) {
	src := string(Example())
	c, report := Parse("example.yaml", []byte(src))
	if !report.OK() {
		t.Fatalf("the example does not load:\n%s", report)
	}
	if len(c.Hosts) < 4 {
		t.Errorf("the example shows %d hosts", len(c.Hosts))
	}

	// With everything in it that it has no use for, some of it contradicts itself; but every line
	// is of the right shape.
	hidden := regexp.MustCompile(`(?m)^( *)#((?: {2,}\S|[a-z_0-9]+:).*)$`)
	if got := len(hidden.FindAllString(src, -1)); got < 20 {
		t.Fatalf("found %d hidden lines", got)
	}
	shown := hidden.ReplaceAllString(strings.Replace(src, "#key: value\n", "", 1), "$1$2")
	_, report = Parse("example.yaml", []byte(shown))
	contradictions := []Rule{RuleStorageKey, RuleClientAuth, RuleTrustForm, RuleMailboxesForm, RuleMailForm, RuleACMEDNS}
	for _, p := range report.Errors() {
		if !slices.Contains(contradictions, p.Rule) {
			t.Errorf("uncommented: %s", report.Render(p))
		}
	}
}

// The schema agrees with Parse about what it can know: files that load are valid, files with a wrong shape are not.
func TestSchemaAgrees(t *testing.T) {
	var schema map[string]any
	if err := json.Unmarshal(Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	check := func(name string, src []byte, want bool) {
		t.Helper()
		var doc any
		if err := yaml.Unmarshal(src, &doc); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		data, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(data, &doc); err != nil {
			t.Fatal(err)
		}
		if err := valid(schema, schema, doc); (err == nil) != want {
			t.Errorf("%s: valid: %v, want %v (%v)", name, err == nil, want, err)
		}
	}
	check("example", Example(), true)
	files, err := filepath.Glob(filepath.Join(testdata, "good", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		check(name, readFile(t, name), true)
	}
	for _, rule := range []Rule{RuleUnknownKey, RuleMissingKey, RuleWrongType, RuleUnknownValue, RuleNumber, RuleDuration, RulePin, RuleServerURL, RuleMailboxesFile, RuleRedirectAddr} {
		check(string(rule), readFile(t, filepath.Join(testdata, string(rule)+".yaml")), false)
	}
}

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// valid is as much of JSON Schema as ours uses.
func valid(root, s map[string]any, v any) error {
	for key, arg := range s {
		switch key {
		case "$ref":
			def := root["$defs"].(map[string]any)[strings.TrimPrefix(arg.(string), "#/$defs/")]
			if err := valid(root, def.(map[string]any), v); err != nil {
				return err
			}
		case "anyOf":
			if !slices.ContainsFunc(arg.([]any), func(one any) bool { return valid(root, one.(map[string]any), v) == nil }) {
				return fmt.Errorf("%v fits none of the forms", v)
			}
		case "enum":
			if !slices.Contains(arg.([]any), v) {
				return fmt.Errorf("%v is not one of %v", v, arg)
			}
		case "type":
			got := map[reflect.Kind]string{
				reflect.String: "string", reflect.Bool: "boolean", reflect.Slice: "array", reflect.Map: "object",
				reflect.Float64: "number",
			}[reflect.ValueOf(v).Kind()]
			if n, ok := v.(float64); ok && n == float64(int(n)) {
				got = "integer"
			}
			if got != arg {
				return fmt.Errorf("%v is not of type %v", v, arg)
			}
		case "pattern":
			if s, ok := v.(string); ok && !regexp.MustCompile(arg.(string)).MatchString(s) {
				return fmt.Errorf("%v does not match %v", v, arg)
			}
		case "minimum":
			if n, ok := v.(float64); ok && n < arg.(float64) {
				return fmt.Errorf("%v is below %v", v, arg)
			}
		case "maxItems":
			if list, ok := v.([]any); ok && float64(len(list)) > arg.(float64) {
				return fmt.Errorf("%v has too many items", v)
			}
		case "items":
			list, _ := v.([]any)
			for _, one := range list {
				if err := valid(root, arg.(map[string]any), one); err != nil {
					return err
				}
			}
		case "required":
			m, ok := v.(map[string]any)
			for _, name := range arg.([]any) {
				if _, there := m[name.(string)]; ok && !there {
					return fmt.Errorf("%v is missing", name)
				}
			}
		case "additionalProperties":
			m, _ := v.(map[string]any)
			properties, _ := s["properties"].(map[string]any)
			for name, value := range m {
				one, known := properties[name].(map[string]any)
				if !known {
					if one, known = arg.(map[string]any); !known {
						return fmt.Errorf("%v is not a key", name)
					}
				}
				if err := valid(root, one, value); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
		}
	}
	return nil
}
