package proxy

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// settled waits until no more goroutines run than before, and fails with their
// stacks if some stay.
func settled(t *testing.T, before int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// moody is a backend that behaves as the path says, and vanishes at random in the
// middle of things when asked to.
func moody(c *recorded) {
	for {
		h, err := c.head()
		if err != nil {
			return
		}
		vanish := strings.Contains(h, "/vanish")
		if vanish && rand.IntN(4) == 0 {
			return
		}
		if n := contentLength(h); n > 0 {
			if vanish && rand.IntN(3) == 0 {
				n /= 2
			}
			if _, err := io.CopyN(io.Discard, c.br, n); err != nil {
				return
			}
		}
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		if vanish && rand.IntN(3) == 0 {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le")
			return
		}
		size := rand.IntN(60000)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size)
		if vanish && rand.IntN(2) == 0 {
			size /= 2
		}
		for size > 0 {
			n, err := c.Write(make([]byte, min(size, 10000)))
			if err != nil {
				return
			}
			size -= n
			if rand.IntN(4) == 0 {
				time.Sleep(time.Duration(rand.IntN(80)) * time.Millisecond)
			}
		}
		if vanish {
			return
		}
	}
}

// Clients and servers that vanish at any moment, in any way, leave nothing
// behind: no connection on either side, no goroutine; and those that stay are
// served.
func TestVanishing(t *testing.T) {
	before := runtime.NumGoroutine()
	b := newRecorder(t, moody)
	f := newFront(t, func(f *front, o *Options, _ *Table) { o.Logger = o.Logger.Level(1) }, b.backend())
	var wg sync.WaitGroup
	vanish := func(c *tls.Conn) {
		tcp := c.NetConn().(*net.TCPConn)
		switch rand.IntN(4) {
		case 0:
			tcp.SetLinger(0)
			tcp.Close()
		case 1:
			tcp.Close()
		case 2:
			c.CloseWrite()
			time.Sleep(20 * time.Millisecond)
			c.Close()
		default:
			c.Close()
		}
	}
	for i := range 120 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			conn, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"})
			if err != nil {
				t.Error(err)
				return
			}
			c := newClient(t, conn)
			defer vanish(conn)
			path := []string{"/owa/stay", "/owa/vanish"}[i%2]
			for range 2 {
				size := rand.IntN(100000)
				text := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n", path, size)
				switch i % 6 {
				case 0: // before the head, in it, behind it
					io.WriteString(c, text[:rand.IntN(len(text)+1)])
					return
				case 2: // in the body
					io.WriteString(c, text)
					c.Write(make([]byte, rand.IntN(size+1)))
					return
				case 4: // while waiting, or in the response
					io.WriteString(c, text)
					c.Write(make([]byte, size))
					time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
					return
				}
				io.WriteString(c, text)
				c.Write(make([]byte, size))
				r, err := http.ReadResponse(c.br, nil)
				if err != nil {
					return // the backend vanished
				}
				io.Copy(io.Discard, r.Body)
			}
		}()
	}
	wg.Wait()
	bystander := f.dial("mail.contoso.com")
	bystander.send(get("/owa/stay"))
	if r, _ := bystander.response("GET"); r.StatusCode != 200 {
		t.Errorf("bystander: %d", r.StatusCode)
	}
	bystander.Close()
	eventually(t, "no client connection is left", func() bool { return f.Connections() == 0 })
	for _, c := range b.connections() {
		c.ends(t)
	}
	f.Shutdown(context.Background())
	b.ln.Close()
	settled(t, before)
}

// Shutdown in the middle of everything ends everything.
func TestShutdownUnderLoad(t *testing.T) {
	before := runtime.NumGoroutine()
	b := newRecorder(t, moody)
	f := newFront(t, nil, b.backend())
	for i := range 40 {
		conn, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		text := "POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 50000\r\n\r\n" + strings.Repeat("x", 50000)
		io.WriteString(conn, text[:len(text)*(i%5)/4])
		go io.Copy(io.Discard, conn)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	f.Shutdown(ctx)
	// Half of the requests are never completed by their clients.
	if d := time.Since(start); d > patience || f.Connections() != 0 {
		t.Errorf("%v, %d connections", d, f.Connections())
	}
	b.ln.Close()
	settled(t, before)
}

// A deadline of one phase is not in force in the next: a kept connection lives
// through idle times, head times and long polls, each longer than what was set
// before.
func TestDeadlinesDoNotOutliveTheirPhase(t *testing.T) {
	t.Parallel()
	const limit, longer = 2 * time.Second, 2200 * time.Millisecond
	b := newRecorder(t, func(c *recorded) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			if r.URL.RawQuery == "Cmd=Ping" {
				time.Sleep(longer)
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		o.HelloTimeout, o.RequestHeadTimeout, o.ClientIdleTimeout = limit, limit, time.Minute
		f.mail.VirtualDirectories = Preset()
		for i := range f.mail.VirtualDirectories {
			d := &f.mail.VirtualDirectories[i]
			d.RequestIdle, d.ResponseIdle = limit, time.Minute // silence, scaled
		}
	}, b.backend())
	type step struct {
		text string
		wait time.Duration
	}
	for i, steps := range [][]step{{
		{get("/owa/"), longer},
		{"POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 3\r\n\r\n|abc", longer},
		{"POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 3\r\n\r\nabc", longer},
		{get("/nowhere"), longer},
		{get("/owa/"), 0},
	}, {
		{"GET /owa/ HTTP/1.1\r\n|Host: mail.contoso.com\r\n\r\n", 20 * time.Millisecond},
		{"POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nTransfer-Encoding: chunked\r\n\r\n|1\r\na\r\n|0\r\n\r\n", longer},
		{get("/owa/") + "\r\n", longer}, // old clients send an extra CRLF: it begins no head
		{get("/owa/"), 0},
	}} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			c := newClient(t, f.dial("mail.contoso.com").Conn)
			for _, step := range steps {
				for i, part := range strings.Split(step.text, "|") {
					if i > 0 {
						time.Sleep(200 * time.Millisecond)
					}
					c.send(part)
				}
				if r, _ := c.response("GET"); r.StatusCode != 200 && !strings.Contains(step.text, "nowhere") {
					t.Fatalf("%.40q: %d", step.text, r.StatusCode)
				}
				time.Sleep(step.wait)
			}
		})
	}
}

// The moment at which waiting for a backend is handed to a second goroutine is
// like any other: answers just before, at and after it all arrive.
func TestAnswersAroundQuickWait(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			var d time.Duration
			fmt.Sscanf(strings.TrimPrefix(line(h, "X-Wait:"), "X-Wait: "), "%d", &d)
			time.Sleep(d)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nfi")
			time.Sleep(d / 40)
			io.WriteString(c, "n\r\n1\r\ne\r\n0\r\n\r\n")
		}
	})
	f := newFront(t, nil, b.backend())
	var wg sync.WaitGroup
	for i := range 40 {
		c := f.dial("mail.contoso.com")
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := range 8 {
				wait := quickWait - 5*time.Millisecond + time.Duration((i*8+n)*10_000_000/320)
				fmt.Fprintf(c, "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nX-Wait: %d\r\n\r\n", wait)
				r, err := http.ReadResponse(c.br, nil)
				if err != nil {
					t.Errorf("after %v: %v", wait, err)
					return
				}
				if body, err := io.ReadAll(r.Body); string(body) != "fine" || err != nil {
					t.Errorf("after %v: %q %v", wait, body, err)
				}
				time.Sleep(time.Duration(n%3) * 25 * time.Millisecond) // idle times around it as well
			}
		}()
	}
	wg.Wait()
}

// Requests sent ahead wait their turn, also behind a long poll and while a
// response streams, and each gets its own answer.
func TestPipelinedBehindWaits(t *testing.T) {
	t.Parallel()
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			n, _ := io.CopyN(io.Discard, c.br, contentLength(h))
			target := strings.Fields(h)[1]
			if target == "/owa/poll" {
				time.Sleep(150 * time.Millisecond)
			}
			body := fmt.Sprintf("%s %d", target, n)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:2])
			if target == "/owa/stream" {
				time.Sleep(150 * time.Millisecond)
			}
			io.WriteString(c, body[2:])
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	big := strings.Repeat("x", 100_000) // more than is buffered behind a wait
	var text, want strings.Builder
	for i, target := range []string{"/owa/poll", "/owa/a", "/owa/stream", "/owa/b", "/owa/poll", "/owa/stream", "/owa/c"} {
		body := big[:i*i*2500]
		fmt.Fprintf(&text, "POST %s HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n%s", target, len(body), body)
		fmt.Fprintf(&want, "%s %d;", target, len(body))
	}
	go io.WriteString(c, text.String())
	var got strings.Builder
	for range 7 {
		_, body := c.response("POST")
		got.WriteString(body + ";")
	}
	if got.String() != want.String() {
		t.Errorf("got  %s\nwant %s", &got, &want)
	}
}

// A response is whole at the client also when the connection closes behind it
// while the client has sent more than was read: closing at once would reset the
// connection and destroy what is under way (RFC 9112 section 9.6).
func TestClosingDestroysNothing(t *testing.T) {
	t.Parallel()
	const size = 6 << 20
	b := newRecorder(t, func(c *recorded) {
		c.head()
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", size)
		c.Write(make([]byte, size))
		c.head()
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	c.head()
	go c.Write([]byte(get("/owa/next") + strings.Repeat("x", 500_000)))
	for total := 0; total < size; {
		n, err := io.CopyN(io.Discard, c.br, 300_000)
		if total += int(n); err != nil && total < size {
			t.Fatalf("%v after %d of %d bytes", err, total, size)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// http.sys answers a head over its limit before it has read it, and
// closes. Its answer reaches the client, not one of ours.
func TestBackendRefusesLargeHead(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).SetReadBuffer(4096)
			io.ReadFull(c, make([]byte, 16384))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nServer: Microsoft-HTTPAPI/2.0\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			time.Sleep(200 * time.Millisecond)
			c.Close()
		}
	}()
	f := newFront(t, func(_ *front, o *Options, _ *Table) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err == nil {
				c.(*net.TCPConn).SetWriteBuffer(4096)
			}
			return c, err
		}
	}, &Backend{Name: "cas01", Address: ln.Addr().String()})
	c := f.dial("mail.contoso.com")
	c.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: Negotiate " + strings.Repeat("A", 87<<10) + "\r\n\r\n")
	if r, _ := c.response("GET"); r.StatusCode != 400 || r.Header.Get("Server") != "Microsoft-HTTPAPI/2.0" {
		t.Errorf("%s %v", r.Status, r.Header)
	}
	c.ends()
}

// faultyConn panics when the text is written to it.
type faultyConn struct {
	net.Conn
	text string
}

func (c faultyConn) Write(p []byte) (int, error) {
	if strings.Contains(string(p), c.text) {
		panic("a fault")
	}
	return c.Conn.Write(p)
}

// A fault of ours ends the connection it shows on, in whichever goroutine, and
// leaves a record; nobody else notices.
func TestFaultsStayWithTheirConnection(t *testing.T) {
	b := newRecorder(t, echo)
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		o.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return faultyConn{c, "boom"}, err
		}
		bad := f.mail.TLS.Clone()
		bad.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { panic("boom") }
		tb.Hosts["other.contoso.com"] = &Host{Name: "other.contoso.com", Mode: Answer, TLS: bad}
		plain, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { plain.Close() })
		go func() {
			for {
				c, err := plain.Accept()
				if err != nil {
					return
				}
				go io.Copy(io.Discard, c)
			}
		}()
		h := *f.mail
		h.Site = &Site{Name: "plain", Backends: []*Backend{{Name: "plain", Address: plain.Addr().String()}}}
		tb.Hosts["autodiscover.fabrikam.com"] = &h
	}, b.backend())
	bystander := f.dial("mail.contoso.com")
	bystander.send(get("/owa/"))
	bystander.response("GET")
	head := "POST /owa/ HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\nContent-Length: 9\r\n"
	for _, parts := range [][]string{{head + "X: boom\r\n\r\n"}, {head + "\r\n", "boom"}} {
		c := f.dial("autodiscover.fabrikam.com")
		for _, p := range parts {
			c.send(p)
			time.Sleep(2 * quickWait)
		}
		c.ends()
	}
	if _, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: f.roots, ServerName: "other.contoso.com"}); err == nil {
		t.Error("handshake went through")
	}
	bystander.send(get("/owa/"))
	if r, _ := bystander.response("GET"); r.StatusCode != 200 {
		t.Errorf("bystander: %d", r.StatusCode)
	}
	if n := strings.Count(f.log.String(), "a fault in the program"); n < 3 {
		t.Errorf("%d records of 3 faults", n)
	}
}

// streams of any length cost a buffer, arrive whole, and wait
// for a slow reader.
func TestLargeStreams(t *testing.T) {
	const size = 100 << 20
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(rand.Uint32())
	}
	sums := make(chan string, 1)
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			sum := sha256.New()
			io.CopyN(sum, c.br, contentLength(h))
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			if strings.HasPrefix(h, "GET ") {
				for range size / len(block) {
					fmt.Fprintf(c, "%x\r\n", len(block))
					c.Write(block)
					io.WriteString(c, "\r\n")
				}
			} else {
				sums <- fmt.Sprintf("%x", sum.Sum(nil))
			}
			io.WriteString(c, "0\r\n\r\n")
		}
	})
	f := newFront(t, nil, b.backend())
	want := sha256.New()
	for range size / len(block) {
		want.Write(block)
	}
	runtime.GC()
	var before, during runtime.MemStats
	runtime.ReadMemStats(&before)
	check := func(what string) {
		t.Helper()
		runtime.GC()
		runtime.ReadMemStats(&during)
		if grown := int64(during.HeapAlloc) - int64(before.HeapAlloc); grown > 3<<20 {
			t.Errorf("%s: heap grown by %d bytes", what, grown)
		}
	}
	c := f.dial("mail.contoso.com")
	c.send(fmt.Sprintf("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n", size))
	for i := range size / len(block) {
		if _, err := c.Write(block); err != nil {
			t.Fatal(err)
		}
		if i == 50 {
			check("upload")
		}
	}
	c.response("POST")
	if got := <-sums; got != fmt.Sprintf("%x", want.Sum(nil)) {
		t.Error("upload is not what was sent")
	}
	c.send(get("/ews/exchange.asmx"))
	r, err := http.ReadResponse(c.br, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := sha256.New()
	for i := 0; ; i++ {
		if _, err := io.CopyN(got, r.Body, 2<<20); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if i%10 == 0 {
			time.Sleep(30 * time.Millisecond) // a slow reader
		}
		if i == 25 {
			check("download")
		}
	}
	if string(got.Sum(nil)) != string(want.Sum(nil)) {
		t.Error("download is not what was sent")
	}
}

// A key update that the client asks us to answer, long after the last response
// (RFC 8446 section 4.6.3), does not break the connection on that response's write
// deadline: between requests, and in a long poll.
func TestKeyUpdateAfterSilence(t *testing.T) {
	t.Parallel()
	openssl := peer.Need(t, "openssl", "apt-get install openssl")
	const limit, longer = 1500 * time.Millisecond, 2 * time.Second
	polled := make(chan struct{})
	b := newRecorder(t, func(c *recorded) {
		for {
			h, err := c.head()
			if err != nil {
				return
			}
			if strings.Contains(h, "poll") {
				<-polled
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
		}
	})
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		quick(limit, limit)(f, o, tb)
		for i := range f.mail.VirtualDirectories {
			if d := &f.mail.VirtualDirectories[i]; d.Name == "activesync" {
				d.ResponseIdle = time.Minute
			}
		}
	}, b.backend())
	cmd := exec.Command(openssl, "s_client", "-connect", f.https, "-servername", "mail.contoso.com", "-tls1_3", "-quiet", "-no_ign_eof", "-crlf")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
		if n := strings.Count(out.String(), "fine"); n != 3 {
			t.Errorf("%d answers of 3: %q, %q", n, out.String(), errs.String())
		}
	}()
	ask := func(path string) { io.WriteString(in, "GET "+path+" HTTP/1.1\nHost: mail.contoso.com\n\n") }
	answers := func(n int) {
		t.Helper()
		eventually(t, "an answer", func() bool { return strings.Count(out.String(), "fine") == n })
	}
	updates := 0
	update := func() { // a command only if nothing else is in the same read
		t.Helper()
		updates++
		io.WriteString(in, "K\n")
		eventually(t, "a key update", func() bool { return strings.Count(errs.String(), "KEYUPDATE") == updates })
		time.Sleep(200 * time.Millisecond) // it is answered, or breaks what it can break
	}
	ask("/owa/")
	answers(1)
	time.Sleep(longer)
	update()
	ask("/Microsoft-Server-ActiveSync/poll")
	b.asked(0, 2)
	time.Sleep(longer)
	update()
	close(polled)
	answers(2)
	ask("/owa/")
	answers(3)
}
