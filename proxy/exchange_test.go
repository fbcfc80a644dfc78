package proxy

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// quick gives every virtual directory short times, so that what takes minutes is
// seen in a second.
func quick(request, response time.Duration) func(*front, *Options, *Table) {
	return func(f *front, _ *Options, _ *Table) {
		f.mail.VirtualDirectories = Preset()
		for i := range f.mail.VirtualDirectories {
			d := &f.mail.VirtualDirectories[i]
			d.RequestIdle, d.ResponseIdle = request, response
		}
	}
}

// Expect in its combinations: who asked is told once, who did not
// ask is told nothing, and the connection is good for another request.
func TestExpectCombinations(t *testing.T) {
	t.Parallel()
	const (
		cont = "HTTP/1.1 100 Continue\r\n\r\n"
		ok   = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
		no   = "HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
		ask  = "Expect: 100-continue\r\n"
		te   = "Transfer-Encoding: chunked\r\n"
	)
	for name, tc := range map[string]struct {
		version, fields string
		body            string // sent after the first answer, at once with a leading !
		before, after   string // what the backend writes before and after it has the body
		want            string // statuses the client gets
	}{
		"100, then 200":              {"1.1", ask + "Content-Length: 2\r\n", "ab", cont, ok, "100 200"},
		"100, chunked":               {"1.1", ask + te, "2\r\nab\r\n0\r\n\r\n", cont, ok, "100 200"},
		"100 twice":                  {"1.1", ask + "Content-Length: 2\r\n", "ab", cont, cont + ok, "100 200"},
		"100 that nobody asked for":  {"1.1", "Content-Length: 2\r\n", "!ab", cont, cont + ok, "200"},
		"other interim":              {"1.1", "Content-Length: 2\r\n", "!ab", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", ok, "103 200"},
		"1.0 asks in vain":           {"1.0", ask + "Connection: keep-alive\r\nContent-Length: 2\r\n", "!ab", cont, ok, "200"},
		"1.0 and another interim":    {"1.0", "Connection: keep-alive\r\nContent-Length: 2\r\n", "!ab", "HTTP/1.1 103 Early Hints\r\n\r\n", ok, "200"},
		"no body":                    {"1.1", ask, "!", cont, ok, "100 200"},
		"body at once, no 100":       {"1.1", ask + "Content-Length: 2\r\n", "!ab", "", ok, "200"},
		"final 200 without 100":      {"1.1", ask + "Content-Length: 2\r\n", "ab", ok, "", "200"},
		"final 200, chunked":         {"1.1", ask + te, "2\r\nab\r\n0\r\n\r\n", ok, "", "200"},
		"417 from the backend":       {"1.1", ask + "Content-Length: 2\r\n", "ab", no, "", "417"},
		"100 of the backend is late": {"1.1", ask + "Content-Length: 2\r\n", "ab", "", cont + ok, "100 200"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRecorder(t, func(c *recorded) {
				for {
					r, err := http.ReadRequest(c.br)
					if err != nil {
						return
					}
					if r.URL.Path == "/owa/next" {
						io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
						continue
					}
					io.WriteString(c, tc.before)
					io.Copy(io.Discard, r.Body)
					io.WriteString(c, tc.after)
				}
			})
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			head := "POST /owa/ HTTP/" + tc.version + "\r\nHost: mail.contoso.com\r\n" + tc.fields + "\r\n"
			body, atOnce := strings.CutPrefix(tc.body, "!")
			if atOnce {
				head += body
			}
			c.send(head)
			var got []string
			for i := 0; ; i++ {
				h := c.head()
				got = append(got, h[9:12])
				if i == 0 && !atOnce {
					c.send(body)
				}
				if h[9] != '1' {
					break
				}
			}
			if s := strings.Join(got, " "); s != tc.want {
				t.Errorf("answers %s, want %s", s, tc.want)
			}
			c.send(get("/owa/next"))
			if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 204 ") {
				t.Errorf("next request: %q", h)
			}
		})
	}
}

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

// bytes in either direction re-arm the limits; silence in both ends the
// exchange, with the status of the side that owed something.
func TestSilence(t *testing.T) {
	t.Parallel()
	const pause, rounds = 500 * time.Millisecond, 8 // together much longer than the limits
	limits := quick(2500*time.Millisecond, 2600*time.Millisecond)
	t.Run("upload re-arms", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, strictly)
		f := newFront(t, limits, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(fmt.Sprintf("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: %d\r\n\r\n", rounds))
		for range rounds {
			time.Sleep(pause)
			c.send("x")
		}
		if r, _ := c.response("POST"); r.StatusCode != 200 {
			t.Error(r.Status)
		}
	})
	t.Run("download re-arms", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, func(c *recorded) {
			c.head()
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", rounds)
			for range rounds {
				time.Sleep(pause)
				io.WriteString(c, "x")
			}
			c.head()
		})
		f := newFront(t, limits, b.backend())
		c := f.dial("mail.contoso.com")
		// The client, whose body is not through, is as silent as it likes meanwhile.
		c.send("RPC_IN_DATA /rpc/rpcproxy.dll HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 100\r\n\r\nsome")
		if _, body := c.response("RPC_IN_DATA"); len(body) != rounds {
			t.Errorf("%q", body)
		}
	})
	t.Run("client stalls", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, strictly)
		f := newFront(t, limits, b.backend())
		c := f.dial("mail.contoso.com")
		c.send("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 100\r\n\r\nsome")
		if r, _ := c.response("POST"); r.StatusCode != 408 {
			t.Error(r.Status)
		}
		c.ends()
	})
	t.Run("backend stalls", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, func(c *recorded) {
			c.head()
			c.head()
		})
		f := newFront(t, limits, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		if r, _ := c.response("GET"); r.StatusCode != 504 {
			t.Error(r.Status)
		}
		c.ends()
		b.asked(0, 1).ends(t)
	})
	t.Run("backend stalls in the response", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nsome")
			c.head()
		})
		f := newFront(t, limits, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		r, err := http.ReadResponse(c.br, nil)
		if err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(r.Body); string(rest) != "some" || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q %v", rest, err) // a truncation, not an orderly end
		}
	})
	t.Run("client does not read", func(t *testing.T) {
		t.Parallel()
		b := newRecorder(t, func(c *recorded) {
			c.head()
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
			for {
				if _, err := c.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		})
		f := newFront(t, limits, b.backend())
		c := f.dial("mail.contoso.com")
		c.send(get("/owa/"))
		c.head()
		b.asked(0, 1).ends(t)
	})
}

// after an early response the rest of the body is carried up to the
// limit, to the byte; a client that never sends it is not waited for long.
func TestRestOfBody(t *testing.T) {
	early := func(c *recorded) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			if r.URL.Path != "/owa/next" {
				time.Sleep(20 * time.Millisecond) // the first byte is on its way too
			}
			io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
			io.Copy(io.Discard, r.Body)
		}
	}
	for _, tc := range []struct {
		length int
		closes bool
	}{{1, false}, {drainLimit, false}, {drainLimit + 1, false}, {drainLimit + 2, true}, {-1, false}} {
		t.Run(fmt.Sprint(tc.length), func(t *testing.T) {
			b := newRecorder(t, early)
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			framing, first, rest := fmt.Sprintf("Content-Length: %d", tc.length), "x", strings.Repeat("x", max(tc.length-1, 0))
			if tc.length < 0 {
				framing, first, rest = "Transfer-Encoding: chunked", "1\r\nx\r\n", strings.Repeat("400\r\n"+strings.Repeat("x", 1024)+"\r\n", 300)+"0\r\n\r\n"
			}
			c.send("POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n" + framing + "\r\n\r\n" + first)
			h := c.head()
			if got := strings.Contains(h, "Connection: close"); got != tc.closes {
				t.Fatalf("%q", h)
			}
			if tc.closes {
				c.ends()
				return
			}
			go io.WriteString(c, rest+get("/owa/next"))
			if h := c.head(); !strings.HasPrefix(h, "HTTP/1.1 401 ") {
				t.Errorf("%q", h)
			}
			if n := len(b.connections()); n != 1 {
				t.Errorf("%d backend connections", n)
			}
		})
	}
}

// and its like for responses: large heads cross whole in both directions;
// what is larger, or has more lines than any real head, is refused with 431 or 502.
func TestLargeHeads(t *testing.T) {
	line := func(n int) string { return "X: " + strings.Repeat("x", n-5) + "\r\n" }
	var answer string
	b := newRecorder(t, func(c *recorded) {
		for {
			if _, err := c.head(); err != nil {
				return
			}
			io.WriteString(c, answer)
		}
	})
	f := newFront(t, nil, b.backend())
	const start, end = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n", "\r\n"
	for name, tc := range map[string]struct {
		extra   string
		refused bool
	}{
		"a line of 88 KiB":  {line(maxLineBytes), false},
		"a longer line":     {line(maxLineBytes + 3), true},
		"a head of 128 KiB": {line(64<<10) + line(63<<10), false},
		"a longer head":     {line(64<<10) + line(64<<10), true},
		"900 lines":         {strings.Repeat("X: y\r\n", 900), false},
		"1001 lines":        {strings.Repeat("X: y\r\n", 1001), true},
	} {
		t.Run("response, "+name, func(t *testing.T) {
			answer = start + tc.extra + end
			c := f.dial("mail.contoso.com")
			c.send(get("/owa/"))
			if h := c.head(); !tc.refused && h != answer || tc.refused && !strings.HasPrefix(h, "HTTP/1.1 502 ") {
				t.Errorf("%d bytes: %.60q", len(h), h)
			}
			c.Close()
		})
		t.Run("request, "+name, func(t *testing.T) {
			answer = start + end
			before := len(b.connections())
			c := f.dial("mail.contoso.com")
			go io.WriteString(c, "GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n"+tc.extra+"\r\n")
			h := c.head()
			if want := map[bool]string{true: "431", false: "200"}[tc.refused]; h[9:12] != want {
				t.Errorf("%.60q", h)
			}
			if !tc.refused {
				if got := b.connections()[before].seen()[0]; !strings.Contains(got, tc.extra) {
					t.Errorf("%d bytes reached the backend", len(got))
				}
			}
			c.Close()
		})
	}
	t.Run("request, 65 Connection options", func(t *testing.T) {
		c := f.dial("mail.contoso.com")
		c.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nConnection: " + strings.Repeat("x,", 65) + "\r\n\r\n")
		if r, _ := c.response("GET"); r.StatusCode != 400 {
			t.Error(r.Status)
		}
	})
}

// A client that half-closes, in any phase, gets what it has asked for; one whose
// request is incomplete gets nothing, and the backend is let go.
func TestHalfCloseInEachPhase(t *testing.T) {
	t.Parallel()
	script := func(c *recorded) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfi")
			time.Sleep(100 * time.Millisecond)
			io.WriteString(c, "ne")
		}
	}
	const post = "POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 4\r\n\r\n"
	for name, tc := range map[string]struct {
		text string
		want int // answers
	}{
		"before a head": {"", 0}, "in a head": {"GET /owa/ HT", 0}, "in a body": {post + "ab", 0}, "in a chunk": {strings.Replace(post, "Content-Length: 4", "Transfer-Encoding: chunked", 1) + "5\r\nab", 0},
		"behind a head": {get("/owa/"), 1}, "behind a body": {post + "abcd", 1}, "behind two": {get("/owa/") + post + "abcd", 2}, "in the second": {get("/owa/") + post + "ab", 1},
	} {
		for _, fin := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, FIN %v", name, fin), func(t *testing.T) {
				t.Parallel()
				timely(t, func(t *testing.T) error { // answers behind a FIN race against halfCloseGrace
					b := newRecorder(t, script)
					f := newFront(t, nil, b.backend())
					c := f.dial("mail.contoso.com")
					c.send(tc.text)
					c.Conn.(*tls.Conn).CloseWrite()
					if fin {
						c.Conn.(*tls.Conn).NetConn().(interface{ CloseWrite() error }).CloseWrite()
					}
					c.SetReadDeadline(time.Now().Add(patience))
					all, err := io.ReadAll(c.br)
					if isTimeout(err) {
						t.Errorf("not closed: %v", err)
					}
					c.Close()
					for _, bc := range b.connections() {
						bc.ends(t)
					}
					n := strings.Count(string(all), "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
					switch {
					case n == tc.want && strings.Count(string(all), "HTTP/1.1") == n:
						return nil
					case fin && n < tc.want:
						return fmt.Errorf("%d answers: %q", n, all)
					}
					t.Fatalf("%d answers: %q", n, all)
					return nil
				})
			})
		}
	}
}

// Chunks of one byte and of a megabyte arrive as they were sent.
func TestChunkSizes(t *testing.T) {
	b := newRecorder(t, func(c *recorded) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(r.Body)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			size := 1
			if len(body) > 10000 {
				size = len(body)
			}
			var out strings.Builder
			for len(body) > 0 {
				fmt.Fprintf(&out, "%x\r\n%s\r\n", size, body[:size])
				body = body[size:]
			}
			io.WriteString(c, out.String()+"0\r\n\r\n")
		}
	})
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	for _, tc := range []struct{ size, count int }{{1, 5000}, {1 << 20, 1}} {
		payload := strings.Repeat("0123456789abcdef", tc.size*tc.count/16+1)[:tc.size*tc.count]
		var text strings.Builder
		for i := range tc.count {
			fmt.Fprintf(&text, "%X\r\n%s\r\n", tc.size, payload[i*tc.size:(i+1)*tc.size])
		}
		go io.WriteString(c, "POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nTransfer-Encoding: chunked\r\n\r\n"+text.String()+"0\r\n\r\n")
		if _, body := c.response("POST"); body != payload {
			t.Errorf("%d x %d bytes came back as %d", tc.count, tc.size, len(body))
		}
	}
}
