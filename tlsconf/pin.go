package tlsconf

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pin is a digest by which a server's certificate is recognised: of its public key (SubjectPublicKeyInfo), which a renewal
// with the same key keeps, or of the whole certificate. Only the server's own certificate counts, none of its issuers:
// their certificates are public, and anybody can send them along.
type Pin struct {
	certificate bool
	sum         [sha256.Size]byte
}

const (
	keyPin         = "sha256/" // as in RFC 7469 and curl's --pinnedpubkey, with / for the latter's //
	certificatePin = "cert-sha256/"
)

// ParsePin reads sha256/ and the base64 SHA-256 of a public key, or cert-sha256/ and that of a certificate.
func ParsePin(s string) (Pin, error) {
	var p Pin
	encoded, ok := strings.CutPrefix(s, keyPin)
	if !ok {
		encoded, p.certificate = strings.CutPrefix(s, certificatePin)
	}
	sum, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if !ok && !p.certificate || err != nil || len(sum) != len(p.sum) || strings.ContainsAny(encoded, "\r\n") { // base64 skips line ends
		return Pin{}, fmt.Errorf("%q is not a pin (%s or %s and a base64 SHA-256)", s, keyPin, certificatePin)
	}
	copy(p.sum[:], sum)
	return p, nil
}

// KeyPin returns the pin of a certificate's public key.
func KeyPin(c *x509.Certificate) Pin { return Pin{sum: sha256.Sum256(c.RawSubjectPublicKeyInfo)} }

// CertificatePin returns the pin of a certificate as such.
func CertificatePin(c *x509.Certificate) Pin {
	return Pin{certificate: true, sum: sha256.Sum256(c.Raw)}
}

func (p Pin) String() string {
	prefix := keyPin
	if p.certificate {
		prefix = certificatePin
	}
	return prefix + base64.StdEncoding.EncodeToString(p.sum[:])
}

// matches reports whether the pin is that of c. Dates and names do not matter: who holds the key is the one that was meant.
func (p Pin) matches(c *x509.Certificate) bool {
	if p.certificate {
		return p == CertificatePin(c)
	}
	return p == KeyPin(c)
}

var errNoCertificate = errors.New("the server shows no certificate")

func leafOf(cs tls.ConnectionState) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errNoCertificate
	}
	return cs.PeerCertificates[0], nil
}

func checkPins(pins []Pin, cs tls.ConnectionState) error {
	leaf, err := leafOf(cs)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(pins, func(p Pin) bool { return p.matches(leaf) }) {
		return nil
	}
	return fmt.Errorf("the server's certificate has none of the keys pinned: it is that of %q, with %s and %s (if the server has been given a new one, "+
		"set the site's trust: {pin: […]} after it; if not, somebody stands in between)", displayName(leaf), KeyPin(leaf), CertificatePin(leaf))
}
