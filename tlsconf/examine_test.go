package tlsconf

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

func readChain(t *testing.T, file string) []*x509.Certificate {
	t.Helper()
	chain, err := ReadCertificates(file)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func roots(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	pool, err := LoadRoots(file)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

// report is the findings in one line each.
func report(found []Finding) (lines []string) {
	for _, f := range found {
		lines = append(lines, string(f.Severity)+": "+f.String())
	}
	return lines
}

// wantLines checks that the findings are these, in this order; "…" stands for anything.
func wantLines(t *testing.T, what string, found []Finding, want ...string) {
	t.Helper()
	got := report(found)
	like := func(line, want string) bool {
		for _, part := range strings.Split(want, "…") {
			i := strings.Index(line, part)
			if i < 0 {
				return false
			}
			line = line[i+len(part):]
		}
		return true
	}
	if !slices.EqualFunc(got, want, like) {
		t.Errorf("%s:\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// The four reasons are told apart, with certificates, list and responder of OpenSSL.
func TestFourReasons(t *testing.T) {
	t.Parallel()
	ca, other := peer.NewCA(t), peer.NewCA(t)
	mail := []string{"mail.contoso.com", "autodiscover.contoso.com"}
	good := ca.Issue("good", peer.Leaf{Names: mail})
	revoked := ca.Issue("revoked", peer.Leaf{Names: mail})
	expired := ca.Issue("expired", peer.Leaf{Names: mail, Start: time.Now().AddDate(0, -3, 0), End: time.Now().AddDate(0, 0, -2)})
	unknown := other.Issue("unknown", peer.Leaf{Names: mail})
	other.Publish()
	silent := ca.Issue("silent", peer.Leaf{Names: mail, Silent: true})
	soon := ca.Issue("soon", peer.Leaf{Names: mail, Silent: true, Start: time.Now().AddDate(0, 0, -70), End: time.Now().Add(20*24*time.Hour + time.Hour)})
	common := ca.Issue("common", peer.Leaf{Names: mail, CommonOnly: true, Silent: true})
	ca.Revoke("revoked", "keyCompromise")
	crl := ca.Publish()
	trusted := roots(t, ca.Root)
	f := func(what, file string, change func(*ExamineOptions), want ...string) {
		t.Helper()
		o := ExamineOptions{Names: mail[:1], Roots: trusted, Revocations: &Revocations{Timeout: 20 * time.Second}}
		if change != nil {
			change(&o)
		}
		wantLines(t, what, Examine(t.Context(), readChain(t, file), o), want...)
	}
	const (
		issuerFine = "fine: issuer: Contoso Issuing, trusted by Contoso Root"
		expiryFine = "fine: expiry: until …, 89 days"
		nameFine   = "fine: name: good for mail.contoso.com"
	)
	// The responder does not answer, so that the list is asked; it is out of the way, so that nobody answers.
	f("fine by CRL", good, nil, issuerFine, "fine: revocation: not revoked, says CRL http://127.0.0.1:", expiryFine, nameFine)
	f("revoked by CRL", revoked, nil, issuerFine, "error: revocation: REVOKED on …(key compromise), says CRL http…; get a new certificate with a new key", expiryFine, nameFine)
	lists := func(o *ExamineOptions) {
		list, err := LoadCRL(crl)
		if err != nil {
			t.Fatal(err)
		}
		o.Revocations = &Revocations{Lists: []FileCRL{list}, Offline: true}
	}
	f("fine by file", good, lists, issuerFine, "fine: revocation: not revoked, says CRL "+crl, expiryFine, nameFine)
	f("revoked by file", revoked, lists, issuerFine, "error: revocation: REVOKED on …(key compromise), says CRL "+crl, expiryFine, nameFine)
	f("a list of another CA", unknown, func(o *ExamineOptions) { lists(o); o.Roots = roots(t, other.Root) },
		issuerFine, "warning: revocation: unknown: CRL "+crl+": the list is not signed by the issuer of the certificate; nobody was asked", expiryFine, nameFine)
	f("a list out of date", good, func(o *ExamineOptions) { lists(o); o.Now = time.Now().AddDate(0, 0, 8) },
		issuerFine, "warning: revocation: unknown: CRL …: the list is out of date since …", "fine: expiry: …, 81 days", nameFine)
	f("a list from the future", good, func(o *ExamineOptions) { lists(o); o.Now = time.Now().Add(-time.Hour) },
		issuerFine, "warning: revocation: unknown: CRL …: the list is from the future", "error: expiry: not valid before",
		`error: expiry: "Contoso Issuing", which issued it, is not valid before`, `error: expiry: "Contoso Root", which issued it, is not valid before`, nameFine)

	for _, delegated := range []bool{false, true} {
		stop := ca.Respond(delegated)
		f("fine by OCSP", good, nil, issuerFine, "fine: revocation: not revoked, says OCSP http://127.0.0.1:", expiryFine, nameFine)
		f("revoked by OCSP", revoked, nil, issuerFine, "error: revocation: REVOKED on …(key compromise), says OCSP http…; get a new", expiryFine, nameFine)
		stop()
	}
	ca.Unpublish()
	// and the soft fail: no answer is no reason.
	f("nobody answers", good, nil, issuerFine, "warning: revocation: unknown: OCSP …: answers 503 Service Unavailable; CRL …: answers 404 Not Found; let clients", expiryFine, nameFine)
	f("nobody to ask", silent, nil, issuerFine, "fine: revocation: names neither an OCSP responder nor a CRL", expiryFine, nameFine)
	offline := func(o *ExamineOptions) { o.Revocations = nil }
	f("expired", expired, offline, issuerFine, "error: expiry: expired on …, 2 days ago; renew it", nameFine)
	f("soon", soon, offline, issuerFine, "warning: expiry: expires on …, in 20 days; renew it", nameFine)
	f("wrong name", silent, func(o *ExamineOptions) {
		offline(o)
		o.Names = []string{"mail.contoso.com", "owa.contoso.com", "webmail.contoso.com"}
	},
		issuerFine, expiryFine, "error: name: not good for owa.contoso.com, webmail.contoso.com, only for mail.contoso.com, autodiscover.contoso.com; get one with every name")
	f("no name asked", silent, func(o *ExamineOptions) { offline(o); o.Names = nil }, issuerFine, expiryFine, "fine: name: good for mail.contoso.com, autodiscover.contoso.com")
	f("common name only", common, offline, issuerFine, expiryFine, `error: name: no subject alternative name, and clients of today do not look at the common name "mail.contoso.com"`)
	f("unknown issuer", unknown, nil,
		`error: issuer: the chain ends at "Contoso Issuing": the certificate of the issuer "Contoso Root" is not sent along, and no CA of that name is trusted here; put the missing`,
		"fine: revocation: not revoked, says CRL", expiryFine, nameFine)
	f("incomplete", ca.File("silent.leaf.pem"), nil,
		`error: issuer: the certificate of its issuer "Contoso Issuing" is not sent along, and no CA of that name is trusted here; put the intermediate`,
		"warning: revocation: unknown: without the certificate of its issuer no answer can be verified; complete the chain", expiryFine, nameFine)
	f("root sent along", fileOf(t, unknown, other.Root), offline, `error: issuer: the CA "Contoso Root" is not trusted here; install that CA's certificate`, expiryFine, nameFine)
	f("not in order", fileOf(t, ca.File("silent.leaf.pem"), other.Root, ca.Sub), offline, issuerFine, expiryFine, nameFine, `warning: chain: "Contoso Root", number 2 of the chain, is not the issuer`)
	f("self-signed", ca.Root, func(o *ExamineOptions) { o.Roots = x509.NewCertPool() },
		"error: issuer: self-signed: nobody but itself vouches for it; get one from a CA", "fine: revocation: self-signed, so there is nobody who could revoke it",
		"fine: expiry", "error: name: no subject alternative name", "warning: usage: no extended key usage", "error: usage: the key may not sign", "warning: usage: it is the certificate of a CA", "warning: validity: it lives for 3651 days: Apple's")
}

// An issuer that has expired is as bad, sent along or not; one that is sent along for nothing is worth a warning. And what
// a certificate carries is no terminal's business.
func TestExamineIssuers(t *testing.T) {
	t.Parallel()
	now := time.Now()
	until := func(d time.Duration) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.IsCA, c.NotBefore, c.NotAfter = true, now.Add(-3*time.Hour), now.Add(d)
		}
	}
	server := func(c *x509.Certificate) {
		c.NotBefore, c.DNSNames, c.ExtKeyUsage = now.Add(-2*time.Hour), []string{"mail.contoso.com"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	f := func(what string, root *issued, chain []*issued, want ...string) {
		t.Helper()
		pool := x509.NewCertPool()
		pool.AddCert(root.Certificate)
		var certs []*x509.Certificate
		for _, c := range chain {
			certs = append(certs, c.Certificate)
		}
		found := Examine(t.Context(), certs, ExamineOptions{Roots: pool})
		wantLines(t, what, slices.DeleteFunc(found, func(f Finding) bool { return f.Severity == Fine }), want...)
	}
	old := issue(t, "Old Root", nil, until(-time.Hour))
	f("expired root", old, []*issued{issue(t, "x", old, server)}, `error: expiry: "Old Root", which issued it, expired on `)
	root := issue(t, "Root", nil, until(10000*time.Hour))
	sub := issue(t, "Sub", root, until(-time.Hour))
	f("expired intermediate", root, []*issued{issue(t, "x", sub, server), sub}, `error: expiry: "Sub", which issued it, expired on `)
	soon := issue(t, "Soon", root, until(time.Hour))
	f("intermediate that ends before", root, []*issued{issue(t, "x", soon, server), soon}, `warning: expiry: "Soon", which issued it, expires on `)
	good := issue(t, "Good", root, until(9000*time.Hour))
	f("expired, for nothing", root, []*issued{issue(t, "x", good, server), good, old}, `warning: expiry: "Old Root", which issued it, expired on …; leave it out`, `warning: chain: "Old Root", number 3`)
	rude := issue(t, "x", root, func(c *x509.Certificate) { server(c); c.DNSNames = []string{"mail\n\x1b[31m.contoso.com"} })
	pool := x509.NewCertPool()
	pool.AddCert(root.Certificate)
	for _, found := range Examine(t.Context(), []*x509.Certificate{rude.Certificate}, ExamineOptions{Roots: pool, Names: []string{"mail.contoso.com"}}) {
		if strings.ContainsAny(found.String(), "\n\x1b") {
			t.Errorf("%q", found)
		}
	}
}

func fileOf(t *testing.T, files ...string) string {
	t.Helper()
	var all []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return writeFile(t, tempFile(t, "all.pem"), all)
}

// What else clients refuse: made by OpenSSL, since Go makes no such certificates.
func TestExamineKeysAndUsage(t *testing.T) {
	t.Parallel()
	ca := peer.NewCA(t)
	trusted := roots(t, ca.Root)
	names := []string{"mail.contoso.com"}
	day := 24 * time.Hour
	f := func(what string, l peer.Leaf, want ...string) {
		t.Helper()
		l.Names, l.Silent = names, true
		file := ca.Issue(strings.ReplaceAll(what, " ", "-"), l)
		found := Examine(t.Context(), readChain(t, file), ExamineOptions{Names: names, Roots: trusted, Now: max2(l.Start).Add(time.Hour)})
		wantLines(t, what, slices.DeleteFunc(found, func(f Finding) bool {
			// The CA is younger than some of what it issues here.
			return f.Severity == Fine || strings.Contains(f.Text, "which issued it, is not valid before")
		}), want...)
	}
	f("good", peer.Leaf{})
	f("weak key", peer.Leaf{Key: []string{"rsa:1024"}}, "error: key: RSA with 1024 bits: clients refuse less than 2048; have it issued for")
	f("P-521", peer.Leaf{Key: []string{"ec", "-pkeyopt", "ec_paramgen_curve:P-521"}}, "warning: key: an ECDSA key on P-521")
	f("Ed25519", peer.Leaf{Key: []string{"ed25519"}}, "error: key: an Ed25519 key, which browsers and Windows do not accept")
	f("SHA-1", peer.Leaf{Digest: "sha1"}, "error: issuer: cannot be verified: signed with ECDSA-SHA1", `error: signature: "mail.contoso.com" is signed with ECDSA-SHA1`)
	f("client", peer.Leaf{Extensions: "keyUsage = digitalSignature\nextendedKeyUsage = clientAuth\n"}, "error: usage: not for servers")
	f("nothing said", peer.Leaf{Extensions: "keyUsage = digitalSignature\n"}, "warning: usage: no extended key usage")
	f("encipher", peer.Leaf{Key: []string{"rsa:2048"}, Extensions: "keyUsage = keyEncipherment\nextendedKeyUsage = serverAuth\n"}, "error: usage: the key may encipher but not sign")

	// Baseline Requirements section 6.3.2. Both ends count, so that a life of exactly 200 days is a second too long.
	life := func(from string, d time.Duration) peer.Leaf {
		start, err := time.Parse(time.DateOnly, from)
		if err != nil {
			t.Fatal(err)
		}
		return peer.Leaf{Start: start, End: start.Add(d), Extensions: "certificatePolicies = 2.23.140.1.2.1\n"}
	}
	for _, c := range []struct {
		from    string
		days    int
		refused string
	}{
		{"2018-03-01", 825, "2018-03-01 that live longer than 825"},
		{"2020-08-31", 825, "2018-03-01 that live longer than 825"},
		{"2020-09-01", 398, "2020-09-01 that live longer than 398"},
		{"2026-03-14", 398, "2020-09-01 that live longer than 398"},
		{"2026-03-15", 200, "2026-03-15 that live longer than 200"},
		{"2027-03-14", 200, "2026-03-15 that live longer than 200"},
		{"2027-03-15", 100, "2027-03-15 that live longer than 100"},
		{"2029-03-15", 47, "2029-03-15 that live longer than 47"},
	} {
		leaf := &x509.Certificate{PolicyIdentifiers: publicPolicies[:1]}
		for _, over := range []bool{false, true} {
			leaf.NotBefore = life(c.from, 0).Start
			leaf.NotAfter = leaf.NotBefore.Add(time.Duration(c.days)*day - time.Second)
			want := []string{}
			if over {
				leaf.NotAfter = leaf.NotAfter.Add(time.Second)
				want = append(want, "error: validity: …issued since "+c.refused)
			}
			e := examination{leaf: leaf}
			e.validity()
			wantLines(t, c.from, e.found, want...)
		}
	}
	f("public, long", life("2026-04-01", 365*day), "error: validity: it lives for 366 days: browsers refuse public certificates issued since 2026-03-15 that live longer than 200; have it")
	long := life("2026-04-01", 365*day)
	long.Extensions = ""
	f("private, a year", long)
	long.End = long.Start.Add(900 * day)
	f("private, long", long, "warning: validity: it lives for 901 days: Apple's systems refuse more than 825")
}

func max2(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}

func TestExpirySoon(t *testing.T) {
	start := time.Now()
	for days, want := range map[int]int{398: 30, 200: 30, 90: 30, 47: 15, 6: 2} {
		c := &x509.Certificate{NotBefore: start, NotAfter: start.AddDate(0, 0, days)}
		if got := ExpirySoon(c).Hours() / 24; int(got) < want || int(got) > want {
			t.Errorf("%d days: %v, want %d", days, got, want)
		}
	}
}

// What a server shows, with stapling, without, and after STARTTLS; the server is OpenSSL's.
func TestFetch(t *testing.T) {
	t.Parallel()
	ca := peer.NewCA(t)
	names := []string{"mail.contoso.com"}
	ca.Issue("good", peer.Leaf{Names: names})
	ca.Issue("revoked", peer.Leaf{Names: names})
	ca.Revoke("revoked", "superseded")
	stop := ca.Respond(true)
	trusted := roots(t, ca.Root)
	revocation := func(address string) string {
		t.Helper()
		s, err := Fetch(t.Context(), address, FetchOptions{ServerName: names[0], Timeout: 30 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		found := Examine(t.Context(), s.Chain, ExamineOptions{Names: names, Roots: trusted, Stapled: s.Stapled, Revocations: &Revocations{Timeout: 20 * time.Second}})
		return report(found)[1]
	}
	plain := ca.Serve("good")
	stapling := ca.Serve("revoked", "-CAfile", "sub.pem", "-status", "-status_timeout", "20")
	old := ca.Serve("good", "-tls1_2", "-Verify", "1")
	if got := revocation(plain); !strings.HasPrefix(got, "fine: revocation: not revoked, says OCSP http") {
		t.Error(got)
	}
	if got := revocation(stapling); !strings.Contains(got, "error: revocation: REVOKED") || !strings.Contains(got, "(superseded), says OCSP, stapled") {
		t.Error(got)
	}
	// One that wants a certificate of the client's ends the handshake, having shown its own.
	if got := revocation(old); !strings.HasPrefix(got, "fine: revocation: not revoked, says OCSP") {
		t.Error(got)
	}
	stop()
	if got := revocation(plain); !strings.HasPrefix(got, "warning: revocation: unknown: OCSP ") {
		t.Error(got)
	}
}

// STARTTLS in each language; servers that others wrote are checked in package main (Dovecot).
func TestFetchStartTLS(t *testing.T) {
	t.Parallel()
	f := func(protocol, script, want string) {
		t.Helper()
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		done := make(chan string, 1)
		go func() {
			conn, err := ln.Accept()
			if err != nil {
				done <- err.Error()
				return
			}
			defer conn.Close()
			heard := ""
			for _, line := range strings.Split(script, "|") {
				if _, err := conn.Write([]byte(line + "\r\n")); err != nil {
					break
				}
				if strings.HasSuffix(line, "-") || strings.HasPrefix(line, "250-") {
					continue
				}
				said, err := clearLine(conn)
				heard += said + "|"
				if err != nil || strings.HasPrefix(said, "\x16") {
					break
				}
			}
			done <- heard
		}()
		_, err = Fetch(t.Context(), ln.Addr().String(), FetchOptions{StartTLS: protocol, Timeout: 20 * time.Second})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", protocol, err, want)
		}
		<-done
	}
	f("imap", "* BYE go away", `imap at 127.0.0.1:`)
	f("imap", "* OK here|a BAD what?", `the server says "a BAD what?"`)
	f("pop3", "+OK here|-ERR no TLS", `the server says "-ERR no TLS"`)
	f("smtp", "220 here|250-one|250 two|454 not now", `the server says "454 not now"`)
	f("ftp", "220 here", "there is no STARTTLS for ftp, only for imap, pop3, smtp")
}

// What cannot be fetched is one clear line.
func TestFetchRefused(t *testing.T) {
	t.Parallel()
	f := func(what, address string, want string) {
		t.Helper()
		_, err := Fetch(t.Context(), address, FetchOptions{Timeout: 400 * time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := ln.Addr().String()
	f("silent", silent, "no answer in 400ms")
	ln.Close()
	f("nobody", silent, "connection refused")
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	if _, err := Fetch(t.Context(), web.Listener.Addr().String(), FetchOptions{}); err == nil || !strings.Contains(err.Error(), "does not speak TLS; for a mail server that begins in clear: --starttls imap, pop3 or smtp") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Fetch(ctx, web.Listener.Addr().String(), FetchOptions{}); err == nil {
		t.Error("fetched without a context")
	}
}

// Answers that prove nothing are none: of another signer, out of date, too large, too slow, not what they should be.
func TestRevocationAnswers(t *testing.T) {
	t.Parallel()
	ca, other := peer.NewCA(t), peer.NewCA(t)
	chain := readChain(t, ca.Issue("good", peer.Leaf{Names: []string{"mail.contoso.com"}}))
	other.Issue("good", peer.Leaf{Names: []string{"mail.contoso.com"}}) // the same serial number
	other.Respond(false)
	list := other.Publish()
	asked := make(chan struct{}, 1)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		_, _ = io.Copy(io.Discard, r.Body) // only then is it seen that the client goes away
		<-r.Context().Done()
	}))
	t.Cleanup(slow.Close)
	f := func(what string, ocspURL, crlURL []string, stapled []byte, want ...string) {
		t.Helper()
		leaf := *chain[0]
		leaf.OCSPServer, leaf.CRLDistributionPoints = ocspURL, crlURL
		timeout := 20 * time.Second
		if slices.Contains(ocspURL, slow.URL) {
			timeout = 300 * time.Millisecond
		}
		a := Revocations{Timeout: timeout}.Ask(t.Context(), &leaf, chain[1], stapled, time.Now())
		if a.Status != RevocationUnknown || !slices.EqualFunc(a.Causes, want, strings.Contains) {
			t.Errorf("%s: %+v, want %q", what, a, want)
		}
	}
	f("another CA's responder", []string{other.OCSP}, nil, nil, `signed by "Contoso Issuing", which is no OCSP responder`)
	f("another CA's list", nil, []string{other.CRL}, nil, "the list is not signed by the issuer")
	f("ldap", nil, []string{"ldap:///CN=Contoso?certificateRevocationList"}, nil, "ldap is not asked, only http")
	f("slow", []string{slow.URL}, nil, nil, "no answer in 300ms")
	f("a list for a responder", []string{other.CRL}, nil, []byte("x"), "OCSP, stapled: is no usable response", "is no usable response")
	f("a responder for a list", nil, []string{ca.CRL}, nil, "answers 404")
	select {
	case <-asked:
	default:
		t.Error("the slow responder was not asked")
	}
	if _, err := LoadCRL(list); err != nil {
		t.Error(err)
	}
	for file, want := range map[string]string{
		ca.Dir:                    "is a directory, a file is needed",
		ca.Root:                   "it is a PEM file of CERTIFICATE, not of X509 CRL",
		ca.File("none"):           "cannot be read: no such file or directory",
		ca.File("good.csr") + "x": "cannot be read",
		ca.File("index.txt"):      "it is no certificate revocation list",
	} {
		if _, err := LoadCRL(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", file, err, want)
		}
	}
}

// RFC 5280 section 5.2.5: a list about other certificates says nothing about this one.
func TestIssuingPoint(t *testing.T) {
	t.Parallel()
	ca := peer.NewCA(t)
	chain := readChain(t, ca.Issue("good", peer.Leaf{Names: []string{"mail.contoso.com"}}))
	f := func(section, want string) {
		t.Helper()
		cnf, err := os.ReadFile(ca.File("ca.cnf"))
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, ca.File("idp.cnf"), append(cnf, "[idp]\n"+section...))
		openssl(t, nil, "ca", "-batch", "-config", ca.File("idp.cnf"), "-gencrl", "-crlexts", "idp", "-out", ca.File("idp.crl"))
		list, err := LoadCRL(ca.File("idp.crl"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = readCRL(list.List, chain[0], chain[1], time.Now())
		if got := strings.TrimSpace(errText(err)); !strings.Contains(got, want) || (got == "") != (want == "") {
			t.Errorf("%s: %q, want %q", section, got, want)
		}
	}
	f("authorityKeyIdentifier = keyid\n", "")
	f("issuingDistributionPoint = critical,@p\n[p]\nfullname = URI:"+ca.CRL+"\n", "")
	f("issuingDistributionPoint = critical,@p\n[p]\nfullname = URI:http://other.example/1.crl\n", "another distribution point")
	f("issuingDistributionPoint = critical,@p\n[p]\nonlyCA = TRUE\n", "about other certificates")
	f("issuingDistributionPoint = critical,@p\n[p]\nonlyuser = TRUE\n", "")
	f("issuingDistributionPoint = critical,@p\n[p]\nonlysomereasons = keyCompromise\n", "about other certificates")
	f("issuingDistributionPoint = critical,@p\n[p]\nindirectCRL = TRUE\n", "about other certificates")
	f("2.5.29.27 = critical,ASN1:INTEGER:1\n", "holds changes alone")
	f("1.2.3.4 = critical,ASN1:NULL\n", "not understood")
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// A responder's certificate that the issuer has not charged with it signs nothing.
func TestOCSPSigner(t *testing.T) {
	t.Parallel()
	ca := peer.NewCA(t)
	chain := readChain(t, ca.Issue("good", peer.Leaf{Names: []string{"mail.contoso.com"}}))
	ca.Issue("charged", peer.Leaf{Names: []string{"OCSP"}, CommonOnly: true, Extensions: "keyUsage = digitalSignature\nextendedKeyUsage = OCSPSigning\n"})
	ca.Issue("not", peer.Leaf{Names: []string{"OCSP"}, CommonOnly: true})
	f := func(signer string, at time.Time, want string) {
		t.Helper()
		openssl(t, nil, "ocsp", "-index", ca.File("index.txt"), "-CA", ca.Sub, "-issuer", ca.Sub, "-cert", ca.File("good.leaf.pem"),
			"-rsigner", ca.File(signer+".pem"), "-rkey", ca.File(strings.TrimSuffix(signer, ".leaf")+".key"), "-ndays", "1", "-respout", ca.File("resp.der"))
		b, err := os.ReadFile(ca.File("resp.der"))
		if err != nil {
			t.Fatal(err)
		}
		a, err := readOCSP(b, chain[0], chain[1], at)
		if got := errText(err); !strings.Contains(got, want) || (got == "") != (want == "") || err == nil && a.Status != NotRevoked {
			t.Errorf("%s: %v %q, want %q", signer, a, got, want)
		}
	}
	now := time.Now()
	f("sub", now, "")
	f("charged.leaf", now, "")
	f("not.leaf", now, `signed by "OCSP", which is no OCSP responder`)
	f("charged.leaf", now.AddDate(0, 0, 2), "the response is out of date since")
	f("charged.leaf", now.Add(-time.Hour), "is not valid now")
	f("sub", now.Add(-time.Hour), "the response is from the future")
	block, _ := pem.Decode(certPEM(issue(t, "x", nil, nil)))
	if _, err := readOCSP(block.Bytes, chain[0], chain[1], now); err == nil {
		t.Error("a certificate was taken for a response")
	}
}
