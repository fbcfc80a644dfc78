package tlsconf

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// KeyType is the kind of key made for a self-signed certificate.
type KeyType string

// The kinds of keys.
const (
	RSA2048   KeyType = "rsa2048" // what Exchange makes, and what every client can use
	RSA3072   KeyType = "rsa3072"
	RSA4096   KeyType = "rsa4096"
	ECDSAP256 KeyType = "p256" // a cheaper handshake
)

const (
	selfSignedMonths = 12
	selfSignedCheck  = time.Hour // how often its age is looked at; more often if it lives for less than two days
)

// SelfSignedOptions are the settings of [NewSelfSigned].
type SelfSignedOptions struct {
	Dir      string         // where certificate and key are kept (0600, the directory 0700); "" is nowhere, a new one at each start
	Validity time.Duration  // 0 is 12 months
	Key      KeyType        // "" is RSA2048
	Log      zerolog.Logger // told of each new certificate
}

// SelfSigned is the default certificate of an Exchange server: common name the short name, subject alternative names the
// short name and the FQDN, for server authentication, 12 months. A new one is made before it expires (at the twelfth part
// of its life that is left: a month of a year).
type SelfSigned struct {
	names []string
	o     SelfSignedOptions
	log   zerolog.Logger

	current atomic.Pointer[tls.Certificate]
	worker  worker
}

var _ Source = (*SelfSigned)(nil)

// NewSelfSigned takes the certificate kept in o.Dir if it has these names and lasts, and makes one otherwise. extra are
// further names or IP addresses. The error is about the names. A certificate that cannot be kept in o.Dir is served all the
// same, and the log says so.
func NewSelfSigned(shortName, fqdn string, extra []string, o SelfSignedOptions) (*SelfSigned, error) {
	names, err := selfSignedNames(shortName, fqdn, extra)
	if err != nil {
		return nil, err
	}
	s := &SelfSigned{names: names, o: o, log: o.Log.With().Strs("names", names).Logger()}
	cert, err := s.stored()
	switch {
	case err == nil:
		s.current.Store(cert)
	default:
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn().Err(err).Msg("stored self-signed certificate not used")
		}
		if err = s.renew(); s.current.Load() == nil {
			return nil, err
		}
		if err != nil {
			s.log.Error().Err(err).Msg("self-signed certificate not kept: the next start makes another one, which clients trust no more than this one")
		}
	}
	leaf := s.Leaf()
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	s.worker.start(max(time.Second, min(selfSignedCheck, life/48)), s.check)
	return s, nil
}

// GetCertificate implements [Source].
func (s *SelfSigned) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf implements [Source].
func (s *SelfSigned) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// Close implements [Source].
func (s *SelfSigned) Close() error {
	s.worker.stop()
	return nil
}

// SelfSignedPEM makes the certificate of [NewSelfSigned] once and returns it and its key (PKCS #8) in PEM. Dir and Log of
// the options are not looked at.
func SelfSignedPEM(shortName, fqdn string, extra []string, o SelfSignedOptions) (certPEM, keyPEM []byte, err error) {
	names, err := selfSignedNames(shortName, fqdn, extra)
	if err != nil {
		return nil, nil, err
	}
	der, key, err := signSelf(names, o, time.Now())
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err = KeyPEM(key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM, err
}

// selfSignedNames are the SANs in order, without repetition; the first is the common name.
func selfSignedNames(shortName, fqdn string, extra []string) ([]string, error) {
	names, err := HostNames(append([]string{shortName, fqdn}, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("self-signed certificate: %w", err)
	}
	return names, nil
}

func (o SelfSignedOptions) keyType() KeyType {
	if o.Key == "" {
		return RSA2048
	}
	return o.Key
}

func newKey(kind KeyType) (crypto.Signer, error) {
	switch kind {
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	case ECDSAP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, fmt.Errorf("unknown key type %q, there are %s, %s, %s and %s", kind, RSA2048, RSA3072, RSA4096, ECDSAP256)
}

// MakeSelfSigned makes a self-signed certificate for names (see [HostNames]); the first is its common name.
func MakeSelfSigned(names []string, kind KeyType, notBefore, notAfter time.Time) (*Pair, error) {
	der, key, err := signSelf(names, SelfSignedOptions{Key: kind, Validity: notAfter.Sub(notBefore)}, notBefore)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Pair{Chain: []*x509.Certificate{leaf}, Key: key}, nil
}

// signSelf makes the certificate, in the shape of the one that Exchange set-up installs (SCENARIOS.md B1).
func signSelf(names []string, o SelfSignedOptions, now time.Time) (der []byte, key crypto.Signer, err error) {
	if key, err = newKey(o.keyType()); err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: names[0]},
		NotBefore:             now.Truncate(time.Second),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, // an end entity: it may not sign others where a user has made it trusted
	}
	if _, isRSA := key.(*rsa.PrivateKey); isRSA {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	template.NotAfter = template.NotBefore.AddDate(0, selfSignedMonths, 0)
	if o.Validity > 0 {
		template.NotAfter = template.NotBefore.Add(o.Validity)
	}
	template.DNSNames, template.IPAddresses = splitNames(names)
	der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("self-signed certificate for %s: %w", names[0], err)
	}
	return der, key, nil
}

// dueAt is when a certificate is replaced.
func dueAt(leaf *x509.Certificate) time.Time {
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 12)
}

// check renews the certificate when it is due.
func (s *SelfSigned) check() {
	if time.Now().Before(dueAt(s.Leaf())) {
		return
	}
	if err := s.renew(); err != nil {
		s.log.Error().Err(err).Time("not_after", s.Leaf().NotAfter).Msg("self-signed certificate not kept")
	}
}

// renew makes a certificate, shows it and stores it. One that could not be stored is shown all the same: the error is that
// of storing.
func (s *SelfSigned) renew() error {
	der, key, err := signSelf(s.names, s.o, time.Now())
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	cert := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
	if s.o.Dir != "" {
		err = s.store(leaf, key)
	}
	s.current.Store(cert)
	s.log.Info().Time("not_after", leaf.NotAfter).Msg("new self-signed certificate")
	return err
}

func (s *SelfSigned) path() string { return SelfSignedFile(s.o.Dir, s.names) }

// SelfSignedFile is the one file in which [NewSelfSigned] keeps certificate and key, so that there is no moment at which
// they do not match. names are the short name and the FQDN.
func SelfSignedFile(dir string, names []string) string {
	return filepath.Join(dir, "self-signed-"+strings.NewReplacer("*", "_", ":", "_").Replace(names[min(1, len(names)-1)])+".pem")
}

func (s *SelfSigned) store(leaf *x509.Certificate, key crypto.Signer) error {
	keyPEM, err := KeyPEM(key)
	if err == nil {
		err = os.MkdirAll(s.o.Dir, 0o700)
	}
	if err == nil {
		err = WriteFile(s.path(), append(CertificatesPEM(leaf), keyPEM...), 0o600, true)
	}
	if err != nil {
		return fmt.Errorf("store self-signed certificate: %w", err)
	}
	return nil
}

// stored returns the certificate kept in Dir. The error says why it is not used; fs.ErrNotExist is the usual one.
func (s *SelfSigned) stored() (*tls.Certificate, error) {
	if s.o.Dir == "" {
		return nil, fs.ErrNotExist
	}
	if _, err := os.Stat(s.path()); err != nil {
		return nil, err
	}
	cert, _, err := LoadFiles(s.path(), s.path(), nil)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(sanNames(cert.Leaf), sanOrder(s.names)) || cert.Leaf.Subject.CommonName != s.names[0] {
		return nil, fmt.Errorf("%s is for other names: %s", s.path(), strings.Join(sanNames(cert.Leaf), ", "))
	}
	_, isRSA := cert.PrivateKey.(*rsa.PrivateKey)
	if isRSA != (s.o.keyType() != ECDSAP256) {
		return nil, fmt.Errorf("%s has a key of another type", s.path())
	}
	if !time.Now().Before(dueAt(cert.Leaf)) {
		return nil, fmt.Errorf("%s is due for renewal, it expires on %s", s.path(), cert.Leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	return cert, nil
}

// sanOrder is names as sanNames returns them from a certificate: addresses last, in their usual spelling.
func sanOrder(names []string) []string {
	out, ips := splitNames(names)
	for _, ip := range ips {
		out = append(out, ip.String())
	}
	return out
}
