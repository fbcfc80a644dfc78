package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/lab"
)

// browserLine is what testdata/npm/browser.js prints.
type browserLine struct {
	Step, URL, Text        string
	Status, Length, Header int
	Same                   bool
	Pieces, Users          []string
}

// browse runs Chromium against the front door.
func browse(t *testing.T, company *lab.Company, front *frontDoor, env []string, args ...string) []browserLine {
	t.Helper()
	path := node(t)
	chromium := peer.Need(t, "chromium", "apt-get install chromium")
	c, err := tls.Dial("tcp", front.https[0], &tls.Config{ServerName: "mail.contoso.com", RootCAs: company.RootCAs()})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	key := sha256.Sum256(c.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	cmd := exec.Command(path, append([]string{
		"testdata/npm/browser.js", chromium, front.https[0], front.http[0], base64.StdEncoding.EncodeToString(key[:]),
	}, args...)...)
	cmd.Env = env
	return objects[browserLine](t, outputOf(t, cmd))
}

// OWA in Chromium: from the bare name over plain HTTP to the page that asks for
// the login, a wrong password, the right one, notifications that come
// while their answer is under way, an attachment, a call in a long header
// ECP with the same login, and logging off.
func TestBrowserOWA(t *testing.T) {
	company, front := startLab(t)
	pat, _ := company.Account("pat@contoso.com")
	got := browse(t, company, front, os.Environ(), "forms", pat.Login, pat.Password)
	const logon = "https://mail.contoso.com/owa/auth/logon.aspx?url=https%3A%2F%2Fmail.contoso.com%2Fowa%2F&reason="
	want := []browserLine{
		{Step: "logon", URL: logon + "0"},
		{Step: "wrong password", URL: logon + "2", Text: "The user name or password is wrong."},
		{Step: "mail", URL: "https://mail.contoso.com/owa/", Text: pat.Login},
		{Step: "notifications", Pieces: []string{"{id:'NewMail'}\r\n", "{id:'Finished'}\r\n"}},
		{Step: "upload", Length: 8 << 20, Same: true, Header: 12 << 10},
		{Step: "ecp", URL: "https://mail.contoso.com/ecp/", Status: 200},
		{Step: "logged off", URL: logon + "0"},
	}
	for i := range got {
		if got[i].Step == "ecp" { // which server it was is not for the test to say
			if !strings.HasPrefix(got[i].Text, "/ecp/ on cas0") || !strings.HasSuffix(got[i].Text, " for "+pat.Login) {
				t.Errorf("ECP shows %q", got[i].Text)
			}
			got[i].Text = ""
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// NTLM in Chromium, which has to log in on a further connection while a stream of
// events keeps the first: two users at once, each of whom is only ever served as
// themselves.
func TestBrowserNTLM(t *testing.T) {
	company, front := startLab(t)
	args := []string{"windows"}
	var users []string
	for _, address := range []string{"pat@contoso.com", "lee@contoso.com"} {
		user, _ := company.Account(address)
		users = append(users, user.Login)
		args = append(args, user.Login, user.Password)
	}
	got := browse(t, company, front, os.Environ(), args...)
	var seen []string
	for _, a := range got {
		seen = append(seen, a.Step)
		if a.Status != 200 || !strings.Contains(a.Text, "User: "+a.Step+" Authentication: NTLM") || !slices.Equal(a.Users, []string{"200 " + a.Step}) {
			t.Errorf("%+v", a)
		}
	}
	slices.Sort(seen)
	slices.Sort(users)
	if !slices.Equal(seen, users) {
		t.Errorf("users %q, want %q", seen, users)
	}
	connections := map[string]int{}
	for _, c := range company.Recorder().Connections() {
		if len(c.Users) > 1 {
			t.Errorf("a server's connection served %q", c.Users)
		}
		for _, u := range c.Users {
			connections[u]++
		}
	}
	for _, u := range users {
		if connections[u] < 2 {
			t.Errorf("%s had %d connections; the browser was to have several", u, connections[u])
		}
	}
}

// Chromium binds its NTLM login to the certificate it sees.
func TestBrowserExtendedProtection(t *testing.T) {
	f := func(same bool, protection lab.ExtendedProtection, want int) {
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
		got := browse(t, company, front, os.Environ(), "windows", pat.Login, pat.Password)
		if len(got) != 1 || got[0].Status != want || (want == 0) != (got[0].Text == "401" || got[0].Text == "net::ERR_INVALID_AUTH_CREDENTIALS") {
			t.Errorf("same certificate %v, bindings %s: %+v, want %d", same, protection, got, want)
		}
	}
	f(true, lab.ProtectionRequire, 200)
	f(false, lab.ProtectionAllow, 0)
}

// Kerberos in Chromium: a user who has tickets is not asked for anything.
func TestBrowserKerberos(t *testing.T) {
	r := newRealm(t)
	company, front := startKerberosLab(t, r, r.acceptor(t), func(*lab.Scenario) {})
	lee, _ := company.Account("lee@contoso.com")
	got := browse(t, company, front, r.login(t, lee), "kerberos")
	if len(got) != 1 || got[0].Status != 200 || !strings.Contains(got[0].Text, "User: "+lee.Login+" Authentication: Kerberos") ||
		!slices.Equal(got[0].Users, []string{"200 " + lee.Login}) {
		t.Errorf("%+v", got)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}
