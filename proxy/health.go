package proxy

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Health is how the servers of a site are looked after. Whatever it finds only
// chooses between servers: with one, or with none healthy, requests go on.
type Health struct {
	Interval time.Duration // between two looks; default 10 s
	Timeout  time.Duration // for an answer; default 5 s
	Fall     int           // so many failures in a row take a server out; default 3
	Rise     int           // so many successes bring it back; default 2
	Host     string        // the Host header; default: the name the server's certificate is checked for
	// Unauthorized: a health page that asks for a login counts as healthy. Some
	// servers do so for ActiveSync (PROXYING.md section 6.5).
	Unauthorized bool
}

// Times of looking after servers.
const (
	// recoverEvery is how soon a server is looked at again that could not be
	// connected to: clients found out, and more will come. The look takes as long as any
	// other: on a machine that is short of time a server answers late that is fine, and
	// whoever is logged in there must not lose it for that. One that is gone is passed
	// over meanwhile.
	recoverEvery = time.Second
	// cutAfter is how long exchanges in progress may go on when their server is
	// found down and others take over; with what comes before, less than the second
	// of.
	cutAfter = 800 * time.Millisecond
)

// health returns the health settings with their defaults.
func (s *Site) health() Health {
	var h Health
	if s.Health != nil {
		h = *s.Health
	}
	h.Interval = cmp.Or(h.Interval, 10*time.Second)
	h.Timeout = cmp.Or(h.Timeout, 5*time.Second)
	h.Fall = cmp.Or(h.Fall, 3)
	h.Rise = cmp.Or(h.Rise, 2)
	return h
}

// check is what is known of one thing that a backend does: that it can be connected
// to, or that it serves a virtual directory.
type check struct {
	out  atomic.Bool // not to be asked for it now
	down atomic.Bool // for good, as far as anybody knows: after so many failures

	mu            sync.Mutex
	known         bool
	fails, passes int
	since         time.Time // of the last change
	cause         string    // of the last failure
	server        string    // the name the page gave
}

// report takes the outcome of a look, and tells whether it changes anything.
func (c *check) report(err error, server string, h Health, now time.Time) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		c.known, c.since = true, now
	}
	if err == nil {
		c.fails, c.server = 0, server
		c.passes++
		switch {
		case !c.out.Load(), c.down.Load() && c.passes < h.Rise:
			return false
		}
		c.out.Store(false)
		c.down.Store(false)
		c.since, c.cause = now, ""
		return true
	}
	c.passes, c.cause = 0, err.Error()
	c.fails++
	if c.fails < h.Fall || c.down.Load() {
		return false
	}
	c.out.Store(true)
	c.down.Store(true)
	c.since = now
	return true
}

// doubt takes a failure that traffic met, and tells whether it is news. It is enough
// to send new connections elsewhere, and counts as the first towards being down.
func (c *check) doubt(err error, now time.Time) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.Load() {
		return false
	}
	c.out.Store(true)
	c.known, c.since, c.cause = true, now, err.Error()
	c.passes = 0
	c.fails++
	return true
}

// forget makes the check one that nobody has made yet.
func (c *check) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out.Store(false)
	c.down.Store(false)
	c.known, c.fails, c.passes, c.since, c.cause, c.server = false, 0, 0, time.Time{}, "", ""
}

// probe is how a check is made: a request, and what its answer has to be.
type probe struct {
	name         string // of the check
	method, path string
	host         string // the Host header
	statuses     []int
	body         string // what the body has to hold
	backend      *Backend
}

// oldPages are what stands for a health page on Exchange 2007 and 2010, which have
// none (PROXYING.md section 6.5): the forms page of OWA, and for what asks for a
// login first, that it does. ECP, which has nothing of the kind, goes with OWA.
var oldPages = map[string]probe{
	"owa":          {method: "GET", path: "/owa/auth/logon.aspx", statuses: []int{200}},
	"ecp":          {method: "GET", path: "/owa/auth/logon.aspx", statuses: []int{200}},
	"ews":          {method: "GET", path: "/ews/exchange.asmx", statuses: []int{401}},
	"activesync":   {method: "OPTIONS", path: "/Microsoft-Server-ActiveSync", statuses: []int{200, 401}},
	"rpc":          {method: "GET", path: "/rpc/rpcproxy.dll", statuses: []int{401}},
	"autodiscover": {method: "GET", path: "/autodiscover/autodiscover.xml", statuses: []int{401}},
	"oab":          {method: "GET", path: "/oab", statuses: []int{401}},
}

// pagePaths are the virtual directories with a health page, since Exchange 2013.
var pagePaths = map[string]string{
	"owa": "/owa", "ecp": "/ecp", "ews": "/ews", "mapi": "/mapi", "rpc": "/rpc", "oab": "/oab", "autodiscover": "/autodiscover",
	"activesync": "/Microsoft-Server-ActiveSync", "powershell": "/powershell",
}

// old tells whether the site's servers are of a version that knows no health pages,
// and cannot serve a session that began on another server.
func (s *Site) old() bool { return s.Exchange == "2007" || s.Exchange == "2010" }

// probeOf returns how the directory of that name is checked on the site's servers.
func (s *Site) probeOf(dir string) (probe, bool) {
	if s.old() {
		p, ok := oldPages[dir]
		p.name = dir
		return p, ok
	}
	path, ok := pagePaths[dir]
	p := probe{name: dir, method: "GET", path: path + "/healthcheck.htm", statuses: []int{200}, body: "200 OK"}
	if s.health().Unauthorized {
		p.statuses = []int{200, 401}
	}
	return p, ok
}

// health names the check that decides whether a server is fit for the
// directory; "" is that it can be connected to.
func (v *VirtualDirectory) health() string {
	switch {
	case !v.HealthPage:
		return ""
	case v.Name == "rpcwithcert":
		return "rpc"
	}
	return v.Name
}

// passes is what a passthrough host counts as in health checks: a directory of its
// own, because its page is asked for under the host's name.
func (h *Host) passes() *VirtualDirectory {
	if h.Health == "" {
		return &VirtualDirectory{}
	}
	return &VirtualDirectory{Name: h.Health + " of " + h.Name, HealthPage: true}
}

// probes returns what to look at on a backend: the directories that the hosts of the
// table publish from the site, and what decides for passthrough hosts.
func (t *Table) probes(site *Site, b *Backend) []probe {
	if site.Health == nil {
		return nil
	}
	var all []probe
	add := func(p probe, host string, b *Backend) {
		if !slices.ContainsFunc(all, func(other probe) bool { return other.name == p.name }) {
			p.host, p.backend = host, b
			all = append(all, p)
		}
	}
	for _, h := range t.Hosts {
		switch {
		case h.Site != site:
		case h.Mode == Bridge && site.Exchange != "":
			host := site.Health.Host
			if host == "" && b.TLS != nil {
				host = b.TLS.ServerName
			}
			for i := range h.VirtualDirectories {
				if v := &h.VirtualDirectories[i]; v.Access != Deny && v.HealthPage {
					if p, ok := site.probeOf(v.health()); ok {
						add(p, cmp.Or(host, b.Name), b)
					}
				}
			}
		case h.Mode == Passthrough && h.Health != "":
			p, ok := site.probeOf(h.Health)
			if !ok {
				continue
			}
			p.name = h.passes().Name
			// Nothing secret goes over it, and whoever could forge the answer could cut the
			// traffic as well. Who the server is, is for the clients to check.
			c := &tls.Config{InsecureSkipVerify: true}
			if b.TLS != nil {
				c = b.TLS.Clone()
				c.InsecureSkipVerify, c.VerifyConnection = true, nil
			}
			c.ServerName, c.ClientSessionCache, c.NextProtos = h.Name, tls.NewLRUClientSessionCache(1), []string{"http/1.1"}
			add(p, h.Name, &Backend{Name: b.Name, Address: b.Address, TLS: c, SendProxy: b.SendProxy})
		}
	}
	slices.SortFunc(all, func(a, b probe) int { return strings.Compare(a.name, b.name) })
	return all
}

// look makes the check and returns the name that the server's page gives. reached
// tells whether the server could be connected to at all.
func (s *Server) look(ctx context.Context, p probe, timeout time.Duration) (server string, reached bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	u, err := s.dial.connect(ctx, nil, &attempt{backend: p.backend}, timeout)
	if err != nil {
		return "", false, err
	}
	defer u.close()
	defer context.AfterFunc(ctx, u.close)()
	req := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: autodgate\r\nAccept: */*\r\nConnection: close\r\n\r\n", p.method, p.path, p.host)
	if _, err := io.WriteString(u.conn, req); err != nil {
		return "", true, fmt.Errorf("%s %s: %w", p.method, p.path, err)
	}
	r, err := http.ReadResponse(bufio.NewReader(io.LimitReader(u.conn, 64<<10)), &http.Request{Method: p.method})
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer in %v", timeout)
		}
		return "", true, fmt.Errorf("%s %s: %w", p.method, p.path, err)
	}
	defer r.Body.Close()
	if !slices.Contains(p.statuses, r.StatusCode) {
		return "", true, fmt.Errorf("%s %s: %s", p.method, p.path, r.Status)
	}
	if p.body == "" || r.StatusCode != http.StatusOK {
		return "", true, nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<10))
	if err != nil {
		return "", true, fmt.Errorf("%s %s: %w", p.method, p.path, err)
	}
	_, server, ok := strings.Cut(string(body), p.body)
	if !ok {
		return "", true, fmt.Errorf("%s %s: the page does not say %q", p.method, p.path, p.body)
	}
	return pageServer(server), true, nil
}

// pageServer finds the server's name in what a health page says behind "200 OK":
// "<br/>CAS01.contoso.local".
func pageServer(text string) string {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, "<") {
		_, text, _ = strings.Cut(text, ">")
	}
	name, _, _ := strings.Cut(strings.TrimSpace(text), "<")
	if name = strings.TrimSpace(name); len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return name
}

// lookout is what the goroutine that looks after a backend goes by. A reload
// replaces it.
type lookout struct {
	health  Health
	regular bool // look also when there is no cause to
	backend *Backend
	probes  []probe
}

// lookAfter looks at a backend from time to time, until ctx ends, and sooner when
// traffic has met a failure.
func (s *Server) lookAfter(ctx context.Context, bs *backendState) {
	timer := time.NewTimer(rand.N(100 * time.Millisecond)) // not everything at once at the start
	defer timer.Stop()
	for first := true; ; first = false {
		l := bs.lookout.Load()
		if !first {
			wait := l.health.Interval*9/10 + rand.N(l.health.Interval/5+1)
			if bs.reach.out.Load() && !bs.reach.down.Load() {
				wait = min(recoverEvery, wait)
			}
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-bs.wake:
		case <-timer.C:
		}
		if l = bs.lookout.Load(); l.regular || bs.reach.out.Load() {
			s.lookOnce(ctx, bs, l)
		}
	}
}

// lookOnce makes all checks of a backend side by side and takes up their outcomes.
func (s *Server) lookOnce(ctx context.Context, bs *backendState, l *lookout) {
	timeout := l.health.Timeout
	if len(l.probes) == 0 {
		connect := s.dial.tcp
		if b := l.backend; b.TLS != nil && !b.StartTLS {
			connect = func(ctx context.Context, a *attempt, timeout time.Duration) (*upstream, error) {
				return s.dial.connect(ctx, nil, a, timeout)
			}
		}
		u, err := connect(ctx, &attempt{backend: l.backend}, timeout)
		if err == nil {
			u.close()
		}
		if ctx.Err() == nil {
			s.found(bs, &bs.reach, "", err, "", l.health)
		}
		return
	}
	type finding struct {
		server  string
		reached bool
		err     error
	}
	findings := make([]finding, len(l.probes))
	var wg sync.WaitGroup
	for i, p := range l.probes {
		wg.Go(func() {
			f := &findings[i]
			f.server, f.reached, f.err = s.look(ctx, p, timeout)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return
	}
	// A server that cannot be connected to at all is one thing to say, and not one for
	// each directory.
	if !slices.ContainsFunc(findings, func(f finding) bool { return f.reached }) {
		s.found(bs, &bs.reach, "", findings[0].err, "", l.health)
		return
	}
	s.found(bs, &bs.reach, "", nil, "", l.health)
	for i, p := range l.probes {
		if c := bs.check(p.name); c != nil { // not gone with a reload
			s.found(bs, c, p.name, findings[i].err, findings[i].server, l.health)
		}
	}
}

// found takes up the outcome of one check.
func (s *Server) found(bs *backendState, c *check, dir string, err error, server string, h Health) {
	wasDown := c.down.Load()
	now := time.Now()
	if !c.report(err, server, h, now) {
		if err != nil && wasDown {
			s.failOver(bs.site) // it had seemed to come back, and was spared
		}
		return
	}
	e := bs.log.Info()
	if err != nil {
		e = bs.log.Warn().Err(err)
	}
	if dir != "" {
		e = e.Str("virtual_directory", dir)
	}
	switch {
	case err != nil:
		e.Msg("server down")
	case wasDown:
		bs.back.Store(now.UnixNano())
		e.Msg("server up")
	default:
		e.Msg("server answers again")
	}
	bs.site.changed(now)
	s.failOver(bs.site)
}

// failOver closes the connections to servers that are down for what they were used
// for, where another server takes it over: idle ones at once, and what is in
// the middle of an exchange a little later, so that short ones may end.
func (s *Server) failOver(st *siteState) {
	if names, n, busy := st.closeLost(false); n+busy > 0 {
		st.log.Info().Strs("backends", names).Int("closed", n).Int("in_progress", busy).Msg("connections to a server that is down are closed: others take over")
		if busy > 0 {
			s.wg.Go(func() { // from a goroutine that wg counts
				select {
				case <-time.After(cutAfter):
					st.closeLost(true)
				case <-s.ctx.Done():
				}
			})
		}
	}
}

// closeLost closes them, and returns whose they are, how many, and how many it left
// because they are busy.
func (st *siteState) closeLost(busyToo bool) (names []string, closed, busy int) {
	for _, bs := range st.all() {
		before := closed + busy
		bs.mu.Lock()
		var lost []*upstream
		for u := range bs.conns {
			lost = append(lost, u)
		}
		bs.mu.Unlock()
		for _, u := range lost {
			dir := ""
			if v := u.serves.Load(); v != nil {
				dir = v.health()
			}
			switch {
			case !bs.isDown(dir) || !st.someFit(dir):
			case u.busy.Load() && !busyToo:
				busy++
			default:
				closed++
				u.lost.Store(true)
				u.close()
			}
		}
		if closed+busy > before {
			names = append(names, bs.name)
		}
	}
	return names, closed, busy
}

// unreachable notes that a connection could not be made: new ones go elsewhere until
// one can.
func (bs *backendState) unreachable(err error) {
	if errors.Is(err, context.Canceled) || !bs.reach.doubt(err, time.Now()) {
		return
	}
	bs.site.changed(time.Now())
	bs.log.Warn().Err(err).Msg("server cannot be connected to: new connections go to others until it can")
	select {
	case bs.wake <- struct{}{}:
	default:
	}
}

// fit tells whether the backend is to get what is asked of a virtual directory.
// What is not known counts as good.
func (bs *backendState) fit(dir string) bool {
	if bs.reach.out.Load() {
		return false
	}
	c := bs.check(dir)
	return c == nil || !c.out.Load()
}

// isDown tells whether the backend is down for a virtual directory, and not just
// passed over for a while. One that was, and has answered the last look, is not: when
// all servers were down, as they seem to be when this machine is the one that is late,
// the first to be up again must not cost the others their clients.
func (bs *backendState) isDown(dir string) bool {
	if bs.reach.isDown() {
		return true
	}
	c := bs.check(dir)
	return c != nil && c.isDown()
}

func (c *check) isDown() bool {
	if !c.down.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passes == 0
}

// check returns the check of a virtual directory, nil if there is none.
func (bs *backendState) check(dir string) *check {
	m := bs.checks.Load()
	if dir == "" || m == nil {
		return nil
	}
	return (*m)[dir]
}

// watch makes the backend be looked after as the newest table has it. The checks
// that it had go on with what they know. s.mu is held.
func (s *Server) watch(bs *backendState, l *lookout) {
	old := bs.checks.Load()
	checks := map[string]*check{}
	for _, p := range l.probes {
		if old != nil {
			checks[p.name] = (*old)[p.name]
		}
		if checks[p.name] == nil {
			checks[p.name] = &check{}
		}
	}
	bs.checks.Store(&checks)
	bs.lookout.Store(l)
	if bs.stop == nil && !s.closing.Load() {
		var ctx context.Context
		ctx, bs.stop = context.WithCancel(s.ctx)
		s.wg.Go(func() {
			defer recovered(s.log, func() {})
			s.lookAfter(ctx, bs)
		})
	}
}

// unwatch ends it. s.mu is held.
func (bs *backendState) unwatch() {
	if bs.stop != nil {
		bs.stop()
		bs.stop = nil
	}
}

// adopt gives the sites of a table that is about to be used what is known about the
// sites of the same names, and has their backends looked after. s.mu is held.
func (s *Server) adopt(t *Table) {
	used := map[*siteState]bool{}
	kept := map[*backendState]bool{}
	for _, site := range t.sites() {
		st := s.sites[site.Name]
		if st == nil {
			st = newSiteState(s.log.With().Str("site", site.Name).Logger())
			s.sites[site.Name] = st
		}
		used[st] = true
		if site.state.Load() != st {
			site.state.Store(st)
		}
		for _, b := range site.Backends {
			bs := st.backend(b)
			kept[bs] = true
			if b.state.Load() != bs {
				b.state.Store(bs)
			}
			if drain := b.Drain; bs.drain.Swap(drain) != drain {
				bs.log.Info().Bool("drain", drain).Msg("drain")
			}
			l := &lookout{health: site.health(), backend: b, probes: t.probes(site, b)}
			l.regular = len(l.probes) > 0 || site.Health != nil && len(site.Backends) > 1
			if l.regular || len(site.Backends) > 1 {
				s.watch(bs, l)
			} else {
				bs.unwatch()
				bs.reach.forget() // nobody would find out when it is no longer so
			}
		}
	}
	for name, st := range s.sites {
		st.keep(func(bs *backendState) bool { return kept[bs] })
		if !used[st] {
			delete(s.sites, name)
		}
	}
}

// keep forgets the backends that are in the table no longer.
func (st *siteState) keep(keep func(*backendState) bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for address, bs := range st.backends {
		if !keep(bs) {
			bs.unwatch()
			delete(st.backends, address)
		}
	}
}

// sites returns the sites of a table, each once.
func (t *Table) sites() []*Site {
	var all []*Site
	add := func(site *Site) {
		if site != nil && !slices.Contains(all, site) {
			all = append(all, site)
		}
	}
	for _, h := range t.Hosts {
		add(h.Site)
		for _, m := range h.Mail {
			add(m.Site)
		}
	}
	for _, site := range t.RPCClientAccess {
		add(site)
	}
	return all
}

func newSiteState(log zerolog.Logger) *siteState {
	return &siteState{log: log, clients: newAffinityTable(), backends: map[string]*backendState{}}
}
