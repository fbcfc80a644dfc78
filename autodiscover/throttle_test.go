package autodiscover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/internal/throttle"
)

type clock struct{ t atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.t.Load()).Add(1_000_000 * time.Hour) }
func (c *clock) advance(d time.Duration) { c.t.Add(int64(d)) }

func TestFailedLoginsPerUser(t *testing.T) {
	o, c := testOptions(t), &clock{}
	o.Now = c.now
	h := NewHandler(o)
	try := func(name, password, source string) answer {
		return do(h, request(ask("pat@contoso.com"), name, password, from(source)))
	}
	status := func(want int, name, password, source string) {
		t.Helper()
		if a := try(name, password, source); a.status != want {
			t.Errorf("%s/%s: %d, want %d", name, password, a.status, want)
		}
	}
	// Every name and spelling of a user counts together, from everywhere.
	for i, name := range []string{"PAT@contoso.com", `X\pat@contoso.com`, "pat@fabrikam.example", "patricia@contoso.com"} {
		status(401, name, "wrong", fmt.Sprintf("192.0.2.%d:1", i))
		status(401, name, "wrong", fmt.Sprintf("192.0.2.%d:1", i))
	}
	a := try("pat@contoso.com", "secret", "203.0.113.9:1")
	if a.status != 429 || a.header.Get("Retry-After") != "900" {
		t.Errorf("ninth attempt: %d, Retry-After %q; want 429, 900", a.status, a.header.Get("Retry-After"))
	}
	// A name that does not exist is treated alike.
	for range 8 {
		status(401, "nobody@contoso.com", "wrong", "192.0.2.77:1")
	}
	status(429, "nobody@contoso.com", "wrong", "192.0.2.78:1")
	status(200, "lee@contoso.com", "lee's", "192.0.2.77:1")
	isChallenge(t, do(h, request("", "", "", from("192.0.2.77:1"))))

	c.advance(15*time.Minute - time.Second)
	if a := try("pat@contoso.com", "secret", "203.0.113.9:1"); a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q, want 1", a.header.Get("Retry-After"))
	}
	c.advance(time.Second)
	for range 7 {
		status(401, "pat@contoso.com", "wrong", "192.0.2.1:1")
	}
	status(200, "pat@contoso.com", "secret", "192.0.2.1:1") // resets the user
	for range 8 {
		status(401, "pat@contoso.com", "wrong", "192.0.2.1:1")
	}
	status(429, "pat@contoso.com", "secret", "192.0.2.1:1")
}

func TestFailedLoginsPerSource(t *testing.T) {
	o, c := testOptions(t), &clock{}
	o.Now = c.now
	h := NewHandler(o)
	for i := range 100 {
		source := fmt.Sprintf("[2001:db8::%x]:1", i) // one /64
		if a := do(h, request("", fmt.Sprintf("u%d@contoso.com", i), "x", from(source))); a.status != 401 {
			t.Fatalf("attempt %d: %d", i, a.status)
		}
		// A right login in between does not give the source new tries.
		if a := do(h, request("", "lee@contoso.com", "lee's", from(source))); i < 99 && a.status != 200 {
			t.Fatalf("right login after attempt %d: %d", i, a.status)
		}
	}
	if a := do(h, request("", "pat@contoso.com", "secret", from("[2001:db8::ffff]:1"))); a.status != 429 {
		t.Errorf("the source is not shut out: %d", a.status)
	}
	// Who has logged in from there before still can, until that fails.
	for _, tc := range []struct {
		password string
		want     int
	}{{"lee's", 200}, {"wrong", 401}, {"lee's", 200}} {
		if a := do(h, request("", "lee@contoso.com", tc.password, from("[2001:db8::fffe]:1"))); a.status != tc.want {
			t.Errorf("lee with %q: %d, want %d", tc.password, a.status, tc.want)
		}
	}
	isChallenge(t, do(h, request("", "", "", from("[2001:db8::ffff]:1"))))
	if a := do(h, request("", "lee@contoso.com", "lee's", from("[2001:db8:0:1::1]:1"))); a.status != 200 {
		t.Errorf("another /64 is shut out: %d", a.status)
	}
}

func TestCountsOutliveTheHandler(t *testing.T) {
	o := testOptions(t)
	o.Throttle = throttle.New(throttle.Limits{}, time.Now)
	h := NewHandler(o)
	for range 5 {
		isChallenge(t, do(h, request("", "pat@contoso.com", "wrong")))
	}
	o.Throttle.SetLimits(throttle.Limits{PerUser: 5})
	if a := do(NewHandler(o), request("", "pat@contoso.com", "secret")); a.status != 429 {
		t.Errorf("after a change of configuration: %d, want 429", a.status)
	}
}

func TestLimitsCanBeSwitchedOff(t *testing.T) {
	o := testOptions(t)
	o.Throttle = throttle.New(throttle.Limits{PerUser: -1, PerSource: -1}, time.Now)
	h := NewHandler(o)
	for range 150 {
		isChallenge(t, do(h, request("", "pat@contoso.com", "wrong")))
	}
}

// slowDirectory takes a second for every login.
type slowDirectory struct {
	directory.Directory
	calls, most, running atomic.Int32
}

func (s *slowDirectory) Authenticate(ctx context.Context, name, password string) (*directory.Mailbox, error) {
	s.calls.Add(1)
	n := s.running.Add(1)
	defer s.running.Add(-1)
	for m := s.most.Load(); n > m && !s.most.CompareAndSwap(m, n); m = s.most.Load() {
	}
	time.Sleep(time.Second)
	return s.Directory.Authenticate(ctx, name, password)
}

func TestABurstCannotOutrunTheCount(t *testing.T) {
	burst := func(t *testing.T, password string) (*slowDirectory, map[int]int) {
		o := testOptions(t)
		slow := &slowDirectory{Directory: o.Directory}
		o.Directory, o.Now = slow, time.Now
		h := NewHandler(o)
		var mu sync.Mutex
		statuses := map[int]int{}
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() {
				a := do(h, request(ask("pat@contoso.com"), "pat@contoso.com", password))
				mu.Lock()
				defer mu.Unlock()
				statuses[a.status]++
			})
		}
		wg.Wait()
		return slow, statuses
	}
	synctest.Test(t, func(t *testing.T) {
		slow, got := burst(t, "wrong")
		if slow.calls.Load() != 8 || got[401] != 8 || got[429] != 52 {
			t.Errorf("60 wrong passwords at once: %d tried, answers %v", slow.calls.Load(), got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		slow, got := burst(t, "secret")
		if got[200] != 60 || slow.most.Load() > 8 {
			t.Errorf("60 right passwords at once: answers %v, %d at a time", got, slow.most.Load())
		}
	})
}

func TestDirectoryFailureCountsNothing(t *testing.T) {
	o := testOptions(t)
	o.Directory = failingLogin{o.Directory}
	h := NewHandler(o)
	for range 20 {
		if a := do(h, request("", "pat@contoso.com", "secret")); a.code() != "603" {
			t.Fatalf("%d %s, want 603", a.status, a.code())
		}
	}
}

type failingLogin struct{ directory.Directory }

func (failingLogin) Authenticate(context.Context, string, string) (*directory.Mailbox, error) {
	return nil, errors.New("connection refused")
}

// askedDirectory counts the questions about accounts.
type askedDirectory struct {
	directory.Directory
	accounts int
}

func (a *askedDirectory) Accounts(ctx context.Context, name string) ([]string, error) {
	a.accounts++
	return a.Directory.Accounts(ctx, name)
}

// A source that is shut out costs the directory nothing, but for the users who are
// known there.
func TestShutOutWithoutTheDirectory(t *testing.T) {
	o := testOptions(t)
	asked := &askedDirectory{Directory: o.Directory}
	o.Directory = asked
	o.Throttle = throttle.New(throttle.Limits{PerSource: 3}, o.Now)
	h := NewHandler(o)
	if a := do(h, request("", "lee@contoso.com", "lee's")); a.status != 200 {
		t.Fatalf("lee: %d", a.status)
	}
	for i := range 3 {
		isChallenge(t, do(h, request("", fmt.Sprintf("u%d@contoso.com", i), "x")))
	}
	before := asked.accounts
	for _, name := range []string{"pat@contoso.com", "nobody@contoso.com", "zoë@contoso.com"} {
		if a := do(h, request("", name, "x")); a.status != 429 {
			t.Errorf("%s: %d, want 429", name, a.status)
		}
	}
	if asked.accounts != before {
		t.Errorf("a source that is shut out made %d questions", asked.accounts-before)
	}
	if n := o.Throttle.Counts().Refused; n != 3 {
		t.Errorf("%d counted as refused, want 3", n)
	}
	if a := do(h, request("", "lee@contoso.com", "lee's")); a.status != 200 {
		t.Errorf("lee, known there: %d", a.status)
	}
}
