package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// A changed CA file holds from then on; a bad one does not, and the log says so once.
func TestClientCAsFollowTheFile(t *testing.T) {
	log := &safeBuffer{}
	first, second := issue(t, "first", nil, isCA), issue(t, "second", nil, isCA)
	file := writeFile(t, tempFile(t, "ca.pem"), certPEM(first))
	cas := NewClientCAs(file, 5*time.Millisecond, zerolog.New(log))
	t.Cleanup(func() { cas.Close() })
	if !cas.Pool().Equal(poolOf([]*x509.Certificate{first.Certificate})) {
		t.Fatal("not the CA of the file")
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("in vain: %s\n%s", what, log)
			}
		}
	}
	writeFile(t, file, []byte("nothing"))
	eventually("an error", func() bool { return strings.Contains(log.String(), "the old ones hold") })
	if !cas.Pool().Equal(poolOf([]*x509.Certificate{first.Certificate})) {
		t.Error("a bad file has changed the CAs")
	}
	writeFile(t, file, certPEM(second, first))
	eventually("both", func() bool {
		return cas.Pool().Equal(poolOf([]*x509.Certificate{first.Certificate, second.Certificate}))
	})
	eventually("a word of it", func() bool { return strings.Contains(log.String(), "CAs of client certificates changed") })
	if n := strings.Count(log.String(), "the old ones hold"); n != 1 {
		t.Errorf("the error is logged %d times", n)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	eventually("an error", func() bool { return strings.Count(log.String(), "the old ones hold") == 2 })
	if cas.Pool() == nil {
		t.Error("the CAs are gone with their file")
	}
}

// Until there is a good file there are no CAs, and nobody is let in by those of the system.
func TestClientCAsWait(t *testing.T) {
	log := &safeBuffer{}
	for name, want := range map[string]string{
		t.TempDir():               "is a directory",
		tempFile(t, "absent.pem"): "cannot be read",
		writeFile(t, tempFile(t, "empty.pem"), nil):      "the file is empty",
		writeFile(t, tempFile(t, "x.der"), []byte("0x")): "looks like DER or PFX",
	} {
		cas := NewClientCAs(name, -1, zerolog.New(log))
		if cas.Pool() != nil || !strings.Contains(log.String(), want) {
			t.Errorf("%s: %s", want, log)
		}
		var c tls.Config
		if err := AskClients(&c, RequireCertificate, cas); err != nil || c.ClientCAs == nil || c.ClientAuth != tls.RequireAndVerifyClientCert {
			t.Errorf("%s: %v, %+v", want, err, c.ClientAuth)
		}
		if err := cas.Close(); err != nil {
			t.Error(err)
		}
	}
	expired := issue(t, "expired", nil, func(c *x509.Certificate) { c.IsCA, c.NotAfter = true, time.Now().Add(-time.Minute) })
	NewClientCAs(writeFile(t, tempFile(t, "ca.pem"), certPEM(expired)), -1, zerolog.New(log))
	if !strings.Contains(log.String(), "a CA of client certificates has expired") {
		t.Error(log)
	}
}

func TestAskClients(t *testing.T) {
	ca := issue(t, "ca", nil, isCA)
	cas := NewClientCAs(writeFile(t, tempFile(t, "ca.pem"), certPEM(ca)), -1, zerolog.Nop())
	f := func(auth ClientAuth, cas *ClientCAs, want tls.ClientAuthType, verified bool, failure string) {
		t.Helper()
		var c tls.Config
		err := AskClients(&c, auth, cas)
		if failure != "" {
			if err == nil || !strings.Contains(err.Error(), failure) {
				t.Errorf("%s: %v", auth, err)
			}
			return
		}
		if err != nil || c.ClientAuth != want || (c.ClientCAs != nil) != verified {
			t.Errorf("%q: %v, %v", auth, err, c.ClientAuth)
		}
	}
	f("", nil, tls.NoClientCert, false, "")
	f(NoCertificate, cas, tls.NoClientCert, false, "")
	f(RequestCertificate, nil, tls.RequestClientCert, false, "")
	f(RequestCertificate, cas, tls.VerifyClientCertIfGiven, true, "")
	f(RequireCertificate, cas, tls.RequireAndVerifyClientCert, true, "")
	f(RequireCertificate, nil, 0, false, "needs the CAs")
	f("perhaps", cas, 0, false, `unknown client_auth "perhaps"`)
}
