package proxy

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// asking returns the configuration for one handshake in which the CAs of clients are
// those of now. A session begins with the check of a certificate; crypto/tls resumes
// it only while the certificate has not expired and its CA is still among them.
// Tickets stay those of base: a clone's own keys would go their own way.
func asking(base *tls.Config, cas func() *x509.CertPool) *tls.Config {
	conf := base.Clone()
	if conf.ClientCAs = cas(); conf.ClientCAs == nil {
		conf.ClientCAs = x509.NewCertPool() // nobody; nil would be the CAs of the system
	}
	if conf.WrapSession == nil {
		conf.WrapSession = base.EncryptTicket
	}
	if conf.UnwrapSession == nil {
		conf.UnwrapSession = base.DecryptTicket
	}
	return conf
}

// clientCertificateFields returns the header lines that tell a backend which
// certificate the client has shown (RFC 9440): the certificate, and the chain by which
// it was verified, as byte sequences of RFC 9651 section 3.3.5. The root is among
// them, since nothing says that the backend has it. Nil if there is none, or none that
// was verified.
func clientCertificateFields(cs tls.ConnectionState) []byte {
	if len(cs.VerifiedChains) == 0 {
		return nil
	}
	chain := cs.VerifiedChains[0]
	sequence := func(dst []byte, c *x509.Certificate) []byte {
		dst = append(dst, ':')
		dst = base64.StdEncoding.AppendEncode(dst, c.Raw)
		return append(dst, ':')
	}
	out := append(sequence([]byte("Client-Cert: "), chain[0]), "\r\n"...)
	for i, c := range chain[1:] {
		if i == 0 {
			out = append(out, "Client-Cert-Chain: "...)
		} else {
			out = append(out, ", "...)
		}
		out = sequence(out, c)
	}
	if len(chain) > 1 {
		out = append(out, "\r\n"...)
	}
	return out
}

// fingerprint is how the log names a client's certificate: by what administrators can
// look up, and not by a name that may be a mailbox address.
func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// clientCertificateHint names what stands behind a handshake that ends for want of a
// good client certificate; "" if that is not why. With TLS 1.3 the client has finished
// its part by then, and takes the refusal for one of its first request.
func clientCertificateHint(err error) string {
	var failed *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	switch {
	case strings.Contains(err.Error(), "client didn't provide a certificate"):
		return " (client_auth: require, and the client has none that a CA in client_ca has issued, or its user did not choose it)"
	case !errors.As(err, &failed):
		return ""
	case errors.As(failed.Err, &unknown):
		return " (no CA in client_ca has issued the client's certificate; an intermediate between them has to be sent by the client, or stand in client_ca)"
	case errors.As(failed.Err, &invalid) && invalid.Reason == x509.Expired:
		return " (the client's certificate, or one of its issuers', has expired or is not valid yet)"
	case errors.As(failed.Err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return " (the client's certificate is not for client authentication: its extended key usage lacks it)"
	}
	return " (the client's certificate is not accepted)"
}
