package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/throttle"
)

// Options are a server's settings for its life. Zero values take the defaults.
type Options struct {
	Logger zerolog.Logger
	// ProxyProtocolFrom are the peers that may put a PROXY header in front.
	ProxyProtocolFrom  []netip.Prefix
	HelloTimeout       time.Duration // PROXY header and ClientHello, then the handshake; default 10 s
	RequestHeadTimeout time.Duration // a request head, from the connection's begin or its own first byte; default 30 s
	ClientIdleTimeout  time.Duration // between requests; default 5 min, at least 20 min once NTLM or Negotiate was used
	Connections        int           // 0: no limit
	// Logins counts failed logins at bridged hosts; nil: one of its own with the
	// default limits.
	Logins *throttle.Throttle
	// BindingInterval is how often servers of sites with Extended Protection are asked
	// for their certificate, beside start, reloads and every connection; default 1 min.
	BindingInterval time.Duration
	// Dial connects to backends; default: net.Dialer with TCP keep-alive.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Server is the front door's traffic path. Give it a table, then listeners.
type Server struct {
	opts    Options
	log     zerolog.Logger
	debug   bool
	dial    dialFunc
	table   atomic.Pointer[Table]
	connIDs atomic.Uint64
	closing atomic.Bool
	dates   atomic.Pointer[dateLine]
	// bindings compares certificates for Extended Protection.
	bindings bindings
	// ruleHits counts the requests that matched each of attackRules.
	ruleHits [len(attackRules)]atomic.Uint64

	ctx    context.Context // ends when connections are to be cut
	cancel context.CancelFunc

	mu        sync.Mutex
	listeners []net.Listener
	conns     map[*clientConn]struct{}
	sites     map[string]*siteState // by name
	wg        sync.WaitGroup
}

// NewServer returns a server with an empty table: every name is refused.
func NewServer(o Options) *Server {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.HelloTimeout, 10*time.Second)
	def(&o.RequestHeadTimeout, 30*time.Second)
	def(&o.ClientIdleTimeout, 5*time.Minute)
	def(&o.BindingInterval, time.Minute)
	if o.Logins == nil {
		o.Logins = throttle.New(throttle.Limits{}, time.Now)
	}
	if o.Dial == nil {
		// Keep-alive probes end connections to a server that vanished.
		o.Dial = Sockets{}.Dialer().DialContext
	}
	s := &Server{opts: o, log: o.Logger, debug: o.Logger.GetLevel() <= zerolog.DebugLevel, conns: map[*clientConn]struct{}{}, sites: map[string]*siteState{}, dial: o.Dial}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.bindings = bindings{log: o.Logger, dial: o.Dial, interval: o.BindingInterval, seen: map[serverKey]sighting{}, told: map[pairKey]verdictTold{}}
	s.table.Store(&Table{})
	return s
}

// SetTable makes t the table of connections accepted from now on. What is known
// about a backend is kept if the table has one of the same address in a site of the
// same name; whether it drains holds for every connection at once.
func (s *Server) SetTable(t *Table) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.adopt(t)
	if protects := len(protectedPairs(t)) > 0; protects != t.protects {
		t.protects = protects // not written again to a table in use
	}
	s.table.Store(t)
	s.bindings.watch(t)
}

// ServeTLS serves TLS connections of ln until Shutdown or an error. name is the
// listener's name in Table.Defaults and in logs.
func (s *Server) ServeTLS(ln net.Listener, name string) error {
	return s.serve(ln, name, false, s.serveTLS)
}

// ServeHTTP serves plain HTTP connections of ln until Shutdown or an error.
func (s *Server) ServeHTTP(ln net.Listener, name string) error {
	return s.serve(ln, name, false, s.servePlain)
}

// serve accepts connections; greets tells whether we are the one who speaks first on
// them.
func (s *Server) serve(ln net.Listener, name string, greets bool, handle func(context.Context, *clientConn) error) error {
	s.mu.Lock()
	if s.closing.Load() {
		s.mu.Unlock()
		ln.Close()
		return errShutdown
	}
	s.listeners = append(s.listeners, ln)
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	return s.acceptLoop(ln, name, greets, handle)
}

// track counts a connection; false if it is not to be served.
func (s *Server) track(c *clientConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing.Load() {
		return false
	}
	if n := s.opts.Connections; n > 0 && len(s.conns) >= n {
		s.log.Warn().Str("remote", c.remote.String()).Int("connections", n).Msg("connection refused: limit reached")
		return false
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return true
}

func (s *Server) untrack(c *clientConn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

// Connections returns how many client connections of every kind are open.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Shutdown stops accepting, closes idle connections, lets requests finish and
// cuts what is left when ctx ends, with a plain close. It returns ctx's
// error if anything had to be cut.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing.Store(true)
	for _, ln := range s.listeners {
		ln.Close()
	}
	for _, st := range s.sites {
		for _, bs := range st.all() {
			bs.unwatch()
		}
	}
	s.mu.Unlock()
	s.bindings.end()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.wg.Wait()
	}()
	// A session is idle only for moments at a time when it is busy, so one look is
	// not enough.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s.each((*clientConn).abortIdle)
		select {
		case <-done:
			s.cancel()
			return nil
		case <-tick.C:
		case <-ctx.Done():
			s.cancel()
			s.each((*clientConn).abort)
			<-done
			return ctx.Err()
		}
	}
}

func (s *Server) each(f func(*clientConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		f(c)
	}
}

// dateLine is the Date of local answers, made once a second.
type dateLine struct {
	unix int64
	text []byte
}

func (s *Server) date() []byte {
	now := time.Now()
	d := s.dates.Load()
	if d == nil || d.unix != now.Unix() {
		d = &dateLine{now.Unix(), now.UTC().AppendFormat(nil, http.TimeFormat)}
		s.dates.Store(d)
	}
	return d.text
}
