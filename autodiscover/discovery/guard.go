package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"
)

// splitAddress returns the mail domain of an address in its ASCII form. The domain is what follows the last "@".
func splitAddress(address string) (domain string, err error) {
	at := strings.LastIndexByte(address, '@')
	if at <= 0 || at == len(address)-1 {
		return "", fmt.Errorf("%q is not a mail address", address)
	}
	if len(address) > 320 || strings.ContainsFunc(address, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return "", fmt.Errorf("%q is not a mail address", address)
	}
	domain, err = idna.Lookup.ToASCII(strings.TrimSuffix(address[at+1:], "."))
	if err != nil || domain == "" {
		return "", fmt.Errorf("%q is not a mail domain", address[at+1:])
	}
	if _, err := netip.ParseAddr(domain); err == nil {
		return "", fmt.Errorf("%q is an IP address, not a mail domain", domain)
	}
	if _, err := publicsuffix.EffectiveTLDPlusOne(domain); err != nil {
		// Names made from it would belong to somebody else: the leak of credentials of 2021 went to autodiscover.<tld>.
		return "", fmt.Errorf("%s is a public suffix: autodiscover.%s would belong to a stranger", domain, domain)
	}
	return domain, nil
}

// guardCandidate refuses a host that was made from the mail domain but lies outside its registrable domain.
func guardCandidate(host, domain string) error {
	of, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		return fmt.Errorf("%s is a public suffix", domain)
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host != of && !strings.HasSuffix(host, "."+of) {
		return fmt.Errorf("%s is outside %s, the registrable domain of the address; it is never asked", host, of)
	}
	return nil
}

// guardTarget refuses hosts to which nothing may lead, redirects and SRV records included.
func guardTarget(host, domain string) error {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" {
		return errors.New("the target has no host")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	of, err := publicsuffix.EffectiveTLDPlusOne(host)
	if err != nil {
		return fmt.Errorf("%s is not a host of an organisation", host)
	}
	if host == of && strings.HasPrefix(host, "autodiscover.") && host != domain {
		return fmt.Errorf("%s is the name under a public suffix that collects strangers' credentials; it is never asked", host)
	}
	return nil
}
