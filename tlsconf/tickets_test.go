package tlsconf

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
)

// board is what nodes share, in memory, with a clock of its own.
type board struct {
	mu     sync.Mutex
	down   bool
	ahead  time.Duration // of the clock, before everybody's
	values map[string][]byte
	ends   map[string]time.Time
}

var errBoard = errors.New("the board is away")

func newBoard() *board { return &board{values: map[string][]byte{}, ends: map[string]time.Time{}} }

func (b *board) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *board) Now(context.Context) (time.Time, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return time.Time{}, errBoard
	}
	return time.Now().Add(b.ahead), nil
}

func (b *board) Agree(_ context.Context, name string, mine []byte, life time.Duration) ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.down {
		return nil, errBoard
	}
	if end, ok := b.ends[name]; ok && time.Now().After(end) {
		delete(b.values, name)
	}
	if b.values[name] == nil {
		if mine == nil {
			return nil, fs.ErrNotExist
		}
		b.values[name], b.ends[name] = bytes.Clone(mine), time.Now().Add(life)
	}
	return bytes.Clone(b.values[name]), nil
}

// skewed is a board as somebody sees it who cannot see its clock, and whose own goes wrong.
type skewed struct {
	*board
	by time.Duration
}

func (s skewed) Now(ctx context.Context) (time.Time, error) {
	now, err := s.board.Now(ctx)
	return now.Add(s.by), err
}

// door is one host on one node: it gives out tickets and takes them.
type door struct{ *tls.Config }

// open makes a host on a node.
func open(t *testing.T, tickets *Tickets, policy ...string) door {
	conf := &tls.Config{}
	closer := tickets.Use(conf, policy...)
	t.Cleanup(func() { closer.Close() })
	return door{conf}
}

// gives returns a ticket. What is in it does not matter here.
func (d door) gives(t *testing.T) []byte {
	t.Helper()
	// The state of a session of TLS 1.3, as short as crypto/tls takes it: see SessionState.Bytes.
	state, err := tls.ParseSessionState([]byte{3, 4, 1, 0x13, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := d.EncryptTicket(tls.ConnectionState{}, state)
	if err != nil {
		t.Fatal(err)
	}
	return ticket
}

func (d door) takes(ticket []byte) bool {
	state, err := d.DecryptTicket(ticket, tls.ConnectionState{})
	return err == nil && state != nil
}

func keeper(t *testing.T, o TicketsOptions) *Tickets {
	o.Log = zerolog.Nop()
	tickets := NewTickets(o)
	t.Cleanup(func() { tickets.Close() })
	return tickets
}

// A ticket is good on every node, for that host and policy alone, for 24 hours at least and 36 at most.
func TestTicketsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		o := TicketsOptions{Shared: b, Poll: time.Hour}
		one, two, alone := keeper(t, o), keeper(t, o), keeper(t, TicketsOptions{Poll: time.Hour})
		a1, a2 := open(t, one, "mail.contoso.com", "modern"), open(t, two, "mail.contoso.com", "modern")
		for name, other := range map[string]door{
			"another host":     open(t, two, "owa.contoso.com", "modern"),
			"another policy":   open(t, two, "mail.contoso.com", "modern|require"),
			"the same letters": open(t, two, "mail.contoso.comm", "odern"),
			"no host":          open(t, two),
			"not shared":       open(t, alone, "mail.contoso.com", "modern"),
		} {
			if other.takes(a1.gives(t)) {
				t.Errorf("%s takes the ticket", name)
			}
		}
		type given struct {
			ticket []byte
			at     time.Time
		}
		var all []given
		for range 30 {
			all = append(all, given{a1.gives(t), time.Now()}, given{a2.gives(t), time.Now()})
			time.Sleep(150 * time.Minute)
			late := open(t, keeper(t, o), "mail.contoso.com", "modern")
			for _, g := range all {
				for i, d := range []door{a1, a2, late} {
					switch age := time.Since(g.at); {
					case age < 24*time.Hour && !d.takes(g.ticket):
						t.Fatalf("node %d does not take a ticket that is %s old", i, age)
					case age > 37*time.Hour && d.takes(g.ticket):
						t.Fatalf("node %d takes a ticket that is %s old", i, age)
					}
				}
			}
		}
		one.mu.Lock()
		defer one.mu.Unlock()
		if len(one.secrets) != ticketsBefore+2 {
			t.Errorf("%d epochs are kept", len(one.secrets))
		}
	})
}

// Without shared storage the keys are rotated too, and a ticket lives as long.
func TestTicketsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, keeper(t, TicketsOptions{}), "mail.contoso.com")
		ticket := d.gives(t)
		time.Sleep(24 * time.Hour)
		if !d.takes(ticket) {
			t.Error("not taken after a day")
		}
		time.Sleep(13 * time.Hour)
		if d.takes(ticket) {
			t.Error("taken after 37 hours")
		}
		conf := &tls.Config{}
		tickets := keeper(t, TicketsOptions{})
		closer := tickets.Use(conf, "mail.contoso.com")
		closer.Close()
		tickets.mu.Lock()
		defer tickets.mu.Unlock()
		if len(tickets.users) != 0 {
			t.Error("a configuration that is closed is held")
		}
	})
}

// Shared storage away: nodes go on, resume each other's sessions for as long as they hold the same keys, and rotate all the
// same. When it is back they agree again, whatever it has forgotten.
func TestTicketsStorageDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		one, two := keeper(t, TicketsOptions{Shared: b}), keeper(t, TicketsOptions{Shared: b})
		a1, a2 := open(t, one, "mail.contoso.com"), open(t, two, "mail.contoso.com")
		before := a1.gives(t)
		b.set(func() { b.down = true })
		time.Sleep(11 * time.Hour) // the next epoch's secret was known ahead
		if !a2.takes(before) || !a2.takes(a1.gives(t)) || !a1.takes(a2.gives(t)) {
			t.Error("sessions are not resumed any more although nothing but the storage is away")
		}
		time.Sleep(26 * time.Hour)
		if a1.takes(before) || a2.takes(before) {
			t.Error("a key is used for ever while the storage is away")
		}
		own := a1.gives(t)
		if !a1.takes(own) || a2.takes(own) {
			t.Error("a node that is cut off has keys of its own")
		}
		// One that starts now has a key too.
		late := open(t, keeper(t, TicketsOptions{Shared: b}), "mail.contoso.com")
		lates := late.gives(t)
		if !late.takes(lates) {
			t.Error("a node that starts without the storage does not resume sessions")
		}
		b.set(func() {
			b.down = false
			b.values = map[string][]byte{}
		})
		time.Sleep(2 * ticketPoll)
		for i, d := range []door{a1, a2, late} {
			ticket := d.gives(t)
			if !a1.takes(ticket) || !a2.takes(ticket) || !late.takes(ticket) {
				t.Errorf("the storage is back, and a ticket of node %d is not taken by all", i)
			}
		}
		if !a1.takes(own) || !late.takes(lates) {
			t.Error("a node does not take the tickets it gave out on its own")
		}
		// It forgets everything, and nobody notices.
		again := a1.gives(t)
		b.set(func() { b.values = map[string][]byte{} })
		time.Sleep(2 * ticketPoll)
		if d := open(t, keeper(t, TicketsOptions{Shared: b}), "mail.contoso.com"); !d.takes(again) || !a1.takes(d.gives(t)) {
			t.Error("the storage was emptied, and a new node has other keys")
		}
		// What is no key is not used.
		b.set(func() {
			for name := range b.values {
				b.values[name] = []byte("short")
			}
		})
		time.Sleep(2 * ticketPoll)
		if !a1.takes(again) || !a2.takes(a1.gives(t)) {
			t.Error("rubbish in the storage has replaced a key")
		}
	})
}

// Nodes go by the clock of the storage. One whose view of it is wrong by less than an epoch is not noticed either.
func TestTicketsClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBoard()
		b.ahead = 1000 * time.Hour
		straight := open(t, keeper(t, TicketsOptions{Shared: b}), "mail.contoso.com")
		fast := open(t, keeper(t, TicketsOptions{Shared: skewed{b, 11 * time.Hour}}), "mail.contoso.com")
		slow := open(t, keeper(t, TicketsOptions{Shared: skewed{b, -11 * time.Hour}}), "mail.contoso.com")
		for range 40 {
			time.Sleep(time.Hour)
			for i, d := range []door{straight, fast, slow} {
				if ticket := d.gives(t); !straight.takes(ticket) || i < 2 && !fast.takes(ticket) || i != 1 && !slow.takes(ticket) {
					t.Fatalf("a ticket of node %d is not taken by all", i)
				}
			}
		}
	})
}

// visit connects and reads the first byte, and with it the session ticket.
func visit(address string, conf *tls.Config) (tls.ConnectionState, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, conf)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err = io.ReadFull(c, make([]byte, 1))
	return c.ConnectionState(), err
}

// Two nodes on a Redis resume each other's sessions, in TLS 1.2 and 1.3, and no other host does.
func TestTicketsOnRedis(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	src := fixedSource(t)
	listen := func(host string, o TicketsOptions) string {
		conf := serverConfig(t, Intermediate, src)
		closer := keeper(t, o).Use(conf, host)
		t.Cleanup(func() { closer.Close() })
		return listenTLS(t, conf)
	}
	one := listen("mail.contoso.com", TicketsOptions{Shared: node(t, StorageOptions{URL: server.URL()}), Patience: time.Minute})
	two := listen("mail.contoso.com", TicketsOptions{Shared: node(t, StorageOptions{URL: server.URL()}), Patience: time.Minute})
	other := listen("owa.contoso.com", TicketsOptions{Shared: node(t, StorageOptions{URL: server.URL()}), Patience: time.Minute})
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		conf := &tls.Config{ServerName: "mail.contoso.com", InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for i, step := range []struct {
			address string
			resumed bool
		}{{one, false}, {two, true}, {one, true}, {other, false}} {
			cs, err := visit(step.address, conf)
			if err != nil || cs.DidResume != step.resumed || cs.Version != version {
				t.Errorf("%s, step %d: resumed %t, %v", tls.VersionName(version), i, cs.DidResume, err)
			}
		}
	}
	// Half a restart of a node: its keys come from Redis.
	conf := &tls.Config{ServerName: "mail.contoso.com", InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	if _, err := visit(one, conf); err != nil {
		t.Fatal(err)
	}
	late := listen("mail.contoso.com", TicketsOptions{Shared: node(t, StorageOptions{URL: server.URL()}), Patience: time.Minute})
	if cs, err := visit(late, conf); err != nil || !cs.DidResume {
		t.Errorf("a node that came later: resumed %t, %v", cs.DidResume, err)
	}
}

// On the wire too a session ends with its key, and Redis forgets the old ones.
func TestTicketsExpireOnRedis(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	const rotation = 250 * time.Millisecond
	r := node(t, StorageOptions{URL: server.URL()})
	tickets := keeper(t, TicketsOptions{Shared: r, Rotation: rotation, Poll: rotation, Patience: time.Minute})
	conf := serverConfig(t, Intermediate, fixedSource(t))
	defer tickets.Use(conf, "mail.contoso.com").Close()
	address := listenTLS(t, conf)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		client := &tls.Config{ServerName: "mail.contoso.com", InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		if _, err := visit(address, client); err != nil {
			t.Fatal(err)
		}
		epoch := func() int64 {
			tickets.mu.Lock()
			defer tickets.mu.Unlock()
			return tickets.epoch
		}
		begin := epoch()
		for end := time.Now().Add(time.Minute); epoch() < begin+ticketsBefore+3; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the keys are not rotated")
			}
		}
		if cs, err := visit(address, client); err != nil || cs.DidResume {
			t.Errorf("%s: resumed %t with a key that is gone, %v", tls.VersionName(version), cs.DidResume, err)
		}
	}
	keys, err := r.client.Keys(t.Context(), r.shared("session-tickets/*")).Result()
	if err != nil || len(keys) == 0 || len(keys) > ticketsBefore+3 {
		t.Errorf("in Redis: %q %v", keys, err)
	}
}

// Redis away at the start costs the start a moment, and no handshake.
func TestTicketsStartWithoutRedis(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	server.Pause()
	r := node(t, StorageOptions{URL: server.URL(), Timeout: time.Second})
	address := listenTLS(t, func() *tls.Config {
		conf := serverConfig(t, Intermediate, fixedSource(t))
		keeper(t, TicketsOptions{Shared: r, Patience: 200 * time.Millisecond}).Use(conf, "mail.contoso.com")
		return conf
	}())
	conf := &tls.Config{ServerName: "mail.contoso.com", InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	for i := range 2 {
		if cs, err := visit(address, conf); err != nil || cs.DidResume != (i == 1) {
			t.Errorf("connection %d: resumed %t, %v", i, cs.DidResume, err)
		}
	}
	server.Resume()
}
