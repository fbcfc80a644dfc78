package autodiscover

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/autodgate/autodgate/directory"
	"github.com/google/go-cmp/cmp"
)

// loggedIn takes any password for that of one mailbox.
type loggedIn struct {
	directory.Directory
	address string
}

func (l loggedIn) Authenticate(ctx context.Context, _, _ string) (*directory.Mailbox, error) {
	return l.ByAddress(ctx, l.address)
}

func soapSample(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("../testdata/soap/" + name + ".xml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// askSOAP sends a SOAP request.
func askSOAP(h http.Handler, body, name, password string, edit ...func(*http.Request)) answer {
	return do(h, request(body, name, password, append(edit, func(r *http.Request) { r.URL.Path = "/AutoDiscover/autodiscover.svc" })...))
}

// userRequest is a request for settings of users.
func userRequest(users []string, settings ...string) string {
	var b strings.Builder
	b.WriteString(`<s:Envelope xmlns:s="` + nsEnvelope + `"><s:Body><GetUserSettingsRequestMessage xmlns="` + nsSOAP + `"><Request><Users>`)
	for _, u := range users {
		b.WriteString("<User><Mailbox>" + u + "</Mailbox></User>")
	}
	b.WriteString("</Users><RequestedSettings>")
	for _, s := range settings {
		b.WriteString("<Setting>" + s + "</Setting>")
	}
	b.WriteString("</RequestedSettings></Request></GetUserSettingsRequestMessage></s:Body></s:Envelope>")
	return b.String()
}

func domainRequest(domain string, settings ...string) string {
	b := userRequest([]string{"x"}, settings...)
	b = strings.ReplaceAll(b, "GetUserSettings", "GetDomainSettings")
	return strings.Replace(b, "<Users><User><Mailbox>x</Mailbox></User></Users>", "<Domains><Domain>"+domain+"</Domain></Domains>", 1)
}

// bare is a document without the white space between its elements.
func bare(document string) string {
	document = regexp.MustCompile(`>\s+<`).ReplaceAllString(strings.TrimSpace(document), "><")
	return strings.ReplaceAll(document, "<UserResponses></UserResponses>", "<UserResponses />")
}

// Each of our answers is its sample, but for white space between elements. The
// requests are the samples too, where there is one. The samples without an answer of
// ours are shapes for readers: mail protocols and a federation are not configured
// here, and ServerBusy is never said.
func TestSOAPAnswersMatchTheSamples(t *testing.T) {
	o := testOptions(t)
	o.Domains["moved.example"] = Domain{Action: ActionRedirect, RedirectAddr: "@contoso.onmicrosoft.example"}
	list := mailboxes()
	list[0].Alternatives = []directory.AlternativeMailbox{{Type: "Archive", DisplayName: "Online archive - Pat Doe", SMTPAddress: "pat-archive@contoso.com"}}
	o.Directory = staticDirectory(t, list...)
	h := NewHandler(o)
	for _, c := range []struct{ sample, body string }{
		{"resp-getusersettings", strings.NewReplacer("<a:Setting>Bogus</a:Setting>", "", "<a:Setting>ExternalUMUrl</a:Setting>", "").Replace(soapSample(t, "req-getusersettings"))},
		{"resp-getusersettings-settingerrors", userRequest([]string{"pat@contoso.com"}, "ExternalEwsUrl", "Bogus", "ExternalUMUrl")},
		{"resp-getusersettings-two-users", soapSample(t, "req-getusersettings-two-users")},
		{"resp-getusersettings-invaliduser", userRequest([]string{"nobody@contoso.com"}, "ExternalEwsUrl")},
		{"resp-getusersettings-invaliduser", soapSample(t, "req-getusersettings-dummy")},
		{"resp-getusersettings-redirectaddress", userRequest([]string{"pat@moved.example"}, "ExternalEwsUrl")},
		{"resp-getusersettings-redirecturl", userRequest([]string{"pat@other.example"}, "ExternalEwsUrl")},
		{"resp-getusersettings-toplevel-invalidrequest", userRequest([]string{"pat@contoso.com"})},
		{"resp-getdomainsettings", soapSample(t, "req-getdomainsettings")},
		{"resp-getdomainsettings-invaliddomain", domainRequest("unserved.example", "ExternalEwsUrl")},
		{"resp-getfederationinformation-notfederated", soapSample(t, "req-getfederationinformation")},
		{"resp-fault-soap11", "<nonsense/>"},
	} {
		a := askSOAP(h, c.body, "pat@contoso.com", "secret")
		isSOAP(t, a)
		if d := cmp.Diff(bare(soapSample(t, c.sample)), bare(a.body)); d != "" {
			t.Errorf("%s (-sample +got):\n%s", c.sample, d)
		}
		if again := askSOAP(NewHandler(o), c.body, "pat@contoso.com", "secret"); again.body != a.body {
			t.Errorf("%s: a second answer differs", c.sample)
		}
	}
	// The operation between servers of one company is not ours.
	a := askSOAP(h, soapSample(t, "req-getorganizationrelationshipsettings"), "pat@contoso.com", "secret")
	if isSOAP(t, a); a.code2() != "InvalidRequest" {
		t.Errorf("GetOrganizationRelationshipSettings:\n%s", a.body)
	}
	// All the samples of requests are messages.
	files, _ := filepath.Glob("../testdata/soap/req-*.xml")
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if a := askSOAP(h, string(body), "pat@contoso.com", "secret"); a.status != 200 {
			t.Errorf("%s: %d", file, a.status)
		}
	}
	if len(files) != 7 {
		t.Errorf("%d requests, want 7", len(files))
	}
}

// code2 is the first ErrorCode of a SOAP answer.
func (a answer) code2() string {
	if v := a.values("ErrorCode"); len(v) > 0 {
		return v[0]
	}
	return ""
}

// isSOAP checks what all answers have in common: a 500 is a fault and the other way
// round (SOAP 1.1, section 6.2), and the Content-Type is that of SOAP 1.1.
func isSOAP(t *testing.T, a answer) {
	t.Helper()
	if a.header.Get("Content-Type") != "text/xml; charset=utf-8" || !strings.HasPrefix(a.body, "<?xml ") {
		t.Errorf("%q %.20q", a.header.Get("Content-Type"), a.body)
	}
	fault := strings.Contains(a.body, "<s:Fault>")
	if a.status != 200 && a.status != 500 || fault != (a.status == 500) {
		t.Errorf("status %d, fault %v", a.status, fault)
	}
}

// Section 4, gotchas 15 to 17: 401 first, with the header that says that there is a
// service, and the service is there. Of everything but the question about federation
// nothing is parsed before.
func TestSOAPWantsALogin(t *testing.T) {
	h := NewHandler(testOptions(t))
	for _, body := range []string{"", "nonsense", soapSample(t, "req-getusersettings-dummy"), soapSample(t, "req-getdomainsettings"), strings.Repeat("x", maxAnonymousSOAP+1)} {
		isChallenge(t, askSOAP(h, body, "", ""))
	}
	isChallenge(t, askSOAP(h, soapSample(t, "req-getfederationinformation"), "pat@contoso.com", "wrong"))
	for _, length := range []int64{-1, 0, 10 << 20} {
		isChallenge(t, askSOAP(h, "", "", "", func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(unreadable{t}), length }))
	}
	isChallenge(t, askSOAP(h, "", "pat@contoso.com", "wrong", func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(unreadable{t}), 100 }))
	isChallenge(t, askSOAP(h, "", "", "", func(r *http.Request) { r.Method = "GET" })) // the probe
	probe := askSOAP(h, "", "pat@contoso.com", "secret", func(r *http.Request) { r.Method = "GET" })
	if probe.status != 200 || probe.field("X-SOAP-Enabled") == nil {
		t.Errorf("GET with a login: %d %v", probe.status, probe.header)
	}
	if a := askSOAP(h, "", "pat@contoso.com", "secret", func(r *http.Request) { r.Method = "PUT" }); a.status != 405 || a.header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("PUT: %d", a.status)
	}
	if a := askSOAP(h, strings.Repeat("x", MaxSOAPSize+1), "pat@contoso.com", "secret"); a.status != 413 {
		t.Errorf("64 KiB and one byte: %d", a.status)
	}
	if a := askSOAP(h, "x", "pat@contoso.com", "secret", header("Content-Encoding", "gzip")); a.status != 415 {
		t.Errorf("gzip: %d", a.status)
	}
	// Where no login is needed, the probe of the XML document says it as well.
	o := testOptions(t)
	o.Directory = nil
	if a := do(NewHandler(o), request("", "", "", func(r *http.Request) { r.Method = "GET" })); a.field("X-SOAP-Enabled") == nil {
		t.Errorf("GET without directory: %v", a.header)
	}
}

// Section 9, item 10: without a login only federation is answered, in the same bytes
// for a domain that is served and one that is not, and the directory is not asked.
func TestSOAPAnonymousFederation(t *testing.T) {
	o := testOptions(t)
	o.Directory = brokenDirectory{Directory: o.Directory, panics: "asked"}
	h := NewHandler(o)
	body := soapSample(t, "req-getfederationinformation")
	served := askSOAP(h, body, "", "")
	isSOAP(t, served)
	if served.code2() != "NotFederated" {
		t.Errorf("%s", served.body)
	}
	other := strings.Replace(body, ">contoso.com<", ">unserved.example<", 1)
	if a := askSOAP(h, other, "", ""); a.body != served.body || other == body {
		t.Errorf("a domain that is not served is told apart:\n%s", a.body)
	}
	// A request that only mentions it is none.
	isChallenge(t, askSOAP(h, strings.Replace(soapSample(t, "req-getusersettings"), "Pat", "GetFederationInformationRequestMessage", 1)+
		"<!-- GetFederationInformationRequestMessage -->", "", ""))
}

func TestSOAPUsers(t *testing.T) {
	o := testOptions(t)
	f := func(o Options, login, password, user, want string, edit ...func(*http.Request)) {
		t.Helper()
		a := askSOAP(NewHandler(o), userRequest([]string{user}, "AutoDiscoverSMTPAddress"), login, password, edit...)
		isSOAP(t, a)
		codes := a.values("ErrorCode")
		got := append(append(a.values("Value"), a.values("RedirectTarget")...), "-")[0]
		if len(codes) != 2 || codes[0] != "NoError" {
			t.Errorf("%s: %q", user, codes)
		} else if got = codes[1] + " " + got; got != want {
			t.Errorf("%s about %s: %s, want %s", login, user, got, want)
		}
	}
	const pat, lee = "pat@contoso.com", "lee@contoso.com"
	f(o, pat, "secret", "PAT@Contoso.com", "NoError "+pat)
	f(o, pat, "secret", "patricia@contoso.com", "NoError "+pat)
	f(o, pat, "secret", lee, "InvalidUser -")
	f(o, lee, "lee's", "helpdesk@contoso.com", "NoError helpdesk@contoso.com") // gotcha 38
	f(o, pat, "secret", "nonsense", "InvalidUser -")
	f(o, pat, "secret", "", "InvalidUser -")
	f(o, pat, "secret", "far@unserved.example", "InvalidUser -")
	f(o, pat, "secret", "x@bridged.example", "InternalServerError -")
	f(o, pat, "secret", "lee@fabrikam.example", "RedirectAddress "+lee)
	f(o, pat, "secret", "x@loop.example", "InternalServerError -") // gotcha 27: never to itself
	f(o, pat, "secret", "x@other.example", "RedirectUrl https://mail.contoso.com/autodiscover/autodiscover.svc")
	f(o, pat, "secret", "x@other.example", "InternalServerError -", func(r *http.Request) { r.Host = "mail.contoso.com" })
	broken := o
	broken.Directory = brokenDirectory{Directory: o.Directory}
	f(broken, pat, "secret", pat, "InternalServerError -")
	f(broken, pat, "secret", "lee@fabrikam.example", "RedirectAddress "+lee)
	failing := o
	failing.Directory = failingLogin{o.Directory}
	if a := askSOAP(NewHandler(failing), "", pat, "secret"); a.status != 500 || !strings.Contains(a.body, "s:Server") {
		t.Errorf("a directory that fails at the login: %d %s", a.status, a.body)
	}
}

func TestSOAPDomains(t *testing.T) {
	h := NewHandler(testOptions(t))
	f := func(domain, want string) {
		t.Helper()
		a := askSOAP(h, domainRequest(domain, "ExternalEwsUrl", "UserDN"), "pat@contoso.com", "secret")
		isSOAP(t, a)
		got := append(append(a.values("Value"), a.values("RedirectTarget")...), "-")[0]
		if codes := a.values("ErrorCode"); len(codes) < 2 || codes[1]+" "+got != want {
			t.Errorf("%s: %q %s, want %s", domain, codes, got, want)
		} else if codes[1] == "NoError" && (len(codes) != 3 || codes[2] != "InvalidSetting") {
			t.Errorf("%s: UserDN is no setting of a domain, got %q", domain, codes)
		}
	}
	f("CONTOSO.com", "NoError https://mail.contoso.com/EWS/Exchange.asmx")
	f("fabrikam.example", "RedirectAddress contoso.com")
	f("one.example", "RedirectAddress contoso.com")
	f("other.example", "RedirectUrl https://mail.contoso.com/autodiscover/autodiscover.svc")
	f("loop.example", "InternalServerError -")
	f("bridged.example", "InternalServerError -")
	f("unserved.example", "InvalidDomain -")
	f("not a domain", "InvalidDomain -")
}

// Every setting that the reference names is known, and those that have a value say
// what POX says.
func TestSOAPSettings(t *testing.T) {
	o := testOptions(t)
	d := contoso()
	d.InternalURL, d.PublicFolderMailbox = "https://mail.contoso.local", "pfmailbox1@contoso.com"
	o.Domains["Contoso.com"] = d
	list := mailboxes()
	list[0].DisplayName = `P/><a t="&amp;"/>`
	o.Directory = staticDirectory(t, list...)
	h := NewHandler(o)
	value := func(name string) string {
		t.Helper()
		a := askSOAP(h, userRequest([]string{"pat@contoso.com"}, name), "pat@contoso.com", "secret")
		root, err := tree(a.body)
		if err != nil {
			t.Fatalf("%v\n%s", err, a.body)
		}
		user := root.first("Body").first("GetUserSettingsResponseMessage").first("Response").first("UserResponses").first("UserResponse")
		if e := user.first("UserSettingErrors").first("UserSettingError").first("ErrorCode").Text; e != "" {
			return e
		}
		s := user.first("UserSettings").first("UserSetting")
		return s.first("Value").Text + s.first("WebClientUrls").first("WebClientUrl").first("Url").Text
	}
	const dn = "/o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)"
	for name, want := range map[string]string{
		"UserDisplayName": list[0].DisplayName, // section 9, item 5
		"UserDN":          patDN, "UserMSOnline": "False", "MapiHttpEnabled": "True", "CasVersion": "15.02.2562.000",
		"EwsSupportedSchemas": "Exchange2007, Exchange2007_SP1, Exchange2010, Exchange2010_SP1, Exchange2010_SP2, Exchange2013, Exchange2013_SP1",
		"InternalEwsUrl":      "https://mail.contoso.local/EWS/Exchange.asmx", "ExternalEwsUrl": "https://mail.contoso.com/EWS/Exchange.asmx",
		"EwsPartnerUrl":                "https://mail.contoso.com/EWS/Exchange.asmx",
		"ExternalOABUrl":               "https://mail.contoso.com/OAB/2b1c3f44-5a7e-4e2c-9a10-77aa01b3c9d2/", // gotcha 26
		"ExternalEcpUrl":               "https://mail.contoso.com/owa/",
		"InternalEcpDeliveryReportUrl": "https://mail.contoso.local/owa/" + deliveryReports("contoso.com"),
		"EcpDeliveryReportUrlFragment": deliveryReports("contoso.com"),
		"InternalWebClientUrls":        "https://mail.contoso.local/owa/",
		"InternalMailboxServer":        patGUID + "@contoso.com", "InternalMailboxServerDN": dn + "/cn=Configuration/cn=Servers/cn=" + patGUID + "@contoso.com",
		"ExternalMailboxServer": "mail.contoso.com", "ExternalMailboxServerAuthenticationMethods": "Ntlm",
		"CertPrincipalName": "None", "PublicFolderInformation": "pfmailbox1@contoso.com", "GroupingInformation": "Default-First-Site-Name",
		"AlternateMailboxes": "SettingIsNotAvailable", "ExternalUMUrl": "SettingIsNotAvailable", "EcpVoicemailUrlFragment": "SettingIsNotAvailable",
		"externalewsurl": "InvalidSetting",
	} {
		if got := value(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if n := len(userSettingValues); n < 90 {
		t.Errorf("%d settings are known", n)
	}
	for name := range userSettingValues {
		if got := value(name); got == "InvalidSetting" || strings.Contains(got, ".local") && !strings.HasPrefix(name, "Internal") {
			t.Errorf("%s: %q", name, got)
		}
	}
	// Older servers have neither MAPI over HTTP nor the options pages.
	d.ServerVersion = "14.3.136"
	o.Domains["Contoso.com"] = d
	h = NewHandler(o)
	for name, want := range map[string]string{
		"MapiHttpEnabled": "False", "ExternalEcpUrl": "SettingIsNotAvailable", "EcpDeliveryReportUrlFragment": "SettingIsNotAvailable",
		"CasVersion": "14.03.0136.000", "EwsSupportedSchemas": "Exchange2007, Exchange2007_SP1, Exchange2010, Exchange2010_SP1, Exchange2010_SP2",
	} {
		if got := value(name); got != want {
			t.Errorf("2010: %s: %q, want %q", name, got, want)
		}
	}
	for version, want := range map[string]string{"8.3.83": "Exchange2007_SP1", "14.0.639": "Exchange2010", "14.1.218": "Exchange2010_SP1", "15.0.516": "Exchange2013", "15.0.1497": "Exchange2013_SP1", "15.1.225": "Exchange2016", "15.2.2562": "Exchange2016"} {
		v, err := parseVersion(version)
		if err != nil || v.name() != want {
			t.Errorf("%s is %s, want %s", version, v.name(), want)
		}
	}
}

// Section 9, items 1 to 5: what is no message, or can be read in two ways, is a fault
// that repeats nothing of it.
func TestSOAPRefuses(t *testing.T) {
	h := NewHandler(testOptions(t))
	good := userRequest([]string{"pat@contoso.com"}, "ExternalEwsUrl")
	replace := func(old, now string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("no %q", old)
		}
		return strings.Replace(good, old, now, 1)
	}
	f := func(body, want string) {
		t.Helper()
		a := askSOAP(h, body, "pat@contoso.com", "secret")
		isSOAP(t, a)
		got := append(append(a.values("faultcode"), a.code2()), "")[0]
		if got != want {
			t.Errorf("%s, want %s for\n%.300s", got, want, body)
		}
		if strings.Contains(a.body, "EVIL") {
			t.Errorf("something of the request comes back:\n%s", a.body)
		}
	}
	f(good, "NoError")
	f("\xef\xbb\xbf<?xml version='1.0' encoding='UTF-8'?>\n"+good, "NoError")
	f(replace("<s:Body>", "<!-- EVIL --><s:Body>"), "NoError")
	f("<!DOCTYPE s:Envelope>"+good, "s:Client")
	f(good+good, "s:Client")
	f(good+"EVIL", "s:Client")
	f(" "+good, "s:Client")
	f(good[:len(good)-3], "s:Client")
	f(replace("pat@contoso.com", "pat@con<b>EVIL</b>toso.com"), "s:Client")
	f(replace("pat@contoso.com", "pat@contoso.com<!-- -->.example.net"), "s:Client")
	f(replace("pat@contoso.com", "<![CDATA[pat@contoso.com]]>"), "s:Client")
	f(replace("<s:Body>", "<s:Body EVIL='1' EVIL='2'>"), "s:Client")
	f(replace("<s:Body>", "<s:Body x:EVIL='1'>"), "s:Client")
	f(replace("<s:Body>", "<?EVIL?><s:Body>"), "s:Client")
	f(replace("GetUserSettingsRequestMessage", "EVILRequestMessage"), "s:Client")
	f(strings.ReplaceAll(good, "GetUserSettings", "GetEVIL"), "s:Client")
	f(strings.ReplaceAll(good, nsSOAP, "urn:EVIL"), "s:Client")
	f(strings.ReplaceAll(good, nsEnvelope, "http://www.w3.org/2003/05/soap-envelope"), "s:VersionMismatch")
	f(strings.Repeat("<a>", 20)+strings.Repeat("</a>", 20), "s:Client")
	f(replace("<s:Body>", "<s:Header>"+strings.Repeat("<EVIL/>", maxSOAPElements)+"</s:Header><s:Body>"), "s:Client")
	header := func(inner string) string {
		return replace("<s:Body>", `<s:Header xmlns:w="`+nsAddressing+`" xmlns:o="urn:other">`+inner+"</s:Header><s:Body>")
	}
	f(header(`<o:EVIL s:mustUnderstand="1"/>`), "s:MustUnderstand")
	f(header(`<o:EVIL s:mustUnderstand="0"/><w:To s:mustUnderstand="1">EVIL</w:To>`), "NoError")
	f(header(`<w:Action s:mustUnderstand="1">`+nsSOAP+`/Autodiscover/GetUserSettings</w:Action>`), "NoError")
	f(header(`<w:Action>`+nsSOAP+`/Autodiscover/GetDomainSettings</w:Action>`), "s:Client")
	f(header(`<w:Action/><w:Action/>`), "s:Client")
	f(header(`<w:MessageID>EVIL</w:MessageID>`), "NoError") // no URI: not repeated
	if a := askSOAP(h, header(`<w:MessageID>urn:uuid:1</w:MessageID>`), "pat@contoso.com", "secret"); !strings.Contains(a.body, "<wsa:RelatesTo>urn:uuid:1</wsa:RelatesTo>") {
		t.Errorf("no RelatesTo:\n%s", a.body)
	}
	// Messages that cannot be answered.
	f(replace("ExternalEwsUrl", "EVIL and more"), "InvalidRequest")
	f(replace("<Users>", "<Users/><Users>"), "InvalidRequest")
	f(replace("<Request>", "<Request/><Request>"), "InvalidRequest")
	f(replace("<Mailbox>", "<Mailbox>EVIL@contoso.com</Mailbox><Mailbox>"), "InvalidRequest")
	f(userRequest(nil, "UserDN"), "InvalidRequest")
	f(userRequest(make([]string, maxSOAPUsers+1), "UserDN"), "InvalidRequest")
	f(userRequest(make([]string, maxSOAPUsers), "UserDN"), "NoError")
	a := askSOAP(h, userRequest([]string{"pat@contoso.com"}, "UserDN", "UserDN"), "pat@contoso.com", "secret")
	if v := a.values("Value"); len(v) != 1 {
		t.Errorf("a setting that is asked for twice is told %d times", len(v))
	}
}

// Every element that declares a prefix has all of its parents' as well: few bytes could
// take much memory.
func TestSOAPPrefixesAreBounded(t *testing.T) {
	nested := func(prefixes int) []byte {
		begin, end := `<s:Envelope xmlns:s="`+nsEnvelope+`">`, "</s:Envelope>"
		for i := 1; i < prefixes; {
			begin, end = begin+"<a", "</a>"+end
			for n := 0; n < 20 && i < prefixes; n++ {
				begin += fmt.Sprintf(` xmlns:p%d="x"`, i)
				i++
			}
			begin += ">"
		}
		return []byte(begin + strings.Repeat(`<a xmlns:s="y"/>`, 1000) + end)
	}
	if _, err := scanSOAP(nested(maxSOAPPrefixes)); err != nil {
		t.Errorf("%d prefixes: %v", maxSOAPPrefixes, err)
	}
	if _, err := scanSOAP(nested(maxSOAPPrefixes + 1)); err == nil {
		t.Errorf("%d prefixes are accepted", maxSOAPPrefixes+1)
	}
}

// Whatever is sent, the answer is a fault or a message with an answer for each user
// asked about, and never of another mailbox than the login's.
func FuzzSOAP(f *testing.F) {
	files, _ := filepath.Glob("../testdata/soap/*.xml")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	o := testOptions(f)
	list := mailboxes()
	for i := range list {
		list[i].Password = ""
	}
	o.Directory = loggedIn{staticDirectory(f, list...), "pat@contoso.com"}
	h := NewHandler(o)
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > MaxSOAPSize {
			return
		}
		a := askSOAP(h, string(body), "pat@contoso.com", "any")
		isSOAP(t, a)
		var doc struct {
			Users []struct {
				ErrorCode string
			} `xml:"Body>GetUserSettingsResponseMessage>Response>UserResponses>UserResponse"`
		}
		if err := xml.Unmarshal([]byte(a.body), &doc); err != nil {
			t.Fatal(err)
		}
		if q, err := parseSOAP(body); err == nil && q.operation == opUserSettings && q.invalid == "" && len(doc.Users) != len(q.subjects) {
			t.Errorf("%d answers for %d users", len(doc.Users), len(q.subjects))
		}
		if strings.Contains(a.body, "Lee &") {
			t.Errorf("another's mailbox:\n%s", a.body)
		}
	})
}
