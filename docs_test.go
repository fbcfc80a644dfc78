package autodgate_test

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

var update = flag.Bool("update", false, "rewrite docs/config.md and what is generated in docs/tls.md")

// docs/config.md is what the program prints.
func TestReferenceIsGenerated(t *testing.T) {
	const file = "docs/config.md"
	if *update {
		if err := os.WriteFile(file, config.Reference(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, file) != string(config.Reference()) {
		t.Errorf("%s is not what config.Reference prints; go test . -update rewrites it", file)
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The table of profiles in docs/tls.md is what tlsconf has.
func TestProfilesAreDocumented(t *testing.T) {
	const file, begin, end = "docs/tls.md", "<!-- generated from tlsconf: go test . -update -->\n", "<!-- end -->\n"
	text := read(t, file)
	before, rest, ok := strings.Cut(text, begin)
	_, after, found := strings.Cut(rest, end)
	if !ok || !found {
		t.Fatalf("%s has no place for the table", file)
	}
	want := before + begin + "\n" + profileTable() + "\n" + end + after
	if *update && text != want {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		text = want
	}
	if text != want {
		t.Errorf("the table in %s is not that of tlsconf; go test . -update rewrites it", file)
	}
}

func profileTable() string {
	var b strings.Builder
	row := func(name string, cell func(tlsconf.Profile, tlsconf.Policy) string) {
		b.WriteString("| " + name + " |")
		for _, p := range tlsconf.Profiles() {
			b.WriteString(" " + cell(p, p.Policy()) + " |")
		}
		b.WriteString("\n")
	}
	row("", func(p tlsconf.Profile, _ tlsconf.Policy) string { return "`" + string(p) + "`" })
	row("---", func(tlsconf.Profile, tlsconf.Policy) string { return "---" })
	row("Mozilla's guideline", func(_ tlsconf.Profile, pol tlsconf.Policy) string { return pol.Guideline })
	row("versions", func(_ tlsconf.Profile, pol tlsconf.Policy) string {
		var names []string
		for v := pol.MinVersion; v <= tls.VersionTLS13; v++ {
			names = append(names, tls.VersionName(v))
		}
		return strings.Join(names, ", ")
	})
	row("groups", func(_ tlsconf.Profile, pol tlsconf.Policy) string {
		var names []string
		for _, id := range pol.Curves {
			names = append(names, strings.Replace(id.String(), "CurveP", "P-", 1))
		}
		return strings.Join(names, ", ")
	})
	suites := tlsconf.Old.Policy().Suites // which has all, in Mozilla's order
	for _, s := range slices.Backward(tls.CipherSuites()) {
		if s.SupportedVersions[0] == tls.VersionTLS13 {
			suites = slices.Insert(suites, 0, s.ID)
		}
	}
	for i, id := range suites {
		row("`"+tls.CipherSuiteName(id)+"`", func(_ tlsconf.Profile, pol tlsconf.Policy) string {
			if i < len(suites)-len(tlsconf.Old.Policy().Suites) || slices.Contains(pol.Suites, id) {
				return "yes"
			}
			return ""
		})
	}
	row("not in Go", func(_ tlsconf.Profile, pol tlsconf.Policy) string {
		if len(pol.Missing) == 0 {
			return ""
		}
		return "`" + strings.Join(pol.Missing, "`, `") + "`"
	})
	return b.String()
}

// documents are all pages that people read.
func documents(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	return append(files, "README.md", "CONTRIBUTING.md")
}

// block is what stands between two fences.
type block struct{ info, text, place string }

func blocks(t *testing.T, file string) (all []block) {
	t.Helper()
	var b *block
	for i, line := range strings.Split(read(t, file), "\n") {
		switch info, fence := strings.CutPrefix(line, "```"); {
		case fence && b == nil:
			b = &block{info: info, place: fmt.Sprintf("%s:%d", file, i+1)}
		case fence:
			all = append(all, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		}
	}
	if b != nil {
		t.Errorf("%s: the block does not end", b.place)
	}
	return all
}

// What is shown works. A block of YAML is a configuration that loads without a word (`yaml config`), one that loads with
// warnings (`yaml config warns`), or a mailboxes file (`yaml mailboxes`).
func TestConfigsInTheDocuments(t *testing.T) {
	seen := map[string]int{}
	for _, file := range documents(t) {
		for _, b := range blocks(t, file) {
			seen[b.info]++
			switch b.info {
			case "yaml config", "yaml config warns":
				_, report := config.Parse(b.place, []byte(b.text))
				if warns := len(report.Problems) > 0; !report.OK() || warns != strings.HasSuffix(b.info, "warns") {
					t.Errorf("%s: %s:\n%s", b.place, b.info, report)
				}
			case "yaml mailboxes":
				name := filepath.Join(t.TempDir(), "mailboxes.yaml")
				if err := os.WriteFile(name, []byte(b.text), 0o600); err != nil {
					t.Fatal(err)
				}
				dir, err := directory.Open(name, zerolog.New(zerolog.NewTestWriter(t)), directory.PollInterval(-1))
				if err != nil {
					t.Errorf("%s: %v", b.place, err)
				} else if err := dir.Close(); err != nil {
					t.Error(err)
				}
			case "sh", "sh serve": // run by .ci/docs
			case "text", "console": // shown, not run
			default:
				t.Errorf("%s: who checks a block %q?", b.place, b.info)
			}
		}
	}
	for _, kind := range []string{"yaml config", "yaml config warns", "yaml mailboxes", "sh", "sh serve"} {
		if seen[kind] == 0 {
			t.Errorf("no block %q was found", kind)
		}
	}
	if _, report, err := config.Load("docs/first/autodgate.yaml"); err != nil || len(report.Problems) > 0 {
		t.Errorf("docs/first/autodgate.yaml: %v\n%s", err, report)
	}
}

// Links between the documents lead somewhere.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	found := 0
	for _, file := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			found++
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	if found < 10 {
		t.Errorf("found only %d links", found)
	}
}

// programSource is everything the program is written in.
func programSource(t *testing.T) string {
	t.Helper()
	var source strings.Builder
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			source.WriteString(read(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return source.String()
}

// What docs/certificates.md quotes from the log are words of the program.
func TestCertificateErrorsInTheDocuments(t *testing.T) {
	source := programSource(t)
	_, section, _ := strings.Cut(read(t, "docs/certificates.md"), "\n## When it does not load\n")
	quotes := 0
	for line := range strings.SplitSeq(section, "\n") {
		quote, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |")
		if !ok || !strings.HasPrefix(line, "| `") {
			continue
		}
		if quotes++; !strings.Contains(source, quote) {
			t.Errorf("the program never says %q", quote)
		}
	}
	if quotes < 8 {
		t.Errorf("found only %d quotations", quotes)
	}
}

// What the table of symptoms quotes from the log are words of the program.
func TestSymptomsQuoteTheProgram(t *testing.T) {
	source := programSource(t)
	_, section, _ := strings.Cut(read(t, "README.md"), "\n## Symptoms")
	section, _, _ = strings.Cut(section, "\n## ")
	ours := []string{
		// Words of crypto/tls.
		"bad record MAC", "client requested unsupported application protocols",
		// Names of fields, keys, values and commands.
		"check", "conn", "remote", "redirect", "passthrough", "default: true", "virtual_directories", "response_timeout",
	}
	quotes := 0
	for line := range strings.SplitSeq(section, "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 {
			continue
		}
		for i, quote := range strings.Split(cells[3], "`") {
			if i%2 == 0 || slices.Contains(ours, quote) {
				continue
			}
			quotes++
			if !strings.Contains(source, quote) {
				t.Errorf("the program never says %q:\n%s", quote, line)
			}
		}
	}
	if quotes < 15 {
		t.Errorf("found only %d quotations", quotes)
	}
}

// The table of virtual directories is the preset.
func TestPublishedDirectories(t *testing.T) {
	page := read(t, "docs/virtual-directories.md")
	short := func(d time.Duration) string { return fmt.Sprintf("%dm", int(d.Minutes())) }
	var got, want []string
	for line := range strings.SplitSeq(page, "\n") {
		if strings.HasPrefix(line, "| `") && strings.Count(line, "|") == 8 {
			got = append(got, strings.ToLower(line))
		}
	}
	for _, d := range proxy.Preset() {
		access := map[proxy.Access]string{proxy.Publish: "publish", proxy.Internal: "internal", proxy.Deny: "deny"}[d.Access]
		affinity := d.Affinity
		if affinity == "" {
			affinity = "–"
		}
		methods := strings.Join(d.Methods, " ")
		if slices.Contains(d.Methods, "PROPFIND") {
			methods = "webdav, below"
			for _, m := range d.Methods {
				if !strings.Contains(page, "`"+m+"`") {
					t.Errorf("docs/virtual-directories.md does not name the method %s", m)
				}
			}
		}
		want = append(want, strings.ToLower(fmt.Sprintf("| `%s` | %s | %s | %s | %s | %s | %s |", d.Name, strings.Join(d.Prefixes, ", "), access, methods,
			short(d.RequestIdle), short(d.ResponseIdle), affinity)))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/virtual-directories.md has\n%s\nbut the preset is\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// The table of known attacks is the rules of the program.
func TestRulesInTheDocuments(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "docs/bridging.md"), "\n## Known attacks\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var got, want []string
	for line := range strings.SplitSeq(section, "\n") {
		if strings.HasPrefix(line, "| `") {
			got = append(got, line)
		}
	}
	for _, r := range proxy.Rules() {
		verb := ""
		if r.Removes {
			verb = "(removes) "
		}
		want = append(want, fmt.Sprintf("| `%s` | %s%s | %s |", r.ID, verb, r.Stops, r.Reference))
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/bridging.md has\n%s\nbut the rules are\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
