package lab

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/rc4"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	//lint:ignore SA1019 NTLM is defined on MD4 ([MS-NLMP] 3.3.1); anything better would not be NTLM.
	"golang.org/x/crypto/md4" //nolint:staticcheck // as above
)

// The server side of NTLM over HTTP, as far as a login needs it: NTLMv2 only ([MS-NLMP] 3.3.2), one exchange at a time on one
// connection ([MS-NTHT]). Sealing and signing of later messages have no place in HTTP and are missing.

const ntlmSignature = "NTLMSSP\x00"

// Message types, [MS-NLMP] 2.2.1.
const (
	ntlmTypeNegotiate    = 1
	ntlmTypeChallenge    = 2
	ntlmTypeAuthenticate = 3
)

// Negotiate flags, [MS-NLMP] 2.2.2.5.
const (
	flagUnicode                 uint32 = 1 << 0
	flagOEM                     uint32 = 1 << 1
	flagRequestTarget           uint32 = 1 << 2
	flagSign                    uint32 = 1 << 4
	flagSeal                    uint32 = 1 << 5
	flagNTLM                    uint32 = 1 << 9
	flagAlwaysSign              uint32 = 1 << 15
	flagTargetTypeDomain        uint32 = 1 << 16
	flagExtendedSessionSecurity uint32 = 1 << 19
	flagIdentify                uint32 = 1 << 20
	flagTargetInfo              uint32 = 1 << 23
	flagVersion                 uint32 = 1 << 25
	flag128                     uint32 = 1 << 29
	flagKeyExchange             uint32 = 1 << 30
	flag56                      uint32 = 1 << 31
)

// AV_PAIR identifiers, [MS-NLMP] 2.2.2.1.
const (
	avEOL             = 0
	avNbComputerName  = 1
	avNbDomainName    = 2
	avDNSComputerName = 3
	avDNSDomainName   = 4
	avDNSTreeName     = 5
	avFlags           = 6
	avTimestamp       = 7
	avChannelBindings = 10
)

// avFlagMIC in MsvAvFlags says that the AUTHENTICATE_MESSAGE carries a MIC, [MS-NLMP] 2.2.2.1.
const avFlagMIC = 0x2

// Offsets of the fixed fields of an AUTHENTICATE_MESSAGE, [MS-NLMP] 2.2.1.3. Clients leave Version and MIC out when they use
// neither, so only the part before them must be there.
const (
	authenticateFixed     = 64
	authenticateMICOffset = 72
	micSize               = 16
)

// ntlmIdentity tells the client who the server is; it goes into the target information of the challenge.
type ntlmIdentity struct {
	NetBIOSDomain, DNSDomain     string // CONTOSO, contoso.local
	NetBIOSComputer, DNSComputer string // CAS01, cas01.contoso.local
}

// ntlmExchange is one open challenge. It belongs to one connection and is good for one AUTHENTICATE_MESSAGE.
type ntlmExchange struct {
	negotiate, challenge []byte // as they went over the wire, for the MIC
	serverChallenge      [8]byte
	flags                uint32
}

// ntlmMessageType returns the type of an NTLM message; ok is false when msg is none.
func ntlmMessageType(msg []byte) (typ uint32, ok bool) {
	if len(msg) < 12 || string(msg[:8]) != ntlmSignature {
		return 0, false
	}
	return binary.LittleEndian.Uint32(msg[8:]), true
}

// newNTLMExchange answers a NEGOTIATE_MESSAGE with a CHALLENGE_MESSAGE, [MS-NLMP] 3.2.5.1.1.
func newNTLMExchange(negotiate []byte, id ntlmIdentity, now time.Time) (*ntlmExchange, error) {
	if typ, ok := ntlmMessageType(negotiate); !ok || typ != ntlmTypeNegotiate || len(negotiate) < 16 {
		return nil, errors.New("not a NEGOTIATE_MESSAGE")
	}
	x := &ntlmExchange{negotiate: bytes.Clone(negotiate)}
	rand.Read(x.serverChallenge[:]) // never fails
	asked := binary.LittleEndian.Uint32(negotiate[12:])

	x.flags = flagNTLM | flagRequestTarget | flagTargetTypeDomain | flagTargetInfo
	x.flags |= asked & (flagSign | flagSeal | flagAlwaysSign | flagExtendedSessionSecurity | flagIdentify |
		flagVersion | flag128 | flagKeyExchange | flag56)
	target := utf16le(id.NetBIOSDomain)
	switch {
	case asked&flagUnicode != 0:
		x.flags |= flagUnicode
	case asked&flagOEM != 0: // curl
		x.flags |= flagOEM
		target = []byte(id.NetBIOSDomain)
	default:
		return nil, errors.New("NEGOTIATE_MESSAGE offers no character set")
	}

	var info []byte
	pair := func(id uint16, value []byte) {
		info = binary.LittleEndian.AppendUint16(info, id)
		info = binary.LittleEndian.AppendUint16(info, uint16(len(value)))
		info = append(info, value...)
	}
	pair(avNbDomainName, utf16le(id.NetBIOSDomain))
	pair(avNbComputerName, utf16le(id.NetBIOSComputer))
	pair(avDNSDomainName, utf16le(id.DNSDomain))
	pair(avDNSComputerName, utf16le(id.DNSComputer))
	pair(avDNSTreeName, utf16le(id.DNSDomain))
	pair(avTimestamp, binary.LittleEndian.AppendUint64(nil, fileTime(now)))
	pair(avEOL, nil)

	// [MS-NLMP] 2.2.1.2. Version is always there, zero unless negotiated, so that the payload begins at one place.
	const payload = 56
	msg := append([]byte(ntlmSignature), ntlmTypeChallenge, 0, 0, 0)
	msg = appendField(msg, len(target), payload)
	msg = binary.LittleEndian.AppendUint32(msg, x.flags)
	msg = append(msg, x.serverChallenge[:]...)
	msg = append(msg, make([]byte, 8)...)
	msg = appendField(msg, len(info), payload+len(target))
	version := make([]byte, 8)
	if x.flags&flagVersion != 0 {
		version = []byte{10, 0, 0x7c, 0x4f, 0, 0, 0, 15} // Windows 10.0.20348, NTLMSSP_REVISION_W2K3
	}
	msg = append(msg, version...)
	msg = append(msg, target...)
	x.challenge = append(msg, info...)
	return x, nil
}

// ntlmClaim is who an AUTHENTICATE_MESSAGE says it is, before anything is proved.
type ntlmClaim struct {
	User, Domain string
	nt           []byte // NtChallengeResponse
	sessionKey   []byte // EncryptedRandomSessionKey
	bindings     []byte // MsvAvChannelBindings, set by verify
	flags        uint32
	raw          []byte
}

// parseAuthenticate reads an AUTHENTICATE_MESSAGE, [MS-NLMP] 2.2.1.3.
func (x *ntlmExchange) parseAuthenticate(msg []byte) (*ntlmClaim, error) {
	if typ, ok := ntlmMessageType(msg); !ok || typ != ntlmTypeAuthenticate || len(msg) < authenticateFixed {
		return nil, errors.New("not an AUTHENTICATE_MESSAGE")
	}
	c := &ntlmClaim{raw: bytes.Clone(msg), flags: binary.LittleEndian.Uint32(msg[60:])}
	var domain, user []byte
	for _, f := range []struct {
		name string
		at   int
		into *[]byte
	}{
		{"NtChallengeResponse", 20, &c.nt},
		{"DomainName", 28, &domain},
		{"UserName", 36, &user},
		{"EncryptedRandomSessionKey", 52, &c.sessionKey},
	} {
		v, err := field(c.raw, f.at)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
		*f.into = v
	}
	var err error
	if c.Domain, err = x.text(domain); err != nil {
		return nil, fmt.Errorf("DomainName: %w", err)
	}
	if c.User, err = x.text(user); err != nil {
		return nil, fmt.Errorf("UserName: %w", err)
	}
	return c, nil
}

// text decodes a string in the character set the challenge settled on.
func (x *ntlmExchange) text(b []byte) (string, error) {
	if x.flags&flagUnicode != 0 {
		if len(b)%2 != 0 {
			return "", errors.New("odd number of bytes in a UTF-16 string")
		}
		u := make([]uint16, len(b)/2)
		for i := range u {
			u[i] = binary.LittleEndian.Uint16(b[2*i:])
		}
		return string(utf16.Decode(u)), nil
	}
	for _, c := range b {
		if c >= 0x80 { // OEM code pages differ from machine to machine; only their ASCII half is certain
			return "", errors.New("OEM string beyond ASCII")
		}
	}
	return string(b), nil
}

// verify proves the claim against the account's NT hash, [MS-NLMP] 3.2.5.1.2 and 3.3.2. LmChallengeResponse is never looked at: LM
// and LMv2 prove less than the NTLMv2 response that must be there anyway. Afterwards claim.bindings can be relied on.
func (x *ntlmExchange) verify(c *ntlmClaim, ntHash []byte) error {
	const minTemp = 28 + 4 // fixed part of NTLMv2_CLIENT_CHALLENGE ([MS-NLMP] 2.2.2.7) and MsvAvEOL
	switch {
	case len(c.nt) == 0:
		return errors.New("no NT response: anonymous or LM only")
	case len(c.nt) == 24:
		return errors.New("an NTLMv1 response; only NTLMv2 is accepted")
	case len(c.nt) < 16+minTemp || c.nt[16] != 1 || c.nt[17] != 1:
		return errors.New("not an NTLMv2 response")
	}
	proof, temp := c.nt[:16], c.nt[16:]
	key := ntowfv2(ntHash, c.User, c.Domain)
	if !hmac.Equal(hmacMD5(key, x.serverChallenge[:], temp), proof) {
		return errors.New("wrong password, or an answer to another challenge")
	}
	flags, bindings, err := readAVPairs(temp[28:])
	if err != nil {
		return err
	}
	c.bindings = bindings
	if flags&avFlagMIC == 0 {
		return nil
	}
	if len(c.raw) < authenticateMICOffset+micSize {
		return errors.New("MIC announced but missing")
	}
	session, err := exportedSessionKey(hmacMD5(key, proof), c)
	if err != nil {
		return err
	}
	mic := bytes.Clone(c.raw[authenticateMICOffset:][:micSize])
	blank := bytes.Clone(c.raw)
	clear(blank[authenticateMICOffset:][:micSize])
	if !hmac.Equal(hmacMD5(session, x.negotiate, x.challenge, blank), mic) {
		return errors.New("MIC does not match: a message was changed on the way")
	}
	return nil
}

// exportedSessionKey follows [MS-NLMP] 3.2.5.1.2; with NTLMv2 the key exchange key is the session base key (3.4.5.1).
func exportedSessionKey(base []byte, c *ntlmClaim) ([]byte, error) {
	if c.flags&flagKeyExchange == 0 || c.flags&(flagSign|flagSeal) == 0 {
		return base, nil
	}
	if len(c.sessionKey) != 16 {
		return nil, errors.New("key exchange negotiated without a 16-byte session key")
	}
	rc, err := rc4.NewCipher(base)
	if err != nil {
		return nil, err
	}
	key := make([]byte, 16)
	rc.XORKeyStream(key, c.sessionKey)
	return key, nil
}

// readAVPairs walks the AV_PAIRs of a client challenge to their end and returns MsvAvFlags, 0 when absent, and MsvAvChannelBindings, nil
// when absent.
func readAVPairs(pairs []byte) (flags uint32, bindings []byte, err error) {
	for {
		if len(pairs) < 4 {
			return 0, nil, errors.New("AV_PAIRs without end")
		}
		id, n := binary.LittleEndian.Uint16(pairs), int(binary.LittleEndian.Uint16(pairs[2:]))
		pairs = pairs[4:]
		if id == avEOL {
			return flags, bindings, nil
		}
		if n > len(pairs) {
			return 0, nil, errors.New("AV_PAIR longer than its message")
		}
		switch id {
		case avFlags:
			if n != 4 {
				return 0, nil, errors.New("MsvAvFlags is not four bytes long")
			}
			flags = binary.LittleEndian.Uint32(pairs)
		case avChannelBindings:
			if n != md5.Size {
				return 0, nil, errors.New("MsvAvChannelBindings is not an MD5 hash")
			}
			bindings = pairs[:n:n]
		}
		pairs = pairs[n:]
	}
}

// ntHash is NTOWFv1, [MS-NLMP] 3.3.1: what a domain controller keeps of a password.
func ntHash(password string) []byte {
	h := md4.New()
	h.Write(utf16le(password))
	return h.Sum(nil)
}

// ntowfv2 is NTOWFv2, [MS-NLMP] 3.3.2. The domain counts as the client wrote it, the user in upper case.
func ntowfv2(ntHash []byte, user, domain string) []byte {
	return hmacMD5(ntHash, utf16le(strings.ToUpper(user)+domain))
}

func hmacMD5(key []byte, parts ...[]byte) []byte {
	h := hmac.New(md5.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

func utf16le(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

// fileTime is t in 100 ns since 1601, [MS-DTYP] 2.3.3.
func fileTime(t time.Time) uint64 {
	const epoch = 116444736000000000 // 1601 to 1970
	return uint64(t.UnixNano()/100) + epoch
}

// field reads the length and offset at a place of the fixed part and returns the payload they point to, [MS-NLMP] 2.2.1.
func field(msg []byte, at int) ([]byte, error) {
	n := int(binary.LittleEndian.Uint16(msg[at:]))
	off := uint64(binary.LittleEndian.Uint32(msg[at+4:]))
	if n == 0 {
		return nil, nil
	}
	if off < authenticateFixed || off+uint64(n) > uint64(len(msg)) {
		return nil, errors.New("points outside the message")
	}
	return msg[off : off+uint64(n)], nil
}

func appendField(msg []byte, n, offset int) []byte {
	msg = binary.LittleEndian.AppendUint16(msg, uint16(n))
	msg = binary.LittleEndian.AppendUint16(msg, uint16(n))
	return binary.LittleEndian.AppendUint32(msg, uint32(offset))
}
