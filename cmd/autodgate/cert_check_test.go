package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// certCheckRun runs cert check and returns what it prints, its exit status before it.
func certCheckRun(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	code := run(append([]string{"cert", "check", "--timeout", "30s"}, args...), &out, &errs)
	return string(rune('0'+code)) + "\n" + out.String() + errs.String()
}

// A revoked, an expired, a wrong-name and an unknown-issuer certificate are told apart, in a file and at a server; the
// certificates, the responder, the list and the server are OpenSSL's.
func TestCertCheck(t *testing.T) {
	t.Parallel()
	ca := peer.NewCA(t)
	names := []string{"mail.contoso.com", "autodiscover.contoso.com"}
	for name, l := range map[string]peer.Leaf{
		"good": {}, "revoked": {}, "expired": {Silent: true, Start: time.Now().AddDate(0, -2, 0), End: time.Now().AddDate(0, 0, -3)},
	} {
		l.Names = names
		ca.Issue(name, l)
	}
	ca.Revoke("revoked", "keyCompromise")
	crl := ca.Publish()
	defer ca.Respond(true)()
	f := func(code string, lines []string, args ...string) {
		t.Helper()
		got := certCheckRun(t, args...)
		if !strings.HasPrefix(got, code+"\n") {
			t.Errorf("%q: exit status %s, want %s", args, got[:1], code)
		}
		for _, want := range lines {
			if !strings.Contains(got, "\n"+want) {
				t.Errorf("%q: no line %q", args, want)
			}
		}
		if errors := strings.Count(got, "\nerror: "); code == "0" && errors > 0 || code == "1" && errors != 1 {
			t.Errorf("%q: %d errors", args, errors)
		}
		if t.Failed() {
			t.Logf("%q\n%s", args, got)
		}
	}
	trusted := []string{"--ca", ca.Root}
	both := append(trusted, "--name", "mail.contoso.com,Autodiscover.contoso.com.")
	revoked := "error: revocation: REVOKED on " + time.Now().UTC().Format("2006-01") // the day may be over by now
	fine := []string{"fine: issuer: Contoso Issuing, trusted by Contoso Root", "fine: expiry: until ", "fine: name: good for mail.contoso.com, autodiscover.contoso.com"}
	f("0", append(fine, "fine: revocation: not revoked, says OCSP http", ca.File("good.pem")+": fine"), append(both, ca.File("good.pem"))...)
	f("1", []string{revoked, "autodgate: " + ca.File("revoked.pem") + ": not fine: 1 error"}, append(both, ca.File("revoked.pem"))...)
	f("1", []string{revoked}, append(both, "--crl", crl, "--offline", ca.File("revoked.pem"))...)
	f("1", []string{"error: expiry: expired on "}, append(both, ca.File("expired.pem"))...)
	f("1", []string{"error: name: not good for owa.contoso.com, only for mail.contoso.com, autodiscover.contoso.com"}, append(trusted, "--name", "owa.contoso.com", ca.File("good.pem"))...)
	f("1", []string{`error: issuer: the chain ends at "Contoso Issuing"`}, "--name", "mail.contoso.com", ca.File("good.pem"))

	good, bad, stale := ca.Serve("good"), ca.Serve("revoked", "-CAfile", "sub.pem", "-status"), ca.Serve("expired")
	f("0", append(fine, "fine: revocation: not revoked, says OCSP http"), append(both, good)...)
	f("1", []string{revoked}, append(both, bad)...)
	if got := certCheckRun(t, append(both, bad)...); !strings.Contains(got, "says OCSP, stapled") {
		t.Error(got)
	}
	f("1", []string{"error: expiry: expired on "}, append(both, stale)...)
	f("1", []string{"error: name: not good for 127.0.0.1, only for mail.contoso.com"}, append(trusted, good)...)
	f("1", []string{`error: issuer: the chain ends at "Contoso Issuing"`}, "--name", "mail.contoso.com", good)

	// JSON says the same.
	var c struct {
		Fine     bool
		Findings []struct{ Reason, Severity string }
		Names    []string
	}
	text := certCheckRun(t, append(both, "--json", ca.File("revoked.pem"))...)
	text, _, _ = strings.Cut(text[2:], "autodgate: ")
	if err := json.Unmarshal([]byte(text), &c); err != nil || c.Fine || len(c.Findings) != 4 || c.Findings[1].Reason != "revocation" || c.Findings[1].Severity != "error" || len(c.Names) != 2 {
		t.Errorf("%v: %+v in %s", err, c, text)
	}
}

// STARTTLS with servers that others wrote: Dovecot and aiosmtpd.
func TestCertCheckStartTLS(t *testing.T) {
	t.Parallel()
	w := newMailWorld(t)
	for protocol, port := range map[string]string{"imap": "imap", "pop3": "pop3", "smtp": "smtp"} {
		address := net.JoinHostPort("127.0.0.1", w.ports[port])
		got := certCheckRun(t, "--starttls", protocol, "--offline", address)
		if !strings.HasPrefix(got, "1\n"+address+": ") || !strings.Contains(got, "\nerror: issuer: ") {
			t.Errorf("%s: %s", protocol, got)
		}
		got = certCheckRun(t, "--offline", address)
		if !strings.Contains(got, "does not speak TLS; for a mail server that begins in clear: --starttls imap, pop3 or smtp") {
			t.Errorf("%s without it: %s", protocol, got)
		}
	}
}

// What cannot be looked at is one clear line, and the exit status tells wrong usage from what is not fine.
func TestCertCheckBadInput(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	empty, text, key := file("empty.pem", ""), file("text.pem", "hello\n"), file("key.pem", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
	f := func(want string, args ...string) {
		t.Helper()
		if got := certCheckRun(t, args...); !strings.HasPrefix(got, want) || strings.Count(got, "\n") > 3 {
			t.Errorf("%q: %s\nwant %s", args, got, want)
		}
	}
	f("1\nautodgate: certificate "+filepath.Join(dir, "none.pem")+" cannot be read: no such file or directory\n", filepath.Join(dir, "none.pem"))
	f("1\nautodgate: certificate none.example cannot be read: no such file or directory; for a server say its port too: none.example:443\n", "none.example")
	f("1\nautodgate: certificate "+dir+" is a directory, a file is needed\n", dir)
	f("1\nautodgate: certificate "+empty+": no certificate in it, the file is empty\n", empty)
	f("1\nautodgate: certificate "+text+": no certificate in it\n", text)
	f("1\nautodgate: certificate "+key+": no certificate in it\n", key)
	f("1\nautodgate: connect to "+closed.Addr().String()+": connect: connection refused\n", closed.Addr().String())
	f("1\nautodgate: TLS with "+silent.Addr().String()+": no answer in 300ms\n", "--timeout", "300ms", silent.Addr().String())
	f("1\nautodgate: imap at "+silent.Addr().String()+": no answer in 300ms\n", "--timeout", "300ms", "--starttls", "imap", silent.Addr().String())
	f("1\nautodgate: CRL "+text+": it is no certificate revocation list\n", "--crl", text, text)
	f("1\nautodgate: CA file ", "--ca", filepath.Join(dir, "none.pem"), text)
	f("2\nautodgate: --starttls ftp: there are imap, pop3, smtp\n", "--starttls", "ftp", silent.Addr().String())
	f("2\nautodgate: --starttls goes with a server, as in mail.contoso.com:587, not with the file "+text, "--starttls", "imap", text)
	f("2\nautodgate: --timeout 0s: there has to be some time\n", "--timeout", "0s", text)
	f("2\nautodgate: one certificate at a time: give a FILE or a HOST:PORT\n")
	f("2\nautodgate: one certificate at a time", text, text)
	f("2\nautodgate: --name: ", "--name", "not a name", text)
}
