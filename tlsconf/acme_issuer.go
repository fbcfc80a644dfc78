package tlsconf

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

const (
	acmeHTTPTime = 30 * time.Second // for one request to an issuer
	acmePollTime = 2 * time.Minute  // for the issuer to validate, or to sign
)

// acmeIssuer is one issuer and our account there.
type acmeIssuer struct {
	key     string // what it is called in the storage
	email   string
	eab     *acme.EAB
	storage certmagic.Storage
	client  *acmez.Client

	mu      sync.Mutex
	account *acme.Account // once it is registered
}

func newACMEIssuer(i ACMEIssuer, o ACMEOptions, solvers map[string]acmez.Solver) (*acmeIssuer, error) {
	if i.Directory == "" {
		i.Directory = LetsEncrypt
	}
	u, err := url.Parse(i.Directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("ACME directory %q is not an https URL", i.Directory)
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, ResponseHeaderTimeout: acmeHTTPTime, TLSHandshakeTimeout: acmeHTTPTime,
		IdleConnTimeout: time.Minute, TLSClientConfig: &tls.Config{RootCAs: i.Roots, MinVersion: tls.VersionTLS12},
	}
	return &acmeIssuer{
		// As certmagic names its own, so that its tools find what is stored.
		key:   strings.Trim(u.Host+"-"+strings.ReplaceAll(strings.Trim(u.Path, "/"), "/", "-"), "-"),
		email: o.Email, eab: i.EAB, storage: o.Storage,
		client: &acmez.Client{
			Client: &acme.Client{
				Directory: i.Directory, UserAgent: "autodgate", HTTPClient: &http.Client{Transport: transport, Timeout: acmeHTTPTime}, PollTimeout: acmePollTime,
			},
			ChallengeSolvers: solvers,
		},
	}, nil
}

// storedAccount is an account as it is stored: one value, so that the key never belongs to another.
type storedAccount struct {
	acme.Account
	Key string `json:"key"` // PEM
}

// accountKey is where the account is kept. Another address or another binding is another account.
func (i *acmeIssuer) accountKey() string {
	name := "default"
	if i.email != "" {
		name = i.email
	}
	if i.eab != nil {
		name += "+" + i.eab.KeyID
	}
	return path.Join("acme", certmagic.StorageKeys.Safe(i.key), "accounts", certmagic.StorageKeys.Safe(name)+".json")
}

// registered returns our account, which is registered if there is none yet: once, also where several nodes begin together.
func (i *acmeIssuer) registered(ctx context.Context) (acme.Account, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.account != nil {
		return *i.account, nil
	}
	if account, err := i.loadAccount(ctx); err == nil {
		i.account = &account
		return account, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return acme.Account{}, err
	}
	lock := "acme_account_" + i.key
	if err := i.storage.Lock(ctx, lock); err != nil {
		return acme.Account{}, fmt.Errorf("lock for the account: %w", err)
	}
	defer func() { _ = i.storage.Unlock(context.WithoutCancel(ctx), lock) }()
	account, err := i.loadAccount(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		account, err = i.register(ctx)
	}
	if err != nil {
		return acme.Account{}, err
	}
	i.account = &account
	return account, nil
}

func (i *acmeIssuer) loadAccount(ctx context.Context) (acme.Account, error) {
	data, err := i.storage.Load(ctx, i.accountKey())
	if err != nil {
		return acme.Account{}, fmt.Errorf("load ACME account: %w", err)
	}
	var stored storedAccount
	if err := json.Unmarshal(data, &stored); err != nil {
		return acme.Account{}, fmt.Errorf("stored ACME account: %w", err)
	}
	key, err := parseKey([]byte(stored.Key))
	if err != nil {
		return acme.Account{}, fmt.Errorf("stored ACME account: %w", err)
	}
	stored.PrivateKey = key
	return stored.Account, nil
}

func (i *acmeIssuer) register(ctx context.Context) (acme.Account, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	account := acme.Account{PrivateKey: key, TermsOfServiceAgreed: true}
	if i.email != "" {
		account.Contact = []string{"mailto:" + i.email}
	}
	if i.eab != nil {
		if err := account.SetExternalAccountBinding(ctx, i.client.Client, *i.eab); err != nil {
			return acme.Account{}, fmt.Errorf("external account binding: %w", err)
		}
	}
	account, err = i.client.NewAccount(ctx, account)
	if err != nil {
		return acme.Account{}, fmt.Errorf("register ACME account: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return acme.Account{}, err
	}
	stored := storedAccount{Account: account, Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))}
	stored.ExternalAccountBinding = nil // of no use any more
	data, err := json.Marshal(stored)
	if err != nil {
		return acme.Account{}, err
	}
	if err := i.storage.Store(ctx, i.accountKey(), data); err != nil {
		return acme.Account{}, fmt.Errorf("store ACME account: %w", err)
	}
	return account, nil
}

// forget drops an account that the issuer does not know any more, as after its reinstallation.
func (i *acmeIssuer) forget(ctx context.Context, account acme.Account) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.account == nil || i.account.Location != account.Location {
		return nil // another has come first
	}
	i.account = nil
	return i.storage.Delete(ctx, i.accountKey())
}

// obtain orders a certificate. replaced is the one that it follows, if this issuer gave that.
func (i *acmeIssuer) obtain(ctx context.Context, csr *x509.CertificateRequest, replaced *x509.Certificate) ([]acme.Certificate, error) {
	for again := false; ; again = true {
		account, err := i.registered(ctx)
		if err != nil {
			return nil, err
		}
		params, err := acmez.OrderParametersFromCSR(account, csr)
		if err != nil {
			return nil, err
		}
		params.Replaces = replaced
		chains, err := i.client.ObtainCertificate(ctx, params)
		var problem acme.Problem
		if again || !errors.As(err, &problem) {
			return chains, err
		}
		switch {
		case problem.Type == acme.ProblemTypeAccountDoesNotExist:
			if err := i.forget(ctx, account); err != nil {
				return nil, fmt.Errorf("drop an ACME account that is gone: %w", err)
			}
		case replaced != nil && (problem.Type == acme.ProblemTypeMalformed || problem.Status == http.StatusNotFound || problem.Status == http.StatusConflict):
			// RFC 9773 section 5: the issuer may refuse what it does not know as replaceable.
			replaced = nil
		default:
			return nil, err
		}
	}
}

// hostIssuer is an issuer as certmagic asks it for the certificate of a host.
type hostIssuer struct {
	*acmeIssuer
	h *acmeHost
}

var (
	_ certmagic.Issuer            = (*hostIssuer)(nil)
	_ certmagic.RenewalInfoGetter = (*hostIssuer)(nil)
	_ certmagic.KeyGenerator      = (*acmeHost)(nil)
)

// IssuerKey implements [certmagic.Issuer].
func (i *hostIssuer) IssuerKey() string { return i.key }

// Issue implements [certmagic.Issuer]: it orders a certificate with all names of the host.
func (i *hostIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	csr, err := i.h.request(csr)
	if err != nil {
		return nil, err
	}
	chains, err := i.obtain(ctx, csr, i.stored(ctx))
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the issuer gave no certificate")
	}
	chain := chains[0]
	certs, err := parseCertificates(chain.ChainPEM)
	if err != nil {
		return nil, fmt.Errorf("what the issuer gave: %w", err)
	}
	if leaf := certs[0]; !i.h.covers(leaf) || !sameKey(leaf, csr.PublicKey) {
		return nil, fmt.Errorf("the issuer gave a certificate for something else: %s", strings.Join(sanNames(leaf), ", "))
	}
	i.h.log.Info().Str("issuer", i.key).Strs("names", sanNames(certs[0])).Time("not_after", certs[0].NotAfter).Msg("certificate issued")
	return &certmagic.IssuedCertificate{Certificate: chain.ChainPEM, Metadata: chain}, nil
}

func sameKey(c *x509.Certificate, key crypto.PublicKey) bool {
	pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key)
}

// stored is the host's certificate from this issuer that is there already; nil if there is none that is still valid.
func (i *hostIssuer) stored(ctx context.Context) *x509.Certificate {
	data, err := i.storage.Load(ctx, certmagic.StorageKeys.SiteCert(i.key, i.h.names[0]))
	if err != nil {
		return nil
	}
	certs, err := parseCertificates(data)
	if err != nil || time.Now().After(certs[0].NotAfter) || len(certs[0].AuthorityKeyId) == 0 {
		return nil
	}
	return certs[0]
}

// GetRenewalInfo implements [certmagic.RenewalInfoGetter]: when the issuer would like to be asked again (RFC 9773).
func (i *hostIssuer) GetRenewalInfo(ctx context.Context, cert certmagic.Certificate) (acme.RenewalInfo, error) {
	return i.client.GetRenewalInfo(ctx, cert.Leaf)
}

// oneCertificate is a storage in which all names of a host lead to the certificate of the first. certmagic looks for a
// certificate under the first name in it, and which that is, is up to the issuer.
type oneCertificate struct {
	certmagic.Storage
	names []string
}

// key is the key under which something is really kept.
func (s oneCertificate) key(key string) string {
	for _, alias := range s.names[1:] {
		safe := certmagic.StorageKeys.Safe(alias)
		if dir, file := path.Split(key); strings.HasPrefix(key, "certificates/") && path.Base(dir) == safe && strings.HasPrefix(file, safe+".") {
			own := certmagic.StorageKeys.Safe(s.names[0])
			return path.Join(path.Dir(path.Clean(dir)), own, own+strings.TrimPrefix(file, safe))
		}
	}
	return key
}

func (s oneCertificate) Store(ctx context.Context, key string, value []byte) error {
	return s.Storage.Store(ctx, s.key(key), value)
}

func (s oneCertificate) Load(ctx context.Context, key string) ([]byte, error) {
	return s.Storage.Load(ctx, s.key(key))
}

func (s oneCertificate) Delete(ctx context.Context, key string) error {
	return s.Storage.Delete(ctx, s.key(key))
}

func (s oneCertificate) Exists(ctx context.Context, key string) bool {
	return s.Storage.Exists(ctx, s.key(key))
}

func (s oneCertificate) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	return s.Storage.Stat(ctx, s.key(key))
}

// TryLock implements [certmagic.TryLocker] where the storage does.
func (s oneCertificate) TryLock(ctx context.Context, name string) (bool, error) {
	if l, ok := s.Storage.(certmagic.TryLocker); ok {
		return l.TryLock(ctx, name)
	}
	err := s.Lock(ctx, name)
	return err == nil, err
}

// RenewLockLease implements [certmagic.LockLeaseRenewer] where the storage does.
func (s oneCertificate) RenewLockLease(ctx context.Context, name string, lease time.Duration) error {
	if l, ok := s.Storage.(certmagic.LockLeaseRenewer); ok {
		return l.RenewLockLease(ctx, name, lease)
	}
	return nil
}
