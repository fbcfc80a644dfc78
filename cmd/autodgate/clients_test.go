package main

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/lab"
)

// Clients that others wrote, through the front door, against the lab's servers.
// docs/clients.md tells what each of them proves.

// clientTime bounds one run of a client. It is for the machine that is slow, not
// for the client.
const clientTime = 2 * time.Minute

// output runs a client to its end and returns what it printed.
func output(t *testing.T, path string, args ...string) string {
	t.Helper()
	return outputOf(t, exec.Command(path, args...))
}

// outputOf is output of a command that is prepared, for instance with an
// environment. What it writes to standard error becomes part of the failure.
func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(clientTime, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %v\n%s\n%s", cmd.Args, err, &out, &stderr)
	}
	return out.String()
}

// objects reads lines of JSON.
func objects[T any](t *testing.T, text string) (all []T) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	for {
		var one T
		switch err := dec.Decode(&one); {
		case err == io.EOF:
			return all
		case err != nil:
			t.Fatalf("%v in %q", err, text)
		}
		all = append(all, one)
	}
}

// python returns Debian's Python, whose modules are Debian's packages.
func python(t *testing.T, module, pkg string) string {
	t.Helper()
	path := peer.Need(t, "/usr/bin/python3", "apt-get install python3")
	if err := exec.Command(path, "-c", "import "+module).Run(); err != nil {
		peer.Missing(t, "Python's module "+module, "apt-get install "+pkg)
	}
	return path
}

// allowMD4 gives clients that use OpenSSL 3 its legacy provider: NTLM is made of
// MD4.
func allowMD4(t *testing.T) {
	t.Setenv("OPENSSL_CONF", writeFile(t, "openssl.cnf", `openssl_conf = openssl
[openssl]
providers = providers
[providers]
default = active
legacy = active
[active]
activate = 1
`))
}

// writeFile writes a file into a directory of the test's own and returns its name.
func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// labAnswer is what the scripts of the clients print of an answer.
type labAnswer struct {
	Status                         int
	User, Server, Connection, Body string
	Legs                           int // answers before this one, that asked for the login
}

// Extended Protection with a client that binds its login to the certificate it
// sees, and with the servers' own certificate or another one before the client
// passes with the same certificate, 401 with another. A client that
// binds nothing gets in where bindings are allowed, but not where they are
// required.
func TestExtendedProtection(t *testing.T) {
	path := python(t, "requests_ntlm", "python3-requests-ntlm")
	allowMD4(t)
	f := func(same bool, protection lab.ExtendedProtection, bind string, want int) {
		t.Helper()
		company, front := startLab(t, func(s *lab.Scenario) {
			for i := range s.Servers {
				s.Servers[i].ExtendedProtection = protection
				if same {
					s.Servers[i].Certificate = "mail"
				}
			}
		})
		pat, _ := company.Account("pat@contoso.com")
		got := objects[labAnswer](t, output(t, path, "testdata/clients/requests-ntlm.py", front.https[0], company.CAFile(), pat.Login, pat.Password, bind,
			"https://mail.contoso.com/EWS/Exchange.asmx", "https://mail.contoso.com/mapi/emsmdb/?showdebug=yes"))
		if len(got) != 2 {
			t.Fatalf("%d answers", len(got))
		}
		for i, a := range got {
			if a.Status != want || (want == 200) != (a.User == pat.Login) {
				t.Errorf("same certificate %v, bindings %s, client binds %s, request %d: %d for %q, want %d", same, protection, bind, i+1, a.Status, a.User, want)
			}
		}
		if bind == "no" { // as curl does
			got := curl(t, company, front, "--ntlm", "-u", pat.Login+":"+pat.Password, "-o", os.DevNull, "-w", "%{http_code}", "https://mail.contoso.com/EWS/Exchange.asmx")
			if got != strconv.Itoa(want) {
				t.Errorf("same certificate %v, bindings %s, curl: %s, want %d", same, protection, got, want)
			}
		}
		if v := company.Recorder().Violations(); len(v) > 0 {
			t.Error(v)
		}
	}
	f(true, lab.ProtectionRequire, "yes", 200)
	f(true, lab.ProtectionRequire, "no", 401)
	f(true, lab.ProtectionAllow, "yes", 200)
	f(true, lab.ProtectionAllow, "no", 200)
	f(false, lab.ProtectionRequire, "yes", 401)
	f(false, lab.ProtectionRequire, "no", 401)
	f(false, lab.ProtectionAllow, "yes", 401)
	f(false, lab.ProtectionAllow, "no", 200)
	f(false, lab.ProtectionOff, "yes", 200)
}

// What no bridge can do, passthrough does: the client sees the server's own
// certificate, whichever that is.
func TestExtendedProtectionPassthrough(t *testing.T) {
	path := python(t, "requests_ntlm", "python3-requests-ntlm")
	allowMD4(t)
	company, front := startLab(t, func(s *lab.Scenario) {
		s.Certificates["cas"] = []string{"eas.contoso.com"}
		for i := range s.Servers {
			s.Servers[i].Certificate, s.Servers[i].ExtendedProtection = "cas", lab.ProtectionRequire
		}
	})
	pat, _ := company.Account("pat@contoso.com")
	var got []int
	for _, a := range objects[labAnswer](t, output(t, path, "testdata/clients/requests-ntlm.py", front.https[0], company.CAFile(), pat.Login, pat.Password, "yes",
		"https://eas.contoso.com/EWS/Exchange.asmx", "https://mail.contoso.com/EWS/Exchange.asmx")) {
		got = append(got, a.Status)
	}
	if !slices.Equal(got, []int{200, 401}) {
		t.Errorf("passed through and bridged: %v, want 200 and 401", got)
	}
}

// /mapi/emsmdb/?showdebug=yes tells by which login whom the server sees.
// Through the front door it is the client's own, by NTLM and by NTLM within
// Negotiate (gss-ntlmssp). Over Kerberos, see [TestKerberos].
func TestShowDebug(t *testing.T) {
	mechanisms, _ := filepath.Glob("/usr/lib*/*/gssntlmssp/gssntlmssp.so")
	if len(mechanisms) == 0 {
		peer.Missing(t, "gss-ntlmssp", "apt-get install gss-ntlmssp")
	}
	t.Setenv("GSS_MECH_CONFIG", writeFile(t, "mech", "gssntlmssp_v1 1.3.6.1.4.1.311.2.2.10 "+mechanisms[0]+"\n"))
	company, front := startLab(t)
	f := func(address, scheme string) {
		t.Helper()
		user, _ := company.Account(address)
		login := user.Login + ":" + user.Password
		if scheme == "negotiate" {
			t.Setenv("NTLM_USER_FILE", writeFile(t, "users", strings.Replace(login, `\`, ":", 1)+"\n"))
			login = ":" // the mechanism takes it from the file
		}
		page := curl(t, company, front, "--"+scheme, "-u", login, "https://mail.contoso.com/mapi/emsmdb/?showdebug=yes")
		for _, want := range []string{"User: " + user.Login + "<br>", "Authentication: " + scheme + "<br>"} {
			if !strings.Contains(strings.ToLower(page), strings.ToLower(want)) {
				t.Errorf("%s: the page lacks %q: %s", address, want, page)
			}
		}
	}
	f("pat@contoso.com", "ntlm")
	f("lee@contoso.com", "ntlm")
	f("lee@contoso.com", "negotiate")
	f("pat@contoso.com", "negotiate")
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// node returns Node.js for a script beside the clients that .ci/peers has
// installed from npm.
func node(t *testing.T) string {
	t.Helper()
	path := peer.Need(t, "node", "apt-get install nodejs")
	if _, err := os.Stat("testdata/npm/node_modules"); err != nil {
		peer.Missing(t, "npm's part of the clients", ".ci/peers")
	}
	return path
}

// An EWS client that is used in earnest, over NTLM: it reads a folder and its
// messages, each call with a login of its own, and hears of a new message by a
// streaming subscription. The stream ends only when the client has seen what came
// before, so nothing was held back.
func TestEWSClient(t *testing.T) {
	path := node(t)
	company, front := startLab(t)
	pat, _ := company.Account("pat@contoso.com")
	t.Setenv("NODE_EXTRA_CA_CERTS", company.CAFile())
	type line struct {
		Folder, Subject, Event, Item string
		Count                        int
		Closed                       bool
	}
	got := objects[line](t, output(t, path, "testdata/npm/ews.js", front.https[0], pat.Login, pat.Password))
	var server string // which of the two it was
	if len(got) > 1 {
		_, server, _ = strings.Cut(got[1].Subject, ", by ")
	}
	want := []line{
		{Folder: "inbox", Count: 1},
		{Subject: `For CONTOSO\pat in inbox, by ` + server},
		{Event: "NewMail", Item: "lab-item"},
		{Closed: true},
	}
	if diff := cmp.Diff(want, got); diff != "" || server == "" {
		t.Error(diff)
	}
	const calls = 5 // GetFolder, FindItem, Subscribe, GetStreamingEvents, Unsubscribe
	used := 0
	for _, c := range company.Recorder().Connections() {
		if c.Count == 0 {
			continue
		}
		used++
		if c.Count != 2 || c.Requests[0].Status != 401 || c.Requests[1].Status != 200 || c.Requests[1].User != pat.Login {
			t.Errorf("a server's connection: %+v", c.Requests)
		}
	}
	if used != calls {
		t.Errorf("%d connections to servers, want one for each of %d calls", used, calls)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// Another EWS client, which keeps connections for its threads to share, and binds
// its logins to the certificate: each connection logs in once, and whoever's thread
// uses it then is still the same user.
func TestExchangelib(t *testing.T) {
	path := python(t, "exchangelib", "python3-exchangelib")
	allowMD4(t)
	company, front := startLab(t, func(s *lab.Scenario) {
		for i := range s.Servers {
			s.Servers[i].Certificate, s.Servers[i].ExtendedProtection = "mail", lab.ProtectionRequire
		}
	})
	pat, _ := company.Account("pat@contoso.com")
	t.Setenv("REQUESTS_CA_BUNDLE", company.CAFile())
	got := objects[struct {
		Folder          string
		Count, Messages int
		Subjects        []string
	}](t, output(t, path, "testdata/clients/exchangelib-inbox.py", front.https[0], pat.Login, pat.Password, pat.Address))
	if len(got) != 1 || got[0].Folder != "inbox" || got[0].Count != 1 || got[0].Messages != 12 || len(got[0].Subjects) == 0 {
		t.Fatalf("%+v", got)
	}
	for _, subject := range got[0].Subjects {
		if !strings.HasPrefix(subject, "For "+pat.Login+" in inbox, by cas0") {
			t.Errorf("a message for somebody else: %q", subject)
		}
	}
	used := 0
	for _, c := range company.Recorder().Connections() {
		if c.Count == 0 {
			continue
		}
		used++
		for i, q := range c.Requests {
			want := lab.Request{Method: "POST", Target: "/EWS/Exchange.asmx", Host: "mail.contoso.com", User: pat.Login, Status: 200}
			switch i {
			case 0:
				want.User, want.Status = "", 401
			case 1:
				want.User, want.Scheme, want.Status = "", "NTLM", 401
			case 2:
				want.Scheme = "NTLM"
			}
			if q != want {
				t.Errorf("request %d of a connection: %+v, want %+v", i+1, q, want)
			}
		}
	}
	if used == 0 || used > 3 {
		t.Errorf("%d connections to servers; the client was to have up to 3", used)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// Outlook Anywhere with impacket's client: a login on either channel, a virtual
// connection over both, an address book session, and enough calls that each side
// has to acknowledge what it got before the other may go on. Whatever was held
// back on the way in either direction would stop it. What
// the server refuses comes with its reason.
func TestOutlookAnywhere(t *testing.T) {
	path := python(t, "impacket", "python3-impacket")
	company, front := startLab(t)
	pat, _ := company.Account("pat@contoso.com")
	domain, user, _ := strings.Cut(pat.Login, `\`)
	type line struct {
		Session, Refused, Fault     string
		Result, Echoed, Pings, Acks int
		Code                        int
	}
	f := func(auth, endpoint string, want ...line) {
		t.Helper()
		got := objects[line](t, output(t, path, "testdata/clients/outlook-anywhere.py", front.https[0], endpoint, domain, user, pat.Password, auth))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s, %s: %s", auth, endpoint, diff)
		}
	}
	session := line{Session: "lab session....."}
	calls := line{Echoed: 483520, Pings: 2, Acks: 3, Fault: "nca_s_op_rng_error"}
	f("NTLM", "cas01.contoso.local:6004", session, calls)
	f("Basic", "0f7a2b1c-5e52-4f0a-9d3b-2f6c1a7e8d90@contoso.com:6001", session, calls) // as Exchange 2013 and later name it
	const unavailable = 0x6ba
	f("NTLM", "cas01.contoso.local:6005", line{
		Refused: "RPC Proxy Client: NTLM authentication failed in RPC_IN_DATA channel, code: 0x6ba - RPC_S_SERVER_UNAVAILABLE", Code: unavailable,
	})

	// Both channels end with the client, up to the servers.
	deadline := time.Now().Add(20 * time.Second)
	for _, c := range company.Recorder().Connections() {
		for ; c.Open && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			c = company.Recorder().Connections()[c.Number-1]
		}
		if c.Open || c.Count > 0 && !slices.Equal(c.Users, []string{pat.Login}) {
			t.Errorf("a server's connection, open %v: %+v", c.Open, c.Requests)
		}
	}
	channels := map[string]int{}
	for _, q := range company.Recorder().Requests(func(q lab.Request) bool { return q.Status == 200 }) {
		channels[q.Method]++
	}
	if want := map[string]int{"RPC_IN_DATA": 2, "RPC_OUT_DATA": 2}; !maps.Equal(channels, want) {
		t.Errorf("channels %v, want %v", channels, want)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// Exchange 2010 leaves it to what stands in front that a client comes back to its
// server: the channels of Outlook Anywhere, EWS subscriptions and OWA's logins are
// known to one server only. With `exchange: "2010"` they get there, each from
// connections of its own.
func TestExchange2010(t *testing.T) {
	company, front := startLab(t, func(s *lab.Scenario) {
		s.Version = "2010"
		config := strings.Replace(s.Config, "allow_internal_untrusted_certs: true\n", "allow_internal_untrusted_certs: true\n    exchange: \"2010\"\n", 1)
		if config == s.Config {
			t.Fatal("no place for the version in the scenario's config")
		}
		s.Config = config
	})
	pat, _ := company.Account("pat@contoso.com")
	domain, user, _ := strings.Cut(pat.Login, `\`)
	for _, auth := range []string{"NTLM", "Basic"} {
		out := output(t, python(t, "impacket", "python3-impacket"), "testdata/clients/outlook-anywhere.py",
			front.https[0], "cas.contoso.local:6001", domain, user, pat.Password, auth)
		if !strings.Contains(out, `"echoed": 483520`) {
			t.Errorf("Outlook Anywhere with %s: %s", auth, out)
		}
	}
	t.Setenv("NODE_EXTRA_CA_CERTS", company.CAFile())
	if out := output(t, node(t), "testdata/npm/ews.js", front.https[0], pat.Login, pat.Password); !strings.Contains(out, `"event":"NewMail"`) {
		t.Errorf("EWS: %s", out)
	}
	got := browse(t, company, front, os.Environ(), "forms", pat.Login, pat.Password)
	if len(got) != 7 || got[4].Length != 8<<20 || got[5].Status != 200 || got[6].Step != "logged off" {
		t.Errorf("OWA: %+v", got)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}
