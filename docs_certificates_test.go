package autodgate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/autodgate/autodgate/tlsconf"
)

// The tables of docs/certificate-names.md are the program's data.
func TestCertificateTables(t *testing.T) {
	text := read(t, "docs/certificate-names.md")
	var want []string
	for _, r := range tlsconf.FourReasons() {
		want = append(want, fmt.Sprintf("| %s | %s | %s |", r.Reason, r.Meaning, r.Do))
	}
	for _, l := range tlsconf.ClientLimits() {
		want = append(want, fmt.Sprintf("| %s | %s | %s |", l.Client, l.Limit, l.Do))
	}
	for _, line := range want {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("missing or different:\n%s", line)
		}
	}
	for _, m := range tlsconf.NamespaceModels() {
		name, _, _ := strings.Cut(m.Name, ", regional")
		if !strings.Contains(text, "\n| "+name+" |") {
			t.Errorf("the model %q is missing", m.Name)
		}
	}
	table := text[strings.Index(text, "## What clients of old"):]
	if rows, limits := strings.Count(table, "\n| ")-1, len(tlsconf.ClientLimits()); rows != limits {
		t.Errorf("%d rows for %d limits", rows, limits)
	}
}
