package autodiscover

import (
	"bytes"
	"context"
	"encoding/base64"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/autodgate/autodgate/directory"
	"github.com/rs/zerolog"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	patDN   = "/o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=4f1c09d2a7e34b10-pat"
	patGUID = "0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77"
)

// contoso is the company that the samples in testdata/pox describe.
func contoso() Domain {
	return Domain{
		Action: ActionAnswer, ExternalURL: "https://mail.contoso.com", InternalURL: "https://mail.contoso.com",
		AuthPackage: "ntlm", OfflineAddressBook: "2b1c3f44-5a7e-4e2c-9a10-77aa01b3c9d2",
	}
}

func mailboxes() []directory.Mailbox {
	return []directory.Mailbox{
		{
			Address: "pat@contoso.com", Aliases: []string{"patricia@contoso.com", "pat@fabrikam.example", "pat@idle.example"}, DisplayName: "Pat Doe", LegacyDN: patDN,
			MailboxGUID: patGUID, Login: `CONTOSO\pat`, Password: "secret", Site: "Default-First-Site-Name",
		},
		{
			Address: "lee@contoso.com", DisplayName: "Lee & <Sons>", Password: "lee's",
			Alternatives: []directory.AlternativeMailbox{
				{Type: "Archive", SMTPAddress: "lee-archive@contoso.com"},
				{Type: "Delegate", SMTPAddress: "helpdesk@contoso.com"},
				{Type: "Delegate", DisplayName: "Old form", LegacyDN: "/o=Contoso/cn=Recipients/cn=oldform", Server: "9b1c2d3e-0f11-4a22-8b33-c44d55e66f77@contoso.com"},
			},
		},
		{Address: "helpdesk@contoso.com", Aliases: []string{"support@contoso.com"}, DisplayName: "Helpdesk"},
		{Address: "lee-archive@contoso.com"},
		{Address: "old@contoso.com", LegacyDN: "/o=Contoso/cn=Recipients/cn=oldform"},
		{Address: "zoë@bücher.example", DisplayName: "Zoë", Password: "pässwörd"},
		{Address: "far@unserved.example", Password: "secret"},
		{Address: "site@bridged.example", Password: "secret"},
		{Address: "pfmailbox1@contoso.com"},
	}
}

func staticDirectory(t testing.TB, list ...directory.Mailbox) *directory.Static {
	t.Helper()
	if list == nil {
		list = mailboxes()
	}
	d, err := directory.New(list, zerolog.Nop(), directory.Lab())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func testOptions(t testing.TB) Options {
	return Options{
		Domains: map[string]Domain{
			"Contoso.com":      contoso(),
			"fabrikam.example": {Action: ActionRedirect, RedirectAddr: "@Contoso.com"},
			"one.example":      {Action: ActionRedirect, RedirectAddr: "pat@contoso.com"},
			"loop.example":     {Action: ActionRedirect, RedirectAddr: "@loop.example"},
			"other.example":    {Action: ActionRedirect, RedirectURL: "https://mail.contoso.com/autodiscover/autodiscover.xml"},
			"bridged.example":  {Action: ActionBridge},
			"idle.example":     {Action: ActionAnswer},
			"bücher.example":   contoso(),
		},
		Directory:        staticDirectory(t),
		InternalNetworks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
		Now:              func() time.Time { return time.Date(2026, 1, 2, 9, 41, 7, 123456700, time.UTC) },
		Logger:           zerolog.Nop(),
		Realm:            "mail.contoso.com",
	}
}

// request is a POST of body with a login, changed by edit.
func request(body string, name, password string, edit ...func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "https://autodiscover.contoso.com/autodiscover/autodiscover.xml", strings.NewReader(body))
	r.Header.Set("Content-Type", "text/xml; charset=utf-8")
	r.RemoteAddr = "192.0.2.7:40000"
	if name != "" {
		r.Header.Set("Authorization", basic(name+":"+password))
	}
	for _, e := range edit {
		e(r)
	}
	return r
}

func basic(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }

func header(key, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(key, value) }
}

func from(addr string) func(*http.Request) { return func(r *http.Request) { r.RemoteAddr = addr } }

// ask is the request for address in the Outlook schema.
func ask(address string) string {
	return string((&Request{EMailAddress: address, AcceptableResponseSchema: nsOutlookResponse}).Encode())
}

type answer struct {
	status int
	header http.Header
	body   string
}

func do(h http.Handler, r *http.Request) answer {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return answer{w.Code, w.Header(), w.Body.String()}
}

// field returns the values of a header in the letter case of the wire.
func (a answer) field(key string) []string { return a.header[key] }

var codePattern = regexp.MustCompile(`<ErrorCode>(\d+)</ErrorCode>`)

// code is the ErrorCode of an answer, "" if there is none.
func (a answer) code() string {
	if m := codePattern.FindStringSubmatch(a.body); m != nil {
		return m[1]
	}
	return ""
}

// value returns the text of every element of that name, in order.
func (a answer) values(tag string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`<`+tag+`(?: [^>]*)?>([^<]*)</`+tag+`>`).FindAllStringSubmatch(a.body, -1) {
		out = append(out, m[1])
	}
	return out
}

func isPOX(t *testing.T, a answer) {
	t.Helper()
	if a.status != 200 || a.header.Get("Content-Type") != "text/xml; charset=utf-8" || a.header.Get("Cache-Control") != "private" {
		t.Errorf("status %d, Content-Type %q, Cache-Control %q; want 200, text/xml; charset=utf-8, private",
			a.status, a.header.Get("Content-Type"), a.header.Get("Cache-Control"))
	}
}

func isChallenge(t *testing.T, a answer) {
	t.Helper()
	want := http.Header{
		"WWW-Authenticate": {`Basic realm="mail.contoso.com"`}, "X-SOAP-Enabled": {"True"}, "Content-Length": {"0"},
	}
	if a.status != 401 || a.body != "" || len(a.header) != len(want) {
		t.Errorf("%d %v %q; want an empty 401 with %v", a.status, a.header, a.body, want)
	}
	for k, v := range want {
		if got := a.header[k]; len(got) != 1 || got[0] != v[0] {
			t.Errorf("401 has %s: %q, want %q", k, got, v)
		}
	}
}

func sample(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../testdata/pox", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func samples(t testing.TB, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join("../testdata/pox", pattern))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	for i := range paths {
		paths[i] = strings.TrimPrefix(filepath.ToSlash(paths[i]), "../testdata/pox/")
	}
	return paths
}

// brokenDirectory fails, or panics, in every call but Authenticate.
type brokenDirectory struct {
	directory.Directory
	panics any
}

func (b brokenDirectory) ByAddress(context.Context, string) (*directory.Mailbox, error) {
	if b.panics != nil {
		panic(b.panics)
	}
	return nil, io.ErrUnexpectedEOF
}

// unreadable fails the test when a body is read.
type unreadable struct{ t *testing.T }

func (u unreadable) Read([]byte) (int, error) {
	u.t.Error("the body is read before the login")
	return 0, io.EOF
}

func logged(o *Options, level zerolog.Level) *bytes.Buffer {
	b := &bytes.Buffer{}
	o.Logger = zerolog.New(b).Level(level)
	return b
}
