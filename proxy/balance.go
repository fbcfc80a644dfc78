package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// siteState is what is known about a site beyond the table it stands in.
type siteState struct {
	log     zerolog.Logger
	clients *affinityTable

	mu       sync.Mutex
	next     int                      // whose turn it is among the fit backends
	shifted  time.Time                // when clients last had to go from one backend to another
	backends map[string]*backendState // by address

	basicMissing atomic.Bool // it is logged that basic_only finds no Basic here
}

// backendState is what is known about a backend beyond the table it stands in.
type backendState struct {
	name, address string
	site          *siteState
	log           zerolog.Logger
	drain         atomic.Bool  // as the newest table has it, also for connections under an older one
	back          atomic.Int64 // when it came back after having been down, Unix ns

	reach   check                             // whether it can be connected to
	checks  atomic.Pointer[map[string]*check] // by virtual directory
	lookout atomic.Pointer[lookout]
	wake    chan struct{}
	stop    context.CancelFunc // of the goroutine that looks after it; under Server.mu

	credit float64   // towards its next turn while it starts slowly; under siteState.mu
	slot   time.Time // when the next connection may be made in a storm; likewise

	mu    sync.Mutex
	conns map[*upstream]struct{} // the connections to it
}

// known returns the site's state.
func (s *Site) known() *siteState {
	if st := s.state.Load(); st != nil {
		return st
	}
	s.state.CompareAndSwap(nil, newSiteState(zerolog.Nop()))
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
		bs = &backendState{
			name: b.Name, address: b.Address, site: st, log: st.log.With().Str("backend", b.Name).Logger(),
			conns: map[*upstream]struct{}{}, wake: make(chan struct{}, 1),
		}
		bs.drain.Store(b.Drain)
		st.backends[b.Address] = bs
	}
	return bs
}

// all returns the backends.
func (st *siteState) all() []*backendState {
	st.mu.Lock()
	defer st.mu.Unlock()
	return slices.Collect(maps.Values(st.backends))
}

// someFit tells whether there is a backend to go to for a directory.
func (st *siteState) someFit(dir string) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, bs := range st.backends {
		if bs.fit(dir) {
			return true
		}
	}
	return false
}

// add and remove keep count of the connections to the backend.
func (bs *backendState) add(u *upstream) {
	bs.mu.Lock()
	bs.conns[u] = struct{}{}
	bs.mu.Unlock()
}

func (bs *backendState) remove(u *upstream) {
	bs.mu.Lock()
	delete(bs.conns, u)
	bs.mu.Unlock()
}

// connections returns how many connections there are to the backend.
func (bs *backendState) connections() int {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	return len(bs.conns)
}

// Balance is how the servers of a site share what is new.
type Balance int

// The balances. Connections of mail clients live for days, so a server that came
// back would get every new one if the fewest connections decided alone: slow start
// holds for both.
const (
	RoundRobin Balance = iota
	LeastConnections
)

// order returns the backends in the order in which a new connection for a virtual
// directory tries them: those that are fit, as balance and slow start have it; then
// those that drain; then those that seem down, because health chooses between
// servers and refuses nobody by itself.
func (s *Site) order(dir string) []*Backend { return s.orderAt(dir, time.Now()) }

func (s *Site) orderAt(dir string, now time.Time) []*Backend {
	if len(s.Backends) < 2 {
		return s.Backends
	}
	var fit, draining, out, outDraining []*Backend
	for _, b := range s.Backends {
		to := &fit
		switch bs := b.known(s); {
		case bs.fit(dir) && bs.drain.Load():
			to = &draining
		case bs.fit(dir):
		case bs.drain.Load():
			to = &outDraining
		default:
			to = &out
		}
		*to = append(*to, b)
	}
	s.takeTurns(fit, now)
	s.takeTurns(out, now)
	return slices.Concat(fit, draining, out, outDraining)
}

// takeTurns brings the one whose turn it is to the front, and the others behind it
// in their order.
func (s *Site) takeTurns(list []*Backend, now time.Time) {
	if len(list) < 2 {
		return
	}
	st := s.known()
	st.mu.Lock()
	defer st.mu.Unlock()
	first := st.next % len(list)
	for range list {
		first = st.next % len(list)
		st.next++
		bs := list[first].known(s)
		w := s.weight(bs, now)
		if w == 1 || s.Balance == LeastConnections {
			break
		}
		// While it starts slowly, only some of its turns count.
		if bs.credit += w; bs.credit >= 1 {
			bs.credit--
			break
		}
	}
	slices.Reverse(list[:first])
	slices.Reverse(list[first:])
	slices.Reverse(list)
	if s.Balance == LeastConnections {
		load := map[*Backend]float64{}
		for _, b := range list {
			bs := b.known(s)
			load[b] = float64(bs.connections()+1) / s.weight(bs, now)
		}
		slices.SortStableFunc(list, func(a, b *Backend) int { return cmp.Compare(load[a], load[b]) })
	}
}

// weight is the share of its turns that a backend gets: it grows linearly to 1
// while the backend starts slowly after having been down.
func (s *Site) weight(bs *backendState, now time.Time) float64 {
	back := bs.back.Load()
	if s.SlowStart <= 0 || back == 0 {
		return 1
	}
	const least = 0.01
	return min(max(float64(now.UnixNano()-back)/float64(s.SlowStart), least), 1)
}

// A storm is when the clients of one server all go to another: for stormTime after
// a change, the site's HandshakesPerSecond holds.
const (
	stormTime = 30 * time.Second
	stormWait = 30 * time.Second // the longest that a client waits for its turn
)

// changed notes that clients have to go from one backend to another.
func (st *siteState) changed(now time.Time) {
	st.mu.Lock()
	st.shifted = now
	st.mu.Unlock()
}

// turn returns how long a new connection to the backend has to wait, and keeps its
// place; false if too many wait already.
func (s *Site) turn(bs *backendState, now time.Time) (time.Duration, bool) {
	if s.HandshakesPerSecond <= 0 {
		return 0, true
	}
	st := s.known()
	st.mu.Lock()
	defer st.mu.Unlock()
	if now.Sub(st.shifted) > stormTime {
		return 0, true
	}
	// A tenth of a second's worth may come at once.
	earliest := now.Add(-100 * time.Millisecond)
	if bs.slot.Before(earliest) {
		bs.slot = earliest
	}
	wait := max(bs.slot.Sub(now), 0)
	if wait > stormWait {
		return 0, false
	}
	bs.slot = bs.slot.Add(time.Second / time.Duration(s.HandshakesPerSecond))
	return wait, true
}

var errStorm = errors.New("too many clients wait for a connection to it after a fail-over")

// await waits for the turn of a new connection to the backend.
func (s *Site) await(ctx context.Context, b *Backend) error {
	wait, ok := s.turn(b.known(s), time.Now())
	if !ok {
		return fmt.Errorf("backend %s (%s): %w", b.Name, b.Address, errStorm)
	}
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
