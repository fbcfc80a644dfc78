package tlsconf

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

const (
	sharedPoll     = time.Minute     // how often the nodes look whether they still show the same certificate
	sharedPatience = 3 * time.Second // every host with such a certificate waits at the start
)

// SharedSelfSigned is [SelfSigned] for several nodes: all show the same certificate, which lies in Redis until it is due.
// While Redis cannot be asked, a node shows the one it has, or one of its own.
type SharedSelfSigned struct {
	redis *Redis
	name  string // in Redis
	names []string
	o     SelfSignedOptions
	log   zerolog.Logger

	current atomic.Pointer[tls.Certificate]
	worker  worker
	failed  bool
}

var _ Source = (*SharedSelfSigned)(nil)

// NewSharedSelfSigned takes the certificate that the other nodes have, or makes one for all; for the rest see
// [NewSelfSigned]. o.Dir does not count. All nodes must have the same names, else each has the certificate for its own.
func NewSharedSelfSigned(r *Redis, shortName, fqdn string, extra []string, o SelfSignedOptions) (*SharedSelfSigned, error) {
	names, err := selfSignedNames(shortName, fqdn, extra)
	if err != nil {
		return nil, err
	}
	s := &SharedSelfSigned{redis: r, name: sharedSelfSignedName(names, o.keyType()), names: names, o: o, log: o.Log.With().Strs("names", names).Logger()}
	if err := s.look(); s.Leaf() == nil {
		return nil, err
	}
	s.worker.start(sharedPoll, func() { _ = s.look() })
	return s, nil
}

// sharedSelfSignedName is where the certificate for these names is.
func sharedSelfSignedName(names []string, key KeyType) string {
	sum := sha256.Sum256([]byte(strings.Join(names, " ") + " " + string(key)))
	return fmt.Sprintf("self-signed/%s/%x", names[min(1, len(names)-1)], sum[:8])
}

// StoredSelfSigned reads the certificate that the nodes show, with a key of the usual type. where says where it is; the
// error is fs.ErrNotExist if it is not there.
func StoredSelfSigned(ctx context.Context, r *Redis, shortName, fqdn string, extra []string) (pair *Pair, where string, err error) {
	names, err := selfSignedNames(shortName, fqdn, extra)
	if err != nil {
		return nil, "", err
	}
	name := sharedSelfSignedName(names, SelfSignedOptions{}.keyType())
	where = "key " + r.shared(name) + " in " + r.String()
	text, err := r.Agree(ctx, name, nil, 0)
	if err != nil {
		return nil, where, err
	}
	pair, err = readPair(text, text)
	return pair, where, err
}

// GetCertificate implements [Source].
func (s *SharedSelfSigned) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf implements [Source].
func (s *SharedSelfSigned) Leaf() *x509.Certificate {
	if cert := s.current.Load(); cert != nil {
		return cert.Leaf
	}
	return nil
}

// Close implements [Source].
func (s *SharedSelfSigned) Close() error {
	s.worker.stop()
	return nil
}

// look shows what the nodes have agreed on. The error is that of making a certificate; that Redis is away is logged.
func (s *SharedSelfSigned) look() error {
	agreed, mine, err := s.agree()
	if err != nil && !s.failed {
		s.log.Warn().Err(err).Msg("the self-signed certificate cannot be shared for now: other nodes may show another one")
	}
	s.failed = err != nil
	if agreed != nil {
		s.show(agreed)
		return nil
	}
	if mine == nil {
		if mine, err = s.own(); err != nil {
			return err
		}
	}
	s.show(mine)
	return nil
}

// agree asks for the certificate in Redis, and puts one there if there is none. mine is what was made or held for that.
func (s *SharedSelfSigned) agree() (agreed, mine *tls.Certificate, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.redis.patience(sharedPatience))
	defer cancel()
	text, err := s.redis.Agree(ctx, s.name, nil, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if mine, err = s.own(); err != nil {
			return nil, nil, err
		}
		keyPEM, bad := KeyPEM(mine.PrivateKey)
		if bad != nil {
			return nil, mine, bad
		}
		text, err = s.redis.Agree(ctx, s.name, append(CertificatesPEM(mine.Leaf), keyPEM...), time.Until(dueAt(mine.Leaf)))
	}
	if err != nil {
		return nil, mine, err
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, mine, fmt.Errorf("%s: key %s: %w", s.redis, s.redis.shared(s.name), err)
	}
	return &pair, mine, nil
}

// own is the certificate at hand, or a new one if it is due.
func (s *SharedSelfSigned) own() (*tls.Certificate, error) {
	if cert := s.current.Load(); cert != nil && time.Now().Before(dueAt(cert.Leaf)) {
		return cert, nil
	}
	der, key, err := signSelf(s.names, s.o, time.Now())
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func (s *SharedSelfSigned) show(cert *tls.Certificate) {
	if old := s.Leaf(); old == nil || !old.Equal(cert.Leaf) {
		s.current.Store(cert)
		s.log.Info().Time("not_after", cert.Leaf.NotAfter).Msg("new self-signed certificate")
	}
}
