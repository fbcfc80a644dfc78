package proxy

import "net/netip"

// verdict is what becomes of a TLS connection.
type verdict int

const (
	passOn    verdict = iota // forward the bytes to the host's site
	terminate                // finish the handshake with the host's certificate
	refuseTLSName
)

// decision is the outcome of decide.
type decision struct {
	verdict verdict
	host    *Host   // nil if the name is unknown
	refusal Refusal // with refuseTLSName
	why     string
}

// decide is what happens to a connection after its ClientHello, before any byte
// is decrypted. It is pure. A passthrough name is passed on whatever else the
// hello says, so our certificate can never answer for it; a name without
// a certificate is refused, never answered with another name's (AUTODISCOVER.md
// section 1.4 rule 8).
func decide(t *Table, listener string, h hello) decision {
	var host *Host
	// An address is no server name (RFC 6066 section 3): probes that send one mean
	// whatever is there, as those do that send none.
	if _, err := netip.ParseAddr(h.ServerName); err == nil || h.ServerName == "" {
		if host = t.Defaults[listener]; host == nil {
			host = t.Defaults[""]
		}
		if host == nil {
			return decision{verdict: refuseTLSName, why: "no server name in the hello, and no default host on this listener"}
		}
	} else if host = t.Hosts[h.ServerName]; host == nil {
		return decision{verdict: refuseTLSName, why: "unknown server name"}
	}
	switch {
	case host.Mode == Passthrough:
		return decision{verdict: passOn, host: host}
	case !host.certified():
		return decision{verdict: refuseTLSName, host: host, refusal: host.Refuse, why: "no certificate for this name"}
	}
	return decision{verdict: terminate, host: host}
}
