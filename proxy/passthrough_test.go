package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
)

// loopbackPair is two ends of one TCP connection; net.Pipe would hide half-close.
func loopbackPair(t testing.TB) (server, client *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return s.(*net.TCPConn), c.(*net.TCPConn)
}

// poolOf trusts one certificate alone.
func poolOf(c tls.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(c.Leaf)
	return p
}

// passed is how one passthrough ended.
type passed struct {
	backend string
	in, out int64
	err     error
}

// passthroughTo accepts one connection on the returned address, reads its hello and passes it through to backend.
func passthroughTo(ctx context.Context, t *testing.T, backend string) (addr string, ended <-chan passed) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	out := make(chan passed, 1)
	go func() {
		s, err := ln.Accept()
		if err != nil {
			out <- passed{err: err}
			return
		}
		c := newPeekedConn(s)
		_ = s.SetDeadline(time.Now().Add(time.Minute))
		if _, err := readHello(c); err != nil {
			out <- passed{err: err}
			return
		}
		var p passed
		p.backend, p.in, p.out, p.err = passthrough(ctx, c, dialOnly(backend), 0, zerolog.Nop())
		out <- p
	}()
	return ln.Addr().String(), out
}

func dialOnly(addr string) func(context.Context) (*upstream, error) {
	return func(ctx context.Context) (*upstream, error) {
		return dialFunc((&net.Dialer{}).DialContext).tcp(ctx, &attempt{backend: &Backend{Name: addr, Address: addr}}, time.Minute)
	}
}

// joined is a client and a backend connection with a passthrough between them; the hello has already arrived.
func joined(ctx context.Context, t *testing.T) (client, backend *net.TCPConn, ended <-chan passed) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr, ended := passthroughTo(ctx, t, ln.Addr().String())
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	hello := helloWith(sniExt("mail.contoso.com"))
	if _, err := c.Write(hello); err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); b.Close() })
	got := make([]byte, len(hello))
	if _, err := io.ReadFull(b, got); err != nil || !bytes.Equal(got, hello) {
		t.Fatalf("backend read %x, %v, want the hello", got, err)
	}
	return c.(*net.TCPConn), b.(*net.TCPConn), ended
}

func waitPassed(t *testing.T, ended <-chan passed) passed {
	t.Helper()
	select {
	case p := <-ended:
		return p
	case <-time.After(patience):
		buf := make([]byte, 1<<16)
		t.Fatalf("passthrough did not end\n%s", buf[:runtime.Stack(buf, true)])
		return passed{}
	}
}

// noPassthroughLeft fails if a goroutine of a passthrough is still there.
func noPassthroughLeft(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "passthroughPair") {
			return
		}
	}
	t.Errorf("goroutines left:\n%s", buf[:runtime.Stack(buf, true)])
}

// stream is n pseudo-random bytes, the same for each seed.
func stream(seed byte, n int64) io.Reader {
	return io.LimitReader(mathrand.NewChaCha8([32]byte{seed}), n)
}

func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%x", h.Sum(nil)), n, err
}

// the bytes of both directions are those that were sent, here 64 MiB each way at once through TLS that ends behind us.
func TestPassthroughSHA256(t *testing.T) {
	const size = 64 << 20
	cert := newCertificate(t, "mail.contoso.com")
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	type result struct {
		sum string
		n   int64
		err error
	}
	exchange := func(c *tls.Conn, seed byte) result {
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(c, stream(seed, size))
			sent <- errors.Join(err, c.CloseWrite())
		}()
		var r result
		r.sum, r.n, r.err = sum(c)
		r.err = errors.Join(r.err, <-sent)
		return r
	}
	atBackend := make(chan result, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			atBackend <- result{err: err}
			return
		}
		defer c.Close()
		atBackend <- exchange(c.(*tls.Conn), 2)
	}()

	addr, ended := passthroughTo(t.Context(), t, ln.Addr().String())
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{ServerName: "mail.contoso.com", RootCAs: poolOf(cert)})
	atClient := exchange(c, 1)
	if got := c.ConnectionState().PeerCertificates; len(got) != 1 || !got[0].Equal(cert.Leaf) {
		t.Error("the client was shown another certificate than the backend's (R-0.3)")
	}
	c.Close()
	for _, end := range []struct {
		where string
		got   result
		seed  byte
	}{{"backend", <-atBackend, 1}, {"client", atClient, 2}} {
		want, _, _ := sum(stream(end.seed, size))
		if end.got.err != nil || end.got.n != size || end.got.sum != want {
			t.Errorf("%s: %d bytes, SHA-256 %s, %v; want %s", end.where, end.got.n, end.got.sum, end.got.err, want)
		}
	}
	p := waitPassed(t, ended)
	if p.err != nil || p.backend != ln.Addr().String() || p.in < size || p.out < size {
		t.Errorf("ended with %+v", p)
	}
	noPassthroughLeft(t)
}

// with OpenSSL at both ends.
func TestPassthroughOpenSSL(t *testing.T) {
	openssl := peer.Need(t, "openssl", "apt-get install openssl")
	dir := t.TempDir()
	cert := newCertificate(t, "mail.contoso.com")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	both := filepath.Join(dir, "cert.pem")
	blocks := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(both, blocks, 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "file.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(file, stream(3, 8<<20)); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}

	server := exec.Command(openssl, "s_server", "-accept", "127.0.0.1:0", "-cert", both, "-WWW")
	server.Dir = dir
	var said lockedBuffer // among it, the port that it was given
	server.Stdout = &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	var backend string
	eventually(t, "openssl listens", func() bool {
		_, rest, _ := strings.Cut(said.String(), "ACCEPT ")
		var whole bool
		backend, _, whole = strings.Cut(rest, "\n")
		return whole
	})

	addr, ended := passthroughTo(t.Context(), t, backend)
	client := exec.Command(openssl, "s_client", "-quiet", "-ign_eof", "-servername", "mail.contoso.com", "-verify_return_error", "-CAfile", both, "-connect", addr)
	client.Stdin = strings.NewReader("GET /file.bin HTTP/1.0\r\n\r\n")
	var stderr bytes.Buffer
	client.Stderr = &stderr
	out, err := client.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	_, body, _ := bytes.Cut(out, []byte("\r\n\r\n"))
	got, n, _ := sum(bytes.NewReader(body))
	want, _, _ := sum(stream(3, 8<<20))
	if got != want {
		t.Errorf("%d bytes with SHA-256 %s, want %s", n, got, want)
	}
	if p := waitPassed(t, ended); p.out < 8<<20 {
		t.Errorf("ended with %+v", p)
	}
}

func readAllString(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Error(err)
	}
}

func TestPassthroughHalfClose(t *testing.T) {
	f := func(name string, sizes int64, ends func(client, backend *net.TCPConn) (first, second *net.TCPConn)) {
		t.Run(name, func(t *testing.T) {
			client, backend, ended := joined(t.Context(), t)
			first, second := ends(client, backend)
			// first says all it has and sends FIN; second must see the end of it and can still answer at length.
			go func() {
				_, _ = io.Copy(first, stream(4, sizes))
				_ = first.CloseWrite()
			}()
			want, _, _ := sum(stream(4, sizes))
			if got, n, err := sum(second); got != want || err != nil {
				t.Errorf("%d bytes arrived, %v", n, err)
			}
			go func() {
				_, _ = io.Copy(second, stream(5, sizes))
				_ = second.CloseWrite()
			}()
			want, _, _ = sum(stream(5, sizes))
			if got, n, err := sum(first); got != want || err != nil {
				t.Errorf("%d bytes came back after the half-close, %v", n, err)
			}
			p := waitPassed(t, ended)
			hello := int64(len(helloWith(sniExt("mail.contoso.com"))))
			if p.err != nil || p.in != sizes+hello || p.out != sizes {
				t.Errorf("ended with %+v, want %d bytes and the hello each way", p, sizes)
			}
			noPassthroughLeft(t)
		})
	}
	for _, size := range []int64{0, 1, spliceAfter, spliceAfter + spliceChunk, 5 << 20} {
		f(fmt.Sprintf("client first, %d bytes", size), size, func(c, b *net.TCPConn) (_, _ *net.TCPConn) { return c, b })
		f(fmt.Sprintf("backend first, %d bytes", size), size, func(c, b *net.TCPConn) (_, _ *net.TCPConn) { return b, c })
	}
}

// A reset of one side ends the other, before and after splice has taken over.
func TestPassthroughReset(t *testing.T) {
	for _, moved := range []int64{0, 1 << 20} {
		for _, side := range []string{"client", "backend"} {
			t.Run(fmt.Sprintf("%s after %d bytes", side, moved), func(t *testing.T) {
				client, backend, ended := joined(t.Context(), t)
				dead, alive := client, backend
				if side == "backend" {
					dead, alive = backend, client
				}
				if moved > 0 {
					go func() { _, _ = io.Copy(dead, stream(6, moved)) }()
					if _, err := io.CopyN(io.Discard, alive, moved); err != nil {
						t.Fatal(err)
					}
				}
				_ = dead.SetLinger(0)
				dead.Close()
				_ = alive.SetReadDeadline(time.Now().Add(5 * time.Second))
				if n, err := alive.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the other side read %d, %v, want an end", n, err)
				}
				p := waitPassed(t, ended)
				if !errors.Is(p.err, syscall.ECONNRESET) || !strings.HasPrefix(p.err.Error(), side+" to ") {
					t.Errorf("ended with %+v, want a reset by the %s", p, side)
				}
				noPassthroughLeft(t)
			})
		}
	}
}

// A server that answers early and closes while the client still sends: the answer must arrive.
func TestPassthroughEarlyAnswer(t *testing.T) {
	client, backend, ended := joined(t.Context(), t)
	go func() {
		_, _ = io.Copy(client, stream(7, 64<<20)) // fails once the backend has gone
	}()
	if _, err := io.CopyN(io.Discard, backend, 1<<20); err != nil {
		t.Fatal(err)
	}
	write(t, backend, "early answer")
	_ = backend.CloseWrite()
	got := make([]byte, 12)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "early answer" {
		t.Errorf("client read %q, %v", got, err)
	}
	backend.Close()
	if p := waitPassed(t, ended); p.err == nil {
		t.Error("no error although the upload was cut off")
	}
	noPassthroughLeft(t)
}

// A client that reads slowly holds its backend back and loses nothing.
func TestPassthroughSlowReader(t *testing.T) {
	const size = 24 << 20
	client, backend, ended := joined(t.Context(), t)
	var sent int64
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 64<<10)
		r := stream(8, size)
		for {
			n, err := r.Read(buf)
			if errors.Is(err, io.EOF) {
				done <- backend.CloseWrite()
				return
			}
			_ = backend.SetWriteDeadline(time.Now().Add(patience))
			if _, err := backend.Write(buf[:n]); err != nil {
				done <- err
				return
			}
			sent += int64(n)
		}
	}()
	select {
	case err := <-done:
		t.Fatalf("%d bytes were taken (%v) though the client reads nothing", sent, err)
	case <-time.After(200 * time.Millisecond): // the socket buffers are full by now
	}
	want, _, _ := sum(stream(8, size))
	if got, n, err := sum(client); got != want || err != nil {
		t.Errorf("%d of %d bytes arrived whole: %v", n, size, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	client.Close()
	if p := waitPassed(t, ended); p.err != nil || p.out != size {
		t.Errorf("ended with %+v", p)
	}
}

// At the shutdown limit both connections end.
func TestPassthroughContext(t *testing.T) {
	why := errors.New("shutdown limit")
	ctx, cancel := context.WithCancelCause(t.Context())
	client, backend, ended := joined(ctx, t)
	write(t, client, "ping")
	if _, err := io.ReadFull(backend, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	cancel(why)
	if p := waitPassed(t, ended); !errors.Is(p.err, why) {
		t.Errorf("ended with %+v, want %v", p, why)
	}
	for _, c := range []net.Conn{client, backend} {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection is still open")
		}
	}
	noPassthroughLeft(t)
}

// without a backend the client gets an alert, never a certificate.
func TestPassthroughNoBackend(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := ln.Addr().String()
	ln.Close()
	addr, ended := passthroughTo(t.Context(), t, gone)
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Write(helloWith(sniExt("mail.contoso.com"))); err != nil {
		t.Fatal(err)
	}
	if got, want := readAllString(t, raw), "\x15\x03\x01\x00\x02\x02\x50"; got != want {
		t.Errorf("client read %x, want the alert %x and nothing else", got, want)
	}
	raw.Close()
	p := waitPassed(t, ended)
	if !errors.Is(p.err, errNoBackend) || !errors.Is(p.err, syscall.ECONNREFUSED) || !strings.Contains(p.err.Error(), gone) || p.in != 0 {
		t.Errorf("ended with %+v", p)
	}

	addr, ended = passthroughTo(t.Context(), t, gone)
	_, err = tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: internal error") {
		t.Errorf("client error = %v, want internal_error", err)
	}
	waitPassed(t, ended)
}

// Ends that cannot half-close (tests, tunnels) are not kept for ever.
func TestPassthroughDrainIsBounded(t *testing.T) {
	var timer passthroughTimer
	fired := make(chan struct{})
	timer.start(time.Millisecond, func() { close(fired) })
	timer.start(time.Millisecond, func() { t.Error("started twice") })
	<-fired
	timer.stop()
	timer.start(0, func() { t.Error("started after stop") })
	time.Sleep(20 * time.Millisecond)
}

// A direction that falls silent in splice gives its pipe back and goes on afterwards.
func TestCopyDirectionAfterSilence(t *testing.T) {
	a, b := loopbackPair(t)
	c, d := loopbackPair(t)
	const idle = 50 * time.Millisecond
	done := make(chan error, 1)
	var copied int64
	go func() {
		var err error
		copied, err = copyDirection(d, b, idle)
		done <- err
	}()
	const burst = spliceAfter + spliceChunk/2
	for i := range byte(3) {
		go func() { _, _ = io.Copy(a, stream(i, burst)) }()
		want, _, _ := sum(stream(i, burst))
		if got, n, err := sum(io.LimitReader(c, burst)); got != want || err != nil {
			t.Errorf("burst %d: %d bytes, %v", i, n, err)
		}
		time.Sleep(3 * idle)
	}
	a.Close()
	if err := <-done; err != nil || copied != 3*burst {
		t.Errorf("copied %d, %v", copied, err)
	}
}

// A shutdown in the moment in which a connection begins closes it, with a limit on
// silence or without: the race detector looks on.
func TestPassthroughEndsAsItBegins(t *testing.T) {
	t.Parallel()
	for i := range 50 {
		idle := time.Duration(i%2) * time.Minute
		ctx, cancel := context.WithCancelCause(t.Context())
		client, far := net.Pipe()
		server, up := net.Pipe()
		defer far.Close()
		defer server.Close()
		go io.Copy(io.Discard, server)
		_, _, _, err := passthrough(ctx, newPeekedConn(client), func(context.Context) (*upstream, error) {
			cancel(errShutdown)
			return &upstream{backend: &Backend{}, conn: up, raw: up}, nil
		}, idle, zerolog.Nop())
		if err != nil && !errors.Is(err, errShutdown) {
			t.Errorf("%v: %v", idle, err)
		}
		if _, err := far.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%v: the client's connection: %v", idle, err)
		}
	}
}
