package proxy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// events are the records in the log of a front door whose connections have ended.
func (f *front) events() (requests, connections []map[string]any) {
	f.t.Helper()
	eventually(f.t, "no connection is left", func() bool { return f.Connections() == 0 })
	for l := range strings.Lines(f.log.String()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			f.t.Fatalf("log line %q: %v", l, err)
		}
		switch e["message"] {
		case "request":
			requests = append(requests, e)
		case "connection", "connection refused":
			connections = append(connections, e)
		}
	}
	return requests, connections
}

// Every request leaves one record, with the status the client got, the bytes each
// way and what went wrong, if anything; every connection leaves one too.
func TestEveryPathIsLoggedOnce(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	script := func(c *recorded) {
		for {
			r, err := http.ReadRequest(c.br)
			if err != nil {
				return
			}
			c.mu.Lock()
			c.heads = append(c.heads, r.RequestURI)
			c.mu.Unlock()
			switch r.URL.Path {
			case "/owa/drop":
				return
			case "/owa/cut":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
				return
			case "/owa/garbage":
				io.WriteString(c, "SSH-2.0-x\r\n\r\n")
				return
			case "/owa/unasked":
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokmore")
				continue
			case "/owa/silent":
				io.Copy(io.Discard, c.br)
				return
			}
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n%2d", n)
		}
	}
	// A record is "level status in out error"; the sizes only where they say something.
	const post = "POST /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n"
	for name, tc := range map[string]struct {
		text  string
		plain bool
		// wait for an answer, else the client leaves after a moment
		answered bool
		requests []string
		conn     string // level of the connection's record
	}{
		"nothing":             {"", false, false, nil, "info"},
		"half a head":         {"GET /owa/ HT", false, false, nil, "info"},
		"answered":            {get("/owa/"), false, true, []string{"info 200 0 40 "}, "info"},
		"two":                 {get("/owa/") + post + "Content-Length: 3\r\n\r\nabc", false, true, []string{"info 200 0 40 ", "info 200 3 40 "}, "info"},
		"chunks":              {post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", false, true, []string{"info 200 3 40 "}, "info"},
		"body left unsent":    {post + "Content-Length: 9\r\n\r\nabc", false, false, []string{"info 0 3 0 client closed the connection"}, "info"},
		"client leaves":       {get("/owa/silent"), false, false, []string{"info 0 0 0 client closed the connection"}, "info"},
		"malformed head":      {"GET /owa/\r\n\r\n", false, true, []string{"info 400 0 - request line is not"}, "info"},
		"malformed chunk":     {post + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", false, true, []string{"- 400 0 - bad chunk size"}, "info"},
		"other host":          {"GET /owa/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", false, true, []string{"info 421 0 - unknown host"}, "info"},
		"not published":       {get("/x"), false, true, []string{"info 404 0 - not published"}, "info"},
		"backend drops":       {get("/owa/drop"), false, true, []string{"warn 502 0 - response from backend"}, "info"},
		"backend drops later": {get("/owa/") + get("/owa/drop"), false, true, []string{"info 200 0 40 ", "warn 0 0 0 backend cas01.contoso.local closed the connection before answering"}, "info"},
		"backend cuts":        {get("/owa/cut"), false, true, []string{"warn 200 0 42 response from backend"}, "info"},
		"backend's garbage":   {get("/owa/garbage"), false, true, []string{"warn 502 0 - response from backend"}, "info"},
		"unasked bytes":       {get("/owa/unasked"), false, true, []string{"warn 200 0 40 backend sent bytes that no request asked for"}, "info"},
		"unreachable":         {"GET /owa/ HTTP/1.1\r\nHost: other.contoso.com\r\n\r\n", false, true, []string{"warn 502 0 - dial backend cas02"}, "info"},
		"redirect":            {"POST /autodiscover/autodiscover.xml HTTP/1.1\r\nHost: autodiscover.contoso.com\r\nContent-Length: 3\r\n\r\nabc", true, true, []string{"info 302 3 - "}, "info"},
		"plain 404":           {get("/x"), true, true, []string{"info 404 0 - nothing is served here in clear"}, "info"},
		"plain garbage":       {"\x16\x03\x01", true, true, []string{"info 400 0 - no HTTP request"}, "info"},
		"plain nothing":       {"", true, false, nil, "debug"},
		"panic":               {"GET /panic HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\n\r\n", false, true, []string{"warn 500 0 - panic in the answer to GET"}, "info"},
		"large local body":    {"POST / HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\nContent-Length: 99999\r\n\r\n", false, true, []string{"info 413 0 - "}, "info"},
		"unfinished local":    {"POST / HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\nContent-Length: 99\r\n\r\nab", false, false, []string{"info 0 2 0 client closed the connection"}, "info"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newRecorder(t, script)
			f := newFront(t, func(f *front, o *Options, tb *Table) {
				other := *f.mail
				other.Name, other.Site = "other.contoso.com", &Site{Name: "branch", Backends: []*Backend{{Name: "cas02", Address: dead.Addr().String()}}}
				tb.Hosts["other.contoso.com"] = &other
				tb.Hosts["autodiscover.fabrikam.com"] = &Host{
					Name: "autodiscover.fabrikam.com", Mode: Answer, TLS: f.mail.TLS, Policy: "p",
					Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						if r.URL.Path == "/panic" {
							panic("oops")
						}
						io.Copy(io.Discard, r.Body)
					}),
				}
			}, b.backend())
			var c *client
			if tc.plain {
				c = f.dialPlain()
			} else {
				c = f.dial("mail.contoso.com")
			}
			c.send(tc.text)
			for range tc.requests {
				if tc.answered {
					if r, err := http.ReadResponse(c.br, nil); err == nil {
						io.Copy(io.Discard, r.Body)
					}
				}
			}
			if !tc.answered && strings.Contains(tc.text, "/owa/") && len(tc.requests) > 0 {
				b.asked(0, 1)
			}
			time.Sleep(100 * time.Millisecond)
			c.Close()
			requests, conns := f.events()
			var got []string
			for _, e := range requests {
				text, _ := e["error"].(string)
				got = append(got, fmt.Sprintf("%v %v %v %v %s", e["level"], e["status"], e["in"], e["out"], text))
			}
			ok := len(got) == len(tc.requests)
			for i := range min(len(got), len(tc.requests)) {
				g, w := strings.SplitN(got[i], " ", 5), strings.SplitN(tc.requests[i], " ", 5)
				for j := range 4 {
					ok = ok && (g[j] == w[j] || w[j] == "-")
				}
				ok = ok && strings.HasPrefix(g[4], w[4]) && (w[4] != "" || g[4] == "")
			}
			if !ok {
				t.Errorf("requests\n%q, want\n%q", got, tc.requests)
			}
			if len(conns) != 1 || conns[0]["level"] != tc.conn {
				t.Errorf("connections %v, want one at level %s", conns, tc.conn)
			}
		})
	}
}

// A client cannot make a record long, nor a line of its own, nor have a secret
// written down, in whatever it misplaces it.
func TestRecordsAreBounded(t *testing.T) {
	f := newFront(t, func(_ *front, o *Options, _ *Table) { o.Logger = o.Logger.Level(zerolog.InfoLevel) })
	for _, text := range []string{
		get("/" + strings.Repeat("x", 80_000)),
		strings.Repeat("X", 80_000) + " /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: " + strings.Repeat("x", 80_000) + "\r\n\r\n",
		"GET / HTTP/1.1\r\n" + strings.Repeat("x", 80_000) + ": \x01\r\n\r\n",
		get("/x\"}{\xff\xfe\u2028?secret=1"),
		"GET / HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: Basic secret\x01\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: mail.contoso.com\r\nCookie: secret\r\n secret\r\n\r\n",
		"GET https://secret:secret@mail.contoso.com/ HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n",
	} {
		c := f.dial("mail.contoso.com")
		go io.WriteString(c, text)
		c.response("GET")
		c.Close()
	}
	requests, _ := f.events()
	if len(requests) != 8 {
		t.Errorf("%d records", len(requests))
	}
	for l := range strings.Lines(f.log.String()) {
		if len(l) > 4096 {
			t.Errorf("record of %d bytes: %.100s", len(l), l)
		}
		if strings.Contains(l, "secret") {
			t.Errorf("%s", l)
		}
	}
}
