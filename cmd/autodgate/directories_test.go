package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/autodgate/autodgate/config"
)

// What a directory's keys say holds on the wire: methods, sizes, legacy directories
//
func TestOverridesOverTheWire(t *testing.T) {
	backend := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	t.Cleanup(backend.Close)
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: `+t.TempDir()+`}
hosts:
  mail.contoso.com:
    certificate: self_signed
    site: hq
    virtual_directories:
      exchange: publish
      ews: {max_body: 1KiB}
      oab: {methods: [GET, HEAD, OPTIONS]}
      /only: {access: publish, methods: [PATCH]}
sites:
  hq: {servers: ["`+backend.URL+`"], allow_internal_untrusted_certs: true}
`)
	tr := frontTransport(t, front)
	for request, want := range map[string]int{
		"PROPFIND /exchange/pat/": 200, "BMOVE /exchange/pat/": 200, "PROPFIND /public/": 404, "PROPFIND /owa/": 405, "SEARCH /ews/": 405, "OPTIONS /oab/x": 200,
		"POST /oab/x": 405, "PATCH /only/x": 200, "GET /only/x": 405, "POST /ews/exchange.asmx": 413, "POST /owa/x": 200,
	} {
		method, path, _ := strings.Cut(request, " ")
		req, err := http.NewRequest(method, "https://mail.contoso.com"+path, strings.NewReader(strings.Repeat("x", 1025)))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", request, err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", request, resp.StatusCode, want)
		}
	}
}

// at a site that is spoken to in clear, mailboxes are not moved.
func TestMailboxMovesAreNotOffloaded(t *testing.T) {
	var seen []string
	backend := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = append(seen, r.URL.Path) }))
	t.Cleanup(backend.Close)
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: `+t.TempDir()+`}
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq}
sites:
  hq: {servers: ["`+backend.URL+`"], offload: true}
`)
	p := published{front, frontTransport(t, front)}
	for path, want := range map[string]int{"/EWS/mrsproxy.svc": 403, "/ews/MRSProxy.svc/x": 403, "/ews/exchange.asmx": 200} {
		if got := p.status(t, "POST", path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	if !slices.Equal(seen, []string{"/ews/exchange.asmx"}) {
		t.Errorf("the server saw %q", seen)
	}
}

// What the config warns of is less than the preset gives: the preset itself is never
// warned of.
func TestPresetIsEnough(t *testing.T) {
	for _, d := range virtualDirectories(&config.Host{}) {
		text := "hosts: {mail.contoso.com: {certificate: self_signed, site: hq, virtual_directories: {" + d.Name + ": {access: publish, request_timeout: " +
			d.RequestIdle.String() + ", response_timeout: " + d.ResponseIdle.String() + ", methods: [" + strings.Join(d.Methods, ", ") + "]}}}}\n" +
			"sites: {hq: {servers: [https://cas01.contoso.local]}}\n"
		if _, report := config.Parse("front.yaml", []byte(text)); len(report.Problems) > 0 {
			t.Errorf("%s:\n%s", d.Name, report)
		}
	}
}

// with curl, and with Autodiscover, which the front door answers itself: all
// failures of a user count together, and a reload forgets none.
func TestFailedLoginsWithCurl(t *testing.T) {
	company, front := startLab(t)
	account := func(address string) (login, password string) {
		a, ok := company.Account(address)
		if !ok {
			t.Fatal("no", address)
		}
		return a.Login, a.Password
	}
	status := func(url, way, user, password string, more ...string) string {
		t.Helper()
		args := []string{"-o", "/dev/null", "-w", "%{http_code}", "-u", user + ":" + password}
		if way != "" {
			args = append(args, way)
		}
		return curl(t, company, front, slices.Concat(args, more, []string{url})...)
	}
	const ews, eas = "https://mail.contoso.com/EWS/Exchange.asmx", "https://mail.contoso.com/Microsoft-Server-ActiveSync"
	pat, password := account("pat@contoso.com")
	_, bare, _ := strings.Cut(pat, `\`)
	if bare == "" {
		bare = pat
	}
	for i := range 8 {
		var got string
		switch i % 3 {
		case 0:
			got = status(ews, "--ntlm", pat, "wrong", "-d", "x")
		case 1:
			got = status(eas, "", bare, "wrong", "-d", "x")
		case 2:
			got = status("https://autodiscover.fabrikam.com/autodiscover/autodiscover.xml", "", "pat@contoso.com", "wrong", "-d", "x")
		}
		if got != "401" {
			t.Errorf("failure %d: %s", i, got)
		}
	}
	if err := front.reload(front.cfg); err != nil {
		t.Fatal(err)
	}
	for way, url := range map[string]string{"--ntlm": ews, "--basic": eas} {
		if got := status(url, way, pat, password, "-d", "x"); got != "429" {
			t.Errorf("%s after eight failures: %s", way, got)
		}
	}
	form := []string{"-o", "/dev/null", "-w", "%{http_code}", "--data-urlencode", "username=" + pat, "--data-urlencode", "password=" + password, "https://mail.contoso.com/owa/auth.owa"}
	if got := curl(t, company, front, form...); got != "429" {
		t.Errorf("OWA's form: %s", got)
	}
	if got := status("https://autodiscover.fabrikam.com/autodiscover/autodiscover.xml", "", "pat@contoso.com", password, "-d", "x"); got != "429" {
		t.Errorf("Autodiscover: %s", got)
	}
	lee, password := account("lee@contoso.com")
	if got := status(ews, "--ntlm", lee, password, "-d", "x"); got == "401" || got == "429" {
		t.Errorf("another user: %s", got)
	}
}

// What a directory has beside its methods is not taken for one, nor for one that is
// left out.
func TestDirectoriesPrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "front.yaml")
	if err := os.WriteFile(file, []byte(`
hosts:
  mail.contoso.com:
    certificate: self_signed
    site: hq
    virtual_directories: {ews: {basic_only: true}, ecp: deny, /wopi: {access: publish, upgrade: true}}
sites:
  hq: {servers: ["https://cas01.contoso.local"]}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, report, err := config.Load(file)
	if err != nil || !report.OK() {
		t.Fatal(report, err)
	}
	var out strings.Builder
	if err := printDirectories(&out, cfg); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for _, want := range []string{
		"ews /ews publish 5m 31m none GET HEAD POST OPTIONS; basic_only",
		"/wopi /wopi publish 5m 10m none all but TRACE and CONNECT; upgrade",
		"ecp /ecp deny: 404",
	} {
		if !slices.ContainsFunc(lines, func(line string) bool { return strings.Join(strings.Fields(line), " ") == want }) {
			t.Errorf("no line %q in\n%s", want, out.String())
		}
	}
}
