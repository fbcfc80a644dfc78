package proxy

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// FuzzRedirect: whatever is asked for, a Location of the redirect site is the
// configured one, with nothing from the request but V2's known keys, and is itself
// a request that the site takes; a bridged V2 target is one that is taken again and
// unchanged.
func FuzzRedirect(f *testing.F) {
	for _, s := range [][3]string{
		{"GET", "/autodiscover/autodiscover.json", "Email=pat@contoso.com&Protocol=ActiveSync&RedirectCount=1"},
		{"POST", "/AutoDiscover/AutoDiscover.xml/x", "a=b"},
		{"GET", "/autodiscover/autodiscover.json/v1.0/p%C3%A9@contoso.com/", "ServerLocation=x&protocol=%41"},
		{"GET", "/autodiscover/autodiscover.json", "@evil.example/mapi/nspi/?&Email=autodiscover/autodiscover.json%3f@evil.example"},
		{"HEAD", "/autodiscover/autodiscover.json", "Email=a+b@c&Email=%0d%0aX:y"},
		{"GET", "//evil.example/%2e%2e/autodiscover/autodiscover.svc", ""},
	} {
		f.Add(s[0], s[1], s[2])
	}
	f.Fuzz(func(t *testing.T, method, rawPath, query string) {
		path, err := canonicalPath(rawPath)
		if err != nil {
			return
		}
		r := redirectAutodiscover("mail.contoso.com", method, path, query)
		if r.action == actRedirect {
			rest, ok := strings.CutPrefix(r.location, "https://mail.contoso.com/autodiscover/autodiscover.")
			if !ok || !isFieldValue([]byte(rest)) {
				t.Fatalf("Location %q", r.location)
			}
			ext, q, hasQuery := strings.Cut(rest, "?")
			if ext != "xml" && ext != "svc" && ext != "json" || hasQuery && ext != "json" {
				t.Fatalf("Location %q", r.location)
			}
			values, err := url.ParseQuery(q)
			if err != nil {
				t.Fatalf("Location %q: %v", r.location, err)
			}
			for key, v := range values {
				switch {
				case key != "Email" && key != "Protocol" && key != "RedirectCount" && key != "ServerLocation":
					t.Fatalf("key %q in Location %q", key, r.location)
				case len(v) != 1 || strings.ContainsAny(v[0], "/\\?:%\r\n<>\""):
					t.Fatalf("%s=%q in Location %q", key, v, r.location)
				}
			}
			if ext == "json" {
				again := redirectAutodiscover("mail.contoso.com", "GET", "/autodiscover/autodiscover.json", q)
				if again.action != actRedirect && values.Get("RedirectCount") != "10" {
					t.Fatalf("its own Location %q is refused: %s", r.location, again.why)
				}
			}
		}
		suffix, ok := underV2(path)
		if !ok {
			return
		}
		target, err := v2Target(method, suffix, query)
		if err != nil {
			return
		}
		targetPath, targetQuery, _ := strings.Cut(target, "?")
		canonical, err := canonicalPath(targetPath)
		if err != nil {
			t.Fatalf("target %q: %v", target, err)
		}
		suffix, _ = underV2(canonical)
		if again, err := v2Target(method, suffix, targetQuery); err != nil || again != target {
			t.Fatalf("target %q becomes %q, %v", target, again, err)
		}
	})
}

// Names that are no hosts are asked for in clear, never over TLS; hosts come first.
func TestPlainHost(t *testing.T) {
	many := &Host{Name: "mail.contoso.com", Mode: Redirect, RedirectTo: "mail.contoso.com"}
	own := &Host{Name: "own.example", Mode: Redirect, RedirectTo: "other.contoso.com"}
	mail := &Host{Name: "mail.contoso.com", Mode: Bridge, Site: &Site{}, VirtualDirectories: Preset(), Policy: "p"}
	table := &Table{
		Hosts: map[string]*Host{own.Name: own, mail.Name: mail},
		PlainHost: func(name string) *Host {
			if strings.HasSuffix(name, ".example") {
				return many
			}
			return nil
		},
	}
	f := func(o origin, method, name, target, want string) {
		t.Helper()
		o.table = table
		r := routeRequest(o, &requestHead{method: method, target: target, authority: name, hostName: name})
		got := http.StatusText(r.status)
		if r.action == actRedirect {
			got = r.location
		}
		if got != want {
			t.Errorf("%s %s%s: %s, want %s", method, name, target, got, want)
		}
	}
	const xml, at = "/autodiscover/autodiscover.xml", "https://mail.contoso.com/autodiscover/autodiscover."
	for _, method := range []string{"GET", "HEAD", "POST"} { // AUTODISCOVER 1.4 rule 2
		f(origin{}, method, "autodiscover.a.example", xml, at+"xml")
		f(origin{}, method, "autodiscover.a.example", "/AutoDiscover/AutoDiscover.svc", at+"svc")
		f(origin{}, method, "autodiscover.a.example", "/Autodiscover/Autodiscover.json?x=y", at+"json?RedirectCount=1")
	}
	f(origin{}, "PUT", "autodiscover.a.example", xml, "Not Found")
	f(origin{}, "GET", "autodiscover.a.example", "/", "Not Found")
	f(origin{}, "GET", "autodiscover.a.example", "/owa/", "Not Found")
	f(origin{}, "GET", "autodiscover.a.example", "/.well-known/acme-challenge/x", "Not Found")
	f(origin{}, "GET", "autodiscover.a.org", xml, "Not Found") // rule 4
	f(origin{}, "GET", "own.example", xml, "https://other.contoso.com/autodiscover/autodiscover.xml")
	f(origin{secure: true, host: mail}, "GET", "autodiscover.a.example", xml, "Misdirected Request")
	if d := decide(table, "", hello{ServerName: "autodiscover.a.example"}); d.verdict != refuseTLSName || d.refusal != RefuseAlert { // rule 8
		t.Errorf("over TLS: %+v", d)
	}
	table.PlainHost = nil
	f(origin{}, "GET", "autodiscover.a.example", xml, "Not Found")
}
