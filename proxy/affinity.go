package proxy

import (
	"bytes"
	"cmp"
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Affinity is by what a client is known again, so that it reaches the server that it
// was at before.
type Affinity int

// The affinities. What a list of them says first counts first: a client that shows
// the sign is led by it alone, and by the next one otherwise.
const (
	// ByCookie: a cookie that we give to the client; it names the server. The server sees
	// it when the client brings it back: it holds nothing secret, and Cookie lines cross
	// as they are, in which a mistake of ours would cost more than a few bytes do.
	ByCookie Affinity = iota + 1
	// ByExistingCookie: the session cookies that Exchange gives and Outlook makes.
	ByExistingCookie
	// ByUser: the user name of Basic logins. Logins of the connection change with every
	// connection and are no sign.
	ByUser
	// BySourceIP: the client's address, of IPv6 the /64 network.
	BySourceIP
)

// existingCookies are the cookies of ByExistingCookie (PROXYING.md section 9.2).
// OutlookSession is made by the client, the others come from the server.
var existingCookies = []string{"sessionid", "UserContext", "exchangecookie", "OutlookSession"}

// AffinityPreset returns the affinity that a group of virtual directories needs on
// servers of an Exchange version, as PROXYING.md section 9.1 has it: since 2013, and
// where the version is not known, none.
func AffinityPreset(exchange, group string) []Affinity {
	if exchange != "2007" && exchange != "2010" {
		return nil
	}
	switch group {
	case "owa": // with ECP: browsers bring cookies back
		return []Affinity{ByCookie, ByExistingCookie}
	case "ews", "rpc":
		return []Affinity{ByExistingCookie, ByUser, BySourceIP}
	case "activesync":
		return []Affinity{ByUser, BySourceIP}
	case "powershell":
		return []Affinity{BySourceIP}
	}
	return nil
}

// affinity is the chain for a virtual directory.
func (s *Site) affinity(v *VirtualDirectory) []Affinity {
	if s.Affinity != nil {
		return s.Affinity
	}
	return AffinityPreset(s.Exchange, v.Affinity)
}

// Bounds of a site's table of clients. An entry counts from its last use, and does
// not end while an exchange that it led is going on: an Outlook Anywhere channel
// lasts for hours, and the next one must find its partner.
const (
	affinityEntries = 100_000
	affinityIdle    = time.Hour
	affinitySession = 8 * time.Hour // for cookies of sessions that last a day at work
)

// affinityTable remembers which server a client is at. It holds salted hashes, and
// never what was hashed.
type affinityTable struct {
	mu      sync.Mutex
	seed    maphash.Seed
	entries map[uint64]*list.Element
	recent  *list.List // of *affinityEntry, the last used first
}

type affinityEntry struct {
	key    uint64
	server *backendState
	used   time.Time
	idle   time.Duration
	held   int // exchanges that go on
}

func newAffinityTable() *affinityTable {
	return &affinityTable{seed: maphash.MakeSeed(), entries: map[uint64]*list.Element{}, recent: list.New()}
}

// key hashes a sign of a client in a group of directories.
func (t *affinityTable) key(group string, kind Affinity, sign []byte) uint64 {
	var h maphash.Hash
	h.SetSeed(t.seed)
	h.WriteString(group)
	h.WriteByte(0)
	h.WriteByte(byte(kind))
	h.Write(sign)
	return h.Sum64()
}

// get returns the server of a key.
func (t *affinityTable) get(key uint64, now time.Time) *backendState {
	t.mu.Lock()
	defer t.mu.Unlock()
	el := t.entries[key]
	if el == nil {
		return nil
	}
	e := el.Value.(*affinityEntry)
	if e.held == 0 && now.Sub(e.used) > e.idle {
		t.remove(el)
		return nil
	}
	return e.server
}

// claim remembers the server of a key, unless there is one that is usable. It returns
// the one that counts.
func (t *affinityTable) claim(k ledKey, server *backendState, usable func(*backendState) bool, now time.Time) *backendState {
	t.mu.Lock()
	defer t.mu.Unlock()
	if el := t.entries[k.key]; el != nil {
		e := el.Value.(*affinityEntry)
		if (e.held > 0 || now.Sub(e.used) <= e.idle) && usable(e.server) {
			return e.server
		}
	}
	t.set(k.key, server, k.idle, false, now)
	return server
}

// put remembers the server of a key, and holds the entry if hold is set.
func (t *affinityTable) put(key uint64, server *backendState, idle time.Duration, hold bool, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set(key, server, idle, hold, now)
}

func (t *affinityTable) set(key uint64, server *backendState, idle time.Duration, hold bool, now time.Time) {
	el := t.entries[key]
	if el == nil {
		t.expire(now)
		el = t.recent.PushFront(&affinityEntry{key: key})
		t.entries[key] = el
	}
	e := el.Value.(*affinityEntry)
	e.server, e.used, e.idle = server, now, max(idle, e.idle)
	if hold {
		e.held++
	}
	t.recent.MoveToFront(el)
}

// expire makes room: what has not been used for long goes, and what has been used
// the longest ago if there is too much of it. t.mu is held.
func (t *affinityTable) expire(now time.Time) {
	for el := t.recent.Back(); el != nil; el = t.recent.Back() {
		e := el.Value.(*affinityEntry)
		if t.recent.Len() < affinityEntries && (e.held > 0 || now.Sub(e.used) <= e.idle) {
			return
		}
		t.remove(el)
	}
}

func (t *affinityTable) remove(el *list.Element) {
	t.recent.Remove(el)
	delete(t.entries, el.Value.(*affinityEntry).key)
}

// release ends the hold on an entry.
func (t *affinityTable) release(key uint64, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if el := t.entries[key]; el != nil {
		e := el.Value.(*affinityEntry)
		e.used = now
		if e.held > 0 {
			e.held--
		}
		t.recent.MoveToFront(el)
	}
}

func (t *affinityTable) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.recent.Len()
}

// leading is what a request says about the server that its client belongs to.
type leading struct {
	site   *Site
	group  string
	wanted *backendState // nil: none in particular
	keys   []ledKey      // the signs that the request shows
	cookie bool          // ByCookie is in the chain, and the request has none that leads anywhere
	learn  bool          // ByExistingCookie is in the chain
	held   bool
}

type ledKey struct {
	key  uint64
	idle time.Duration
}

// lead reads from a request where its client belongs. It is nil where there is
// nothing to choose.
func (s *session) lead(site *Site, v *VirtualDirectory) *leading {
	if len(site.Backends) < 2 {
		return nil
	}
	chain := site.affinity(v)
	if len(chain) == 0 {
		return nil
	}
	client := s.fwd.client
	if s.fwd.trusted {
		client = s.ev.client
	}
	return site.lead(cmp.Or(v.Affinity, v.Name), v.health(), chain, s.head.fields, client, time.Now())
}

func (s *Site) lead(group, dir string, chain []Affinity, fields []field, client netip.Addr, now time.Time) *leading {
	l := &leading{site: s, group: group}
	table := s.known().clients
	decided := false
	sign := func(kind Affinity, value []byte, idle time.Duration) {
		k := ledKey{table.key(group, kind, value), idle}
		l.keys = append(l.keys, k)
		if l.wanted == nil {
			l.wanted = s.usable(table.get(k.key, now), dir)
		}
		decided = true
	}
	for _, kind := range chain {
		if decided {
			// A weaker sign would lead clients that share it after the first of them; but
			// what comes from the server is still looked at.
			l.learn = l.learn || kind == ByExistingCookie
			continue
		}
		switch kind {
		case ByCookie:
			token := requestCookie(fields, s.cookieName())
			for _, b := range s.Backends {
				if bs := b.known(s); len(token) > 0 && string(token) == s.cookieToken(b) {
					l.wanted = s.usable(bs, dir)
				}
			}
			l.cookie = l.wanted == nil
			decided = l.wanted != nil
		case ByExistingCookie:
			l.learn = true
			for _, name := range existingCookies {
				if v := requestCookie(fields, name); len(v) > 0 {
					sign(kind, v, affinitySession)
				}
			}
		case ByUser:
			if user := basicUser(fields); user != nil {
				sign(kind, user, affinityIdle)
			}
		case BySourceIP:
			if client.IsValid() && !client.IsUnspecified() {
				sign(kind, sourceKey(client), affinityIdle)
			}
		}
	}
	return l
}

// usable returns the server if it is to be gone back to: one that drains is.
func (s *Site) usable(bs *backendState, dir string) *backendState {
	if bs == nil || !bs.fit(dir) && s.known().someFit(dir) || !slices.ContainsFunc(s.Backends, func(b *Backend) bool { return b.known(s) == bs }) {
		return nil
	}
	return bs
}

// claim makes a server the one that the client belongs to, unless another request of
// the client, at the same time, was first: both channels of Outlook Anywhere come at
// once.
func (l *leading) claim(bs *backendState, dir string) {
	if l == nil || l.wanted != nil || len(l.keys) == 0 {
		return
	}
	for _, k := range l.keys {
		if first := l.site.known().clients.claim(k, bs, func(other *backendState) bool { return l.site.usable(other, dir) != nil }, time.Now()); l.wanted == nil {
			l.wanted = first
		}
	}
}

// settle remembers where the request went, until done. Where it should have gone
// stays in force if it only could not because of a login on its connection.
func (l *leading) settle(bs *backendState, dir string) {
	if l == nil {
		return
	}
	if l.wanted != nil && l.site.usable(l.wanted, dir) != nil {
		bs = l.wanted
	}
	for _, k := range l.keys {
		l.site.known().clients.put(k.key, bs, k.idle, true, time.Now())
	}
	l.held = true
}

// done ends what settle began.
func (l *leading) done() {
	if l == nil || !l.held {
		return
	}
	l.held = false
	for _, k := range l.keys {
		l.site.known().clients.release(k.key, time.Now())
	}
}

// leadSource reads where a client belongs that shows nothing but its address.
func (s *Site) leadSource(group, dir string, client netip.Addr) *leading {
	return s.lead(group, dir, []Affinity{BySourceIP}, nil, client, time.Now())
}

// first brings the server that the client belongs to to the front.
func (l *leading) first(order []*Backend) []*Backend {
	if l == nil || l.wanted == nil {
		return order
	}
	i := slices.IndexFunc(order, func(b *Backend) bool { return b.known(l.site) == l.wanted })
	if i <= 0 {
		return order
	}
	out := append(make([]*Backend, 0, len(order)), order[i])
	return append(append(out, order[:i]...), order[i+1:]...)
}

// belongs tells whether the client has a backend of its own.
func (l *leading) belongs() bool { return l != nil && l.wanted != nil }

// learned takes up the cookies that a server gives to a client, and adds ours to
// head, a whole response head, if the client needs one.
func (l *leading) learned(head []byte, fields []field, b *Backend) []byte {
	if l == nil {
		return head
	}
	if l.learn {
		for i := range fields {
			if f := &fields[i]; f.is("Set-Cookie") {
				pair, _, _ := bytes.Cut(f.value, []byte(";"))
				name, value, _ := bytes.Cut(pair, []byte("="))
				for _, known := range existingCookies {
					if value = bytes.TrimSpace(value); equalFold(bytes.TrimSpace(name), known) && len(value) > 0 {
						t := l.site.known().clients
						t.put(t.key(l.group, ByExistingCookie, value), b.known(l.site), affinitySession, false, time.Now())
					}
				}
			}
		}
	}
	if l.cookie {
		// No SameSite: OWA in a frame of another site would lose it.
		head = append(head[:len(head)-len(crlf)], "Set-Cookie: "...)
		head = append(append(head, l.site.cookieName()...), '=')
		head = append(head, l.site.cookieToken(b)...)
		head = append(head, "; Path=/; HttpOnly; Secure\r\n\r\n"...)
	}
	return head
}

// cookieName is the name of the cookie of ByCookie. Two sites under one host name
// have two.
func (s *Site) cookieName() string { return "autodgate-" + tokenOf(s.Name, 0) }

// cookieToken names a server of the site in a cookie: the same after a restart and
// on every node, and so short that it does not confirm a guess at the server's
// internal name.
func (s *Site) cookieToken(b *Backend) string {
	tokens := s.tokens.Load()
	if tokens == nil {
		tokens = s.cookieTokens()
		s.tokens.Store(tokens)
	}
	return (*tokens)[b]
}

// cookieTokens makes the tokens of all servers; of two that would have the same, the
// later one gets another.
func (s *Site) cookieTokens() *map[*Backend]string {
	tokens, taken := map[*Backend]string{}, map[string]bool{}
	for _, b := range s.Backends {
		for n := byte(0); tokens[b] == ""; n++ {
			if token := tokenOf(s.Name+" "+b.Address, n); !taken[token] {
				tokens[b], taken[token] = token, true
			}
		}
	}
	return &tokens
}

func tokenOf(text string, n byte) string {
	sum := sha256.Sum256(append([]byte(text), n))
	return hex.EncodeToString(sum[:2])
}

// requestCookie returns the value of a cookie of a request, nil if there is none.
func requestCookie(fields []field, name string) []byte {
	for i := range fields {
		if !fields[i].is("Cookie") {
			continue
		}
		for pair := range bytes.SplitSeq(fields[i].value, []byte(";")) {
			if n, v, ok := bytes.Cut(pair, []byte("=")); ok && equalFold(bytes.TrimSpace(n), name) {
				return bytes.TrimSpace(v)
			}
		}
	}
	return nil
}

// basicUser returns the user name of a Basic login, folded; nil if there is none.
// The password is not looked at.
func basicUser(fields []field) []byte {
	for i := range fields {
		f := &fields[i]
		if !f.is("Authorization") {
			continue
		}
		scheme, token := cutScheme(f.value)
		if !equalFold(scheme, "Basic") {
			return nil
		}
		user, _, ok := bytes.Cut(decodeToken(token), []byte(":"))
		if !ok || len(user) == 0 {
			return nil
		}
		return bytes.ToLower(user)
	}
	return nil
}

// sourceKey is what of a client's address counts: all of IPv4, and of IPv6 the
// network, within which clients change their addresses (RFC 8981).
func sourceKey(a netip.Addr) []byte {
	a = a.Unmap()
	if a.Is4() {
		return a.AsSlice()
	}
	p, _ := a.WithZone("").Prefix(64)
	return p.Addr().AsSlice()
}
