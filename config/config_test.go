package config

import (
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the expected texts of testdata/config")

const testdata = "../testdata/config"

// tooBig are the files that break a rule by their size: made here rather than kept.
var tooBig = map[Rule]string{
	RuleFileTooLarge:    strings.Repeat("# a comment that goes on and on\n", maxBytes/32+1),
	RuleFileTooLong:     "hosts:\n" + strings.Repeat("  a: b\n", maxLines),
	RuleTooManyProblems: minimal + "sites:\n  hq:\n    servers: [" + strings.Repeat("x, ", maxProblems+9) + "]\n",
	RuleFileTooDeep:     "hosts: " + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + "\n",
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
			text := report.String()
			if _, made := tooBig[Rule(name)]; made {
				text = text[max(0, len(text)-400):]
			}
			golden(t, filepath.Join(testdata, name+".txt"), text)
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

// Files that are right, with everything that may be said about them.
func TestGood(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(testdata, "good", "*.yaml"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c, report := Parse(filepath.Base(name), readFile(t, name))
			if c == nil || !report.OK() {
				t.Fatalf("does not load:\n%s", report)
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".txt", report.String())
		})
	}
}

// Extended Protection is on where Exchange has it on by default, unless the file says otherwise.
func TestProtection(t *testing.T) {
	f := func(keys, want string) {
		t.Helper()
		c := mustParse(t, "sites: {hq: {servers: [https://cas01]"+keys+"}}\n"+minimal)
		if got := c.Sites["hq"].Protection(); got != want {
			t.Errorf("%s: %s, want %s", keys, got, want)
		}
	}
	f("", "off")
	for _, version := range []string{"2007", "2010", "2013", "2016"} {
		f(", exchange: "+version, "off")
		f(", extended_protection: required, exchange: "+version, "required")
	}
	for _, version := range []string{"2019", "SE"} {
		f(", exchange: "+version, "auto")
		f(", extended_protection: off, exchange: "+version, "off")
		f(", extended_protection: auto, exchange: "+version, "auto")
	}
}

// One run shows every fault: unknown keys, wrong types, unreadable values and broken rules, in the order of the file.
func TestEveryProblemAtOnce(t *testing.T) {
	_, report := Parse("many.yaml", []byte(`listen: {https: 443, admin: ":9480"}
hosts:
  mail.contoso.com: {site: hk, redirect: mail.contoso.com, colour: red, colour: blue}
sites:
  hq: {servers: [cas01], offload: maybe}
limits: {hello_timeout: 5}
logs: {}
`))
	var got []string
	for _, p := range report.Problems {
		got = append(got, string(p.Rule))
	}
	want := []string{
		"wrong-type", "admin-exposed", "host-two-modes", "unknown-key", "duplicate-key", "site-unused", "server-url", "wrong-type",
		"duration", "unknown-key",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s\n%s", diff, report)
	}
	if c, _ := Parse("many.yaml", []byte("hosts: {}")); c != nil {
		t.Error("a file with errors yields a Config")
	}
}

func TestRender(t *testing.T) {
	_, report := Parse("/etc/autodgate.yaml", []byte("hosts:\r\n  \"b\u00fccher.example\": {redirct: mail.contoso.com}\r\n"))
	want := `/etc/autodgate.yaml:2:3: error: hosts.'xn--bcher-kva.example': the host does nothing
  2 |   "bücher.example": {redirct: mail.contoso.com}
    |   ^
  want: one of site, passthrough, redirect and answer

/etc/autodgate.yaml:2:22: error: hosts.'xn--bcher-kva.example'.redirct: there is no key "redirct" here
  2 |   "bücher.example": {redirct: mail.contoso.com}
    |                      ^
  want: perhaps redirect
`
	if diff := cmp.Diff(want, report.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Reports are logged on reload, and passwords are not.
func TestReportHidesPasswords(t *testing.T) {
	_, report := Parse("x.yaml", []byte(`hosts: {a.example: {redirect: b.example}}
certificates: {storage: "rediss://gate:gehéim@redis.contoso.local:6379"}
domains: {c.example: {autodiscover: answer, external_url: "https://u:gehéim@d.example/x"}}
`))
	if s := report.String(); strings.Contains(s, "gehéim") || strings.Contains(s, "gehim") {
		t.Errorf("a password is in the report:\n%s", s)
	}
	for _, p := range report.Problems {
		if strings.Contains(p.Message+p.Want, "gehéim") {
			t.Errorf("a password is in %+v", p)
		}
	}
	if len(report.Problems) < 2 {
		t.Errorf("the lines with passwords are not in the report:\n%s", report)
	}
}

const minimal = "hosts:\n  autodiscover.contoso.com: {redirect: mail.contoso.com}\n"

func mustParse(t *testing.T, src string) *Config {
	t.Helper()
	c, report := Parse("test.yaml", []byte(src))
	if c == nil {
		t.Fatalf("does not load:\n%s", report)
	}
	return c
}

// A missing key takes its default, [] switches it off.
func TestDefaults(t *testing.T) {
	c := mustParse(t, minimal)
	want := &Config{
		Listen: Listen{
			HTTPS: []string{":443"}, HTTP: []string{":80"}, Admin: "127.0.0.1:9480", IMAPS: []string{}, POP3S: []string{}, Submissions: []string{}, IMAP: []string{}, POP3: []string{}, Submission: []string{},
			ProxyProtocolFrom: []netip.Prefix{}, TrustedProxies: []netip.Prefix{}, Multiplexers: []netip.Prefix{},
		},
		Certificates: Certificates{Storage: "/var/lib/autodgate", StoragePrefix: "autodgate"},
		Hosts: map[string]*Host{"autodiscover.contoso.com": {
			Redirect: "mail.contoso.com", Aliases: []string{}, TLS: TLS{Profile: "intermediate", ClientAuth: "none"}, Refuse: "alert", RootRedirect: "/owa/",
		}},
		InternalNetworks: []netip.Prefix{},
		Limits: Limits{
			HelloTimeout: 10 * time.Second, RequestHeadTimeout: 30 * time.Second, ConnectTimeout: 5 * time.Second, ClientIdleTimeout: 5 * time.Minute,
			TCPKeepalive: time.Minute, TCPUserTimeout: 2 * time.Minute,
			FailedLogins: FailedLogins{PerUser: 8, PerSource: 100, Window: 15 * time.Minute},
		},
		Log: Log{Level: "info", Format: "json"},
	}
	opts := []cmp.Option{cmp.AllowUnexported(Config{}), cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "dir" }, cmp.Ignore()), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })}
	if diff := cmp.Diff(want, c, opts...); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	for _, off := range []string{"[]", `""`} {
		c = mustParse(t, "listen: {http: [], admin: "+off+"}\n"+minimal)
		if len(c.Listen.HTTP) != 0 || c.Listen.Admin != "" || len(c.Listen.HTTPS) != 1 {
			t.Errorf("admin: %s: listen is %+v", off, c.Listen)
		}
	}
	c = mustParse(t, "sites: {hq: {servers: [https://cas01]}}\n"+minimal)
	// servers are authenticated, and spoken to in TLS that is safe, unless the file says otherwise.
	want.Sites = map[string]*Site{"hq": {
		Servers: []Server{{URL: "https://cas01"}}, Trust: Trust{Mode: "verify"},
		TLS: SiteTLS{MinVersion: "1.2", MaxVersion: "1.3", Ciphers: []string{}}, HostHeader: "preserve",
		Health:  Health{Interval: 10 * time.Second, Timeout: 5 * time.Second, Fall: 3, Rise: 2, Unauthorized: "down"},
		Balance: "round_robin", SlowStart: 30 * time.Second, HandshakesPerSecond: 200, RPCClientAccess: []string{},
	}}
	if diff := cmp.Diff(want.Sites, c.Sites); diff != "" {
		t.Errorf("sites (-want +got):\n%s", diff)
	}
	if c.AllowExternalUntrustedCerts {
		t.Error("certificates outside are not verified")
	}
}

func TestForms(t *testing.T) {
	c := mustParse(t, `listen: {https: [":443", "[2001:DB8:0::1]:8443"]}
hosts:
  MAIL.contoso.com.:
    aliases: [OWA.contoso.com]
    certificate: {cert: mail.pem, key: mail.key}
    site: hq
    default: ["[2001:db8::1]:8443"]
    virtual_directories: {ECP: internal, Microsoft-Server-ActiveSync: {upgrade: true}, /Custom/App: {access: publish, response_timeout: 90s}}
  lab.contoso.com: {certificate: self_signed, site: hq, default: false}
  acme.contoso.com: {certificate: acme, site: hq}
  eas.contoso.com: {passthrough: hq}
  imap.contoso.com: {passthrough: ["CAS09.contoso.local:443", "[::1]:8443"]}
  autodiscover.contoso.com: {redirect: mail.contoso.com}
  autodiscover.fabrikam.com: {certificate: self_signed, answer: true}
sites:
  hq:
    exchange: 2019
    trust: {ca: ca.pem}
    tls: {min_version: 1.0}
    servers: [https://CAS01.contoso.local, {url: "https://cas02.contoso.local:8443", drain: true}, "https://[2001:db8::5]"]
domains:
  "Bücher.example": {autodiscover: answer, external_url: "https://Mail.contoso.com"}
internal_networks: [10.0.0.0/8, 192.0.2.1, "2001:db8::1"]
`)
	eq := func(what string, got, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	eq("hosts", c.HostNames(), []string{
		"acme.contoso.com", "autodiscover.contoso.com", "autodiscover.fabrikam.com", "eas.contoso.com", "imap.contoso.com", "lab.contoso.com", "mail.contoso.com",
	})
	eq("sites", c.SiteNames(), []string{"hq"})
	mail := c.Hosts["mail.contoso.com"]
	eq("aliases", mail.Aliases, []string{"owa.contoso.com"})
	eq("paths", mail.Paths(), []Path{
		{Prefix: "/custom/app", VirtualDirectory: VirtualDirectory{Access: "publish", ResponseTimeout: 90 * time.Second}},
		{Prefix: "/ecp", Name: "ecp", VirtualDirectory: VirtualDirectory{Access: "internal"}},
		{Prefix: "/microsoft-server-activesync", Name: "activesync", VirtualDirectory: VirtualDirectory{Upgrade: true}},
	})
	eq("default everywhere", mail.Default.Everywhere, false)
	eq("default listeners", mail.Default.Listeners, []string{"[2001:db8::1]:8443"})
	eq("passthrough to a site", c.Hosts["eas.contoso.com"].Passthrough, &Passthrough{Site: "hq"})
	eq("passthrough to backends", c.Hosts["imap.contoso.com"].Passthrough, &Passthrough{Backends: []string{"cas09.contoso.local:443", "[::1]:8443"}})
	for name, mode := range map[string]Mode{
		"mail.contoso.com": ModeSite, "eas.contoso.com": ModePassthrough, "autodiscover.contoso.com": ModeRedirect, "autodiscover.fabrikam.com": ModeAnswer,
	} {
		eq(name, c.Hosts[name].Mode(), mode)
	}
	hq := c.Sites["hq"]
	eq("exchange", hq.Exchange, "2019")
	eq("trust", hq.Trust, Trust{CA: "ca.pem"})
	eq("tls", hq.TLS, SiteTLS{MinVersion: "1.0", MaxVersion: "1.3", Ciphers: []string{}})
	eq("address", hq.Servers[0].Address(), "cas01.contoso.local:443")
	eq("host", hq.Servers[2].Host(), "2001:db8::5")
	eq("scheme", hq.Servers[2].Scheme(), "https")
	var networks []string
	for _, p := range c.InternalNetworks {
		networks = append(networks, p.String())
	}
	eq("networks", networks, []string{"10.0.0.0/8", "192.0.2.1/32", "2001:db8::1/128"})
	eq("listen", c.Listen.HTTPS, []string{":443", "[2001:db8::1]:8443"})
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "autodgate.yaml")
	if _, _, err := Load(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := os.WriteFile(name, []byte(minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	c, report, err := Load(name)
	if err != nil || c == nil {
		t.Fatalf("%v\n%s", err, report)
	}
	if got := c.Path("mail.pem"); got != filepath.Join(dir, "mail.pem") {
		t.Errorf("a relative name is %s", got)
	}
	if abs := filepath.Join(dir, "x"); c.Path(abs) != abs || c.Path("") != "" {
		t.Errorf("absolute and empty names are %q and %q", c.Path(abs), c.Path(""))
	}
	if _, _, err := Load(dir); err == nil {
		t.Error("a directory is read as a file")
	}
}

func TestCanonicalHost(t *testing.T) {
	for in, want := range map[string]string{
		"Mail.Contoso.COM":           "mail.contoso.com",
		"mail.contoso.com.":          "mail.contoso.com",
		"BÜCHER.example":             "xn--bcher-kva.example",
		"server01":                   "server01",
		"r3---sn-x.example":          "r3---sn-x.example",
		"":                           "",
		".":                          "",
		"mail..contoso.com":          "",
		"-mail.contoso.com":          "",
		"mail-.contoso.com":          "",
		"mail_1.contoso.com":         "",
		"mail.contoso.com:443":       "",
		"https://mail.contoso.com":   "",
		"*.contoso.com":              "",
		"127.0.0.1":                  "",
		"[::1]":                      "",
		"xn--zzzzzzzz.example":       "",
		strings.Repeat("a", 64):      "",
		strings.Repeat("abc.", 63):   strings.TrimSuffix(strings.Repeat("abc.", 63), "."),
		strings.Repeat("abcd.", 63):  "",
		"mail.contoso.com\x00.evil":  "",
		"mail.contoso.com/../../etc": "",
	} {
		got, err := CanonicalHost(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("CanonicalHost(%q) = %q, %v; want %q", in, got, err, want)
		}
		if again, err := CanonicalHost(got); got != "" && (again != got || err != nil) {
			t.Errorf("CanonicalHost(%q) is not stable: %q, %v", in, again, err)
		}
	}
}

// Broken and hostile files get an answer, and get it soon.
func TestHostileFiles(t *testing.T) {
	var manyKeys strings.Builder
	manyKeys.WriteString("hosts:\n")
	for i := range maxTokens / 3 {
		fmt.Fprintf(&manyKeys, "  h%d: v\n", i)
	}
	var deep strings.Builder
	for i := range 1200 {
		deep.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	for name, test := range map[string]struct {
		src  string
		want Rule // of the first problem
	}{
		"nothing":           {"", RuleFileEmpty},
		"spaces":            {"  \n \n", RuleFileEmpty},
		"null":              {"~\n", RuleFileEmpty},
		"BOM alone":         {"\ufeff", RuleFileEmpty},
		"two BOMs":          {"\ufeff\ufeff" + minimal, RuleControlCharacter},
		"UTF-16":            {"\xff\xfeh\x00o\x00", RuleFileEncoding},
		"NUL":               {"hosts: \x00\n", RuleControlCharacter},
		"lone CR":           {"hosts:\r  a: b\r", RuleControlCharacter},
		"binary":            {"\x7fELF\x02\x01\x01", RuleControlCharacter},
		"a word":            {"hosts\n", RuleWrongType},
		"a list":            {"- hosts\n", RuleWrongType},
		"many keys":         {manyKeys.String(), RuleFileTooLong},
		"keys inside keys":  {deep.String(), RuleUnknownKey},
		"brackets":          {strings.Repeat("[", 500_000), RuleFileTooLong},
		"few brackets":      {strings.Repeat("[", 50_000), RuleFileTooDeep},
		"braces":            {strings.Repeat("{a: ", 10_000), RuleFileTooDeep},
		"dashes":            {strings.Repeat("- ", 50_000), RuleFileTooDeep},
		"questions":         {strings.Repeat("? ", 50_000), RuleYAMLComplexKey},
		"anchors":           {strings.Repeat("&a ", 20_000), RuleYAMLAnchor},
		"quotes":            {strings.Repeat("\"", 50_000), RuleYAMLSyntax},
		"colons":            {strings.Repeat(": ", 50_000), RuleYAMLSyntax},
		"blank lines":       {"a: |\n" + strings.Repeat("\n", maxLines-3), RuleUnknownKey},
		"too many lines":    {"a: |\n" + strings.Repeat("\n", 500_000), RuleFileTooLong},
		"one long word":     {"hosts: " + strings.Repeat("x", maxBytes-10), RuleWrongType},
		"one long key":      {minimal + strings.Repeat("x", maxBytes-100) + ": y", RuleUnknownKey},
		"a billion laughs":  {"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n", RuleYAMLAnchor},
		"unclosed":          {"hosts: {", RuleYAMLSyntax},
		"key without value": {"hosts:\n", RuleEmptyValue},
		"empty key":         {"\"\": x\n" + minimal, RuleUnknownKey},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			c, report := Parse("x.yaml", []byte(test.src))
			// Seconds under the race detector on a slow machine; minutes without the bounds.
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("took %s", took)
			}
			if c != nil || len(report.Errors()) == 0 || report.Errors()[0].Rule != test.want {
				t.Errorf("want %s first, got:\n%.2000s", test.want, report)
			}
			if s := report.String(); len(s) > 1<<20 {
				t.Errorf("the report has %d bytes", len(s))
			}
		})
	}
	// What Windows writes is fine.
	mustParse(t, "\ufeff"+strings.ReplaceAll(minimal, "\n", "\r\n"))
	mustParse(t, "---\n"+minimal)
}

// Whatever the bytes, Parse comes back, with places that are in the file, and the same answer the second time.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"*.yaml", "good/*.yaml", "generated/*.yaml"} {
		names, err := filepath.Glob(filepath.Join(testdata, pattern))
		if err != nil || len(names) == 0 {
			f.Fatal(names, err)
		}
		for _, name := range names {
			src, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		c, report := Parse("fuzz.yaml", src)
		if (c != nil) != report.OK() {
			t.Fatalf("config %v, ok %v", c != nil, report.OK())
		}
		lines := strings.Split(strings.ToValidUTF8(string(src), "?"), "\n")
		for _, p := range report.Problems {
			if p.Line < 0 || p.Line > len(lines) || p.Line > 0 && (p.Column < 1 || p.Column > len(lines[p.Line-1])+1) {
				t.Fatalf("the place is outside of the file: %+v", p)
			}
			if p.Rule == "" || p.Message == "" || p.Want == "" {
				t.Fatalf("a problem without words: %+v", p)
			}
		}
		if _, again := Parse("fuzz.yaml", src); again.String() != report.String() {
			t.Fatalf("the second report differs:\n%s\n%s", report, again)
		}
		if c == nil {
			return
		}
		for _, name := range c.HostNames() {
			if canonical, err := CanonicalHost(name); canonical != name {
				t.Fatalf("host %q is not canonical: %q, %v", name, canonical, err)
			}
			h := c.Hosts[name]
			h.Paths()
			if site := c.Sites[h.Site]; h.Mode() == ModeSite && site == nil {
				t.Fatalf("host %q has no site", name)
			}
		}
		for _, site := range c.Sites {
			for _, s := range site.Servers {
				if _, _, err := net.SplitHostPort(s.Address()); err != nil || s.Host() == "" {
					t.Fatalf("server %+v: %v", s, err)
				}
			}
		}
	})
}

// In YAML, host:port is one word, also in a list within braces.
func TestHostPortInBraces(t *testing.T) {
	c, r := Parse("front.yaml", []byte(`
listen: {https: [127.0.0.1:0, "[::1]:443"], http: [], admin: []}
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq}
  eas.contoso.com: {passthrough: [10.0.0.1:443, cas01:8443]}
sites: {hq: {servers: [https://cas01.contoso.local:444, {url: https://cas02:445}]}}
...
`))
	if !r.OK() {
		t.Fatal(r.String())
	}
	got := fmt.Sprintf("%v %v %s %s", c.Listen.HTTPS, c.Hosts["eas.contoso.com"].Passthrough.Backends, c.Sites["hq"].Servers[0].Address(), c.Sites["hq"].Servers[1].Address())
	if want := "[127.0.0.1:0 [::1]:443] [10.0.0.1:443 cas01:8443] cas01.contoso.local:444 cas02:445"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// What is meant as a key is still told from it.
	if _, r := Parse("front.yaml", []byte("hosts: {eas.contoso.com: {passthrough: [10.0.0.1: 443]}}\n")); r.OK() {
		t.Error("a mapping was taken for an address")
	}
}

// Where a mail protocol goes: the site's servers as Exchange has them, or the backends named, at the usual port of each.
func TestMailServers(t *testing.T) {
	f := func(mail, want string) {
		t.Helper()
		c := mustParse(t, `hosts: {mail.contoso.com: {certificate: self_signed, site: hq, mail: `+mail+`}}
sites: {hq: {servers: ["https://cas01.contoso.local:8443", {url: "https://[2001:db8::1]", drain: true}]}}
`)
		var got []string
		m := c.Hosts["mail.contoso.com"].Mail
		for _, key := range MailKeys() {
			if m.Protocol(key) == nil {
				continue
			}
			for _, s := range c.MailServers(m, key) {
				text := key + " " + s.Scheme + "://" + s.Address()
				if s.Drain {
					text += " drain"
				}
				if s.Site != "" {
					text += " " + s.Site
				}
				got = append(got, text)
			}
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s:\ngot  %s\nwant %s", mail, text, want)
		}
	}
	both := func(text string) string {
		key, server, _ := strings.Cut(text, " ")
		return key + " " + strings.Replace(server, "*", "cas01.contoso.local", 1) + " hq, " + key + " " + strings.Replace(server, "*", "[2001:db8::1]", 1) + " drain hq"
	}
	f("{site: hq, imaps: bridge}", both("imaps tls://*:993"))
	f("{site: hq, imap: bridge}", both("imap tls://*:993"))
	f("{site: hq, imap: passthrough}", both("imap starttls://*:143"))
	f("{site: hq, pop3: bridge}", both("pop3 tls://*:995"))
	f("{site: hq, pop3: passthrough}", both("pop3 starttls://*:110"))
	f("{site: hq, submissions: bridge}", both("submissions starttls://*:587"))
	f("{site: hq, submission: bridge}", both("submission starttls://*:587"))
	f("{site: hq, submissions: passthrough}", both("submissions tls://*:465"))
	f("{backend: tls://a.example, imaps: bridge, imap: bridge, pop3s: bridge, submissions: bridge}",
		"imaps tls://a.example:993, pop3s tls://a.example:995, submissions tls://a.example:465, imap tls://a.example:993")
	f("{backend: starttls://a.example, imaps: bridge, pop3: bridge, submission: bridge}",
		"imaps starttls://a.example:143, pop3 starttls://a.example:110, submission starttls://a.example:587")
	f("{offload: true, backend: [tcp://127.0.0.1, tcp://127.0.0.2:1143], imaps: bridge}", "imaps tcp://127.0.0.1:143, imaps tcp://127.0.0.2:1143")
	f("{site: hq, imaps: {mode: bridge, backend: tls://a.example}}", "imaps tls://a.example:993")
	f("{backend: tls://a.example, imaps: {mode: bridge, backend: [tls://b.example, tls://c.example]}, pop3s: bridge}",
		"imaps tls://b.example:993, imaps tls://c.example:993, pop3s tls://a.example:995")
}
