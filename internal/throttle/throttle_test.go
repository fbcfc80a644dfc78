package throttle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type clock struct{ t atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.t.Load()).Add(1_000_000 * time.Hour) }
func (c *clock) advance(d time.Duration) { c.t.Add(int64(d)) }

var (
	home   = netip.MustParseAddr("192.0.2.1")
	office = netip.MustParseAddr("2001:db8::1")
)

func stranger(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}) }

// attempt makes one attempt and tells whether it was let through.
func attempt(t *Throttle, source netip.Addr, user string, v Verdict) bool {
	a, wait, err := t.Begin(context.Background(), source, user, Name(user))
	if err != nil || wait > 0 {
		return false
	}
	a.End(v)
	return true
}

// the directory sees at most the limit of a user's failures, wherever they
// come from, until the window has passed.
func TestUserIsShutOutBeforeTheDirectoryDoes(t *testing.T) {
	c := &clock{}
	th := New(Limits{}, c.now)
	spellings := []string{"pat", "PAT", `CONTOSO\pat`, "pat@contoso.com", "Pat@contoso.local", " pat ", "pàt", "ｐat"}
	for i := range 20 {
		if got, want := attempt(th, stranger(i), spellings[i%len(spellings)], Rejected), i < 8; got != want {
			t.Errorf("attempt %d let through: %v", i, got)
		}
	}
	if attempt(th, home, "pat", Accepted) {
		t.Error("the right password of a stranger is let through")
	}
	if c := th.Counts(); c.Users != 1 || c.Sources != 0 || c.Refused != 13 {
		t.Errorf("%+v", c)
	}
	if !attempt(th, home, "lee", Accepted) {
		t.Error("another user is shut out")
	}
	c.advance(15*time.Minute - time.Second)
	if _, wait, _ := th.Begin(t.Context(), home, "pat", "pat"); wait != time.Second {
		t.Errorf("to wait %v, want a second", wait)
	}
	c.advance(time.Second)
	if !attempt(th, home, "pat", Accepted) {
		t.Error("still shut out after the window")
	}
}

// who knows no password cannot shut out the user who does: at the places
// where they have logged in, logins go on until one fails.
func TestAttackerElsewhereDoesNotShutOutTheUser(t *testing.T) {
	c := &clock{}
	th := New(Limits{}, c.now)
	attempt(th, home, "pat", Accepted)
	attempt(th, office, "pat", Accepted)
	for i := range 20 {
		attempt(th, stranger(i), "pat", Rejected)
	}
	for range 50 {
		if !attempt(th, home, "pat", Accepted) {
			t.Fatal("the user is shut out at home")
		}
	}
	if attempt(th, stranger(1), "pat", Rejected) {
		t.Error("the user's logins give the attacker new tries")
	}
	if attempt(th, home, `FABRIKAM\pat`, Accepted) {
		t.Error("another one of that name is known")
	}
	if !attempt(th, home, "pat", Rejected) {
		t.Error("the one failure that is left at home was refused")
	}
	if attempt(th, home, "pat", Accepted) {
		t.Error("after it, home is still open")
	}
	if !attempt(th, office.Next(), "pat", Accepted) { // the same /64
		t.Error("the office is closed too")
	}
	c.advance(15 * time.Minute)
	if !attempt(th, home, "pat", Accepted) {
		t.Error("still closed after the window")
	}
	c.advance(knownFor)
	for i := range 8 {
		attempt(th, stranger(i), "pat", Rejected)
	}
	if attempt(th, home, "pat", Accepted) {
		t.Error("home is known for ever")
	}
}

// A login forgives what was mistyped at the same place under the same name, and
// nothing else.
func TestLoginForgivesItsOwnFailures(t *testing.T) {
	th := New(Limits{}, (&clock{}).now)
	for i := range 4 {
		attempt(th, stranger(i), "pat", Rejected)
	}
	for range 3 {
		attempt(th, home, "pat", Rejected)
	}
	attempt(th, home, "pat", Accepted)
	for i := range 4 { // 4 of the strangers' are left
		if !attempt(th, home, "pat", Rejected) {
			t.Fatalf("failure %d after the login was refused", i)
		}
	}
	if attempt(th, home, "pat", Rejected) {
		t.Error("the strangers' failures are forgiven too")
	}
}

// A source that guesses one password for many users is shut out, but for those who
// have logged in from there before.
func TestSourceIsShutOut(t *testing.T) {
	th := New(Limits{}, (&clock{}).now)
	attempt(th, office, "lee", Accepted)
	for i := range 120 {
		if got, want := attempt(th, office, fmt.Sprint("user", i), Rejected), i < 100; got != want {
			t.Fatalf("attempt %d let through: %v", i, got)
		}
	}
	if !attempt(th, office, "lee", Accepted) || attempt(th, office, "pat", Accepted) || !attempt(th, home, "pat", Accepted) {
		t.Error("the wrong ones are shut out")
	}
	if f := th.Reject(home); f.Source != 1 || f.Full {
		t.Errorf("%+v", f)
	}
	if f := th.Reject(office); f.Source != 101 || !f.Full {
		t.Errorf("%+v", f)
	}
}

// Attempts at the same time cannot outrun the count, also of a user at a known
// place; right ones wait for their turn. A long poll gives up its place.
func TestBursts(t *testing.T) {
	for _, known := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			th := New(Limits{}, time.Now)
			if known {
				attempt(th, home, "pat", Accepted)
			}
			var tried atomic.Int32
			for range 60 {
				go func() {
					if a, wait, _ := th.Begin(t.Context(), home, "pat", "pat"); wait == 0 {
						tried.Add(1)
						time.Sleep(time.Second)
						a.End(Rejected)
					}
				}()
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := tried.Load(); n != 8 {
				t.Errorf("known %v: %d of 60 wrong passwords were tried", known, n)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		th := New(Limits{}, time.Now)
		start := time.Now()
		for i := range 24 { // each of them answers after an hour
			go func() {
				a, wait, err := th.Begin(t.Context(), home, "pat", "pat")
				if err != nil || wait > 0 {
					t.Errorf("poll %d: %v %v", i, wait, err)
					return
				}
				time.Sleep(time.Hour)
				a.End(Accepted)
			}()
		}
		for th.running() > 0 || time.Since(start) < time.Second {
			time.Sleep(time.Second)
		}
		if d := time.Since(start); d > 4*hold {
			t.Errorf("long polls keep others waiting for %v", d)
		}
		time.Sleep(2 * time.Hour)
	})
}

func (t *Throttle) running() (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, u := range t.users {
		n += u.running
	}
	return n + t.waiting
}

func TestWaitingEndsWithTheRequest(t *testing.T) {
	th := New(Limits{PerUser: 1}, time.Now)
	a, wait, err := th.Begin(t.Context(), home, "u", "u")
	if err != nil || wait != 0 {
		t.Fatal(wait, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := th.Begin(ctx, home, "u", "u"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	a.End(Undecided)
	a.End(Rejected) // too late
	if len(th.users)+len(th.sources)+len(th.places) != 0 {
		t.Error("an attempt without a verdict is counted")
	}
}

func TestMemoryIsBounded(t *testing.T) {
	c := &clock{}
	th := New(Limits{PerSource: -1}, c.now)
	attempt(th, home, "pat", Accepted)
	for range 8 {
		attempt(th, stranger(0), "victim", Rejected)
	}
	for i := range maxTallies + 5000 {
		attempt(th, stranger(i), fmt.Sprint(i), Rejected)
	}
	if len(th.users) > maxTallies || len(th.sources) > maxTallies || len(th.places) > maxTallies {
		t.Errorf("%d users, %d sources, %d places remembered, at most %d of each", len(th.users), len(th.sources), len(th.places), maxTallies)
	}
	if attempt(th, home, "victim", Accepted) {
		t.Error("made-up names push out the account under attack")
	}
	for i := range 8 {
		attempt(th, stranger(i), "pat", Rejected)
	}
	if !attempt(th, home, "pat", Accepted) {
		t.Error("made-up names push out where a user is known")
	}
}

func TestLimits(t *testing.T) {
	th := New(Limits{PerUser: -1, PerSource: -1}, time.Now)
	for i := range 300 {
		if !attempt(th, home, "pat", Rejected) {
			t.Fatalf("attempt %d refused without a limit", i)
		}
	}
	th.SetLimits(Limits{PerUser: 3, PerSource: -1})
	if attempt(th, home, "pat", Accepted) {
		t.Error("a new limit forgets what was counted")
	}
}

func TestName(t *testing.T) {
	for in, want := range map[string]string{
		"pat": "pat", "PAT": "pat", `CONTOSO\Pat`: "pat", `contoso.local\pat@x`: "pat", "pat@contoso.com": "pat", " pat\t": "pat", "contoso/pat": "pat",
		"Zoë": "zoe", "ZOË@x": "zoe", "zo\u0065\u0308": "zoe", "ｐａｔ": "pat", "p\u200dat": "pat", "": "", `X\`: "",
	} {
		if got := Name(in); got != want {
			t.Errorf("Name(%q) = %q, want %q", in, got, want)
		}
	}
}

func BenchmarkAttempt(b *testing.B) {
	th := New(Limits{}, time.Now)
	b.ReportAllocs()
	for b.Loop() {
		attempt(th, home, "pat@contoso.com", Accepted)
	}
}
