package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// cas is a backend with health pages that says its name in every answer.
type cas struct {
	*recorder
	name string

	mu     sync.Mutex
	sick   map[string]bool // path prefixes whose health page fails
	looked []string        // heads of the requests for health pages
	asked  []string        // targets of all other requests
	hold   chan struct{}   // requests for /…/poll wait for it
	killed atomic.Bool
}

func newCAS(t testing.TB, name string) *cas {
	s := &cas{name: name, sick: map[string]bool{}, hold: make(chan struct{})}
	s.recorder = newRecorder(t, s.serve)
	t.Cleanup(func() { close(s.hold) }) // before the recorder waits for its scripts
	return s
}

func (s *cas) serve(c *recorded) {
	for {
		h, err := c.head()
		if err != nil {
			return
		}
		io.CopyN(io.Discard, c.br, contentLength(h))
		method, rest, _ := strings.Cut(h, " ")
		target, _, _ := strings.Cut(rest, " ")
		dir, page := strings.CutSuffix(strings.ToLower(target), "/healthcheck.htm")
		s.mu.Lock()
		if page {
			s.looked = append(s.looked, h)
		} else {
			s.asked = append(s.asked, target)
		}
		sick := s.sick[dir] || s.sick[""]
		s.mu.Unlock()
		if s.killed.Load() {
			return // what had reached it is noted, and not answered
		}
		answer := s.name
		switch {
		case page && sick:
			io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			return
		case page:
			answer = "200 OK<br/>" + s.name + ".contoso.local"
		case strings.HasSuffix(target, "/poll"):
			<-s.hold
		}
		if method == "HEAD" {
			answer = ""
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer); err != nil {
			return
		}
	}
}

func (s *cas) ails(dir string, sick bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sick[dir] = sick
}

func (s *cas) got(target string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.asked, target)
}

// site is a backend of that name.
func (s *cas) backend() *Backend {
	b := s.recorder.backend()
	b.Name = s.name
	return b
}

// kill ends the server as if its machine's process had died.
func (s *cas) kill() {
	s.killed.Store(true)
	s.ln.Close()
	for _, c := range s.connections() {
		c.SetReadDeadline(time.Now().Add(time.Millisecond))
	}
}

// looking has the servers of the front's site looked at, often.
func looking(f *front, _ *Options, _ *Table) {
	f.site.Exchange = "2019"
	f.site.Health = &Health{Interval: 30 * time.Millisecond, Fall: 2, Rise: 2}
}

// fits waits until the server is, or is not, to get what is asked of a directory.
func (f *front) fits(s *cas, dir string, want bool) {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("fit of %s for %q is %v", s.name, dir, want), func() bool {
		for _, b := range f.site.Backends {
			if b.Name == s.name {
				return b.known(f.site).fit(dir) == want
			}
		}
		return false
	})
}

// who tells which server answers a request on a new connection.
func (f *front) who(path string) string {
	f.t.Helper()
	c := f.dial("mail.contoso.com")
	defer c.Close()
	c.send(get(path))
	r, body := c.response("GET")
	if r.StatusCode != 200 {
		f.t.Fatalf("%s: %d", path, r.StatusCode)
	}
	return body
}

// layout B of: a server is out for one directory and in for the
// others, and comes back when its page does; the page names the server.
func TestHealthPerDirectory(t *testing.T) {
	t.Parallel()
	timely(t, func(t *testing.T) error { // a server that is slow to connect to is passed over
		one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
		f := newFront(t, looking, one.backend(), two.backend())
		one.ails("/owa", true)
		f.fits(one, "owa", false)
		both := map[string]bool{}
		for range 6 {
			if name := f.who("/owa/"); name != "cas02" {
				return fmt.Errorf("/owa went to %s", name)
			}
			both[f.who("/ews/")] = true
		}
		if len(both) != 2 {
			return fmt.Errorf("/ews went to %v alone", both)
		}
		f.waitForLog(`"virtual_directory":"owa","message":"server down"`)
		f.waitForLog("GET /owa/healthcheck.htm: 503 Service Unavailable")
		one.ails("/owa", false)
		f.fits(one, "owa", true)
		c := f.site.Backends[0].known(f.site).check("owa")
		if c.mu.Lock(); c.server != "cas01.contoso.local" {
			t.Errorf("server %q", c.server)
		}
		c.mu.Unlock()
		both = map[string]bool{}
		for range 4 {
			both[f.who("/owa/")] = true
		}
		if len(both) != 2 {
			return fmt.Errorf("after it came back, /owa went to %v alone", both)
		}
		one.mu.Lock()
		defer one.mu.Unlock()
		dirs := map[string]bool{}
		for _, h := range one.looked {
			target, _, _ := strings.Cut(strings.TrimPrefix(h, "GET "), " ")
			dirs[target] = true
			if !strings.Contains(h, "\r\nHost: cas01.contoso.local\r\n") || strings.Contains(h, "Authorization") {
				t.Fatalf("asked for the page with %q", h)
			}
		}
		if len(dirs) != 8 { // those published: not powershell
			t.Errorf("looked at %v", dirs)
		}
		return nil
	})
}

// a single failure, or a single success, changes nothing.
func TestFallAndRise(t *testing.T) {
	var c check
	h := Health{Fall: 3, Rise: 2}
	bad := errors.New("503")
	for i, step := range []struct {
		err error
		out bool
	}{
		{nil, false},
		{bad, false},
		{bad, false},
		{nil, false},
		{bad, false},
		{bad, false},
		{bad, true},
		{bad, true},
		{nil, true},
		{bad, true},
		{nil, true},
		{nil, false},
		{bad, false},
	} {
		before := c.out.Load()
		changed := c.report(step.err, "", h, time.Now())
		if c.out.Load() != step.out || changed != (before != step.out) {
			t.Errorf("step %d: out %v, changed %v", i, c.out.Load(), changed)
		}
	}
	// What traffic met counts at once, and one success ends it.
	c = check{}
	if !c.doubt(bad, time.Now()) || !c.out.Load() || c.down.Load() || c.doubt(bad, time.Now()) {
		t.Error("a failure of traffic")
	}
	if !c.report(nil, "", h, time.Now()) || c.out.Load() {
		t.Error("a success after it")
	}
}

// a server that is down loses the connections that clients have to it,
// at most a second after it is found out: of the one who is logged in, the client's
// connection goes with it; who is not keeps it, and another server answers.
func TestDownServerClosesItsConnections(t *testing.T) {
	t.Parallel()
	timely(t, func(t *testing.T) error {
		one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
		f := newFront(t, looking, one.backend(), two.backend())
		two.ails("", true)
		f.fits(two, "ews", false)
		f.fits(two, "owa", false)
		pat, kim, poll := f.dial("mail.contoso.com"), f.dial("mail.contoso.com"), f.dial("mail.contoso.com")
		pat.send("GET /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: Negotiate pat\r\n\r\n")
		pat.response("GET")
		kim.send(get("/ews/"))
		kim.response("GET")
		poll.send(get("/ews/poll"))
		eventually(t, "the poll at the server", func() bool { return one.got("/ews/poll") })
		// None healthy: nothing is cut.
		one.ails("/ews", true)
		f.fits(one, "ews", false)
		for range 3 {
			for _, c := range []*client{pat, kim} {
				c.send(get("/ews/"))
				if _, body := c.response("GET"); body != "cas01" {
					t.Fatalf("with no server healthy, answered by %q", body)
				}
			}
		}
		if n := one.known(f).connections(); n != 3 {
			t.Fatalf("with no server healthy, %d connections are left of 3", n)
		}
		two.ails("", false)
		f.fits(two, "ews", true)
		start := time.Now()
		pat.ends()
		if r, _ := poll.response("GET"); r.StatusCode != http.StatusBadGateway {
			t.Errorf("the poll: %d", r.StatusCode)
		}
		poll.ends()
		err := within(time.Second, start, "connections to the server that is down closed")
		eventually(t, "the cause in the log", func() bool {
			log := f.log.String()
			return strings.Contains(log, `"error":"response from backend cas01: `+errServerLost.Error()) &&
				strings.Contains(log, `"backends":["cas01"],"closed":2,"in_progress":1`)
		})
		kim.send(get("/ews/"))
		if _, body := kim.response("GET"); body != "cas02" {
			t.Errorf("answered by %q", body)
		}
		return err
	})
}

// When all servers were down, the first one that is up again takes no clients from
// one that answers as well; if that fails once more, it does.
func TestServersComeBackTogether(t *testing.T) {
	t.Parallel()
	site := &Site{Name: "hq", Backends: []*Backend{{Name: "cas01", Address: "a:443"}, {Name: "cas02", Address: "b:443"}}}
	srv := NewServer(Options{})
	defer srv.Shutdown(t.Context())
	one, two := site.Backends[0].known(site), site.Backends[1].known(site)
	h := Health{Fall: 1, Rise: 2}
	look := func(bs *backendState, err error) { srv.found(bs, &bs.reach, "", err, "", h) }
	failed := errors.New("no answer in 5s")
	near, far := net.Pipe()
	defer far.Close()
	u := &upstream{backend: site.Backends[0], conn: near, raw: near}
	u.hold(site)
	look(two, failed)
	look(one, failed)
	look(one, nil)
	look(two, nil)
	look(two, nil)
	if !two.fit("") || one.fit("") {
		t.Fatal("cas02 is not the only one that is fit")
	}
	if u.closed.Load() {
		t.Error("a client of cas01, which answers, is cut off")
	}
	look(one, failed)
	if !u.closed.Load() {
		t.Error("cas01 has failed again, and its client is kept")
	}
}

func (s *cas) known(f *front) *backendState {
	for _, b := range f.site.Backends {
		if b.Name == s.name {
			return b.known(f.site)
		}
	}
	return nil
}

// a login for one directory stays with its server when that is down only for
// others, and is ended when it asks for one of those.
func TestLoginAndAnotherDirectory(t *testing.T) {
	t.Parallel()
	one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
	f := newFront(t, looking, one.backend(), two.backend())
	c := f.dial("mail.contoso.com")
	c.send("GET /ews/ HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: NTLM pat\r\n\r\n")
	_, name := c.response("GET")
	home := map[string]*cas{"cas01": one, "cas02": two}[name]
	home.ails("/owa", true)
	f.fits(home, "owa", false)
	c.send(get("/ews/"))
	if _, body := c.response("GET"); body != name {
		t.Errorf("logged in at %s, answered by %s", name, body)
	}
	c.send(get("/owa/"))
	c.ends()
	f.waitForLog(errServerDown.Error())
}

// usual is how long a request takes on this machine at this time.
func (f *front) usual() time.Duration {
	start := time.Now()
	f.who("/owa/")
	f.who("/owa/")
	return time.Since(start) / 2
}

// deafDial connects to everything but one address, which swallows what it is sent.
func deafDial(deaf *atomic.Bool, address string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == address && deaf.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
}

// a server that neither answers nor refuses holds up one request for a moment,
// and those after it not at all; when it answers again, it is used again.
func TestDeafServer(t *testing.T) {
	t.Parallel()
	timely(t, func(t *testing.T) error {
		one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
		var deaf atomic.Bool
		deaf.Store(true)
		f := newFront(t, func(f *front, o *Options, _ *Table) {
			o.Dial = deafDial(&deaf, f.site.Backends[0].Address)
			// It shall not be found down before clients find out.
			f.site.Health = &Health{Timeout: 500 * time.Millisecond, Fall: 1000}
		}, one.backend(), two.backend())
		deaf.Store(false)
		usual := f.usual()
		deaf.Store(true)
		for i := range 6 {
			limit := hedgeAfter + 2*usual
			if i == 0 {
				limit = time.Second + 4*usual
			}
			start := time.Now()
			if name := f.who("/owa/"); name != "cas02" {
				t.Fatalf("answered by %s", name)
			}
			if err := within(limit, start, fmt.Sprintf("request %d answered", i)); err != nil {
				return err
			}
		}
		f.waitForLog("server cannot be connected to")
		deaf.Store(false)
		f.fits(one, "", true)
		names := map[string]bool{f.who("/owa/"): true, f.who("/owa/"): true}
		if len(names) != 2 {
			t.Errorf("only %v is used", names)
		}
		return nil
	})
}

// A server that is slow to connect to, as all are on a machine that is short of
// time, is passed over, and is not down: who is logged in there stays.
func TestSlowServerKeepsItsClients(t *testing.T) {
	t.Parallel()
	one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
	var slow atomic.Bool
	f := newFront(t, func(f *front, o *Options, _ *Table) {
		address := f.site.Backends[0].Address
		o.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if addr == address && slow.Load() {
				select {
				case <-time.After(recoverEvery * 3 / 2):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		}
		f.site.Health = &Health{Timeout: patience, Interval: time.Hour, Fall: 2}
	}, one.backend(), two.backend())
	var pat *client
	for name := ""; name != "cas01"; {
		pat = f.dial("mail.contoso.com")
		pat.send("GET /owa/ HTTP/1.1\r\nHost: mail.contoso.com\r\nAuthorization: NTLM pat\r\n\r\n")
		_, name = pat.response("GET")
	}
	eventually(t, "the first look is over", func() bool { return one.known(f).reach.status("").State == "up" })
	slow.Store(true)
	eventually(t, "the server is doubted", func() bool { f.who("/owa/"); return one.known(f).reach.out.Load() })
	f.waitForLog("server answers again")
	pat.send(get("/owa/"))
	if _, name := pat.response("GET"); name != "cas01" {
		t.Errorf("answered by %q", name)
	}
	if log := f.log.String(); strings.Contains(log, "server down") {
		t.Error(log)
	}
}

// A server that is the only one after a reload, and so looked at no longer, is not
// said to be down for ever.
func TestReloadToOneServer(t *testing.T) {
	t.Parallel()
	table := func(names ...string) *Table {
		site := &Site{Name: "hq"}
		for _, name := range names {
			site.Backends = append(site.Backends, &Backend{Name: name, Address: name + ".invalid:443"})
		}
		return &Table{Hosts: map[string]*Host{"mail.contoso.com": {Name: "mail.contoso.com", Mode: Passthrough, Site: site}}}
	}
	srv := NewServer(Options{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	defer srv.Shutdown(t.Context())
	first := table("cas01", "cas02")
	srv.SetTable(first)
	site := first.Hosts["mail.contoso.com"].Site
	bs := site.Backends[0].known(site)
	srv.found(bs, &bs.reach, "", errors.New("refused"), "", Health{Fall: 1, Rise: 2})
	if got := srv.Status().Sites[0].Servers[0].Connect; got.State != "down" {
		t.Fatalf("%+v", got)
	}
	srv.SetTable(table("cas01"))
	if got := srv.Status().Sites[0].Servers[0].Connect; got != (CheckStatus{State: "unknown"}) {
		t.Errorf("%+v", got)
	}
}

// a server that accepts connections and says nothing is passed over within a
// second or so as well.
func TestServerStuckInHandshake(t *testing.T) {
	t.Parallel()
	timely(t, func(t *testing.T) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		two := newCAS(t, "cas02")
		stuck := two.backend()
		stuck.Name, stuck.Address = "cas01", ln.Addr().String()
		f := newFront(t, nil, stuck, two.backend())
		start := time.Now()
		f.who("/owa/")
		first := time.Since(start)
		if first > patience { // the limit of newFront is a minute
			t.Fatalf("answered after %v", first)
		}
		start = time.Now()
		f.who("/owa/")
		return within(first-hedgeHandshakeAfter/2, start, "answered at once")
	})
}

// What must be seen: killing a server under load loses no request that had not
// reached it, and the others take over within a second.
func TestKillingAServerUnderLoad(t *testing.T) { // not beside others: it measures
	timely(t, func(t *testing.T) error {
		servers := []*cas{newCAS(t, "cas01"), newCAS(t, "cas02"), newCAS(t, "cas03")}
		f := newFront(t, nil, servers[0].backend(), servers[1].backend(), servers[2].backend())
		const clients = 200
		type lost struct {
			target string
			err    error
		}
		var (
			wg                         sync.WaitGroup
			killed                     atomic.Int64 // when, ns
			stop                       atomic.Bool
			mu                         sync.Mutex
			losses                     []lost
			slowest, usual             time.Duration // the slowest answer after the kill, and before
			total, connected, answered atomic.Int64
		)
		defer wg.Wait()
		defer stop.Store(true)
		for id := range clients {
			wg.Go(func() {
				var c *client
				for i := 0; !stop.Load(); i++ {
					time.Sleep(time.Duration(id%10) * time.Millisecond)
					if c == nil {
						c = f.dial("mail.contoso.com")
						connected.Add(1)
					}
					target := fmt.Sprintf("/owa/%d/%d", id, i)
					method := []string{"GET", "POST"}[id%2]
					begin := time.Now()
					err := ask(c, method, target)
					total.Add(1)
					if err == nil {
						answered.Add(1)
					}
					mu.Lock()
					switch at := killed.Load(); {
					case err != nil:
					case at == 0:
						usual = max(usual, time.Since(begin))
					default:
						slowest = max(slowest, min(time.Since(time.Unix(0, at)), time.Since(begin)))
					}
					if err != nil {
						losses = append(losses, lost{method + " " + target, err})
					}
					mu.Unlock()
					if err != nil {
						c.Close()
						c = nil
					}
				}
			})
		}
		eventually(t, "load on every client", func() bool { return connected.Load() >= clients && answered.Load() > 2*clients })
		killed.Store(time.Now().UnixNano())
		servers[0].kill()
		after := answered.Load()
		eventually(t, "the others go on", func() bool { return answered.Load() > after+2*clients })
		stop.Store(true)
		wg.Wait()
		log := f.log.String()
		for _, l := range losses {
			// It was written to the server's socket, and so the server may have taken it up.
			_, target, _ := strings.Cut(l.target, " ")
			sent := slices.ContainsFunc(strings.Split(log, "\n"), func(line string) bool {
				return strings.Contains(line, `"target":"`+target+`"`) && strings.Contains(line, `"backend":"cas01"`) &&
					!strings.Contains(line, errBackendWrite.Error()) && strings.Contains(line, `"error":"`)
			})
			if !sent && !servers[0].got(target) {
				return fmt.Errorf("%s is lost, and had not reached the server: %w", l.target, l.err)
			}
		}
		t.Logf("%d clients, %d requests, %d lost with the server (they had reached it), slowest answer %v, before the kill %v", clients, total.Load(), len(losses), slowest, usual)
		if slowest > time.Second+usual {
			return fmt.Errorf("an answer came only after %v", slowest)
		}
		return nil
	})
}

// ask makes one request and reads its answer.
func ask(c *client, method, target string) error {
	body := ""
	if method == "POST" {
		body = "Content-Length: 0\r\n"
	}
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: mail.contoso.com\r\n%s\r\n", method, target, body); err != nil {
		return err
	}
	r, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	if r.StatusCode != 200 {
		return fmt.Errorf("status %d", r.StatusCode)
	}
	return nil
}

// a server that was down gets more of its turns as time goes on: those
// of the others are shared evenly.
func TestSlowStart(t *testing.T) {
	s := &Site{Name: "hq", SlowStart: 100 * time.Second, Backends: []*Backend{{Name: "a", Address: "a"}, {Name: "b", Address: "b"}, {Name: "c", Address: "c"}}}
	now := time.Now()
	share := func(at time.Duration) map[string]int {
		n := map[string]int{}
		for range 300 {
			n[s.orderAt("", now.Add(at))[0].Name]++
		}
		return n
	}
	if n := share(0); n["a"] != 100 || n["b"] != 100 || n["c"] != 100 {
		t.Errorf("at the start: %v", n)
	}
	s.Backends[0].known(s).back.Store(now.UnixNano())
	before := 0
	for _, tc := range []struct {
		at        time.Duration
		low, high int
	}{{0, 0, 5}, {10 * time.Second, 8, 16}, {50 * time.Second, 50, 70}, {100 * time.Second, 95, 105}} {
		n := share(tc.at)
		if n["a"] < tc.low || n["a"] > tc.high || n["a"] < before || n["b"]-n["c"] > 5 || n["c"]-n["b"] > 5 {
			t.Errorf("after %v: %v", tc.at, n)
		}
		before = n["a"]
	}
}

// the fewest connections decide, where that is asked for, and slow start caps
// what an empty server gets.
func TestLeastConnections(t *testing.T) {
	s := &Site{Name: "hq", SlowStart: 100 * time.Second, Balance: LeastConnections, Backends: []*Backend{{Name: "a", Address: "a"}, {Name: "b", Address: "b"}}}
	now := time.Now()
	a, b := s.Backends[0].known(s), s.Backends[1].known(s)
	for range 50 {
		b.add(&upstream{})
	}
	for range 5 {
		if first := s.orderAt("", now)[0]; first.Name != "a" {
			t.Errorf("to %s, which has 50 connections", first.Name)
		}
	}
	a.back.Store(now.UnixNano())
	if first := s.orderAt("", now.Add(time.Second))[0]; first.Name != "b" {
		t.Error("the server that just came back gets everything")
	}
	if first := s.orderAt("", now.Add(50*time.Second))[0]; first.Name != "a" {
		t.Error("a server that has been back for a while gets nothing")
	}
}

// after a fail-over a server takes so many connections in a second, and more
// wait for their turn; at other times there is no limit.
func TestHandshakesPerSecond(t *testing.T) {
	s := &Site{Name: "hq", HandshakesPerSecond: 10, Backends: []*Backend{{Name: "a", Address: "a"}, {Name: "b", Address: "b"}}}
	bs := s.Backends[0].known(s)
	now := time.Now()
	for range 100 {
		if wait, ok := s.turn(bs, now); wait != 0 || !ok {
			t.Fatalf("waits %v without a fail-over", wait)
		}
	}
	s.known().changed(now)
	var last time.Duration
	refused := 0
	for range 400 {
		wait, ok := s.turn(bs, now)
		if !ok {
			refused++
			continue
		}
		last = max(last, wait)
	}
	if last > stormWait || last < stormWait-time.Second || refused < 90 || refused > 110 {
		t.Errorf("the last waits %v, %d refused", last, refused)
	}
	if wait, ok := s.turn(s.Backends[1].known(s), now); wait != 0 || !ok {
		t.Error("the other server's turn is taken too")
	}
	if wait, _ := s.turn(bs, now.Add(stormTime+time.Second)); wait != 0 {
		t.Error("the storm does not end")
	}
}

// what is known of a server outlives a reload, and drain holds at once for
// clients of older tables.
func TestReloadKeepsWhatIsKnown(t *testing.T) {
	t.Parallel()
	one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
	var table *Table
	f := newFront(t, func(f *front, o *Options, tb *Table) {
		looking(f, o, tb)
		table = tb
	}, one.backend(), two.backend())
	old := f.dial("mail.contoso.com") // accepted under the old table
	one.ails("/owa", true)
	f.fits(one, "owa", false)
	again := func(drain bool) {
		site := &Site{Name: "hq", Exchange: "2019", Health: f.site.Health, ConnectTimeout: time.Minute}
		site.Backends = append(site.Backends, one.backend(), two.backend())
		site.Backends[1].Drain = drain
		mail := *f.mail
		mail.Site = site
		next := *table
		next.Hosts = map[string]*Host{"mail.contoso.com": &mail}
		f.SetTable(&next)
		if site.Backends[0].known(site) != f.site.Backends[0].known(f.site) {
			t.Error("the reload forgot the server")
		}
		if site.Backends[0].known(site).fit("owa") {
			t.Error("the reload forgot that it is down")
		}
	}
	again(true)
	old.send(get("/ews/"))
	if _, body := old.response("GET"); body != "cas01" {
		t.Errorf("the connection of the old table went to %s, which drains", body)
	}
	again(false)
	f.waitForLog(`"drain":true`)
	f.waitForLog(`"drain":false`)
	// A server that is gone is not looked at any longer, and one site's state is kept
	// for that site alone.
	next := *table
	next.Hosts = map[string]*Host{}
	f.SetTable(&next)
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.sites) != 0 {
		t.Errorf("%d sites are still known", len(f.sites))
	}
}

// layout D over passthrough: each name goes to the servers whose page is fine
// under that name, without being decrypted.
func TestPassthroughHealth(t *testing.T) {
	t.Parallel()
	timely(t, func(t *testing.T) error {
		one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
		f := newFront(t, func(f *front, o *Options, tb *Table) {
			looking(f, o, tb)
			tb.Hosts["eas.contoso.com"] = &Host{Name: "eas.contoso.com", Mode: Passthrough, Site: f.site, Health: "activesync"}
			tb.Hosts["ews.contoso.com"] = &Host{Name: "ews.contoso.com", Mode: Passthrough, Site: f.site, Health: "ews"}
		}, one.backend(), two.backend())
		one.ails("/microsoft-server-activesync", true)
		f.fits(one, "activesync of eas.contoso.com", false)
		through := func(name string) string {
			roots := one.recorder.backend().TLS.RootCAs.Clone()
			roots.AddCert(two.cert.Leaf)
			c, err := tls.Dial("tcp", f.https, &tls.Config{RootCAs: roots, ServerName: name, InsecureSkipVerify: true})
			if err != nil {
				t.Fatal(err)
			}
			cl := newClient(t, c)
			defer c.Close()
			cl.send("GET / HTTP/1.1\r\nHost: " + name + "\r\n\r\n")
			_, body := cl.response("GET")
			return body
		}
		both := map[string]bool{}
		for range 4 {
			if name := through("eas.contoso.com"); name != "cas02" {
				return fmt.Errorf("eas went to %s", name)
			}
			both[through("ews.contoso.com")] = true
		}
		if len(both) != 2 {
			return fmt.Errorf("ews went to %v alone", both)
		}
		one.mu.Lock()
		defer one.mu.Unlock()
		if !slices.ContainsFunc(one.looked, func(h string) bool {
			return strings.HasPrefix(h, "GET /Microsoft-Server-ActiveSync/healthcheck.htm") && strings.Contains(h, "\r\nHost: eas.contoso.com\r\n")
		}) {
			t.Error("the page was not asked for under the host's name")
		}
		return nil
	})
}

// servers of 2007 and 2010, which have no health pages, are known by what they
// do have; a page that asks for a login counts as the config has it.
func TestProbes(t *testing.T) {
	published := func(s *Site) map[string]probe {
		h := &Host{Name: "mail.contoso.com", Mode: Bridge, Site: s, VirtualDirectories: Preset()}
		out := map[string]probe{}
		for _, p := range (&Table{Hosts: map[string]*Host{h.Name: h}}).probes(s, s.Backends[0]) {
			out[p.name] = p
		}
		return out
	}
	site := func(exchange string, h *Health) *Site {
		return &Site{Exchange: exchange, Health: h, Backends: []*Backend{{Name: "cas01", TLS: &tls.Config{ServerName: "mail.contoso.com"}}}}
	}
	old := published(site("2010", &Health{}))
	if p := old["owa"]; p.path != "/owa/auth/logon.aspx" || !slices.Equal(p.statuses, []int{200}) {
		t.Errorf("%+v", p)
	}
	if p := old["rpc"]; p.path != "/rpc/rpcproxy.dll" || !slices.Equal(p.statuses, []int{401}) {
		t.Errorf("%+v", p)
	}
	if p := old["activesync"]; p.method != "OPTIONS" || !slices.Equal(p.statuses, []int{200, 401}) {
		t.Errorf("%+v", p)
	}
	if _, ok := old["mapi"]; ok {
		t.Error("2010 has no MAPI over HTTP")
	}
	current := published(site("2019", &Health{}))
	if p := current["mapi"]; p.path != "/mapi/healthcheck.htm" || p.host != "mail.contoso.com" || p.body != "200 OK" {
		t.Errorf("%+v", p)
	}
	if _, ok := current["powershell"]; ok {
		t.Error("a directory that is not published is looked at")
	}
	lenient := published(site("2019", &Health{Unauthorized: true, Host: "health.contoso.local"}))
	if p := lenient["activesync"]; !slices.Contains(p.statuses, 401) || p.host != "health.contoso.local" {
		t.Errorf("%+v", p)
	}
	if len(published(site("", &Health{}))) != 0 || len(published(site("2019", nil))) != 0 {
		t.Error("pages are asked for without a version, or with health off")
	}
	for text, want := range map[string]string{
		"<br/>CAS01.contoso.local": "CAS01.contoso.local", "<BR />cas01<br/>": "cas01", "": "", "<br/>two words": "",
	} {
		if got := pageServer(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// connections to the RPC Client Access service go to the same port of a
// server, those of one client to one server on all ports.
func TestRPCClientAccess(t *testing.T) {
	t.Parallel()
	// Servers on addresses of loopback, each with the same two ports.
	hosts := []string{"127.0.0.2", "127.0.0.3"}
	serve := func(ln net.Listener, host string) {
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					c.SetDeadline(time.Now().Add(patience))
					line, _ := bufio.NewReader(c).ReadString('\n')
					fmt.Fprintf(c, "%s says %s", host, line)
				}()
			}
		}()
	}
	var ports []string
	for range 2 {
		first, err := net.Listen("tcp", hosts[0]+":0")
		if err != nil {
			t.Skip("only one loopback address here: " + err.Error())
		}
		_, port, _ := net.SplitHostPort(first.Addr().String())
		second, err := net.Listen("tcp", hosts[1]+":"+port)
		if err != nil {
			t.Fatal(err)
		}
		serve(first, hosts[0])
		serve(second, hosts[1])
		ports = append(ports, port)
	}
	f := newFront(t, func(f *front, _ *Options, tb *Table) {
		tb.RPCClientAccess = map[string]*Site{":" + ports[0]: f.site, ":" + ports[1]: f.site}
	}, &Backend{Name: "cas01", Address: hosts[0] + ":443"}, &Backend{Name: "cas02", Address: hosts[1] + ":443"})
	fronts := []string{f.listen(f.ServeRPC, ":"+ports[0]), f.listen(f.ServeRPC, ":"+ports[1])}
	ask := func(from, to string) string {
		c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(c, "%s\n", from)
		c.(*net.TCPConn).CloseWrite()
		answer, err := io.ReadAll(c)
		if err != nil {
			t.Fatal(err)
		}
		server, rest, _ := strings.Cut(string(answer), " says ")
		if rest != from+"\n" {
			t.Fatalf("answer %q", answer)
		}
		return server
	}
	servers := map[string]bool{}
	for i := range 4 {
		from := fmt.Sprintf("127.0.1.%d", i+1)
		home := ask(from, fronts[0])
		servers[home] = true
		for range 3 {
			for _, to := range fronts {
				if again := ask(from, to); again != home {
					t.Errorf("%s went to %s, then to %s", from, home, again)
				}
			}
		}
	}
	if len(servers) != 2 {
		t.Errorf("all clients went to %v", servers)
	}
	unknown, err := net.Dial("tcp", f.listen(f.ServeRPC, ":1"))
	if err != nil {
		t.Fatal(err)
	}
	defer unknown.Close()
	unknown.SetDeadline(time.Now().Add(patience))
	if n, err := unknown.Read(make([]byte, 1)); n != 0 || isTimeout(err) {
		t.Errorf("a port without a site: %d bytes, %v", n, err)
	}
}

// The status shows what is known of every server.
func TestStatus(t *testing.T) {
	t.Parallel()
	one, two := newCAS(t, "cas01"), newCAS(t, "cas02")
	f := newFront(t, looking, one.backend(), two.backend())
	one.ails("/owa", true)
	f.fits(one, "owa", false)
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	c.response("GET")
	st := f.Status()
	if st.Connections != 1 || len(st.Sites) != 1 || st.Sites[0].Name != "hq" || len(st.Sites[0].Servers) != 2 {
		t.Fatalf("%+v", st)
	}
	first, second := st.Sites[0].Servers[0], st.Sites[0].Servers[1]
	i := slices.IndexFunc(first.VirtualDirectories, func(c CheckStatus) bool { return c.Name == "owa" })
	if len(first.VirtualDirectories) != 8 || i < 0 || first.VirtualDirectories[i].State != "down" ||
		!strings.Contains(first.VirtualDirectories[i].Cause, "503") || first.VirtualDirectories[i].Since == nil {
		t.Errorf("%+v", first)
	}
	if first.Name != "cas01" || first.Connect.State != "up" || first.Connections != 0 || second.Connections != 1 || second.Weight != 1 {
		t.Errorf("%+v\n%+v", first, second)
	}
}

// a server without TLS gets requests in clear, which say that the client came
// over TLS.
func TestOffload(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heads := make(chan string, 10)
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		heads <- r.Header.Get("X-Forwarded-Proto") + " " + r.Header.Get("Front-End-Https")
	})}
	go srv.Serve(ln)
	t.Cleanup(func() { srv.Close() })
	f := newFront(t, nil, &Backend{Name: "cas01", Address: ln.Addr().String()})
	c := f.dial("mail.contoso.com")
	c.send(get("/owa/"))
	if r, _ := c.response("GET"); r.StatusCode != 200 {
		t.Errorf("%d", r.StatusCode)
	}
	if got := <-heads; got != "https On" {
		t.Errorf("the server was told %q", got)
	}
}

// With a connection to a fit server, choosing costs a request nothing, be there one
// server or several.
func TestChoosingAllocatesNothing(t *testing.T) {
	for n := 1; n <= 3; n++ {
		site := &Site{Name: "hq", Exchange: "2019"}
		for i := range n {
			site.Backends = append(site.Backends, &Backend{Name: "cas", Address: fmt.Sprintf("cas%d:443", i)})
		}
		host := &Host{Name: "mail.contoso.com", Site: site, VirtualDirectories: Preset()}
		rt := route{host: host, vdir: &host.VirtualDirectories[0]}
		s := &session{}
		u := &upstream{backend: site.Backends[0]}
		u.hold(site)
		s.ups.put(u)
		ctx := t.Context()
		if allocs := testing.AllocsPerRun(100, func() {
			led := s.lead(site, rt.vdir)
			got, err := s.upstream(ctx, rt, led)
			if got != u || err != nil {
				t.Fatal(got, err)
			}
			led.settle(got.state, rt.vdir.health())
			led.done()
		}); allocs != 0 {
			t.Errorf("%d servers: %v allocations", n, allocs)
		}
	}
}
