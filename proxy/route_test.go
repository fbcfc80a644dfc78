package proxy

import (
	"net/http"
	"strings"
	"testing"
)

// spellings that IIS serves alike route alike; what two servers
// could read differently is refused.
func TestCanonicalPath(t *testing.T) {
	f := func(raw, want string) {
		t.Helper()
		got, err := canonicalPath(raw)
		if err != nil {
			got = "error: " + err.Error()
		}
		if got != want && !(want == "error" && err != nil) {
			t.Errorf("%q: got %q, want %q", raw, got, want)
		}
	}
	f("/", "/")
	f("//", "/")
	f("/./", "/")
	f("/owa", "/owa")
	f("/OWA/", "/owa/")
	f("//ecp", "/ecp")
	f("/./ecp", "/ecp")
	f("/e%63p", "/ecp")
	f("/%65cp/", "/ecp/")
	f("/ecp.", "/ecp")
	f("/ecp./x", "/ecp/x")
	f("/ecp%20", "/ecp")
	f("/ecp;x", "/ecp;x")
	f("/\u212acp", "/kcp") // the Kelvin sign
	f("/Autodiscover/Autodiscover.xml", "/autodiscover/autodiscover.xml")
	f("/AutoDiscover//AUTODISCOVER.XML", "/autodiscover/autodiscover.xml")
	f("/owa/%C3%A9", "/owa/é")
	f("/owa/\xc3\xa9", "/owa/é")
	f("/owa/100%25", "/owa/100%")
	f("/owa/a..b/c", "/owa/a..b/c")
	f("*", "*")
	for _, bad := range []string{
		"", "owa", "/owa/../ecp", "/owa/..", "/owa/...", "/owa/. ./", "/owa/..%2fecp/", "/owa/%2e%2e/ecp", "/owa/.%2e/ecp", "/owa/..\\ecp", "/owa%5cecp",
		"/owa%2fecp", "/owa/%252e%252e/ecp", "/owa/%u002e", "/owa/%25u002e", "/ecp%00", "/owa/%", "/owa/%2", "/owa/%zz", "/owa/%c0%af", "/owa/\xff", "/owa/\uff0e\uff0e/ecp",
		"/owa/\uff0fecp", "/owa/%0d%0a", "/owa/%7f",
	} {
		f(bad, "error")
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/OWA/", "/e%63p", "/owa/../ecp", "/%25", "/a/./b.//", "/\u212acp", "/ſ", "/ß", "/İ", "/ecp. . "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		path, err := canonicalPath(raw)
		if err != nil {
			return
		}
		if path != "*" && path[0] != '/' || strings.Contains(path, "//") || strings.Contains(path, "/../") || strings.ContainsAny(path, "\\\x00") {
			t.Fatalf("%q became %q", raw, path)
		}
		if strings.Contains(path, "%") {
			return // a literal percent sign cannot be read again
		}
		again, err := canonicalPath(path)
		if err != nil || again != path {
			t.Fatalf("not idempotent: %q became %q, then %q, %v", raw, path, again, err)
		}
	})
}

// None of these reaches a directory that is not published to the client (R-6.12,
// ), and none contacts a backend.
func TestRouteBridge(t *testing.T) {
	dirs := Preset()
	for i := range dirs {
		if dirs[i].Name == "ecp" {
			dirs[i].Access = Internal
		}
	}
	dirs = append(dirs, CustomDirectory("/Custom/App", Publish), CustomDirectory("/owa/closed", Deny))
	host := &Host{Name: "mail.contoso.com", Mode: Bridge, VirtualDirectories: dirs, Site: &Site{}}
	table := &Table{Hosts: map[string]*Host{"mail.contoso.com": host}}
	f := func(method, target string, internal bool, want string) {
		t.Helper()
		h := &requestHead{method: method, target: target, authority: "mail.contoso.com", hostName: "mail.contoso.com"}
		r := routeRequest(origin{table: table, secure: true, host: host, internal: internal}, h)
		got := http.StatusText(r.status)
		if r.action == actBridge {
			got = r.vdir.Name + " " + r.target
		}
		if got != want {
			t.Errorf("%s %s: got %q, want %q", method, target, got, want)
		}
	}
	for _, target := range []string{
		"/", "/powershell", "/PowerShell/?x", "/ecp", "/ECP/", "//ecp", "/./ecp", "/e%63p", "/ecp;x", "/%65cp/", "/ecp.", "/ecpx", "/owax", "/exchange/", "/aspnet_client/",
		"/owa/healthcheck.htm", "/EWS/HealthCheck.htm", "/owa/closed", "/owa/Closed/x", "/custom", "/custom/application", "/*",
	} {
		f("GET", target, false, "Not Found")
	}
	f("GET", "/OWA/?ae=Item&id=RgAAA%2b%2fA", false, "owa /OWA/?ae=Item&id=RgAAA%2b%2fA")
	f("GET", "/owa", false, "owa /owa")
	f("GET", "/owa/closedx", false, "owa /owa/closedx")
	f("GET", "/ecp/", true, "ecp /ecp/")
	f("GET", "/owa/healthcheck.htm", true, "owa /owa/healthcheck.htm")
	f("PROPFIND", "/custom/app/x", false, "/Custom/App /custom/app/x")
	f("GET", "/Custom/App/healthcheck.htm", false, "/Custom/App /Custom/App/healthcheck.htm")
	f("RPC_IN_DATA", "/rpcwithcert/rpcproxy.dll?a:6001", false, "rpc /rpcwithcert/rpcproxy.dll?a:6001")
	f("RPC_IN_DATA", "/ews/", false, "Method Not Allowed")
	f("PUT", "/owa/", false, "Method Not Allowed")
	f("TRACE", "/custom/app", false, "Method Not Allowed")
	f("OPTIONS", "/Microsoft-Server-ActiveSync?jAAJBA+/==", false, "activesync /Microsoft-Server-ActiveSync?jAAJBA+/==")
	f("OPTIONS", "*", false, "Not Found")
	// autodiscover.json is checked and rebuilt; a first few of its attacks
	// and legitimate uses.
	f("GET", "/Autodiscover/Autodiscover.json?email=pat@contoso.com&PROTOCOL=ActiveSync&RedirectCount=1", false,
		"autodiscover /autodiscover/autodiscover.json?Email=pat%40contoso.com&Protocol=ActiveSync&RedirectCount=1")
	f("GET", "/autodiscover/autodiscover.json/v1.0/pat%40contoso.com?Protocol=EWS&ServerLocation=true", false,
		"autodiscover /autodiscover/autodiscover.json/v1.0/pat@contoso.com?Protocol=EWS&ServerLocation=true")
	f("GET", "/autodiscover/autodiscover.json", false, "autodiscover /autodiscover/autodiscover.json")
	for _, q := range []string{
		"?@x/mapi/nspi/?&Email=autodiscover/autodiscover.json%3f@x", "?@evil.com/powershell/&Email=a", "?Email=a@b&Protocol=XYZ&FooProtocol=Powershell",
		"/powershell?Email=a@b", "/v1.0/a@b/mapi", "?Email=a%40b%3f", "?Email=a%2540b/", "?Email=a@b&Email=c@d", "?Email=autodiscover/autodiscover.json@a", "x", "/v1.0/a", "?Email=a@b@c", "?RedirectCount=-1",
	} {
		if r := routeRequest(origin{table: table, secure: true, host: host}, &requestHead{
			method: "GET", target: "/autodiscover/autodiscover.json" + q, authority: "mail.contoso.com", hostName: "mail.contoso.com",
		}); r.action == actBridge {
			t.Errorf("%s reached the backend as %s", q, r.target)
		}
	}
	f("POST", "/autodiscover/autodiscover.json?Email=a@b", false, "Method Not Allowed")
}

// DESIGN: SNI that differs from Host gets 421 unless certificate and policy agree.
func TestRouteHosts(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		same, other, none := *f.mail, *f.mail, *f.mail
		same.Name, other.Name, none.Name = "other.contoso.com", "strict.contoso.com", "nocert.contoso.com"
		other.Policy, none.TLS = "q", nil
		tb.Hosts["other.contoso.com"], tb.Hosts["strict.contoso.com"], tb.Hosts["nocert.contoso.com"] = &same, &other, &none
		tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site}
	}, b.backend())
	for host, want := range map[string]int{
		"mail.contoso.com": 200, "MAIL.CONTOSO.COM.:8443": 200, "legacy.contoso.com": 200, "other.contoso.com": 200, "strict.contoso.com": 421,
		"nocert.contoso.com": 421, "eas.contoso.com": 421, "autodiscover.contoso.com": 421, "unknown.example": 421, "[::1]:443": 421, "127.0.0.1": 421,
	} {
		c := f.dial("mail.contoso.com")
		c.send("GET /owa/ HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		if r, _ := c.response("GET"); r.StatusCode != want {
			t.Errorf("%s: %d, want %d", host, r.StatusCode, want)
		}
	}
}

func TestDecide(t *testing.T) {
	mail := &Host{Name: "mail", Mode: Bridge, TLS: newCertConfig(t)}
	eas := &Host{Name: "eas", Mode: Passthrough}
	ready := false
	pending := &Host{Name: "pending", Mode: Answer, TLS: mail.TLS, Ready: func() bool { return ready }}
	redir := &Host{Name: "autodiscover", Mode: Redirect, Refuse: RefuseReset}
	table := &Table{
		Hosts:    map[string]*Host{"mail": mail, "eas": eas, "autodiscover": redir, "pending": pending},
		Defaults: map[string]*Host{":443": mail, ":8443": eas, "": redir},
	}
	f := func(listener, name string, want verdict, host *Host) {
		t.Helper()
		d := decide(table, listener, hello{ServerName: name})
		if d.verdict != want || d.host != host {
			t.Errorf("%s %q: %v %v", listener, name, d.verdict, d.host)
		}
	}
	f(":443", "mail", terminate, mail)
	f(":443", "eas", passOn, eas)
	f(":443", "autodiscover", refuseTLSName, redir)
	f(":443", "pending", refuseTLSName, pending)
	ready = true
	f(":443", "pending", terminate, pending)
	f(":443", "other", refuseTLSName, nil)
	f(":443", "192.0.2.1", terminate, mail)
	f(":443", "2001:db8::1", terminate, mail)
	f(":443", "", terminate, mail)
	f(":8443", "", passOn, eas)
	f(":9443", "", refuseTLSName, redir)
	// Validations by TLS-ALPN-01 go to those who answer them, also before there is a certificate (RFC 8737); a passthrough host
	// answers its own.
	ready = false
	g := func(name string, alpn []string, want verdict) {
		t.Helper()
		if d := decide(table, ":443", hello{ServerName: name, ALPN: alpn}); d.verdict != want {
			t.Errorf("%s %q: %v", name, alpn, d.verdict)
		}
	}
	g("pending", []string{"acme-tls/1"}, refuseTLSName)
	pending.Validation = mail.TLS
	g("pending", []string{"acme-tls/1"}, validate)
	g("pending", []string{"acme-tls/1", "http/1.1"}, refuseTLSName)
	g("pending", nil, refuseTLSName)
	g("mail", []string{"acme-tls/1"}, terminate) // where crypto/tls refuses the protocol
	g("eas", []string{"acme-tls/1"}, passOn)
	g("other", []string{"acme-tls/1"}, refuseTLSName)
	if d := decide(&Table{}, ":443", hello{}); d.verdict != refuseTLSName {
		t.Error("an empty table serves")
	}
}
