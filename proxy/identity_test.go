package proxy

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// labelled is the backend of: each connection is labelled with the first user
// on it, and everything that follows is that user's, whatever it is. What it does
// with a request is in the path: "/early" answers before the body, "/silent" does not
// answer at all, and an Upgrade is granted to a user.
func labelled(c *recorded) {
	user := ""
	for {
		h, err := c.head()
		if err != nil {
			return
		}
		if token := userIn(h); user == "" {
			user = token
		}
		answer := "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0\r\n\r\n"
		if user != "" {
			answer = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(user), user)
		}
		if strings.HasPrefix(h, "HEAD ") {
			answer = strings.TrimSuffix(answer, user)
		}
		early := strings.Contains(h, "/early ")
		if early {
			io.WriteString(c, answer)
		} else if strings.Contains(h, "Expect: ") {
			io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		}
		if strings.Contains(h, "Transfer-Encoding: chunked") {
			for line := ""; line != "0\r\n"; { // one line a chunk
				if line, err = c.br.ReadString('\n'); err != nil {
					return
				}
			}
			c.br.ReadString('\n')
		} else if _, err := io.CopyN(io.Discard, c.br, contentLength(h)); err != nil {
			return
		}
		switch {
		case early, strings.Contains(h, "/silent "):
		case user != "" && strings.Contains(h, "Upgrade: websocket"):
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
			io.Copy(c, c.br)
			return
		default:
			io.WriteString(c, answer)
		}
	}
}

// userIn returns the token of a request's credentials.
func userIn(head string) string {
	for line := range strings.SplitSeq(head, "\r\n") {
		if name, v, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Authorization") {
			if f := strings.Fields(v); len(f) == 2 {
				return f[1]
			}
		}
	}
	return ""
}

// A visit is a client's. It begins with a request that may have credentials, and
// returns once the backend has them; what is open stays open.
type visit struct {
	name string
	sni  string // "": mail.contoso.com
	do   func(c *client, head func(line, more string) string)
}

// answered reads an answer, and whose it is: the user's name, or "" if it is 401.
func answered(c *client) string {
	r, body := c.response("GET")
	switch r.StatusCode {
	case http.StatusUnauthorized:
		return ""
	case http.StatusOK:
		return body
	}
	return r.Status
}

// visits are the ways to a backend. Each leaves behind a connection that is its
// client's.
func visits() []visit {
	one := func(line, more, body string) func(*client, func(string, string) string) {
		return func(c *client, head func(string, string) string) {
			c.send(head(line, more) + body)
			answered(c)
		}
	}
	return []visit{
		{"one request", "", one("GET /ews/a", "", "")},
		{"another directory", "", one("GET /mapi/emsmdb/", "", "")},
		{"POST", "", one("POST /ews/a", "Content-Length: 1\r\n", "a")},
		{"chunks", "", one("POST /ews/a", "Transfer-Encoding: chunked\r\n", "1\r\na\r\n0\r\n\r\n")},
		{"HEAD", "", func(c *client, head func(string, string) string) { c.send(head("HEAD /ews/a", "")); c.head() }},
		{"absolute form", "", one("GET https://mail.contoso.com/ews/a", "", "")},
		{"alias", "", one("GET https://legacy.contoso.com/ews/a", "", "")},
		{"host of the same certificate", "", one("GET https://twin.contoso.com/ews/a", "", "")},
		{"host of another site", "other.contoso.com", one("GET https://other.contoso.com/ews/a", "", "")},
		{"421 before", "", func(c *client, head func(string, string) string) {
			c.send("GET /ews/a HTTP/1.1\r\nHost: nowhere.contoso.com\r\n\r\n")
			c.response("GET")
			c.send(head("GET /ews/a", ""))
			answered(c)
		}},
		{"404 before", "", func(c *client, head func(string, string) string) {
			c.send(head("GET /nowhere", ""))
			c.response("GET")
			c.send(head("GET /ews/a", ""))
			answered(c)
		}},
		{"keep-alive", "", func(c *client, head func(string, string) string) {
			for range 3 {
				c.send(head("GET /ews/a", ""))
				answered(c)
			}
		}},
		{"pipelining", "", func(c *client, head func(string, string) string) {
			c.send(head("GET /ews/a", "") + head("GET /ews/b", "") + head("GET /mapi/c", ""))
			for range 3 {
				answered(c)
			}
		}},
		{"several directories", "", func(c *client, head func(string, string) string) {
			for _, path := range []string{"/owa/", "/ews/", "/mapi/", "/rpc/"} {
				c.send(head("GET "+path, ""))
				answered(c)
			}
		}},
		{"connection close", "", one("GET /ews/a", "Connection: close\r\n", "")},
		{"100-continue", "", func(c *client, head func(string, string) string) {
			c.send(head("POST /ews/a", "Expect: 100-continue\r\nContent-Length: 1\r\n"))
			c.head()
			c.send("a")
			answered(c)
		}},
		{"early answer, body behind", "", func(c *client, head func(string, string) string) {
			c.send(head("POST /ews/early", "Content-Length: 10\r\n"))
			answered(c)
			c.send("0123456789")
		}},
		{"early answer, body abandoned", "", func(c *client, head func(string, string) string) {
			c.send(head("POST /ews/early", "Content-Length: 1000\r\n") + "some")
			answered(c)
		}},
		{"body abandoned", "", func(c *client, head func(string, string) string) {
			c.send(head("POST /ews/a", "Content-Length: 1000\r\n") + "some")
		}},
		{"bad chunk", "", func(c *client, head func(string, string) string) {
			c.send(head("POST /ews/early", "Transfer-Encoding: chunked\r\n"))
			answered(c)
			c.send("1\r\na\r\nx\r\n")
		}},
		{"answer abandoned", "", func(c *client, head func(string, string) string) { c.send(head("GET /ews/a", "")) }},
		{"no answer", "", func(c *client, head func(string, string) string) { c.send(head("GET /ews/silent", "")) }},
		{"malformed behind", "", func(c *client, head func(string, string) string) {
			c.send(head("GET /ews/a", "") + "GET /ews/b HTTP/1.1\r\nHost : x\r\n\r\n")
			answered(c)
		}},
		{"half-closed", "", func(c *client, head func(string, string) string) {
			c.send(head("GET /ews/a", ""))
			c.Conn.(*tls.Conn).CloseWrite()
			answered(c)
		}},
		{"Outlook Anywhere, in", "", func(c *client, head func(string, string) string) {
			c.send(head("RPC_IN_DATA /rpc/early", "Content-Length: 1073741824\r\n") + "some")
		}},
		{"Outlook Anywhere, out", "", one("RPC_OUT_DATA /rpc/rpcproxy.dll?srv:6001", "Content-Length: 76\r\n", strings.Repeat("o", 76))},
		{"WebSocket", "", func(c *client, head func(string, string) string) {
			c.send(head("GET /ws/a", "Connection: Upgrade\r\nUpgrade: websocket\r\n"))
			if h := c.head(); strings.HasPrefix(h, "HTTP/1.1 101 ") {
				c.send("hi")
				io.ReadFull(c.br, make([]byte, 2))
			}
		}},
		{"WebSocket elsewhere", "", one("GET /ews/a", "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n", "")},
	}
}

// world is an arrangement of hosts and labelled backends.
type world struct {
	f        *front
	table    *Table
	backends []*recorder
	between  func()  // what happens between two clients: a reload, say
	bypass   *client // the first client's connection, where that is not bridged
}

// requests counts what the backends were asked.
func (w *world) requests() (n int) {
	for _, b := range w.backends {
		for _, c := range b.connections() {
			n += len(c.seen())
		}
	}
	return n
}

// a client never gets onto a connection that has carried another one's
// credentials, by any way into a backend, whether the other one is still there or
// not. The backends remember the first user of each connection for whatever follows;
// every request says which client it is from, and no connection may ever see two.
func TestIdentityNeverShared(t *testing.T) {
	schemes := []string{"NTLM", "Negotiate", "Nego2", "nTLM", "NEGOTIATE", "nEgO2"}
	arrange := func(t *testing.T, count int, change func(w *world, backends []*Backend)) *world {
		w := &world{between: func() {}}
		var backends []*Backend
		for range count {
			b := newRecorder(t, labelled)
			w.backends, backends = append(w.backends, b), append(backends, b.backend())
		}
		w.f = newFront(t, func(f *front, _ *Options, table *Table) {
			w.f, w.table = f, table
			f.site.Backends = backends
			if change != nil {
				change(w, f.site.Backends)
			}
			ws := CustomDirectory("/ws", Publish)
			ws.Upgrade = true
			f.mail.VirtualDirectories = append(f.mail.VirtualDirectories, ws)
			// Two more hosts in front of the same servers: one in the same certificate, so
			// that its requests may come over the same connection, and one of its own.
			for name, policy := range map[string]string{"twin.contoso.com": f.mail.Policy, "other.contoso.com": "another"} {
				h := *f.mail
				h.Name, h.Policy = name, policy
				h.Site = &Site{Name: "site of " + name, Backends: f.site.Backends, ConnectTimeout: time.Minute}
				table.Hosts[name] = &h
			}
		})
		return w
	}
	worlds := []struct {
		name string
		make func(t *testing.T) *world
	}{
		{"one server", func(t *testing.T) *world { return arrange(t, 1, nil) }},
		{"a server that cannot be reached before it", func(t *testing.T) *world {
			return arrange(t, 1, func(w *world, backends []*Backend) {
				dead, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				dead.Close()
				w.f.site.Backends = append([]*Backend{{Name: "cas09", Address: dead.Addr().String(), TLS: &tls.Config{}}}, backends...)
			})
		}},
		{"three servers", func(t *testing.T) *world { return arrange(t, 3, nil) }},
		{"a server that drains beside it", func(t *testing.T) *world {
			return arrange(t, 2, func(_ *world, backends []*Backend) { backends[1].Drain = true })
		}},
		{"all servers drain", func(t *testing.T) *world {
			return arrange(t, 2, func(_ *world, backends []*Backend) { backends[0].Drain, backends[1].Drain = true, true })
		}},
		{"a reload between the two", func(t *testing.T) *world {
			w := arrange(t, 1, nil)
			w.between = func() {
				table := *w.table
				table.Hosts = map[string]*Host{}
				sites := map[*Site]*Site{}
				for name, h := range w.table.Hosts {
					again := *h
					if h.Site != nil {
						if sites[h.Site] == nil {
							sites[h.Site] = &Site{Name: h.Site.Name, Backends: slices.Clone(h.Site.Backends), ConnectTimeout: time.Minute}
						}
						again.Site = sites[h.Site]
					}
					table.Hosts[name] = &again
				}
				w.f.SetTable(&table)
			}
			return w
		}},
		{"a reload that drains the server", func(t *testing.T) *world {
			w := arrange(t, 2, nil)
			w.between = func() {
				b := w.f.site.Backends[0]
				again := &Backend{Name: b.Name, Address: b.Address, TLS: b.TLS, Drain: true}
				table, host := *w.table, *w.f.mail
				host.Site = &Site{Name: "hq", Backends: []*Backend{again, w.f.site.Backends[1]}, ConnectTimeout: time.Minute}
				table.Hosts = map[string]*Host{}
				for name, h := range w.table.Hosts {
					table.Hosts[name] = h
				}
				table.Hosts["mail.contoso.com"], table.Hosts["legacy.contoso.com"] = &host, &host
				w.f.SetTable(&table)
			}
			return w
		}},
		{"passthrough to the same server", func(t *testing.T) *world {
			w := arrange(t, 1, func(w *world, backends []*Backend) {
				w.table.Hosts["cas01.contoso.local"] = &Host{
					Name: "cas01.contoso.local", Mode: Passthrough,
					Site: &Site{Name: "passthrough", Backends: backends, ConnectTimeout: time.Minute},
				}
			})
			pool := w.backends[0].backend().TLS.RootCAs
			c, err := tls.Dial("tcp", w.f.https, &tls.Config{RootCAs: pool, ServerName: "cas01.contoso.local"})
			if err != nil {
				t.Fatal(err)
			}
			w.bypass = newClient(t, c)
			return w
		}},
	}
	// request makes heads of a client. Credentials go with the first alone: the
	// connection is the identity.
	request := func(id, scheme, user string) func(line, more string) string {
		return func(line, more string) string {
			auth := ""
			if scheme != "" {
				auth = "Authorization: " + scheme + " " + user + "\r\n"
				scheme = ""
			}
			host := "mail.contoso.com"
			if _, rest, ok := strings.Cut(line, "https://"); ok {
				host, _, _ = strings.Cut(rest, "/")
			}
			return line + " HTTP/1.1\r\nHost: " + host + "\r\nX-Client: " + id + "\r\n" + auth + more + "\r\n"
		}
	}
	// unshared checks that no backend connection has seen two clients, and that it
	// has seen as many as there were.
	unshared := func(t *testing.T, w *world, atLeast int) {
		t.Helper()
		clients := map[string]bool{}
		for _, b := range w.backends {
			for i, conn := range b.connections() {
				one := map[string]bool{}
				for _, h := range conn.seen() {
					if _, id, ok := strings.Cut(h, "X-Client: "); ok {
						id, _, _ = strings.Cut(id, "\r\n")
						one[id], clients[id] = true, true
					}
				}
				if len(one) > 1 {
					t.Errorf("connection %d at the backend has seen the clients %v", i, one)
				}
			}
		}
		if len(clients) < atLeast {
			t.Errorf("only %d clients have come through", len(clients))
		}
	}
	for n, wd := range worlds {
		for _, leaves := range []bool{false, true} {
			name := wd.name + ", the first client stays"
			if leaves {
				name = wd.name + ", the first client has left"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := wd.make(t)
				all := visits()
				came := 0
				for i, first := range all {
					// Where there is one server, everything; elsewhere each way with the first
					// client there or with it gone.
					if n > 0 && (i%2 == 0) == leaves {
						continue
					}
					came += 2
					id, user := fmt.Sprintf("alice%d", i), fmt.Sprintf("user%d", i)
					if w.bypass != nil {
						id = "alice" // one connection throughout
					}
					alice := w.bypass
					if alice == nil {
						alice = w.f.dial(cmp.Or(first.sni, "mail.contoso.com"))
					} else {
						first = all[0]
					}
					begun := w.requests()
					first.do(alice, request(id, schemes[i%len(schemes)], user))
					eventually(t, first.name+" is with the backend", func() bool { return w.requests() > begun })
					if leaves && alice != w.bypass {
						alice.Close()
					}
					w.between()
					// One by a way of each kind in turn, and always the plainest.
					for n, second := range []visit{all[0], all[(i*5+3)%len(all)]} {
						bob := w.f.dial(cmp.Or(second.sni, "mail.contoso.com"))
						head := request(fmt.Sprintf("bob%d.%d", i, n), "", "")
						bob.send(head("GET "+map[bool]string{true: "https://" + second.sni}[second.sni != ""]+"/ews/a", ""))
						if got := answered(bob); got != "" {
							t.Fatalf("%s, then %s: a client without credentials is %s", first.name, second.name, got)
						}
						second.do(bob, head)
						if second.name == "one request" || second.name == "keep-alive" {
							bob.send(head("GET /ews/a", ""))
							if got := answered(bob); got != "" {
								t.Fatalf("%s, then %s: a client without credentials is %s", first.name, second.name, got)
							}
						}
						bob.Close()
					}
				}
				unshared(t, w, came-1)
			})
		}
	}
	t.Run("200 clients at once", func(t *testing.T) {
		t.Parallel()
		w := arrange(t, 2, nil)
		all := visits()
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				c := w.f.dial("mail.contoso.com")
				defer c.Close()
				me, scheme := fmt.Sprintf("user%d", i), schemes[i%len(schemes)]
				if i%3 == 0 {
					me, scheme = "", ""
				}
				head := request(fmt.Sprintf("client%d", i), scheme, me)
				for n := range 4 {
					c.send(head("GET /ews/a", ""))
					if got := answered(c); got != me {
						t.Errorf("client %d is %q to the backend at request %d, not %q", i, got, n, me)
						return
					}
				}
				if v := all[i%len(all)]; v.sni == "" {
					v.do(c, head)
				}
			}()
		}
		wg.Wait()
		unshared(t, w, 200)
	})
}
