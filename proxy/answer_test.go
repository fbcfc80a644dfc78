package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// newAnswer starts a front door whose other.contoso.com is served by handler.
func newAnswer(t *testing.T, handler http.HandlerFunc) *front {
	return newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.Hosts["other.contoso.com"] = &Host{Name: "other.contoso.com", Mode: Answer, TLS: f.mail.TLS, Handler: handler}
	})
}

// A handler cannot make an answer that ends elsewhere than the client thinks: no
// body where none is due, no interim status as the last word, no line from a value.
func TestLocalAnswerFraming(t *testing.T) {
	f := newAnswer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204", "/304":
			w.Header().Set("Content-Length", "4")
			w.WriteHeader(map[string]int{"/204": 204, "/304": 304}[r.URL.Path])
			io.WriteString(w, "evil")
		case "/interim":
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "fine")
		case "/status":
			w.WriteHeader(99)
		case "/injection":
			w.Header()["X-A"] = []string{"b\r\nX-Evil: 1\x00\x0b", "c\td"}
			w.Header()["X-B\r\nX-Evil: 2\r\nX-C"] = []string{"d"}
			w.Header()["transfer-ENCODING"] = []string{"chunked"}
			w.Header()["Connection"] = []string{"close"}
			io.WriteString(w, "fine")
		}
	})
	c := f.dial("other.contoso.com")
	ask := func(method, path string) string {
		c.send(method + " " + path + " HTTP/1.1\r\nHost: other.contoso.com\r\n\r\n")
		r, body := c.response(method)
		var b bytes.Buffer
		r.Header.Del("Date")
		fmt.Fprintf(&b, "%d %d %q", r.StatusCode, r.ContentLength, body)
		for _, n := range []string{"X-Evil", "X-A", "X-B", "Transfer-Encoding", "Connection", "Content-Type"} {
			if v := r.Header[n]; v != nil {
				fmt.Fprintf(&b, " %s=%q", n, v)
			}
		}
		return b.String()
	}
	for _, tc := range [][3]string{
		{"GET", "/204", `204 0 ""`},
		{"GET", "/304", `304 0 ""`},
		{"GET", "/interim", `200 4 "fine" Content-Type=["text/plain; charset=utf-8"]`},
		{"HEAD", "/interim", `200 4 "" Content-Type=["text/plain; charset=utf-8"]`},
		{"GET", "/status", `500 0 ""`},
		{"GET", "/injection", `200 4 "fine" X-A=["b  X-Evil: 1" "c\td"] Content-Type=["text/plain; charset=utf-8"]`},
	} {
		if got := ask(tc[0], tc[1]); got != tc[2] {
			t.Errorf("%s %s: got  %s\nwant %s", tc[0], tc[1], got, tc[2])
		}
	}
	if f.Connections() != 1 {
		t.Error("the connection was to live through all of it")
	}
}

// The limit of a local body holds to the byte, in both framings, whatever the
// handler does with its error; what a handler leaves unread never becomes a
// request.
func TestLocalBodyLimit(t *testing.T) {
	f := newAnswer(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/all":
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %v", n, err != nil)
		case "/half":
			n, _ := io.CopyN(io.Discard, r.Body, 10)
			fmt.Fprint(w, n)
		}
	})
	chunked := func(n int) string {
		return fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", n, strings.Repeat("x", n))
	}
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n\r\n%s", n, strings.Repeat("x", n)) }
	for _, tc := range []struct {
		path, rest string
		want       string
	}{
		{"/all", length(maxLocalBody), "200 65536 false"},
		{"/all", chunked(maxLocalBody), "200 65536 false"},
		{"/all", length(maxLocalBody + 1), "413 close"},
		{"/all", chunked(maxLocalBody + 1), "413 close"},
		{"/half", length(100), "200 10"},
		{"/half", chunked(100), "200 10"},
		{"/half", length(maxLocalBody), "200 10"},
		{"/none", length(1000), "200 "},
		{"/none", chunked(200 << 10), "200 "},
	} {
		c := f.dial("other.contoso.com")
		go io.WriteString(c, "POST "+tc.path+" HTTP/1.1\r\nHost: other.contoso.com\r\n"+tc.rest+"GET /next HTTP/1.1\r\nHost: other.contoso.com\r\n\r\n")
		r, body := c.response("POST")
		got := fmt.Sprintf("%d %s", r.StatusCode, body)
		if r.Close {
			got = fmt.Sprintf("%d close", r.StatusCode)
		}
		if got != tc.want {
			t.Errorf("%s %.30q: got %q, want %q", tc.path, tc.rest, got, tc.want)
		}
		if r.Close {
			c.ends()
		} else if r, _ := c.response("GET"); r.StatusCode != 200 {
			t.Errorf("%s %.30q: next request %d", tc.path, tc.rest, r.StatusCode)
		}
		c.Close()
	}
}

// A client that does not send the body it announced holds a handler for the time
// of a head, and gets 408; one that leaves gets nothing.
func TestLocalBodyStalls(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		o.RequestHeadTimeout = limit
		tb.Hosts["other.contoso.com"] = &Host{
			Name: "other.contoso.com", Mode: Answer, TLS: f.mail.TLS,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.ReadAll(r.Body) }),
		}
	})
	for _, text := range []string{"Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"} {
		c := f.dial("other.contoso.com")
		start := time.Now()
		c.send("POST / HTTP/1.1\r\nHost: other.contoso.com\r\n" + text)
		if r, _ := c.response("POST"); r.StatusCode != 408 || time.Since(start) < limit || time.Since(start) > patience {
			t.Errorf("%d after %v", r.StatusCode, time.Since(start))
		}
		c.ends()
		c.Close()
		c = f.dial("other.contoso.com")
		c.send("POST / HTTP/1.1\r\nHost: other.contoso.com\r\n" + text)
		c.Close()
	}
	eventually(t, "no connection is left", func() bool { return f.Connections() == 0 })
}

// A handler that outlives Shutdown's time is waited for, with its context ended;
// its client's connection is closed at the limit.
func TestLocalHandlerAtShutdown(t *testing.T) {
	started := make(chan struct{})
	f := newAnswer(t, func(w http.ResponseWriter, r *http.Request) {
		close(started)
		<-r.Context().Done()
	})
	c := f.dial("other.contoso.com")
	c.send("GET / HTTP/1.1\r\nHost: other.contoso.com\r\n\r\n")
	<-started
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := f.Shutdown(ctx); err == nil {
		t.Error("Shutdown had to cut a request and did not say so")
	}
	c.ends()
}
