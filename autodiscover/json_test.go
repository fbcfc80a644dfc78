package autodiscover

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
)

// get asks h for a target without a login.
func get(t testing.TB, h http.Handler, method, target string, edit ...func(*http.Request)) answer {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, "https://autodiscover.contoso.com/", nil)
	r.URL = u
	r.RemoteAddr = "192.0.2.7:40000"
	for _, e := range edit {
		e(r)
	}
	return do(h, r)
}

func v2Sample(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("../testdata/v2/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// v2Lines are the lines of request-lines.txt: method, target and what is expected.
func v2Lines(t testing.TB) (out [][3]string) {
	t.Helper()
	for line := range strings.Lines(v2Sample(t, "request-lines.txt")) {
		request, want, ok := strings.Cut(strings.TrimSpace(line), " => ")
		if method, target, _ := strings.Cut(request, " "); ok && method != "#" {
			out = append(out, [3]string{method, target, want})
		}
	}
	if len(out) < 25 {
		t.Fatalf("only %d lines", len(out))
	}
	return out
}

// v2Documents are the documents that request-lines.txt names.
var v2Documents = map[string]string{
	"AutodiscoverV1": "resp-200-autodiscoverv1", "Ews": "resp-200-ews", "ActiveSync": "resp-200-activesync", "Rest": "resp-200-rest",
	"InvalidProtocol": "resp-400-invalidprotocol", "MissingProtocol": "resp-400-missingprotocol", "MandatoryParameterMissing": "resp-400-missing-email",
}

// Gotchas 1, 3 and 30: paths and protocols in any letter case, errors that are no 200.
func TestV2RequestLines(t *testing.T) {
	h := NewHandler(testOptions(t))
	for _, line := range v2Lines(t) {
		method, target, want := line[0], line[1], line[2]
		if strings.Contains(target, "%2fautodiscover.json") {
			continue // no canonical path: refused before any handler
		}
		a := get(t, h, method, target)
		status, document, _ := strings.Cut(want, " ")
		document, _, _ = strings.Cut(document, " ")
		if want := map[string]int{"200": 200, "400": 400, "404": 404, "405": 405}[status]; a.status != want || want == 0 {
			t.Errorf("%s: %d, want %s", target, a.status, status)
		}
		if name := v2Documents[document]; name != "" && a.body != v2Sample(t, name+".json") {
			t.Errorf("%s: %s, want %s", target, a.body, name)
		} else if a.status == 405 {
			continue
		}
		isV2(t, a)
	}
}

// isV2 checks what all V2 documents have in common.
func isV2(t *testing.T, a answer) {
	t.Helper()
	mark := a.field("jsonerror")
	marked := len(mark) == 1 && mark[0] == "true"
	if a.header.Get("Content-Type") != "application/json; charset=utf-8" || !json.Valid([]byte(a.body)) || marked != (a.status >= 400) {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	if a.field("WWW-Authenticate") != nil {
		t.Error("V2 asks for a login")
	}
}

// Section 9, item 10: existing and missing mailboxes have the same answer, and the
// directory is not even asked, so it takes the same time.
func TestV2KnowsNoMailboxes(t *testing.T) {
	o := testOptions(t)
	o.Directory = brokenDirectory{Directory: o.Directory, panics: "asked"}
	h := NewHandler(o)
	for _, domain := range []string{"contoso.com", "fabrikam.example", "other.example", "unserved.example", "bridged.example"} {
		f := func(name string) string {
			a := get(t, h, "GET", v2Path+"?Protocol=Ews&Email="+name+"@"+domain)
			return strings.Replace(a.body+a.header.Get("Location"), name, "NAME", 1)
		}
		if a, b := f("pat"), f("nobody"); a != b || a == "" {
			t.Errorf("%s: %q and %q", domain, a, b)
		}
	}
	// A login, right or wrong, changes nothing and counts for nothing.
	a := get(t, h, "GET", v2Path+"?Protocol=Ews&Email=pat@contoso.com", header("Authorization", basic("pat@contoso.com:wrong")))
	if a.status != 200 {
		t.Errorf("with a login: %d", a.status)
	}
}

func TestV2Domains(t *testing.T) {
	o := testOptions(t)
	d := contoso()
	d.InternalURL = "https://mail.contoso.local"
	o.Domains["contoso.com"], o.Hosts = d, []string{"Autodiscover.contoso.com", "other.contoso.com"}
	delete(o.Domains, "Contoso.com")
	o.Domains["gone.example"] = Domain{Action: ActionRedirect, RedirectAddr: "@elsewhere.example"}
	h := NewHandler(o)
	f := func(target string, want int, what string, edit ...func(*http.Request)) {
		t.Helper()
		a := get(t, h, "GET", v2Path+target, edit...)
		var doc struct{ URL, ErrorCode string }
		_ = json.Unmarshal([]byte(a.body), &doc)
		if got := doc.URL + doc.ErrorCode + a.header.Get("Location"); a.status != want || got != what {
			t.Errorf("%s: %d %s, want %d %s", target, a.status, got, want, what)
		}
		if a.status != 302 {
			isV2(t, a)
		}
	}
	f("?Email=pat@contoso.com&Protocol=ews", 200, "https://mail.contoso.com/EWS/Exchange.asmx")
	f("?Email=pat@contoso.com&Protocol=ews", 200, "https://mail.contoso.local/EWS/Exchange.asmx", from("10.0.0.1:1"))
	// POX is where we are, under the name that was asked if that is one of ours, and
	// never under one that somebody made up.
	const pox = "/autodiscover/autodiscover.xml"
	f("?Email=pat@contoso.com&Protocol=AUTODISCOVERV1", 200, "https://autodiscover.contoso.com"+pox)
	f("?Email=pat@contoso.com&Protocol=AutodiscoverV1", 200, "https://other.contoso.com"+pox, func(r *http.Request) { r.Host = "OTHER.contoso.com:8443" })
	f("?Email=pat@contoso.com&Protocol=AutodiscoverV1", 200, "https://mail.contoso.com"+pox, func(r *http.Request) { r.Host = "evil.example" })
	f("/v1.0/pat+tag@contoso.com?protocol=rest", 200, "https://mail.contoso.com/api")
	f("/v1.0/pat@contoso.com/?protocol=rest", 200, "https://mail.contoso.com/api")
	f("?Email=pat@fabrikam.example&Protocol=Ews", 200, "https://mail.contoso.com/EWS/Exchange.asmx") // a redirect to an address that we answer
	f("?Email=pat%2Bx@other.example&Protocol=Ews&RedirectCount=2", 302, "https://mail.contoso.com"+v2Path+"?Email=pat%2Bx%40other.example&Protocol=Ews&RedirectCount=3")
	f("/v1.0/pat@other.example?Protocol=activesync", 302, "https://mail.contoso.com"+v2Path+"/v1.0/pat@other.example?Protocol=ActiveSync&RedirectCount=1")
	f("?Email=pat@gone.example&Protocol=Ews", 302, "https://autodiscover.elsewhere.example"+v2Path+"?Email=pat%40elsewhere.example&Protocol=Ews&RedirectCount=1")
	f("?Email=pat@gone.example&Protocol=Ews&RedirectCount=10", 400, "InvalidRequest")
	f("?Email=pat@other.example&Protocol=Ews", 500, "InternalServerError", func(r *http.Request) { r.Host = "mail.contoso.com" })
	f("?Email=pat@loop.example&Protocol=Ews", 500, "InternalServerError")
	f("?Email=pat@bridged.example&Protocol=Ews", 500, "InternalServerError")
	f("?Email=pat@unserved.example&Protocol=Ews", 404, "UserNotFound")
	f("/v2.0/pat@contoso.com?Protocol=Ews", 404, "NotFound")
	f("/v1.0?Protocol=Ews", 400, "MandatoryParameterMissing")
	f("?Email=&Protocol=Ews", 400, "MandatoryParameterMissing")
	f("?Email=%zz@contoso.com&Protocol=Ews", 400, "InvalidRequest")
	f("/v1.0/pat@contoso.com?Email=pat@contoso.com&Protocol=Ews", 400, "InvalidRequest")
	for _, count := range []string{"-1", "x", "11", "99999999999999999999", ""} {
		f("?Email=pat@contoso.com&Protocol=Ews&RedirectCount="+count, 400, "InvalidRequest")
	}
	head := get(t, h, "HEAD", v2Path+"?Email=pat@contoso.com&Protocol=Ews") // gotcha 34
	if head.status != 200 || head.body != "" || head.header.Get("Content-Length") == "0" {
		t.Errorf("HEAD: %d %v %q", head.status, head.header, head.body)
	}
}

// Whatever is asked, the answer is JSON or a redirect that stays on the configured
// hosts, and no answer tells one local part from another.
func FuzzV2(f *testing.F) {
	for _, line := range v2Lines(f) {
		if u, err := url.ParseRequestURI(line[1]); err == nil {
			f.Add(u.Path, u.RawQuery)
		}
	}
	f.Add(v2Path+"/v1.0/pat@other.example", "Protocol=Ews")
	h := NewHandler(testOptions(f))
	f.Fuzz(func(t *testing.T, path, query string) {
		r := httptest.NewRequest("GET", "https://autodiscover.contoso.com/", nil)
		r.URL = &url.URL{Path: path, RawQuery: query}
		if _, ok := cutPath(path, v2Path); !ok {
			return
		}
		a := do(h, r)
		if a.status == http.StatusFound {
			u, err := url.Parse(a.header.Get("Location"))
			if err != nil || u.Scheme != "https" || u.Host != "mail.contoso.com" || !strings.HasPrefix(u.Path, v2Path) || strings.ContainsAny(u.String(), "\r\n <>\"") {
				t.Errorf("%q, %v", a.header.Get("Location"), err)
			}
			return
		}
		isV2(t, a)
	})
}
