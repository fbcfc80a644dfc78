package config

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the expected texts of testdata/config")

const testdata = "../testdata/config"

// tooBig are the files that break a rule by their size: made here rather than kept.
var tooBig = map[Rule]string{
	RuleFileTooLarge: strings.Repeat("# a comment that goes on and on\n", maxBytes/32+1),
	RuleFileTooLong:  "hosts:\n" + strings.Repeat("  a: b\n", maxLines),
	RuleFileTooDeep:  "hosts: " + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + "\n",
}

// Each rule has a file that is named after it and breaks it, with the text a reader gets beside it.
func TestEveryRule(t *testing.T) {
	files := make(map[string]string)
	names, err := filepath.Glob(filepath.Join(testdata, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(name), ".yaml")] = string(src)
	}
	for rule, src := range tooBig {
		files[string(rule)] = src
	}

	known := make(map[Rule]bool)
	for _, rule := range allRules(t) {
		known[rule] = true
		if _, ok := files[string(rule)]; !ok {
			t.Errorf("rule %s has no file in testdata/config", rule)
		}
	}
	for name, src := range files {
		t.Run(name, func(t *testing.T) {
			about, _, _ := strings.Cut(name, "--")
			_, report := Parse(name+".yaml", []byte(src))
			broken := make(map[Rule]bool)
			for _, p := range report.Problems {
				broken[p.Rule] = true
				if !known[p.Rule] {
					t.Errorf("rule %s is not in rules.go", p.Rule)
				}
				if p.Message == "" || p.Want == "" {
					t.Errorf("rule %s does not say what is wrong and what would be right: %+v", p.Rule, p)
				}
			}
			if !broken[Rule(about)] {
				t.Errorf("rule %s is not broken by its file:\n%s", about, report)
			}
			golden(t, filepath.Join(testdata, name+".txt"), report.String())
		})
	}
}

// allRules reads the rules from the source, so that none can be left out of a list.
func allRules(t *testing.T) []Rule {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "rules.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var rules []Rule
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			id, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, Rule(id))
		}
		return true
	})
	if len(rules) < 60 {
		t.Fatalf("found %d rules in rules.go; the test does not read it any more", len(rules))
	}
	return rules
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}
