package tlsconf

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
)

// maxFile is far more than any certificate file holds.
const maxFile = 4 << 20

// ReadCertificates reads what a CA sends: certificates in PEM or DER (.pem, .crt, .cer), or a PKCS #7 bundle of them in
// either form (.p7b, .p7c). The error is one line that names the file, what is wrong, and what would be right.
func ReadCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readFile("certificate", path)
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", path, err)
	}
	return certs, nil
}

// ReadKey reads a private key in PEM. The error is one line that names the file, what is wrong, and what would be right.
func ReadKey(path string) (crypto.Signer, error) {
	data, err := readFile("key", path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", path, err)
	}
	return key, nil
}

// ParseCertificates is [ReadCertificates] for what has been read.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	if len(data) > 0 && data[0] == asn1.TagSequence|0x20 {
		return parseDER(data)
	}
	var certs []*x509.Certificate
	request := false
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("certificate %d in the file is broken: %w", len(certs)+1, err)
			}
			certs = append(certs, c)
		case "PKCS7", "CMS", "PKCS #7 SIGNED DATA":
			more, err := parsePKCS7(block.Bytes)
			if err != nil {
				return nil, err
			}
			certs = append(certs, more...)
		case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
			request = true
		}
	}
	switch {
	case len(certs) > 0:
		return certs, nil
	case request:
		return nil, errors.New("it is a request, not the CA's answer to it")
	}
	return nil, fmt.Errorf("no certificate in it%s", notPEM(data))
}

// parseDER tells a certificate from a PKCS #7 bundle.
func parseDER(data []byte) ([]*x509.Certificate, error) {
	if isPKCS7(data) {
		return parsePKCS7(data)
	}
	certs, err := x509.ParseCertificates(data)
	if err == nil && len(certs) > 0 {
		return certs, nil
	}
	if isPFX(data) {
		return nil, errors.New("it is a PFX (PKCS #12), which takes a password")
	}
	if _, requestErr := x509.ParseCertificateRequest(data); requestErr == nil {
		return nil, errors.New("it is a request, not the CA's answer to it")
	}
	return nil, errors.New("it is neither a certificate nor a PKCS #7 bundle")
}

// pkcs7 is a ContentInfo of RFC 5652 section 3 whose content is SignedData (section 5.1).
type pkcs7 struct {
	ContentType asn1.ObjectIdentifier
	Content     asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

func isPKCS7(data []byte) bool {
	var info pkcs7
	_, err := asn1.Unmarshal(data, &info)
	return err == nil && info.ContentType.Equal(oidSignedData)
}

// parsePKCS7 takes the certificates out of a SignedData that signs nothing, which is how CAs and Windows hand out chains
// (.p7b). Nothing is verified: as in a PEM file, certificates speak for themselves.
func parsePKCS7(data []byte) ([]*x509.Certificate, error) {
	var info pkcs7
	if _, err := asn1.Unmarshal(data, &info); err != nil {
		return nil, fmt.Errorf("the PKCS #7 bundle is broken: %w", err)
	}
	if !info.ContentType.Equal(oidSignedData) {
		return nil, errors.New("the PKCS #7 file is no bundle of certificates")
	}
	var signed struct {
		Version          int
		DigestAlgorithms asn1.RawValue
		ContentInfo      asn1.RawValue
		Certificates     asn1.RawValue `asn1:"optional,tag:0"`
		CRLs             asn1.RawValue `asn1:"optional,tag:1"`
		SignerInfos      asn1.RawValue
	}
	if _, err := asn1.Unmarshal(info.Content.Bytes, &signed); err != nil {
		return nil, fmt.Errorf("the PKCS #7 bundle is broken: %w", err)
	}
	certs, err := x509.ParseCertificates(signed.Certificates.Bytes)
	if err != nil {
		return nil, fmt.Errorf("a certificate of the PKCS #7 bundle is broken: %w", err)
	}
	if len(certs) == 0 {
		return nil, errors.New("the PKCS #7 bundle holds no certificate")
	}
	return certs, nil
}

func readFile(what, path string) ([]byte, error) {
	b, err := readRegular(path)
	if err != nil {
		return nil, fmt.Errorf("%s %s %w", what, path, err)
	}
	return b, nil
}

// readRegular reads a file of at most maxFile bytes. The error goes on after the file's name.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", bare(err))
	case info.IsDir():
		return nil, errors.New("is a directory, a file is needed")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", bare(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", bare(err))
	case len(b) > maxFile:
		return nil, fmt.Errorf("is larger than %d MB, which no certificate or key is", maxFile>>20)
	}
	return b, nil
}

// notPEM is a hint at what a file is that holds no PEM.
func notPEM(data []byte) string {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return ", the file is empty"
	case data[0] == asn1.TagSequence|0x20:
		return ", it looks like DER or PFX"
	}
	return ""
}
