package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
)

// curl, the front door and OpenLDAP: who has the password gets settings, who has
// not is asked again, and a directory that is away is ErrorCode 603 and nobody's
// wrong password.
func TestLDAPMailboxes(t *testing.T) {
	curl := peer.Need(t, "curl", "apt-get install curl")
	ca := peer.NewCA(t)
	user := func(cn string, attributes ...string) string {
		return fmt.Sprintf("dn: CN=%[1]s,%[2]s\nobjectClass: user\ncn: %[1]s\nsn: %[1]s\nmail: %[1]s@contoso.com\n%[3]s\n\n", cn, peer.SlapdBase, strings.Join(attributes, "\n"))
	}
	slapd := peer.StartSlapd(t, ca, ca.Issue("localhost", peer.Leaf{Names: []string{"localhost"}, Silent: true}),
		user("pat", "displayName: Pat Doe", "sAMAccountName: pat", "userPassword: correct horse")+
			user("cloud", "userPassword: cloud's", "msExchRecipientTypeDetails: 2147483648", "targetAddress: SMTP:cloud@contoso.mail.onmicrosoft.com"))
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("ldap.pass", peer.SlapdPassword+"\n")
	port := func(address string) string {
		_, port, _ := net.SplitHostPort(address)
		return port
	}
	file := write("front.yaml", fmt.Sprintf(`
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: state}
hosts:
  mail.contoso.com: {certificate: self_signed, answer: true}
domains:
  contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}
mailboxes:
  ldap:
    url: [ldaps://localhost:%s, ldap://localhost:%s]
    base_dn: %s
    bind_dn: %s
    password_file: ldap.pass
    ca: %s
    cache_entries: 0
`, port(slapd.LDAPS), port(slapd.LDAP), peer.SlapdBase, peer.SlapdAccount, ca.Root))

	cfg := mustConfig(t, file)
	var log bytes.Buffer
	front, err := newFrontDoor(cfg, zerolog.New(zerolog.SyncWriter(&log)), frontDoorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceValue(func() error { return front.shutdown(context.WithoutCancel(t.Context())) })
	defer func() { _ = stop() }()
	if err := front.listen(); err != nil {
		t.Fatal(err)
	}
	ask := func(address, login, want string) {
		t.Helper()
		body := fmt.Sprintf(`<?xml version="1.0" encoding="utf-8"?><Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"><Request><EMailAddress>%s</EMailAddress><AcceptableResponseSchema>http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a</AcceptableResponseSchema></Request></Autodiscover>`, address)
		out, err := exec.Command(curl, "-sk", "--max-time", "30", "--connect-to", "mail.contoso.com:443:"+front.https[0], "-u", login, "-H", "Content-Type: text/xml",
			"--data-binary", body, "-w", "status %{http_code}", "https://mail.contoso.com/autodiscover/autodiscover.xml").CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s by %s: %v, want %q in\n%s", address, login, err, want, out)
		}
	}
	ask("pat@contoso.com", `CONTOSO\pat:correct horse`, "<DisplayName>Pat Doe</DisplayName>")
	ask("pat@contoso.com", "pat@contoso.com:correct horse", "https://mail.contoso.com/EWS/Exchange.asmx")
	ask("pat@contoso.com", "pat@contoso.com:wrong", "status 401")
	ask("pat@contoso.com", "pat@contoso.com:", "status 401")
	ask("cloud@contoso.com", "pat:correct horse", "<ErrorCode>500</ErrorCode>") // not Pat's business
	ask("cloud@contoso.com", "cloud@contoso.com:cloud's", "<RedirectAddr>cloud@contoso.mail.onmicrosoft.com</RedirectAddr>")
	ask("*)(objectClass=*@contoso.com", "pat:correct horse", "<ErrorCode>600</ErrorCode>") // hostile/ldap-metachars.xml

	// What check --live says of it, a line for each server.
	check := func(lines ...string) {
		t.Helper()
		var out, errOut bytes.Buffer
		var found bytes.Buffer
		code := run([]string{"check", "--live", "--config", file}, &out, &errOut)
		for line := range strings.Lines(out.String()) {
			if strings.Contains(line, "mailboxes.ldap") {
				found.WriteString(line)
			}
		}
		for _, l := range lines {
			if !strings.Contains(found.String(), l) {
				t.Errorf("check --live: %d\n%s%s\nwant %q", code, &out, &errOut, l)
			}
		}
		if n := strings.Count(found.String(), "\n"); n != len(lines) {
			t.Errorf("check --live: %d lines of %s", n, found.String())
		}
	}
	check("fine: mailboxes.ldap: ldaps://localhost:"+port(slapd.LDAPS)+" answers; mailboxes: 2\n", "fine: mailboxes.ldap: ldap://localhost:"+port(slapd.LDAP)+" answers; mailboxes: 2\n")

	slapd.Kill()
	ask("pat@contoso.com", "pat:correct horse", "<ErrorCode>603</ErrorCode>")
	ask("pat@contoso.com", "pat:wrong", "<ErrorCode>603</ErrorCode>")
	check("error: mailboxes.ldap: ldaps://localhost:"+port(slapd.LDAPS), "error: mailboxes.ldap: ldap://localhost:"+port(slapd.LDAP))
	if err := stop(); err != nil { // nobody writes to the log any more
		t.Error(err)
	}
	for _, secret := range []string{peer.SlapdPassword, "correct horse", "pat@contoso.com"} {
		for line := range strings.Lines(log.String()) {
			if strings.Contains(line, secret) && !strings.Contains(line, `"level":"debug"`) {
				t.Errorf("the log has %q: %s", secret, line)
			}
		}
	}
}
