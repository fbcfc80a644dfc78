package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"io"
)

// Source is where the certificate of a host comes from. All methods may be called from several goroutines.
type Source interface {
	// GetCertificate returns the certificate for a handshake; it has the shape of the field of [tls.Config]. It opens no
	// file and waits for nothing unless the source is one that answers challenges itself. An error ends that handshake only.
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Leaf returns the certificate shown now, with its names and its NotAfter; nil while there is none yet. It must not be changed.
	Leaf() *x509.Certificate
	// Closer ends the watching and renewing and waits for it. The last certificate is served on, for the connections under way.
	io.Closer
}
