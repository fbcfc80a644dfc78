package tlsconf

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"github.com/rs/zerolog"
)

// LetsEncrypt is the directory of the issuer that is asked when no other is named.
const LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

const (
	acmeLoadTime   = 5 * time.Second  // to read a stored certificate, and to ask for its OCSP staple
	acmeLoadAgain  = 10 * time.Second // until a storage that failed is asked again
	acmeRenewCheck = 10 * time.Minute
)

// ErrACMEClosed is the error of [ACME.Source] after the last of its sources was closed.
var ErrACMEClosed = errors.New("the ACME client is closed")

// ACMEOptions are the settings of [NewACME].
type ACMEOptions struct {
	Email   string       // whom the issuers may write to; "" is nobody
	Issuers []ACMEIssuer // asked in this order until one gives a certificate; none is Let's Encrypt
	// Challenges are those that may be used: http-01, tls-alpn-01 and, if there is DNS, dns-01. None is the first two.
	Challenges []string
	DNS        DNSRecords // writes the records of dns-01
	OnDemand   bool       // order at the first hello for a host, not at [ACME.Start]
	// Storage holds the accounts, certificates, keys, locks and challenges under way. Nodes that share it share them all, and
	// answer each other's validations.
	Storage    certmagic.Storage
	RenewCheck time.Duration // how often it is looked whether a certificate is due; 0 is 10 min
	Log        zerolog.Logger
}

// ACMEIssuer is one issuer (RFC 8555).
type ACMEIssuer struct {
	Directory string         // URL; "" is [LetsEncrypt]
	Roots     *x509.CertPool // who vouches for the directory; nil is the system's CAs
	// EAB binds the account to one outside ACME (RFC 8555 section 7.3.4); nil is none. The key is base64url without padding.
	EAB *acme.EAB
}

// ACME obtains and renews the certificates of hosts: one account at each issuer, one storage. certmagic keeps the
// certificates (locks between nodes, renewal by ARI (RFC 9773) or age, OCSP staples, waiting after failures); the orders
// are placed here, for all names of a host at once, and the validations answered on the ports that are there already. No
// listener is ever opened.
//
// It is closed by closing its last source.
type ACME struct {
	o          ACMEOptions
	log        zerolog.Logger
	issuers    []*acmeIssuer
	challenges challenges
	ctx        context.Context
	cancel     context.CancelFunc

	mu     sync.Mutex
	hosts  map[string]*acmeHost // by their names, joined
	closed bool
}

var _ http.Handler = (*ACME)(nil)

// NewACME returns an ACME client without hosts. Nothing is asked of anybody before [ACME.Start].
func NewACME(o ACMEOptions) (*ACME, error) {
	if o.Storage == nil {
		return nil, errors.New("ACME needs a storage")
	}
	if len(o.Issuers) == 0 {
		o.Issuers = []ACMEIssuer{{}}
	}
	if len(o.Challenges) == 0 {
		o.Challenges = []string{acme.ChallengeTypeTLSALPN01, acme.ChallengeTypeHTTP01}
	}
	if o.RenewCheck <= 0 {
		o.RenewCheck = acmeRenewCheck
	}
	a := &ACME{o: o, log: o.Log, hosts: map[string]*acmeHost{}}
	a.challenges = challenges{storage: o.Storage, active: map[string]acme.Challenge{}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	solvers := map[string]acmez.Solver{}
	for _, c := range o.Challenges {
		switch c {
		case acme.ChallengeTypeHTTP01, acme.ChallengeTypeTLSALPN01:
			solvers[c] = &a.challenges
		case acme.ChallengeTypeDNS01:
			if o.DNS == nil {
				return nil, errors.New("dns-01 needs somebody who writes DNS records")
			}
			solvers[c] = dnsSolver{o.DNS}
		default:
			return nil, fmt.Errorf("unknown challenge %q", c)
		}
	}
	for _, io := range o.Issuers {
		i, err := newACMEIssuer(io, o, solvers)
		if err != nil {
			return nil, err
		}
		a.issuers = append(a.issuers, i)
	}
	return a, nil
}

// Source returns the source of a host's certificate, which has the host's name and its aliases. What is stored of it is
// loaded at once, in the background; [ACME.Loaded] waits for that. The same names again give another handle of the same
// source. The error is [ErrACMEClosed].
func (a *ACME) Source(name string, aliases []string) (*ACMESource, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, ErrACMEClosed
	}
	names := []string{acmeName(name)}
	for _, alias := range aliases {
		if n := acmeName(alias); !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slices.Sort(names[1:])
	key := strings.Join(names, " ")
	h := a.hosts[key]
	if h == nil {
		h = a.newHost(names)
		a.hosts[key] = h
	}
	h.handles++
	return &ACMESource{acmeHost: h, key: key}, nil
}

// acmeName is a name as it stands in certificates and hellos.
func acmeName(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// Loaded waits until stored certificates have been read, or until ctx ends.
func (a *ACME) Loaded(ctx context.Context) {
	a.mu.Lock()
	hosts := make([]*acmeHost, 0, len(a.hosts))
	for _, h := range a.hosts {
		hosts = append(hosts, h)
	}
	a.mu.Unlock()
	for _, h := range hosts {
		select {
		case <-h.loaded:
		case <-ctx.Done():
			return
		}
	}
}

// Start begins to order what is missing and to renew what is due, for the hosts there are: call it when validations of their
// names can be answered, and again after more have come.
func (a *ACME) Start() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.hosts {
		h.begin()
	}
}

// Closed tells whether the last source was closed.
func (a *ACME) Closed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.closed
}

// Serves tells whether the name is one of a host.
func (a *ACME) Serves(name string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, h := range a.hosts {
		if slices.Contains(h.names, name) {
			return true
		}
	}
	return false
}

// release gives up a handle of a host.
func (a *ACME) release(key string) {
	a.mu.Lock()
	h := a.hosts[key]
	if h.handles--; h.handles > 0 {
		a.mu.Unlock()
		return
	}
	delete(a.hosts, key)
	last := len(a.hosts) == 0
	if last {
		a.closed = true
	}
	a.mu.Unlock()
	h.stop()
	if last {
		a.cancel()
	}
}

// acmeHost is the one certificate of a host. Its certmagic cache holds nothing else, so that a certificate that has an alias
// of this host from former times cannot come up here.
type acmeHost struct {
	a     *ACME
	names []string // the host's own first
	cfg   *certmagic.Config
	cache *certmagic.Cache
	log   zerolog.Logger

	loaded chan struct{}
	start  chan struct{}
	begin  func() // closes start
	cancel context.CancelFunc
	done   chan struct{}

	handles int // guarded by ACME.mu

	mu   sync.Mutex
	keys []crypto.Signer // made lately, for requests under way
}

func (a *ACME) newHost(names []string) *acmeHost {
	h := &acmeHost{a: a, names: names, loaded: make(chan struct{}), done: make(chan struct{}), log: a.log.With().Str("host", names[0]).Logger()}
	h.start = make(chan struct{})
	h.begin = sync.OnceFunc(func() { close(h.start) })
	logger := zapLogger(h.log)
	h.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return h.cfg, nil },
		RenewCheckInterval: a.o.RenewCheck,
		Logger:             logger,
	})
	cfg := certmagic.Config{
		Storage: oneCertificate{a.o.Storage, names}, Logger: logger,
		// A certificate that is shown by Exchange as well, for Extended Protection, must have a key that Exchange takes.
		KeySource: h,
		// All names are those of one certificate, which is kept under the first.
		SubjectTransformer: func(context.Context, string) string { return names[0] },
		OnEvent:            h.event,
	}
	for _, i := range a.issuers {
		cfg.Issuers = append(cfg.Issuers, &hostIssuer{i, h})
	}
	if a.o.OnDemand {
		cfg.OnDemand = &certmagic.OnDemandConfig{DecisionFunc: func(_ context.Context, name string) error {
			if !slices.Contains(names, name) {
				return fmt.Errorf("%s is not a name of host %s", name, names[0])
			}
			return nil
		}}
	}
	h.cfg = certmagic.New(h.cache, cfg)
	ctx, cancel := context.WithCancel(a.ctx)
	h.cancel = cancel
	go func() {
		defer close(h.done)
		h.manage(ctx)
	}()
	return h
}

// stop ends the orders and renewals of a host.
func (h *acmeHost) stop() {
	h.cancel()
	<-h.done
	h.cache.Stop()
}

// GenerateKey makes a key for a certificate, and remembers it for the request that follows: certmagic asks for one name, and
// the request for all is signed here.
func (h *acmeHost) GenerateKey() (crypto.PrivateKey, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.keys = append(h.keys, key); len(h.keys) > 4 {
		h.keys = h.keys[1:]
	}
	return key, nil
}

// request is a certificate request for all names of the host, with the key of one that certmagic made.
func (h *acmeHost) request(csr *x509.CertificateRequest) (*x509.CertificateRequest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, key := range h.keys {
		if pub, ok := csr.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(key.Public()) {
			return acmez.NewCSR(key, h.names)
		}
	}
	return nil, errors.New("the request's key is not known")
}

// event logs what certmagic does.
func (h *acmeHost) event(_ context.Context, event string, data map[string]any) error {
	if event == "cert_obtaining" {
		renewal, _ := data["renewal"].(bool)
		h.log.Info().Strs("names", h.names).Bool("renewal", renewal).Msg("ordering a certificate")
	}
	return nil
}

// manage loads what is stored, and orders what is missing or due. From then on certmagic looks after it.
func (h *acmeHost) manage(ctx context.Context) {
	cert, err := h.load(ctx)
	close(h.loaded)
	select {
	case <-h.start:
	case <-ctx.Done():
		return
	}
	for err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.log.Error().Err(err).Dur("retry_in_ms", acmeLoadAgain).Msg("stored certificate not read")
		select {
		case <-time.After(acmeLoadAgain):
		case <-ctx.Done():
			return
		}
		cert, err = h.load(ctx)
	}
	if h.a.o.OnDemand {
		return // a hello begins it
	}
	name := h.names[0]
	switch {
	case err != nil:
		err = h.cfg.ObtainCertAsync(ctx, name)
	case !h.covers(cert.Leaf):
		h.log.Info().Strs("names", h.names).Msg("the stored certificate has other names")
		err = h.cfg.RenewCertAsync(ctx, name, true)
	case cert.NeedsRenewal(h.cfg):
		err = h.cfg.RenewCertAsync(ctx, name, false)
	default:
		return
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		h.log.Error().Err(err).Msg("no certificate, and no further attempt: reload or restart to begin anew")
		return
	}
	for {
		now, err := h.load(ctx)
		if err == nil {
			if !cert.Empty() && cert.Hash() != now.Hash() {
				h.cache.Remove([]string{cert.Hash()})
			}
			return
		}
		if ctx.Err() != nil {
			return
		}
		h.log.Error().Err(err).Dur("retry_in_ms", acmeLoadAgain).Msg("stored certificate not read")
		select {
		case <-time.After(acmeLoadAgain):
		case <-ctx.Done():
			return
		}
	}
}

func (h *acmeHost) load(ctx context.Context) (certmagic.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, acmeLoadTime)
	defer cancel()
	return h.cfg.CacheManagedCertificate(ctx, h.names[0])
}

func (h *acmeHost) covers(leaf *x509.Certificate) bool {
	return !slices.ContainsFunc(h.names, func(n string) bool { return !Covers(leaf, n) })
}

// current is the newest certificate there is; nil if there is none.
func (h *acmeHost) current() *tls.Certificate {
	var newest *tls.Certificate
	for _, c := range h.cache.AllMatchingCertificates(h.names[0]) {
		if newest == nil || c.Leaf.NotBefore.After(newest.Leaf.NotBefore) {
			newest = &c.Certificate
		}
	}
	return newest
}

// ACMESource is a handle of the certificate of one host.
type ACMESource struct {
	*acmeHost
	key  string
	once sync.Once
}

var _ Source = (*ACMESource)(nil)

// GetCertificate implements [Source]. With OnDemand it waits for the first order.
func (s *ACMESource) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := acmeName(hello.ServerName)
	if name != "" && net.ParseIP(name) == nil && !slices.Contains(s.names, name) {
		return nil, fmt.Errorf("%s is not a name of host %s", name, s.names[0])
	}
	if !s.a.o.OnDemand {
		if cert := s.current(); cert != nil {
			return cert, nil
		}
		return nil, fmt.Errorf("there is no certificate for %s yet", s.names[0])
	}
	asked := *hello
	asked.ServerName = s.names[0]
	return s.cfg.GetCertificate(&asked)
}

// Leaf implements [Source].
func (s *ACMESource) Leaf() *x509.Certificate {
	if cert := s.current(); cert != nil {
		return cert.Leaf
	}
	return nil
}

// Ready tells whether a hello gets a certificate: there is one, or it is ordered on demand.
func (s *ACMESource) Ready() bool { return s.a.o.OnDemand || s.current() != nil }

// ValidationConfig returns the configuration for validations by TLS-ALPN-01 of the host's names: hellos that offer acme-tls/1
// alone (RFC 8737 section 3). It is nil if that challenge is not among those that may be used.
func (s *ACMESource) ValidationConfig() *tls.Config {
	if !slices.Contains(s.a.o.Challenges, acme.ChallengeTypeTLSALPN01) {
		return nil
	}
	return validationConfig(func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		name := acmeName(hello.ServerName)
		if !slices.Contains(s.names, name) {
			return nil, fmt.Errorf("%s is not a name of host %s", name, s.names[0])
		}
		ch, err := s.a.challenges.find(hello.Context(), acme.ChallengeTypeTLSALPN01, name)
		if err != nil {
			return nil, err
		}
		s.log.Info().Str("name", name).Str("challenge", ch.Type).Msg("validation answered")
		return acmez.TLSALPN01ChallengeCert(ch)
	})
}

// validationConfig is what RFC 8737 section 3 asks for.
func validationConfig(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: []string{acmez.ACMETLS1Protocol}, GetCertificate: get, SessionTicketsDisabled: true,
	}
}

// Close implements [Source]. Closing the last handle of a host ends its renewal, closing the last of all the whole client.
func (s *ACMESource) Close() error {
	s.once.Do(func() { s.a.release(s.key) })
	return nil
}
