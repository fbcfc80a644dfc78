package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// Shown is what a server shows in a handshake.
type Shown struct {
	Chain   []*x509.Certificate
	Stapled []byte // the OCSP response sent along; nil without one
	Version uint16 // of TLS
}

// FetchOptions are the settings of [Fetch].
type FetchOptions struct {
	ServerName string        // sent as SNI; "" is the host of the address
	StartTLS   string        // imap, pop3 or smtp: what is spoken in clear first; "" is TLS from the first byte
	Timeout    time.Duration // of everything; 0 is 10 s
}

// Fetch asks a server for its certificate, whatever it is worth: nothing is verified, old versions and suites are good
// enough. The error is one line.
func Fetch(ctx context.Context, address string, o FetchOptions) (*Shown, error) {
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	slow := func(what string, err error) error {
		var ne net.Error
		if ctx.Err() != nil || errors.As(err, &ne) && ne.Timeout() {
			return fmt.Errorf("%s: no answer in %s", what, o.Timeout)
		}
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			err = op.Err // the address has been said
		}
		return fmt.Errorf("%s: %w", what, err)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, slow("connect to "+address, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	if o.StartTLS != "" {
		if err := startTLS(conn, o.StartTLS); err != nil {
			return nil, slow(o.StartTLS+" at "+address, err)
		}
	}
	name := o.ServerName
	if name == "" {
		name, _, _ = net.SplitHostPort(address)
	}
	var shown *Shown
	config := &tls.Config{
		ServerName: canonical(name),
		MinVersion: tls.VersionTLS10,
		// It is looked at, and nothing is said to the server: there is nothing to be protected here.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			shown = &Shown{Chain: cs.PeerCertificates, Stapled: slices.Clone(cs.OCSPResponse), Version: cs.Version}
			return nil
		},
	}
	for _, suite := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		config.CipherSuites = append(config.CipherSuites, suite.ID)
	}
	err = tls.Client(conn, config).HandshakeContext(ctx)
	var record tls.RecordHeaderError
	switch {
	case shown != nil && len(shown.Chain) > 0: // a server that wants a certificate of ours ends the handshake afterwards
		return shown, nil
	case errors.As(err, &record):
		return nil, fmt.Errorf("%s does not speak TLS; for a mail server that begins in clear: --starttls imap, pop3 or smtp", address)
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("TLS with %s: the connection was closed in the handshake; is %s a name it knows?", address, config.ServerName)
	case err == nil:
		return nil, fmt.Errorf("TLS with %s: no certificate was shown", address)
	}
	return nil, slow("TLS with "+address, err)
}

// StartTLSProtocols are the protocols that Fetch can begin in clear.
func StartTLSProtocols() []string { return []string{"imap", "pop3", "smtp"} }

// startTLS speaks until the server is ready for a handshake (RFC 2595, RFC 3207).
func startTLS(conn net.Conn, protocol string) error {
	say := func(text string) error {
		_, err := io.WriteString(conn, text+"\r\n")
		return err
	}
	// expect reads lines until one is the last of an answer, which has to begin like that.
	expect := func(last func(line string) bool, good string) error {
		for range 100 {
			line, err := clearLine(conn)
			switch {
			case err != nil:
				return err
			case !last(line):
			case strings.HasPrefix(strings.ToUpper(line), good):
				return nil
			default:
				return fmt.Errorf("the server says %q", line)
			}
		}
		return errors.New("the server says more than it should")
	}
	any := func(string) bool { return true }
	tagged := func(line string) bool { return !strings.HasPrefix(line, "*") }
	single := func(line string) bool { return len(line) < 4 || line[3] != '-' }
	var steps []func() error
	switch protocol {
	case "imap":
		steps = []func() error{
			func() error { return expect(any, "* OK") },
			func() error { return say("a STARTTLS") },
			func() error { return expect(tagged, "A OK") },
		}
	case "pop3":
		steps = []func() error{
			func() error { return expect(any, "+OK") },
			func() error { return say("STLS") },
			func() error { return expect(any, "+OK") },
		}
	case "smtp":
		steps = []func() error{
			func() error { return expect(single, "220") },
			func() error { return say("EHLO localhost") },
			func() error { return expect(single, "250") },
			func() error { return say("STARTTLS") },
			func() error { return expect(single, "220") },
		}
	default:
		return fmt.Errorf("there is no STARTTLS for %s, only for %s", protocol, strings.Join(StartTLSProtocols(), ", "))
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// clearLine reads a line and not a byte more: what follows the last one is TLS.
func clearLine(conn net.Conn) (string, error) {
	var line []byte
	for b := make([]byte, 1); len(line) < 2000; {
		if _, err := io.ReadFull(conn, b); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the connection was closed")
			}
			return "", err
		}
		if b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[0])
	}
	return "", errors.New("the server's line has no end")
}
