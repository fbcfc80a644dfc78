package proxy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/pires/go-proxyproto"

	"github.com/autodgate/autodgate/internal/peer"
)

// proxyV2 builds a version 2 header by hand.
func proxyV2(verCmd, family byte, payload ...byte) []byte {
	b := append(bytes.Clone(proxyproto.SIGV2), verCmd, family)
	return append(binary.BigEndian.AppendUint16(b, uint16(len(payload))), payload...)
}

var (
	proxyV4Block = []byte{192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x01, 0xbb} // 192.0.2.7:50000 -> 198.51.100.1:443
	proxyV6Block = slices.Concat(netip.MustParseAddr("2001:db8::7").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice(), []byte{0xc3, 0x50, 0x01, 0xbb})
)

// proxyV2CRC is a version 2 header with a checksum TLV behind a NOOP.
func proxyV2CRC(flip byte) []byte {
	b := proxyV2(0x21, 0x11, append(bytes.Clone(proxyV4Block), 4, 0, 2, 9, 9, 3, 0, 4, 0, 0, 0, 0)...)
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	b[len(b)-1] ^= flip
	return b
}

func libraryHeader(t *testing.T, version byte, src, dst string) []byte {
	t.Helper()
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(src)), net.TCPAddrFromAddrPort(netip.MustParseAddrPort(dst)))
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// a header is taken off and named; everything behind it is left, whatever the segments.
func TestProxyHeader(t *testing.T) {
	f := func(name string, header []byte, src, dst string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			rest := helloWith(sniExt("mail.contoso.com"))
			data := slices.Concat(header, rest)
			for _, r := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data)), iotest.HalfReader(bytes.NewReader(data))} {
				c := newPeekedConn(&scriptedConn{r: r})
				from, to, err := readProxyHeader(c)
				if err != nil {
					t.Fatal(err)
				}
				want := func(s string) netip.AddrPort {
					if s == "" {
						return netip.AddrPort{}
					}
					return netip.MustParseAddrPort(s)
				}
				if from != want(src) || to != want(dst) {
					t.Errorf("addresses %v, %v, want %v, %v", from, to, src, dst)
				}
				if h, err := readHello(c); err != nil || h.ServerName != "mail.contoso.com" {
					t.Errorf("hello behind it: %+v, %v", h, err)
				}
				if got, _ := io.ReadAll(c); !bytes.Equal(got, rest) {
					t.Errorf("left over: %x, want %x", got, rest)
				}
			}
		})
	}
	f("none", nil, "", "")
	f("v1 TCP4", []byte("PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"), "192.0.2.7:50000", "198.51.100.1:443")
	f("v1 TCP6", []byte("PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n"), "[2001:db8::7]:50000", "[2001:db8::1]:443")
	f("v1 mapped address", []byte("PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.1 50000 443\r\n"), "192.0.2.7:50000", "198.51.100.1:443")
	f("v1 UNKNOWN", []byte("PROXY UNKNOWN\r\n"), "", "")
	f("v1 UNKNOWN of 107 bytes", []byte("PROXY UNKNOWN "+strings.Repeat("f", 107-16)+"\r\n"), "", "")
	f("v2 TCP4", proxyV2(0x21, 0x11, proxyV4Block...), "192.0.2.7:50000", "198.51.100.1:443")
	f("v2 TCP6", proxyV2(0x21, 0x21, proxyV6Block...), "[2001:db8::7]:50000", "[2001:db8::1]:443")
	f("v2 LOCAL", proxyV2(0x20, 0x00), "", "")
	f("v2 LOCAL with addresses", proxyV2(0x20, 0x11, proxyV4Block...), "", "")
	f("v2 Unix", proxyV2(0x21, 0x31, make([]byte, 216)...), "", "")
	f("v2 datagram", proxyV2(0x21, 0x12, proxyV4Block...), "", "")
	f("v2 checksum", proxyV2CRC(0), "192.0.2.7:50000", "198.51.100.1:443")
	f("v2 TLVs up to the limit", proxyV2(0x21, 0x11, append(bytes.Clone(proxyV4Block), proxyTLV(4, maxProxyV2-16-12-3)...)...), "192.0.2.7:50000", "198.51.100.1:443")
	f("library v1", libraryHeader(t, 1, "192.0.2.7:1", "198.51.100.1:443"), "192.0.2.7:1", "198.51.100.1:443")
	f("library v2", libraryHeader(t, 2, "[2001:db8::7]:1", "[2001:db8::1]:443"), "[2001:db8::7]:1", "[2001:db8::1]:443")
}

func proxyTLV(typ byte, n int) []byte {
	return append(append([]byte{typ}, be16(n)...), make([]byte, n)...)
}

func TestBadProxyHeader(t *testing.T) {
	f := func(name, data, want string) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			for _, r := range []io.Reader{strings.NewReader(data), iotest.OneByteReader(strings.NewReader(data))} {
				src, dst, err := readProxyHeader(newPeekedConn(&scriptedConn{r: r}))
				if !errors.Is(err, errProxyHeader) || !strings.Contains(err.Error(), want) {
					t.Errorf("error = %v, want a bad header with %q", err, want)
				}
				if src.IsValid() || dst.IsValid() {
					t.Errorf("addresses %v, %v beside an error", src, dst)
				}
			}
		})
	}
	f("v1 too long", "PROXY UNKNOWN "+strings.Repeat("f", 107-15)+"\r\n", "longer than 107 bytes")
	f("v1 without CR", "PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\n", "must end with")
	f("v1 unknown protocol", "PROXY SCTP 192.0.2.7 198.51.100.1 50000 443\r\n", "address family")
	f("v1 address of the other family", "PROXY TCP4 2001:db8::7 2001:db8::1 50000 443\r\n", "invalid address")
	f("v1 bad port", "PROXY TCP4 192.0.2.7 198.51.100.1 50000 70000\r\n", "invalid port")
	f("v1 fields missing", "PROXY TCP4 192.0.2.7\r\n", "address family")
	f("v1 fields too many", "PROXY TCP4 192.0.2.7 198.51.100.1 50000 443 x\r\n", "address family")
	f("v2 version 3", string(proxyV2(0x31, 0x11, proxyV4Block...)), "version and command")
	f("v2 unknown family", string(proxyV2(0x21, 0x13, proxyV4Block...)), "address family")
	f("v2 address block cut short", string(proxyV2(0x21, 0x11, proxyV4Block[:8]...)), "invalid length")
	f("v2 over 4 KiB", string(proxyV2(0x21, 0x11, make([]byte, maxProxyV2-15)...)), "4097 bytes, at most 4096")
	f("v2 truncated TLV", string(proxyV2(0x21, 0x11, append(bytes.Clone(proxyV4Block), 4, 0)...)), "truncated TLV")
	f("v2 wrong checksum", string(proxyV2CRC(1)), "checksum does not match")
	f("v2 short checksum", string(proxyV2(0x21, 0x11, append(bytes.Clone(proxyV4Block), 3, 0, 1, 0)...)), "checksum is not 4 bytes")
}

// What only begins like a header is left alone, at the first byte that differs, and nothing more is waited for.
func TestNoProxyHeader(t *testing.T) {
	for _, data := range []string{"\x16", "G", "PO", "PROPFIND", "PROXYING", "\r\n\r\nGET", "\r\n\r\n\x00\r\nQUIX", "\x00"} {
		c := newPeekedConn(&scriptedConn{r: iotest.OneByteReader(io.MultiReader(strings.NewReader(data), noMoreReads{t}))})
		for i := 1; ; i++ { // how many bytes it takes to know
			if p := data[:i]; i == len(data) || !strings.HasPrefix(string(proxyV1Start), p) && !strings.HasPrefix(string(proxyproto.SIGV2), p) {
				data = p
				break
			}
		}
		src, dst, err := readProxyHeader(c)
		if err != nil || src.IsValid() || dst.IsValid() {
			t.Errorf("%q: %v, %v, %v", data, src, dst, err)
		}
		if string(c.ahead) != data {
			t.Errorf("read ahead %q, want %q", c.ahead, data)
		}
	}
}

func TestProxyHeaderCutOff(t *testing.T) {
	for _, data := range []string{"P", "PROXY TCP4 192", string(proxyV2(0x21, 0x11, proxyV4Block...))[:14]} {
		if _, _, err := readProxyHeader(newPeekedConn(&scriptedConn{r: strings.NewReader(data)})); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: %v, want unexpected EOF", data, err)
		}
	}
	if _, _, err := readProxyHeader(newPeekedConn(&scriptedConn{r: strings.NewReader("")})); !errors.Is(err, io.EOF) {
		t.Errorf("no byte at all: %v, want EOF", err)
	}
}

// curl sends its own address, and then its hello in the same or the next segment.
func TestProxyHeaderFromCurl(t *testing.T) {
	path := peer.Need(t, "curl", "apt-get install curl")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.Command(path, "-sk", "--max-time", "60", "--haproxy-protocol", "--connect-to", "mail.contoso.com:443:"+ln.Addr().String(), "https://mail.contoso.com/")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c := newPeekedConn(s)
	src, dst, err := readProxyHeader(c)
	if err != nil || src.String() != s.RemoteAddr().String() || dst.String() != s.LocalAddr().String() {
		t.Errorf("%v, %v, %v, want %v, %v", src, dst, err, s.RemoteAddr(), s.LocalAddr())
	}
	if h, err := readHello(c); err != nil || h.ServerName != "mail.contoso.com" {
		t.Errorf("hello behind it: %+v, %v", h, err)
	}
	s.Close()
	_ = cmd.Wait() // curl complains that the server hung up
}

func FuzzProxyHeader(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\nx", "PROXY UNKNOWN\r\n", string(proxyV2CRC(0)), string(proxyV2(0x20, 0)), string(proxyV2(0x21, 0x21, proxyV6Block...)) + "rest", "GET / HTTP/1.1\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func(r io.Reader) (src, dst netip.AddrPort, rest string, ok bool) {
			c := newPeekedConn(&scriptedConn{r: r})
			src, dst, err := readProxyHeader(c)
			if err != nil {
				return src, dst, "", false
			}
			left, _ := io.ReadAll(c)
			if !bytes.HasSuffix(data, left) {
				t.Fatalf("%x left of %x", left, data)
			}
			return src, dst, string(left), true
		}
		src, dst, rest, ok := read(bytes.NewReader(data))
		src1, dst1, rest1, ok1 := read(iotest.OneByteReader(bytes.NewReader(data)))
		if src != src1 || dst != dst1 || rest != rest1 || ok != ok1 {
			t.Fatalf("in one segment %v %v %x %v, byte by byte %v %v %x %v", src, dst, rest, ok, src1, dst1, rest1, ok1)
		}
		if ok && len(rest) == len(data) && bytes.HasPrefix(data, []byte("PROXY ")) {
			t.Fatal("a version 1 header was let through")
		}
	})
}
