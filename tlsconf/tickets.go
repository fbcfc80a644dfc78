package tlsconf

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// A ticket is good for at least ticketsBefore rotations and at most one more: 24 to 36 hours. Whoever gets hold of a key can
// read the sessions of TLS 1.2 resumed with it, so it must not live for long (RFC 5077 section 5.5, RFC 8446 appendix F.1).
const (
	ticketRotation = 12 * time.Hour
	ticketsBefore  = 2
	ticketPoll     = time.Minute
)

// Shared is what lets several nodes have the same keys; [Redis] is one.
type Shared interface {
	// Agree returns the value that is stored under a name, or stores mine if it is not nil; see [Redis.Agree].
	Agree(ctx context.Context, name string, mine []byte, life time.Duration) ([]byte, error)
	// Now is the time by a clock that all nodes go by.
	Now(ctx context.Context) (time.Time, error)
}

// TicketsOptions are the settings of [NewTickets].
type TicketsOptions struct {
	Shared   Shared        // nil: the keys are in memory only, and no other process resumes a session
	Rotation time.Duration // after which there is a new key; 0 is 12 h. All nodes must have the same
	Poll     time.Duration // how often the shared keys are looked at, at most; 0 is a minute
	Patience time.Duration // for one look at the shared keys; 0 is 3 s
	Log      zerolog.Logger
}

// Tickets keeps the keys of session tickets. Time is cut into epochs, counted from 1970 by the shared clock, and each has a
// secret of its own. Tickets are encrypted under the secret of the current epoch, and taken if they are from the two before,
// or from the next one, whose secret all nodes get ahead of time. So a node may lag, or be cut off from the others for an
// epoch, without anybody noticing. One that cannot reach them for longer goes on with secrets of its own: clients that come
// to another node then make a full handshake, which is the worst that can happen here.
//
// Every host's keys are derived from the secret and from what makes up the host, so a ticket of one host never resumes under
// another's policy.
type Tickets struct {
	o      TicketsOptions
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	epoch   int64              // the current one
	secrets map[int64][]secret // of an epoch: the one in use first, then those it has replaced
	users   map[*ticketUser]struct{}

	// Of the goroutine alone.
	offset time.Duration // of the shared clock from ours
	failed bool
}

type secret [32]byte

type ticketUser struct {
	t    *Tickets
	conf *tls.Config
	info string
}

// NewTickets starts the keeper. The shared keys are waited for, but not for longer than o.Patience. Close it after the last use.
func NewTickets(o TicketsOptions) *Tickets {
	if o.Rotation <= 0 {
		o.Rotation = ticketRotation
	}
	if o.Poll <= 0 {
		o.Poll = ticketPoll
	}
	if o.Patience <= 0 {
		o.Patience = 3 * time.Second
	}
	ctx, cancel := context.WithCancel(context.Background())
	t := &Tickets{o: o, cancel: cancel, done: make(chan struct{}), secrets: map[int64][]secret{}, users: map[*ticketUser]struct{}{}}
	t.look(ctx)
	go t.run(ctx)
	return t
}

// Close ends the rotation. The keys in use stay in use.
func (t *Tickets) Close() error {
	t.cancel()
	<-t.done
	return nil
}

// Use gives conf its keys, now and whenever they change, until the closer is closed. policy is what tells the configuration
// apart from all others on this and on the other nodes: the host, the source of its certificate, its versions, what it asks of
// clients. A session resumes where it is the same, and nowhere else.
//
// The keys stand in conf itself. crypto/tls takes those of the configuration that [tls.Server] was called with, unless
// GetConfigForClient returns one with keys of its own.
func (t *Tickets) Use(conf *tls.Config, policy ...string) io.Closer {
	var info strings.Builder
	info.WriteString("autodgate session ticket v1")
	for _, p := range policy {
		fmt.Fprintf(&info, " %d:%s", len(p), p) // with the length, so that no two lists make one text
	}
	u := &ticketUser{t: t, conf: conf, info: info.String()}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.users[u] = struct{}{}
	u.apply()
	return u
}

// Close ends the changes of the configuration's keys.
func (u *ticketUser) Close() error {
	u.t.mu.Lock()
	defer u.t.mu.Unlock()
	delete(u.t.users, u)
	return nil
}

// apply puts the keys into the configuration. t.mu is held.
func (u *ticketUser) apply() {
	var keys [][32]byte
	for _, e := range []int64{0, 1, -1, -2} { // the first key of the first is for new tickets
		for _, s := range u.t.secrets[u.t.epoch+e] {
			key, err := hkdf.Key(sha256.New, s[:], nil, u.info, len(s))
			if err != nil {
				panic(err) // only for lengths that are not this one
			}
			keys = append(keys, [32]byte(key))
		}
	}
	u.conf.SetSessionTicketKeys(keys)
}

func (t *Tickets) run(ctx context.Context) {
	defer close(t.done)
	pause := time.Second
	for {
		wait := t.o.Poll
		if t.failed {
			wait, pause = min(pause, t.o.Poll), min(2*pause, t.o.Poll)
		} else {
			pause = time.Second
		}
		now := time.Now().Add(t.offset)
		wait = min(wait, t.start(t.epochAt(now)+1).Sub(now))
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
			t.look(ctx)
		}
	}
}

func (t *Tickets) epochAt(now time.Time) int64 { return now.UnixNano() / int64(t.o.Rotation) }

func (t *Tickets) start(epoch int64) time.Time { return time.Unix(0, epoch*int64(t.o.Rotation)) }

// look brings the secrets up to date: what the others have counts; what they lack they get from here; where they cannot be
// asked, there is a secret of our own.
func (t *Tickets) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, t.o.Patience)
	defer cancel()
	var failure error
	if t.o.Shared != nil {
		before := time.Now()
		now, err := t.o.Shared.Now(ctx)
		if err == nil {
			t.offset = now.Sub(before)
		}
		failure = err
	}
	now := time.Now().Add(t.offset)
	epoch := t.epochAt(now)
	fresh := map[int64][]secret{}
	for e := epoch - ticketsBefore; e <= epoch+1; e++ {
		t.mu.Lock()
		known := slices.Clone(t.secrets[e])
		t.mu.Unlock()
		if len(known) == 0 && e >= epoch {
			known = []secret{newSecret()}
		}
		if t.o.Shared != nil && failure == nil {
			known, failure = t.agree(ctx, e, known, t.start(e+ticketsBefore+1).Sub(now))
		}
		if len(known) > 0 {
			fresh[e] = known
		}
	}
	t.tell(ctx, failure)
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := epoch != t.epoch || len(fresh) != len(t.secrets)
	for e := range fresh {
		changed = changed || !slices.Equal(fresh[e], t.secrets[e])
	}
	t.epoch, t.secrets = epoch, fresh
	if changed {
		for u := range t.users {
			u.apply()
		}
	}
}

func newSecret() (s secret) {
	_, _ = rand.Read(s[:]) // never fails
	return s
}

// agree asks the others for the secret of an epoch, and offers ours. Tickets that were given out under another secret, while
// the others could not be asked, are still taken here.
func (t *Tickets) agree(ctx context.Context, epoch int64, known []secret, life time.Duration) ([]secret, error) {
	const most = 4 // of one epoch: nobody's storage loses its content that often
	var mine []byte
	if len(known) > 0 {
		mine = known[0][:]
	}
	name := fmt.Sprintf("session-tickets/%s/%d", t.o.Rotation, epoch) // nodes with another rotation are no company
	agreed, err := t.o.Shared.Agree(ctx, name, mine, life)
	switch {
	case mine == nil && errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return known, err
	case len(agreed) != len(secret{}):
		return known, fmt.Errorf("%s is no key of session tickets: %d bytes; remove it", name, len(agreed))
	}
	s := secret(agreed)
	known = slices.Insert(slices.DeleteFunc(known, func(k secret) bool { return k == s }), 0, s)
	return known[:min(len(known), most)], nil
}

// tell logs when sharing begins to fail and when it works again.
func (t *Tickets) tell(ctx context.Context, failure error) {
	switch {
	case failure != nil && errors.Is(ctx.Err(), context.Canceled):
	case failure != nil && !t.failed:
		t.failed = true
		t.o.Log.Warn().Err(failure).Msg("the keys of session tickets cannot be shared for now: those at hand stay in use, and new ones are this node's own")
	case failure == nil && t.failed:
		t.failed = false
		t.o.Log.Info().Msg("the keys of session tickets are shared again")
	}
}
