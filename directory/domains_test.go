package directory

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

func domainsFile(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "domains.txt")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func openDomains(t testing.TB, file string, poll time.Duration) *Domains {
	t.Helper()
	d, err := OpenDomains(file, poll, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// manyDomains is a file of n different domains, as hosters have them.
func manyDomains(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "customer-%06d.example\n", i)
	}
	return b.String()
}

func TestDomainsFile(t *testing.T) {
	t.Parallel()
	d := openDomains(t, domainsFile(t, "\xef\xbb\xbf# customers\r\n"+
		"contoso.com\r\n"+
		"\r\n"+
		"  Fabrikam.COM.\t# number 12\n"+
		"bücher.example\n"+
		"XN--BCHER-KVA.example\n"+ // again
		"faß.example\n"+
		"r3---x.example\n"+
		"autodiscover.com\n"+ // somebody has it
		"contoso.com\n"+ // again
		"# "+strings.Repeat("long comment ", 1000)+"\n"+
		"last.example"), 0)
	if n, again := d.Len(), d.Duplicates(); n != 7 || again != 2 || d.Skipped() != nil {
		t.Errorf("%d domains, %d again, skipped: %v", n, again, d.Skipped())
	}
	for host, want := range map[string]bool{
		"autodiscover.contoso.com":              true,
		"contoso.com":                           true, // [MS-OXDISCO] 3.1.5.2
		"autodiscover.fabrikam.com":             true,
		"autodiscover.xn--bcher-kva.example":    true,
		"autodiscover.xn--fa-hia.example":       true, // UTS 46, non-transitional, as clients ask
		"autodiscover.r3---x.example":           true,
		"autodiscover.autodiscover.com":         true,
		"autodiscover.com":                      true,
		"autodiscover.last.example":             true,
		"www.contoso.com":                       false,
		"mail.autodiscover.contoso.com":         false,
		"autodiscover.sales.contoso.com":        false,
		"autodiscover.autodiscover.contoso.com": false,
		"autodiscover.":                         false,
		"com":                                   false,
		"":                                      false,
		"contoso.com\nfabrikam.com":             false,
		"contoso.co":                            false,
	} {
		if d.Serves(host) != want {
			t.Errorf("serves %q: %t", host, !want)
		}
	}
}

// One bad line does not take down the others, and each is named.
func TestDomainsBadLines(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	d, err := OpenDomains(domainsFile(t, "contoso.com\nnot a domain\nhttps://fabrikam.com/\n*.contoso.com\nlocalhost\n192.0.2.1\n-a.example\na..example\n"+
		strings.Repeat("a", 64)+".example\nautodiscover.fabrikam.com\n\xff.example\n"+strings.Repeat("x", 5000)+"\n"+strings.Repeat("abcdefg.", 31)+"example\n"+
		"good2.example\n"+manyDomains(20)), 0, zerolog.New(&log))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Len() != 22 || !d.Has("contoso.com") || !d.Has("good2.example") {
		t.Errorf("%d domains", d.Len())
	}
	skipped := d.Skipped()
	if skipped == nil || len(skipped.Problems) != 12 {
		t.Fatalf("skipped: %v", skipped)
	}
	for i, p := range skipped.Problems {
		if p.Line != i+2 {
			t.Errorf("line %d for %s", p.Line, p.Text)
		}
	}
	for i, want := range map[int]string{
		0: `"not a domain" is not a domain such as contoso.com`,
		3: `"localhost" has no dot: it would stand for a whole top-level domain`,
		4: `"192.0.2.1" is an IP address, or looks like one`,
		8: `"autodiscover.fabrikam.com" is a host name: the line is to be the mail domain, fabrikam.com`,
		9: `"\xff.example" is not UTF-8`,
	} {
		if got := skipped.Problems[i].Text; got != want {
			t.Errorf("line %d: %s, want %s", i+2, got, want)
		}
	}
	if last := skipped.Problems[11].Text; !strings.Contains(last, "too long") || len(last) > 200 {
		t.Errorf("line 13: %s", last)
	}
	if !strings.Contains(log.String(), `"lines":12,"first_line":2`) {
		t.Errorf("the log says nothing of it: %s", &log)
	}
}

// What is no list of domains is not taken for a short one.
func TestDomainsUnusable(t *testing.T) {
	t.Parallel()
	for what, text := range map[string]string{
		"empty":    "",
		"comments": "# nothing yet\n\n",
		"a page":   "<!DOCTYPE html>\n<title>404</title>\n<p>Not found\ncontoso.com\n",
		"old Mac":  "a.example\rb.example\r",
		"binary":   "a.example\n\x00\x01\n\x02\n",
	} {
		_, err := OpenDomains(domainsFile(t, text), 0, zerolog.Nop())
		if e := (*LoadError)(nil); !errors.As(err, &e) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := OpenDomains(filepath.Join(t.TempDir(), "none.txt"), 0, zerolog.Nop()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// A changed file is read again when it is complete; a broken one, or none, leaves the
// domains as they were.
func TestDomainsReload(t *testing.T) {
	t.Parallel()
	file := domainsFile(t, "one.example\n")
	replace := func(text string) {
		t.Helper()
		next := filepath.Join(filepath.Dir(file), "next")
		if err := errors.Join(os.WriteFile(next, []byte(text), 0o600), os.Rename(next, file)); err != nil {
			t.Fatal(err)
		}
	}
	d := openDomains(t, file, 0)
	twice := func() { d.look(); d.look() }
	replace("two.example\n")
	d.look()
	if !d.Has("one.example") {
		t.Error("a change was taken over at the first look: it may be half of one")
	}
	d.look()
	if d.Has("one.example") || !d.Has("two.example") {
		t.Error("not reloaded")
	}
	replace("")
	twice()
	replace("<html>\n")
	twice()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	twice()
	if err := d.Reload(); err == nil {
		t.Error("a file that is gone was reloaded")
	}
	if !d.Has("two.example") || d.Len() != 1 {
		t.Error("a broken file took the domains away")
	}
	replace("three.example\n")
	twice()
	if !d.Has("three.example") {
		t.Error("not reloaded after the broken ones")
	}

	watched := openDomains(t, file, time.Millisecond)
	replace("four.example\n")
	for deadline := time.Now().Add(20 * time.Second); !watched.Has("four.example"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the watch saw nothing")
		}
	}
}

// Memory grows with the domains and no faster; lookups allocate nothing, whatever
// their number, and so do misses.
func TestManyDomains(t *testing.T) {
	for _, n := range []int{1000, 100_000} {
		d := openDomains(t, domainsFile(t, manyDomains(n)), 0)
		if d.Len() != n {
			t.Fatalf("%d of %d domains", d.Len(), n)
		}
		per := float64(d.Bytes()) / float64(n)
		t.Logf("%d domains: %.1f bytes each", n, per)
		if per > 64 {
			t.Errorf("%d domains take %.0f bytes each", n, per)
		}
		for i := range n {
			if !d.Serves(fmt.Sprintf("autodiscover.customer-%06d.example", i)) {
				t.Fatalf("domain %d is missing", i)
			}
		}
		host, other := fmt.Sprintf("autodiscover.customer-%06d.example", n/2), "autodiscover.nobody.example"
		if allocs := testing.AllocsPerRun(100, func() {
			if !d.Serves(host) || d.Serves(other) {
				t.Error("wrong")
			}
		}); allocs != 0 {
			t.Errorf("%d domains: %v allocations for two lookups", n, allocs)
		}
	}
}

// FuzzDomainOfLine: what is accepted is a lower-case name that can be asked for, and
// is its own canonical form.
func FuzzDomainOfLine(f *testing.F) {
	for _, s := range []string{"contoso.com", "BÜCHER.example", "a。b", "xn--a.example", "-a.b", "a.b.", "faß.de", "autodiscover.a.b", "1.2.3.4"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := domainOfLine([]byte(s))
		if err != nil {
			return
		}
		for _, c := range name {
			if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
				t.Fatalf("%q becomes %q", s, name)
			}
		}
		if again, err := domainOfLine(bytes.Clone(name)); err != nil || !bytes.Equal(again, name) {
			t.Fatalf("%q becomes %q and then %q (%v)", s, name, again, err)
		}
	})
}

// 100 000 and more domains, from the file to the first lookup.
func BenchmarkLoadDomains(b *testing.B) {
	for _, n := range []int{10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			file := domainsFile(b, manyDomains(n))
			b.ReportAllocs()
			var d *Domains
			for b.Loop() {
				d = openDomains(b, file, 0)
			}
			if !d.Has("customer-000001.example") {
				b.Fatal("not loaded")
			}
			b.ReportMetric(float64(d.Bytes())/float64(n), "B/domain")
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/load")
		})
	}
}

func BenchmarkServes(b *testing.B) {
	for _, n := range []int{100, 10_000, 1_000_000} {
		d := openDomains(b, domainsFile(b, manyDomains(n)), 0)
		hosts := make([]string, 1024)
		for i := range hosts {
			hosts[i] = fmt.Sprintf("autodiscover.customer-%06d.example", i*(n/100)*7%n)
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if !d.Serves(hosts[i&1023]) {
					b.Fatal("missing")
				}
				i++
			}
		})
	}
}
