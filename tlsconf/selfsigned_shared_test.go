package tlsconf

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
)

// Nodes on one Redis show one self-signed certificate, also those that start at the same moment; with Redis away each shows
// what it has or makes its own, and once it is back they agree again.
func TestSharedSelfSigned(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	start := func(extra []string, o SelfSignedOptions) *SharedSelfSigned {
		o.Key, o.Log = ECDSAP256, zerolog.Nop()
		s, err := NewSharedSelfSigned(node(t, StorageOptions{URL: server.URL(), Timeout: 2 * time.Second}), "mail", "mail.contoso.com", extra, o)
		if err != nil {
			t.Error(err)
			return nil
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	nodes := make([]*SharedSelfSigned, 4)
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() { nodes[i] = start(nil, SelfSignedOptions{}) })
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	same := func(what string, want *x509.Certificate, all ...*SharedSelfSigned) {
		t.Helper()
		for i, n := range all {
			// On a busy machine the answer may have come too late.
			for end := time.Now().Add(30 * time.Second); !n.Leaf().Equal(want) && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				_ = n.look()
			}
			if !n.Leaf().Equal(want) {
				t.Errorf("%s: node %d has another certificate", what, i)
			}
		}
	}
	first := func() *x509.Certificate {
		_ = nodes[0].look()
		return nodes[0].Leaf()
	}()
	same("at the same moment", first, nodes...)
	if !Covers(first, "mail.contoso.com") || first.Subject.CommonName != "mail" {
		t.Errorf("%s %q", first.Subject, first.DNSNames)
	}
	other := start([]string{"owa.contoso.com"}, SelfSignedOptions{})
	if !Covers(other.Leaf(), "owa.contoso.com") || other.Leaf().Equal(first) {
		t.Error("other names have the same certificate")
	}
	usual, err := NewSharedSelfSigned(nodes[0].redis, "www", "www.contoso.com", nil, SelfSignedOptions{Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer usual.Close()
	if pair, where, err := StoredSelfSigned(t.Context(), nodes[1].redis, "www", "www.contoso.com", nil); err != nil || !pair.Chain[0].Equal(usual.Leaf()) || !strings.Contains(where, "self-signed/www.contoso.com/") {
		t.Errorf("%v %s %v", pair, where, err)
	}
	if _, _, err := StoredSelfSigned(t.Context(), nodes[1].redis, "nobody", "nobody.contoso.com", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	server.Stop()
	for _, n := range nodes {
		if err := n.look(); err != nil {
			t.Error(err)
		}
	}
	same("Redis is gone", first, nodes...)
	alone := start(nil, SelfSignedOptions{})
	if alone.Leaf().Equal(first) {
		t.Error("where did it get that certificate from?")
	}
	server.Start()
	for _, n := range append(nodes, alone) {
		_ = n.look()
	}
	same("Redis is back, and empty", first, append(nodes, alone)...)

	// A certificate that is due is replaced by one for all.
	key := nodes[0].redis.shared(nodes[0].name)
	if ttl := nodes[0].redis.client.TTL(t.Context(), key).Val(); ttl < 300*24*time.Hour || ttl > time.Until(dueAt(first))+time.Minute {
		t.Errorf("it lies in Redis for %s", ttl)
	}
	short := SelfSignedOptions{Validity: 1200 * time.Millisecond}
	brief, again := start([]string{"short"}, short), start([]string{"short"}, short)
	old := brief.Leaf()
	for end := time.Now().Add(time.Minute); brief.Leaf().Equal(old) || !brief.Leaf().Equal(again.Leaf()); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never replaced by one for both")
		}
		_, _ = brief.look(), again.look()
	}
	if err := nodes[0].redis.client.Set(t.Context(), key, "rubbish", 0).Err(); err != nil {
		t.Fatal(err)
	}
	_ = nodes[0].look()
	same("rubbish in Redis", first, nodes[0])
}
