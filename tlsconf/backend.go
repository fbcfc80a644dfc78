package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// BackendOptions are the settings of [BackendConfig]. At most one of Roots, Pins, FirstUse and Untrusted is set; without
// any, certificates are verified against the CAs of the system.
type BackendOptions struct {
	// ServerName is sent as SNI (unless it is an IP address, which SNI does not know) and looked for in the certificate. It
	// need not be the name that is dialed.
	ServerName string

	Roots     *x509.CertPool // verify against these CAs, see LoadRoots
	Pins      []Pin          // accept these keys or certificates and no others
	FirstUse  *FirstUse      // accept the key that is remembered; remember the first one
	Untrusted bool           // accept everything: encrypted, not authenticated

	// ClientCertificate is shown to servers that ask for a certificate, in the handshake or by renegotiation; nil: they get
	// the answer that there is none.
	ClientCertificate Source

	// MinVersion and MaxVersion are versions of crypto/tls; 0 is TLS 1.2 and the highest there is.
	MinVersion, MaxVersion uint16
	// CipherSuites are those offered up to TLS 1.2. Nil is what crypto/tls thinks safe and, with a MinVersion below TLS 1.2,
	// what servers of that time have besides: RSA key exchange and 3DES.
	CipherSuites []uint16
}

// BackendConfig returns the client's side of TLS towards one backend. It keeps the sessions to be resumed, so it is made
// once for each backend and not shared between two.
func BackendConfig(o BackendOptions) (*tls.Config, error) {
	var ways []string
	if o.Roots != nil {
		ways = append(ways, "CA")
	}
	if len(o.Pins) > 0 {
		ways = append(ways, "pins")
	}
	if o.FirstUse != nil {
		ways = append(ways, "first use")
	}
	if o.Untrusted {
		ways = append(ways, "untrusted")
	}
	switch {
	case len(ways) > 1:
		return nil, fmt.Errorf("trust by %s: only one way is possible", strings.Join(ways, " and "))
	case o.ServerName == "":
		return nil, errors.New("no server name")
	}
	c := &tls.Config{
		ServerName: o.ServerName, RootCAs: o.Roots,
		MinVersion: o.MinVersion, MaxVersion: o.MaxVersion, CipherSuites: o.CipherSuites,
		NextProtos: []string{"http/1.1"}, // NTLM and Negotiate have no place in HTTP/2
		// Resumption pays for the connection that every client has to itself.
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
		// No post-quantum share towards the inside: it costs time, and old servers stumble over the larger hello.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
		// IIS asks for client certificates by renegotiation (up to TLS 1.2) once it knows the virtual directory. If there is
		// none to show, an empty list is the answer that "accept client certificates" is content with. crypto/tls insists
		// that the server shows the same certificate again, so what was trusted stays trusted.
		Renegotiation:               tls.RenegotiateOnceAsClient,
		DynamicRecordSizingDisabled: true,
	}
	if c.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS12
	}
	if c.MaxVersion != 0 && c.MaxVersion < c.MinVersion {
		return nil, fmt.Errorf("no TLS version is both at least %s and at most %s", tls.VersionName(c.MinVersion), tls.VersionName(c.MaxVersion))
	}
	if c.CipherSuites == nil && c.MinVersion < tls.VersionTLS12 {
		c.CipherSuites = oldSuites()
	}
	if src := o.ClientCertificate; src != nil {
		// It is shown whatever issuers the server names: it was configured for this very site.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return src.GetCertificate(nil) }
		// A resumed session would go on as whoever it began with, also once the certificate has been replaced.
		c.ClientSessionCache = nil
	}
	// VerifyConnection, not VerifyPeerCertificate: that one is not asked when a session is resumed, and a session must not
	// outlive the trust in the key that it began with.
	switch {
	case o.Untrusted:
		c.InsecureSkipVerify = true
	case len(o.Pins) > 0:
		c.InsecureSkipVerify = true // the pin is the whole of the verification
		c.VerifyConnection = func(cs tls.ConnectionState) error { return checkPins(o.Pins, cs) }
	case o.FirstUse != nil:
		c.InsecureSkipVerify = true
		c.VerifyConnection = o.FirstUse.check
	}
	return c, nil
}

// oldSuites are the suites for servers that know nothing newer than TLS 1.0 or 1.1: crypto/tls's own, and those it has
// taken off its list for want of forward secrecy (RSA key exchange) or of block size (3DES), the only ones that Windows
// Server 2003 shares with us. RC4 is not among them; it has to be asked for by name.
func oldSuites() []uint16 {
	var suites []uint16
	for _, s := range tls.CipherSuites() {
		suites = append(suites, s.ID)
	}
	return append(suites,
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_CBC_SHA,
		tls.TLS_RSA_WITH_AES_256_CBC_SHA,
		tls.TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA,
		tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA,
	)
}

// LoadRoots reads CA certificates from a PEM file. The error is one line that names the file. A certificate that cannot be
// parsed is an error: left out in silence, it would be missed later and elsewhere.
func LoadRoots(file string) (*x509.CertPool, error) {
	certs, err := loadCAs(file)
	if err != nil {
		return nil, err
	}
	return poolOf(certs), nil
}

// ParseVersion reads a version as it is written in a configuration: 1.0, 1.1, 1.2 or 1.3. Empty is 0.
func ParseVersion(s string) (uint16, error) {
	switch s {
	case "":
		return 0, nil
	case "1.0":
		return tls.VersionTLS10, nil
	case "1.1":
		return tls.VersionTLS11, nil
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("unknown TLS version %q, there are 1.0, 1.1, 1.2 and 1.3", s)
}

// ParseCipherSuites reads names of suites of TLS 1.2 and before, as IANA has them. Those that crypto/tls calls insecure
// are among them. No names give nil.
func ParseCipherSuites(names []string) ([]uint16, error) {
	var ids []uint16
next:
	for _, name := range names {
		for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
			if s.Name == name && s.SupportedVersions[0] != tls.VersionTLS13 {
				ids = append(ids, s.ID)
				continue next
			}
		}
		return nil, fmt.Errorf("%q is no cipher suite that can be chosen here", name)
	}
	return ids, nil
}
