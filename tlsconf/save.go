package tlsconf

import (
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// CertificatesPEM returns certificates as PEM, in their order.
func CertificatesPEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// KeyPEM returns a private key as PEM (PKCS #8, RFC 5958), not encrypted.
func KeyPEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Thumbprint is the SHA-1 of a certificate in the spelling of Windows and Get-ExchangeCertificate: 40 upper-case digits.
func Thumbprint(c *x509.Certificate) string { return fmt.Sprintf("%X", sha1.Sum(c.Raw)) }

// Fingerprint is the SHA-256 of a certificate, in the same spelling.
func Fingerprint(c *x509.Certificate) string { return fmt.Sprintf("%X", sha256.Sum256(c.Raw)) }

// WriteFile writes a file whole or not at all: a reader sees the old one, the new one, or, where there was none, nothing.
// Without replace a file that is there is left alone, and the error is [fs.ErrExist]; with it the owner of the old one stays
// that of the new one, where that is possible: the front door may run as another user than who renews its certificates.
func WriteFile(path string, data []byte, mode fs.FileMode, replace bool) (err error) {
	// Made with 0600, in the same directory, which a rename needs.
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, bare(err))
	}
	defer func() {
		_ = os.Remove(tmp.Name()) // still there after a link and after an error
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, bare(err))
		}
	}()
	_, err = tmp.Write(data)
	if err == nil && mode != 0o600 {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if replace {
		if old, err := os.Stat(path); err == nil {
			keepOwner(tmp.Name(), old)
		}
		return os.Rename(tmp.Name(), path)
	}
	// A link, other than a rename, fails where there is a file. Some file systems have none; there a moment is left
	// between looking and renaming.
	if err = os.Link(tmp.Name(), path); err == nil || errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err = os.Lstat(path); err == nil {
		return fs.ErrExist
	}
	return os.Rename(tmp.Name(), path)
}

// bare is an error without the name of a temporary file.
func bare(err error) error {
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	switch {
	case errors.As(err, &pathErr):
		return pathErr.Err
	case errors.As(err, &linkErr):
		return linkErr.Err
	}
	return err
}
