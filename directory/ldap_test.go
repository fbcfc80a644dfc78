package directory

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// ldapUser is an entry as Exchange leaves it in Active Directory.
func ldapUser(cn string, attributes ...string) string {
	return "dn: CN=" + cn + "," + peer.SlapdBase + "\nobjectClass: user\ncn: " + cn + "\nsn: " + cn + "\n" + strings.Join(attributes, "\n") + "\n\n"
}

const patGUID = "0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77"

var ldapLDIF = sync.OnceValue(func() string {
	// 0c3de0f1-… as Active Directory keeps it.
	octets := "\xf1\xe0\x3d\x0c\x52\x6a\x55\x4a\x9d\x9b\x5f\x8f\x6f\x1f\x2b\x77"
	var b strings.Builder
	b.WriteString(ldapUser("Pat Doe", "mail: Pat@Contoso.com", "displayName: Pat Doe", "sAMAccountName: pat",
		"userPrincipalName: pdoe@corp.contoso.local", "proxyAddresses: smtp:patricia@contoso.com", "proxyAddresses: SMTP:pat@contoso.com",
		"proxyAddresses: X500:/o=Old/ou=First/cn=Recipients/cn=pat", "proxyAddresses: EUM:42@contoso.com",
		"legacyExchangeDN: /o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=pat",
		"msExchMailboxGuid:: "+base64.StdEncoding.EncodeToString([]byte(octets)), "extensionAttribute1: hq",
		"userAccountControl: 512", "msExchRecipientTypeDetails: 1", "userPassword: correct horse"))
	b.WriteString(ldapUser("Lee", "mail: lee@contoso.com", "sAMAccountName: lee", "userPassword: lee's", "userAccountControl: 512"))
	// Her name is the address of somebody else.
	b.WriteString(ldapUser("Kim", "mail: kim@contoso.com", "userPrincipalName: lee@contoso.com", "sAMAccountName: kim", "userPassword: kim's"))
	b.WriteString(ldapUser("Gone", "mail: gone@contoso.com", "sAMAccountName: gone", "userPassword: gone's", "userAccountControl: 514", "msExchRecipientTypeDetails: 1"))
	b.WriteString(ldapUser("Helpdesk", "mail: helpdesk@contoso.com", "sAMAccountName: helpdesk", "userPassword: helpdesk's", "userAccountControl: 514", "msExchRecipientTypeDetails: 4"))
	b.WriteString(ldapUser("Cloud", "mail: cloud@contoso.com", "sAMAccountName: cloud", "userPassword: cloud's", "userAccountControl: 512",
		"msExchRecipientTypeDetails: 2147483648", "targetAddress: SMTP:cloud@contoso.mail.onmicrosoft.com"))
	b.WriteString(ldapUser("Forwarded", "mail: forwarded@contoso.com", "targetAddress: SMTP:forwarded@fabrikam.example", "msExchRecipientTypeDetails: 128"))
	b.WriteString(ldapUser("Twin 1", "mail: twin@contoso.com", "userPassword: one"))
	b.WriteString(ldapUser("Twin 2", "mail: other@contoso.com", "proxyAddresses: smtp:twin@contoso.com", "userPassword: two"))
	b.WriteString(ldapUser("Idn", "proxyAddresses:: "+base64.StdEncoding.EncodeToString([]byte("SMTP:pät@bücher.example")), "userPassword: idn's"))
	b.WriteString(ldapUser("No password", "mail: nopassword@contoso.com"))
	b.WriteString(ldapUser("No mail", "sAMAccountName: nomail", "userPassword: nomail's"))
	b.WriteString(strings.ReplaceAll(ldapUser("Contact", "mail: contact@contoso.com"), "objectClass: user", "objectClass: contact"))
	b.WriteString("dn: uid=unix," + peer.SlapdBase + "\nobjectClass: inetOrgPerson\nuid: unix\ncn: Unix\nsn: Unix\nmail: unix@contoso.com\nuserPassword: unix's\n\n")
	for i := range 1200 {
		b.WriteString(ldapUser(fmt.Sprintf("User %d", i), fmt.Sprintf("mail: user%d@contoso.com", i), "displayName: the same", "sAMAccountName: crowd"))
	}
	return b.String()
})

// ldapMailboxes is how many entries of ldapLDIF have mail and are users.
const ldapMailboxes = 1200 + 11

// ldapWorld is OpenLDAP and what it takes to ask it.
type ldapWorld struct {
	*peer.Slapd
	ca       *peer.CA
	cert     string
	password string // the file
	roots    *tls.Config
}

func newLDAPWorld(t *testing.T) *ldapWorld {
	t.Helper()
	w := &ldapWorld{ca: peer.NewCA(t)}
	w.cert = w.ca.Issue("localhost", peer.Leaf{Names: []string{"localhost"}, Silent: true})
	w.Slapd = peer.StartSlapd(t, w.ca, w.cert, ldapLDIF())
	w.password = filepath.Join(t.TempDir(), "ldap.pass")
	w.setPassword(t, peer.SlapdPassword+"\n")
	pem, err := os.ReadFile(w.ca.Root)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	w.roots = &tls.Config{RootCAs: pool}
	return w
}

func (w *ldapWorld) setPassword(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(w.password, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// localhost is a URL with the name that the certificate has.
func localhost(scheme, address string) string {
	_, port, _ := net.SplitHostPort(address)
	return scheme + "://localhost:" + port
}

// open opens a directory without a cache over servers, by default the world's.
func (w *ldapWorld) open(t *testing.T, change func(*LDAPOptions), servers ...string) *LDAP {
	t.Helper()
	if len(servers) == 0 {
		servers = []string{localhost("ldaps", w.LDAPS)}
	}
	o := LDAPOptions{
		Servers: servers, TLS: w.roots, BaseDN: peer.SlapdBase, BindDN: peer.SlapdAccount, PasswordFile: w.password,
		SiteAttribute: "extensionAttribute1", Timeout: 10 * time.Second,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			return (&net.Dialer{}).DialContext(ctx, network, "127.0.0.1:"+port)
		},
	}
	if change != nil {
		change(&o)
	}
	d, err := OpenLDAP(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// ours is the error of a directory that failed, and neither "there is none" nor
// "wrong password".
func ours(err error) bool {
	return err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBadCredentials)
}

// Questions and answers, of OpenLDAP with entries as Exchange has them.
func TestLDAP(t *testing.T) {
	w := newLDAPWorld(t)
	ctx := t.Context()
	d := w.open(t, nil)
	result := func(m *Mailbox, err error) string {
		switch {
		case errors.Is(err, ErrNotFound):
			return "none"
		case errors.Is(err, ErrBadCredentials):
			return "refused"
		case err != nil:
			return "error"
		}
		return m.Address
	}
	t.Run("find", func(t *testing.T) {
		f := func(want string, find func(context.Context, string) (*Mailbox, error), what string) {
			t.Helper()
			if m, err := find(ctx, what); result(m, err) != want {
				t.Errorf("%q: %s (%v), want %s", what, result(m, err), err, want)
			}
		}
		f("pat@contoso.com", d.ByAddress, "PAT@contoso.com")
		f("pat@contoso.com", d.ByAddress, "patricia@contoso.com")
		f("none", d.ByAddress, "pdoe@corp.contoso.local") // a name, no address
		f("none", d.ByAddress, "nobody@contoso.com")
		f("none", d.ByAddress, "contact@contoso.com")
		f("none", d.ByAddress, "gone@contoso.com")
		f("helpdesk@contoso.com", d.ByAddress, "helpdesk@contoso.com") // disabled, as every shared mailbox is
		f("pät@xn--bcher-kva.example", d.ByAddress, "pät@bücher.example")
		f("unix@contoso.com", d.ByAddress, "unix@contoso.com")
		f("error", d.ByAddress, "twin@contoso.com") // which of them?
		// hostile/ldap-metachars.xml, past the check of addresses.
		for _, evil := range []string{"*", "*)(objectClass=*", "pat*@contoso.com", `\2a`, "p\x00at@contoso.com", "pat@contoso.com)(mail=*"} {
			f("none", d.ByAddress, evil)
			f("none", d.ByLegacyDN, evil)
			f("none", d.ByLegacyDN, "/o="+evil)
			f("none", d.ByGUIDAddress, evil)
			if a, err := d.Accounts(ctx, evil); len(a) != 0 || err != nil {
				t.Errorf("accounts of %q: %v, %v", evil, a, err)
			}
		}
		f("pat@contoso.com", d.ByLegacyDN, "/O=contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=pat")
		f("pat@contoso.com", d.ByLegacyDN, "/o=Old/ou=First/cn=Recipients/cn=pat")
		f("none", d.ByLegacyDN, "/o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=nobody")
		f("pat@contoso.com", d.ByGUIDAddress, patGUID+"@contoso.com")
		f("none", d.ByGUIDAddress, patGUID+"@fabrikam.example")
		f("none", d.ByGUIDAddress, "0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b78@contoso.com")
		// What we derive for entries without GUID and legacyExchangeDN leads back.
		m, err := d.ByAddress(ctx, "unix@contoso.com")
		if err != nil {
			t.Fatal(err)
		}
		f("unix@contoso.com", d.ByLegacyDN, m.LegacyDN)
		f("none", d.ByLegacyDN, m.LegacyDN+"x")
		f("unix@contoso.com", d.ByGUIDAddress, m.MailboxGUID+"@contoso.com")
	})
	t.Run("mailbox", func(t *testing.T) {
		m, err := d.ByAddress(ctx, "pat@contoso.com")
		if err != nil {
			t.Fatal(err)
		}
		if m.DisplayName != "Pat Doe" || m.Site != "hq" || m.MailboxGUID != patGUID || !strings.HasSuffix(m.LegacyDN, "/cn=pat") ||
			strings.Join(m.Aliases, " ") != "patricia@contoso.com" || m.RedirectAddress != "" {
			t.Errorf("got %+v", m)
		}
		for address, want := range map[string]string{"cloud@contoso.com": "cloud@contoso.mail.onmicrosoft.com", "forwarded@contoso.com": ""} {
			if m, err := d.ByAddress(ctx, address); err != nil || m.RedirectAddress != want {
				t.Errorf("%s: redirect to %+v, %v; want %q", address, m, err, want)
			}
		}
	})
	t.Run("login", func(t *testing.T) {
		f := func(want, name, password string) {
			t.Helper()
			if m, err := d.Authenticate(ctx, name, password); result(m, err) != want {
				t.Errorf("%s/%s: %s (%v), want %s", name, password, result(m, err), err, want)
			}
		}
		// The server says yes to a name without a password (RFC 4513 section 5.1.2): that there is none must be seen here.
		c, err := d.connect(ctx, d.servers[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := c.run(ctx, func() error { return c.UnauthenticatedBind("CN=Pat Doe," + peer.SlapdBase) }); err != nil {
			t.Errorf("OpenLDAP refuses a bind without a password itself: %v", err)
		}
		c.close()
		for _, name := range []string{"pat@contoso.com", "Patricia@contoso.com", "PDOE@corp.contoso.local", "pat", `CONTOSO\PAT`} {
			f("pat@contoso.com", name, "correct horse")
			f("refused", name, "Correct horse")
			f("refused", name, "")
		}
		f("refused", "nobody@contoso.com", "correct horse")
		f("refused", "*", "correct horse")
		f("refused", "p*t", "correct horse")
		f("refused", "pat)(sAMAccountName=lee", "lee's")
		f("refused", "gone", "gone's")
		f("refused", "helpdesk", "helpdesk's")
		f("refused", "nomail", "nomail's")
		f("refused", "nopassword@contoso.com", "x")
		f("unix@contoso.com", "unix", "unix's")
		// Two entries have the name: the password decides.
		f("lee@contoso.com", "lee@contoso.com", "lee's")
		f("kim@contoso.com", "lee@contoso.com", "kim's")
		f("refused", "lee@contoso.com", "pat's")
		f("error", "crowd", "x") // 1200 of them are too many
		if a, err := d.Accounts(ctx, `X\lee@contoso.com`); err != nil || len(a) != 2 {
			t.Errorf("accounts: %v, %v", a, err)
		}
		if a, err := d.Accounts(ctx, "pat"); err != nil || len(a) != 1 || a[0] != patGUID {
			t.Errorf("accounts of pat: %v, %v", a, err)
		}
	})
	// Nobody gets the answer of somebody else, though searches share connections.
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				address := fmt.Sprintf("user%d@contoso.com", i)
				if m, err := d.ByAddress(ctx, address); err != nil || m.Address != address {
					t.Errorf("%s: %v, %v", address, m, err)
				}
				name, password, want := "pat", "correct horse", "pat@contoso.com"
				if i%2 == 0 {
					name, password, want = "lee", "correct horse", "refused"
				}
				if m, err := d.Authenticate(ctx, name, password); result(m, err) != want {
					t.Errorf("%s: %v, %v", name, m, err)
				}
			})
		}
		wg.Wait()
		if n := len(d.servers[0].idle); n == 0 || n > ldapSearches {
			t.Errorf("%d idle connections, want 1 to %d", n, ldapSearches)
		}
	})
	t.Run("pages", func(t *testing.T) {
		if r := d.Look(ctx); len(r) != 1 || r[0].Err != nil || r[0].Mailboxes != ldapMailboxes {
			t.Errorf("got %+v, want %d mailboxes", r, ldapMailboxes)
		}
		// Without pages there is a limit, which is no "there is none".
		if _, err := d.search(ctx, "(displayName=the same)", 2000); !ours(err) || !strings.Contains(err.Error(), "Size Limit") {
			t.Errorf("over the limit: %v", err)
		}
	})
	t.Run("starttls", func(t *testing.T) {
		s := w.open(t, nil, localhost("ldap", w.LDAP))
		if m, err := s.Authenticate(ctx, "pat", "correct horse"); result(m, err) != "pat@contoso.com" {
			t.Errorf("got %v, %v", m, err)
		}
		// OpenLDAP says nothing in clear, so there was TLS; without its CA there is none.
		s = w.open(t, func(o *LDAPOptions) { o.TLS = nil }, localhost("ldap", w.LDAP), localhost("ldaps", w.LDAPS))
		if _, err := s.ByAddress(ctx, "pat@contoso.com"); !ours(err) || strings.Count(err.Error(), "certificate") < 2 {
			t.Errorf("an unknown CA: %v", err)
		}
	})
	t.Run("anonymous", func(t *testing.T) {
		a := w.open(t, func(o *LDAPOptions) { o.BindDN, o.PasswordFile = "", "" })
		if _, err := a.ByAddress(ctx, "pat@contoso.com"); !ours(err) {
			t.Errorf("nobody may search: %v", err)
		}
	})
	// The password is read again, and a refused one is not tried over and over.
	t.Run("own password", func(t *testing.T) {
		defer w.setPassword(t, peer.SlapdPassword)
		var dials atomic.Int32
		p := w.open(t, func(o *LDAPOptions) {
			dial := o.Dial
			o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				dials.Add(1)
				return dial(ctx, network, address)
			}
		})
		w.setPassword(t, "wrong")
		for range 3 {
			if _, err := p.ByAddress(ctx, "pat@contoso.com"); !ours(err) || strings.Contains(err.Error(), "wrong") {
				t.Errorf("a wrong password of our own: %v", err)
			}
			if m, err := p.Authenticate(ctx, "pat", "correct horse"); !ours(err) {
				t.Errorf("a wrong password of our own: %v, %v", m, err)
			}
		}
		if n := dials.Load(); n != 1 {
			t.Errorf("tried %d times, want once", n)
		}
		w.setPassword(t, "\n")
		if _, err := p.ByAddress(ctx, "pat@contoso.com"); !ours(err) || !strings.Contains(err.Error(), "empty") {
			t.Errorf("an empty password: %v", err)
		}
		w.setPassword(t, peer.SlapdPassword+"\r\n")
		if m, err := p.ByAddress(ctx, "pat@contoso.com"); err != nil {
			t.Errorf("the right one: %v, %v", m, err)
		}
	})
	t.Run("cache", func(t *testing.T) {
		var dials atomic.Int32
		c := w.open(t, func(o *LDAPOptions) {
			o.CacheAge, o.CacheEntries = time.Minute, 2
			dial := o.Dial
			o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				dials.Add(1)
				return dial(ctx, network, address)
			}
		})
		now := time.Now()
		c.cache.now = func() time.Time { return now }
		find := func(want, address string) {
			t.Helper()
			if m, err := c.ByAddress(ctx, address); result(m, err) != want {
				t.Errorf("%s: %v, %v", address, m, err)
			}
		}
		find("pat@contoso.com", "pat@contoso.com")
		find("none", "nobody@contoso.com")
		// The server is away: what is known is still answered, passwords are not.
		c.servers[0].address = "127.0.0.1:1"
		for _, idle := range c.servers[0].idle {
			idle.close()
		}
		find("pat@contoso.com", "pat@contoso.com")
		find("none", "nobody@contoso.com")
		find("error", "lee@contoso.com")
		now = now.Add(time.Minute)
		find("error", "pat@contoso.com")
		find("error", "nobody@contoso.com")
	})
}

// Names that do not exist do not push out those that do, and neither grows.
func TestLDAPCache(t *testing.T) {
	c := newLDAPCache(time.Minute, 3)
	c.put("pat", []*ldapEntry{{dn: "pat"}})
	for i := range 1000 {
		c.put(fmt.Sprint(i), nil)
	}
	if found, ok := c.get("pat"); !ok || len(found) != 1 {
		t.Error("pat was pushed out")
	}
	for i := range 10 {
		c.put(fmt.Sprintf("user%d", i), []*ldapEntry{{}})
		c.get("pat") // used, and so kept
	}
	if _, ok := c.get("pat"); !ok {
		t.Error("the one in use was pushed out")
	}
	if n, m := len(c.hits.byKey), len(c.none.byKey); n != 3 || m != 3 || c.hits.order.Len() != 3 {
		t.Errorf("%d and %d entries, want 3", n, m)
	}
	c.put("pat", nil)
	if found, ok := c.get("pat"); !ok || found != nil {
		t.Error("what is gone is still there")
	}
	off := newLDAPCache(0, 3)
	off.put("pat", nil)
	if _, ok := off.get("pat"); ok {
		t.Error("a cache without age keeps something")
	}
}

// A server that dies is replaced by the next, also under connections that were in
// use; without any, nothing is said to be missing or wrong.
func TestLDAPFailOver(t *testing.T) {
	w := newLDAPWorld(t)
	second := peer.StartSlapd(t, w.ca, w.cert, ldapLDIF())
	d := w.open(t, nil, localhost("ldaps", w.LDAPS), localhost("ldap", second.LDAP))
	fine := func(when string) {
		t.Helper()
		if m, err := d.ByAddress(t.Context(), "pat@contoso.com"); err != nil || m.Address != "pat@contoso.com" {
			t.Errorf("%s: %v, %v", when, m, err)
		}
		if _, err := d.Authenticate(t.Context(), "lee", "lee's"); err != nil {
			t.Errorf("%s: login: %v", when, err)
		}
		if _, err := d.Authenticate(t.Context(), "lee", "wrong"); !errors.Is(err, ErrBadCredentials) {
			t.Errorf("%s: wrong password: %v", when, err)
		}
	}
	fine("both there")
	if len(d.servers[1].idle) != 0 {
		t.Error("the second was asked while the first answers")
	}
	// In the middle of it: whoever asks gets the right answer.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if m, err := d.ByAddress(t.Context(), "pat@contoso.com"); err != nil || m.Address != "pat@contoso.com" {
					t.Errorf("while the first dies: %v, %v", m, err)
				}
			}
		})
	}
	w.Kill()
	wg.Wait()
	fine("the first gone")
	if got := d.order(); got[0] != d.servers[1] {
		t.Error("the one that failed is still asked first")
	}
	second.Kill()
	for range 2 {
		if _, err := d.ByAddress(t.Context(), "pat@contoso.com"); !ours(err) {
			t.Errorf("all gone: %v", err)
		}
		if _, err := d.Authenticate(t.Context(), "pat", "correct horse"); !ours(err) {
			t.Errorf("all gone, login: %v", err)
		}
		if _, err := d.Authenticate(t.Context(), "nobody", "x"); !ours(err) {
			t.Errorf("all gone, unknown name: %v", err)
		}
		if _, err := d.Accounts(t.Context(), "pat"); !ours(err) {
			t.Errorf("all gone, accounts: %v", err)
		}
	}
}

// tcpServer runs serve for every connection, and returns the address.
func tcpServer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() { defer c.Close(); serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// A server behind a line that has gone silent costs its time limit and no more,
// and the next one answers.
func TestLDAPSlowServer(t *testing.T) {
	w := newLDAPWorld(t)
	var silent atomic.Bool
	proxy := tcpServer(t, func(c net.Conn) {
		up, err := net.Dial("tcp", w.LDAPS)
		if err != nil {
			return
		}
		defer up.Close()
		go func() { defer up.Close(); _, _ = io.Copy(up, c) }()
		buf := make([]byte, 4096)
		for {
			n, err := up.Read(buf)
			if err != nil {
				return
			}
			if silent.Load() {
				continue
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	d := w.open(t, nil, localhost("ldaps", proxy))
	if _, err := d.ByAddress(t.Context(), "pat@contoso.com"); err != nil {
		t.Fatal(err)
	}
	silent.Store(true)
	d.o.Timeout = 200 * time.Millisecond
	start := time.Now()
	// Once over the connection that is open, once over a new one.
	for range 2 {
		if _, err := d.ByAddress(t.Context(), "pat@contoso.com"); !ours(err) {
			t.Errorf("silent: %v", err)
		}
	}
	if _, err := d.Authenticate(t.Context(), "pat", "correct horse"); !ours(err) {
		t.Errorf("silent: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	// A client that leaves does not wait.
	d.o.Timeout = time.Minute
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.ByAddress(ctx, "pat@contoso.com"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the client left: %v", err)
	}

	// With a second server the first costs its time once, and is asked last from then on.
	both := w.open(t, func(o *LDAPOptions) { o.Timeout = 500 * time.Millisecond }, localhost("ldaps", proxy), localhost("ldaps", w.LDAPS))
	if m, err := both.ByAddress(t.Context(), "pat@contoso.com"); err == nil && m.Address != "pat@contoso.com" || err != nil && !ours(err) {
		t.Errorf("with a second server: %v, %v", m, err)
	}
	both.o.Timeout = 10 * time.Second
	if m, err := both.ByAddress(t.Context(), "pat@contoso.com"); err != nil || m.Address != "pat@contoso.com" {
		t.Errorf("with a second server: %v, %v", m, err)
	}
}

// A server that lies or stammers is an error, and nothing worse.
func TestLDAPLyingServer(t *testing.T) {
	ca := peer.NewCA(t)
	file := ca.Issue("localhost", peer.Leaf{Names: []string{"localhost"}, Silent: true})
	certificate, err := tls.LoadX509KeyPair(file, strings.TrimSuffix(file, ".pem")+".key")
	if err != nil {
		t.Fatal(err)
	}
	w := &ldapWorld{ca: ca, password: filepath.Join(t.TempDir(), "pass")}
	w.setPassword(t, "x")
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(ca.Root)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(pem)
	w.roots = &tls.Config{RootCAs: pool}

	const (
		bound = "\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00" // bindResponse 1: success
		done  = "\x30\x0c\x02\x01\x02\x65\x07\x0a\x01\x00\x04\x00\x04\x00" // searchResultDone 2: success
	)
	result := func(code byte) string {
		return strings.Replace(done, "\x0a\x01\x00", "\x0a\x01"+string([]byte{code}), 1)
	}
	for name, answers := range map[string][]string{
		"nothing":                 {},
		"text":                    {"HTTP/1.1 400 Bad Request\r\n\r\n"},
		"half a bind":             {bound[:7]},
		"half an answer":          {bound, done[:9]},
		"an endless length":       {bound, "\x30\x84\x7f\xff\xff\xff\x02\x01\x02"},
		"a length of 8 octets":    {bound, "\x30\x88\x7f\xff\xff\xff\xff\xff\xff\xff"},
		"indefinite nesting":      {bound, strings.Repeat("\x30\x80", 300_000)},
		"an empty message":        {bound, "\x30\x00"},
		"a message of one number": {bound, "\x30\x03\x02\x01\x02"},
		"an entry without parts":  {bound, "\x30\x05\x02\x01\x02\x64\x00" + done},
		"an entry of numbers":     {bound, "\x30\x0b\x02\x01\x02\x64\x06\x02\x01\x00\x02\x01\x00" + done},
		"another message":         {bound, strings.Replace(done, "\x02\x01\x02", "\x02\x01\x63", 1)},
		"busy":                    {bound, result(51)},
		"unavailable":             {bound, result(52)},
		"a referral":              {bound, result(10)},
		"a time limit":            {bound, result(3)},
		"a size limit":            {bound, result(4)},
		"no such base":            {bound, result(32)},
		"not allowed":             {bound, result(50)},
		"an end without a code":   {bound, "\x30\x05\x02\x01\x02\x65\x00"},
		"a long story":            {bound, "\x30\x82\x40\x0e\x02\x01\x02\x65\x82\x40\x07\x0a\x01\x35\x04\x00\x04\x82\x3f\xfe" + strings.Repeat("x", 0x3ffe)},
	} {
		t.Run(name, func(t *testing.T) {
			address := tcpServer(t, func(c net.Conn) {
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
				buf := make([]byte, 4096)
				for _, a := range answers {
					if _, err := s.Read(buf); err != nil {
						return
					}
					if _, err := io.WriteString(s, a); err != nil {
						return
					}
				}
				_, _ = s.Read(buf) // and then silence
			})
			d := w.open(t, func(o *LDAPOptions) { o.Timeout = 200 * time.Millisecond }, localhost("ldaps", address))
			if m, err := d.ByAddress(t.Context(), "pat@contoso.com"); !ours(err) || len(err.Error()) > 2*maxDiagnostic {
				t.Errorf("got %v, %.1000v", m, err)
			}
			if m, err := d.Authenticate(t.Context(), "pat", "x"); !ours(err) {
				t.Errorf("login: %v, %v", m, err)
			}
		})
	}
	// Codes of a bind that say no to a user, and those that say nothing of one.
	for code, refused := range map[byte]bool{49: true, 48: true, 19: true, 51: false, 8: false} {
		t.Run(fmt.Sprintf("bind %d", code), func(t *testing.T) {
			address := tcpServer(t, func(c net.Conn) {
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
				buf := make([]byte, 4096)
				if _, err := s.Read(buf); err == nil {
					_, _ = io.WriteString(s, strings.Replace(bound, "\x0a\x01\x00", "\x0a\x01"+string([]byte{code}), 1))
				}
				_, _ = s.Read(buf)
			})
			d := w.open(t, nil, localhost("ldaps", address))
			if err := d.verify(t.Context(), "uid=pat", "x", false); err == nil || errors.Is(err, ErrBadCredentials) != refused {
				t.Errorf("%v; refused is to be %t", err, refused)
			}
		})
	}
	// It may send entries that nobody asked for: they are not believed.
	t.Run("another entry", func(t *testing.T) {
		entry := "\x30\x2c\x02\x01\x02\x64\x27\x04\x06cn=eve\x30\x1d\x30\x1b\x04\x04mail\x31\x13\x04\x11eve@contoso.local"
		address := tcpServer(t, func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
			buf := make([]byte, 4096)
			for _, a := range []string{bound, entry + done} {
				if _, err := s.Read(buf); err != nil {
					return
				}
				_, _ = io.WriteString(s, a)
			}
			_, _ = s.Read(buf)
		})
		d := w.open(t, nil, localhost("ldaps", address))
		if m, err := d.ByAddress(t.Context(), "pat@contoso.com"); !errors.Is(err, ErrNotFound) {
			t.Errorf("got %v, %v", m, err)
		}
	})
	// STARTTLS that is refused, or answered with more than its answer, is no reason to go on in clear.
	t.Run("starttls", func(t *testing.T) {
		const yes = "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00"
		for _, answer := range []string{strings.Replace(yes, "\x0a\x01\x00", "\x0a\x01\x02", 1), yes + bound, yes} {
			var clear atomic.Int32
			address := tcpServer(t, func(c net.Conn) {
				buf := make([]byte, 4096)
				_, _ = c.Read(buf)
				_, _ = io.WriteString(c, answer)
				if n, _ := c.Read(buf); n > 0 && buf[0] == 0x30 {
					clear.Add(1)
				}
			})
			d := w.open(t, func(o *LDAPOptions) { o.Timeout = 200 * time.Millisecond }, localhost("ldap", address))
			if m, err := d.ByAddress(t.Context(), "pat@contoso.com"); !ours(err) {
				t.Errorf("got %v, %v", m, err)
			}
			if clear.Load() > 0 {
				t.Error("went on in clear")
			}
		}
	})
}

func TestLDAPOptions(t *testing.T) {
	good := LDAPOptions{Servers: []string{"ldaps://dc01.contoso.local"}, BaseDN: "DC=contoso,DC=local"}
	if d, err := OpenLDAP(good); err != nil || d.servers[0].address != "dc01.contoso.local:636" {
		t.Fatal(d, err)
	}
	f := func(want string, change func(*LDAPOptions)) {
		t.Helper()
		o := good
		change(&o)
		if _, err := OpenLDAP(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f("no server", func(o *LDAPOptions) { o.Servers = nil })
	f("neither", func(o *LDAPOptions) { o.Servers = []string{"http://dc01.contoso.local"} })
	f("is not ldaps", func(o *LDAPOptions) { o.Servers = []string{"ldaps://dc01.contoso.local/DC=contoso"} })
	f("go together", func(o *LDAPOptions) { o.BindDN = "CN=x" })
	f("filter", func(o *LDAPOptions) { o.Filter = "(mail=*" })
	f("base DN", func(o *LDAPOptions) { o.BaseDN = "contoso" })
}
