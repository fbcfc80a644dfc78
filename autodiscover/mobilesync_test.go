package autodiscover

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// askMobile is the request for address in the schema of ActiveSync.
func askMobile(address string) string {
	return string((&Request{EMailAddress: address, AcceptableResponseSchema: nsMobileSyncResponse}).Encode())
}

// Each of our MobileSync documents is its sample, byte for byte. That of CertEnroll
// has none of ours: its details are in no source we have.
func TestMobileSyncAnswersMatchTheSamples(t *testing.T) {
	o := testOptions(t)
	o.Domains["sold.example"] = Domain{Action: ActionRedirect, RedirectAddr: "@sales.contoso.com"}
	list := mailboxes()
	list[0].Aliases = append(list[0].Aliases, "pat@sold.example")
	o.Directory = staticDirectory(t, list...)
	f := func(name, body string, o Options, edit ...func(string) string) {
		t.Helper()
		a := do(NewHandler(o), request(body, "pat@contoso.com", "secret"))
		isPOX(t, a)
		want := sample(t, "mobilesync/"+name+".xml")
		for _, e := range edit {
			want = e(want)
		}
		if d := cmp.Diff(want, a.body); d != "" {
			t.Errorf("%s (-sample +got):\n%s", name, d)
		}
	}
	replace := func(old, now string) func(string) string {
		return func(s string) string { return strings.Replace(s, old, now, 1) }
	}
	f("resp-settings", askMobile("pat@contoso.com"), o)
	f("resp-settings", askMobile("patricia@contoso.com"), o) // the address to use from now on
	f("resp-redirect", askMobile("pat@sold.example"), o, replace(">pat@contoso.com<", ">pat@sold.example<"))
	broken := o
	broken.Directory = brokenDirectory{Directory: o.Directory}
	f("resp-action-error", askMobile("pat@contoso.com"), broken)
	id := replace("2945626231", "3240252192") // made from the realm
	f("resp-framework-error-600", sample(t, "hostile/two-requests.xml"), o, id)
	f("resp-framework-error-601", sample(t, "hostile/unknown-schema.xml"), o, id)
}

// Errors that concern the mailbox are in the MobileSync schema and name nobody;
// those that concern the request are framework errors ([MS-ASCMD] 2.2.2.1).
func TestMobileSyncErrors(t *testing.T) {
	h := NewHandler(testOptions(t))
	f := func(body, want string) {
		t.Helper()
		a := do(h, request(body, "pat@contoso.com", "secret"))
		isPOX(t, a) // gotcha 9: errors too
		got := a.code()
		if v := a.values("Message"); got == "" && len(v) == 1 {
			got = v[0]
			if s := a.values("Status"); len(s) != 1 || s[0] != "2" {
				t.Errorf("%s: Status %q, want 2", want, s)
			}
		}
		if got != want || strings.Contains(a.body, "<User>") {
			t.Errorf("%s, want %s and no User\n%s", got, want, a.body)
		}
	}
	f(askMobile("nobody@contoso.com"), "The address cannot be found")
	f(askMobile("lee@contoso.com"), "The address cannot be found") // there, but not for Pat
	f(askMobile("pat@unserved.example"), "The address cannot be found")
	f(askMobile("x@bridged.example"), "The domain is not configured")
	f(string((&Request{LegacyDN: patDN, AcceptableResponseSchema: nsMobileSyncResponse}).Encode()), "600")
	f(string((&Request{"pat@contoso.com", patDN, nsMobileSyncResponse, ""}).Encode()), "600")
	f(strings.Replace(askMobile("pat@contoso.com"), "mobilesync/responseschema/2006", "mobilesync/responseschema/2006a", 1), "601")
	if a, b := do(h, request(askMobile("nobody@contoso.com"), "pat@contoso.com", "secret")), do(h, request(askMobile("lee@contoso.com"), "pat@contoso.com", "secret")); a.body != b.body {
		t.Error("a mailbox that is there and one that is not differ")
	}
}

// The schema has no redirect to an URL: HTTP has.
func TestMobileSyncRedirectToURL(t *testing.T) {
	h := NewHandler(testOptions(t))
	a := do(h, request(askMobile("pat@other.example"), "pat@contoso.com", "secret"))
	if got := a.header.Get("Location"); a.status != http.StatusFound || got != "https://mail.contoso.com/autodiscover/autodiscover.xml" || a.body != "" {
		t.Errorf("%d to %q: %q", a.status, got, a.body)
	}
	isChallenge(t, do(h, request(askMobile("pat@other.example"), "", "")))
}

func TestMobileSyncURLByPlace(t *testing.T) {
	o := testOptions(t)
	d := contoso()
	d.InternalURL = "https://mail.contoso.local"
	o.Domains = map[string]Domain{"contoso.com": d}
	f := func(want string, edit ...func(*http.Request)) {
		t.Helper()
		a := do(NewHandler(o), request(askMobile("pat@contoso.com"), "pat@contoso.com", "secret", edit...))
		url, err := readAndroid(a.body)
		if name := a.values("Name"); err != nil || url != want || len(name) != 1 || name[0] != want { // gotcha 28
			t.Errorf("%q named %q, %v, want %q", url, name, err, want)
		}
	}
	f("https://mail.contoso.com/Microsoft-Server-ActiveSync")
	f("https://mail.contoso.local/Microsoft-Server-ActiveSync", from("10.0.0.1:1"))
	o.Directory = nil
	f("https://mail.contoso.com/Microsoft-Server-ActiveSync")
}

// Android: reads Server as it comes, and takes Url only once Type has said that it
// is that of ActiveSync.
func readAndroid(body string) (url string, err error) {
	root, err := tree(body)
	if err != nil {
		return "", err
	}
	for _, server := range root.first("Response").first("Action").first("Settings").all("Server") {
		kind := ""
		for _, n := range server.Nodes {
			switch n.XMLName.Local {
			case "Type":
				kind = n.Text
			case "Url":
				if kind == "MobileSync" {
					url = n.Text
				}
			}
		}
	}
	return url, nil
}

// The readers find what they look for, and nothing where it is in the wrong order.
func TestAndroidReaderLooks(t *testing.T) {
	body := sample(t, "mobilesync/resp-settings-certenroll.xml")
	if url, err := readAndroid(body); err != nil || url != "https://mail.contoso.com/Microsoft-Server-ActiveSync" {
		t.Errorf("%q, %v", url, err)
	}
	if url, _ := readAndroid(strings.ReplaceAll(body, "<Type>MobileSync</Type>", "")); url != "" {
		t.Errorf("%q without a Type", url)
	}
}

// Whatever is sent, the answer is a document, and with an address of the client's
// own it is the same twice.
func FuzzMobileSync(f *testing.F) {
	for _, path := range samples(f, "mobilesync/*.xml") {
		f.Add([]byte(sample(f, path)))
	}
	o := testOptions(f)
	o.Directory = nil
	h := NewHandler(o)
	f.Fuzz(func(t *testing.T, body []byte) {
		a := do(h, request(string(body), "", ""))
		if a.status == http.StatusRequestEntityTooLarge || a.status == http.StatusFound {
			return
		}
		isPOX(t, a)
		root, err := tree(a.body)
		if err != nil {
			t.Fatal(err)
		}
		response := root.first("Response")
		if response.XMLName.Space == nsMobileSyncResponse && len(response.first("Action").Nodes) != 1 {
			t.Errorf("not one Action:\n%s", a.body)
		}
		if again := do(h, request(string(body), "", "")); again.body != a.body {
			t.Error("a second answer differs")
		}
	})
}
