package autodgate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/autodgate/autodgate"

// mayImport says which of our packages a package may import, itself and in its tests. What is not here may not be there: a
// new package gets its line, and whoever adds it thinks about whom it should know. cmd/autodgate, which puts the program
// together, and the tests in this directory, which look at the project as a whole, know everything.
var mayImport = map[string][]string{
	"":                       {},
	"autodiscover":           {"directory", "internal/throttle"},
	"autodiscover/discovery": {},
	"cmd/autodgate":          {"", "autodiscover", "autodiscover/discovery", "config", "directory", "internal/throttle", "lab", "proxy", "tlsconf"},
	"config":                 {},
	"directory":              {},
	"internal/peer":          {},
	"internal/throttle":      {},
	// The lab talks to the front door over the wire, as anybody else does.
	"lab":     {"", "autodiscover", "directory", "tlsconf"},
	"proxy":   {"internal/throttle"}, // which counts logins and knows nothing else
	"tlsconf": {},
}

// forTests are the packages that every test may import, and nothing else.
var forTests = []string{"internal/peer"}

// mayNotReach says what a package must not depend on even through others.
var mayNotReach = map[string][]string{
	// The traffic path is handed tables and handlers; it knows neither their file format nor documents.
	"proxy": {"github.com/goccy/go-yaml", "github.com/beevik/etree", "github.com/caddyserver/certmagic", "encoding/xml"},
}

func TestImportTable(t *testing.T) {
	// What go list reads is unknown to the cache of go test; a directory that the test itself reads is not.
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", "./...").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			t.Fatalf("go list: %v\n%s", err, failed.Stderr)
		}
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); ; seen++ {
		var p struct {
			ImportPath                               string
			Imports, TestImports, XTestImports, Deps []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		allowed, ok := mayImport[name]
		if !ok {
			t.Errorf("package %s is not in the import table", name)
			continue
		}
		check := func(kind string, imports, allowed []string) {
			for _, i := range imports {
				if ours, ok := strings.CutPrefix(i, module); ok && i != p.ImportPath && !slices.Contains(allowed, strings.TrimPrefix(ours, "/")) {
					t.Errorf("%s %s may not import %s", kind, name, i)
				}
			}
		}
		check("package", p.Imports, allowed)
		if name != "" {
			check("the tests of package", slices.Concat(p.TestImports, p.XTestImports), slices.Concat(allowed, forTests))
		}
		for _, far := range mayNotReach[name] {
			if slices.Contains(p.Deps, far) {
				t.Errorf("package %s may not depend on %s", name, far)
			}
		}
	}
	if seen != len(mayImport) {
		t.Errorf("go list names %d packages, the import table %d", seen, len(mayImport))
	}
}
