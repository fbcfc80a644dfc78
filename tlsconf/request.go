package tlsconf

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// HostNames puts names for a certificate into the form it carries them in: lower case, internationalised ones as
// A-labels, without a trailing dot, none twice. A wildcard may be the whole first label; IP addresses are names too. The
// error says which name is none.
func HostNames(names ...string) ([]string, error) {
	var out []string
	for _, given := range names {
		n := strings.ToLower(strings.TrimSuffix(given, "."))
		if ip := net.ParseIP(n); ip != nil {
			n = ip.String()
		} else {
			rest, wild := strings.CutPrefix(n, "*.")
			ascii, err := idna.Lookup.ToASCII(rest)
			switch {
			case strings.Contains(n, "://"):
				return nil, fmt.Errorf("%q is not a host name: it is given alone, without %s and path", given, n[:strings.Index(n, "://")+3])
			case err != nil || rest == "" || len(ascii) > 253 || strings.ContainsAny(ascii, "/\\@:*\x00 \t\r\n") || strings.HasPrefix(ascii, ".") || strings.Contains(ascii, ".."):
				return nil, fmt.Errorf("%q is not a host name", given)
			case wild && !strings.Contains(rest, "."):
				return nil, fmt.Errorf("%q is not a host name a certificate may carry: a wildcard stands below a domain, as in *.contoso.com", given)
			}
			if n = ascii; wild {
				n = "*." + ascii
			}
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

// NewRequest makes a key and a request for a certificate (PKCS #10, RFC 2986) with names as its subject alternative names
// (see [HostNames]). The subject's common name, if empty, is the first of them.
func NewRequest(names []string, subject pkix.Name, kind KeyType) (requestPEM []byte, key crypto.Signer, err error) {
	if len(names) == 0 {
		return nil, nil, errors.New("no name")
	}
	if subject.CommonName == "" {
		subject.CommonName = names[0]
	}
	if key, err = newKey(kind); err != nil {
		return nil, nil, err
	}
	template := &x509.CertificateRequest{Subject: subject}
	template.DNSNames, template.IPAddresses = splitNames(names)
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("request for %s: %w", names[0], err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key, nil
}

// splitNames tells DNS names from IP addresses.
func splitNames(names []string) (dns []string, ips []net.IP) {
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, n)
		}
	}
	return dns, ips
}

// ParseSubject reads a subject as New-ExchangeCertificate -SubjectName takes it: C=US, O="Contoso, Ltd.", CN=mail.contoso.com.
// A comma in a value is quoted, or has a backslash before it (RFC 4514).
func ParseSubject(text string) (pkix.Name, error) {
	var subject pkix.Name
	set := map[string]func(string){
		"C":      func(v string) { subject.Country = append(subject.Country, strings.ToUpper(v)) },
		"ST":     func(v string) { subject.Province = append(subject.Province, v) },
		"S":      func(v string) { subject.Province = append(subject.Province, v) }, // Windows
		"L":      func(v string) { subject.Locality = append(subject.Locality, v) },
		"STREET": func(v string) { subject.StreetAddress = append(subject.StreetAddress, v) },
		"O":      func(v string) { subject.Organization = append(subject.Organization, v) },
		"OU":     func(v string) { subject.OrganizationalUnit = append(subject.OrganizationalUnit, v) },
		"CN":     func(v string) { subject.CommonName = v },
	}
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		key, rest, ok := strings.Cut(text, "=")
		put := set[strings.ToUpper(strings.TrimSpace(key))]
		if !ok || put == nil {
			return subject, fmt.Errorf("%q is no part of a subject: there are C, ST, L, STREET, O, OU and CN, as in C=US, O=Contoso", strings.TrimSpace(key))
		}
		value, rest, err := subjectValue(strings.TrimLeft(rest, " "))
		if err != nil {
			return subject, fmt.Errorf("%s=%w", strings.TrimSpace(key), err)
		}
		put(value)
		text = rest
	}
	for _, c := range subject.Country {
		if len(c) != 2 {
			return subject, fmt.Errorf("the country %s is no code of two letters, as in C=US", c)
		}
	}
	return subject, nil
}

// subjectValue takes a value off the front of text, and the comma behind it.
func subjectValue(text string) (value, rest string, err error) {
	if quoted, ok := strings.CutPrefix(text, `"`); ok {
		value, rest, ok = strings.Cut(quoted, `"`)
		rest = strings.TrimSpace(rest)
		if !ok || rest != "" && rest[0] != ',' {
			return "", "", fmt.Errorf("%s: a quotation mark is missing", text)
		}
		rest = strings.TrimPrefix(rest, ",")
	} else {
		var b strings.Builder
		i := 0
		for ; i < len(text) && text[i] != ','; i++ {
			if text[i] == '\\' && i+1 < len(text) {
				i++
			}
			b.WriteByte(text[i])
		}
		value, rest = strings.TrimSpace(b.String()), strings.TrimPrefix(text[i:], ",")
	}
	if value == "" {
		return "", "", errors.New(" is empty")
	}
	return value, rest, nil
}
