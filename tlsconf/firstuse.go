package tlsconf

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// FirstUse is trust by first use in one backend: the key that it shows first is remembered, in a file or for all nodes in
// Redis, and no other is accepted after that, also not by the next process. Whoever removes what is remembered begins anew.
// It is safe for several connections, and for several processes with one storage.
type FirstUse struct {
	store   pinStore
	address string
	log     zerolog.Logger
}

// pinStore is where the key of one server is remembered.
type pinStore interface {
	// load returns what is remembered; the error is fs.ErrNotExist if nothing is. With again set it does not go by memory.
	load(again bool) ([]byte, error)
	// remember stores text, whole or not at all, and only if there is nothing yet: fs.ErrExist otherwise.
	remember(text []byte) error
	// String names the place, for people.
	String() string
}

// NewFirstUse says where the key of a site's server (host:port) is remembered: in a file of its own in dir, which is made
// when there is something to remember. Nothing is opened yet. The log is told of the key when it is.
func NewFirstUse(dir, site, address string, log zerolog.Logger) *FirstUse {
	return newFirstUse(pinFile{filepath.Join(dir, pinName(site, address))}, site, address, log)
}

// NewSharedFirstUse is [NewFirstUse] with Redis for all nodes: what the first of them saw counts for all.
func NewSharedFirstUse(r *Redis, site, address string, log zerolog.Logger) *FirstUse {
	return newFirstUse(&sharedPin{redis: r, name: "first-use/" + pinName(site, address)}, site, address, log)
}

func newFirstUse(store pinStore, site, address string, log zerolog.Logger) *FirstUse {
	return &FirstUse{store: store, address: address, log: log.With().Str("site", site).Str("backend", address).Logger()}
}

// Place is where the key is remembered, for people: a file or a key in Redis.
func (f *FirstUse) Place() string { return f.store.String() }

// Known reports whether a key is remembered. The error is about the place where it would be.
func (f *FirstUse) Known() (bool, error) {
	_, err := f.store.load(true)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// pinName names the pins of one server of one site. Names that differ have pins that differ, whatever is in them.
func pinName(site, address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, ""
	}
	return fileName(site) + "@" + fileName(host) + "_" + fileName(port) + ".pin"
}

// fileName escapes what has no place in the name of a file, and what separates names there.
func fileName(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// check accepts the key that is remembered, or remembers this one. A key that is not the one remembered makes the place be
// looked at again, so that removing it takes effect without a restart.
func (f *FirstUse) check(cs tls.ConnectionState) error {
	leaf, err := leafOf(cs)
	if err != nil {
		return err
	}
	var pins []Pin
	for again := false; ; again = true {
		if pins, err = f.read(again); err == nil && slices.ContainsFunc(pins, func(p Pin) bool { return p.matches(leaf) }) {
			return nil
		}
		if again {
			break
		}
	}
	for range 3 {
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err = f.remember(leaf); err == nil {
			f.log.Warn().Str("pin", KeyPin(leaf).String()).Str("subject", displayName(leaf)).Stringer("place", f.store).
				Msg("first use: the server's key is remembered, and trusted from now on")
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("trust by first use: the server's key is not accepted, since it cannot be remembered: %w", err)
		}
		// Another connection, another process or another node came first: what that one saw counts.
		if pins, err = f.read(true); err == nil && slices.ContainsFunc(pins, func(p Pin) bool { return p.matches(leaf) }) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("trust by first use: %w", err)
	}
	return fmt.Errorf("the server's key is not the one of the first use: it is %s, of %q, and %s says %s (if the server has been given a new key, "+
		"remove what is remembered; if not, somebody stands in between)", KeyPin(leaf), displayName(leaf), f.store, pins[0])
}

// read returns the pins remembered. There is more than one where somebody wrote the next key there beforehand. The error is
// fs.ErrNotExist if there is nothing; an empty file is not that.
func (f *FirstUse) read(again bool) ([]Pin, error) {
	data, err := f.store.load(again)
	if err != nil {
		return nil, err
	}
	var pins []Pin
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		p, err := ParsePin(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.store, err)
		}
		pins = append(pins, p)
	}
	if len(pins) == 0 {
		return nil, fmt.Errorf("%s holds no pin; remove it to begin anew", f.store)
	}
	return pins, nil
}

func (f *FirstUse) remember(leaf *x509.Certificate) error {
	return f.store.remember(fmt.Appendf(nil, "# The key that %s showed at its first use, %s, in the certificate\n# of %q. No other key is accepted. Remove this when the server has been given a new key.\n%s\n",
		f.address, time.Now().UTC().Format(time.RFC3339), displayName(leaf), KeyPin(leaf)))
}

// pinFile is a file for the pins of one server. It is read for every connection.
type pinFile struct{ name string }

func (p pinFile) String() string { return p.name }

func (p pinFile) load(bool) ([]byte, error) { return os.ReadFile(p.name) }

func (p pinFile) remember(text []byte) error {
	dir := filepath.Dir(p.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".pin-*") // made with 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(text); err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	// A link, since a rename would replace what another has just remembered.
	return os.Link(tmp.Name(), p.name)
}

// sharedPin is a value in Redis for the pins of one server. Every connection to a backend asks for it, so the answer is
// good for a while, and for as long as Redis is away: what was trusted is no less so without Redis.
type sharedPin struct {
	redis *Redis
	name  string

	mu   sync.Mutex
	text []byte    // nil: not known
	down error     // why Redis could not be asked the last time
	next time.Time // when Redis is asked again
}

const (
	pinFresh    = 10 * time.Second
	pinAgain    = time.Second     // after a failure
	pinPatience = 2 * time.Second // a handshake is waiting
)

func (p *sharedPin) String() string {
	return "key " + p.redis.shared(p.name) + " in " + p.redis.String()
}

func (p *sharedPin) load(again bool) ([]byte, error) {
	p.mu.Lock()
	text, down := p.text, p.down
	fresh := time.Now().Before(p.next) && (down != nil || text != nil && !again)
	if !fresh {
		p.next = time.Now().Add(pinFresh) // others do not wait for the answer to this one
	}
	p.mu.Unlock()
	if !fresh {
		ctx, cancel := context.WithTimeout(context.Background(), p.redis.patience(pinPatience))
		defer cancel()
		latest, err := p.redis.Agree(ctx, p.name, nil, 0)
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist):
			text, down = latest, nil
		default:
			down = err
		}
		p.mu.Lock()
		p.text, p.down = text, down
		if down != nil {
			p.next = time.Now().Add(pinAgain)
		}
		p.mu.Unlock()
	}
	switch {
	case text != nil:
		return text, nil
	case down != nil:
		return nil, down
	}
	return nil, fs.ErrNotExist
}

func (p *sharedPin) remember(text []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), pinPatience)
	defer cancel()
	agreed, err := p.redis.Agree(ctx, p.name, text, 0)
	if err == nil && !bytes.Equal(agreed, text) {
		return fs.ErrExist
	}
	return err
}
