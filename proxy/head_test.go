package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newCertConfig(t testing.TB) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{newCertificate(t, "mail.contoso.com")}}
}

// scanHead feeds data to the scanner in pieces of the given size, as a slow
// connection would, and returns the head and what follows it.
func scanHead(data []byte, step int) (head, rest []byte, err error) {
	r := &reader{conn: nopConn{&stepReader{data, step}}}
	var scan headScanner
	for {
		if err := r.fill(); err != nil {
			return nil, nil, err
		}
		h, err := scan.next(r)
		if err != nil {
			return nil, nil, err
		}
		if h != nil {
			h = bytes.Clone(h)
			left := bytes.Clone(r.take(r.buffered()))
			more, _ := io.ReadAll(r.conn)
			return h, append(left, more...), nil
		}
	}
}

type stepReader struct {
	data []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	n := min(r.step, len(p), len(r.data))
	if n == 0 {
		return 0, io.EOF
	}
	copy(p, r.data[:n])
	r.data = r.data[n:]
	return n, nil
}

// FuzzRequestHead: no panic; the pieces in which a head arrives do not matter; not
// a byte behind it is lost; what we accept, we forward as a head that parses the
// same; and where net/http also accepts it, both agree on where the body ends and
// which host is meant.
func FuzzRequestHead(f *testing.F) {
	seeds, _ := filepath.Glob("../testdata/http/*.req.http")
	for _, s := range seeds {
		if data, err := os.ReadFile(s); err == nil {
			f.Add(data)
		}
	}
	for _, s := range []string{
		"RPC_IN_DATA /rpc/rpcproxy.dll?srv:6001 HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 1073741824\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close, x-a\r\nX-A: b\r\n\r\n0\r\n\r\n",
		"GET http://a:80/b?c HTTP/1.0\r\nHost: d\r\nConnection: keep-alive\r\n\r\nrest", "OPTIONS * HTTP/1.1\r\nHost: [::1]:4\r\n\r\n",
		"GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", "\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 2*maxHeadBytes {
			return // longer ones tell no more and take the fuzzer's time
		}
		head, rest, err := scanHead(data, len(data)+1)
		head1, rest1, err1 := scanHead(data, 1)
		if (err == nil) != (err1 == nil) || !bytes.Equal(head, head1) || !bytes.Equal(rest, rest1) {
			t.Fatalf("whole: %q %q %v; byte by byte: %q %q %v", head, rest, err, head1, rest1, err1)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(append(bytes.Clone(head), rest...), data) {
			t.Fatal("bytes were lost")
		}
		var h requestHead
		if parseRequestHead(head, &h) != nil {
			return
		}
		out := appendRequestHead(nil, &h, h.target, forwarding{host: "default.example"})
		sent, extra, err := scanHead(out, len(out))
		if err != nil || len(extra) > 0 {
			t.Fatalf("forwarded head is not one head: %v %q", err, out)
		}
		var again requestHead
		if err := parseRequestHead(sent, &again); err != nil {
			t.Fatalf("forwarded head %q: %v", out, err)
		}
		wantLength := h.contentLength
		if wantLength < 0 && !h.chunked && needsLength(h.method) {
			wantLength = 0
		}
		if again.method != h.method || again.target != h.target || again.contentLength != wantLength || again.chunked != h.chunked ||
			h.hostName != "" && again.hostName != h.hostName || again.close || again.upgradeTo != "" {
			t.Fatalf("forwarded as %q", out)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head)))
		if err != nil || h.method == "CONNECT" {
			return
		}
		chunked := len(r.TransferEncoding) > 0
		if chunked != h.chunked || !chunked && max(h.contentLength, 0) != r.ContentLength {
			t.Fatalf("framing differs from net/http: %+v, %d %v", h.framing, r.ContentLength, r.TransferEncoding)
		}
		if h.authority != "" && !strings.EqualFold(r.Host, h.authority) {
			t.Fatalf("host differs from net/http: %q, %q", h.authority, r.Host)
		}
	})
}

// FuzzResponseHead: as FuzzRequestHead, for what backends send.
func FuzzResponseHead(f *testing.F) {
	seeds, _ := filepath.Glob("../testdata/http/*.resp.http")
	for _, s := range seeds {
		if data, err := os.ReadFile(s); err == nil {
			f.Add(data)
		}
	}
	f.Add([]byte("HTTP/1.1 200 Success\r\nTransfer-Encoding: chunked\r\nConnection: Proxy-Support\r\nProxy-Support: x\r\n\r\n"))
	f.Add([]byte("HTTP/1.0 503 RPC Error: 6ba\r\nContent-Length: 0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		head, _, err := scanHead(data, len(data)+1)
		if err != nil {
			return
		}
		var h responseHead
		if parseResponseHead(head, &h) != nil {
			return
		}
		out := appendResponseHead(nil, &h, "", false, nil)
		var again responseHead
		if err := parseResponseHead(out, &again); err != nil {
			t.Fatalf("relayed head %q: %v", out, err)
		}
		if again.status != h.status || !bytes.Equal(again.statusLine, h.statusLine) || again.contentLength != h.contentLength || again.chunked != h.chunked {
			t.Fatalf("relayed as %q", out)
		}
		r, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), nil)
		if err != nil {
			return
		}
		if r.StatusCode != h.status {
			t.Fatalf("status differs from net/http: %d, %d", h.status, r.StatusCode)
		}
	})
}

// FuzzChunks: no panic; the pieces in which chunks arrive do not matter; what we
// re-frame decodes to what net/http reads, wherever we accept it.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "3;x=y\r\nabc\r\n00\r\nA: b\r\n\r\nrest", "A\r\n0123456789\r\n0\r\n\r\n", "3\nabc\r\n0\r\n\r\n", "3 \r\nabc\r\n0\r\n\r\n", "3\r\nabcd\r\n0\r\n\r\n"} {
		f.Add([]byte(s))
	}
	decode := func(data []byte, step int) (payload, framed, rest []byte, err error) {
		r := &reader{conn: nopConn{&stepReader{data, step}}}
		b := body{kind: chunkedBody, src: r}
		for {
			piece, err := b.next(7, r.fill)
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, nil, nil, err
			}
			payload = append(payload, piece...)
			framed = appendPiece(framed, piece, true)
		}
		rest = bytes.Clone(r.take(r.buffered()))
		more, _ := io.ReadAll(r.conn)
		return payload, append(framed, lastChunk...), append(rest, more...), nil
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		payload, framed, rest, err := decode(data, len(data)+1)
		payload1, _, rest1, err1 := decode(data, 1)
		if (err == nil) != (err1 == nil) || !bytes.Equal(payload, payload1) || !bytes.Equal(rest, rest1) {
			t.Fatalf("whole: %q %q %v; byte by byte: %q %q %v", payload, rest, err, payload1, rest1, err1)
		}
		if err != nil {
			return
		}
		r, err := http.ReadResponse(bufio.NewReader(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), bytes.NewReader(framed))), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r.Body)
		if err != nil || !bytes.Equal(got, payload) {
			t.Fatalf("re-framed %q reads as %q, %v", framed, got, err)
		}
	})
}

// in every spelling; and what merely looks alike passes.
func TestClaimed(t *testing.T) {
	for name, want := range map[string]bool{
		"X-Forwarded-For": true, "x_forwarded_host": true, "X-FORWARDED-anything": true, "X-Forwarded": true, "Forwarded": true, "FORWARDED": true,
		"X-Real-IP": true, "x_real-ip": true, "Front_End_Https": true, "True-Client-IP": true, "Client-Cert": true, "Client-Cert-Chain": true,
		"X-ARR-SSL": true, "X-SSL-Cipher": true, "X-CommonAccessToken": true, "x_rps_cat": true,
		"X-ForwardedFor": false, "X-Real-IPs": false, "Forwarded-By": false, "Client-Certificate": false, "Content-Type": false, "Cookie": false,
		"X-MapiHttpCapability": false, "X-": false, "Client-Cert-": false,
	} {
		if got := claimed([]byte(name)); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { claimed([]byte("Content-Type")) }); n > 0 {
		t.Errorf("%v allocations for an ordinary line", n)
	}
}
