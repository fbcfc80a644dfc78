package lab

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/go-ntlmssp"

	"github.com/autodgate/autodgate/internal/peer"
)

// wireTo opens a connection to a server of the company.
func wireTo(t *testing.T, c *Company, server int) *wire {
	t.Helper()
	w, err := c.dial(t.Context(), Target{HTTPS: c.Servers()[server].Address, Unverified: true}, "mail.contoso.com", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func (w *wire) must(t *testing.T, method, target, authorization, body string) *answer {
	t.Helper()
	a, err := w.do(method, target, authorization, body)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// PROXYING.md 6.7: what each front-end virtual directory offers, in the order of IIS, a line each; in any letter case of the path.
func TestVirtualDirectoriesChallenge(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 0)
	f := func(target string, want ...string) {
		t.Helper()
		a := w.must(t, http.MethodGet, target, "", "")
		var got []string
		for _, l := range a.lines {
			if v, ok := strings.CutPrefix(l, "WWW-Authenticate: "); ok { // in exactly these letters
				got = append(got, v)
			}
		}
		if a.status != http.StatusUnauthorized || !slices.Equal(got, want) {
			t.Errorf("%s: %d with %q, want 401 with %q", target, a.status, got, want)
		}
		if a.header.Get(UserHeader) != "" || a.header.Get(ServerHeader) != "cas01.contoso.local" || a.header.Get(ConnectionHeader) == "" {
			t.Errorf("%s: the lab's own headers are %q", target, a.lines)
		}
	}
	b := `Basic realm="mail.contoso.com"`
	f("/autodiscover/autodiscover.xml", "Negotiate", "NTLM", b)
	f("/AutoDiscover/AUTODISCOVER.xml", "Negotiate", "NTLM", b)
	f("/ews/exchange.asmx", "Negotiate", "NTLM")
	f("/EWS/Exchange.asmx", "Negotiate", "NTLM")
	f("/mapi/emsmdb/", "Negotiate", "NTLM")
	f("/oab/", "Negotiate", "NTLM")
	f("/rpc/rpcproxy.dll", "Negotiate", "NTLM", b)
	f("/Microsoft-Server-ActiveSync", b)
	for target, want := range map[string]int{"/powershell": 200, "/owa/auth/logon.aspx": 200, "/nothing": 404, "/owax": 404, "/": 404} {
		if a := w.must(t, http.MethodGet, target, "", ""); a.status != want {
			t.Errorf("%s: %d, want %d", target, a.status, want)
		}
	}
	// AUTODISCOVER.md 1.6: .NET clients skip a host whose 401 does not say this.
	a := w.must(t, http.MethodGet, pathPOX, "", "")
	if !slices.Contains(a.lines, "X-SOAP-Enabled: True") || !slices.Contains(a.lines, "X-FEServer: CAS01") {
		t.Errorf("headers of the 401: %q", a.lines)
	}
}

// PROXYING.md 6.5: no login, the body names the server in capitals.
func TestHealthPages(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 1)
	for _, d := range vdirs {
		a := w.must(t, http.MethodGet, d.path+"/healthcheck.htm", "", "")
		if a.status != 200 || a.body != "200 OK<br/>CAS02.CONTOSO.LOCAL" {
			t.Errorf("%s: %d %q", d.path, a.status, a.body)
		}
	}
}

func TestBasicLogin(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 0)
	f := func(name, password string, want int) {
		t.Helper()
		auth := "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
		a := w.must(t, http.MethodGet, "/owa/", auth, "")
		user := a.header.Get(UserHeader)
		if a.status != want || (want == 200) != (user == `CONTOSO\pat`) {
			t.Errorf("%s: %d as %q, want %d", name, a.status, user, want)
		}
	}
	f("pat@contoso.com", "Lab-Pat-1", 200)
	f("PAT@CONTOSO.COM", "Lab-Pat-1", 200)
	f(`contoso\Pat`, "Lab-Pat-1", 200)
	f(`contoso.local\pat`, "Lab-Pat-1", 200)
	f("pat", "Lab-Pat-1", 200)
	f("pat", "lab-pat-1", 401)
	f("pat", "", 401)
	f(`FABRIKAM\pat`, "Lab-Pat-1", 401)
	f("pat@fabrikam.com", "Lab-Pat-1", 401)
	f("kim@fabrikam.com", "Lab-Kim-1", 401) // known to the front door alone
	f("", "", 401)
	// Basic holds for one request, and where only Windows authentication is offered it does not count.
	if a := w.must(t, http.MethodGet, "/owa/", "", ""); a.status != 302 || a.header.Get(UserHeader) != "" {
		t.Errorf("after Basic without credentials: %d for %q, want 302 to the form", a.status, a.header.Get(UserHeader))
	}
	if a := w.must(t, http.MethodGet, pathWhoAmI, basic(c.Accounts()[0]), ""); a.status != 401 {
		t.Errorf("Basic on /mapi: %d, want 401", a.status)
	}
}

// and the rest of what the lab must do with one connection, against clients that Azure/go-ntlmssp speaks for.
func TestFlowsAgainstServer(t *testing.T) {
	c := startCompany(t)
	target := Target{HTTPS: c.Servers()[0].Address, Unverified: true}
	// The others are about a front door, and must notice that there is none.
	direct := []string{"ntlm", "negotiate", "two-clients", "crowd", "wrong-password", "replay", "challenges", "activesync", "passthrough"}
	for _, f := range Flows() {
		r := c.RunFlow(t.Context(), f, target)
		if want := slices.Contains(direct, f.Name); r.OK != want {
			t.Errorf("%s: OK = %v, want %v (%s)", f.Name, r.OK, want, r.Got)
		}
		if r.OK && r.Got != r.Expected {
			t.Errorf("%s: OK, but got %q instead of %q", f.Name, r.Got, r.Expected)
		}
	}
	if v := c.Recorder().Violations(); len(v) > 0 {
		t.Errorf("violations: %q", v)
	}
}

// The flows' verdicts are worth nothing if a server that mixes clients up passes them.
func TestFlowsNoticeSharedConnections(t *testing.T) {
	c := startCompany(t)
	shared := newSharingProxy(t, c)
	target := Target{HTTPS: shared, Unverified: true}
	for _, f := range Flows() {
		switch f.Name {
		case "two-clients", "crowd":
			if r := c.RunFlow(t.Context(), f, target); r.OK {
				t.Errorf("%s passes a proxy that has one backend connection for everybody", f.Name)
			}
		}
	}
	if len(c.Recorder().Violations()) == 0 {
		t.Error("the recorder saw no violation")
	}
}

// The whole negotiation as http.Client users of the library do it, with a body that is sent again.
func TestNTLMWithHTTPClient(t *testing.T) {
	c := startCompany(t)
	f := func(user, password string, want int) {
		t.Helper()
		tr := &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		}
		defer tr.CloseIdleConnections()
		client := &http.Client{Transport: ntlmssp.Negotiator{RoundTripper: tr}, Timeout: time.Minute}
		for range 3 {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.Servers()[1].URL+"/ews/exchange.asmx", strings.NewReader("<x/>"))
			if err != nil {
				t.Fatal(err)
			}
			req.SetBasicAuth(user, password)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s: %d, want %d", user, resp.StatusCode, want)
			}
			if got := resp.Header.Get(UserHeader); (want == 200) != (got == `CONTOSO\lee`) {
				t.Errorf("%s: served as %q", user, got)
			}
		}
	}
	f(`CONTOSO\lee`, "Lab-Lee-1", 200)
	f(`contoso\LEE`, "Lab-Lee-1", 200)
	f(`contoso.local\lee`, "Lab-Lee-1", 200)
	f("lee@contoso.com", "Lab-Lee-1", 200)
	f("lee", "Lab-Lee-1", 200)
	f(`CONTOSO\lee`, "Lab-Pat-1", 401)
	f(`FABRIKAM\lee`, "Lab-Lee-1", 401)
	f(`CONTOSO\nobody`, "Lab-Lee-1", 401)
	f("nobody@contoso.com", "Lab-Lee-1", 401)
}

// A header starts over, whatever it holds.
func TestNTLMConnectionState(t *testing.T) {
	c := startCompany(t)
	pat, lee := c.Accounts()[0], c.Accounts()[1]
	in := func(t *testing.T, scheme string) *wire {
		w := wireTo(t, c, 0)
		a, err := w.login(scheme, http.MethodGet, pathWhoAmI, "", pat)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.served(pat.Login); err != nil {
			t.Fatal(err)
		}
		if a.header.Get("Persistent-Auth") != "true" {
			t.Error("no Persistent-Auth after the login")
		}
		return w
	}
	t.Run("another user takes over", func(t *testing.T) {
		w := in(t, "NTLM")
		a, err := w.login("NTLM", http.MethodGet, pathWhoAmI, "", lee)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.served(lee.Login); err != nil {
			t.Error(err)
		}
		if a := w.must(t, http.MethodGet, pathWhoAmI, "", ""); a.header.Get(UserHeader) != lee.Login {
			t.Errorf("afterwards served as %q", a.header.Get(UserHeader))
		}
	})
	for _, auth := range []string{
		"NTLM", "NTLM !!!", "NTLM bm9uc2Vuc2U=", "Negotiate bm9uc2Vuc2U=", "Bearer x", "Basic bm9uc2Vuc2U=",
		"NTLM " + base64.StdEncoding.EncodeToString(negotiateMessage(flagUnicode)), // a new login, never finished
	} {
		t.Run("ended by "+auth, func(t *testing.T) {
			w := in(t, "Negotiate")
			for range 2 {
				a := w.must(t, http.MethodGet, pathWhoAmI, auth, "")
				if err := a.refused(); err != nil {
					t.Fatal(err)
				}
				auth = ""
			}
		})
	}
	t.Run("challenge does not outlive a request in between", func(t *testing.T) {
		w := wireTo(t, c, 0)
		challenge, err := w.negotiate("NTLM", http.MethodGet, pathWhoAmI)
		if err != nil {
			t.Fatal(err)
		}
		w.must(t, http.MethodGet, pathWhoAmI, "", "")
		token, err := prove("NTLM", challenge, pat.Login, pat.Password)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.must(t, http.MethodGet, pathWhoAmI, token, "").refused(); err != nil {
			t.Error(err)
		}
	})
	t.Run("the legs keep to one scheme", func(t *testing.T) {
		w := wireTo(t, c, 0)
		challenge, err := w.negotiate("NTLM", http.MethodGet, pathWhoAmI)
		if err != nil {
			t.Fatal(err)
		}
		token, err := prove("Negotiate", challenge, pat.Login, pat.Password)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.must(t, http.MethodGet, pathWhoAmI, token, "").refused(); err != nil {
			t.Error(err)
		}
	})
	t.Run("MIC over a changed leg", func(t *testing.T) {
		w := wireTo(t, c, 0)
		negotiate := negotiateMessage(flagUnicode)
		a := w.must(t, http.MethodGet, pathWhoAmI, "NTLM "+base64.StdEncoding.EncodeToString(negotiate), "")
		challenge, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(a.header.Get("WWW-Authenticate"), "NTLM "))
		if err != nil {
			t.Fatal(err)
		}
		m := clientMessage{user: "pat", domain: "CONTOSO", password: pat.Password, mic: true}
		forged := m.answer(t, negotiateMessage(flagUnicode|flagSign), challenge) // not what was sent
		if err := w.must(t, http.MethodGet, pathWhoAmI, "NTLM "+base64.StdEncoding.EncodeToString(forged), "").refused(); err != nil {
			t.Error(err)
		}
	})
}

// RFC 4178 around the same messages, as Windows sends them when it has several mechanisms to offer.
func TestSPNEGO(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 0)
	negotiate := negotiateMessage(flagUnicode)
	a := w.must(t, http.MethodGet, pathWhoAmI, "Negotiate "+base64.StdEncoding.EncodeToString(negTokenInit(negotiate)), "")
	raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(a.header.Get("WWW-Authenticate"), "Negotiate "))
	if err != nil || a.status != 401 {
		t.Fatalf("%d, %v", a.status, err)
	}
	challenge, err := unwrapSPNEGO(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := clientMessage{user: "pat", domain: "CONTOSO", password: "Lab-Pat-1", mic: true, keyExchange: true}
	last := wrapSPNEGO(negAcceptIncomplete, m.answer(t, negotiate, challenge))
	a = w.must(t, http.MethodGet, pathWhoAmI, "Negotiate "+base64.StdEncoding.EncodeToString(last), "")
	if _, err := a.served(`CONTOSO\pat`); err != nil {
		t.Error(err)
	}
	if !strings.HasPrefix(a.header.Get("WWW-Authenticate"), "Negotiate oQ") { // NegTokenResp, base64
		t.Errorf("no final token: %q", a.lines)
	}
	for _, bad := range [][]byte{nil, {0x60}, {0xa1, 0x02, 0x30, 0x00}, negTokenInit([]byte("a Kerberos ticket")), negTokenInit(nil)} {
		if _, err := unwrapSPNEGO(bad); err == nil {
			t.Errorf("%x was taken for NTLM", bad)
		}
	}
}

// negTokenInit is written out by hand, so that the reader is not checked against its own writer.
func negTokenInit(msg []byte) []byte {
	tlv := func(tag byte, v []byte) []byte {
		if len(v) < 0x80 {
			return append([]byte{tag, byte(len(v))}, v...)
		}
		return append([]byte{tag, 0x81, byte(len(v))}, v...)
	}
	mechs := tlv(0xa0, tlv(0x30, []byte{0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x02, 0x0a}))
	token := tlv(0xa2, tlv(0x04, msg))
	body := tlv(0xa0, tlv(0x30, append(mechs, token...)))
	return tlv(0x60, append([]byte{0x06, 0x06, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x02}, body...))
}

// curl finds the program, or skips with a hint; on CI a missing peer is a failure.
func curl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path := peer.Need(t, "curl", "apt-get install curl")
	if v, err := exec.Command(path, "--version").Output(); err != nil || !bytes.Contains(v, []byte(" NTLM")) {
		peer.Missing(t, "a curl with NTLM", "apt-get install curl")
	}
	out, err := exec.CommandContext(t.Context(), path, append([]string{"-sS", "--noproxy", "*", "--max-time", "60"}, args...)...).CombinedOutput()
	return string(out), err
}

func TestCurlNTLM(t *testing.T) {
	c := startCompany(t)
	s := c.Servers()[0]
	f := func(user string, want int, flags ...string) {
		t.Helper()
		// 51 requests over one connection: curl keeps it, and sends no header once it is logged in.
		url := s.URL + "/mapi/emsmdb/?showdebug=yes&n=[0-50]"
		args := append([]string{"-k", "-o", os.DevNull, "-w", "%{http_code} %header{x-lab-user} %header{x-lab-connection}\n", "-u", user}, flags...)
		out, err := curl(t, append(args, url)...)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 51 {
			t.Fatalf("%d answers: %s", len(lines), out)
		}
		for _, l := range lines {
			code, rest, _ := strings.Cut(l, " ")
			if code != fmt.Sprint(want) || want == 200 && (l != lines[0] || !strings.HasPrefix(rest, `CONTOSO\pat `)) {
				t.Fatalf("%s %v: %q, first was %q, want %d as CONTOSO\\pat", user, flags, l, lines[0], want)
			}
		}
	}
	f(`CONTOSO\pat:Lab-Pat-1`, 200, "--ntlm")
	f(`contoso/PAT:Lab-Pat-1`, 200, "--ntlm")
	f(`pat@contoso.com:Lab-Pat-1`, 200, "--ntlm")
	f(`CONTOSO\pat:wrong`, 401, "--ntlm")
	f(`CONTOSO\nobody:Lab-Pat-1`, 401, "--ntlm")

	// The front door of a lab is tried with exactly such a body.
	out, err := curl(t, "-k", "--ntlm", "-u", `CONTOSO\lee:Lab-Lee-1`, "-d", "<x/>", "-H", "Expect: 100-continue", "-w", "%{http_code}", s.URL+pathEWS)
	if err != nil || !strings.HasSuffix(out, "200") || !strings.Contains(out, "ServerVersionInfo") {
		t.Errorf("POST with a body: %v, %s", err, out)
	}
}

func TestCurlBasic(t *testing.T) {
	c := startCompany(t)
	url := c.Servers()[0].URL
	f := func(want string, args ...string) {
		t.Helper()
		out, err := curl(t, append([]string{"-k", "-o", os.DevNull, "-w", "%{http_code} %header{x-lab-user}"}, args...)...)
		if err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%q: %v, %q, want %q", args, err, out, want)
		}
	}
	f(`200 CONTOSO\pat`, "-u", "pat@contoso.com:Lab-Pat-1", url+"/owa/")
	f(`401`, "-u", "pat@contoso.com:wrong", url+"/owa/")
	f(`302`, url+"/owa/") // to the form
}

func TestActiveSync(t *testing.T) {
	c := startCompany(t, func(s *Scenario) {
		s.Mailboxes[1].ActiveSyncRedirect = "https://mail2.contoso.com/Microsoft-Server-ActiveSync"
	})
	pat, lee := c.Accounts()[0], c.Accounts()[1]
	w := wireTo(t, c, 0)
	if err := w.activeSyncOptions(pat); err != nil {
		t.Error(err)
	}
	a := w.must(t, http.MethodOptions, pathActiveSync, basic(lee), "")
	if a.status != 451 || !slices.Contains(a.lines, "X-MS-Location: https://mail2.contoso.com/Microsoft-Server-ActiveSync") || a.body != "" {
		t.Errorf("moved mailbox: %d %q, want 451 with X-MS-Location", a.status, a.lines)
	}
	if a := w.must(t, http.MethodGet, pathActiveSync, basic(pat), ""); a.status != 405 {
		t.Errorf("GET: %d, want 405", a.status)
	}
}

// What Android reads: Type before Url, Name equal to Url; an unknown address is an error inside Action.
func TestMobileSyncAutodiscover(t *testing.T) {
	c := startCompany(t)
	pat := c.Accounts()[0]
	w := wireTo(t, c, 0)
	type doc struct {
		XMLName  xml.Name `xml:"http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006 Autodiscover"`
		Response struct {
			XMLName xml.Name `xml:"http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006 Response"`
			Address string   `xml:"User>EMailAddress"`
			Type    string   `xml:"Action>Settings>Server>Type"`
			URL     string   `xml:"Action>Settings>Server>Url"`
			Name    string   `xml:"Action>Settings>Server>Name"`
			Status  int      `xml:"Action>Error>Status"`
		}
	}
	f := func(address string) (d doc, body string) {
		t.Helper()
		a := w.must(t, http.MethodPost, pathPOX, basic(pat), `<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/mobilesync/requestschema/2006">`+
			`<Request><EMailAddress>`+address+`</EMailAddress><AcceptableResponseSchema>`+nsMobileSyncResponse+`</AcceptableResponseSchema></Request></Autodiscover>`)
		if a.status != 200 || a.header.Get("Content-Type") != "text/xml; charset=utf-8" {
			t.Fatalf("%d %q", a.status, a.lines)
		}
		if err := xml.Unmarshal([]byte(a.body), &d); err != nil {
			t.Fatal(err)
		}
		return d, a.body
	}
	d, body := f("pat@contoso.com")
	url := "https://mail.contoso.com/Microsoft-Server-ActiveSync"
	if d.Response.Type != "MobileSync" || d.Response.URL != url || d.Response.Name != url || d.Response.Address != "pat@contoso.com" {
		t.Errorf("settings: %+v", d.Response)
	}
	if !strings.HasPrefix(body, "<?xml") || strings.Index(body, "<Type>") > strings.Index(body, "<Url>") {
		t.Errorf("no declaration, or Url before Type: %s", body)
	}
	if d, _ := f("nobody@contoso.com"); d.Response.Status != 2 || d.Response.URL != "" {
		t.Errorf("unknown address: %+v", d.Response)
	}
}

// Outlook's documents come from whoever logged in, by any method (AUTODISCOVER.md 2.1, 2.7).
func TestOutlookAutodiscover(t *testing.T) {
	c := startCompany(t)
	pat := c.Accounts()[0]
	request := func(address string) string {
		return `<?xml version="1.0" encoding="utf-8"?><Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006">` +
			`<Request><EMailAddress>` + address + `</EMailAddress><AcceptableResponseSchema>http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a` +
			`</AcceptableResponseSchema></Request></Autodiscover>`
	}
	f := func(what string, a *answer, err error, want string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := a.served(pat.Login); err != nil || !strings.Contains(a.body, want) || a.header.Get("Content-Type") != "text/xml; charset=utf-8" {
			t.Errorf("%s: %v, %q, want %q in it", what, err, a.body, want)
		}
	}
	a, err := wireTo(t, c, 0).do(http.MethodPost, "/Autodiscover/Autodiscover.xml", basic(pat), request(pat.Address))
	f("Basic", a, err, "<EwsUrl>https://mail.contoso.com/EWS/Exchange.asmx</EwsUrl>")
	a, err = wireTo(t, c, 0).login("Negotiate", http.MethodPost, pathPOX, request(pat.Address), pat)
	f("Negotiate", a, err, "<DisplayName>Pat Doe</DisplayName>")
	a, err = wireTo(t, c, 0).login("NTLM", http.MethodPost, pathPOX, request("nobody@contoso.com"), pat)
	f("unknown address", a, err, "<ErrorCode>500</ErrorCode>")
	a, err = wireTo(t, c, 0).do(http.MethodGet, pathPOX, basic(pat), "")
	f("GET", a, err, "<ErrorCode>600</ErrorCode>")
	if a, err = wireTo(t, c, 0).do(http.MethodPost, pathPOX, "", request(pat.Address)); err != nil || a.refused() != nil {
		t.Errorf("anonymous: %v, %+v, want 401", err, a)
	}
}

// http.sys wants a length with every POST ([CAP] of AUTODISCOVER.md 1.6).
func TestPostWithoutLength(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 0)
	if _, err := io.WriteString(w.conn, "POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if a, err := readAnswer(w.br, http.MethodPost); err != nil || a.status != http.StatusLengthRequired {
		t.Errorf("%+v, %v, want 411", a, err)
	}
}

func TestMAPIAndOAB(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 0)
	a, err := w.login("NTLM", http.MethodPost, "/mapi/emsmdb/?MailboxId=x@contoso.com", "body", c.Accounts()[0])
	if err != nil {
		t.Fatal(err)
	}
	if a.status != 200 || !strings.HasPrefix(a.body, "PROCESSING\r\nDONE\r\n") || !slices.Contains(a.lines, "X-ResponseCode: 0") {
		t.Errorf("MAPI: %d %q %q", a.status, a.lines, a.body)
	}
	a = w.must(t, http.MethodGet, "/OAB/1/oab.xml", "", "")
	if a.status != 200 || a.body != oabFile {
		t.Errorf("OAB: %d %q", a.status, a.body)
	}
	if a = w.must(t, http.MethodHead, "/OAB/1/oab.xml", "", ""); a.header.Get("Content-Length") != fmt.Sprint(len(oabFile)) {
		t.Errorf("HEAD of the OAB: %q", a.lines)
	}
}

// What the recorder says must be there when the client has its answer, and the end of a connection soon after.
func TestRecorderSeesRequests(t *testing.T) {
	c := startCompany(t)
	w := wireTo(t, c, 0)
	w.client = "one"
	w.must(t, http.MethodGet, "/owa/?a=b%20c", basic(c.Accounts()[0]), "")
	got := c.Recorder().Requests(func(q Request) bool { return q.Client == "one" })
	want := Request{Method: "GET", Target: "/owa/?a=b%20c", Host: "mail.contoso.com", Client: "one", Scheme: "Basic", User: `CONTOSO\pat`, Status: 200}
	if len(got) != 1 || got[0] != want {
		t.Errorf("recorded %+v, want %+v", got, want)
	}
	w.close()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if conns := c.Recorder().Connections(); len(conns) == 1 && !conns[0].Open {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the connection is still open in the record: %+v", conns)
		}
	}
}

// SPNEGO and the MIC, by curl and the GSSAPI mechanism gss-ntlmssp: what Windows sends under Negotiate.
func TestCurlNegotiate(t *testing.T) {
	found, _ := filepath.Glob("/usr/lib*/*/gssntlmssp/gssntlmssp.so")
	if len(found) == 0 {
		peer.Missing(t, "gss-ntlmssp", "apt-get install gss-ntlmssp")
	}
	c := startCompany(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	t.Setenv("GSS_MECH_CONFIG", write("mech", "gssntlmssp_v1 1.3.6.1.4.1.311.2.2.10 "+found[0]+"\n"))
	// The mechanism wants a host name, and takes the user from a file.
	url := strings.Replace(c.Servers()[0].URL, loopback, "localhost", 1) + "/mapi/emsmdb/?n=[0-2]"
	f := func(password, want string) {
		t.Helper()
		t.Setenv("NTLM_USER_FILE", write("users", "CONTOSO:pat:"+password+"\n"))
		out, err := curl(t, "-4", "-k", "--negotiate", "-u", ":", "-o", os.DevNull, "-w", "%{http_code} %header{x-lab-user}\n", url)
		if err != nil || out != strings.Repeat(want+"\n", 3) {
			t.Errorf("%v, %q, want %q three times", err, out, want)
		}
	}
	f("Lab-Pat-1", `200 CONTOSO\pat`)
	f("wrong", "401 ")
}
