package config

import "strings"

// protection checks what Extended Protection needs: TLS up to the server, and one certificate for all names of the site,
// because a server can hold only one. Where it is on only because of the Exchange version, what breaks it is warned
// about and not refused: the servers may have it off.
func (v validator) protection(name string, s *Site) {
	p := sitesPath.key(name)
	at := p.key("extended_protection")
	if v.bad(at) {
		return
	}
	const turnedOff = "; or extended_protection: off, if the servers have it off"
	byVersion := s.ExtendedProtection == "" && (s.Exchange == "2019" || s.Exchange == "SE")
	if s.Offload {
		switch {
		case byVersion:
			v.warn(p.key("offload"), RuleProtectionOffload, "https:// servers and the same certificate on both sides"+turnedOff,
				"Exchange %s has Extended Protection on by default (2019 from CU14), and clients cannot log in over a server that sees no TLS", s.Exchange)
		case s.ExtendedProtection != "" && s.ExtendedProtection != "off":
			v.fail(at, RuleProtectionOffload, "https:// servers and offload: false; or extended_protection: off here and on the servers",
				"Extended Protection binds logins to the certificate of the TLS connection, and with offload: true the servers see none")
		}
		return
	}
	mode := s.Protection()
	if mode == "off" {
		return
	}
	off := ""
	if byVersion {
		off = turnedOff
	}
	var first, firstCert string
	for _, host := range ordered(v, hostsPath, v.c.Hosts) {
		h, q := v.c.Hosts[host], hostsPath.key(host).key("certificate")
		if h.Site != name || h.Mode() != ModeSite || h.Certificate == nil || v.bad(q) {
			continue
		}
		if c := h.Certificate; c.Source != "" {
			v.warn(q, RuleProtectionCertificate, "a certificate that is delivered from Exchange, as {cert: FILE, key: FILE} or {pfx: FILE}; or passthrough"+off,
				"the site %s has extended_protection: %s, and a certificate that is renewed here alone is not the servers': clients that bind their logins to it cannot log in until it is on the servers too",
				name, mode)
		}
		cert := h.Certificate.identity(host)
		if first == "" {
			first, firstCert = host, cert
			continue
		}
		if cert == firstCert {
			continue
		}
		say := v.warn
		if mode == "required" {
			say = v.fail
		}
		say(q, RuleProtectionTwo, "one certificate for all names of the site, the one that its servers have"+off,
			"%s has another certificate than %s, and both lead to the site %s with extended_protection: %s: a server can have only one of the two", host, first, name, mode)
	}
}

// identity is equal for hosts that show one certificate.
func (c *Certificate) identity(host string) string {
	if c.Source != "" {
		return c.Source + " " + host // each host gets its own
	}
	return strings.Join([]string{c.Cert, c.Key, c.PFX}, "|")
}

// outside warns about what is not verified outside the organisation.
func (v validator) outside() {
	if v.c.AllowExternalUntrustedCerts {
		v.warn(path{"allow_external_untrusted_certs"}, RuleExternalUntrusted, "false, and certificates that verify at the servers that clients are sent to",
			"CERTIFICATES OUTSIDE ARE NOT HELD AGAINST ANYTHING: check --live accepts any server that answers in the name of one that clients are redirected to")
	}
}
