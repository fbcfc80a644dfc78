package proxy

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Extended Protection binds a login to the certificate that the client saw
// (tls-server-end-point, RFC 5929 section 4), and the server compares that with its
// own. So a bridge is invisible to it only with the same certificate on both sides.
// This file compares the two: what each client connection was shown, and what the
// server showed on the connection made for it.

// ExtendedProtection says what becomes of a server whose certificate is not the
// one that clients see.
type ExtendedProtection int

// The settings of a site's Extended Protection.
const (
	ProtectionOff      ExtendedProtection = iota // nothing is compared
	ProtectionAuto                               // the server is used, and the log warns
	ProtectionRequired                           // the server is not used
)

var protectionNames = [...]string{"off", "auto", "required"}

// String returns the word used in the config and in logs.
func (p ExtendedProtection) String() string { return protectionNames[p] }

// BindingState is the outcome of comparing two certificates.
type BindingState string

// The states of a server for a host.
const (
	BindingMatch    BindingState = "match"
	BindingMismatch BindingState = "mismatch"
	BindingUnknown  BindingState = "unknown" // one of the two is not known
)

// CompareCertificates compares the certificate that clients of a host see with that
// of a server, byte by byte in DER, as their SHA-256 would be. Nil is unknown.
func CompareCertificates(own, theirs *x509.Certificate) BindingState {
	switch {
	case own == nil || theirs == nil:
		return BindingUnknown
	case bytes.Equal(own.Raw, theirs.Raw):
		return BindingMatch
	}
	return BindingMismatch
}

// Rotation tells what a mismatch looks like while certificates are being renewed
// "own_newer" or "server_newer" if both are for the same names and one
// was issued later, else "".
func Rotation(own, theirs *x509.Certificate) string {
	if CompareCertificates(own, theirs) != BindingMismatch || len(own.DNSNames) == 0 {
		return ""
	}
	a, b := slices.Sorted(slices.Values(own.DNSNames)), slices.Sorted(slices.Values(theirs.DNSNames))
	switch c := own.NotBefore.Compare(theirs.NotBefore); {
	case !slices.EqualFunc(a, b, strings.EqualFold) || c == 0:
		return ""
	case c > 0:
		return "own_newer"
	}
	return "server_newer"
}

// BindingAdvice says what to do about a mismatch, in a sentence.
func BindingAdvice(own, theirs *x509.Certificate) string {
	switch Rotation(own, theirs) {
	case "own_newer":
		return "a renewal under way? The certificate here has been renewed, the server's has not yet: import the new one there and enable it for IIS"
	case "server_newer":
		return "a renewal under way? The server's certificate has been renewed, the one here has not yet: export the new one from Exchange, with its key, and use it here"
	}
	return "put the same certificate on both: export the one of Exchange, with its key, and use it here, or import this one there; or use passthrough"
}

// CertificateInfo is what administrators recognise a certificate by.
type CertificateInfo struct {
	Subject  string    `json:"subject"`
	Serial   string    `json:"serial"` // hexadecimal, as Windows shows it
	NotAfter time.Time `json:"not_after"`
	SHA256   string    `json:"sha256"`
	// ChannelBinding is the tls-server-end-point (RFC 5929 section 4.1) that clients
	// put into their logins: "sha256:…"; "" where it is not defined.
	ChannelBinding string `json:"channel_binding,omitempty"`
}

// DescribeCertificate returns what is shown of a certificate; nil for nil.
func DescribeCertificate(c *x509.Certificate) *CertificateInfo {
	if c == nil {
		return nil
	}
	sum := sha256.Sum256(c.Raw)
	serial := hex.EncodeToString(c.SerialNumber.Bytes())
	return &CertificateInfo{
		Subject: c.Subject.String(), Serial: cmp.Or(serial, "00"), NotAfter: c.NotAfter.UTC(),
		SHA256: hex.EncodeToString(sum[:]), ChannelBinding: ChannelBinding(c),
	}
}

// String names the certificate in a log line or an error.
func (i *CertificateInfo) String() string {
	if i == nil {
		return "none"
	}
	return fmt.Sprintf("%q, serial %s, SHA-256 %s", i.Subject, i.Serial, i.SHA256)
}

// short is for one of several in an error.
func (i *CertificateInfo) short() string {
	return fmt.Sprintf("with serial %s (SHA-256 %.16s…)", i.Serial, i.SHA256)
}

// MarshalZerologObject writes the certificate as an object of a log line.
func (i *CertificateInfo) MarshalZerologObject(e *zerolog.Event) {
	e.Str("subject", i.Subject).Str("serial", i.Serial).Time("not_after", i.NotAfter).Str("sha256", i.SHA256)
	if i.ChannelBinding != "" {
		e.Str("channel_binding", i.ChannelBinding)
	}
}

// ChannelBinding is the tls-server-end-point of a certificate: its hash with the
// hash function of its signature, or with SHA-256 where that is MD5 or SHA-1. It is
// "" where RFC 5929 section 4.1 leaves it undefined, which is for signatures without
// one hash function.
func ChannelBinding(c *x509.Certificate) string {
	var hash crypto.Hash
	switch c.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256, x509.DSAWithSHA256:
		hash = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	default:
		return ""
	}
	h := hash.New()
	h.Write(c.Raw)
	return strings.ToLower(strings.ReplaceAll(hash.String(), "-", "")) + ":" + hex.EncodeToString(h.Sum(nil))
}

// presented is the certificate that one client connection was shown.
type presented struct {
	host *Host             // by the hello
	leaf *x509.Certificate // nil: not known
	// current was the host's at the handshake. It is the same certificate unless the
	// host shows different ones for its names.
	current *x509.Certificate
}

// outdated tells whether the host has got another certificate since.
func (p *presented) outdated() bool {
	if p == nil || p.current == nil {
		return false
	}
	now := p.host.leaf()
	return now != nil && !sameLeaf(now, p.current)
}

// sameLeaf compares two certificates, either of which may be nil.
func sameLeaf(a, b *x509.Certificate) bool {
	return a == b || CompareCertificates(a, b) == BindingMatch
}

// leaf returns the host's certificate, nil if it is not known.
func (h *Host) leaf() *x509.Certificate {
	if h.Leaf == nil {
		return nil
	}
	return h.Leaf()
}

// present returns the configuration for one handshake with the host's certificate,
// and the record of what is shown in it.
//
// A client that resumes a session is shown no certificate: it binds its logins to
// the one that the session began with (Windows keeps it with the session; RFC 5929
// section 4.2 leaves this open). So every ticket says which certificate it was given
// out under, and is good only while the host still shows that one. After a renewal
// clients make one full handshake.
func present(host *Host) (*tls.Config, *presented) {
	base := host.TLS
	p := &presented{host: host, current: host.leaf()}
	var cert *tls.Certificate
	var certErr error
	conf := base.Clone()
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if base.GetConfigForClient != nil {
			if other, err := base.GetConfigForClient(hello); other != nil || err != nil {
				return other, err // what it shows is not known
			}
		}
		// Chosen once, so that the rest of the handshake and this record agree.
		if cert, certErr = certificateFor(base, hello); certErr == nil {
			p.leaf = leafOf(cert)
		}
		return nil, nil
	}
	conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, certErr }
	conf.Certificates = nil
	conf.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		if p.leaf != nil {
			ss.Extra = append(slices.DeleteFunc(ss.Extra, isTicketMark), ticketMark(p.leaf))
		}
		return base.EncryptTicket(cs, ss)
	}
	conf.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := base.DecryptTicket(identity, cs)
		if err != nil || ss == nil || p.leaf == nil {
			return nil, err
		}
		mark := ticketMark(p.leaf)
		if !slices.ContainsFunc(ss.Extra, func(b []byte) bool { return bytes.Equal(b, mark) }) {
			return nil, nil
		}
		return ss, nil
	}
	return conf, p
}

const ticketMarkPrefix = "autodgate certificate "

// ticketMark is the note in a session ticket that names a certificate.
func ticketMark(leaf *x509.Certificate) []byte {
	sum := sha256.Sum256(leaf.Raw)
	return append([]byte(ticketMarkPrefix), sum[:]...)
}

func isTicketMark(b []byte) bool { return bytes.HasPrefix(b, []byte(ticketMarkPrefix)) }

// certificateFor is what crypto/tls would choose.
func certificateFor(c *tls.Config, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c.GetCertificate != nil && (len(c.Certificates) == 0 || hello.ServerName != "") {
		if cert, err := c.GetCertificate(hello); cert != nil || err != nil {
			return cert, err
		}
	}
	for i := range c.Certificates {
		if hello.SupportsCertificate(&c.Certificates[i]) == nil {
			return &c.Certificates[i], nil
		}
	}
	if len(c.Certificates) == 0 {
		return nil, errors.New("no certificate")
	}
	return &c.Certificates[0], nil
}

// leafOf returns the leaf of a certificate to show, nil if it cannot be read.
func leafOf(cert *tls.Certificate) *x509.Certificate {
	if cert.Leaf != nil || len(cert.Certificate) == 0 {
		return cert.Leaf
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil
	}
	return leaf
}

// peerOf is the certificate of the server at the other end, nil without TLS. On a
// resumed session it is the one that the session began with.
func peerOf(conn net.Conn) (leaf *x509.Certificate, resumed bool) {
	tc, ok := conn.(*tls.Conn)
	if !ok {
		return nil, false
	}
	cs := tc.ConnectionState()
	if len(cs.PeerCertificates) == 0 {
		return nil, cs.DidResume
	}
	return cs.PeerCertificates[0], cs.DidResume
}

// Connect makes a connection to a backend as one for a client is made, but with a
// full TLS handshake, so that the server shows the certificate it has now. It is a
// *tls.Conn if the backend has TLS. Errors name the backend, and the way out where
// there is one.
func Connect(ctx context.Context, dial func(ctx context.Context, network, address string) (net.Conn, error), b *Backend, timeout time.Duration) (net.Conn, error) {
	fresh := &Backend{Name: b.Name, Address: b.Address}
	if b.TLS != nil {
		fresh.TLS = b.TLS.Clone()
		fresh.TLS.ClientSessionCache = nil
	}
	u, err := dialFunc(dial).connect(ctx, nil, &attempt{backend: fresh}, timeout)
	if err != nil {
		return nil, err
	}
	return u.conn, nil
}

// forgetSession makes the next handshake with the backend a full one.
func (b *Backend) forgetSession() {
	if b.TLS != nil && b.TLS.ClientSessionCache != nil && b.TLS.ServerName != "" {
		b.TLS.ClientSessionCache.Put(b.TLS.ServerName, nil) // the key that crypto/tls uses
	}
}

// errOutdated ends a client connection on which logins are bound to a certificate
// that the host no longer has. The client comes again and sees the new one.
var errOutdated = errors.New("extended_protection: required, and the client was shown a certificate that has been replaced since")

// errUnbound is why a server that can be reached is not used for this client. It says
// nothing about the server's health: for another host it may be the right one.
var errUnbound = errors.New("not used, extended_protection: required")

// outdated tells whether the session may send nothing more to the site, because the
// certificate that the client saw has been replaced since.
func (s *session) outdated(site *Site) bool {
	return site.ExtendedProtection == ProtectionRequired && s.shown.outdated()
}

// agreeing puts the backends last that would be refused as things stand, so that
// not every client pays for a handshake to hear so. One that is not known to differ
// keeps its place, and what is known of the others is looked at again soon.
func (s *session) agreeing(site *Site, order []*Backend) []*Backend {
	if site.ExtendedProtection != ProtectionRequired || len(order) < 2 || s.shown == nil {
		return order
	}
	differs := map[*Backend]int{}
	s.srv.bindings.mu.Lock()
	for _, b := range order {
		if CompareCertificates(s.shown.leaf, s.srv.bindings.seen[serverKey{site.Name, b.Address}].leaf) == BindingMismatch {
			differs[b] = 1
		}
	}
	s.srv.bindings.mu.Unlock()
	if len(differs) == 0 {
		return order
	}
	return slices.SortedStableFunc(slices.Values(order), func(a, b *Backend) int { return differs[a] - differs[b] })
}

// bound makes connections to the backends of a site with connect, and holds their
// certificates against the one that the client was shown.
func (s *session) bound(site *Site, connect connectFunc) connectFunc {
	if site.ExtendedProtection == ProtectionOff {
		return connect
	}
	return func(ctx context.Context, a *attempt, timeout time.Duration) (*upstream, error) {
		var own *x509.Certificate
		if s.shown != nil {
			own = s.shown.leaf
		}
		return s.srv.bindings.connect(ctx, site, own, a.backend, func() (*upstream, error) { return connect(ctx, a, timeout) })
	}
}

// bindings watches the certificates of the servers whose sites have Extended
// Protection, over all tables.
type bindings struct {
	log      zerolog.Logger
	dial     dialFunc
	interval time.Duration // between two looks at a server

	mu    sync.Mutex
	pairs []pair // of the table in force
	seen  map[serverKey]sighting
	told  map[pairKey]verdictTold
	stop  context.CancelFunc
	ended bool
	wg    sync.WaitGroup
}

// pair is a server and a host that is bridged to it.
type pair struct {
	site    *Site
	backend *Backend
	host    *Host
}

type serverKey struct{ site, address string }

type pairKey struct {
	serverKey
	host string
}

func (p pair) server() serverKey { return serverKey{p.site.Name, p.backend.Address} }
func (p pair) key() pairKey      { return pairKey{p.server(), p.host.Name} }

// MarshalZerologObject writes what the pair is into a log line.
func (p pair) MarshalZerologObject(e *zerolog.Event) {
	e.Str("site", p.site.Name).Str("backend", p.backend.Name).Str("host", p.host.Name).Stringer("extended_protection", p.site.ExtendedProtection)
}

// sighting is what a server showed last, in a full handshake.
type sighting struct {
	leaf *x509.Certificate
	err  error // why it could not be looked at since
	at   time.Time
}

// verdictTold is what the log has last said of a pair.
type verdictTold struct {
	state       BindingState
	own, theirs [sha256.Size]byte
}

// ownCheck is how often the hosts' own certificates are looked at, which costs
// nothing: a renewal is noticed within this time.
const ownCheck = time.Second

// protectedPairs lists the pairs of a table, in a fixed order.
func protectedPairs(t *Table) []pair {
	var all []pair
	done := map[*Host]bool{}
	for _, h := range t.Hosts {
		if h.Mode != Bridge || h.Site == nil || h.Site.ExtendedProtection == ProtectionOff || done[h] {
			continue
		}
		done[h] = true
		for _, b := range h.Site.Backends {
			all = append(all, pair{h.Site, b, h})
		}
	}
	slices.SortFunc(all, func(a, b pair) int {
		return cmp.Or(strings.Compare(a.site.Name, b.site.Name), strings.Compare(a.backend.Address, b.backend.Address), strings.Compare(a.host.Name, b.host.Name))
	})
	return all
}

// watch makes t the table whose servers are looked at: now, when a host's own
// certificate changes, and every interval.
func (b *bindings) watch(t *Table) {
	pairs := protectedPairs(t)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stop != nil {
		b.stop()
		b.stop = nil
	}
	b.pairs = pairs
	for key := range b.seen {
		if !slices.ContainsFunc(pairs, func(p pair) bool { return p.server() == key }) {
			delete(b.seen, key)
		}
	}
	for key := range b.told {
		if !slices.ContainsFunc(pairs, func(p pair) bool { return p.key() == key }) {
			delete(b.told, key)
		}
	}
	if len(pairs) == 0 || b.ended {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	b.wg.Go(func() { b.run(ctx, pairs) })
}

// end stops the watching, for good.
func (b *bindings) end() {
	b.mu.Lock()
	b.ended = true
	if b.stop != nil {
		b.stop()
	}
	b.mu.Unlock()
	b.wg.Wait()
}

func (b *bindings) run(ctx context.Context, pairs []pair) {
	defer recovered(b.log, func() {})
	tick := time.NewTicker(min(ownCheck, b.interval))
	defer tick.Stop()
	own := map[*Host]*x509.Certificate{}
	for {
		b.probeAll(ctx, pairs)
		for _, p := range pairs {
			own[p.host] = p.host.leaf()
		}
		b.tellAll(ctx, pairs)
		for next := time.Now().Add(b.interval); time.Now().Before(next); {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// Another certificate here: the servers may have got it too.
			if slices.ContainsFunc(pairs, func(p pair) bool { return !sameLeaf(own[p.host], p.host.leaf()) }) {
				break
			}
		}
	}
}

// probeAll looks at every server, a few at a time.
func (b *bindings) probeAll(ctx context.Context, pairs []pair) {
	const atOnce = 8
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	var last serverKey
	for _, p := range pairs {
		if p.server() == last {
			continue
		}
		last = p.server()
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer recovered(b.log, func() {})
			b.probe(ctx, p)
		})
	}
	wg.Wait()
}

func (b *bindings) probe(ctx context.Context, p pair) {
	timeout := p.site.ConnectTimeout
	if timeout <= 0 {
		timeout = defaultConnectTimeout
	}
	conn, err := Connect(ctx, b.dial, p.backend, timeout)
	if err != nil {
		b.saw(ctx, p.site, p.backend, nil, err)
		return
	}
	conn.Close()
	leaf, _ := peerOf(conn)
	b.saw(ctx, p.site, p.backend, leaf, nil)
}

// saw records what a server has shown in a full handshake, or why it could not be
// looked at.
func (b *bindings) saw(ctx context.Context, site *Site, backend *Backend, leaf *x509.Certificate, err error) {
	key := serverKey{site.Name, backend.Address}
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx.Err() != nil || !slices.ContainsFunc(b.pairs, func(p pair) bool { return p.server() == key }) {
		return // of a table that is no longer in force
	}
	old := b.seen[key]
	if err != nil {
		b.seen[key] = sighting{old.leaf, err, time.Now()}
		return
	}
	b.seen[key] = sighting{leaf, nil, time.Now()}
	if old.leaf != nil && leaf != nil && !old.leaf.Equal(leaf) {
		backend.forgetSession() // it began with the certificate that is gone
	}
}

// tellAll logs what has changed since the log last spoke of a pair: one warning for
// each server and host, not one for each connection.
func (b *bindings) tellAll(ctx context.Context, pairs []pair) {
	for _, p := range pairs {
		if ctx.Err() != nil {
			return
		}
		b.tell(p)
	}
}

func (b *bindings) tell(p pair) {
	own := p.host.leaf()
	b.mu.Lock()
	sight := b.seen[p.server()]
	now := verdictTold{state: CompareCertificates(own, sight.leaf)}
	if now.state == BindingMismatch {
		now.own, now.theirs = sha256.Sum256(own.Raw), sha256.Sum256(sight.leaf.Raw)
	}
	before, spoken := b.told[p.key()]
	b.told[p.key()] = now
	b.mu.Unlock()
	if now == before {
		return
	}
	state := string(now.state)
	switch now.state {
	case BindingMatch:
		if spoken {
			b.log.Info().EmbedObject(p).Str("state", state).Msg("Extended Protection: clients see the server's certificate again")
		}
	case BindingUnknown:
		cause := "the server's certificate is not known yet"
		if own == nil {
			cause = "there is none to show to clients yet"
		}
		b.log.Warn().EmbedObject(p).Str("state", state).AnErr("error", sight.err).Msg("Extended Protection: certificates cannot be compared: " + cause)
	case BindingMismatch:
		level, consequence := zerolog.WarnLevel, "clients that bind their logins to it (NTLM, Kerberos) are refused if the server checks that: 401 again and again, event 4625 with status 0xC000035B"
		if p.site.ExtendedProtection == ProtectionRequired {
			level, consequence = zerolog.ErrorLevel, "the server is not used"
		}
		b.log.WithLevel(level).EmbedObject(p).Str("state", state).Func(func(e *zerolog.Event) {
			if r := Rotation(own, sight.leaf); r != "" {
				e.Str("rotation", r)
			}
		}).Object("own_certificate", DescribeCertificate(own)).Object("server_certificate", DescribeCertificate(sight.leaf)).
			Str("want", BindingAdvice(own, sight.leaf)).
			Msg("EXTENDED PROTECTION: THE SERVER'S CERTIFICATE IS NOT THE ONE THAT CLIENTS SEE: " + consequence)
	}
}

// connect makes a connection for a client that was shown own, and refuses it if
// the site requires the same certificate of the server.
func (b *bindings) connect(ctx context.Context, site *Site, own *x509.Certificate, backend *Backend, dial func() (*upstream, error)) (*upstream, error) {
	for again := false; ; again = true {
		u, err := dial()
		if err != nil {
			return nil, err
		}
		theirs, resumed := peerOf(u.conn)
		news := b.note(ctx, site, backend, theirs, resumed)
		if site.ExtendedProtection != ProtectionRequired {
			return u, nil
		}
		state := CompareCertificates(own, theirs)
		// A resumed session shows what the server had when it began. Whether the server
		// goes by that or by what it has now is not documented: only a full handshake
		// is beyond doubt when the two differ.
		if resumed && !again && (state != BindingMatch || news) {
			u.close()
			backend.forgetSession()
			continue
		}
		switch {
		case state == BindingMatch:
			return u, nil
		case state == BindingMismatch:
			err = fmt.Errorf("backend %s (%s) is %w: the client was shown the certificate %s, and the server has %s",
				backend.Name, backend.Address, errUnbound, DescribeCertificate(own).short(), DescribeCertificate(theirs).short())
		case theirs == nil:
			err = fmt.Errorf("backend %s (%s) is %w: it shows no certificate", backend.Name, backend.Address, errUnbound)
		default:
			err = fmt.Errorf("backend %s (%s) is %w: it is not known which certificate the client was shown", backend.Name, backend.Address, errUnbound)
		}
		u.close()
		return nil, err
	}
}

// note takes down what a server showed when a client's connection was made. It
// returns whether a resumed session is older than what is known of the server.
func (b *bindings) note(ctx context.Context, site *Site, backend *Backend, theirs *x509.Certificate, resumed bool) (news bool) {
	key := serverKey{site.Name, backend.Address}
	b.mu.Lock()
	known := b.seen[key].leaf
	b.mu.Unlock()
	same := CompareCertificates(known, theirs) == BindingMatch
	if resumed {
		return known != nil && !same
	}
	if same || theirs == nil {
		return false
	}
	b.saw(ctx, site, backend, theirs, nil)
	b.mu.Lock()
	pairs := b.pairs
	b.mu.Unlock()
	for _, p := range pairs {
		if p.server() == key {
			b.tell(p)
		}
	}
	return false
}

// BindingStatus is how a server stands to a host of its site: whether both show
// the same certificate.
type BindingStatus struct {
	Host              string           `json:"host"`
	State             BindingState     `json:"state"`
	Rotation          string           `json:"rotation,omitempty"` // own_newer or server_newer
	OwnCertificate    *CertificateInfo `json:"own_certificate,omitempty"`
	ServerCertificate *CertificateInfo `json:"server_certificate,omitempty"`
	Checked           time.Time        `json:"checked,omitzero"`
	Error             string           `json:"error,omitempty"` // of the last look at the server

	// Server and ExtendedProtection are of the status around it.
	Server             string `json:"-"`
	ExtendedProtection string `json:"-"`

	server serverKey
}

// Bindings returns the state of every server and host of the sites with Extended
// Protection, ordered by site, server and host.
func (s *Server) Bindings() []BindingStatus {
	b := &s.bindings
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]BindingStatus, 0, len(b.pairs))
	for _, p := range b.pairs {
		own, sight := p.host.leaf(), b.seen[p.server()]
		st := BindingStatus{
			server: p.server(), Server: p.backend.Name, Host: p.host.Name, ExtendedProtection: p.site.ExtendedProtection.String(),
			State: CompareCertificates(own, sight.leaf), Rotation: Rotation(own, sight.leaf),
			OwnCertificate: DescribeCertificate(own), ServerCertificate: DescribeCertificate(sight.leaf), Checked: sight.at,
		}
		if sight.err != nil {
			st.Error = sight.err.Error()
		}
		all = append(all, st)
	}
	return all
}
