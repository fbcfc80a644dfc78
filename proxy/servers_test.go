package proxy

import (
	"context"
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
		kim.send(get("/ews/"))
		if _, body := kim.response("GET"); body != "cas02" {
			t.Errorf("answered by %q", body)
		}
		return err
	})
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
