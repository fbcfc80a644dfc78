package proxy

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// askWith makes a GET with header lines, and returns the server that answers and the
// cookies it sets.
func (c *client) askWith(path string, lines ...string) (server string, cookies []string) {
	c.t.Helper()
	c.send("GET " + path + " HTTP/1.1\r\nHost: mail.contoso.com\r\n" + strings.Join(append(lines, "\r\n"), "\r\n"))
	r, body := c.response("GET")
	return body, r.Header.Values("Set-Cookie")
}

func basicOf(user, password string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// olden is a site of Exchange 2010 with three servers.
func olden(t *testing.T, change func(*Site)) (*front, []*cas) {
	var servers []*cas
	var backends []*Backend
	for i := range 3 {
		s := newCAS(t, fmt.Sprintf("cas0%d", i+1))
		servers = append(servers, s)
		backends = append(backends, s.backend())
	}
	return newFront(t, func(f *front, _ *Options, _ *Table) {
		f.site.Exchange = "2010"
		if change != nil {
			change(f.site)
		}
	}, backends...), servers
}

// once asks on a new connection.
func (f *front) once(path string, lines ...string) (server string, cookies []string) {
	f.t.Helper()
	c := f.dial("mail.contoso.com")
	defer c.Close()
	return c.askWith(path, lines...)
}

// OWA and ECP of 2010 are led by one inserted cookie; who has none takes turns.
func TestAffinityByCookie(t *testing.T) {
	t.Parallel()
	f, _ := olden(t, nil)
	seen := map[string]bool{}
	for range 3 {
		server, cookies := f.once("/owa/")
		seen[server] = true
		if len(cookies) != 1 || !strings.HasSuffix(cookies[0], "; Path=/; HttpOnly; Secure") || strings.Contains(cookies[0], "cas0") {
			t.Fatalf("cookies %q", cookies)
		}
		pair, _, _ := strings.Cut(cookies[0], ";")
		for range 4 {
			for _, path := range []string{"/owa/", "/ecp/"} {
				if again, cookies := f.once(path, "Cookie: a=b; "+pair); again != server || len(cookies) != 0 {
					t.Errorf("%s with the cookie of %s went to %s, cookies %q", path, server, again, cookies)
				}
			}
		}
		// One that names nobody is replaced.
		if _, cookies := f.once("/owa/", "Cookie: "+pair+"x"); len(cookies) != 1 {
			t.Errorf("cookies %q", cookies)
		}
	}
	if len(seen) != 3 {
		t.Errorf("new browsers went to %v alone", seen)
	}
	if _, cookies := f.once("/ews/"); len(cookies) != 0 {
		t.Errorf("EWS got cookies %q", cookies)
	}
}

// clients without cookies of ours are led by Exchange's own, by the
// user of a Basic login, and by their address; what Outlook says of itself leads
// both channels, also when they come at once.
func TestAffinityOfOtherClients(t *testing.T) {
	t.Parallel()
	f, _ := olden(t, nil)
	for _, path := range []string{"/ews/", "/rpc/x", "/Microsoft-Server-ActiveSync"} {
		server, _ := f.once(path)
		for range 4 {
			if again, _ := f.once(path); again != server {
				t.Errorf("%s by address: %s, then %s", path, server, again)
			}
		}
	}
	users := map[string]bool{}
	for i := range 12 {
		user := fmt.Sprintf("CONTOSO\\user%d", i)
		server, _ := f.once("/ews/", basicOf(user, "one"))
		users[server] = true
		if again, _ := f.once("/ews/", basicOf(strings.ToUpper(user), "another")); again != server {
			t.Errorf("%s: %s, then %s", user, server, again)
		}
	}
	if len(users) != 3 {
		t.Errorf("users went to %v alone", users)
	}
	for i := range 10 {
		var wg sync.WaitGroup
		var channels [2]string
		for j := range channels {
			c := f.dial("mail.contoso.com")
			wg.Go(func() {
				channels[j], _ = c.askWith("/rpc/rpcproxy.dll", fmt.Sprintf("Cookie: OutlookSession=\"{%d}\"", i))
			})
		}
		wg.Wait()
		if channels[0] != channels[1] {
			t.Errorf("IN reached %s, OUT %s", channels[0], channels[1])
		}
	}
}

// since 2013, and where the version is not known, nothing leads a client, and
// a setting of the site overrides what the version has.
func TestAffinityNone(t *testing.T) {
	t.Parallel()
	for _, change := range []func(*Site){
		func(s *Site) { s.Exchange = "2016" },
		func(s *Site) { s.Exchange = "" },
		func(s *Site) { s.Affinity = []Affinity{} },
	} {
		f, _ := olden(t, change)
		seen := map[string]bool{}
		for range 3 {
			server, cookies := f.once("/owa/", "Cookie: sessionid=1", basicOf("pat", "x"))
			if seen[server] = true; len(cookies) != 0 {
				t.Errorf("cookies %q", cookies)
			}
		}
		if len(seen) != 3 {
			t.Errorf("only %v", seen)
		}
	}
	f, _ := olden(t, func(s *Site) { s.Exchange, s.Affinity = "2019", []Affinity{BySourceIP} })
	server, _ := f.once("/owa/")
	for range 4 {
		if again, _ := f.once("/oab/"); server == "" || again == "" {
			t.Error("no answer")
		}
		if again, _ := f.once("/owa/"); again != server {
			t.Errorf("by address: %s, then %s", server, again)
		}
	}
}

// while a server drains, who belongs to it still gets it, and nobody else; a
// server that is down keeps nobody.
func TestAffinityAndDrain(t *testing.T) {
	t.Parallel()
	f, servers := olden(t, nil)
	home, _ := f.once("/ews/", basicOf("pat", "x"))
	i := slices.IndexFunc(servers, func(s *cas) bool { return s.name == home })
	bs := f.site.Backends[i].known(f.site)
	bs.drain.Store(true)
	for n := range 6 {
		if server, _ := f.once("/ews/", basicOf("pat", "x")); server != home {
			t.Errorf("pat went to %s while %s drained", server, home)
		}
		if server, _ := f.once("/ews/", basicOf(fmt.Sprintf("new%d", n), "x")); server == home {
			t.Errorf("a new user went to %s, which drains", server)
		}
	}
	bs.reach.out.Store(true)
	next, _ := f.once("/ews/", basicOf("pat", "x"))
	if next == home {
		t.Errorf("pat went to %s, which is down", next)
	}
	bs.reach.out.Store(false)
	bs.drain.Store(false)
	if server, _ := f.once("/ews/", basicOf("pat", "x")); server != next {
		t.Errorf("pat went from %s to %s", next, server)
	}
}

// a session cookie that a server gives is learned from its answer.
func TestAffinityLearnsFromAnswers(t *testing.T) {
	s := &Site{Name: "hq", Exchange: "2010", Backends: []*Backend{{Name: "a", Address: "a:443"}, {Name: "b", Address: "b:443"}}}
	get := func(cookie string) *leading {
		return s.lead("ews", "ews", AffinityPreset("2010", "ews"), fieldsOf(t, "Cookie: x=1; exchangecookie="+cookie), netip.Addr{}, time.Now())
	}
	l := s.lead("ews", "ews", AffinityPreset("2010", "ews"), nil, netip.MustParseAddr("192.0.2.1"), time.Now())
	if l.wanted != nil {
		t.Fatal("a new client belongs somewhere")
	}
	l.learned([]byte("HTTP/1.1 200 OK\r\n\r\n"), fieldsOf(t, "Set-Cookie: exchangecookie=abc; path=/"), s.Backends[1])
	if l := get("abc"); l.wanted != s.Backends[1].known(s) {
		t.Errorf("wanted %v", l.wanted)
	}
	if l := get("abd"); l.wanted != nil {
		t.Error("another cookie leads there too")
	}
}

func fieldsOf(t *testing.T, lines ...string) []field {
	t.Helper()
	fields, err := parseFields([]byte(strings.Join(lines, "\r\n")+"\r\n\r\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return fields
}

// of IPv6 addresses the network counts.
func TestSourceKey(t *testing.T) {
	key := func(s string) string { return string(sourceKey(netip.MustParseAddr(s))) }
	if key("2001:db8:1:2::1") != key("2001:db8:1:2:ffff::9") || key("2001:db8:1:2::1") == key("2001:db8:1:3::1") {
		t.Error("IPv6")
	}
	if key("192.0.2.1") != key("::ffff:192.0.2.1") || key("192.0.2.1") == key("192.0.2.2") {
		t.Error("IPv4")
	}
}

// The table forgets what is not used, and never grows beyond its bound.
func TestAffinityTableBounds(t *testing.T) {
	table := newAffinityTable()
	a, b := &backendState{}, &backendState{}
	now := time.Now()
	table.put(1, a, time.Minute, false, now)
	table.put(2, b, time.Minute, true, now)
	now = now.Add(2 * time.Minute)
	if table.get(1, now) != nil || table.get(2, now) != b {
		t.Error("an entry outlives its time, or one in use does not")
	}
	table.release(2, now)
	if now = now.Add(2 * time.Minute); table.get(2, now) != nil {
		t.Error("a released entry outlives its time")
	}
	for i := range uint64(affinityEntries + 1000) {
		table.put(i, a, time.Hour, i%2 == 0, now)
	}
	if n := table.len(); n > affinityEntries {
		t.Errorf("%d entries", n)
	}
	if table.get(affinityEntries+999, now) != a || table.get(0, now) != nil {
		t.Error("not the oldest has gone")
	}
}

// A request with a cookie costs the same however many servers there are: each has
// its token, and no two the same one.
func TestCookieTokens(t *testing.T) {
	s := &Site{Name: "hq"}
	for i := range 600 { // of 65536: some would have the same
		s.Backends = append(s.Backends, &Backend{Address: fmt.Sprintf("cas%d.contoso.local:443", i)})
	}
	seen := map[string]bool{}
	for _, b := range s.Backends {
		seen[s.cookieToken(b)] = true
	}
	if len(seen) != len(s.Backends) || seen[""] {
		t.Errorf("%d tokens for %d servers", len(seen), len(s.Backends))
	}
	again := &Site{Name: "hq", Backends: s.Backends}
	for _, b := range s.Backends {
		if again.cookieToken(b) != s.cookieToken(b) {
			t.Fatal("another token after a restart")
		}
	}
	cookie := fieldsOf(t, "Cookie: "+s.cookieName()+"=none")
	if n := testing.AllocsPerRun(10, func() {
		s.lead("owa", "owa", []Affinity{ByCookie}, cookie, netip.Addr{}, time.Now())
	}); n > 20 {
		t.Errorf("%v allocations to look for a cookie", n)
	}
}

// The user of a Basic login is found however a server may find it.
func TestBasicUserIsReadAsLoginsAre(t *testing.T) {
	for line, want := range map[string]string{
		"Basic UGF0OnNlY3JldA==":      "pat",
		"basic\tUGF0OnNlY3JldA":       "pat",
		"BASIC   UGF0OnNlY3JldA==":    "pat",
		"Negotiate UGF0OnNlY3JldA==":  "",
		"Basic":                       "",
		"Basic OnNlY3JldA==":          "",
		"BasicUGF0OnNlY3JldA==":       "",
		"Basic UGF0OnNlY3JldA==\tx":   "pat",
		"Bearer Basic UGF0OnNlY3JldA": "",
	} {
		if got := string(basicUser(fieldsOf(t, "Authorization: "+line))); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
