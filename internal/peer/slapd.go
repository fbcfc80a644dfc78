package peer

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// SlapdBase is the suffix of the directories of StartSlapd, SlapdAccount the account that may search there, and
// SlapdPassword its password.
const (
	SlapdBase     = "DC=contoso,DC=local"
	SlapdAccount  = "CN=autodgate," + SlapdBase
	SlapdPassword = "searches, and nothing else"
)

// exchangeSchema is what entries of Exchange users have beyond the schemas that OpenLDAP comes with. Names, numbers and
// syntaxes are those of Active Directory.
const exchangeSchema = `
attributetype (1.2.840.113556.1.2.210 NAME 'proxyAddresses' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15)
attributetype (1.2.840.113556.1.4.655 NAME 'legacyExchangeDN' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE)
attributetype (1.2.840.113556.1.4.656 NAME 'userPrincipalName' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE)
attributetype (1.2.840.113556.1.4.221 NAME 'sAMAccountName' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE)
attributetype (1.2.840.113556.1.4.8 NAME 'userAccountControl' EQUALITY integerMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE)
attributetype (1.2.840.113556.1.2.352 NAME 'targetAddress' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE)
attributetype (1.2.840.113556.1.4.7000.102.11058 NAME 'msExchMailboxGuid' EQUALITY octetStringMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.40 SINGLE-VALUE)
attributetype (1.2.840.113556.1.4.7000.102.50855 NAME 'msExchRecipientTypeDetails' EQUALITY integerMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.27 SINGLE-VALUE)
attributetype (1.2.840.113556.1.2.423 NAME 'extensionAttribute1' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE)
objectclass (1.2.840.113556.1.5.9 NAME 'user' SUP organizationalPerson STRUCTURAL MAY (mail $ displayName $ uid $ proxyAddresses $
  legacyExchangeDN $ userPrincipalName $ sAMAccountName $ userAccountControl $ targetAddress $ msExchMailboxGuid $
  msExchRecipientTypeDetails $ extensionAttribute1))
objectclass (1.2.840.113556.1.5.15 NAME 'contact' SUP organizationalPerson STRUCTURAL MAY (mail $ proxyAddresses $ targetAddress))
`

// Slapd is an OpenLDAP server.
type Slapd struct {
	LDAPS, LDAP string // its addresses, for TLS from the first byte and for STARTTLS

	cmd *exec.Cmd
}

// StartSlapd starts OpenLDAP with the entries of an LDIF below SlapdBase. certificate is what CA.Issue returned for
// localhost. It searches only for SlapdAccount, talks only under TLS, takes a name without a password for nobody's as
// Active Directory does, and gives 500 entries without paging. The test ends it.
func StartSlapd(t testing.TB, ca *CA, certificate, ldif string) *Slapd {
	t.Helper()
	const how = "apt-get install slapd"
	var programs []string
	for _, name := range []string{"slapd", "slapadd"} {
		path := "/usr/sbin/" + name
		if _, err := os.Stat(path); err != nil {
			path = Need(t, name, how)
		}
		programs = append(programs, path)
	}
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	config := write("slapd.conf", fmt.Sprintf(`include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include %[2]s
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile %[1]s/slapd.pid
argsfile %[1]s/slapd.args
TLSCACertificateFile %[3]s
TLSCertificateFile %[4]s
TLSCertificateKeyFile %[5]s
security ssf=1
allow bind_anon_dn
sizelimit size.soft=500 size.hard=500 size.pr=500 size.prtotal=unlimited
threads 4
database mdb
suffix "%[6]s"
directory %[1]s/db
dbnosync
maxsize 67108864
index objectClass,mail,proxyAddresses,sAMAccountName,userPrincipalName,uid,legacyExchangeDN,msExchMailboxGuid,entryUUID eq
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact="%[7]s" read by * none
`, dir, write("exchange.schema", exchangeSchema), ca.Root, certificate, strings.TrimSuffix(certificate, ".pem")+".key", SlapdBase, SlapdAccount))
	data := write("entries.ldif", fmt.Sprintf(`dn: %[1]s
objectClass: dcObject
objectClass: organization
dc: contoso
o: Contoso

dn: %[2]s
objectClass: person
cn: autodgate
sn: autodgate
userPassword: %[3]s

`, SlapdBase, SlapdAccount, SlapdPassword)+ldif)
	if out, err := exec.Command(programs[1], "-q", "-f", config, "-l", data).CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v\n%s", err, out)
	}
	log := filepath.Join(dir, "slapd.log")
	for range 5 { // a port may be taken between its choice and its use
		s := &Slapd{LDAPS: freeAddress(t), LDAP: freeAddress(t)}
		out, err := os.Create(log)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		// With -d none it stays in the foreground and reports what matters.
		s.cmd = exec.Command(programs[0], "-f", config, "-d", "none", "-h", "ldaps://"+s.LDAPS+"/ ldap://"+s.LDAP+"/")
		s.cmd.Stderr = out
		if err := s.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = s.cmd.Wait(); close(ended) }()
		t.Cleanup(func() { s.Kill(); <-ended })
		if started(log, ended) {
			return s
		}
		said, _ := os.ReadFile(log)
		t.Logf("slapd does not start:\n%s", said)
		s.Kill()
		<-ended
	}
	t.Fatal("slapd does not start")
	return nil
}

// started waits for the line that slapd writes once it has its ports. Who answers at a port need not be this server.
func started(log string, ended <-chan struct{}) bool {
	for start := time.Now(); time.Since(start) < 20*time.Second; time.Sleep(10 * time.Millisecond) {
		select {
		case <-ended:
			return false
		default:
		}
		if said, _ := os.ReadFile(log); strings.Contains(string(said), "slapd starting") {
			return true
		}
	}
	return false
}

// Kill ends the server at once, as a crash would.
func (s *Slapd) Kill() { _ = s.cmd.Process.Kill() }

func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}
