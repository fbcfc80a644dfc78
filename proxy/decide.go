package proxy

import "net/netip"

// verdict is what becomes of a TLS connection.
type verdict int

const (
	passOn    verdict = iota // forward the bytes to the host's site
	terminate                // finish the handshake with the host's certificate
	validate                 // finish a handshake that an ACME issuer looks at, and close
	refuseTLSName
)

// decision is the outcome of decide.
type decision struct {
	verdict verdict
	host    *Host   // nil if the name is unknown
	mail    *Mail   // of a mail protocol that the host serves
	refusal Refusal // with refuseTLSName
	why     string
}

// decide is what happens to a connection after its ClientHello, before any byte
// is decrypted. It is pure. A passthrough name is passed on whatever else the
// hello says, so our certificate can never answer for it; a name without
// a certificate is refused, never answered with another name's (AUTODISCOVER.md
// section 1.4 rule 8).
func decide(t *Table, listener string, h hello) decision {
	host, why := t.named(listener, h)
	switch {
	case host == nil:
		return decision{verdict: refuseTLSName, why: why}
	case host.Mode == Passthrough:
		return decision{verdict: passOn, host: host}
	case host.Validation != nil && h.validates():
		// Before the question of a certificate: this is how the first one is had.
		return decision{verdict: validate, host: host}
	case !host.certified():
		return decision{verdict: refuseTLSName, host: host, refusal: host.Refuse, why: host.lacks()}
	}
	return decision{verdict: terminate, host: host}
}

// acmeTLS is the protocol of validations by TLS-ALPN-01 (RFC 8737 section 6.2).
const acmeTLS = "acme-tls/1"

// validates tells whether the hello is that of a validation: it names the name, and
// offers one protocol (RFC 8737 section 3). A host without Validation has no such
// protocol, and its handshake fails.
func (h *hello) validates() bool {
	return !h.nameless() && len(h.ALPN) == 1 && h.ALPN[0] == acmeTLS
}

// decideMail is decide for a connection that wants a mail protocol, which a host
// serves in a way of its own.
func decideMail(t *Table, listener string, p MailProtocol, h hello) decision {
	host, why := t.named(listener, h)
	if host == nil {
		return decision{verdict: refuseTLSName, why: why}
	}
	m := host.Mail[p]
	switch {
	case m == nil:
		return decision{verdict: refuseTLSName, host: host, why: "no " + p.String() + " under this name"}
	case m.Mode == Passthrough:
		return decision{verdict: passOn, host: host, mail: m}
	case m.TLS == nil || !host.certified():
		return decision{verdict: refuseTLSName, host: host, why: host.lacks()}
	}
	return decision{verdict: terminate, host: host, mail: m}
}

// named returns the host a hello is for, or why there is none.
func (t *Table) named(listener string, h hello) (host *Host, why string) {
	if h.nameless() {
		return t.defaultHost(listener), "no server name in the hello, and no default host on this listener"
	}
	return t.Hosts[h.ServerName], "unknown server name"
}

// nameless tells whether a hello is for the default host. An address is no server
// name (RFC 6066 section 3): probes that send one mean whatever is there, as those do
// that send none.
func (h *hello) nameless() bool { return h.ServerName == "" || isAddress(h.ServerName) }

func isAddress(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil
}

// defaultHost is the host of the clients that name none; nil if there is none.
func (t *Table) defaultHost(listener string) *Host {
	if host := t.Defaults[listener]; host != nil {
		return host
	}
	return t.Defaults[""]
}
