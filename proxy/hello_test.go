package proxy

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

const helloDir = "../testdata/hello"

// scriptedConn is a connection whose peer has sent the bytes of r and then closed. What is written to it is dropped.
type scriptedConn struct {
	net.Conn // nil: only what is defined here may be used
	r        io.Reader
	reads    int
}

func (c *scriptedConn) Read(b []byte) (int, error) {
	c.reads++
	return c.r.Read(b)
}
func (c *scriptedConn) Write(b []byte) (int, error)        { return len(b), nil }
func (c *scriptedConn) SetDeadline(t time.Time) error      { return nil }
func (c *scriptedConn) SetReadDeadline(t time.Time) error  { return nil }
func (c *scriptedConn) SetWriteDeadline(t time.Time) error { return nil }
func (c *scriptedConn) RemoteAddr() net.Addr               { return &net.TCPAddr{} }
func (c *scriptedConn) LocalAddr() net.Addr                { return &net.TCPAddr{} }
func (c *scriptedConn) Close() error                       { return nil }

// readHelloBytes reads a hello from data, delivered as r does it, and checks that not one byte is lost.
func readHelloBytes(t testing.TB, data []byte, r io.Reader) (hello, error) {
	t.Helper()
	c := newPeekedConn(&scriptedConn{r: r})
	h, err := readHello(c)
	replay, readErr := io.ReadAll(c)
	if readErr != nil || !bytes.Equal(replay, data) {
		t.Fatalf("replay differs (%v): sent %x, got %x", readErr, data, replay)
	}
	if c.ahead != nil {
		t.Fatal("the buffer is kept after it was drained")
	}
	return h, err
}

// checkHello reads data in one segment and byte by byte.
func checkHello(t *testing.T, data []byte, want hello, wantErr error) {
	t.Helper()
	for _, r := range []io.Reader{bytes.NewReader(data), iotest.OneByteReader(bytes.NewReader(data)), iotest.DataErrReader(bytes.NewReader(data))} {
		got, err := readHelloBytes(t, data, r)
		if !errors.Is(err, wantErr) {
			t.Errorf("error = %v, want %v", err, wantErr)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("hello = %+v, want %+v", got, want)
		}
	}
}

// real hellos, split over segments and records, of every size; the files are described in testdata/hello/README.md.
func TestRecordedHellos(t *testing.T) {
	const contoso = "mail.contoso.com"
	var long []string
	for i := range 200 {
		long = append(long, "experimental-protocol/"+string([]byte{'0' + byte(i/100), '0' + byte(i/10%10), '0' + byte(i%10)}))
	}
	recorded := func(version uint16, alpn ...string) hello { return hello{contoso, contoso, alpn, version} }
	for file, want := range map[string]hello{
		"curl-default":         recorded(tls.VersionTLS13, "h2", "http/1.1"),
		"go-acme-alpn":         recorded(tls.VersionTLS13, "acme-tls/1"),
		"go-early-data":        recorded(tls.VersionTLS13),
		"go-ech-outer":         recorded(tls.VersionTLS13),
		"go-long-alpn":         recorded(tls.VersionTLS13, append(long, "http/1.1")...),
		"go-mlkem1024":         recorded(tls.VersionTLS13),
		"go-mlkem768":          recorded(tls.VersionTLS13),
		"go-no-sni":            {MaxVersion: tls.VersionTLS13},
		"go-records-of-1":      recorded(tls.VersionTLS12),
		"go-records-of-100":    recorded(tls.VersionTLS13),
		"go-tls10":             recorded(tls.VersionTLS10),
		"go-tls12":             recorded(tls.VersionTLS12),
		"go-tls13-x25519":      recorded(tls.VersionTLS13),
		"go-upper-case":        {contoso, "MAIL.Contoso.COM", nil, tls.VersionTLS13},
		"openssl-alpn":         recorded(tls.VersionTLS13, "h2", "http/1.1"),
		"openssl-default":      recorded(tls.VersionTLS13),
		"openssl-ip-literal":   {"192.0.2.1", "192.0.2.1", nil, tls.VersionTLS13},
		"openssl-max-fragment": recorded(tls.VersionTLS13),
		"openssl-noservername": {MaxVersion: tls.VersionTLS13},
		"openssl-tls10":        recorded(tls.VersionTLS10),
		"openssl-tls12":        recorded(tls.VersionTLS12),
		"openssl-tls13":        recorded(tls.VersionTLS13),
		"openssl-trailing-dot": {contoso, contoso + ".", nil, tls.VersionTLS13},
		"openssl-upper-case":   {"autodiscover.contoso.com", "AutoDiscover.Contoso.COM", nil, tls.VersionTLS13},
	} {
		t.Run(file, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(helloDir, file+".bin"))
			if err != nil {
				t.Fatal(err)
			}
			checkHello(t, data, want, nil)
			for n := 1; n < len(data); n += 1 + len(data)/50 {
				if file == "go-early-data" && n > len(data)-69 {
					break // the hello itself is complete
				}
				cut := data[:n]
				if _, err := readHelloBytes(t, cut, bytes.NewReader(cut)); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Fatalf("cut after %d bytes: %v, want unexpected EOF", n, err)
				}
			}
		})
	}
	files, err := filepath.Glob(filepath.Join(helloDir, "*.bin"))
	if err != nil || len(files) != 24 {
		t.Errorf("%d files in %s, the table above has 24 (%v)", len(files), helloDir, err)
	}
}

// The builders below make hellos that no client library would send.

func be16(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

func lenPrefixed(b []byte) []byte { return append(be16(len(b)), b...) }

func helloExt(typ int, data []byte) []byte { return append(be16(typ), lenPrefixed(data)...) }

func sniEntry(typ byte, name string) []byte {
	return append([]byte{typ}, lenPrefixed([]byte(name))...)
}

// sni is a server_name extension with one host name.
func sniExt(name string) []byte { return helloExt(extServerName, lenPrefixed(sniEntry(0, name))) }

// helloBody is a ClientHello body of the given legacy version; with nil extensions the block is left out.
func helloBody(version int, exts ...[]byte) []byte {
	b := append(be16(version), make([]byte, 32)...)
	b = append(b, 0)                                        // session id
	b = append(b, lenPrefixed([]byte{0xc0, 0x2f, 0, 5})...) // suites
	b = append(b, 1, 0)                                     // compression
	if exts != nil {
		b = append(b, lenPrefixed(bytes.Join(exts, nil))...)
	}
	return b
}

func helloMsg(body []byte) []byte {
	n := len(body)
	return append([]byte{typeClientHello, byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

func tlsRecord(typ byte, payload []byte) []byte {
	return append([]byte{typ, 3, 1}, lenPrefixed(payload)...)
}

// helloWith is a whole TLS 1.2 hello in one record.
func helloWith(exts ...[]byte) []byte {
	return tlsRecord(22, helloMsg(helloBody(tls.VersionTLS12, exts...)))
}

func withByte(b []byte, at int, v byte) []byte {
	b = bytes.Clone(b)
	b[at] = v
	return b
}

func helloNamed(name, raw string) hello { return hello{name, raw, nil, tls.VersionTLS12} }

// oddHellos are well-formed hellos at the edges; the fuzz target is seeded with them too.
var oddHellos = map[string]struct {
	data []byte
	want hello
}{
	"no extensions at all":     {tlsRecord(22, helloMsg(helloBody(tls.VersionTLS10))), hello{MaxVersion: tls.VersionTLS10}},
	"empty extension block":    {helloWith([][]byte{{}}...), hello{MaxVersion: tls.VersionTLS12}},
	"GREASE":                   {helloWith(helloExt(0x0a0a, nil), sniExt("a.example"), helloExt(extVersions, []byte{6, 0xfa, 0xfa, 3, 4, 3, 3}), helloExt(0xfafa, []byte{0})), hello{"a.example", "a.example", nil, tls.VersionTLS13}},
	"GREASE in ALPN":           {helloWith(helloExt(extALPN, lenPrefixed([]byte("\x02\x5a\x5a\x02h2")))), hello{ALPN: []string{"ZZ", "h2"}, MaxVersion: tls.VersionTLS12}},
	"record version 3.0":       {withByte(helloWith(sniExt("a.example")), 2, 0), helloNamed("a.example", "a.example")},
	"record version 3.4":       {withByte(helloWith(sniExt("a.example")), 2, 4), helloNamed("a.example", "a.example")},
	"trailing dot, upper case": {helloWith(sniExt("A.Example.")), helloNamed("a.example", "A.Example.")},
	"internal short name":      {helloWith(sniExt("SERVER_01")), helloNamed("server_01", "SERVER_01")},
	"IPv4 literal":             {helloWith(sniExt("192.0.2.1")), helloNamed("192.0.2.1", "192.0.2.1")},
	"IPv6 literal":             {helloWith(sniExt("2001:DB8::1")), helloNamed("2001:db8::1", "2001:DB8::1")},
	"name of 255 bytes":        {helloWith(sniExt(strings.Repeat("a", 255))), helloNamed(strings.Repeat("a", 255), strings.Repeat("a", 255))},
	"ECH outer hello":          {helloWith(sniExt("public.example"), helloExt(0xfe0d, make([]byte, 200))), helloNamed("public.example", "public.example")},
	"early data behind it":     {append(helloWith(sniExt("a.example")), tlsRecord(23, make([]byte, 300))...), helloNamed("a.example", "a.example")},
	"more in the same record":  {tlsRecord(22, append(helloMsg(helloBody(tls.VersionTLS12, sniExt("a.example"))), 1, 0, 0, 9)), helloNamed("a.example", "a.example")},
	"16 000 extensions":        {manyExtensions(16000), hello{MaxVersion: tls.VersionTLS12}},
	"just under 64 KiB":        {inRecords(helloMsg(helloBody(tls.VersionTLS12, sniExt("a.example"), helloExt(21, make([]byte, 65000)))), maxRecord), helloNamed("a.example", "a.example")},
	"head split over records":  {inRecords(helloMsg(helloBody(tls.VersionTLS12, sniExt("a.example"))), 3), helloNamed("a.example", "a.example")},
}

// brokenHellos must be refused, each for its own reason.
var brokenHellos = map[string]struct {
	data []byte
	want error
}{
	"nothing":                       {nil, io.EOF},
	"one zero byte":                 {[]byte{0}, errNotTLS},
	"SSH":                           {[]byte("SSH-2.0-OpenSSH_9.2\r\n"), errNotTLS},
	"SMTP":                          {[]byte("EHLO x\r\n"), errNotTLS},
	"a word and no more":            {[]byte("GET"), errNotTLS},
	"PROXY v1, not listed":          {[]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n"), errProxyUnlisted},
	"PROXY v1 of nobody":            {[]byte("PROXY UNKNOWN\r\n"), errProxyUnlisted},
	"PROXY v2, not listed":          {[]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"), errProxyUnlisted},
	"half of a PROXY signature":     {[]byte("\r\n\r\n\x00\r\nQUI"), errNotTLS},
	"endless word":                  {bytes.Repeat([]byte("A"), 100), errNotTLS},
	"DTLS":                          {withByte(withByte(helloWith(), 1, 0xfe), 2, 0xff), errNotTLS},
	"alert first":                   {append(tlsRecord(21, []byte{1, 0}), helloWith()...), errNotTLS},
	"GET":                           {[]byte("GET / HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n"), errPlainHTTP},
	"POST":                          {[]byte("POST /autodiscover/autodiscover.xml HTTP/1.1\r\n"), errPlainHTTP},
	"RPC_IN_DATA":                   {[]byte("RPC_IN_DATA /rpc/rpcproxy.dll?x HTTP/1.1\r\n"), errPlainHTTP},
	"SSTP":                          {[]byte("SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\n"), errPlainHTTP},
	"CONNECT":                       {[]byte("CONNECT mail.contoso.com:443 HTTP/1.1\r\n"), errPlainHTTP},
	"OPTIONS *":                     {[]byte("OPTIONS * HTTP/1.1\r\n"), errPlainHTTP},
	"absolute form":                 {[]byte("GET http://mail.contoso.com/ HTTP/1.1\r\n"), errPlainHTTP},
	"SSLv2":                         {[]byte{0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10}, errHelloSSLv2},
	"TLS 1.0 in SSLv2 framing":      {[]byte{0x80, 0x67, 1, 3, 1, 0, 0x4e, 0, 0, 0, 0x10}, errHelloSSLv2},
	"SSLv3 only":                    {tlsRecord(22, helloMsg(helloBody(0x0300))), errHelloSSLv3},
	"GREASE versions only":          {helloWith(helloExt(extVersions, []byte{2, 0x3a, 0x3a})), errHelloSSLv3},
	"version 4.1 in second record":  {append(tlsRecord(22, helloMsg(helloBody(tls.VersionTLS12))[:9]), 22, 4, 1, 0, 1, 0), errHelloRecordVersion},
	"empty record first":            {append(tlsRecord(22, nil), helloWith()...), errHelloRecordEmpty},
	"empty record inside":           {append(tlsRecord(22, helloMsg(helloBody(tls.VersionTLS12))[:9]), tlsRecord(22, nil)...), errHelloRecordEmpty},
	"change_cipher_spec inside":     {append(tlsRecord(22, helloMsg(helloBody(tls.VersionTLS12))[:9]), tlsRecord(20, []byte{1})...), errHelloRecordType},
	"record over 16 KiB":            {[]byte{22, 3, 1, 0x40, 1, 1}, errHelloRecordLength},
	"ServerHello first":             {tlsRecord(22, append([]byte{2, 0, 0, 40}, make([]byte, 40)...)), errHelloNotFirst},
	"over 64 KiB, not waited for":   {[]byte{22, 3, 1, 0x40, 0, 1, 1, 0, 0}, errHelloTooLong},
	"over 64 KiB by record headers": {inRecords(helloMsg(helloBody(tls.VersionTLS12, helloExt(21, make([]byte, 20000)))), 1), errHelloTooLong},
	"body ends in the random":       {tlsRecord(22, helloMsg(make([]byte, 20))), errHelloLengths},
	"odd cipher suites":             {tlsRecord(22, helloMsg(append(append(be16(0x303), make([]byte, 33)...), 0, 3, 0, 5, 0, 1, 0))), errHelloLengths},
	"bytes behind the extensions":   {tlsRecord(22, helloMsg(append(helloBody(tls.VersionTLS12, sniExt("a")), 0))), errHelloLengths},
	"extension past the end":        {helloWith([]byte{0, 0, 0, 9, 0}), errHelloLengths},
	"two server_name extensions":    {helloWith(sniExt("a.example"), sniExt("a.example")), errHelloTwice},
	"two unknown extensions":        {helloWith(helloExt(0x1234, nil), helloExt(0x1234, nil)), errHelloTwice},
	"two names":                     {helloWith(helloExt(0, lenPrefixed(append(sniEntry(0, "a.example"), sniEntry(0, "b.example")...)))), errHelloNames},
	"name of an unknown type":       {helloWith(helloExt(0, lenPrefixed(sniEntry(1, "a.example")))), errHelloNames},
	"unknown type, then a name":     {helloWith(helloExt(0, lenPrefixed(append(sniEntry(7, "x"), sniEntry(0, "b.example")...)))), errHelloNames},
	"empty name":                    {helloWith(sniExt("")), errHelloNameList},
	"empty name list":               {helloWith(helloExt(0, be16(0))), errHelloNameList},
	"empty server_name":             {helloWith(helloExt(0, nil)), errHelloNameList},
	"bytes behind the name list":    {helloWith(helloExt(0, append(lenPrefixed(sniEntry(0, "a.example")), 0))), errHelloNameList},
	"name of 256 bytes":             {helloWith(sniExt(strings.Repeat("a", 256))), errHelloNameLong},
	"NUL in the name":               {helloWith(sniExt("a.example\x00.evil")), errHelloName},
	"line break in the name":        {helloWith(sniExt("a.example\r\nX: y")), errHelloName},
	"space in the name":             {helloWith(sniExt("a example")), errHelloName},
	"slash in the name":             {helloWith(sniExt("a.example/owa")), errHelloName},
	"wildcard":                      {helloWith(sniExt("*.example")), errHelloName},
	"UTF-8 name":                    {helloWith(sniExt("bücher.example")), errHelloName},
	"port in the name":              {helloWith(sniExt("a.example:443")), errHelloName},
	"zone in an address":            {helloWith(sniExt("fe80::1%eth0")), errHelloName},
	"address in brackets":           {helloWith(sniExt("[::1]")), errHelloName},
	"a dot alone":                   {helloWith(sniExt(".")), errHelloName},
	"two trailing dots":             {helloWith(sniExt("a.example..")), errHelloName},
	"leading dot":                   {helloWith(sniExt(".example")), errHelloName},
	"empty label":                   {helloWith(sniExt("a..example")), errHelloName},
	"empty ALPN list":               {helloWith(helloExt(extALPN, be16(0))), errHelloALPN},
	"empty ALPN name":               {helloWith(helloExt(extALPN, lenPrefixed([]byte{0}))), errHelloALPN},
	"ALPN name past the end":        {helloWith(helloExt(extALPN, lenPrefixed([]byte{9, 'h'}))), errHelloALPN},
	"odd supported_versions":        {helloWith(helloExt(extVersions, []byte{3, 3, 4, 3})), errHelloVersions},
	"empty supported_versions":      {helloWith(helloExt(extVersions, []byte{0})), errHelloVersions},
}

func manyExtensions(n int) []byte {
	var exts [][]byte
	for i := range n {
		exts = append(exts, helloExt(0x1000+i, nil))
	}
	return inRecords(helloMsg(helloBody(tls.VersionTLS12, exts...)), maxRecord)
}

func inRecords(msg []byte, n int) []byte {
	var out []byte
	for part := range slices.Chunk(msg, n) {
		out = append(out, tlsRecord(22, part)...)
	}
	return out
}

func TestOddHellos(t *testing.T) {
	for name, c := range oddHellos {
		t.Run(name, func(t *testing.T) { checkHello(t, c.data, c.want, nil) })
	}
}

func TestBrokenHellos(t *testing.T) {
	for name, c := range brokenHellos {
		t.Run(name, func(t *testing.T) { checkHello(t, c.data, hello{}, c.want) })
	}
}

// A client that has sent enough to be refused is not waited for, and one that sent garbage is not waited for at all.
func TestRefusalNeedsNoMoreBytes(t *testing.T) {
	for data, want := range map[string]error{
		"\x00":                                 errNotTLS,
		"SSH-":                                 errNotTLS, // the hyphen may be part of a method, the digit behind it not
		"GE\r":                                 errNotTLS,
		"\r\n\r\n\x01":                         errNotTLS,
		"PROXY U":                              errProxyUnlisted,
		"GET /":                                errPlainHTTP,
		"\x16\x03\x01\x40\x01":                 errHelloRecordLength,
		"\x16\x03\x01\x00\x00":                 errHelloRecordEmpty,
		"\x16\x03\x01\x02\x00\x02\x00\x00\x30": errHelloNotFirst,
		"\x80\x2e\x01\x00\x02":                 errHelloSSLv2,
	} {
		if data == "SSH-" {
			data = "SSH-2"
		}
		// noMoreReads fails the test if it is read: it stands for a client that sends no more.
		_, err := readHello(newPeekedConn(&scriptedConn{r: io.MultiReader(strings.NewReader(data), noMoreReads{t})}))
		if !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", data, err, want)
		}
	}
}

type noMoreReads struct{ t *testing.T }

func (b noMoreReads) Read([]byte) (int, error) {
	b.t.Error("waited for more bytes")
	return 0, io.EOF
}

// the deadline that the caller sets ends a slow sender.
func TestSlowHelloMeetsTheDeadline(t *testing.T) {
	server, client := loopbackPair(t)
	if _, err := client.Write([]byte{22, 3, 1}); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := readHello(newPeekedConn(server)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error = %v, want a deadline error", err)
	}
}

// A hello is read once and then handed to crypto/tls, which must not notice.
func TestTerminateAfterPeek(t *testing.T) {
	server, client := loopbackPair(t)
	cert := newCertificate(t, "mail.contoso.com")
	done := make(chan error, 1)
	go func() {
		c := tls.Client(client, &tls.Config{ServerName: "mail.contoso.com", RootCAs: poolOf(cert)})
		if _, err := io.WriteString(c, "ping"); err != nil {
			done <- err
			return
		}
		got, err := io.ReadAll(c)
		if err == nil && string(got) != "pong" {
			err = errors.New("got " + string(got))
		}
		done <- err
	}()
	c := newPeekedConn(server)
	h, err := readHello(c)
	if err != nil || h.ServerName != "mail.contoso.com" {
		t.Fatalf("hello %+v, %v", h, err)
	}
	s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
	buf := make([]byte, 4)
	if _, err := io.ReadFull(s, buf); err != nil || string(buf) != "ping" {
		t.Fatalf("read %q, %v", buf, err)
	}
	if _, err := io.WriteString(s, "pong"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Reading on after the hello must cost nothing: no allocation, and one socket read for each Read.
func TestReadAfterDrainIsDirect(t *testing.T) {
	data := helloWith(sniExt("a.example"))
	sock := &scriptedConn{r: io.MultiReader(bytes.NewReader(data), endlessReader{})}
	c := newPeekedConn(sock)
	if _, err := readHello(c); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, len(data))); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	before := sock.reads
	if n := testing.AllocsPerRun(100, func() { _, _ = c.Read(buf) }); n != 0 {
		t.Errorf("%v allocations per Read", n)
	}
	if n := sock.reads - before; n != 101 { // AllocsPerRun runs once more to warm up
		t.Errorf("%d socket reads for 101 Reads", n)
	}
}

type endlessReader struct{}

func (endlessReader) Read(b []byte) (int, error) { return len(b), nil }

// AUTODISCOVER.md 1.4 rule 8: real clients understand the alert of a refused name, and see no certificate.
func TestRefuseTLSIsUnderstood(t *testing.T) {
	refuser := func(t *testing.T) (addr string, errs <-chan error) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		out := make(chan error, 1)
		go func() {
			s, err := ln.Accept()
			if err != nil {
				out <- err
				return
			}
			c := newPeekedConn(s)
			if _, err := readHello(c); err != nil {
				out <- err
				return
			}
			out <- refuseTLS(c, alertUnrecognizedName)
		}()
		return ln.Addr().String(), out
	}

	for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS12, tls.VersionTLS13} {
		t.Run("crypto/tls "+tls.VersionName(version), func(t *testing.T) {
			addr, errs := refuser(t)
			_, err := tls.Dial("tcp", addr, &tls.Config{ServerName: "x.example", MinVersion: version, MaxVersion: version})
			if err == nil || !strings.Contains(err.Error(), "remote error: tls: unrecognized name") {
				t.Errorf("client error = %v, want the alert", err)
			}
			if err := <-errs; err != nil {
				t.Error(err)
			}
		})
	}
	run := func(t *testing.T, errs <-chan error, want, program string, args ...string) {
		path := peer.Need(t, program, "apt-get install "+program)
		out, err := exec.Command(path, args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v, output lacks %q:\n%s", err, want, out)
		}
		if strings.Contains(string(out), "BEGIN CERTIFICATE") {
			t.Error("a certificate was sent")
		}
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, args := range [][]string{{"-tls1_3"}, {"-tls1_2"}, {"-tls1", "-cipher", "ALL:@SECLEVEL=0"}} {
		t.Run("openssl"+args[0], func(t *testing.T) {
			addr, errs := refuser(t)
			run(t, errs, "unrecognized name", "openssl", append([]string{"s_client", "-servername", "x.example", "-connect", addr}, args...)...)
		})
	}
	t.Run("curl", func(t *testing.T) {
		addr, errs := refuser(t)
		run(t, errs, "unrecognized name", "curl", "-sSk", "--connect-to", "x.example:443:"+addr, "https://x.example/")
	})
}

// The alert must arrive although the client has sent more than was read.
func TestRefuseTLSWithUnreadBytes(t *testing.T) {
	server, client := loopbackPair(t)
	if _, err := client.Write(append(helloWith(), make([]byte, 100<<10)...)); err != nil {
		t.Fatal(err)
	}
	c := newPeekedConn(server)
	if _, err := readHello(c); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- refuseTLS(c, alertDecodeError) }()
	got, err := io.ReadAll(client)
	if want := []byte{21, 3, 1, 0, 2, 2, 50}; err != nil || !bytes.Equal(got, want) {
		t.Errorf("client read %x, %v, want %x and EOF", got, err, want)
	}
	client.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// errSentinel stops crypto/tls once it has parsed a hello.
var errSentinel = errors.New("parsed")

// goHello is what crypto/tls reads from the same bytes; nil if it refuses them.
func goHello(data []byte) (*tls.ClientHelloInfo, error) {
	var info *tls.ClientHelloInfo
	err := tls.Server(&scriptedConn{r: bytes.NewReader(data)}, &tls.Config{
		GetConfigForClient: func(i *tls.ClientHelloInfo) (*tls.Config, error) {
			info = i
			return nil, errSentinel
		},
	}).Handshake()
	return info, err
}

// decidingPart is a good hello in one record, with those extensions alone that readHello looks into.
func decidingPart(data []byte) []byte {
	var msg []byte
	for c := (cursor{data, true}); len(msg) < handshakeHeadLen || len(msg) < handshakeHeadLen+int(msg[1])<<16+int(msg[2])<<8+int(msg[3]); {
		c.take(3)
		msg = append(msg, c.take(c.uint16())...)
	}
	body := msg[handshakeHeadLen:][:int(msg[1])<<16+int(msg[2])<<8+int(msg[3])]
	c := cursor{body, true}
	c.take(2 + 32)
	c.take(c.uint8())
	c.take(c.uint16())
	c.take(c.uint8())
	out := bytes.Clone(body[:len(body)-len(c.b)])
	var kept []byte
	for exts := (cursor{c.take(c.uint16()), true}); len(exts.b) > 0; {
		if typ, data := exts.uint16(), exts.take(exts.uint16()); typ == extServerName || typ == extALPN || typ == extVersions {
			kept = append(kept, helloExt(typ, data)...)
		}
	}
	return inRecords(helloMsg(append(out, lenPrefixed(kept)...)), maxRecord)
}

// stricterThanGo are the hellos which crypto/tls reads and we refuse, on purpose.
func stricterThanGo(err error) bool {
	for _, strict := range []error{
		errNotTLS,             // a warning alert or another record type first, or a record version that is not 3.x
		errHelloRecordVersion, // the same later
		errHelloRecordType,    // a warning alert inside the hello
		errHelloRecordEmpty,
		errHelloSSLv3, // refused there after the name is read
		errHelloTooLong,
		errHelloNames, errHelloNameLong, errHelloName,
	} {
		if errors.Is(err, strict) {
			return true
		}
	}
	return false
}

// FuzzHello: no panic, no byte lost, no difference between one segment and many, and the same name and protocols as
// crypto/tls wherever that reads any. The other way round we are laxer: we do not read extensions that decide nothing, and
// leave those to the server that ends the handshake.
func FuzzHello(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(helloDir, "*.bin"))
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds in %s: %v", helloDir, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, c := range oddHellos {
		f.Add(c.data)
	}
	for _, c := range brokenHellos {
		f.Add(c.data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHelloBytes(t, data, bytes.NewReader(data))
		slow, slowErr := readHelloBytes(t, data, iotest.OneByteReader(bytes.NewReader(data)))
		if !reflect.DeepEqual(h, slow) || (err == nil) != (slowErr == nil) || err != nil && err.Error() != slowErr.Error() {
			t.Fatalf("in one segment %+v, %v; byte by byte %+v, %v", h, err, slow, slowErr)
		}
		if err == nil {
			if again, err := canonicalServerName(h.ServerName); h.ServerName != "" && (err != nil || again != h.ServerName) {
				t.Fatalf("%q is not canonical: %q, %v", h.ServerName, again, err)
			}
			if (h.ServerName == "") != (h.RawServerName == "") {
				t.Fatalf("name %q from %q", h.ServerName, h.RawServerName)
			}
		}
		info, _ := goHello(data)
		switch {
		case info == nil && err == nil:
			// Refused there for an extension that decides nothing here, or for the trailing dot. Nothing else may differ.
			if info, goErr := goHello(decidingPart(data)); strings.HasSuffix(h.RawServerName, ".") {
				if info != nil {
					t.Fatalf("crypto/tls takes the trailing dot of %q now", h.RawServerName)
				}
			} else if info == nil || strings.ToLower(info.ServerName) != h.ServerName || !slices.Equal(info.SupportedProtos, h.ALPN) {
				t.Fatalf("crypto/tls says %v to what is left of %+v", goErr, h)
			}
		case info == nil: // both refuse
		case err != nil:
			if !stricterThanGo(err) {
				t.Fatalf("crypto/tls reads %q, we say %v", info.ServerName, err)
			}
		case strings.ToLower(info.ServerName) != h.ServerName || !slices.Equal(info.SupportedProtos, h.ALPN):
			t.Fatalf("crypto/tls reads %q %q, we %+v", info.ServerName, info.SupportedProtos, h)
		}
	})
}

func BenchmarkReadHello(b *testing.B) {
	data, err := os.ReadFile(filepath.Join(helloDir, "go-mlkem768.bin"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := readHello(newPeekedConn(&scriptedConn{r: bytes.NewReader(data)})); err != nil {
			b.Fatal(err)
		}
	}
}
