package tlsconf

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// ClientAuth is whether the clients of a host are asked for a certificate.
type ClientAuth string

// What can be asked of clients.
const (
	NoCertificate      ClientAuth = "none"
	RequestCertificate ClientAuth = "request" // they may come without; one that they show has to be good
	RequireCertificate ClientAuth = "require" // who has none is turned away in the handshake
)

// AskClients makes a server's configuration ask for certificates and hold them against cas, which may be nil for request
// alone: what clients show is then not verified, and proves nothing but that they have its key. The CAs are those of this
// moment; who wants to follow changes sets ClientCAs before each handshake. An empty auth is none.
func AskClients(c *tls.Config, auth ClientAuth, cas *ClientCAs) error {
	switch {
	case auth == "" || auth == NoCertificate:
		return nil
	case auth == RequestCertificate && cas == nil:
		c.ClientAuth = tls.RequestClientCert
		return nil
	case auth == RequestCertificate:
		c.ClientAuth = tls.VerifyClientCertIfGiven
	case auth == RequireCertificate && cas != nil:
		c.ClientAuth = tls.RequireAndVerifyClientCert
	case auth == RequireCertificate:
		// crypto/tls would hold them against the CAs of the system, from which everybody can get a certificate.
		return fmt.Errorf("client_auth: %s needs the CAs of the clients", auth)
	default:
		return fmt.Errorf("unknown client_auth %q", auth)
	}
	if c.ClientCAs = cas.Pool(); c.ClientCAs == nil {
		c.ClientCAs = x509.NewCertPool() // nobody; nil would be the CAs of the system
	}
	return nil
}

// ClientCAs are the CA certificates in a PEM file that client certificates are held against. When the file changes, the
// new ones hold from the next handshake on; while it is not good, the last good ones do.
type ClientCAs struct {
	file    string
	log     zerolog.Logger
	current atomic.Pointer[x509.CertPool]
	worker  worker
}

var _ io.Closer = (*ClientCAs)(nil)

// NewClientCAs reads the file and watches it every poll; 0 is every 2 s, negative is never. A file that does not load is
// no error here: the log says why, and Pool is nil until it does.
func NewClientCAs(file string, poll time.Duration, log zerolog.Logger) *ClientCAs {
	c := &ClientCAs{file: file, log: log.With().Str("client_ca", file).Logger()}
	w := &caWatch{c: c}
	w.look()
	if poll == 0 {
		poll = filePoll
	}
	if poll > 0 {
		c.worker.start(poll, w.look)
	}
	return c
}

// Pool returns the CAs as they are now, not to be changed; nil while the file has not been good yet.
func (c *ClientCAs) Pool() *x509.CertPool { return c.current.Load() }

// Close ends the watching and waits for it. The CAs stay.
func (c *ClientCAs) Close() error {
	c.worker.stop()
	return nil
}

// caWatch is what the watching goroutine remembers from look to look.
type caWatch struct {
	c      *ClientCAs
	seen   *fileState
	failed string // the last cause that was logged; "" after a success
}

func (w *caWatch) look() {
	now := stateOf(w.c.file) // before it is read: what changes meanwhile is seen at the next look
	if w.failed == "" && w.seen != nil && now.same(*w.seen) {
		return
	}
	first := w.seen == nil
	w.seen = &now
	certs, err := loadCAs(w.c.file)
	if err != nil {
		if w.failed == err.Error() {
			return
		}
		w.failed = err.Error()
		if w.c.Pool() != nil {
			w.c.log.Error().Err(err).Msg("CAs of client certificates not changed, the old ones hold")
		} else {
			w.c.log.Error().Err(err).Msg("no CAs of client certificates: TLS connections for its names are refused until there are")
		}
		return
	}
	w.failed = ""
	pool := poolOf(certs)
	changed := !first && !pool.Equal(w.c.Pool())
	w.c.current.Store(pool)
	if changed {
		w.c.log.Info().Int("certificates", len(certs)).Msg("CAs of client certificates changed")
	}
	for _, cert := range certs {
		if time.Now().After(cert.NotAfter) {
			w.c.log.Warn().Str("subject", displayName(cert)).Time("not_after", cert.NotAfter).Msg("a CA of client certificates has expired: what it issued is refused")
		}
	}
}

func poolOf(certs []*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certs {
		pool.AddCert(c)
	}
	return pool
}

// loadCAs reads CA certificates from a PEM file.
func loadCAs(file string) ([]*x509.Certificate, error) {
	data, err := readFile("CA file", file)
	if err != nil {
		return nil, err
	}
	certs, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("CA file %s: %w", file, err)
	}
	return certs, nil
}
