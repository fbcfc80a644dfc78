package autodiscover

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/internal/throttle"
	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// What testdata/pox/outlook and hostile are expected to give after a right login:
// "settings", an ErrorCode, or "413".
var sampleOutcomes = map[string]string{
	"outlook/req-idn-address.xml":                       "500", // not served; never 600 for not being ASCII
	"outlook/req-bom.xml":                               "settings",
	"outlook/req-both-email-and-legacydn.xml":           "settings",
	"outlook/req-email-schema-first.xml":                "settings",
	"outlook/req-email.xml":                             "settings",
	"outlook/req-guid-address.xml":                      "settings",
	"outlook/req-https-namespace.xml":                   "settings",
	"outlook/req-legacydn.xml":                          "settings",
	"outlook/req-no-declaration.xml":                    "settings",
	"outlook/req-old-2006-schema.xml":                   "settings",
	"outlook/req-prefixed-namespace.xml":                "settings",
	"outlook/req-schema-uppercase-spaces.xml":           "settings",
	"mobilesync/req-mobilesync.xml":                     "mobilesync",
	"mobilesync/req-outlook-root-mobilesync-schema.xml": "mobilesync", // gotcha 29
	"hostile/unknown-schema.xml":                        "601",
	"hostile/over-8k.xml":                               "413",
}

func TestSamples(t *testing.T) {
	o := testOptions(t)
	delete(o.Domains, "bücher.example")
	h := NewHandler(o)
	right := []func(*http.Request){
		header("Authorization", basic("pat@contoso.com:secret")),
		header("Authorization", basic(`CONTOSO\pat:secret`)),
		header("Authorization", basic("patricia@contoso.com:secret")),
	}
	seen := 0
	for _, pattern := range []string{"outlook/req-*.xml", "mobilesync/req-*.xml", "hostile/*"} {
		for _, path := range samples(t, pattern) {
			seen++
			want := sampleOutcomes[path]
			if want == "" {
				want = "600"
				if !strings.HasPrefix(path, "hostile/") {
					t.Errorf("%s has no expected outcome", path)
				}
			}
			body := sample(t, path)
			t.Run(path, func(t *testing.T) {
				isChallenge(t, do(h, request(body, "", "")))
				isChallenge(t, do(h, request(body, "pat@contoso.com", "wrong")))
				isChallenge(t, do(h, request(body, "nobody@contoso.com", "wrong", from("198.51.100.1:1"))))
				h.throttle = throttle.New(throttle.Limits{}, h.now)
				for _, login := range right {
					a := do(h, request(body, "", "", login))
					switch want {
					case "413":
						if a.status != 413 {
							t.Errorf("status %d, want 413", a.status)
						}
						continue
					case "settings":
						if got := a.values("AutoDiscoverSMTPAddress"); len(got) != 1 || got[0] != "pat@contoso.com" {
							t.Errorf("settings for %q, want pat@contoso.com\n%s", got, a.body)
						}
						want = ""
					case "mobilesync":
						if d := cmp.Diff(sample(t, "mobilesync/resp-settings.xml"), a.body); d != "" {
							t.Errorf("(-sample +got):\n%s", d)
						}
						isPOX(t, a)
						continue
					}
					isPOX(t, a)
					if a.code() != want {
						t.Errorf("ErrorCode %q, want %q", a.code(), want)
					}
					if want == "" {
						want = "settings"
					}
				}
			})
		}
	}
	if seen != 12+2+32 {
		t.Errorf("%d samples, want 46", seen)
	}
}

// Each of our documents has the shape of its sample. The values of the samples
// are made up but consistent, so that almost every byte can be compared.
func TestAnswersMatchTheSamples(t *testing.T) {
	o := testOptions(t)
	o.Domains["redirected.example"] = Domain{Action: ActionRedirect, RedirectAddr: "@contoso.onmicrosoft.example"}
	alternatives := contoso()
	alternatives.PublicFolderMailbox = "pfmailbox1@contoso.com"
	external := contoso()
	external.InternalURL = ""
	internal := contoso()
	internal.ExternalURL = ""
	mapi, exhttp := header("X-MapiHttpCapability", "1"), header("X-ClientCanHandle", "Negotiate, exhttpinfo")

	for _, c := range []struct {
		sample, address string
		domain          Domain
		edit            []func(*http.Request)
	}{
		{"resp-classic-exch-expr-web", "pat@contoso.com", contoso(), nil},
		{"resp-mapihttp-web", "pat@contoso.com", contoso(), []func(*http.Request){mapi}},
		{"resp-exchange-internal-only-mapihttp", "pat@contoso.com", internal, []func(*http.Request){mapi}},
		{"resp-mapihttp-exhttp-web", "pat@contoso.com", contoso(), []func(*http.Request){mapi, exhttp}},
		{"resp-alternative-mailboxes", "pat@contoso.com", alternatives, []func(*http.Request){mapi}},
		{"resp-redirectaddr", "pat@redirected.example", contoso(), nil},
		{"resp-redirecturl", "pat@other.example", contoso(), nil},
		{"resp-error-500", "nobody@contoso.com", contoso(), nil},
		{"resp-error-501", "501", contoso(), nil},
		{"resp-error-600", "600", contoso(), nil},
		{"resp-error-601", "601", contoso(), nil},
		{"resp-error-602", "site@bridged.example", contoso(), nil},
		{"resp-error-603", "603", contoso(), nil},
	} {
		t.Run(c.sample, func(t *testing.T) {
			o := o
			o.Domains = cloneDomains(o.Domains)
			o.Domains["Contoso.com"] = c.domain
			if c.sample == "resp-alternative-mailboxes" {
				list := mailboxes()
				list[0].Alternatives = staticAlternatives()
				o.Directory = staticDirectory(t, list...)
			}
			body, login := ask(c.address), "pat@contoso.com"
			switch c.address {
			case "501":
				far, err := o.Directory.ByAddress(t.Context(), "far@unserved.example")
				if err != nil {
					t.Fatal(err)
				}
				body, login = string((&Request{LegacyDN: far.LegacyDN, AcceptableResponseSchema: nsOutlookResponse}).Encode()), far.Address
			case "600":
				body = ""
			case "601":
				body = strings.Replace(ask("pat@contoso.com"), "2006a<", "2007<", 1)
			case "603":
				o.Directory = brokenDirectory{Directory: o.Directory}
				body = ask("pat@contoso.com")
			}
			got := do(NewHandler(o), request(body, login, "secret", c.edit...))
			isPOX(t, got)
			want := sample(t, "outlook/"+c.sample+".xml")
			want = strings.Replace(want, "6a0d7c7e-3b0a-4f7b-8d55-0d1e5f0c9a11", "07248d7c-3ed1-5b0d-9dc7-bd122f8483bd", 1) // made from contoso.com
			want = strings.Replace(want, "2945626231", "3240252192", 1)                                                     // made from the realm
			if d := cmp.Diff(want, got.body); d != "" {
				t.Errorf("(-sample +got):\n%s", d)
			}
		})
	}
}

func TestGolden(t *testing.T) {
	o := testOptions(t)
	split := contoso()
	split.InternalURL = "https://mail.contoso.local/"
	split.OfflineAddressBook = ""
	split.AuthPackage = "Negotiate"
	bare := Domain{Action: ActionAnswer, ExternalURL: "https://mail.contoso.com:8443", ServerVersion: "14.3.136"}
	inside := from("10.1.2.3:5")
	mapi, exhttp := header("X-MapiHttpCapability", "1"), header("X-ClientCanHandle", "ExHttpInfo")
	for _, c := range []struct {
		name, address, login, password string
		domain                         Domain
		anonymous                      bool
		edit                           []func(*http.Request)
	}{
		{"classic-outside", "pat@contoso.com", "pat@contoso.com", "secret", split, false, nil},
		{"classic-inside", "pat@contoso.com", "pat@contoso.com", "secret", split, false, []func(*http.Request){inside}},
		{"classic-exhttp", "pat@contoso.com", "pat@contoso.com", "secret", split, false, []func(*http.Request){exhttp}},
		{"classic-negotiate", "pat@contoso.com", "pat@contoso.com", "secret", split, false, []func(*http.Request){header("X-ClientCanHandle", "negotiate")}},
		{"mapihttp", "pat@contoso.com", "pat@contoso.com", "secret", split, false, []func(*http.Request){mapi}},
		{"mapihttp-exhttp-inside", "pat@contoso.com", "pat@contoso.com", "secret", split, false, []func(*http.Request){mapi, exhttp, inside}},
		{"exchange-2010-no-mapihttp", "pat@contoso.com", "pat@contoso.com", "secret", bare, false, []func(*http.Request){mapi}},
		{"derived-identity-alternatives", "lee@contoso.com", "lee@contoso.com", "lee's", contoso(), false, []func(*http.Request){mapi}},
		{"idn", "zoë@bücher.example", "zoë@bücher.example", "pässwörd", contoso(), false, nil},
		{"anonymous", "anybody@contoso.com", "", "", split, true, []func(*http.Request){mapi}},
		{"redirectaddr", "pat@fabrikam.example", "pat@contoso.com", "secret", split, false, nil},
		{"redirecturl", "pat@other.example", "pat@contoso.com", "secret", split, false, nil},
		{"error-500", "nobody@contoso.com", "pat@contoso.com", "secret", split, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := o
			o.Domains = cloneDomains(o.Domains)
			o.Domains["Contoso.com"] = c.domain
			if c.anonymous {
				o.Directory = nil
			}
			got := do(NewHandler(o), request(ask(c.address), c.login, c.password, c.edit...))
			isPOX(t, got)
			path := filepath.Join("../testdata/pox/golden", c.name+".xml")
			if *update {
				if err := os.WriteFile(path, []byte(got.body), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got.body); d != "" {
				t.Errorf("(-golden +got):\n%s", d)
			}
			// A new handler gives the same bytes.
			if again := do(NewHandler(o), request(ask(c.address), c.login, c.password, c.edit...)); again.body != got.body {
				t.Error("a second answer differs")
			}
		})
	}
}

func TestCapabilityHeaders(t *testing.T) {
	h := NewHandler(testOptions(t))
	f := func(want string, edit ...func(*http.Request)) {
		t.Helper()
		a := do(h, request(ask("pat@contoso.com"), "pat@contoso.com", "secret", edit...))
		got := strings.Join(protocolTypes(t, a.body), " ")
		if got != want {
			t.Errorf("protocols %s, want %s", got, want)
		}
	}
	for _, invalid := range []string{"", "0", "-1", "1.0", "yes", "1,1", "+1", "99999999999999999999"} {
		f("EXCH EXPR WEB", header("X-MapiHttpCapability", invalid))
	}
	f("EXCH EXPR WEB", func(r *http.Request) { r.Header["X-Mapihttpcapability"] = []string{"1", "2"} })
	for _, valid := range []string{"1", " 2 ", "2147483647"} {
		f("mapiHttp WEB", header("X-MapiHttpCapability", valid))
	}
	f("EXCH EXPR WEB", header("X-ClientCanHandle", "Negotiate,ExHttpInformation"))
	f("EXCH EXPR EXHTTP WEB", header("X-ClientCanHandle", " a ,EXHTTPINFO"))
	f("EXCH EXPR EXHTTP WEB", func(r *http.Request) { r.Header["X-Clientcanhandle"] = []string{"Negotiate", "ExHttpInfo"} })
}

func TestURLsByPlace(t *testing.T) {
	f := func(external, internal, remote, wantEXCH, wantEXPR string) {
		t.Helper()
		o := testOptions(t)
		o.Domains = map[string]Domain{"contoso.com": {Action: ActionAnswer, ExternalURL: external, InternalURL: internal}}
		a := do(NewHandler(o), request(ask("pat@contoso.com"), "pat@contoso.com", "secret", from(remote)))
		got := a.values("EwsUrl")
		want := []string{wantEXCH + "/EWS/Exchange.asmx", wantEXPR + "/EWS/Exchange.asmx"}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q %q from %s (-want +got):\n%s", external, internal, remote, d)
		}
		for _, oab := range a.values("OABUrl") {
			if !strings.HasSuffix(oab, "/OAB/") { // gotcha 26
				t.Errorf("OABUrl %s", oab)
			}
		}
	}
	const ext, in = "https://mail.contoso.com", "https://mail.contoso.local"
	f(ext, in, "192.0.2.1:1", ext, ext)
	f(ext, in, "10.0.0.1:1", in, ext)
	f(ext, in, "[::ffff:10.0.0.1]:1", in, ext)
	f(ext, in, "[fd00::1]:1", in, ext)
	f(ext, in, "nonsense", ext, ext)
	f(ext, "", "10.0.0.1:1", ext, ext)
	f("", in, "192.0.2.1:1", in, in)
}

// Who may ask about whom.
func TestResolve(t *testing.T) {
	o := testOptions(t)
	h := NewHandler(o)
	f := func(login, password, address, want string, edit ...func(*http.Request)) {
		t.Helper()
		body := ask(address)
		if strings.HasPrefix(address, "/") {
			body = string((&Request{LegacyDN: address, AcceptableResponseSchema: nsOutlookResponse}).Encode())
		}
		a := do(h, request(body, login, password, edit...))
		if a.status != 200 {
			t.Errorf("%s about %s: status %d", login, address, a.status)
			return
		}
		got := a.code()
		for _, tag := range []string{"AutoDiscoverSMTPAddress", "RedirectAddr", "RedirectUrl"} {
			if v := a.values(tag); len(v) > 0 {
				got = v[0]
			}
		}
		if got != want {
			t.Errorf("%s about %s: %s, want %s", login, address, got, want)
		}
	}
	const pat, lee = "pat@contoso.com", "lee@contoso.com"
	f(pat, "secret", pat, pat)
	f(pat, "secret", "PAT@CONTOSO.COM", pat)
	f(pat, "secret", "patricia@contoso.com", pat)
	f(pat, "secret", patDN, pat)
	f(pat, "secret", strings.ToUpper(patDN), pat)
	f(pat, "secret", patGUID+"@contoso.com", pat)
	f(pat, "secret", patGUID+"@bücher.example", "500")
	f(pat, "secret", lee, "500")
	f(pat, "secret", "helpdesk@contoso.com", "500")
	f(pat, "secret", "nobody@contoso.com", "500")
	f(pat, "secret", "/o=Contoso/cn=Recipients/cn=oldform", "500")
	f(pat, "secret", "/o=nothing", "500")
	f(pat, "secret", "pat@unserved.example", "500")
	f(pat, "secret", "x@bridged.example", "602")
	f(pat, "secret", "pat@idle.example", "602") // an alias in a domain without URLs
	f(pat, "secret", "pat@fabrikam.example", pat)
	f(pat, "secret", "lee@fabrikam.example", lee) // by domain alone
	f(pat, "secret", "x@one.example", pat)
	f(pat, "secret", "pat@loop.example", "602")
	f(pat, "secret", "pat@other.example", "https://mail.contoso.com/autodiscover/autodiscover.xml")
	f(pat, "secret", "pat@other.example", "602", func(r *http.Request) { r.Host = "MAIL.contoso.com:443" })
	f(lee, "lee's", "helpdesk@contoso.com", "helpdesk@contoso.com")
	f(lee, "lee's", "support@contoso.com", "helpdesk@contoso.com") // an alias of an alternative
	f(lee, "lee's", "lee-archive@contoso.com", "lee-archive@contoso.com")
	f(lee, "lee's", "/o=contoso/cn=recipients/cn=oldform", "old@contoso.com")
	f(lee, "lee's", pat, "500")
	// Logins in a domain with redirect_addr are those of the target.
	f("pat@fabrikam.example", "secret", "pat@fabrikam.example", pat)
	f("someone@one.example", "secret", "someone@one.example", pat)
	f("zoë@bücher.example", "pässwörd", "zoë@bücher.example", "zoë@xn--bcher-kva.example")
	f("zoë@bücher.example", "p\xe4ssw\xf6rd", "zoë@bücher.example", "zoë@xn--bcher-kva.example", // all of it in ISO-8859-1
		header("Authorization", basic("zo\xeb@b\xfccher.example:p\xe4ssw\xf6rd")))

	isChallenge(t, do(h, request(ask(pat), "pat@loop.example", "secret")))
}

func TestPublicFolderMailboxIsForAllOfItsDomain(t *testing.T) {
	o := testOptions(t)
	d := contoso()
	d.PublicFolderMailbox = "PFMailbox1@contoso.com"
	o.Domains = map[string]Domain{"contoso.com": d}
	a := do(NewHandler(o), request(ask("pfmailbox1@contoso.com"), "pat@contoso.com", "secret"))
	if a.code() != "" {
		t.Errorf("ErrorCode %s", a.code())
	}
}

func TestWithoutDirectory(t *testing.T) {
	o := testOptions(t)
	o.Directory = nil
	d := contoso()
	d.InternalURL = "https://mail.contoso.local"
	o.Domains["Contoso.com"] = d
	h := NewHandler(o)
	mapi := header("X-MapiHttpCapability", "1")
	a, b := do(h, request(ask("pat@contoso.com"), "", "", mapi)), do(h, request(ask("eve@contoso.com"), "", "", mapi))
	isPOX(t, a)
	if v := a.values("DisplayName"); len(v) != 1 || v[0] != "pat@contoso.com" {
		t.Errorf("DisplayName %q, want the address", v)
	}
	// But for what is made from the address, both get the same.
	anybody := func(address, body string) string {
		m := directory.Mailbox{Address: address}
		m.Identify()
		return strings.NewReplacer(m.LegacyDN, "DN", m.MailboxGUID, "GUID", address, "ADDRESS").Replace(body)
	}
	if d := cmp.Diff(anybody("pat@contoso.com", a.body), anybody("eve@contoso.com", b.body)); d != "" {
		t.Errorf("answers differ by mailbox: %s", d)
	}
	if strings.Contains(a.body, ".local") {
		t.Error("an anonymous client outside learns the internal name")
	}
	if in := do(h, request(ask("pat@contoso.com"), "", "", mapi, from("10.0.0.1:1"))); !strings.Contains(in.body, ".local") {
		t.Error("a client inside is not told the internal URL")
	}
	for address, want := range map[string]string{"pat@unserved.example": "500", "x@bridged.example": "602"} {
		if a := do(h, request(ask(address), "", "")); a.code() != want {
			t.Errorf("%s: ErrorCode %s, want %s", address, a.code(), want)
		}
	}
	dn := func(email, dn string) string {
		return do(h, request(string((&Request{email, dn, nsOutlookResponse, ""}).Encode()), "", "")).code()
	}
	made := do(h, request(ask("pat@contoso.com"), "", "")).values("LegacyDN")[0]
	if dn("pat@contoso.com", made) != "" || dn("eve@contoso.com", made) != "500" || dn("", made) != "500" {
		t.Error("legacyDN: want settings for the pair that we made, 500 for another, 500 alone")
	}
	if a := do(h, request("", "", "", func(r *http.Request) { r.Method = "GET" })); a.code() != "600" {
		t.Errorf("GET: %s, want 600", a.code())
	}
}

func TestMethodsAndPaths(t *testing.T) {
	h := NewHandler(testOptions(t))
	method := func(m string) func(*http.Request) { return func(r *http.Request) { r.Method = m } }
	path := func(p string) func(*http.Request) { return func(r *http.Request) { r.URL.Path = p } }
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "OPTIONS", "PROPFIND"} {
		r := request("", "", "", method(m))
		r.Body = io.NopCloser(unreadable{t})
		isChallenge(t, do(h, r))
	}
	get := do(h, request("", "pat@contoso.com", "secret", method("GET")))
	isPOX(t, get)
	if get.code() != "600" {
		t.Errorf("GET with login: %s, want 600", get.code())
	}
	head := do(h, request("", "pat@contoso.com", "secret", method("HEAD")))
	if head.status != 200 || head.body != "" || head.header.Get("Content-Length") != fmt.Sprint(len(get.body)) {
		t.Errorf("HEAD with login: %d %q %v", head.status, head.body, head.header)
	}
	if a := do(h, request("", "pat@contoso.com", "secret", method("PUT"))); a.status != 405 || a.header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("PUT: %d, Allow %q", a.status, a.header.Get("Allow"))
	}
	for _, p := range []string{"/AutoDiscover/AutoDiscover.xml", "/Autodiscover/Autodiscover.xml", "/AUTODISCOVER/AUTODISCOVER.XML"} {
		if a := do(h, request(ask("pat@contoso.com"), "pat@contoso.com", "secret", path(p))); a.status != 200 { // gotcha 1
			t.Errorf("%s: %d", p, a.status)
		}
	}
	for _, p := range []string{
		"", "/", "/autodiscover", "/autodiscover/", "/autodiscover/autodiscover.xml/", "//autodiscover/autodiscover.xml",
		"/autodiscover/autodiscover.xmlx", "/autodiscover/autodiscover.jsonx", "/autodiscover/autodiscover.svcx", "/autodiscover/autodiscover.svc/wssecurity", "/mail/config-v1.1.xml",
	} {
		if a := do(h, request("", "pat@contoso.com", "secret", path(p))); a.status != 404 {
			t.Errorf("%s: %d, want 404", p, a.status)
		}
	}
}

func TestBodies(t *testing.T) {
	h := NewHandler(testOptions(t))
	good := ask("pat@contoso.com")
	f := func(want int, body io.Reader, length int64, edit ...func(*http.Request)) {
		t.Helper()
		r := request("", "pat@contoso.com", "secret", edit...)
		r.Body, r.ContentLength = io.NopCloser(body), length
		if a := do(h, r); a.status != want {
			t.Errorf("%d, want %d", a.status, want)
		}
	}
	f(200, strings.NewReader(good), int64(len(good)))
	f(200, strings.NewReader(good), -1)
	f(200, strings.NewReader(good), -1, header("Content-Type", "application/octet-stream"))
	f(200, strings.NewReader(good), -1, header("Content-Encoding", "identity"))
	f(415, unreadable{t}, 10, header("Content-Encoding", "gzip"))
	f(413, unreadable{t}, MaxRequestSize+1)
	full := good + strings.Repeat(" ", MaxRequestSize-len(good))
	f(200, strings.NewReader(full), -1)
	endless := &countingReader{}
	f(413, endless, -1)
	if endless.n > 2*MaxRequestSize {
		t.Errorf("%d bytes read of a body that is too large", endless.n)
	}
	f(400, io.MultiReader(strings.NewReader(good[:50]), brokenReader{io.ErrUnexpectedEOF}), -1)
	f(413, brokenReader{&http.MaxBytesError{Limit: 1}}, -1)
	r := request("", "pat@contoso.com", "secret")
	r.Body = nil
	if a := do(h, r); a.code() != "600" {
		t.Errorf("no body: %s, want 600", a.code())
	}
}

type countingReader struct{ n int }

func (c *countingReader) Read(p []byte) (int, error) {
	c.n += len(p)
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

func TestBadAuthorizationIsNoLogin(t *testing.T) {
	h := NewHandler(testOptions(t))
	for _, v := range []string{"", "Basic", "Basic !", "Bearer ", "Bearer x", "NTLM TlRMTVNTUAABAAAA", "Negotiate YII=", basic("pat@contoso.com"), basic("pat@contoso.com:"), basic(":secret")} {
		isChallenge(t, do(h, request(ask("pat@contoso.com"), "", "", header("Authorization", v))))
	}
	isChallenge(t, do(h, request(ask("pat@contoso.com"), "", "", func(r *http.Request) {
		r.Header["Authorization"] = []string{basic("pat@contoso.com:secret"), basic("lee@contoso.com:lee's")}
	})))
}

func TestFailuresOfTheDirectoryAndPanics(t *testing.T) {
	for _, p := range []any{nil, "text with pat@contoso.com", io.ErrNoProgress} {
		o := testOptions(t)
		log := logged(&o, zerolog.InfoLevel)
		o.Directory = brokenDirectory{o.Directory, p}
		a := do(NewHandler(o), request(ask("pat@contoso.com"), "pat@contoso.com", "secret"))
		isPOX(t, a)
		if a.code() != "603" {
			t.Errorf("%v: ErrorCode %s, want 603", p, a.code())
		}
		if !strings.Contains(log.String(), `"level":"error"`) || strings.Contains(log.String(), "pat@") {
			t.Errorf("%v: log %s", p, log)
		}
	}
}

func TestNothingOfARequestComesBackRaw(t *testing.T) {
	h := NewHandler(testOptions(t))
	a := do(h, request(ask("lee@contoso.com"), "lee@contoso.com", "lee's"))
	if !strings.Contains(a.body, "<DisplayName>Lee &amp; &lt;Sons&gt;</DisplayName>") {
		t.Errorf("display name not escaped:\n%s", a.body)
	}
	o := testOptions(t)
	o.Directory = nil
	a = do(NewHandler(o), request(ask("r&d'x@contoso.com"), "", ""))
	if !strings.Contains(a.body, "<DisplayName>r&amp;d&apos;x@contoso.com</DisplayName>") {
		t.Errorf("address not escaped:\n%s", a.body)
	}
}

func TestLogsNameNobody(t *testing.T) {
	for level, mayName := range map[zerolog.Level]bool{zerolog.InfoLevel: false, zerolog.DebugLevel: true} {
		o := testOptions(t)
		log := logged(&o, level)
		h := NewHandler(o)
		for _, password := range []string{"secret", "hunter2", ""} {
			do(h, request(ask("pat@contoso.com"), "pat@contoso.com", password))
			do(h, request(ask("lee@contoso.com"), "pat@contoso.com", password))
		}
		text := log.String()
		if strings.Contains(text, "pat@") != mayName {
			t.Errorf("level %v: %s", level, text)
		}
		if !strings.Contains(text, `"source":"192.0.2.7"`) || strings.Contains(text, "hunter2") || strings.Contains(text, "secret") || strings.Contains(text, "Basic") {
			t.Errorf("level %v: %s", level, text)
		}
	}
}

func TestMisconfiguredDomainsAre602(t *testing.T) {
	for name, d := range map[string]Domain{
		"no action":       {},
		"no URL":          {Action: ActionAnswer},
		"plain http":      {Action: ActionAnswer, ExternalURL: "http://mail.contoso.com"},
		"a path":          {Action: ActionAnswer, ExternalURL: "https://mail.contoso.com/ews"},
		"no host":         {Action: ActionAnswer, InternalURL: "https://"},
		"version":         {Action: ActionAnswer, ExternalURL: "https://x.example", ServerVersion: "2019"},
		"public folder":   {Action: ActionAnswer, ExternalURL: "https://x.example", PublicFolderMailbox: "x"},
		"no target":       {Action: ActionRedirect},
		"two targets":     {Action: ActionRedirect, RedirectAddr: "@x.example", RedirectURL: "https://x.example/"},
		"bad address":     {Action: ActionRedirect, RedirectAddr: "x"},
		"bad domain":      {Action: ActionRedirect, RedirectAddr: "@"},
		"http redirect":   {Action: ActionRedirect, RedirectURL: "http://x.example/autodiscover/autodiscover.xml"},
		"to itself":       {Action: ActionRedirect, RedirectAddr: "@contoso.com"},
		"to this address": {Action: ActionRedirect, RedirectAddr: "Pat@contoso.com"},
	} {
		o := testOptions(t)
		o.Domains = map[string]Domain{"contoso.com": d}
		if a := do(NewHandler(o), request(ask("pat@contoso.com"), "pat@contoso.com", "secret")); a.code() != "602" {
			t.Errorf("%s: ErrorCode %q, want 602", name, a.code())
		}
	}
}

func TestServerVersion(t *testing.T) { // gotcha 40
	for in, want := range map[string]string{"15.0.847": "73C0834F", "15.1.2507": "73C189CB", "15.2.2562": "73C28A02", "14.3.136": "73838088", "15.2.2562.17": "73C28A02"} {
		v, err := parseVersion(in)
		if err != nil || v.hex() != want {
			t.Errorf("%s: %s, %v; want %s", in, v.hex(), err, want)
		}
	}
	for _, in := range []string{"", "15", "15.2", "15.2.x", "15.2.-1", "99.0.1", "15.2.99999"} {
		if _, err := parseVersion(in); err == nil {
			t.Errorf("%q is accepted", in)
		}
	}
}

func TestRealmIsQuoted(t *testing.T) {
	if got := quoted("a \"b\"\\\r\nc"); got != `"a \"b\"\\c"` {
		t.Errorf("%s", got)
	}
}

// Over a real connection: letter case on the wire, and a 401 while the body is
// still outstanding.
func TestOnTheWire(t *testing.T) {
	srv := httptest.NewServer(NewHandler(testOptions(t)))
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /Autodiscover/Autodiscover.xml HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n<")
	r := bufio.NewReader(c)
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, head.String())
		}
		if line == "\r\n" {
			break
		}
		head.WriteString(line)
	}
	for _, want := range []string{"HTTP/1.1 401 ", "\r\nWWW-Authenticate: Basic realm=\"mail.contoso.com\"\r\n", "\r\nX-SOAP-Enabled: True\r\n", "\r\nContent-Length: 0\r\n"} {
		if !strings.Contains(head.String(), want) {
			t.Errorf("%q is not in\n%s", want, head.String())
		}
	}
}

func TestConcurrentRequests(t *testing.T) {
	h := NewHandler(testOptions(t))
	type client struct{ address, login, password, want string }
	clients := []client{
		{"pat@contoso.com", "pat@contoso.com", "secret", "pat@contoso.com"},
		{"lee@contoso.com", "lee@contoso.com", "lee's", "lee@contoso.com"},
		{"helpdesk@contoso.com", "lee@contoso.com", "lee's", "helpdesk@contoso.com"},
	}
	var wg sync.WaitGroup
	errs := make(chan error, 1000)
	for i := range 200 {
		wg.Go(func() {
			c := clients[i%len(clients)]
			for range 5 {
				a := do(h, request(ask(c.address), c.login, c.password))
				if got := a.values("AutoDiscoverSMTPAddress"); a.status != 200 || len(got) != 1 || got[0] != c.want {
					errs <- fmt.Errorf("%s: %d %q", c.address, a.status, got)
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if c := h.throttle.Counts(); c != (throttle.Counts{}) {
		t.Errorf("after nothing but right logins: %+v", c)
	}
}
