package lab

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"testing"
)

// That a client of somebody else's makes calls through the RPC proxy is shown with the front door in between; here is what such a client
// never does.

// [MS-RPCH] 2.1.2.1.5: a body as short as an echo request's is answered at once, any number of times on a connection.
func TestRPCEcho(t *testing.T) {
	c := startCompany(t)
	pat, _ := c.Account("pat@contoso.com")
	w := wireTo(t, c, 0)
	for _, method := range []string{"RPC_IN_DATA", "RPC_OUT_DATA", "RPC_IN_DATA"} {
		for _, body := range []string{"", "echo"} {
			a, err := w.do(method, "/rpc/rpcproxy.dll", basic(pat), body)
			if err != nil {
				t.Fatal(err)
			}
			p := pdu(a.body)
			if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/rpc" || len(p) != rtsHeaderLength ||
				p.kind() != pduRTS || p.rtsFlags() != rtsEcho {
				t.Errorf("%s with %q: %d, %x", method, body, a.status, a.body)
			}
		}
	}
}

// A virtual connection is one user's, and has each channel once.
func TestRPCVirtualConnection(t *testing.T) {
	var p rpcProxy
	cookie := [16]byte{1}
	v := p.get(cookie, `CONTOSO\pat`)
	if v == nil || p.get(cookie, `CONTOSO\pat`) != v {
		t.Fatal("the cookie does not lead to the connection")
	}
	if p.get(cookie, `CONTOSO\lee`) != nil {
		t.Error("somebody else's connection")
	}
	if !v.join(nil) || v.join(nil) {
		t.Error("one IN channel, not two")
	}
	p.end(cookie, v)
	if v.wait() {
		t.Error("a connection that has ended is waited for with success")
	}
	if p.get(cookie, `CONTOSO\lee`) == nil {
		t.Error("the cookie is taken after the end")
	}
}

// PDUs that are cut off anywhere, or whose counts promise too much, are errors.
func TestRPCMalformed(t *testing.T) {
	bind := newPDU(pduBind, pduFirst|pduLast, 1)
	bind = append(bind, 0xd0, 0x16, 0xd0, 0x16, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0)
	bind = append(bind, nspiInterface+ndrSyntax...)
	f := func(p pdu) (replies int, err error) {
		c := rpcCalls{reply: func([]byte) error { replies++; return nil }}
		err = c.serve(p)
		return replies, err
	}
	if n, err := f(bind); n != 1 || err != nil {
		t.Fatalf("%d replies, %v", n, err)
	}
	for n := rpcHeaderLength; n < len(bind); n++ {
		if replies, err := f(bind[:n]); replies != 0 || err == nil {
			t.Errorf("bind of %d bytes: %d replies, %v", n, replies, err)
		}
	}
	if replies, err := f(append(newPDU(pduRequest, pduFirst|pduLast|pduObject, 1), make([]byte, 23)...)); replies != 0 || err == nil {
		t.Errorf("short request: %d replies, %v", replies, err)
	}
	if _, err := f(newPDU(pduResponse, 0, 1)); err == nil {
		t.Error("a response from a client is taken")
	}

	g := func(b []byte) {
		t.Helper()
		if p, err := readPDU(bytes.NewReader(b)); err == nil {
			t.Errorf("%x is read as %x", b, p)
		}
	}
	whole := rtsPDU(0, command(rtsVersion, u32(1)))
	for n := range whole {
		g(whole[:n])
	}
	for _, change := range []func(p pdu){
		func(p pdu) { p[0] = 4 },
		func(p pdu) { p[4] = 0 }, // big-endian
		func(p pdu) { binary.LittleEndian.PutUint16(p[8:], rpcHeaderLength-1) },
		func(p pdu) { binary.LittleEndian.PutUint16(p[8:], uint16(len(p)+1)) },
	} {
		p := bytes.Clone(whole)
		change(p)
		g(p)
	}
	if _, err := pdu(whole).commands(rtsVersion, rtsCookie); err == nil {
		t.Error("a command that is not there")
	}
	if _, err := pdu(whole).commands(rtsCookie); err == nil {
		t.Error("another command than the one there")
	}
	if v, err := pdu(whole).commands(rtsVersion); err != nil || !bytes.Equal(v[0], u32(1)) {
		t.Errorf("%x, %v", v, err)
	}
}
