package tlsconf

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/autodgate/autodgate/internal/peer"
)

// countingIssuer signs requests after a moment, and counts them.
type countingIssuer struct {
	ca     *issued
	orders *atomic.Int32
	enter  chan struct{} // nil: nobody wants to know
}

func (countingIssuer) IssuerKey() string { return "test" }

func (i countingIssuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	n := i.orders.Add(1)
	if i.enter != nil {
		close(i.enter)
		<-ctx.Done() // it never ends by itself
		return nil, ctx.Err()
	}
	time.Sleep(50 * time.Millisecond) // for the others to come, which is what makes the test worth something
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(int64(n)), Subject: pkix.Name{CommonName: csr.DNSNames[0]}, DNSNames: csr.DNSNames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
	}, i.ca.Certificate, csr.PublicKey, i.ca.key)
	if err != nil {
		return nil, err
	}
	return &certmagic.IssuedCertificate{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

// certmagicNode is certmagic as one node runs it.
func certmagicNode(t *testing.T, storage certmagic.Storage, issuer certmagic.Issuer) *certmagic.Config {
	var conf *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return conf, nil }, Logger: zap.NewNop(),
	})
	t.Cleanup(cache.Stop)
	conf = certmagic.New(cache, certmagic.Config{
		Storage: storage, Issuers: []certmagic.Issuer{issuer}, Logger: zap.NewNop(),
		KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256}, OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	return conf
}

// Nodes that need a certificate at the same moment order it once, and all of them serve that one.
func TestRedisOneOrder(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	const name = "mail.contoso.com"
	issuer := countingIssuer{ca: issue(t, "ca", nil, isCA), orders: new(atomic.Int32)}
	var nodes []*certmagic.Config
	for range 3 {
		nodes = append(nodes, certmagicNode(t, node(t, StorageOptions{URL: server.URL()}), issuer))
	}
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			if err := n.ManageSync(t.Context(), []string{name}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i, n := range nodes {
		cert, err := n.GetCertificate(hello(name))
		if err != nil || cert.Leaf.SerialNumber.Int64() != 1 {
			t.Errorf("node %d: %v %v", i, cert, err)
		}
	}
	if got := issuer.orders.Load(); got != 1 {
		t.Errorf("%d orders", got)
	}
}

// A node that dies in the middle of an order leaves its lock behind; another orders once the lock's life is over.
func TestRedisOrderOfDeadNode(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	const name, life = "mail.contoso.com", time.Second
	issuer := countingIssuer{ca: issue(t, "ca", nil, isCA), orders: new(atomic.Int32)}
	stuck := issuer
	stuck.enter = make(chan struct{})
	storage := node(t, StorageOptions{URL: server.URL(), LockLife: life})
	dead := certmagicNode(t, storage, stuck)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = dead.ManageSync(ctx, []string{name})
	}()
	<-stuck.enter
	// Its connections are gone, and so are its renewals and its unlocking.
	storage.cancel()
	storage.client.Close()
	defer func() {
		cancel()
		<-done
	}()
	if err := certmagicNode(t, node(t, StorageOptions{URL: server.URL(), LockLife: life}), issuer).ManageSync(t.Context(), []string{name}); err != nil {
		t.Fatal(err)
	}
	if got := issuer.orders.Load(); got != 2 {
		t.Errorf("%d orders", got)
	}
}

func hello(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13}, CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256},
		SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, SupportedCurves: []tls.CurveID{tls.CurveP256},
	}
}
