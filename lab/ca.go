package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/autodgate/autodgate/tlsconf"
)

// certificateAuthority is the company's own CA: one root, leaves right below it. It lives as long as the company.
type certificateAuthority struct {
	dir  string
	root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Life of the certificates. The lab is made anew at each start; a month is enough for one that is left running, an hour of
// backdating for a client whose clock is behind.
const (
	certificateLife     = 30 * 24 * time.Hour
	certificateBackdate = time.Hour
)

func newCertificateAuthority(dir string) (*certificateAuthority, error) {
	tmpl, err := certificateTemplate(pkix.Name{Organization: []string{"autodgate lab"}, CommonName: "autodgate lab root"})
	if err != nil {
		return nil, err
	}
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	root, key, err := sign(tmpl, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make root certificate: %w", err)
	}
	ca := &certificateAuthority{dir: dir, root: root, key: key}
	return ca, writePEM(ca.rootFile(), 0o644, "CERTIFICATE", root.Raw)
}

func (ca *certificateAuthority) rootFile() string { return filepath.Join(ca.dir, "ca.pem") }

func (ca *certificateAuthority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.root)
	return p
}

// issue writes NAME.pem and NAME.key for a certificate with the names given, the first as common name.
func (ca *certificateAuthority) issue(name string, dnsNames []string) (certFile, keyFile string, err error) {
	tmpl, err := certificateTemplate(pkix.Name{CommonName: dnsNames[0]})
	if err != nil {
		return "", "", err
	}
	tmpl.DNSNames = dnsNames
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	tmpl.BasicConstraintsValid = true
	leaf, key, err := sign(tmpl, ca.root, ca.key)
	if err != nil {
		return "", "", fmt.Errorf("issue certificate %s: %w", name, err)
	}
	certFile, keyFile = filepath.Join(ca.dir, name+".pem"), filepath.Join(ca.dir, name+".key")
	if err := writePEM(certFile, 0o644, "CERTIFICATE", leaf.Raw); err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", "", err
	}
	return certFile, keyFile, writePEM(keyFile, 0o600, "PRIVATE KEY", der)
}

// exchangeCertificate makes the certificate that Exchange set-up leaves on a server. P-256 instead of set-up's RSA saves the lab a
// second of waiting.
func exchangeCertificate(fqdn string) (tls.Certificate, error) {
	short, _, _ := strings.Cut(fqdn, ".")
	cert, key, err := tlsconf.SelfSignedPEM(short, fqdn, nil, tlsconf.SelfSignedOptions{Key: tlsconf.ECDSAP256})
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(cert, key)
}

func certificateTemplate(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-certificateBackdate),
		NotAfter:     now.Add(certificateLife),
	}, nil
}

// sign makes a P-256 key and the certificate for it; without a parent the certificate signs itself.
func sign(tmpl, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if parent == nil {
		parent, parentKey = tmpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), parentKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, key, err
}

func writePEM(file string, mode os.FileMode, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}

// fingerprint is the SHA-256 of a certificate in hex.
func fingerprint(raw []byte) string { return fmt.Sprintf("%x", sha256.Sum256(raw)) }
