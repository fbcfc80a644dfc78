package tlsconf

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/transform"
	"software.sslmate.com/src/go-pkcs12"
)

// NewPFX is [NewFiles] for certificate, chain and key in one PKCS #12 file, as Export-ExchangeCertificate, Windows and
// OpenSSL write it, with the old ciphers (3DES, RC2) or with AES. passwordFile holds its password (see [ReadPassword]) and
// is watched as well; "" is the empty password.
func NewPFX(pfxFile, passwordFile string, o FilesOptions) (*Files, error) {
	paths := []string{pfxFile}
	if passwordFile != "" {
		paths = append(paths, passwordFile)
	}
	return newFiles(paths, func() (*tls.Certificate, []string, error) { return LoadPFX(pfxFile, passwordFile, o.Names) }, o)
}

// LoadPFX is [LoadFiles] for certificate, chain and key in one PKCS #12 file.
func LoadPFX(pfxFile, passwordFile string, names []string) (*tls.Certificate, []string, error) {
	password := ""
	if passwordFile != "" {
		var err error
		if password, err = ReadPassword(passwordFile); err != nil {
			return nil, nil, err
		}
	}
	pair, warnings, err := ReadPFX(pfxFile, password, nil)
	if err != nil {
		return nil, nil, err
	}
	return pair.TLS(), append(warnings, pair.Inspect(names, time.Now())...), nil
}

// ReadPFX reads a PKCS #12 file: the certificate that belongs to its key, with the issuers that are in the file or among
// extra. The error is one line that names the file, what is wrong, and what would be right.
func ReadPFX(path, password string, extra []*x509.Certificate) (*Pair, []string, error) {
	data, err := readFile("PFX", path)
	if err != nil {
		return nil, nil, err
	}
	certs, key, err := decodePFX(data, password)
	if err != nil {
		return nil, nil, fmt.Errorf("PFX %s: %w", path, err)
	}
	// A PFX has no order: what is in it besides is what Windows found in its store, and nothing to warn of.
	pair, _, err := NewPair(certs, extra, key, nil, time.Now())
	if err != nil {
		return nil, nil, fmt.Errorf("PFX %s: its key belongs to none of its certificates (%s)", path, displayNames(certs))
	}
	return pair, nil, nil
}

// IsPFX reports whether the file looks like a PKCS #12 file.
func IsPFX(path string) bool {
	data, err := readRegular(path)
	return err == nil && isPFX(data)
}

// isPFX looks at the outermost element: RFC 7292 section 4, version 3 and a ContentInfo.
func isPFX(data []byte) bool {
	var pfx struct {
		Version  int
		AuthSafe pkcs7
		MacData  asn1.RawValue `asn1:"optional"`
	}
	_, err := asn1.Unmarshal(data, &pfx)
	return err == nil && pfx.Version == 3
}

func decodePFX(data []byte, password string) (certs []*x509.Certificate, key crypto.Signer, err error) {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return nil, nil, errors.New("the file is empty")
	case bytes.Contains(data, []byte("-----BEGIN ")):
		return nil, nil, errors.New("it is PEM, not PKCS #12: give it as {cert: …, key: …}")
	case bytes.HasPrefix(data, []byte{asn1.TagSequence | 0x20, 0x80}): // a length that is not given
		return nil, nil, errBER
	case !isPFX(data):
		return nil, nil, errors.New("it is not a PFX (PKCS #12)")
	}
	if err := checkIterations(data, 0); err != nil {
		return nil, nil, err
	}
	anyKey, leaf, others, err := pkcs12.DecodeChain(data, password)
	if err != nil {
		return nil, nil, explainPFX(err, password)
	}
	switch k := anyKey.(type) {
	case *rsa.PrivateKey:
		key = k
	case *ecdsa.PrivateKey:
		key = k
	case ed25519.PrivateKey:
		key = k
	default:
		return nil, nil, fmt.Errorf("a key of type %T cannot sign a handshake; RSA or ECDSA is needed", anyKey)
	}
	return append([]*x509.Certificate{leaf}, others...), key, nil
}

var errBER = errors.New("it is written in an old form (BER); write it again: openssl pkcs12 -legacy -in OLD -nodes | openssl pkcs12 -export -out NEW")

// explainPFX says what the library means. It has two sentinels; the rest is told apart by its texts, and the tests say
// when they change.
func explainPFX(err error, password string) error {
	text := strings.TrimPrefix(err.Error(), "pkcs12: ")
	var missing pkcs12.NotImplementedError
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword), errors.Is(err, pkcs12.ErrDecryption):
		if password == "" {
			return errors.New("the password is wrong: it is not empty; name the file that holds it as password_file")
		}
		return errors.New("the password is wrong")
	case strings.Contains(text, "private key missing"):
		return errors.New("no private key in it: export it again with the key, which has to be marked exportable")
	case strings.Contains(text, "certificate missing"):
		return errors.New("no certificate in it, only a key: export them together")
	case strings.Contains(text, "exactly one key bag"):
		return errors.New("several keys in it, and nothing says which is meant: export the one certificate with its key")
	case strings.Contains(text, "no MAC in data"):
		return errors.New("it is not protected by a password, and one is given: leave password_file out")
	case strings.Contains(text, "indefinite length"):
		return errBER
	case errors.As(err, &missing):
		return fmt.Errorf("it is written in a way this program cannot read (%s); export it with a password and AES or 3DES", text)
	}
	return fmt.Errorf("it is broken: %s", text)
}

// maxIterations of the functions that make a key out of a password: minutes of work would block a reload. Windows uses
// 2000, OpenSSL 2048, Firefox 600 000.
const maxIterations = 2_000_000

// checkIterations refuses a file that wants more. In every structure with an iteration count (MacData, the parameters of
// RFC 7292 appendix C and of PBKDF2) it is an INTEGER right behind an OCTET STRING, the salt. What is inside of encrypted
// parts was written by somebody who knows the password.
func checkIterations(data []byte, depth int) error {
	salt := false
	for len(data) > 0 && depth < 24 {
		var v asn1.RawValue
		rest, err := asn1.Unmarshal(data, &v)
		if err != nil {
			return nil // not ASN.1 at all, but the bytes of some string
		}
		data = rest
		universal := v.Class == asn1.ClassUniversal
		if salt && universal && v.Tag == asn1.TagInteger {
			var n int64
			if _, err := asn1.Unmarshal(v.FullBytes, &n); err != nil || n > maxIterations || n < 0 {
				return fmt.Errorf("its password is to be hashed more than %d times: export it again with less", maxIterations)
			}
		}
		salt = universal && v.Tag == asn1.TagOctetString
		if v.IsCompound || salt {
			if err := checkIterations(v.Bytes, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// EncodePFX makes a PKCS #12 file of a key, its certificate (the first of chain) and the issuers behind it. It is
// encrypted with AES-256, which Windows reads since Server 2019 and Windows 10 1709; legacy is 3DES, which all of them
// read, Exchange 2010 on Server 2008 R2 as well.
func EncodePFX(key crypto.PrivateKey, chain []*x509.Certificate, password string, legacy bool) ([]byte, error) {
	// The 2048 rounds that are usual cost who guesses a password next to nothing.
	encoder := pkcs12.Modern2023.WithIterations(20_000)
	if legacy {
		encoder = pkcs12.LegacyDES
	}
	data, err := encoder.Encode(key, chain[0], chain[1:], password)
	if err != nil {
		return nil, fmt.Errorf("make PFX: %s", strings.TrimPrefix(err.Error(), "pkcs12: "))
	}
	return data, nil
}

// ReadPassword reads a password from a file: its one line, without the line end. Spaces count. The byte order marks of
// Windows' editors and PowerShell (UTF-8, UTF-16) are understood.
func ReadPassword(path string) (string, error) {
	data, err := readFile("password file", path)
	if err != nil {
		return "", err
	}
	text, _, err := transform.Bytes(unicode.BOMOverride(transform.Nop), data)
	password := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	switch {
	case err != nil || !utf8.ValidString(password) || strings.ContainsRune(password, 0):
		return "", fmt.Errorf("password file %s is not text in UTF-8", path)
	case strings.ContainsAny(password, "\r\n"):
		return "", fmt.Errorf("password file %s has several lines; it is to hold the password alone", path)
	}
	return password, nil
}

func displayNames(certs []*x509.Certificate) string {
	var names []string
	for _, c := range certs {
		names = append(names, displayName(c))
	}
	return strings.Join(names, ", ")
}
