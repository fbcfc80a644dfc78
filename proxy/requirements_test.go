package proxy

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// that a login is under way is not forgotten when the 401 has a page of its
// own, which comes behind its head: http.sys sends one with every 401.
func TestLoginWithLargeBodiesAndPages(t *testing.T) {
	t.Parallel()
	const size = 3 << 20
	page := strings.Repeat("<!DOCTYPE html PUBLIC>", 100)
	b := newRecorder(t, func(c *recorded) {
		for leg := range 3 {
			h, err := c.head()
			if err != nil {
				return
			}
			status := []string{"401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM", "401 Unauthorized\r\nWWW-Authenticate: NTLM TlRMTVNTUAACAAAA", "200 OK"}[leg]
			fmt.Fprintf(c, "HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n", status)
			time.Sleep(2 * quickWait) // the page is not in the same read
			fmt.Fprintf(c, "%x\r\n%s\r\n0\r\n\r\n", len(page), page)
			if _, err := io.CopyN(io.Discard, c.br, contentLength(h)); err != nil {
				return
			}
		}
		c.head()
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for leg, auth := range []string{"", "Authorization: NTLM TlRMTVNTUAABAAAA\r\n", "Authorization: NTLM TlRMTVNTUAADAAAA\r\n"} {
		c.send(fmt.Sprintf("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n%sContent-Length: %d\r\n\r\n", auth, size))
		c.send("begun")
		r, body := c.response("POST") // as a client does that looks for an answer while it sends
		if want := []int{401, 401, 200}[leg]; r.StatusCode != want || body != page || leg < 2 && r.Close {
			t.Fatalf("leg %d: %s, close %v, %d bytes", leg, r.Status, r.Close, len(body))
		}
		c.send(strings.Repeat("b", size/2))
		time.Sleep(5 * quickWait) // the limit is looked at now and then
		c.send(strings.Repeat("b", size-size/2-len("begun")))
	}
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
}

// a server that renegotiates when it knows the virtual directory, and takes
// its time about it, is waited for: the request is answered.
func TestSlowRenegotiation(t *testing.T) {
	openssl := peer.Need(t, "openssl", "apt-get install openssl")
	cert := newCertificate(t, "cas01.contoso.local")
	key, err := x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cas.pem")
	data := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})...)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(openssl, "s_server", "-accept", "127.0.0.1:0", "-cert", file, "-tls1_2")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	var address string
	eventually(t, "openssl listens", func() bool {
		_, rest, _ := strings.Cut(out.String(), "ACCEPT ")
		var whole bool
		address, _, whole = strings.Cut(rest, "\n")
		return whole
	})
	// The way to the server, which becomes long once slow is set.
	var slow atomic.Bool
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		client, err := ln.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.Dial("tcp", address)
		if err != nil {
			return
		}
		defer server.Close()
		go io.Copy(client, server)
		buf := make([]byte, 16<<10)
		for {
			n, err := client.Read(buf)
			if err != nil {
				return
			}
			if slow.Load() {
				time.Sleep(4 * quickWait)
			}
			if _, err := server.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	b := (&recorder{ln: ln, cert: cert}).backend()
	b.TLS.Renegotiation = 1 // tls.RenegotiateOnceAsClient, as tlsconf sets it
	f := newFront(t, nil, b)
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	eventually(t, "the request", func() bool { return strings.Contains(out.String(), "Front-End-Https") })
	slow.Store(true)
	io.WriteString(in, "R\n")
	eventually(t, "a renegotiation", func() bool { return strings.Contains(out.String(), "SSL_do_handshake -> 1") })
	time.Sleep(10 * quickWait)
	io.WriteString(in, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine\n")
	c.SetReadDeadline(time.Now().Add(patience))
	if r, body := c.response("GET"); r.StatusCode != 200 || body != "fine" {
		t.Errorf("%s %q", r.Status, body)
	}
}
