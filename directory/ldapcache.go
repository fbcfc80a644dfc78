package directory

import (
	"container/list"
	"sync"
	"time"
)

// ldapCache keeps what servers said, for some time and not more than some of it.
// That there is none is kept apart: whoever asks for names that do not exist must
// not push out those that do.
type ldapCache struct {
	age        time.Duration
	now        func() time.Time
	mu         sync.Mutex // guards what follows
	hits, none lru
}

func newLDAPCache(age time.Duration, entries int) *ldapCache {
	return &ldapCache{age: age, now: time.Now, hits: newLRU(entries), none: newLRU(entries)}
}

// get returns what is known, and whether something is: none at all is an answer.
func (c *ldapCache) get(key string) ([]*ldapEntry, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found, ok := c.hits.get(key, c.now()); ok {
		return found, true
	}
	return c.none.get(key, c.now())
}

func (c *ldapCache) put(key string, found []*ldapEntry) {
	if c.age <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	into, other := &c.hits, &c.none
	if len(found) == 0 {
		into, other = other, into
	}
	other.drop(key)
	into.put(key, found, c.now().Add(c.age))
}

// lru is a table of bounded size; what was not used for longest goes first.
type lru struct {
	limit int
	byKey map[string]*list.Element
	order *list.List // of *remembered, the latest first
}

type remembered struct {
	key   string
	found []*ldapEntry
	until time.Time
}

func newLRU(limit int) lru {
	return lru{limit: limit, byKey: map[string]*list.Element{}, order: list.New()}
}

func (l *lru) get(key string, now time.Time) ([]*ldapEntry, bool) {
	e := l.byKey[key]
	if e == nil {
		return nil, false
	}
	r := e.Value.(*remembered)
	if !now.Before(r.until) {
		l.drop(key)
		return nil, false
	}
	l.order.MoveToFront(e)
	return r.found, true
}

func (l *lru) put(key string, found []*ldapEntry, until time.Time) {
	l.drop(key)
	if l.limit <= 0 {
		return
	}
	for len(l.byKey) >= l.limit {
		l.drop(l.order.Back().Value.(*remembered).key)
	}
	l.byKey[key] = l.order.PushFront(&remembered{key, found, until})
}

func (l *lru) drop(key string) {
	if e := l.byKey[key]; e != nil {
		l.order.Remove(e)
		delete(l.byKey, key)
	}
}
