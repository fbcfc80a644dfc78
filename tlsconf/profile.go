package tlsconf

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
)

// Profile is one of Mozilla's sets of versions, suites and curves (wiki.mozilla.org/Security/Server_Side_TLS).
type Profile string

// The profiles there are.
const (
	Modern       Profile = "modern"       // TLS 1.3 alone
	Intermediate Profile = "intermediate" // TLS 1.2 and 1.3; the default for what Exchange clients need today
	Old          Profile = "old"          // TLS 1.0 and up, CBC, RSA key exchange and 3DES: not safe, and all that the oldest clients have
)

// Profiles returns all profiles, the strictest first.
func Profiles() []Profile { return []Profile{Modern, Intermediate, Old} }

// Policy is a profile as data. crypto/tls has an order of its own for suites and curves; the order here is Mozilla's.
type Policy struct {
	Guideline  string        // the version of Mozilla's guideline it is from
	MinVersion uint16        // the versions are this one and all newer ones, up to TLS 1.3
	Suites     []uint16      // up to TLS 1.2; those of TLS 1.3 cannot be chosen in crypto/tls, and are the same in every profile
	Curves     []tls.CurveID // which are the groups of TLS 1.3 as well
	// Missing are the suites of the guideline, by their IANA names, that crypto/tls does not have.
	Missing []string
}

// Guideline 6.0 has no "old" any more: 5.8, of the same day, is the last one that has it. Neither has the DHE suites of the
// guidelines before, which crypto/tls never had.
var policies = map[Profile]Policy{
	Modern: {
		Guideline:  "6.0",
		MinVersion: tls.VersionTLS13,
		Curves:     curves,
	},
	Intermediate: {
		Guideline:  "6.0",
		MinVersion: tls.VersionTLS12,
		Suites:     aead,
		Curves:     curves,
	},
	Old: {
		Guideline:  "5.8",
		MinVersion: tls.VersionTLS10,
		Suites: slices.Concat(aead, []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
			tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
			tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
			tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA256,
			tls.TLS_RSA_WITH_AES_128_CBC_SHA,
			tls.TLS_RSA_WITH_AES_256_CBC_SHA,
			tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA,
		}),
		Curves: curves,
		Missing: []string{
			"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384",
			"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384",
			"TLS_RSA_WITH_AES_256_CBC_SHA256",
		},
	},
}

var (
	aead = []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	curves = []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}
)

// Policy returns the profile as data, to be changed at will; nothing for an unknown one.
func (p Profile) Policy() Policy {
	pol := policies[p]
	pol.Suites, pol.Curves, pol.Missing = slices.Clone(pol.Suites), slices.Clone(pol.Curves), slices.Clone(pol.Missing)
	return pol
}

// ServerConfig returns a new configuration for one host: the profile's versions, suites and curves, the certificate of
// src, and HTTP/1.1 as the only protocol. An empty profile is [Intermediate]; an unknown one is an error.
//
// Call it once for each host and give the result to [tls.Server] itself. The session ticket keys are made and rotated by
// crypto/tls inside the configuration, or by [Tickets.Use], so a ticket of one host never resumes under another's policy.
// That does not hold for a configuration handed out by GetConfigForClient, which takes the keys of the outer one, nor for a
// Clone of one that has been used.
//
// Suites that are named, as they are here, are offered whatever the GODEBUG settings tlsrsakex, tls3des and tls10server
// say: those change the defaults alone.
func ServerConfig(p Profile, src Source) (*tls.Config, error) {
	if p == "" {
		p = Intermediate
	}
	if _, ok := policies[p]; !ok {
		var known []string
		for _, k := range Profiles() {
			known = append(known, string(k))
		}
		return nil, fmt.Errorf("unknown TLS profile %q, there are %s", p, strings.Join(known, ", "))
	}
	pol := p.Policy()
	return &tls.Config{
		GetCertificate:   src.GetCertificate,
		MinVersion:       pol.MinVersion,
		CipherSuites:     pol.Suites,
		CurvePreferences: pol.Curves,
		// NTLM and Negotiate authenticate a connection, which HTTP/2 has no room for.
		NextProtos: []string{"http/1.1"},
		// An answer of 4 KB then goes out as one record and one write, not as three or four.
		DynamicRecordSizingDisabled: true,
	}, nil
}
