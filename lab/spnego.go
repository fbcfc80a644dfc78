package lab

import (
	"bytes"
	"encoding/asn1"
	"errors"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// The few bytes of SPNEGO (RFC 4178) that Windows clients put around NTLM messages under "Negotiate". There is no
// mechListMIC: NTLM must be the mechanism whose token the client sends first. Tokens of Kerberos are for a KerberosAcceptor to read.

var (
	oidSPNEGO = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 2}
	oidNTLM   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 2, 10} // [MS-NLMP] 1.9
)

// Values of negState, RFC 4178 section 4.2.2.
const (
	negAcceptCompleted  = 0
	negAcceptIncomplete = 1
)

var errSPNEGO = errors.New("not a SPNEGO token with an NTLM message inside, and without an acceptor there is no Kerberos")

// unwrapSPNEGO returns the NTLM message in a NegTokenInit or NegTokenResp.
func unwrapSPNEGO(b []byte) ([]byte, error) {
	in := cryptobyte.String(b)
	tag := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	var body cryptobyte.String
	switch {
	case len(b) > 0 && b[0] == 0x60: // InitialContextToken, RFC 2743 section 3.1
		var token cryptobyte.String
		var oid asn1.ObjectIdentifier
		if !in.ReadASN1(&token, cbasn1.Tag(0x60)) || !token.ReadASN1ObjectIdentifier(&oid) || !oid.Equal(oidSPNEGO) ||
			!token.ReadASN1(&body, tag(0)) {
			return nil, errSPNEGO
		}
	case !in.ReadASN1(&body, tag(1)): // NegTokenResp
		return nil, errSPNEGO
	}
	var seq cryptobyte.String
	if !body.ReadASN1(&seq, cbasn1.SEQUENCE) {
		return nil, errSPNEGO
	}
	// mechToken of the one and responseToken of the other both carry the tag 2.
	for !seq.Empty() {
		var field cryptobyte.String
		var t cbasn1.Tag
		if !seq.ReadAnyASN1(&field, &t) {
			return nil, errSPNEGO
		}
		var msg cryptobyte.String
		if t == tag(2) && field.ReadASN1(&msg, cbasn1.OCTET_STRING) && bytes.HasPrefix(msg, []byte(ntlmSignature)) {
			return msg, nil
		}
	}
	return nil, errSPNEGO
}

// wrapSPNEGO makes a NegTokenResp. Without a message it says only that the login is complete.
func wrapSPNEGO(state int64, msg []byte) []byte {
	tag := func(n uint8) cbasn1.Tag { return cbasn1.Tag(n).ContextSpecific().Constructed() }
	var b cryptobyte.Builder
	b.AddASN1(tag(1), func(b *cryptobyte.Builder) {
		b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(tag(0), func(b *cryptobyte.Builder) { b.AddASN1Enum(state) })
			if msg == nil {
				return
			}
			b.AddASN1(tag(1), func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidNTLM) })
			b.AddASN1(tag(2), func(b *cryptobyte.Builder) { b.AddASN1OctetString(msg) })
		})
	})
	return b.BytesOrPanic() // only fails on lengths beyond 2^32
}
