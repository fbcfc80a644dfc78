package tlsconf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// challengeTime is how long the storage may take while somebody waits for an answer to a validation.
const challengeTime = 5 * time.Second

// challenges are those under way by HTTP-01 and TLS-ALPN-01. Since the issuer may come to any node, they are in the storage
// too.
type challenges struct {
	storage certmagic.Storage

	mu     sync.Mutex
	active map[string]acme.Challenge // by key
}

var _ acmez.Solver = (*challenges)(nil)

func challengeKey(kind, name string) string {
	return path.Join("acme", "challenges", kind, certmagic.StorageKeys.Safe(name)+".json")
}

// Present implements [acmez.Solver].
func (c *challenges) Present(ctx context.Context, ch acme.Challenge) error {
	key := challengeKey(ch.Type, acmeName(ch.Identifier.Value))
	c.mu.Lock()
	c.active[key] = ch
	c.mu.Unlock()
	data, err := json.Marshal(ch)
	if err == nil {
		err = c.storage.Store(ctx, key, data)
	}
	if err != nil {
		return fmt.Errorf("store the challenge: %w", err)
	}
	return nil
}

// CleanUp implements [acmez.Solver].
func (c *challenges) CleanUp(ctx context.Context, ch acme.Challenge) error {
	key := challengeKey(ch.Type, acmeName(ch.Identifier.Value))
	c.mu.Lock()
	delete(c.active, key)
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), challengeTime)
	defer cancel()
	return c.storage.Delete(ctx, key)
}

// find returns the challenge for a name, whichever node has asked for it.
func (c *challenges) find(ctx context.Context, kind, name string) (acme.Challenge, error) {
	key := challengeKey(kind, name)
	c.mu.Lock()
	ch, ok := c.active[key]
	c.mu.Unlock()
	if ok {
		return ch, nil
	}
	ctx, cancel := context.WithTimeout(ctx, challengeTime)
	defer cancel()
	data, err := c.storage.Load(ctx, key)
	if err == nil {
		err = json.Unmarshal(data, &ch)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return ch, fmt.Errorf("no %s validation of %s is under way", kind, name)
	}
	return ch, err
}

// ServeHTTP answers validations by HTTP-01 (RFC 8555 section 8.3) of the hosts' names; everything else is 404.
func (a *ACME) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := requestHost(r)
	if !slices.Contains(a.o.Challenges, acme.ChallengeTypeHTTP01) || !a.Serves(name) {
		http.NotFound(w, r)
		return
	}
	ch, err := a.challenges.find(r.Context(), acme.ChallengeTypeHTTP01, name)
	if err != nil || r.URL.Path != ch.HTTP01ResourcePath() {
		// The token is one-way: what was asked for is not repeated.
		a.log.Info().Err(err).Str("name", name).Str("challenge", acme.ChallengeTypeHTTP01).Msg("validation not answered: it is not of an order of ours")
		http.NotFound(w, r)
		return
	}
	a.log.Info().Str("name", name).Str("challenge", ch.Type).Msg("validation answered")
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write([]byte(ch.KeyAuthorization))
}

// requestHost is the name that a request is for, without the port.
func requestHost(r *http.Request) string {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	return acmeName(strings.Trim(host, "[]"))
}
