package proxy

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// strictly is a backend that answers every request with its target and records
// what it saw; the body is read as net/http reads it, so that a request it and we
// frame differently shows as one that nobody sent.
func strictly(c *recorded) {
	for {
		r, err := http.ReadRequest(c.br)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.heads = append(c.heads, r.Method+" "+r.RequestURI)
		c.mu.Unlock()
		if r.Header.Get("Expect") != "" {
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		body := fmt.Sprintf("%s %d", r.RequestURI, n)
		if r.Method == "HEAD" {
			body = ""
		}
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Answer: %s\r\nContent-Length: %d\r\n\r\n%s", r.RequestURI, len(body), body)
	}
}

var statusLines = regexp.MustCompile(`HTTP/1\.1 (\d\d\d) `)

// whatever a client sends, the backend sees exactly the requests that we
// accepted, each once, and the client gets one answer for each.
func TestRequestSmuggling(t *testing.T) {
	t.Parallel()
	const (
		host  = "Host: mail.contoso.com\r\n"
		evil  = "GET /owa/evil HTTP/1.1\r\n" + host + "\r\n"
		next  = "GET /owa/next HTTP/1.1\r\n" + host + "\r\n"
		post  = "POST /owa/a HTTP/1.1\r\n" + host
		te    = "Transfer-Encoding: chunked\r\n"
		final = "0\r\n\r\n"
	)
	evilLen := fmt.Sprintf("Content-Length: %d\r\n", len(evil))
	type tc struct {
		name, text string
		statuses   string // of the final and interim answers
		seen       string // what the backend saw
	}
	tests := []tc{
		// Sound requests, so that the rest means something.
		{"plain", get("/owa/a") + next, "200 200", "GET /owa/a, GET /owa/next"},
		{"body that looks like a request", post + evilLen + "\r\n" + evil + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"chunk that looks like a request", post + te + "\r\n" + fmt.Sprintf("%x\r\n%s\r\n", len(evil), evil) + final + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"GET with a body", "GET /owa/a HTTP/1.1\r\n" + host + evilLen + "\r\n" + evil + next, "200 200", "GET /owa/a, GET /owa/next"},
		{"HEAD with a body", "HEAD /owa/a HTTP/1.1\r\n" + host + evilLen + "\r\n" + evil + next, "200 200", "HEAD /owa/a, GET /owa/next"},
		{"HEAD with chunks", "HEAD /owa/a HTTP/1.1\r\n" + host + te + "\r\n1\r\na\r\n" + final + next, "200 200", "HEAD /owa/a, GET /owa/next"},
		{"OPTIONS with a body", "OPTIONS /owa/a HTTP/1.1\r\n" + host + evilLen + "\r\n" + evil + next, "200 200", "OPTIONS /owa/a, GET /owa/next"},
		{"length 0 and a follow-up", post + "Content-Length: 0\r\n\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"length with leading zeros", post + "Content-Length: 0000\r\n\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"CRLF between requests", get("/owa/a") + "\r\n" + next, "200 200", "GET /owa/a, GET /owa/next"},
		{"chunk extension", post + te + "\r\n1;a=\"b;c\"\r\na\r\n0;x\r\n\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"chunk sizes with zeros", post + te + "\r\n0000001\r\na\r\n000\r\n\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"trailer", post + te + "\r\n" + "0\r\nX-A: b\r\n\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"trailer with a length", post + te + "\r\n" + "0\r\n" + evilLen + "Transfer-Encoding: chunked\r\nHost: evil\r\n\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"no body announced, bytes follow", post + "\r\n" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"tab before chunked", post + "Transfer-Encoding:\tchunked\r\n\r\n" + final + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"blanks round chunked", post + "Transfer-Encoding:   chunked \t\r\n\r\n" + final + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"CHUNKED", post + "TRANSFER-ENCODING: CHUNKED\r\n\r\n" + final + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"connection nominates the length", post + "Connection: Content-Length\r\n" + evilLen + "\r\n" + evil + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"connection nominates the encoding", post + "Connection: close, transfer-encoding\r\n" + te + "\r\n" + final + next, "200", "POST /owa/a"},
		{"connection nominates host and expect", post + "Connection: Host, Expect\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na" + next, "100 200 200", "POST /owa/a, GET /owa/next"},
		{"expect with the body at once", post + "Expect: 100-continue\r\n" + evilLen + "\r\n" + evil + next, "100 200 200", "POST /owa/a, GET /owa/next"},
		{"expect without a body", "GET /owa/a HTTP/1.1\r\n" + host + "Expect: 100-continue\r\n\r\n" + next, "100 200 200", "GET /owa/a, GET /owa/next"},
		{"expect in 1.0", "POST /owa/a HTTP/1.0\r\n" + host + "Expect: 100-continue\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na" + next, "200 200", "POST /owa/a, GET /owa/next"},
		{"absolute form", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\nHost: legacy.contoso.com\r\n\r\n" + next, "200 200", "GET /owa/a, GET /owa/next"},
		{"absolute form with another host", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\nHost: evil.example\r\n\r\n" + next, "421 200", "GET /owa/next"},
		{"404 with a body", "POST /nowhere HTTP/1.1\r\n" + host + evilLen + "\r\n" + evil + next, "404 200", "GET /owa/next"},
		{"404 with chunks", "POST /nowhere HTTP/1.1\r\n" + host + te + "\r\n" + fmt.Sprintf("%x\r\n%s\r\n", len(evil), evil) + final + next, "404 200", "GET /owa/next"},
		{"405 with a body", "DELETE /owa/a HTTP/1.1\r\n" + host + evilLen + "\r\n" + evil + next, "405 200", "GET /owa/next"},
		{"421 with a body", "POST /owa/a HTTP/1.1\r\nHost: evil.example\r\n" + evilLen + "\r\n" + evil + next, "421 200", "GET /owa/next"},
		{"prefix of a request as body of 404", "GET /nowhere HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nGET /" + next, "404 200", "GET /owa/next"},
		{"body left unsent", post + "Content-Length: 5\r\n\r\na", "", "POST /owa/a or nothing"},
		{"chunks left unsent", post + te + "\r\n5\r\na", "", "POST /owa/a or nothing"},
	}
	// Heads that two parsers could read differently: refused, and nothing behind
	// them is read.
	refusedHeads := map[string]string{
		"CL.TE": evilLen + te, "TE.CL": te + evilLen, "CL.CL equal": evilLen + evilLen, "CL.CL": "Content-Length: 0\r\n" + evilLen,
		"CL list": "Content-Length: 0, 0\r\n", "CL with sign": "Content-Length: +5\r\n", "CL negative": "Content-Length: -1\r\n",
		"CL hex": "Content-Length: 0x5\r\n", "CL with a blank inside": "Content-Length: 1 0\r\n", "CL empty": "Content-Length:\r\n",
		"CL fraction": "Content-Length: 1.0\r\n", "CL overflow": "Content-Length: 18446744073709551617\r\n", "CL underscores": "Content-Length: 1_0\r\n",
		"CL name with blank": "Content-Length : 5\r\n", "CL name with tab": "Content-Length\t: 5\r\n", "CL with vertical tab": "Content-Length: \x0b5\r\n",
		"CL with NUL": "Content-Length: 5\x00\r\n", "CL quoted": "Content-Length: \"5\"\r\n", "CL other digits": "Content-Length: \u0665\r\n",
		"TE.TE": te + te, "TE identity": "Transfer-Encoding: identity\r\n", "TE list": "Transfer-Encoding: gzip, chunked\r\n",
		"TE chunked twice": "Transfer-Encoding: chunked, chunked\r\n", "TE chunked, identity": "Transfer-Encoding: chunked, identity\r\n",
		"TE xchunked": "Transfer-Encoding: xchunked\r\n", "TE chunked;a": "Transfer-Encoding: chunked;a=b\r\n", "TE quoted": "Transfer-Encoding: \"chunked\"\r\n",
		"TE with vertical tab": "Transfer-Encoding: \x0bchunked\r\n", "TE with NUL": "Transfer-Encoding: chunked\x00\r\n", "TE Kelvin sign": "Transfer-Encoding: chun\u212aed\r\n",
		"TE name with blank": "Transfer-Encoding : chunked\r\n", "TE name with NUL": "Transfer-Encoding\x00: chunked\r\n", "TE after a blank": " Transfer-Encoding: chunked\r\n",
		"TE folded": "Transfer-Encoding:\r\n chunked\r\n", "TE folded behind": "X: y\r\n\tTransfer-Encoding: chunked\r\n", "TE empty": "Transfer-Encoding:\r\n",
		"TE bare LF": "X: y\nTransfer-Encoding: chunked\r\n", "TE bare CR": "X: y\rTransfer-Encoding: chunked\r\n", "TE NEL": "Transfer-Encoding: chunked\u0085\r\n",
		"TE colon": "Transfer-Encoding:: chunked\r\n", "Host twice": host, "Host twice, other": "host: evil.example\r\n",
		"Host list": "X: y\r\nHOST: mail.contoso.com, evil.example\r\n", "Expect other": "Expect: 100-continue, x\r\n", "Expect twice": "Expect: 100-continue\r\nExpect: 100-continue\r\n",
		"name with colon blank": "X y: z\r\n", "name empty": ": z\r\n", "LF CR": "X: y\n\r",
	}
	for name, lines := range refusedHeads {
		want := "400"
		if strings.HasPrefix(name, "Expect") {
			want = "417"
		}
		tests = append(tests, tc{name, post + lines + "\r\n" + final + evil, want, ""})
	}
	for name, text := range map[string]string{
		"1.0 with chunks": "POST /owa/a HTTP/1.0\r\n" + host + te + "\r\n" + final, "HTTP/1.2": "GET /owa/a HTTP/1.2\r\n" + host + "\r\n", "HTTP/0.9": "GET /owa/a\r\n",
		"target with blanks": "GET /owa/a HTTP/1.1 HTTP/1.1\r\n" + host + "\r\n", "target with tab": "GET /owa/a\tb HTTP/1.1\r\n" + host + "\r\n",
		"leading blank": " GET /owa/a HTTP/1.1\r\n" + host + "\r\n", "three empty lines": "\r\n\r\n\r\nGET /owa/a HTTP/1.1\r\n" + host + "\r\n",
		"CONNECT with a length": "CONNECT mail.contoso.com:443 HTTP/1.1\r\n" + host + evilLen + "\r\n", "CONNECT with chunks": "CONNECT mail.contoso.com:443 HTTP/1.1\r\n" + host + te + "\r\n",
		"absolute form with user": "GET https://a@mail.contoso.com/owa/a HTTP/1.1\r\n" + host + "\r\n", "absolute form without a host": "GET https:///owa/a HTTP/1.1\r\n" + host + "\r\n",
	} {
		want := "400"
		if name == "HTTP/1.2" {
			want = "505"
		}
		tests = append(tests, tc{name, text + evil, want, ""})
	}
	// Bodies that go wrong after the head may have gone to the backend, which then
	// never sees the request whole.
	for name, chunks := range map[string]string{
		"chunk size overflow": "10000000000000005\r\nabcde\r\n", "chunk size with 16 digits": "0000000000000001\r\na\r\n", "chunk size negative": "-1\r\n",
		"chunk size with 0x": "0x1\r\na\r\n", "chunk size after a blank": " 1\r\na\r\n", "chunk size before a blank": "1 \r\na\r\n", "chunk size with tab": "1\t;x\r\na\r\n",
		"chunk size empty": "\r\na\r\n", "chunk ext bare LF": "1;x\na\r\n", "chunk ext bare CR": "1;x\ry\r\na\r\n", "chunk ends with LF": "1\r\na\n",
		"chunk too long": "1\r\nab\r\n", "chunk ends with CR": "1\r\na\r0\r\n\r\n", "chunk size LF": "1\na\r\n", "trailer folded": "0\r\nA: b\r\n c\r\n\r\n",
		"trailer bare LF": "0\r\nA: b\n\r\n", "trailer without name": "0\r\n: b\r\n\r\n", "trailer that is a request": "0\r\n" + evil, "chunk ext NUL": "1;\x00\r\na\r\n",
		"endless chunk ext": "1;" + strings.Repeat("x", maxChunkLine) + "\r\na\r\n",
	} {
		tests = append(tests, tc{name, post + te + "\r\n" + chunks + final + evil, "400", "POST /owa/a or nothing"})
	}

	for _, tc := range tests {
		for _, split := range []bool{false, true} {
			name := tc.name
			if split {
				name += ", in pieces"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b := newRecorder(t, strictly)
				f := newFront(t, nil, b.backend())
				c := f.dial("mail.contoso.com")
				head, body, _ := strings.Cut(tc.text, "\r\n\r\n")
				if split {
					c.send(head + "\r\n\r\n")
					time.Sleep(5 * time.Millisecond)
					c.Write([]byte(body))
				} else {
					c.send(tc.text)
				}
				if tc.statuses == "" {
					time.Sleep(20 * time.Millisecond)
					c.Close() // an unfinished request
				}
				var got []byte
				c.SetReadDeadline(time.Now().Add(patience))
				want := strings.Fields(tc.statuses)
				buf := make([]byte, 4096)
				for {
					n, err := c.br.Read(buf)
					got = append(got, buf[:n]...)
					if err != nil {
						break
					}
					if len(statusLines.FindAll(got, -1)) >= len(want) { // more would come at once
						c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
					}
				}
				c.Close()
				var statuses []string
				for _, m := range statusLines.FindAllSubmatch(got, -1) {
					statuses = append(statuses, string(m[1]))
				}
				if !slices.Equal(statuses, want) {
					t.Errorf("answers %v, want %v: %q", statuses, want, got)
				}
				var seen []string
				for _, conn := range b.connections() {
					conn.ends(t)
					seen = append(seen, conn.seen()...)
				}
				if n := len(b.connections()); n > 1 {
					t.Errorf("%d backend connections", n)
				}
				switch all := strings.Join(seen, ", "); {
				case all == tc.seen, tc.seen == "POST /owa/a or nothing" && (all == "" || all == "POST /owa/a"):
				default:
					t.Errorf("backend saw %q, want %q", all, tc.seen)
				}
			})
		}
	}
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
