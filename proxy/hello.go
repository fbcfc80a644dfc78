package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/pires/go-proxyproto"
)

// We parse the ClientHello ourselves. crypto/tls cannot hand back what it read, refuses a trailing dot in the name
// (which must still reach a passthrough backend), and cannot send unrecognized_name for one name while it has
// certificates for others.

// TLS alerts we send before there is a TLS connection (RFC 8446 section 6, RFC 6066 section 3).
const (
	alertUnexpectedMessage byte = 10
	alertRecordOverflow    byte = 22
	alertIllegalParameter  byte = 47
	alertDecodeError       byte = 50
	alertProtocolVersion   byte = 70
	alertInternalError     byte = 80
	alertUnrecognizedName  byte = 112
)

const (
	maxHello          = 64 << 10 // bytes on the wire, record headers included, up to the end of the hello
	maxRecord         = 16 << 10 // RFC 8446 section 5.1
	recordHeaderLen   = 5
	handshakeHeadLen  = 4
	recordHandshake   = 22
	typeClientHello   = 1
	extServerName     = 0  // RFC 6066 section 3
	extALPN           = 16 // RFC 7301 section 3.1
	extVersions       = 43 // RFC 8446 section 4.2.1
	maxServerName     = 255
	maxMethod         = 24 // longest first word still taken for an HTTP method (SSTP_DUPLEX_POST has 16)
	firstPeek         = 2 << 10
	lingerAfterAlert  = time.Second
	lingerAfterAlertN = 256 << 10
)

// hello is what a ClientHello says before anything is decrypted.
type hello struct {
	ServerName    string   // lower case, without a trailing dot; "" if the client sent no name. An IP literal stays as it is
	RawServerName string   // as it was sent, for the log
	ALPN          []string // in the client's order
	MaxVersion    uint16   // highest version offered that is not GREASE (RFC 8701)
}

// errNotTLS: the first bytes are not those of a TLS handshake record. No alert would be understood.
var errNotTLS = errors.New("not TLS")

// errProxyUnlisted: a PROXY header came, and from this address none is taken.
var errProxyUnlisted = fmt.Errorf("%w, but a PROXY header from an address that is not in proxy_protocol_from", errNotTLS)

// errPlainHTTP: an HTTP request was sent to the TLS port; the caller may answer it in clear.
var errPlainHTTP = errors.New("plain HTTP on the TLS port")

// helloError is a hello that breaks the rules: the connection ends with this alert.
type helloError struct {
	alert  byte
	reason string
}

func (e *helloError) Error() string { return "bad ClientHello: " + e.reason }

// Each fault is one value, so that a caller and the tests can tell them apart without comparing text.
var (
	errHelloSSLv2         = &helloError{alertProtocolVersion, "SSLv2 hello"}
	errHelloSSLv3         = &helloError{alertProtocolVersion, "the client speaks SSLv3 at most"}
	errHelloRecordVersion = &helloError{alertProtocolVersion, "record version is not 3.x"}
	errHelloRecordType    = &helloError{alertUnexpectedMessage, "another record in the middle of the hello"}
	errHelloRecordEmpty   = &helloError{alertUnexpectedMessage, "empty handshake record"}
	errHelloRecordLength  = &helloError{alertRecordOverflow, "record longer than 16 KiB"}
	errHelloNotFirst      = &helloError{alertUnexpectedMessage, "the first handshake message is not a ClientHello"}
	errHelloTooLong       = &helloError{alertIllegalParameter, "longer than 64 KiB"}
	errHelloLengths       = &helloError{alertDecodeError, "lengths do not add up"}
	errHelloTwice         = &helloError{alertIllegalParameter, "an extension is there twice"}
	errHelloVersions      = &helloError{alertDecodeError, "malformed supported_versions"}
	errHelloALPN          = &helloError{alertDecodeError, "malformed ALPN"}
	errHelloNameList      = &helloError{alertDecodeError, "malformed server_name"}
	errHelloNames         = &helloError{alertIllegalParameter, "server_name is not exactly one host name"}
	errHelloNameLong      = &helloError{alertIllegalParameter, "server name longer than 255 bytes"}
	errHelloName          = &helloError{alertIllegalParameter, "server name is not a host name"}
)

// readHello reads one ClientHello from c and leaves every byte in c, so that whoever reads c next sees the stream from
// its start. The caller sets the deadline. Errors: errNotTLS, errPlainHTTP, *helloError, io.EOF when the client closed
// without a byte, else the wrapped read error.
func readHello(c *peekedConn) (hello, error) {
	first, err := c.peek(1)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return hello{}, io.EOF // a port check, not a broken client
		}
		return hello{}, fmt.Errorf("read ClientHello: %w", err)
	}
	if first[0] != recordHandshake {
		return hello{}, notTLS(c)
	}

	var msg []byte // the handshake message, joined from its records
	want := handshakeHeadLen
	for off := 0; len(msg) < want; {
		head, err := peekHello(c, off+recordHeaderLen)
		if err != nil {
			return hello{}, err
		}
		head = head[off:]
		switch n := int(binary.BigEndian.Uint16(head[3:])); {
		case head[0] != recordHandshake:
			return hello{}, errHelloRecordType
		case head[1] != 3 && off == 0:
			return hello{}, errNotTLS
		case head[1] != 3:
			// The minor version means nothing (RFC 8446 section 5.1), the major one has never been another.
			return hello{}, errHelloRecordVersion
		case n == 0:
			return hello{}, errHelloRecordEmpty
		case n > maxRecord:
			return hello{}, errHelloRecordLength
		default:
			// The length of the message is known from its first four bytes: a hello that will be refused for it is not waited for.
			if off == 0 && n >= handshakeHeadLen {
				b, err := peekHello(c, recordHeaderLen+handshakeHeadLen)
				if err != nil {
					return hello{}, err
				}
				if _, err := helloLength(b[recordHeaderLen:]); err != nil {
					return hello{}, err
				}
			}
			b, err := peekHello(c, off+recordHeaderLen+n)
			if err != nil {
				return hello{}, err
			}
			if fragment := b[off+recordHeaderLen:]; msg == nil {
				msg = fragment[:n:n] // one record is the rule, and needs no copy
			} else {
				msg = append(msg, fragment[:n]...)
			}
			off += recordHeaderLen + n
		}
		if len(msg) >= handshakeHeadLen {
			if want, err = helloLength(msg); err != nil {
				return hello{}, err
			}
		}
	}
	return parseHello(msg[handshakeHeadLen:want])
}

// peekHello is peek within the limit of a hello.
func peekHello(c *peekedConn, n int) ([]byte, error) {
	if n > maxHello {
		return nil, errHelloTooLong
	}
	b, err := c.peek(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read ClientHello: %w", err)
	}
	return b, nil
}

// helloLength reads the head of the handshake message and returns the length of the whole message.
func helloLength(msg []byte) (int, error) {
	if msg[0] != typeClientHello {
		return 0, errHelloNotFirst
	}
	n := handshakeHeadLen + int(msg[1])<<16 + int(msg[2])<<8 + int(msg[3])
	if n+recordHeaderLen > maxHello {
		return 0, errHelloTooLong
	}
	return n, nil
}

// notTLS tells apart what else is spoken to a TLS port. It reads on only while the bytes still look like the start of an
// HTTP request, so a client that sent one wrong byte is not waited for.
func notTLS(c *peekedConn) error {
	b, err := c.peek(1)
	if err != nil {
		return errNotTLS
	}
	if b[0]&0x80 != 0 {
		// SSLv2 framing: a length with the top bit set, then message type 1 and the version. Windows clients of the XP era
		// wrap even a TLS 1.0 hello in it.
		if b, err = c.peek(5); err == nil && b[2] == typeClientHello && (b[3] == 3 || b[3] == 0 && b[4] == 2) {
			return errHelloSSLv2
		}
		return errNotTLS
	}
	for n := 1; bytes.HasPrefix(proxyproto.SIGV2, b[:n]); {
		if n == len(proxyproto.SIGV2) {
			return errProxyUnlisted
		}
		n++
		if b, err = c.peek(n); err != nil {
			return errNotTLS
		}
	}
	for i := 0; i <= maxMethod; i++ {
		if b, err = c.peek(i + 1); err != nil {
			return errNotTLS
		}
		switch ch := b[i]; {
		case 'A' <= ch && ch <= 'Z', ch == '_', ch == '-':
			continue
		case ch == ' ' && i > 0:
			if string(b[:i]) == "CONNECT" {
				return errPlainHTTP
			}
			if b, err = c.peek(i + 2); err != nil {
				return errNotTLS
			}
			if string(b[:i+1]) == string(proxyV1Start) && (b[i+1] == 'T' || b[i+1] == 'U') { // TCP4, TCP6, UNKNOWN
				return errProxyUnlisted
			}
			switch b[i+1] { // origin, asterisk and absolute form (RFC 9112 section 3.2)
			case '/', '*', 'h', 'H':
				return errPlainHTTP
			}
		}
		break
	}
	return errNotTLS
}

// cursor takes length-prefixed fields off the front of a message. Once a field is missing, ok stays false.
type cursor struct {
	b  []byte
	ok bool
}

func (c *cursor) take(n int) []byte {
	if !c.ok || n > len(c.b) {
		c.ok = false
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}

func (c *cursor) uint8() int {
	if b := c.take(1); b != nil {
		return int(b[0])
	}
	return 0
}

func (c *cursor) uint16() int {
	if b := c.take(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

// done says whether everything was there and nothing is left.
func (c *cursor) done() bool { return c.ok && len(c.b) == 0 }

// parseHello reads the body of a ClientHello (RFC 8446 section 4.1.2). It looks closely at what a decision hangs on and
// leaves the other extensions to whoever ends the handshake.
func parseHello(body []byte) (hello, error) {
	var h hello
	c := cursor{body, true}
	legacy := c.uint16()
	c.take(32)        // random
	c.take(c.uint8()) // legacy_session_id
	if suites := c.take(c.uint16()); len(suites)%2 != 0 {
		return hello{}, errHelloLengths
	}
	c.take(c.uint8()) // legacy_compression_methods
	if !c.ok {
		return hello{}, errHelloLengths
	}
	h.MaxVersion = uint16(legacy)

	if len(c.b) > 0 { // TLS 1.0 hellos may end without extensions
		exts := cursor{c.take(c.uint16()), true}
		if !c.done() {
			return hello{}, errHelloLengths
		}
		var seen [1 << 16 / 64]uint64 // on the stack; a list would make a hello of 16 000 empty extensions quadratic
		for len(exts.b) > 0 {
			typ := exts.uint16()
			data := exts.take(exts.uint16())
			if !exts.ok {
				return hello{}, errHelloLengths
			}
			if seen[typ/64]&(1<<(typ%64)) != 0 {
				return hello{}, errHelloTwice
			}
			seen[typ/64] |= 1 << (typ % 64)
			var err error
			switch typ {
			case extServerName:
				h.RawServerName, h.ServerName, err = parseServerName(data)
			case extALPN:
				h.ALPN, err = parseALPN(data)
			case extVersions:
				h.MaxVersion, err = parseVersions(data)
			}
			if err != nil {
				return hello{}, err
			}
		}
	}
	if h.MaxVersion <= 0x0300 {
		return hello{}, errHelloSSLv3
	}
	return h, nil
}

// parseServerName reads the one host name of a server_name extension (RFC 6066 section 3), as sent and in canonical form.
func parseServerName(data []byte) (raw, canonical string, err error) {
	c := cursor{data, true}
	list := cursor{c.take(c.uint16()), true}
	if !c.done() {
		return "", "", errHelloNameList
	}
	typ, name := list.uint8(), list.take(list.uint16())
	if !list.ok || len(name) == 0 {
		return "", "", errHelloNameList
	}
	// A second name, or one of another type, could be read differently by the server behind us.
	if typ != 0 || len(list.b) != 0 {
		return "", "", errHelloNames
	}
	if len(name) > maxServerName {
		return "", "", errHelloNameLong
	}
	raw = string(name)
	if canonical, err = canonicalServerName(raw); err != nil {
		return "", "", err
	}
	return raw, canonical, nil
}

// canonicalServerName lower-cases name and takes one trailing dot off. Host names are letters, digits, hyphens, dots and
// the underscore some internal names have; labels are not empty. An IP literal, which RFC 6066 forbids, passes: it is
// looked up like any name and found nowhere.
func canonicalServerName(name string) (string, error) {
	s := strings.TrimSuffix(name, ".")
	afterDot := true
	for i := 0; i < len(s); i++ {
		switch ch := s[i]; {
		case 'a' <= ch && ch <= 'z', '0' <= ch && ch <= '9', 'A' <= ch && ch <= 'Z', ch == '-', ch == '_':
			afterDot = false
		case ch == '.' && !afterDot:
			afterDot = true
		case ch == ':' && strings.Count(s, ":") > 1: // only an IPv6 address has these
			if ip, err := netip.ParseAddr(s); err != nil || ip.Zone() != "" {
				return "", errHelloName
			}
			return strings.ToLower(s), nil
		default:
			return "", errHelloName
		}
	}
	if afterDot { // empty, or two dots at the end
		return "", errHelloName
	}
	return strings.ToLower(s), nil
}

func parseALPN(data []byte) ([]string, error) {
	c := cursor{data, true}
	list := cursor{c.take(c.uint16()), true}
	if !c.done() || len(list.b) == 0 {
		return nil, errHelloALPN
	}
	var protos []string
	for len(list.b) > 0 {
		p := list.take(list.uint8())
		if len(p) == 0 {
			return nil, errHelloALPN
		}
		protos = append(protos, string(p))
	}
	return protos, nil
}

// parseVersions returns the highest version offered, GREASE values (0x0a0a, 0x1a1a, …) left out.
func parseVersions(data []byte) (uint16, error) {
	c := cursor{data, true}
	list := cursor{c.take(c.uint8()), true}
	if !c.done() || len(list.b) == 0 || len(list.b)%2 != 0 {
		return 0, errHelloVersions
	}
	var best uint16
	for len(list.b) > 0 {
		if v := uint16(list.uint16()); v>>8 == 3 && v > best {
			best = v
		}
	}
	return best, nil
}

// peekedConn is a connection with bytes read ahead: peek looks at them, Read hands them out before the socket is read
// again. One goroutine reads at a time, as with any net.Conn.
type peekedConn struct {
	net.Conn        // the socket
	ahead    []byte // read from the socket, not yet from us; nil once drained, so an idle connection holds no buffer
}

func newPeekedConn(c net.Conn) *peekedConn { return &peekedConn{Conn: c} }

// peek returns at least the next n bytes, all that has been read ahead, and consumes none. What it returns is valid until
// the next discard or Read. With fewer than n bytes it returns the socket's error; io.EOF means that the client closed.
func (c *peekedConn) peek(n int) ([]byte, error) {
	for len(c.ahead) < n {
		if len(c.ahead) == cap(c.ahead) || n > cap(c.ahead) {
			// A hello with a post-quantum key share is some 1.8 KB: one buffer, one read.
			grown := make([]byte, len(c.ahead), max(firstPeek, 2*cap(c.ahead), n))
			copy(grown, c.ahead)
			c.ahead = grown
		}
		m, err := c.Conn.Read(c.ahead[len(c.ahead):cap(c.ahead)])
		c.ahead = c.ahead[:len(c.ahead)+m]
		if err != nil && len(c.ahead) < n {
			return c.ahead, err
		}
	}
	return c.ahead, nil
}

// discard drops n bytes that peek has shown.
func (c *peekedConn) discard(n int) {
	if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
		c.ahead = nil
	}
}

// Read hands out what was read ahead first.
func (c *peekedConn) Read(b []byte) (int, error) {
	if c.ahead == nil {
		return c.Conn.Read(b)
	}
	n := copy(b, c.ahead)
	c.discard(n)
	return n, nil
}

// CloseWrite sends FIN and leaves the other direction open.
func (c *peekedConn) CloseWrite() error { return closeWrite(c.Conn) }

// detach gives up what was read ahead and the connection under it, so that both can be handled without a layer between
// (splice works on a bare *net.TCPConn only).
func (c *peekedConn) detach() (ahead []byte, conn net.Conn) {
	ahead, c.ahead = c.ahead, nil
	return ahead, c.Conn
}

// closeWrite half-closes c where c can do that.
func closeWrite(c net.Conn) error {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// writeAlert sends one fatal alert in clear. The record says TLS 1.0, as crypto/tls does before a version is agreed:
// clients that know nothing newer drop a higher one, and newer clients look at the major version alone.
func writeAlert(c net.Conn, alert byte) error {
	const fatal = 2
	_, err := c.Write([]byte{21, 3, 1, 0, 2, fatal, alert})
	return err
}

// refuseTLS sends the alert and closes c. It waits a moment for the client's FIN: closing with unread bytes in the socket
// (early data, the rest of a hello that was too long) sends RST, which can overtake the alert. The error is that of the
// alert; c is closed in any case.
func refuseTLS(c net.Conn, alert byte) error {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(lingerAfterAlert))
	if err := writeAlert(c, alert); err != nil {
		return fmt.Errorf("send alert %d: %w", alert, err)
	}
	if closeWrite(c) == nil {
		_, _ = io.CopyN(io.Discard, c, lingerAfterAlertN)
	}
	return nil
}
