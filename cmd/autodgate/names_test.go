package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/autodgate/autodgate/lab"
)

// The keys about names do what they say, from the file to the wire (R-1.10, R-1.12,
//
func TestNamesFromTheFile(t *testing.T) {
	pox, err := os.ReadFile("../../testdata/pox/outlook/resp-classic-exch-expr-web.xml")
	if err != nil {
		t.Fatal(err)
	}
	var asked string // the Host of the last request
	backend := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Host
		w.Header().Set("X-Powered-By", "ASP.NET")
		w.Header().Set("X-FEServer", "CAS01")
		w.Header().Set("X-OWA-CANARY", "x")
		switch {
		case strings.HasPrefix(r.URL.Path, "/autodiscover/"):
			w.Header().Set("Content-Type", "text/xml; charset=utf-8")
			io.WriteString(w, strings.ReplaceAll(string(pox), "mail.contoso.com", "cas01.contoso.local"))
		case strings.HasPrefix(r.URL.Path, "/ews/"):
			w.Header()["WWW-Authenticate"] = []string{"Negotiate", "NTLM", `Basic realm="x"`}
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("Location", "https://cas01.contoso.local/owa/auth/logon.aspx")
			w.Header().Set("Set-Cookie", "a=b; Domain=cas01.contoso.local")
			w.WriteHeader(http.StatusFound)
		}
	}))
	t.Cleanup(backend.Close)
	start := func(listen, host, site string) published {
		front := startFront(t, "front.yaml", fmt.Sprintf(`
listen: {https: ["127.0.0.1:0"], http: [], admin: []%s}
certificates: {storage: %s}
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq%s}
sites:
  hq: {servers: ["%s"], allow_internal_untrusted_certs: true%s}
`, listen, t.TempDir(), host, backend.URL, site))
		return published{front, frontTransport(t, front)}
	}
	get := func(p published, path string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://mail.contoso.com"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := p.conn.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	check := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}

	p := start("", "", "") // as it is by default: names are the server's business
	resp, _ := get(p, "/owa/")
	check("Location", resp.Header.Get("Location"), "https://cas01.contoso.local/owa/auth/logon.aspx")
	check("X-Powered-By", resp.Header.Get("X-Powered-By"), "ASP.NET")
	check("Host", asked, "mail.contoso.com")
	resp, _ = get(p, "/")
	check("/", resp.Header.Get("Location"), "/owa/")
	resp, _ = get(p, "/ews/exchange.asmx")
	check("challenges", strings.Join(resp.Header["Www-Authenticate"], "|"), `Negotiate|NTLM|Basic realm="x"`)
	if _, body := get(p, "/autodiscover/autodiscover.xml"); !strings.Contains(body, "https://cas01.contoso.local/") {
		t.Errorf("an answer was changed: %s", body)
	}

	p = start("", `, root_redirect: "", hide_headers: identification, virtual_directories: {ews: {basic_only: true}}`,
		", host_map: {cas01.contoso.local: mail.contoso.com}, host_header: exchange.contoso.local")
	resp, _ = get(p, "/owa/")
	check("Location", resp.Header.Get("Location"), "https://mail.contoso.com/owa/auth/logon.aspx")
	check("Set-Cookie", resp.Header.Get("Set-Cookie"), "a=b; Domain=mail.contoso.com")
	check("hidden", resp.Header.Get("X-Powered-By")+resp.Header.Get("X-FEServer"), "")
	check("X-OWA-CANARY", resp.Header.Get("X-OWA-CANARY"), "x")
	check("Host", asked, "exchange.contoso.local")
	resp, _ = get(p, "/")
	check("/", resp.Status, "404 Not Found")
	resp, _ = get(p, "/ews/exchange.asmx")
	check("challenges", strings.Join(resp.Header["Www-Authenticate"], "|"), `Basic realm="x"`)
	_, body := get(p, "/autodiscover/autodiscover.xml")
	check("answer", body, string(pox))

	p = start(", multiplexers: [127.0.0.0/8]", "", ", host_header: backend")
	resp, _ = get(p, "/ews/exchange.asmx")
	check("challenges", strings.Join(resp.Header["Www-Authenticate"], "|"), `Basic realm="x"`)
	check("Host", asked, strings.TrimPrefix(backend.URL, "https://"))
}

// with curl and NTLM: the servers only know their internal names, and the answer
// behind the login has the public one. The mapped answer keeps the connection.
func TestCurlMappedAnswer(t *testing.T) {
	company, front := startLab(t, func(s *lab.Scenario) {
		e := s.Exchange["contoso.com"]
		e.ExternalURL = e.InternalURL
		s.Exchange["contoso.com"] = e
		const site = "\n    servers:"
		if strings.Count(s.Config, site) != 1 {
			t.Fatal("the lab has not one site any more")
		}
		s.Config = strings.Replace(s.Config, site, "\n    host_map: {cas01.contoso.local: mail.contoso.com}"+site, 1)
	})
	pat, _ := company.Account("pat@contoso.com")
	file, err := filepath.Abs("../../testdata/pox/outlook/req-email.xml")
	if err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []string{"--ntlm", "--basic"} {
		const url = "https://mail.contoso.com/Autodiscover/Autodiscover.xml"
		out := curl(t, company, front, scheme, "-u", pat.Login+":"+pat.Password, "-H", "Content-Type: text/xml; charset=utf-8", "--data-binary", "@"+file,
			"--compressed", "-w", "\n%{http_code} %{num_connects}\n", url, url, url)
		if strings.Contains(out, "cas01.contoso.local") || strings.Count(out, "<EwsUrl>https://mail.contoso.com/EWS/Exchange.asmx</EwsUrl>") < 3 {
			t.Errorf("%s: %s", scheme, out)
		}
		if strings.Count(out, "\n200 0\n") != 2 || strings.Count(out, "\n200 1\n") != 1 {
			t.Errorf("%s: not one connection for all: %s", scheme, out)
		}
	}
}
