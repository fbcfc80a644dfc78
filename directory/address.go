package directory

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"
)

// MaxAddressLength is the longest address accepted, in characters: 64 for the
// local part, the @ and 255 for the domain (RFC 5321 section 4.5.3.1).
const MaxAddressLength = 320

// domainProfile maps a domain to its A-label form as a client would before a
// DNS lookup (UTS 46, non-transitional), and refuses what is no host name.
var domainProfile = idna.New(
	idna.MapForLookup(),
	idna.BidiRule(),
	idna.StrictDomainName(true),
	idna.VerifyDNSLength(true),
	idna.Transitional(false),
)

// NormalizeAddress returns the one form in which an address is compared and
// stored: the local part in lower case and Unicode NFC, the domain in lower-case
// A-labels (pät@Bücher.example becomes pät@xn--bcher-kva.example).
//
// It accepts the unquoted local parts of RFC 5321 and RFC 6531 and refuses the
// rest with an error that does not repeat the address: quoted local parts,
// address literals, comments, and the characters that mean something to LDAP
// filters, to markup or to a line-based protocol, so that no later step can be
// led astray by an address even if it forgets to escape one.
func NormalizeAddress(address string) (string, error) {
	local, domain, err := splitAddress(address)
	if err != nil {
		return "", err
	}
	return local + "@" + domain, nil
}

// NormalizeDomain returns a mail domain in lower-case A-labels.
func NormalizeDomain(domain string) (string, error) {
	if domain == "" || strings.HasSuffix(domain, ".") {
		return "", errors.New("the domain is empty or ends with a dot")
	}
	ascii, err := domainProfile.ToASCII(norm.NFC.String(domain))
	// The mapping itself can yield a last dot (from an ideographic full stop).
	if err != nil || ascii == "" || strings.HasSuffix(ascii, ".") {
		return "", errors.New("the domain is not a host name")
	}
	return ascii, nil
}

func splitAddress(address string) (local, domain string, err error) {
	if !utf8.ValidString(address) {
		return "", "", errors.New("the address is not UTF-8")
	}
	if utf8.RuneCountInString(address) > MaxAddressLength {
		return "", "", errors.New("the address has more than 320 characters")
	}
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return "", "", errors.New("the address has no @")
	}
	local, err = normalizeLocal(address[:at])
	if err != nil {
		return "", "", err
	}
	domain, err = NormalizeDomain(address[at+1:])
	if err != nil {
		return "", "", err
	}
	return local, domain, nil
}

func normalizeLocal(local string) (string, error) {
	local = foldCase(local)
	if local == "" {
		return "", errors.New("the address has nothing before the @")
	}
	if len(local) > 64 {
		return "", errors.New("the address has more than 64 octets before the @")
	}
	if local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return "", errors.New("the address has a dot at the wrong place")
	}
	// A look-alike that a backend folds to ASCII (full-width asterisk or
	// parenthesis) is as bad as the character itself: look at both forms.
	for _, form := range []string{local, norm.NFKC.String(local)} {
		for _, r := range form {
			if !localRune(r) {
				return "", errors.New("the address has a character that is not allowed before the @")
			}
		}
	}
	return local, nil
}

// localRune reports whether r may stand in a local part: atext of RFC 5322
// without the asterisk, the dot, and letters, marks, numbers and symbols beyond
// ASCII (RFC 6531), but no controls, spaces or format characters.
func localRune(r rune) bool {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return true
	case r < utf8.RuneSelf:
		return strings.ContainsRune("!#$%&'+-/=?^_`{|}~.", r)
	case r == utf8.RuneError:
		return false
	}
	return unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.So)
}

// foldCase is how names without regard to letter case are compared.
func foldCase(s string) string {
	return norm.NFC.String(strings.ToLower(norm.NFC.String(s)))
}

// NormalizeLogin returns the form in which a user name is looked up: without
// DOMAIN\, without regard to letter case, and with the domain of an address in
// A-labels. It accepts anything; what is no address stays as it is.
func NormalizeLogin(name string) string {
	if i := strings.LastIndexByte(name, '\\'); i >= 0 {
		name = name[i+1:]
	}
	if address, err := NormalizeAddress(name); err == nil {
		return address
	}
	return foldCase(name)
}
