package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Faults is a set of reasons why a certificate does not verify.
type Faults uint8

const (
	UnknownIssuer Faults = 1 << iota // no chain to a trusted root (self-signed included)
	NameMismatch                     // not valid for the name that was asked for
	Expired                          // expired or not yet valid, it or its issuer
)

// String gives the faults as a verdict: "ok", or the names separated by commas.
func (f Faults) String() string {
	var names []string
	for _, n := range []struct {
		fault Faults
		name  string
	}{{UnknownIssuer, "unknown_issuer"}, {NameMismatch, "name_mismatch"}, {Expired, "expired"}} {
		if f&n.fault != 0 {
			names = append(names, n.name)
		}
	}
	if names == nil {
		return "ok"
	}
	return strings.Join(names, ",")
}

// sentence says the faults the way a client's dialogue does.
func (f Faults) sentence() string {
	var parts []string
	if f&UnknownIssuer != 0 {
		parts = append(parts, "its issuer is not trusted")
	}
	if f&NameMismatch != 0 {
		parts = append(parts, "its name does not match")
	}
	if f&Expired != 0 {
		parts = append(parts, "it is expired or not yet valid")
	}
	return strings.Join(parts, ", ")
}

// judge verifies a presented chain by hand, each property on its own, since a client treats the faults differently.
func judge(chain []*x509.Certificate, host string, roots *x509.CertPool, commonName bool, now time.Time) (*Certificate, Faults) {
	leaf := chain[0]
	c := &Certificate{
		Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(),
		Names: append([]string{}, leaf.DNSNames...), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
	}
	for _, ip := range leaf.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	var faults Faults

	named := leaf
	if commonName && len(c.Names) == 0 && leaf.Subject.CommonName != "" {
		named = &x509.Certificate{DNSNames: []string{leaf.Subject.CommonName}}
	}
	if named.VerifyHostname(host) != nil {
		faults |= NameMismatch
	}

	at := now
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		faults |= Expired
		at = leaf.NotAfter // the chain is judged at a time when the leaf was good
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		faults |= Expired
	default:
		faults |= UnknownIssuer
	}
	c.Verdict = faults.String()
	return c, faults
}

// reaction is the strictest of what the client does about the faults, and the faults it asks about.
func (s *Strictness) reaction(f Faults) (Reaction, Faults) {
	var (
		asks   Faults
		result = Silent
	)
	for fault, r := range map[Faults]Reaction{UnknownIssuer: s.UnknownIssuer, NameMismatch: s.NameMismatch, Expired: s.Expired} {
		switch {
		case f&fault == 0:
		case r == Fail:
			result = Fail
		case r == Prompt:
			asks |= fault
			if result != Fail {
				result = Prompt
			}
		}
	}
	return result, asks
}

// target is where the connections of one conversation go.
type target struct {
	url   *url.URL
	addrs []netip.AddrPort
	named string // "host:port" instead of addresses, when it is for the system to resolve
}

// port is the number that stands for the URL's port: a lab listens on free ports for 443 and 80.
func (w *Walker) port(u *url.URL) uint16 {
	port := 443
	if u.Scheme == "http" {
		port = 80
	}
	if p, err := strconv.Atoi(u.Port()); err == nil {
		port = p
	}
	if p, ok := w.Ports[port]; ok {
		port = p
	}
	return uint16(port)
}

// locate finds the addresses of the URL's host, and records what DNS said.
func (k *walk) locate(ctx context.Context, step *Step, u *url.URL) (*target, error) {
	port := k.w.port(u)
	if k.w.Server != "" {
		host, given, err := net.SplitHostPort(k.w.Server)
		if err != nil {
			host, given = strings.Trim(k.w.Server, "[]"), ""
		}
		if p, err := strconv.ParseUint(given, 10, 16); err == nil && u.Scheme == "https" {
			port = uint16(p)
		}
		return &target{url: u, named: net.JoinHostPort(host, strconv.Itoa(int(port)))}, nil
	}
	addrs, records, err := k.resolver.addresses(ctx, u.Hostname())
	step.DNS = append(step.DNS, records...)
	if err != nil {
		return nil, err
	}
	t := &target{url: u}
	for _, a := range addrs {
		t.addrs = append(t.addrs, netip.AddrPortFrom(a, port))
	}
	return t, nil
}

// dial connects to the first address that answers. With several addresses a silent one may not eat the whole time of the step.
func (t *target) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if t.named != "" {
		return d.DialContext(ctx, "tcp", t.named)
	}
	var first error
	for i, a := range t.addrs {
		one, cancel := ctx, context.CancelFunc(func() {})
		if end, ok := ctx.Deadline(); ok {
			one, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(len(t.addrs)-i))
		}
		conn, err := d.DialContext(one, "tcp", a.String())
		cancel()
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// secure runs the TLS handshake. It accepts any certificate: judge decides, before anything is sent.
func secure(ctx context.Context, raw net.Conn, host string) (*tls.Conn, error) {
	conn := tls.Client(raw, &tls.Config{
		ServerName:         host,
		InsecureSkipVerify: true, //nolint:gosec // verified by judge, which needs the certificate of a failed verification too
		NextProtos:         []string{"http/1.1"},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}

// errCertificate stops a conversation before its first request. The step already says what happened.
var errCertificate = errors.New("certificate not accepted")

// open connects for a step, and for https lets the profile and the user judge the certificate.
func (k *walk) open(ctx context.Context, step *Step, t *target) (net.Conn, error) {
	raw, err := t.dial(ctx)
	if err != nil {
		return nil, err
	}
	step.Remote = raw.RemoteAddr().String()
	if t.url.Scheme != "https" {
		return raw, nil
	}
	host := t.url.Hostname()
	conn, err := secure(ctx, raw, host)
	if err != nil {
		step.TLSAlert = alert(err)
		return nil, err
	}
	state := conn.ConnectionState()
	step.TLSVersion = tls.VersionName(state.Version)
	strict := &k.w.Profile.Certificate
	cert, faults := judge(state.PeerCertificates, host, k.w.RootCAs, strict.CommonName, time.Now())
	step.Certificate = cert
	switch reaction, asks := strict.reaction(faults); reaction {
	case Fail:
		step.Why = fmt.Sprintf("the certificate is not accepted: %s", faults.sentence())
	case Prompt:
		question := fmt.Sprintf("The certificate of %s is doubtful: %s. Use it?", host, faults.sentence())
		if k.ask(step, question, asks&^k.w.Prompts.AcceptCertificates == 0) {
			return conn, nil
		}
		step.Outcome = OutcomePrompt
		step.Why = fmt.Sprintf("the user did not accept the certificate: %s", faults.sentence())
	default:
		return conn, nil
	}
	_ = conn.Close()
	return nil, errCertificate
}

// again opens a further connection of the same conversation; it must show the certificate that was judged.
func (t *target) again(ctx context.Context, leaf *x509.Certificate) (net.Conn, error) {
	raw, err := t.dial(ctx)
	if err != nil || t.url.Scheme != "https" {
		return raw, err
	}
	conn, err := secure(ctx, raw, t.url.Hostname())
	if err != nil {
		return nil, err
	}
	if chain := conn.ConnectionState().PeerCertificates; leaf == nil || !slices.Equal(chain[0].Raw, leaf.Raw) {
		_ = conn.Close()
		return nil, errors.New("a second connection shows another certificate")
	}
	return conn, nil
}

// alert names the TLS alert received, in the words of RFC 8446 section 6, or is empty.
func alert(err error) string {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" || op.Err == nil {
		return ""
	}
	// crypto/tls does not export the type of a received alert, but its text is the RFC's name with blanks.
	name, ok := strings.CutPrefix(op.Err.Error(), "tls: ")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(name, " ", "_")
}

// explain says why a connection or request failed, without addresses and ports: the step has them, and a lab's change from run to run.
func explain(err error, limit time.Duration) string {
	var (
		de     *dnsError
		ne     net.Error
		record tls.RecordHeaderError
		op     *net.OpError
	)
	if a := alert(err); a != "" {
		return "the server refused TLS with the alert " + a
	}
	switch {
	case errors.As(err, &de):
		return de.text
	case errors.Is(err, context.Canceled):
		return "interrupted"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return fmt.Sprintf("no answer within %s", limit)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection reset by the server"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the server closed the connection without an answer"
	case errors.As(err, &record):
		return "the server does not speak TLS on this port"
	case errors.As(err, &op) && op.Err != nil:
		return op.Op + ": " + op.Err.Error()
	}
	return err.Error()
}
