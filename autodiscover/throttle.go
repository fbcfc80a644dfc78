package autodiscover

import (
	"context"
	"hash/maphash"
	"sync"
	"time"
)

// Limits bounds failed logins. POX with Basic is where passwords are guessed, and
// a guess here counts against the account in the directory behind us: we stop
// before its own lock-out does. Zero takes the default, a negative number means
// no limit.
type Limits struct {
	PerUser   int           // failures of one user name; default 8
	PerSource int           // failures from one IPv4 address or IPv6 /64; default 100
	Window    time.Duration // in which they count, from the first one on; default 15 minutes
}

func (l Limits) withDefaults() Limits {
	if l.PerUser == 0 {
		l.PerUser = 8
	}
	if l.PerSource == 0 {
		l.PerSource = 100
	}
	if l.Window <= 0 {
		l.Window = 15 * time.Minute
	}
	return l
}

// maxTallies bounds the memory of a throttle: at most so many users and so many
// sources are remembered, some 100 bytes each.
const maxTallies = 1 << 16

// throttle counts failed logins by user and by source. Attempts that are still
// being checked count as if they had failed, so that a burst cannot outrun the
// count; those that would be one too many then wait instead of being refused,
// because a burst of right passwords is what a client with many threads sends.
type throttle struct {
	now  func() time.Time
	seed maphash.Seed

	mu      sync.Mutex // guards what follows
	limits  Limits
	users   map[uint64]*tally
	sources map[uint64]*tally
	ended   chan struct{} // closed, and replaced, whenever an attempt ends
}

// tally is the count of one user or source. It exists while there is something to
// count.
type tally struct {
	failures int
	running  int
	since    time.Time // of the first failure
}

func newThrottle(l Limits, now func() time.Time) *throttle {
	return &throttle{
		limits: l.withDefaults(), now: now, seed: maphash.MakeSeed(),
		users: map[uint64]*tally{}, sources: map[uint64]*tally{}, ended: make(chan struct{}),
	}
}

func (t *throttle) setLimits(l Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l.withDefaults()
}

// verdict is how an attempt ended.
type verdict int

const (
	undecided verdict = iota // the directory failed, or the client left: counts nothing
	rejected
	accepted
)

// begin asks for leave to check one login, under every name it may mean. It
// returns the function to report the verdict with, or how long the client has to
// wait, or the error of ctx.
func (t *throttle) begin(ctx context.Context, source string, names ...string) (end func(verdict), wait time.Duration, err error) {
	// Hashes with a secret seed instead of the names: a name may be as long as a
	// header, and nobody can make two collide.
	users := make(map[uint64]bool, len(names))
	for _, name := range names {
		users[maphash.String(t.seed, name)] = true
	}
	from := maphash.String(t.seed, source)
	for {
		t.mu.Lock()
		wait, busy := t.state(t.sources, from, t.limits.PerSource)
		for user := range users {
			w, b := t.state(t.users, user, t.limits.PerUser)
			wait, busy = max(wait, w), busy || b
		}
		if wait > 0 {
			t.mu.Unlock()
			return nil, wait, nil
		}
		if !busy {
			t.get(t.sources, from).running++
			for user := range users {
				t.get(t.users, user).running++
			}
			t.mu.Unlock()
			return func(v verdict) { t.end(from, users, v) }, 0, nil
		}
		ended := t.ended
		t.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// state says how long key is shut out, or else whether all it has left is taken
// by attempts under way. The caller holds the lock.
func (t *throttle) state(of map[uint64]*tally, key uint64, limit int) (wait time.Duration, busy bool) {
	c := of[key]
	if c == nil || limit < 0 {
		return 0, false
	}
	if c.failures > 0 && !t.now().Before(c.since.Add(t.limits.Window)) {
		c.failures = 0
	}
	if c.failures >= limit {
		return c.since.Add(t.limits.Window).Sub(t.now()), false
	}
	return 0, c.failures+c.running >= limit
}

// get returns the tally of key, making one, and room for it, if need be. The
// caller holds the lock.
func (t *throttle) get(of map[uint64]*tally, key uint64) *tally {
	if c := of[key]; c != nil {
		return c
	}
	if len(of) >= maxTallies {
		t.evict(of)
	}
	c := &tally{}
	of[key] = c
	return c
}

// evict forgets one tally: of a few random ones an expired one, else the one with
// the fewest failures, so that names made up in bulk push out each other and not
// the account under attack.
func (t *throttle) evict(of map[uint64]*tally) {
	var victim uint64
	var least *tally
	looked := 0
	for key, c := range of {
		if c.running > 0 {
			continue // it is bounded by the connections there are
		}
		if !t.now().Before(c.since.Add(t.limits.Window)) {
			delete(of, key)
			return
		}
		if least == nil || c.failures < least.failures {
			victim, least = key, c
		}
		if looked++; looked == 16 {
			break
		}
	}
	if least != nil {
		delete(of, victim)
	}
}

func (t *throttle) end(source uint64, users map[uint64]bool, v verdict) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.finish(t.sources, source, v)
	for user := range users {
		if v == accepted {
			// Whoever knows the password may have mistyped it before. The source keeps
			// its count: it may be guessing others with one account of its own.
			t.users[user].failures = 0
		}
		t.finish(t.users, user, v)
	}
	close(t.ended)
	t.ended = make(chan struct{})
}

func (t *throttle) finish(of map[uint64]*tally, key uint64, v verdict) {
	c := of[key]
	c.running--
	if v == rejected {
		if c.failures == 0 {
			c.since = t.now()
		}
		c.failures++
	}
	if c.failures == 0 && c.running == 0 {
		delete(of, key)
	}
}
