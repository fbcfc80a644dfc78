package lab

import (
	"crypto"
	"crypto/hmac"
	"crypto/md5"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
)

// Extended Protection: a login that holds only on the TLS connection it was made on. The client puts a hash of the certificate it saw
// into its token, the server compares that with its own certificate. A bridge with another certificate in between shows.

// ExtendedProtection is what a server asks of the tokens of Windows authentication, in the words of IIS: extendedProtection
// tokenChecking None, Allow and Require.
type ExtendedProtection string

const (
	ProtectionOff     ExtendedProtection = "off"     // bindings are not looked at
	ProtectionAllow   ExtendedProtection = "allow"   // a token without a binding will do, one with a wrong binding will not
	ProtectionRequire ExtendedProtection = "require" // only the right binding will do
)

func (p ExtendedProtection) valid() bool {
	return p.off() || p == ProtectionAllow || p == ProtectionRequire
}

func (p ExtendedProtection) off() bool { return p == "" || p == ProtectionOff }

var errNoBindings = errors.New("token without channel bindings, which Extended Protection requires")

// check holds the binding of a proven token against the server's own. Nil or all zeros is no binding ([MS-NLMP] 2.2.2.1).
func (p ExtendedProtection) check(got, own []byte) error {
	none := len(got) == 0 || hmac.Equal(got, make([]byte, len(got)))
	switch {
	case p.off() || none && p == ProtectionAllow:
		return nil
	case none:
		return errNoBindings
	case !hmac.Equal(got, own):
		return errors.New("channel bindings of another certificate than this server's: 0xC000035B, STATUS_BAD_BINDINGS")
	}
	return nil
}

// endpointData is what a GSSAPI client gives as application data of its channel bindings on a TLS connection with this certificate:
// the tls-server-end-point of RFC 5929 section 4.
func endpointData(cert *x509.Certificate) ([]byte, error) {
	hash, err := endpointHash(cert.SignatureAlgorithm)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(cert.Raw)
	return append([]byte("tls-server-end-point:"), h.Sum(nil)...), nil
}

// ntlmBinding is what a token of NTLM holds of that: the MD5 of a gss_channel_bindings_struct (RFC 2744 section 3.11, [MS-NLMP]
// 2.2.2.1) without addresses, laid out as in RFC 4121 section 4.1.1.2.
func ntlmBinding(data []byte) []byte {
	bindings := make([]byte, 16) // types and lengths of two absent addresses
	bindings = binary.LittleEndian.AppendUint32(bindings, uint32(len(data)))
	sum := md5.Sum(append(bindings, data...))
	return sum[:]
}

// endpointHash is the hash function of RFC 5929 section 4.1: that of the certificate's signature, but SHA-256 for MD5 and SHA-1.
func endpointHash(alg x509.SignatureAlgorithm) (crypto.Hash, error) {
	switch alg {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256, x509.DSAWithSHA256:
		return crypto.SHA256, nil
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		return crypto.SHA384, nil
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		return crypto.SHA512, nil
	}
	return 0, fmt.Errorf("tls-server-end-point is undefined for certificates signed with %s", alg)
}
