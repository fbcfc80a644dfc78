package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

const (
	autocertPoll  = time.Minute     // how often it is looked whether there is a newer certificate
	autocertAgain = 5 * time.Minute // after a failed order
)

// AutocertOptions are the settings of [NewAutocert].
type AutocertOptions struct {
	Email     string         // whom the issuer may write to; "" is nobody
	Directory string         // URL; "" is [LetsEncrypt]
	Roots     *x509.CertPool // who vouches for the directory; nil is the system's CAs
	EABKeyID  string         // external account binding (RFC 8555 section 7.3.4); "" is none
	EABKey    []byte
	// Dir is where account and certificates are kept (0600, the directory 0700); it is not to be shared with another node.
	Dir  string
	Poll time.Duration // how often it is looked whether there is a newer certificate; 0 is a minute
	Log  zerolog.Logger
}

// Autocert obtains and renews certificates with autocert of golang.org/x/crypto: one node, one issuer, HTTP-01 and
// TLS-ALPN-01, one certificate for each name. It is closed by closing its last source.
type Autocert struct {
	o       AutocertOptions
	manager *autocert.Manager
	http    http.Handler
	gate    *gate
	ctx     context.Context

	mu     sync.Mutex
	names  map[string]*autocertName
	closed bool
}

var _ http.Handler = (*Autocert)(nil)

// NewAutocert returns a client without hosts. Nothing is asked of the issuer before [Autocert.Start].
func NewAutocert(o AutocertOptions) *Autocert {
	if o.Directory == "" {
		o.Directory = LetsEncrypt
	}
	if o.Poll <= 0 {
		o.Poll = autocertPoll
	}
	a := &Autocert{o: o, names: map[string]*autocertName{}}
	ctx, cancel := context.WithCancel(context.Background())
	a.ctx = ctx
	a.gate = &gate{ctx: ctx, close: cancel, next: &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: acmeHTTPTime, ResponseHeaderTimeout: acmeHTTPTime,
		IdleConnTimeout: time.Minute, TLSClientConfig: &tls.Config{RootCAs: o.Roots, MinVersion: tls.VersionTLS12},
	}}
	a.manager = &autocert.Manager{
		Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(o.Dir), Email: o.Email, HostPolicy: a.allowed,
		Client: &acme.Client{DirectoryURL: o.Directory, UserAgent: "autodgate", HTTPClient: &http.Client{Transport: a.gate, Timeout: acmeHTTPTime}},
	}
	if o.EABKeyID != "" {
		a.manager.ExternalAccountBinding = &acme.ExternalAccountBinding{KID: o.EABKeyID, Key: o.EABKey}
	}
	a.http = a.manager.HTTPHandler(http.NotFoundHandler())
	return a
}

// gate is the way to the issuer. autocert has no end: its timers would go on ordering after a reload has put another client
// in its place.
type gate struct {
	ctx   context.Context
	close context.CancelFunc
	next  *http.Transport
}

// RoundTrip implements [http.RoundTripper].
func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.ctx.Err() != nil {
		return nil, ErrACMEClosed
	}
	return g.next.RoundTrip(r)
}

// allowed is the list of names that may be ordered.
func (a *Autocert) allowed(_ context.Context, name string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.names[name] == nil {
		return fmt.Errorf("%s is not a name of a host", name)
	}
	return nil
}

// Start begins to order what is missing, for the hosts there are: call it when validations of their names can be answered,
// and again after more have come.
func (a *Autocert) Start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.names {
		c.begin()
	}
}

// Closed tells whether the last source was closed.
func (a *Autocert) Closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// Serves tells whether the name is one of a host.
func (a *Autocert) Serves(name string) bool { return a.allowed(context.Background(), name) == nil }

// ServeHTTP answers validations by HTTP-01; everything else is 404.
func (a *Autocert) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := requestHost(r)
	if !a.Serves(name) {
		http.NotFound(w, r)
		return
	}
	a.o.Log.Info().Str("name", name).Str("challenge", "http-01").Msg("validation asked for")
	// autocert holds the name with its port against the list.
	r = r.Clone(r.Context())
	r.Host = name
	a.http.ServeHTTP(w, r)
}

// autocertName is one name with its certificate.
type autocertName struct {
	name    string
	handles int // guarded by Autocert.mu
	current atomic.Pointer[tls.Certificate]
	ctx     context.Context
	cancel  context.CancelFunc
	start   chan struct{}
	begin   func() // closes start
}

// hello asks autocert for an RSA key, since it offers no algorithm for ECDSA: Exchange has to be able to show the same
// certificate for Extended Protection, and every client can use it.
func (c *autocertName) hello() *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{ServerName: c.name, SignatureSchemes: []tls.SignatureScheme{tls.PSSWithSHA256, tls.PKCS1WithSHA256}}
}

// Source returns the source of a host's certificates: one for its name, one for each alias. What is stored is there at once.
// The error is [ErrACMEClosed].
func (a *Autocert) Source(name string, aliases []string) (*AutocertSource, error) {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, ErrACMEClosed
	}
	s := &AutocertSource{a: a}
	var fresh []*autocertName
	for _, n := range append([]string{name}, aliases...) {
		n = acmeName(n)
		if slices.ContainsFunc(s.names, func(o *autocertName) bool { return o.name == n }) {
			continue
		}
		c := a.names[n]
		if c == nil {
			c = &autocertName{name: n, start: make(chan struct{})}
			c.begin = sync.OnceFunc(func() { close(c.start) })
			a.names[n] = c
			c.ctx, c.cancel = context.WithCancel(a.ctx)
			fresh = append(fresh, c)
		}
		c.handles++
		s.names = append(s.names, c)
	}
	a.mu.Unlock()
	for _, c := range fresh {
		// One that autocert would not take it would order anew, here and now: for minutes, before anybody can answer.
		if data, err := a.manager.Cache.Get(c.ctx, c.name+"+rsa"); err == nil && usable(data, c.name, time.Now()) {
			if cert, err := a.manager.GetCertificate(c.hello()); err == nil {
				c.current.Store(cert)
			}
		}
		go a.keep(c)
	}
	return s, nil
}

// usable tells whether autocert takes what it has stored under a name.
func usable(data []byte, name string, now time.Time) bool {
	pair, err := tls.X509KeyPair(data, data)
	if err != nil {
		return false
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	return err == nil && leaf.PublicKeyAlgorithm == x509.RSA && leaf.VerifyHostname(name) == nil && !now.Before(leaf.NotBefore) && !now.After(leaf.NotAfter)
}

// keep holds the current certificate of a name. autocert renews it by itself.
func (a *Autocert) keep(c *autocertName) {
	ctx, log := c.ctx, a.o.Log.With().Str("host", c.name).Logger()
	select {
	case <-c.start:
	case <-ctx.Done():
		return
	}
	for {
		if c.current.Load() == nil {
			log.Info().Strs("names", []string{c.name}).Msg("ordering a certificate")
		}
		cert, err := a.manager.GetCertificate(c.hello())
		wait := a.o.Poll
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			wait = autocertAgain
			log.Error().Err(err).Dur("retry_in_ms", wait).Msg("no certificate from the issuer")
		default:
			if old := c.current.Swap(cert); old == nil || !old.Leaf.Equal(cert.Leaf) {
				log.Info().Time("not_after", cert.Leaf.NotAfter).Strs("names", sanNames(cert.Leaf)).Msg("certificate changed")
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// AutocertSource is the certificates of one host.
type AutocertSource struct {
	a     *Autocert
	names []*autocertName // the host's own first
	once  sync.Once
}

var _ Source = (*AutocertSource)(nil)

// GetCertificate implements [Source].
func (s *AutocertSource) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, err := s.named(hello)
	if err != nil {
		return nil, err
	}
	if cert := c.current.Load(); cert != nil {
		return cert, nil
	}
	return nil, fmt.Errorf("there is no certificate for %s yet", c.name)
}

func (s *AutocertSource) named(hello *tls.ClientHelloInfo) (*autocertName, error) {
	name := acmeName(hello.ServerName)
	if name == "" || net.ParseIP(name) != nil {
		return s.names[0], nil
	}
	for _, c := range s.names {
		if c.name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%s is not a name of host %s", name, s.names[0].name)
}

// Leaf implements [Source]: the certificate of the host's own name.
func (s *AutocertSource) Leaf() *x509.Certificate {
	if cert := s.names[0].current.Load(); cert != nil {
		return cert.Leaf
	}
	return nil
}

// ValidationConfig returns the configuration for validations by TLS-ALPN-01; see [ACMESource.ValidationConfig].
func (s *AutocertSource) ValidationConfig() *tls.Config {
	return validationConfig(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := s.named(hello)
		if err != nil {
			return nil, err
		}
		if !slices.Equal(hello.SupportedProtos, []string{acme.ALPNProto}) {
			return nil, errors.New("no validation")
		}
		s.a.o.Log.Info().Str("name", c.name).Str("challenge", "tls-alpn-01").Msg("validation asked for")
		return s.a.manager.GetCertificate(hello)
	})
}

// Close implements [Source]. Closing the last source closes the client; an order under way may go on for a moment, and its
// outcome is not used.
func (s *AutocertSource) Close() error {
	s.once.Do(func() {
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		for _, c := range s.names {
			if c.handles--; c.handles == 0 {
				c.cancel()
				delete(s.a.names, c.name)
			}
		}
		if len(s.a.names) == 0 {
			s.a.closed = true
			s.a.gate.close()
			s.a.gate.next.CloseIdleConnections()
		}
	})
	return nil
}
