package proxy

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// siteState is what is known about a site beyond the table it stands in.
type siteState struct {
	log zerolog.Logger

	mu       sync.Mutex
	next     int                      // whose turn it is among the fit backends
	backends map[string]*backendState // by address

	basicMissing atomic.Bool // it is logged that basic_only finds no Basic here
}

// backendState is what is known about a backend beyond the table it stands in.
type backendState struct {
	site  *siteState
	log   zerolog.Logger
	drain atomic.Bool // as the newest table has it, also for connections under an older one
	reach check       // whether it can be connected to
	open  atomic.Int64

	mu    sync.Mutex
	conns map[*upstream]struct{} // the connections to it
}

// known returns the site's state.
func (s *Site) known() *siteState {
	if st := s.state.Load(); st != nil {
		return st
	}
	s.state.CompareAndSwap(nil, &siteState{log: zerolog.Nop(), backends: map[string]*backendState{}})
	return s.state.Load()
}

// known returns the backend's state, that of its address in the site.
func (b *Backend) known(site *Site) *backendState {
	if st := b.state.Load(); st != nil {
		return st
	}
	b.state.CompareAndSwap(nil, site.known().backend(b))
	return b.state.Load()
}

func (st *siteState) backend(b *Backend) *backendState {
	st.mu.Lock()
	defer st.mu.Unlock()
	bs := st.backends[b.Address]
	if bs == nil {
		bs = &backendState{site: st, log: st.log.With().Str("backend", b.Name).Logger(), conns: map[*upstream]struct{}{}}
		bs.drain.Store(b.Drain)
		st.backends[b.Address] = bs
	}
	return bs
}

// adopt gives the sites of a table that is about to be used what is known about the
// sites of the same names, and tells their backends whether they drain now.
func (s *Server) adopt(t *Table) {
	seen := map[*Site]bool{}
	for _, h := range t.Hosts {
		site := h.Site
		if site == nil || seen[site] {
			continue
		}
		seen[site] = true
		st := s.sites[site.Name]
		if st == nil {
			if st = site.state.Load(); st == nil {
				st = &siteState{log: s.log.With().Str("site", site.Name).Logger(), backends: map[string]*backendState{}}
			}
			s.sites[site.Name] = st
		}
		if site.state.Load() != st {
			site.state.Store(st)
		}
		for _, b := range site.Backends {
			bs := st.backend(b)
			if b.state.Load() != bs {
				b.state.Store(bs)
			}
			bs.drain.Store(b.Drain)
		}
	}
}

// fit tells whether the backend is to get what is asked of a virtual directory.
func (bs *backendState) fit(dir string) bool { return !bs.reach.out.Load() }

// add and remove keep count of the connections to the backend.
func (bs *backendState) add(u *upstream) {
	bs.open.Add(1)
	bs.mu.Lock()
	bs.conns[u] = struct{}{}
	bs.mu.Unlock()
}

func (bs *backendState) remove(u *upstream) {
	bs.open.Add(-1)
	bs.mu.Lock()
	delete(bs.conns, u)
	bs.mu.Unlock()
}

// order returns the backends in the order in which a new connection for a virtual
// directory tries them: those that are fit, in turns; then those that drain; then
// those that seem down, because health chooses between servers and refuses nobody
// by itself.
func (s *Site) order(dir string) []*Backend {
	if len(s.Backends) < 2 {
		return s.Backends
	}
	rank := func(b *Backend) int {
		bs := b.known(s)
		switch fit, drain := bs.fit(dir), bs.drain.Load(); {
		case fit && !drain:
			return 0
		case fit:
			return 1
		case !drain:
			return 2
		}
		return 3
	}
	out := slices.Clone(s.Backends)
	ranks := map[*Backend]int{}
	for _, b := range out {
		ranks[b] = rank(b)
	}
	slices.SortStableFunc(out, func(a, b *Backend) int { return ranks[a] - ranks[b] })
	first := 0
	for first < len(out) && ranks[out[first]] == ranks[out[0]] {
		first++
	}
	st := s.known()
	st.mu.Lock()
	turn := st.next % first
	st.next++
	st.mu.Unlock()
	rotate(out[:first], turn)
	return out
}

// rotate moves the first n elements behind the others.
func rotate[T any](s []T, n int) {
	slices.Reverse(s[:n])
	slices.Reverse(s[n:])
	slices.Reverse(s)
}

// check is what is known of one thing that a backend does.
type check struct {
	out atomic.Bool // it is not to be asked for it now

	mu    sync.Mutex
	since time.Time
	cause string
}

// unreachable notes that a connection could not be made: new ones go elsewhere until
// one can.
func (bs *backendState) unreachable(err error) {}

// health names the check that decides whether a server is fit for the directory; ""
// is that it can be connected to.
func (v *VirtualDirectory) health() string {
	switch {
	case !v.HealthPage:
		return ""
	case v.Name == "rpcwithcert":
		return "rpc"
	}
	return v.Name
}
