package tlsconf

import (
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCovers(t *testing.T) {
	leaf := issue(t, "cn-only.contoso.com", nil, func(c *x509.Certificate) {
		c.DNSNames = []string{"mail.contoso.com", "*.branch.contoso.com", "xn--bcher-kva.example", "server01", "w*.contoso.com"}
		c.IPAddresses = []net.IP{net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")}
	}).Certificate
	for name, want := range map[string]bool{
		"mail.contoso.com":        true,
		"MAIL.Contoso.COM":        true,
		"mail.contoso.com.":       true,
		"server01":                true,
		"a.branch.contoso.com":    true,
		"*.branch.contoso.com":    true,
		"branch.contoso.com":      false,
		"a.b.branch.contoso.com":  false,
		".branch.contoso.com":     false,
		"*.contoso.com":           false,
		"web.contoso.com":         false, // a star must be the whole label
		"cn-only.contoso.com":     false,
		"bücher.example":          true,
		"BÜCHER.example":          true,
		"xn--bcher-kva.example":   true,
		"buecher.example":         false,
		"192.0.2.1":               true,
		"192.0.2.2":               false,
		"2001:db8::1":             true,
		"2001:DB8:0::1":           true,
		"mail.contoso.com\x00.ru": false,
		"":                        false,
		".":                       false,
	} {
		if got := Covers(leaf, name); got != want {
			t.Errorf("Covers(%q) = %v, want %v", name, got, want)
		}
	}
	if Covers(nil, "mail.contoso.com") {
		t.Error("no certificate covers a name")
	}
}

// what is wrong with a chain is said at load.
func TestInspect(t *testing.T) {
	root := issue(t, "Contoso Root", nil, isCA)
	intermediate := issue(t, "Contoso Issuing", root, isCA)
	now := time.Now()
	f := func(name string, chain []*issued, names []string, at time.Time, want ...string) {
		t.Helper()
		var certs []*x509.Certificate
		for _, c := range chain {
			certs = append(certs, c.Certificate)
		}
		got := Inspect(certs, names, at)
		if len(got) != len(want) || !slices.EqualFunc(got, want, strings.Contains) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	leaf := issue(t, "mail.contoso.com", intermediate, dns("mail.contoso.com", "autodiscover.contoso.com"))
	self := issue(t, "mail.contoso.com", nil, dns("mail.contoso.com"))
	full := []*issued{leaf, intermediate, root}
	f("good", full, []string{"mail.contoso.com", "AUTODISCOVER.contoso.com"}, now)
	f("self-signed", []*issued{self}, []string{"mail.contoso.com"}, now)
	f("expired", full, nil, now.AddDate(1, 0, 0), "the certificate expired on "+leaf.NotAfter.UTC().Format(time.DateOnly), `the intermediate certificate "Contoso Issuing" expired`, `the root certificate "Contoso Root" expired`)
	f("not yet", []*issued{self}, nil, now.AddDate(-1, 0, 0), "is not valid before")
	f("no SAN", []*issued{issue(t, "mail.contoso.com", nil, nil)}, []string{"mail.contoso.com"}, now, `no subject alternative name, and clients do not look at the common name "mail.contoso.com"`)
	f("names", full, []string{"mail.contoso.com", "legacy.contoso.com"}, now, "does not cover legacy.contoso.com, only mail.contoso.com, autodiscover.contoso.com")
	f("no intermediate", []*issued{leaf}, nil, now, `its issuer "Contoso Issuing" is no root known here: intermediate certificates missing, or a private CA`)
	f("no second intermediate", full[:2], nil, now, `the chain ends at the intermediate certificate "Contoso Issuing", and its issuer "Contoso Root" is no root known here`)
}
