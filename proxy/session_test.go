package proxy

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// FuzzSession: a whole session, with whatever a client and a backend may send. It
// ends, without a panic, and the backend reads nothing but whole requests as we
// make them; only the last may be broken off.
func FuzzSession(f *testing.F) {
	const host = "Host: mail.contoso.com\r\n"
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for _, s := range [][2]string{
		{get("/owa/"), ok},
		{get("/owa/") + get("/owa/"), ok + ok},
		{get("/x") + get("/owa/"), "HTTP/1.1 100 Continue\r\n\r\n" + ok},
		{"POST /owa/ HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + get("/owa/"), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"},
		{"POST /owa/ HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\nbye"},
		{"GET /wopi/ HTTP/1.1\r\n" + host + "Connection: upgrade\r\nUpgrade: websocket\r\n\r\nab", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\ncd"},
		{"HEAD /owa/ HTTP/1.0\r\n" + host + "Connection: keep-alive\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"},
	} {
		f.Add([]byte(s[0]), []byte(s[1]))
	}
	upgradable := CustomDirectory("/wopi", Publish)
	upgradable.Upgrade = true
	h := &Host{Name: "mail.contoso.com", Mode: Bridge, VirtualDirectories: append(Preset(), upgradable)}
	for i := range h.VirtualDirectories {
		h.VirtualDirectories[i].RequestIdle, h.VirtualDirectories[i].ResponseIdle = time.Second, time.Second
	}
	h.Site = &Site{Name: "hq", Backends: []*Backend{{Name: "cas01"}}}
	table := &Table{Hosts: map[string]*Host{h.Name: h}}

	f.Fuzz(func(t *testing.T, request, response []byte) {
		toBackend := make(chan []byte, 100) // one for each backend connection
		var faults lockedBuffer
		log := zerolog.New(&faults).Level(zerolog.ErrorLevel)
		srv := NewServer(Options{Logger: log, RequestHeadTimeout: time.Second, Dial: func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				var b bytes.Buffer
				go func() {
					theirs.Write(response)
					time.Sleep(time.Millisecond)
					theirs.Close()
				}()
				io.Copy(&b, theirs)
				toBackend <- b.Bytes()
			}()
			return ours, nil
		}})
		ours, theirs := net.Pipe()
		s := &session{
			srv: srv, conn: ours, raw: ours, log: log,
			origin: origin{table: table, secure: true, host: h}, fwd: forwarding{client: netip.MustParseAddr("192.0.2.1")},
		}
		s.in.conn = ours
		s.ev.log = s.log
		var toClient bytes.Buffer
		got := make(chan struct{})
		go func() {
			defer close(got)
			io.Copy(&toClient, theirs)
		}()
		go func() {
			theirs.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			theirs.Write(request)
			time.Sleep(3 * time.Millisecond)
			theirs.Close()
		}()
		start := time.Now()
		s.serve(context.Background())
		ours.Close()
		<-got
		if text := faults.String(); text != "" {
			t.Fatal(text)
		}
		if d := time.Since(start); d > 8*time.Second {
			t.Fatalf("took %v", d)
		}
		if s.ups.list == nil {
			return
		}
		r := bufio.NewReader(bytes.NewReader(<-toBackend))
		for {
			if _, err := r.Peek(1); err != nil {
				break
			}
			req, err := http.ReadRequest(r)
			if err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				t.Fatalf("the backend cannot read what it got: %v", err)
			}
			if req.Header.Get("Front-End-Https") != "On" || !strings.EqualFold(req.Host, h.Name) && CanonicalName(strings.Split(req.Host, ":")[0]) != h.Name {
				t.Fatalf("a request that we did not make: %v %v", req.Host, req.Header)
			}
			if req.Header.Get("Upgrade") != "" {
				break // what follows is another protocol
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil && err != io.ErrUnexpectedEOF {
				t.Fatalf("the backend cannot read a body: %v", err)
			}
		}
	})
}
