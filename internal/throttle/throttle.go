// Package throttle stops password guessing before a directory's own lock-out does.
//
// Failed logins are counted by user and by source in a window of time. A user who
// is full is shut out, but for the sources where that user has logged in before:
// there, logins go on until one fails. So the directory sees at most the limit of
// failures and one more from each such source, and nobody who knows no password
// can shut out the user who does. A source that is full is shut out in the same
// way, but for the users who have logged in from there: behind one address there
// may be an office.
//
// Both kinds of login in this program use it: those that autodiscover checks
// itself, and those that proxy watches on their way to a backend.
package throttle

import (
	"context"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bounds failed logins. Zero takes the default, a negative number means no
// limit.
type Limits struct {
	PerUser   int           // failures of one user; default 8
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

const (
	// maxTallies bounds the memory of a throttle: at most so many users, sources, and
	// users at sources are remembered, some 100 bytes each.
	maxTallies = 1 << 16
	// hold is for how long an attempt without a verdict counts as if it had failed. A
	// wrong password is answered sooner; what takes longer is a long poll.
	hold = 3 * time.Second
	// knownFor is for how long a user is known at a source after a login.
	knownFor = 7 * 24 * time.Hour
)

// Throttle counts failed logins by user and by source. Attempts that are still
// being checked count as if they had failed, so that a burst cannot outrun the
// count; those that would be one too many then wait instead of being refused,
// because a burst of right passwords is what a client with many threads sends.
type Throttle struct {
	now  func() time.Time
	seed maphash.Seed

	refused atomic.Uint64

	mu      sync.Mutex // guards what follows
	limits  Limits
	users   map[uint64]*tally
	sources map[uint64]*tally
	places  map[uint64]*place // of users at sources
	waiting int
	ended   chan struct{} // closed, and replaced, when an attempt ends that somebody waits for
}

// tally is the count of one user or source. It exists while there is something to
// count.
type tally struct {
	failures int
	running  int
	since    time.Time // of the first failure
}

// place is what is known of one user at one source.
type place struct {
	known    time.Time // of the last login; zero if there was none, or it has been forfeited
	failures int       // among those of the user since
	since    time.Time
}

// New returns a throttle without memories. now is time.Now but for tests.
func New(l Limits, now func() time.Time) *Throttle {
	return &Throttle{
		limits: l.withDefaults(), now: now, seed: maphash.MakeSeed(),
		users: map[uint64]*tally{}, sources: map[uint64]*tally{}, places: map[uint64]*place{}, ended: make(chan struct{}),
	}
}

// SetLimits changes the limits; what has been counted stays.
func (t *Throttle) SetLimits(l Limits) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.limits = l.withDefaults()
}

// Counts are what a throttle can tell of itself.
type Counts struct {
	Users   int    `json:"users"`   // shut out now
	Sources int    `json:"sources"` // shut out now
	Refused uint64 `json:"refused"` // attempts since the start
}

// Counts returns how many are shut out.
func (t *Throttle) Counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := Counts{Refused: t.refused.Load()}
	for _, u := range t.users {
		if t.wait(u, t.limits.PerUser) > 0 {
			c.Users++
		}
	}
	for _, s := range t.sources {
		if t.wait(s, t.limits.PerSource) > 0 {
			c.Sources++
		}
	}
	return c
}

// Verdict is how an attempt ended.
type Verdict int

// The verdicts.
const (
	Undecided Verdict = iota // nobody checked the password, or nobody said: counts nothing
	Rejected
	Accepted
)

// Attempt is one login under way.
type Attempt struct {
	t       *Throttle
	source  uint64
	typed   uint64
	users   []uint64
	timer   *time.Timer
	running bool // counts as such
	over    bool
}

// Begin asks for leave to check one login, under every name it may mean. typed is
// the login name as it came: a login makes the source known for it alone, since two
// people may share a name of names. Begin returns an attempt, which has to be ended,
// or how long the client has to wait, or the error of ctx.
func (t *Throttle) Begin(ctx context.Context, source netip.Addr, typed string, names ...string) (a *Attempt, wait time.Duration, err error) {
	a = &Attempt{t: t, source: t.source(source), typed: maphash.String(t.seed, typed)}
	for _, name := range names {
		// Hashes with a secret seed instead of the names: a name may be as long as a
		// header, and nobody can make two collide.
		a.add(maphash.String(t.seed, name))
	}
	for {
		t.mu.Lock()
		wait, busy := t.look(a)
		if wait > 0 {
			t.mu.Unlock()
			t.refused.Add(1)
			return nil, wait, nil
		}
		if !busy {
			t.tally(t.sources, a.source).running++
			for _, user := range a.users {
				t.tally(t.users, user).running++
			}
			a.running = true
			a.timer = time.AfterFunc(hold, a.release)
			t.mu.Unlock()
			return a, 0, nil
		}
		t.waiting++
		ended := t.ended
		t.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			err = ctx.Err()
		}
		t.mu.Lock()
		t.waiting--
		t.mu.Unlock()
		if err != nil {
			return nil, 0, err
		}
	}
}

// Shut returns how long an attempt would have to wait, going by some of the names that
// Begin is to be given; 0 says nothing, since the others may be shut out. It begins
// nothing: who has to look up the others need not do it for who is refused anyway.
func (t *Throttle) Shut(source netip.Addr, typed string, names ...string) (wait time.Duration) {
	a := &Attempt{t: t, source: t.source(source), typed: maphash.String(t.seed, typed)}
	for _, name := range names {
		a.add(maphash.String(t.seed, name))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if wait, _ = t.look(a); wait > 0 {
		t.refused.Add(1)
	}
	return wait
}

// add adds a user, once.
func (a *Attempt) add(user uint64) {
	for _, u := range a.users {
		if u == user {
			return
		}
	}
	a.users = append(a.users, user)
}

// source returns the key under which a source is counted: an IPv6 customer has at
// least a /64.
func (t *Throttle) source(addr netip.Addr) uint64 {
	bytes := addr.Unmap().As16()
	if addr.Unmap().Is6() {
		clear(bytes[8:])
	}
	return maphash.Bytes(t.seed, bytes[:])
}

// Reject counts a failure of a source for which there was no attempt.
func (t *Throttle) Reject(source netip.Addr) Failures {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.fail(t.sources, t.source(source))
	return Failures{Source: n, Full: t.limits.PerSource >= 0 && n >= t.limits.PerSource}
}

// look says how long an attempt is shut out, or else whether all that is left is
// taken by attempts under way. The caller holds the lock.
func (t *Throttle) look(a *Attempt) (wait time.Duration, busy bool) {
	known := len(a.users) > 0
	for _, user := range a.users {
		here := t.knownAt(a.place(user))
		known = known && here
		c := t.users[user]
		if c == nil || t.limits.PerUser < 0 {
			continue
		}
		switch w := t.wait(c, t.limits.PerUser); {
		case w > 0 && !here:
			wait = max(wait, w)
		case w > 0:
			busy = busy || c.running > 0 // one at a time: it may be the one that fails
		default:
			busy = busy || c.failures+c.running >= t.limits.PerUser
		}
	}
	if c := t.sources[a.source]; c != nil && t.limits.PerSource >= 0 && !known {
		wait = max(wait, t.wait(c, t.limits.PerSource))
		busy = busy || c.failures+c.running >= t.limits.PerSource
	}
	return wait, busy
}

// wait is how long the one that c counts is shut out. The caller holds the lock.
func (t *Throttle) wait(c *tally, limit int) time.Duration {
	if c.failures > 0 && t.over(c) {
		c.failures = 0
	}
	if limit < 0 || c.failures < limit {
		return 0
	}
	return c.since.Add(t.limits.Window).Sub(t.now())
}

// over tells whether the window of a tally has ended.
func (t *Throttle) over(c *tally) bool { return !t.now().Before(c.since.Add(t.limits.Window)) }

// place is the key of a user, by the name typed, at the attempt's source. Each part
// has a secret seed already.
func (a *Attempt) place(user uint64) uint64 { return user ^ a.source ^ bits.RotateLeft64(a.typed, 32) }

// knownAt tells whether somebody has logged in at the place before.
func (t *Throttle) knownAt(place uint64) bool {
	p := t.places[place]
	return p != nil && !p.known.IsZero() && t.now().Before(p.known.Add(knownFor))
}

// tally returns the tally of key, making one, and room for it, if need be. The
// caller holds the lock.
func (t *Throttle) tally(of map[uint64]*tally, key uint64) *tally {
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
func (t *Throttle) evict(of map[uint64]*tally) {
	var victim uint64
	var least *tally
	looked := 0
	for key, c := range of {
		if c.running > 0 {
			continue // it is bounded by the connections there are
		}
		if t.over(c) {
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

// place returns what is known of a place, making room for it if need
// be: of a few random ones, one without a login goes first, then the oldest.
func (t *Throttle) place(key uint64) *place {
	if p := t.places[key]; p != nil {
		return p
	}
	if len(t.places) >= maxTallies {
		var victim uint64
		var oldest *place
		looked := 0
		for key, p := range t.places {
			if oldest == nil || p.known.Before(oldest.known) {
				victim, oldest = key, p
			}
			if looked++; oldest.known.IsZero() || looked == 16 {
				break
			}
		}
		delete(t.places, victim)
	}
	p := &place{}
	t.places[key] = p
	return p
}

// release lets go of what an attempt without a verdict holds.
func (a *Attempt) release() {
	a.t.mu.Lock()
	defer a.t.mu.Unlock()
	a.letGo()
}

// letGo ends the time in which an attempt counts as running. The caller holds the
// lock.
func (a *Attempt) letGo() {
	if !a.running {
		return
	}
	a.running = false
	t := a.t
	drop := func(of map[uint64]*tally, key uint64) {
		if c := of[key]; c != nil {
			if c.running--; c.running == 0 && c.failures == 0 {
				delete(of, key)
			}
		}
	}
	drop(t.sources, a.source)
	for _, user := range a.users {
		drop(t.users, user)
	}
	if t.waiting > 0 {
		close(t.ended)
		t.ended = make(chan struct{})
	}
}

// Failures are the counts after a rejected attempt.
type Failures struct {
	User   int  // of the user with the most; 0 without a name
	Source int  // of the source
	Full   bool // further attempts will be refused
}

// End ends an attempt; only the first call counts.
func (a *Attempt) End(v Verdict) (f Failures) {
	t := a.t
	a.timer.Stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	if a.over {
		return f
	}
	a.over = true
	switch v {
	case Rejected:
		f.Source = t.fail(t.sources, a.source)
		f.Full = t.limits.PerSource >= 0 && f.Source >= t.limits.PerSource
		for _, user := range a.users {
			n := t.fail(t.users, user)
			f.User = max(f.User, n)
			p := t.place(a.place(user))
			if since := t.users[user].since; p.since.Equal(since) {
				p.failures++
			} else {
				p.failures, p.since = 1, since
			}
			if t.limits.PerUser >= 0 && n >= t.limits.PerUser {
				f.Full = true
				p.known = time.Time{} // what was left for this place is used up
			}
		}
	case Accepted:
		for _, user := range a.users {
			// Whoever knows the password may have mistyped it before: that is forgiven
			// here, and only here. What others do elsewhere goes on counting while the
			// user's own clients log in, and the source keeps its count: it may be
			// guessing others with one account of its own.
			p := t.place(a.place(user))
			if c := t.users[user]; c != nil && p.since.Equal(c.since) {
				c.failures = max(c.failures-p.failures, 0)
			}
			*p = place{known: t.now()}
		}
	}
	a.letGo()
	return f
}

// fail counts a failure and returns how many there are. The caller holds the lock.
func (t *Throttle) fail(of map[uint64]*tally, key uint64) int {
	c := t.tally(of, key)
	if c.failures > 0 && t.over(c) {
		c.failures = 0
	}
	if c.failures == 0 {
		c.since = t.now()
	}
	c.failures++
	return c.failures
}
