package proxy

import (
	"crypto/tls"
	"io"
	"testing"
	"time"
)

// A validation by TLS-ALPN-01 sees the certificate that is meant for it, and nothing
// else: no request is read on such a connection, and the host's own clients do not
// notice (RFC 8737 section 3).
func TestValidation(t *testing.T) {
	b := newRecorder(t, echo)
	proof := newCertificate(t, "mail.contoso.com")
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		f.mail.Validation = &tls.Config{Certificates: []tls.Certificate{proof}, NextProtos: []string{acmeTLS}}
	}, b.backend())
	dial := func(protocols ...string) (*tls.Conn, error) {
		return tls.Dial("tcp", f.https, &tls.Config{ServerName: "mail.contoso.com", NextProtos: protocols, InsecureSkipVerify: true})
	}
	conn, err := dial(acmeTLS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	state := conn.ConnectionState()
	if !state.PeerCertificates[0].Equal(proof.Leaf) || state.NegotiatedProtocol != acmeTLS {
		t.Errorf("%s, with the certificate of %s", state.NegotiatedProtocol, state.PeerCertificates[0].Subject)
	}
	_, _ = io.WriteString(conn, get("/owa/"))
	conn.SetReadDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(conn); isTimeout(err) || len(answer) > 0 {
		t.Errorf("%q %v", answer, err)
	}
	for _, protocols := range [][]string{nil, {"http/1.1"}, {acmeTLS, "http/1.1"}} {
		conn, err := dial(protocols...)
		if err != nil {
			t.Fatalf("%q: %v", protocols, err)
		}
		if got := conn.ConnectionState().PeerCertificates[0]; !got.Equal(f.cert.Leaf) {
			t.Errorf("%q: the certificate of a validation", protocols)
		}
		conn.Close()
	}
	if n := len(b.connections()); n != 0 {
		t.Errorf("%d connections to the backend", n)
	}
}
