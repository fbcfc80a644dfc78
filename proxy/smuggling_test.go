package proxy

import (
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var statusLines = regexp.MustCompile(`HTTP/1\.1 (\d\d\d)[ \r]`)

// converse sends raw, in one piece or the head before the rest, and returns what
// comes back until the other side closes, or falls silent behind as many answers as
// are expected. closed tells whether it has closed in good order.
func converse(c net.Conn, raw string, inPieces bool, answers int, quiet time.Duration) (got []byte, closed bool) {
	head, rest, _ := strings.Cut(raw, "\r\n\r\n")
	if inPieces && rest != "" {
		io.WriteString(c, head+"\r\n\r\n")
		time.Sleep(5 * time.Millisecond)
		raw = rest
	}
	go io.WriteString(c, raw) // a peer that has refused it reads no further
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 16<<10)
	for {
		if len(statusLines.FindAll(got, -1)) >= answers && quiet > 0 {
			c.SetReadDeadline(time.Now().Add(quiet))
		}
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return got, err == io.EOF
		}
	}
}

func statusesIn(got []byte) (all []string) {
	for _, m := range statusLines.FindAllSubmatch(got, -1) {
		all = append(all, string(m[1]))
	}
	return all
}

// smugglingFront is a front door to a wire.
func smugglingFront(t *testing.T) (*front, *wire) {
	w := newWire(t)
	return newFront(t, func(f *front, _ *Options, _ *Table) {
		ws := CustomDirectory("/ws", Publish)
		ws.Upgrade = true
		f.mail.VirtualDirectories = append(f.mail.VirtualDirectories, ws)
	}, &Backend{Name: "cas01.contoso.local", Address: w.ln.Addr().String()}), w
}

// whatever a client sends, the backend sees exactly the requests that were
// accepted, each once, on every reading of the bytes it gets; of what is refused it
// sees nothing, or, where the fault lies in the body, never the whole. The client
// gets one answer for each, and behind a refusal both connections close.
func TestRequestSmuggling(t *testing.T) {
	t.Parallel()
	all := append(mutations(), localMutations()...)
	if len(all) < 300 {
		t.Errorf("only %d cases", len(all))
	}
	names := map[string]bool{}
	for _, m := range all {
		if names[m.family+m.name] {
			t.Errorf("%s: %s is there twice", m.family, m.name)
		}
		names[m.family+m.name] = true
		for _, inPieces := range []bool{false, true} {
			name := m.family + "/" + m.name
			if inPieces {
				name += ", in pieces"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f, w := smugglingFront(t)
				c := f.dial("mail.contoso.com")
				statuses, seen, _ := strings.Cut(m.want, " | ")
				statuses, unsent := strings.CutSuffix(statuses, "…")
				quiet := time.Duration(0)
				if unsent {
					quiet = 20 * time.Millisecond
				}
				alternatives := strings.Split(statuses, " or ")
				got, closed := converse(c, m.raw, inPieces, 0, quiet)
				c.Close()
				if !closed && !unsent {
					t.Errorf("connection not closed in good order behind %q", got)
				}
				answers := strings.Join(statusesIn(got), " ")
				partial, ok := false, false
				for _, want := range alternatives {
					want, may := strings.CutSuffix(want, "~")
					ok, partial = ok || answers == want, partial || may
				}
				if !ok {
					t.Errorf("answers %s, want %s: %q", answers, statuses, got)
				}
				if v, err := strictResponses(got, methodsOf(answers, m.raw)...); err != nil {
					t.Errorf("what the client got: %v in %q", err, got)
				} else if n := len(v); n > 0 && !v[n-1].complete {
					t.Errorf("the last answer is cut off: %q", got)
				}
				var whole []string
				conns := w.connections()
				if len(conns) > 1 {
					t.Errorf("%d backend connections", len(conns))
				}
				for _, conn := range conns {
					select {
					case <-conn.closed:
					case <-time.After(patience):
						t.Error("backend connection left open")
					}
					data := conn.bytes()
					v := judge(data, true)
					whole = append(whole, v.seen...)
					if v.invalid != nil || v.ambiguous != "" {
						t.Errorf("servers could differ on what they get: %v %s\n%q", v.invalid, v.ambiguous, data)
					}
					if v.partial && !partial && !unsent {
						t.Errorf("the backend got part of a request: %q", data)
					}
				}
				if all := strings.Join(whole, ", "); all != seen && !(partial && all == "early") {
					t.Errorf("the backend saw %q, want %q", all, seen)
				}
			})
		}
	}
}

// methodsOf returns the methods of the requests that the answers are to: only the
// first may be HEAD.
func methodsOf(answers, raw string) []string {
	methods := slices.Repeat([]string{"GET"}, 1+strings.Count(answers, " "))
	if strings.HasPrefix(raw, "HEAD ") {
		methods[0] = "HEAD"
	}
	if strings.HasPrefix(answers, "100 ") {
		methods = methods[1:]
	}
	return methods
}

// Response smuggling: whatever a backend sends beside the answer to a request, a
// client never gets it as the answer to the next one, however soon that follows.
// The pair of connections ends instead.
func TestResponseSmuggling(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
	pause := 10 * time.Millisecond
	for name, tc := range map[string]struct {
		method string
		parts  []string // written one by one: each is a TLS record
		pause  time.Duration
	}{
		"two responses":                  {"GET", []string{ok + evil}, 0},
		"two responses, two TLS records": {"GET", []string{ok, evil}, 0},
		"two responses, apart":           {"GET", []string{ok, evil}, pause},
		"bytes behind":                   {"GET", []string{ok + "x"}, 0},
		"empty line behind":              {"GET", []string{ok + "\r\n"}, 0},
		"bytes behind chunks":            {"GET", []string{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n" + evil}, 0},
		"behind a 401":                   {"GET", []string{"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", evil}, pause},
		"204 with a body":                {"GET", []string{"HTTP/1.1 204 No Content\r\n\r\n" + evil}, 0},
		"304 with a body":                {"GET", []string{"HTTP/1.1 304 Not Modified\r\nContent-Length: 64\r\n\r\n" + evil}, 0},
		"HEAD with a body":               {"HEAD", []string{"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + evil}, 0},
		"100 behind the final":           {"GET", []string{ok, "HTTP/1.1 100 Continue\r\n\r\n"}, pause},
		"103, then two":                  {"GET", []string{"HTTP/1.1 103 Early Hints\r\n\r\n" + ok + evil}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan struct{})
			b := newRecorder(t, func(c *recorded) {
				c.head()
				for _, p := range tc.parts {
					io.WriteString(c, p)
					time.Sleep(tc.pause)
				}
				close(sent)
				if _, err := c.head(); err == nil {
					t.Error("the backend got another request")
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond")
				}
			})
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			c.send(tc.method + " /owa/first HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
			if r, _ := c.response(tc.method); r.StatusCode == 103 {
				c.response(tc.method)
			}
			<-sent // what comes later than the next request is its answer, to anybody
			io.WriteString(c, get("/owa/second"))
			c.ends()
		})
	}
}

// for responses: whatever a backend sends, the client gets at most one
// answer for each request, with one end on every reading, or none that is complete.
// What the backend has sent in doubt is 502 or cut off, and both connections close.
func TestResponseMutations(t *testing.T) {
	t.Parallel()
	const (
		sound  = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		evil   = "HTTP/1.1 299 Evil\r\nContent-Length: 4\r\n\r\nevil"
		status = "HTTP/1.1 200 OK\r\n"
	)
	type response struct{ name, method, raw, want string }
	tests := []response{
		// "next" means that the backend was asked again, and its answer given.
		{"sound", "GET", sound, "200 next"},
		{"chunks", "GET", status + teLine + "\r\n2\r\nok\r\n0\r\n\r\n", "200 next"},
		{"chunk extension and trailer", "GET", status + teLine + "\r\n2;x\r\nok\r\n0\r\nX-A: b\r\n\r\n", "200 next"},
		{"leading zeros", "GET", status + "Content-Length: 002\r\n\r\nok", "200 next"},
		{"HEAD with a length", "HEAD", status + "Content-Length: 64\r\n\r\n", "200 next"},
		{"HEAD with chunked", "HEAD", status + teLine + "\r\n", "200 next"},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 next"},
		{"204 with a length", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 64\r\n\r\n", "204 next"},
		{"204 with chunked", "GET", "HTTP/1.1 204 No Content\r\n" + teLine + "\r\n", "204 next"},
		{"304 with a length", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 64\r\n\r\n", "304 next"},
		{"no reason phrase", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "200 next"},
		{"interim with a length", "GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 64\r\n" + teLine[:len(teLine)-2] + "\r\n\r\n" + sound, "502"},
		{"interim with a length alone", "GET", "HTTP/1.1 103 Early Hints\r\nContent-Length: 64\r\n\r\n" + sound, "103 200 next"},
		{"100 that nobody asked for", "GET", "HTTP/1.1 100 Continue\r\n\r\n" + sound, "200 next"},
		{"64 interim responses", "GET", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 64) + sound, strings.Repeat("102 ", 64) + "200 next"},
		{"flood of interim responses", "GET", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 10000) + sound, "502"},
		// Its end is the connection's, so there is nothing behind it.
		{"until the end", "GET", status + "\r\nok" + evil, "200"},
		{"until the end, HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\n\r\nok" + evil, "200"},
		{"HTTP/1.0 with a length", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" + evil, "200"},
		// More than was asked for.
		{"two responses", "GET", sound + evil, "200"},
		{"bytes behind", "GET", sound + "x", "200"},
		{"CRLF behind", "GET", sound + "\r\n", "200"},
		{"response behind chunks", "GET", status + teLine + "\r\n2\r\nok\r\n0\r\n\r\n" + evil, "200"},
		{"length 0 and a body", "GET", status + "Content-Length: 0\r\n\r\n" + evil, "200"},
		{"HEAD with a body", "HEAD", status + "Content-Length: 64\r\n\r\n" + evil, "200"},
		{"HEAD with chunks", "HEAD", status + teLine + "\r\n2\r\nok\r\n0\r\n\r\n", "200"},
		{"204 with a body", "GET", "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil", "204"},
		{"304 with a body", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nevil", "304"},
		{"interim behind", "GET", sound + "HTTP/1.1 103 Early Hints\r\n\r\n", "200"},
		// Malformed behind the head.
		{"chunk size malformed later", "GET", status + teLine + "\r\n" + chunk(strings.Repeat("x", 40<<10)) + "-1\r\n" + evil, "200~"},
		{"body too short", "GET", status + "Content-Length: 3\r\n\r\nok", "200~"},
		{"chunks without an end", "GET", status + teLine + "\r\n2\r\nok\r\n", "200~"},
	}
	for name, raw := range map[string]string{
		"length and chunked": status + "Content-Length: 2\r\n" + teLine + "\r\n2\r\nok\r\n0\r\n\r\n", "chunked and length": status + teLine + "Content-Length: 2\r\n\r\nok",
		"two lengths": status + "Content-Length: 2\r\nContent-Length: 60\r\n\r\nok", "two equal lengths": status + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", "length list": status + "Content-Length: 2, 2\r\n\r\nok",
		"length with sign": status + "Content-Length: +2\r\n\r\nok", "length negative": status + "Content-Length: -2\r\n\r\nok", "length overflow": status + "Content-Length: 18446744073709551618\r\n\r\nok", "length empty": status + "Content-Length:\r\n\r\nok",
		"blank before the colon": status + "Content-Length : 2\r\n\r\nok", "gzip, chunked": status + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "chunked twice": status + teLine + teLine + "\r\n0\r\n\r\n",
		"identity": status + "Transfer-Encoding: identity\r\n\r\nok", "vertical tab": status + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", "chunked in HTTP/1.0": "HTTP/1.0 200 OK\r\n" + teLine + "\r\n0\r\n\r\n",
		"bare LF": "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "one bare LF": status + "X: y\nContent-Length: 2\r\n\r\nok", "bare CR": status + "X: y\rContent-Length: 2\r\n\r\nok", "folded": status + "X: y\r\n Content-Length: 2\r\n\r\nok",
		"first line folded": status + " X: y\r\n\r\n", "no name": status + ": y\r\n\r\n", "no colon": status + "X\r\n\r\n", "NUL": status + "X: \x00\r\n\r\n", "CR in the reason": "HTTP/1.1 200 O\rK\r\n\r\n",
		"HTTP/2 preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 frames": "\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n\r\n", "HTTP/2.0": "HTTP/2.0 200 OK\r\n\r\n", "HTTP/1.2": "HTTP/1.2 200 OK\r\n\r\n", "HTTP/0.9": "<html>\r\n\r\n", "ICY": "ICY 200 OK\r\n\r\n",
		"no version": "200 OK\r\n\r\n", "status of two digits": "HTTP/1.1 99 X\r\n\r\n", "status of four digits": "HTTP/1.1 2000 X\r\n\r\n", "status 099": "HTTP/1.1 099 X\r\n\r\n", "status with a sign": "HTTP/1.1 +20 X\r\n\r\n", "CRLF before": "\r\n" + sound, "two blanks": "HTTP/1.1  200 OK\r\n\r\n",
		"101 that nobody asked for": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + evil, "101 to HTTP/2": "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
		"giant head": status + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 200) + "\r\n", "giant line": status + "X: " + strings.Repeat("y", 100<<10) + "\r\n\r\n", "1001 lines": status + strings.Repeat("X: y\r\n", 1001) + "\r\n",
		"chunk size malformed": status + teLine + "\r\n-1\r\nok\r\n", "chunk size with 0x": status + teLine + "\r\n0x2\r\nok\r\n0\r\n\r\n", "chunk ends with LF": status + teLine + "\r\n2\r\nok\n0\r\n\r\n", "chunk size ends with LF": status + teLine + "\r\n2\nok\r\n0\r\n\r\n", "nothing": "", "head cut off": "HTTP/1.1 200 OK\r\nContent-",
	} {
		tests = append(tests, response{name, "GET", raw, "502"})
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newRecorder(t, func(c *recorded) {
				if _, err := c.head(); err != nil {
					return
				}
				io.WriteString(c, tc.raw)
				if strings.HasSuffix(tc.want, "~") || tc.want == "200" && strings.Contains(tc.raw, "200 OK\r\n\r\n") || tc.raw == "" || tc.name == "head cut off" {
					return
				}
				if _, err := c.head(); err == nil {
					io.WriteString(c, "HTTP/1.1 222 Next\r\nContent-Length: 4\r\n\r\nnext")
					c.head()
				}
			})
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			// In pieces: what comes behind a response is there before the next request.
			got, _ := converse(c, tc.method+" /owa/first HTTP/1.1\r\n"+hostLine+"\r\n"+next, true, 0, 0)
			want, cutOff := strings.CutSuffix(tc.want, "~")
			want, again := strings.CutSuffix(want, " next")
			if again {
				want += " 222"
			}
			if answers := strings.Join(statusesIn(got), " "); answers != want && !(cutOff && answers == "") {
				// A body that lasts until the end holds whatever it holds.
				if !(strings.Contains(tc.name, "until the end") && answers == "200 299") {
					t.Errorf("answers %s, want %s: %.300q", answers, want, got)
				}
			}
			all, err := strictResponses(got, tc.method, "GET")
			if err != nil {
				t.Fatalf("what the client got: %v in %.300q", err, got)
			}
			for i, m := range all {
				if !m.complete != (cutOff && i == len(all)-1) {
					t.Errorf("complete %v: %.300q", m.complete, got)
				}
				if m.status == 299 {
					t.Errorf("an answer that nobody asked for: %.300q", got)
				}
			}
			for _, conn := range b.connections() {
				conn.ends(t)
				if n := len(conn.seen()); n > 1 != again {
					t.Errorf("the backend was asked %d times", n)
				}
			}
		})
	}
}

// trailers end here, in both directions, with the line that announces them;
// only 100-continue may be expected (the family Expect of the cases has the rest).
func TestTrailersEndHere(t *testing.T) {
	b := newRecorder(t, func(c *recorded) {
		for {
			if _, err := c.head(); err != nil {
				return
			}
			var body strings.Builder
			for !strings.HasSuffix(body.String(), "\r\n\r\n") {
				line, err := c.br.ReadString('\n')
				if err != nil {
					return
				}
				body.WriteString(line)
			}
			c.mu.Lock()
			c.heads = append(c.heads, body.String())
			c.mu.Unlock()
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTrailer: X-Late\r\n"+teLine+"\r\n2;x=y\r\nok\r\n0\r\nX-Late: b\r\nContent-Length: 7\r\n\r\n")
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	c.send(post + "Trailer: X-Late, Content-Length\r\nTE: trailers\r\nConnection: TE\r\n" + teLine + "\r\n1;ext\r\na\r\n0\r\nX-Late: b\r\nContent-Length: 7\r\n\r\n")
	c.send("GET /nowhere HTTP/1.1\r\n" + hostLine + "Connection: close\r\n\r\n")
	got, err := io.ReadAll(c.br)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(string(got), "HTTP/1.1 200 OK\r\n"+teLine+"\r\n2\r\nok\r\n0\r\n\r\nHTTP/1.1 404 ") {
		t.Errorf("the client got %q", got)
	}
	seen := b.asked(0, 2).seen()
	if strings.Contains(seen[0], "Trailer") || strings.Contains(seen[0], "TE: ") || seen[1] != "1\r\na\r\n0\r\n\r\n" {
		t.Errorf("the server got %q", seen)
	}
	c = f.dial("mail.contoso.com")
	c.send("POST /owa/a HTTP/1.1\r\n" + hostLine + "Expect: 200-ok\r\nContent-Length: 1\r\n\r\na")
	if r, _ := c.response("POST"); r.StatusCode != http.StatusExpectationFailed || !r.Close {
		t.Errorf("Expect of something else: %s", r.Status)
	}
	c.ends()
	if n := len(b.connections()); n != 1 {
		t.Errorf("%d backend connections", n)
	}
}
