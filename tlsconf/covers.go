package tlsconf

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// Covers reports whether leaf is good for the host name: an equal subject alternative name, or a wildcard that stands for
// exactly one label (RFC 9525 section 6.3). Letter case and a trailing dot do not matter; an internationalised name may be
// given in either form; an IP address needs an address SAN. The common name does not count. A nil leaf covers nothing.
func Covers(leaf *x509.Certificate, name string) bool {
	if leaf == nil {
		return false
	}
	name = strings.TrimSuffix(name, ".")
	if _, err := netip.ParseAddr(name); err != nil {
		if ascii, err := idna.Lookup.ToASCII(name); err == nil {
			name = ascii
		}
	}
	return name != "" && leaf.VerifyHostname(name) == nil
}

// Inspect returns what clients will dislike about a certificate, one sentence each, worst first: not valid at the given
// time, no SAN, names it does not cover, an issuer that is missing. chain is the leaf and its intermediates in order,
// with the root behind them where it is at hand; names are the hosts that show it..
func Inspect(chain []*x509.Certificate, names []string, now time.Time) []string {
	var out []string
	warn := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for i, c := range chain {
		what := "the certificate"
		switch {
		case i > 0 && selfIssued(c):
			what = fmt.Sprintf("the root certificate %q", displayName(c))
		case i > 0:
			what = fmt.Sprintf("the intermediate certificate %q", displayName(c))
		}
		switch {
		case now.After(c.NotAfter):
			warn("%s expired on %s", what, c.NotAfter.UTC().Format(time.DateOnly))
		case now.Before(c.NotBefore):
			warn("%s is not valid before %s", what, c.NotBefore.UTC().Format(time.DateTime))
		}
	}
	leaf := chain[0]
	if len(leaf.DNSNames) == 0 && len(leaf.IPAddresses) == 0 {
		warn("the certificate has no subject alternative name, and clients do not look at the common name %q", leaf.Subject.CommonName)
	} else {
		for _, name := range names {
			if !Covers(leaf, name) {
				warn("the certificate does not cover %s, only %s", name, strings.Join(sanNames(leaf), ", "))
			}
		}
	}
	// Issued by a root directly is fine if clients have that root; mostly it is a forgotten intermediate.
	if last := chain[len(chain)-1]; !selfIssued(last) && !verifies(chain, nil, now) {
		end := "the certificate itself"
		if len(chain) > 1 {
			end = fmt.Sprintf("the intermediate certificate %q", displayName(last))
		}
		warn("the chain ends at %s, and its issuer %q is no root known here: intermediate certificates missing, or a private CA (its root in the file would tell)?", end, issuerName(last))
	}
	return out
}

func selfIssued(c *x509.Certificate) bool { return string(c.RawSubject) == string(c.RawIssuer) }

// sanNames are the names a certificate is for, DNS names first.
func sanNames(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

func displayName(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return c.Subject.CommonName
	}
	return c.Subject.String()
}

func issuerName(c *x509.Certificate) string {
	if c.Issuer.CommonName != "" {
		return c.Issuer.CommonName
	}
	return c.Issuer.String()
}
