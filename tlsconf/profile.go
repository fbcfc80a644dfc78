package tlsconf

import (
	"crypto/tls"
	"fmt"
)

// Profile is one of Mozilla's sets of versions, suites and curves (wiki.mozilla.org/Security/Server_Side_TLS).
type Profile string

// The profiles there are. Mozilla's "old" is not among them yet.
const (
	Modern       Profile = "modern"       // TLS 1.3 alone
	Intermediate Profile = "intermediate" // TLS 1.2 and 1.3; the default for what Exchange clients need today
)

// policy is a profile as data. Suites of TLS 1.3 cannot be chosen in crypto/tls and are fine in every profile; the order of
// suites and curves is crypto/tls's own.
type policy struct {
	min    uint16
	suites []uint16
	curves []tls.CurveID
}

var policies = map[Profile]policy{
	Modern: {
		min:    tls.VersionTLS13,
		curves: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
	},
	Intermediate: {
		min: tls.VersionTLS12,
		// Mozilla lists three DHE suites besides, which crypto/tls does not have.
		suites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
		curves: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
	},
}

// ServerConfig returns a new configuration for one host: the profile's versions, suites and curves, the certificate of
// src, and HTTP/1.1 as the only protocol. An empty profile is [Intermediate]; an unknown one is an error.
//
// Call it once for each host and give the result to [tls.Server] itself. The session ticket keys are made and rotated by
// crypto/tls inside the configuration, so a ticket of one host never resumes under another's policy. That does not hold
// for a configuration handed out by GetConfigForClient, which takes the keys of the outer one, nor for a Clone of one
// that has been used.
func ServerConfig(p Profile, src Source) (*tls.Config, error) {
	if p == "" {
		p = Intermediate
	}
	pol, ok := policies[p]
	if !ok {
		return nil, fmt.Errorf("unknown TLS profile %q, there are %s and %s", p, Modern, Intermediate)
	}
	return &tls.Config{
		GetCertificate:   src.GetCertificate,
		MinVersion:       pol.min,
		CipherSuites:     pol.suites,
		CurvePreferences: pol.curves,
		// NTLM and Negotiate authenticate a connection, which HTTP/2 has no room for.
		NextProtos: []string{"http/1.1"},
		// An answer of 4 KB then goes out as one record and one write, not as three or four.
		DynamicRecordSizingDisabled: true,
	}, nil
}
