package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	maxProxyV1      = 107     // the longest line of version 1, CRLF included (PROXY protocol, section 2.1)
	maxProxyV2      = 4 << 10 // ours: the whole header of version 2; 64 KiB would be allowed
	proxyV2FixedLen = 16
)

var (
	proxyV1Start = append(append([]byte(nil), proxyproto.SIGV1...), ' ')
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// errProxyHeader: what begins like a PROXY header is none. The connection is closed without an answer.
var errProxyHeader = errors.New("bad PROXY header")

// readProxyHeader takes a PROXY header of version 1 or 2 off the start of c and returns the addresses it names. Only call
// it for peers that may send one. The header is optional: without one nothing is consumed, and both addresses are zero,
// as they are for LOCAL and UNKNOWN headers; the socket's own then hold. Nothing is waited for beyond the first byte that
// differs from both signatures. The caller sets the deadline.
//
// Framing is ours and parsing the library's: its reader refuses a header that comes in two segments.
func readProxyHeader(c *peekedConn) (src, dst netip.AddrPort, err error) {
	none := netip.AddrPort{}
	var size int
	for n := 1; size == 0; n++ {
		b, err := peekProxy(c, n)
		if err != nil {
			return none, none, err
		}
		switch {
		case bytes.Equal(b[:n], proxyV1Start):
			size, err = proxyV1Len(c)
		case bytes.Equal(b[:n], proxyproto.SIGV2):
			size, err = proxyV2Len(c)
		case !bytes.HasPrefix(proxyV1Start, b[:n]) && !bytes.HasPrefix(proxyproto.SIGV2, b[:n]):
			return none, none, nil
		}
		if err != nil {
			return none, none, err
		}
	}

	b, err := peekProxy(c, size)
	if err != nil {
		return none, none, err
	}
	header, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b[:size])))
	if err != nil {
		return none, none, fmt.Errorf("%w: %w", errProxyHeader, err)
	}
	if header.Version == 2 {
		if err := checkProxyTLVs(header, b[:size]); err != nil {
			return none, none, fmt.Errorf("%w: %w", errProxyHeader, err)
		}
	}
	c.discard(size)
	if header.Command.IsLocal() {
		return none, none, nil
	}
	from, to, ok := header.TCPAddrs()
	if !ok { // Unix sockets and datagrams name nothing that could stand for a TCP peer
		return none, none, nil
	}
	return addrPort(from), addrPort(to), nil
}

func peekProxy(c *peekedConn, n int) ([]byte, error) {
	b, err := c.peek(n)
	if err == nil {
		return b, nil
	}
	if errors.Is(err, io.EOF) && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.EOF) {
		return nil, io.EOF // closed without a byte
	}
	return nil, fmt.Errorf("read PROXY header: %w", err)
}

// proxyV1Len returns the length of the line, CRLF included.
func proxyV1Len(c *peekedConn) (int, error) {
	for n := len(proxyV1Start) + 1; n <= maxProxyV1; n++ {
		b, err := peekProxy(c, n)
		if err != nil {
			return 0, err
		}
		if b[n-1] == '\n' {
			return n, nil
		}
	}
	return 0, fmt.Errorf("%w: version 1 line longer than %d bytes", errProxyHeader, maxProxyV1)
}

func proxyV2Len(c *peekedConn) (int, error) {
	b, err := peekProxy(c, proxyV2FixedLen)
	if err != nil {
		return 0, err
	}
	n := proxyV2FixedLen + int(binary.BigEndian.Uint16(b[14:]))
	if n > maxProxyV2 {
		return 0, fmt.Errorf("%w: version 2 header of %d bytes, at most %d are taken", errProxyHeader, n, maxProxyV2)
	}
	return n, nil
}

// checkProxyTLVs checks the extensions of a version 2 header: their lengths, and the checksum where there is one, which a
// receiver must not ignore (PROXY protocol, section 2.2.3).
func checkProxyTLVs(header *proxyproto.Header, raw []byte) error {
	tlvs, err := header.TLVs()
	if err != nil {
		return err
	}
	off := len(raw)
	for _, t := range tlvs {
		off -= 3 + len(t.Value)
	}
	for _, t := range tlvs {
		value := raw[off+3 : off+3+len(t.Value)]
		off += 3 + len(t.Value)
		if t.Type != proxyproto.PP2_TYPE_CRC32C {
			continue
		}
		if len(value) != 4 {
			return errors.New("checksum is not 4 bytes long")
		}
		zeroed := bytes.Clone(raw)
		clear(zeroed[off-4 : off])
		if crc32.Checksum(zeroed, castagnoli) != binary.BigEndian.Uint32(value) {
			return errors.New("checksum does not match")
		}
	}
	return nil
}

func addrPort(a *net.TCPAddr) netip.AddrPort {
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// ProxyVersion is a version of the PROXY protocol.
type ProxyVersion byte

// The versions of the PROXY protocol: a line of text, and a binary header.
const (
	ProxyV1 ProxyVersion = 1
	ProxyV2 ProxyVersion = 2
)

// proxyHeaderTimeout bounds the write of a PROXY header, which fits into the buffer of any socket that is just open.
const proxyHeaderTimeout = 5 * time.Second

// clientAddrs are the two ends of a client's connection, as a PROXY header tells them.
type clientAddrs struct{ src, dst netip.AddrPort }

type clientAddrsKey struct{}

// asClient returns a context in which connections to backends are made on behalf of the client.
func (c *clientConn) asClient(ctx context.Context) context.Context {
	return context.WithValue(ctx, clientAddrsKey{}, clientAddrs{c.remote, c.local})
}

// sendProxyHeader writes a PROXY header with the addresses of the client that the connection is made for. Outside of
// asClient the connection is our own, as a health check's is, and the header says so: LOCAL, or UNKNOWN in version 1
// (PROXY protocol, sections 2.1 and 2.2).
func sendProxyHeader(ctx context.Context, conn net.Conn, version ProxyVersion) error {
	addrs, _ := ctx.Value(clientAddrsKey{}).(clientAddrs)
	header, err := proxyHeader(version, addrs.src, addrs.dst)
	if err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	conn.SetWriteDeadline(time.Now().Add(proxyHeaderTimeout))
	if _, err := conn.Write(header); err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	conn.SetWriteDeadline(time.Time{})
	return nil
}

// proxyHeader makes a PROXY header. Addresses that are not valid are not told; of two families, IPv4 is told as mapped
// into IPv6, since a header has room for one.
func proxyHeader(version ProxyVersion, src, dst netip.AddrPort) ([]byte, error) {
	header := &proxyproto.Header{Version: byte(version), Command: proxyproto.LOCAL, TransportProtocol: proxyproto.UNSPEC}
	if src.IsValid() && dst.IsValid() {
		header = proxyproto.HeaderProxyFromAddrs(byte(version), net.TCPAddrFromAddrPort(src), net.TCPAddrFromAddrPort(dst))
	}
	return header.Format()
}
