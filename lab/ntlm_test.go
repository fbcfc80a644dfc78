package lab

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"
	"time"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The messages of [MS-NLMP] 4.2.4: user "User", password "Password", domain "Domain".
const (
	specChallenge = `4e544c4d53535000 02000000 0c000c00 38000000 33828ae2 0123456789abcdef 0000000000000000
		24002400 44000000 06007017 0000000f 530065007200760065007200
		02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000`
	specAuthenticate = `4e544c4d53535000 03000000 18001800 6c000000 54005400 84000000 0c000c00 48000000 08000800 54000000
		10001000 5c000000 10001000 d8000000 358288e2 0501280a 0000000f
		44006f006d00610069006e00 5500730065007200 43004f004d0050005500540045005200
		86c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa
		68cd0ab851e51c96aabc927bebef6a1c
		0101000000000000 0000000000000000 aaaaaaaaaaaaaaaa 00000000
		02000c0044006f006d00610069006e00 01000c00530065007200760065007200 00000000 00000000
		c5dad2544fc9799094ce1ce90bc9d03e`
)

func specExchange(t *testing.T) *ntlmExchange {
	x := &ntlmExchange{challenge: unhex(t, specChallenge), flags: flagUnicode}
	copy(x.serverChallenge[:], unhex(t, "0123456789abcdef"))
	return x
}

// [MS-NLMP] 4.2.4.1.1, 4.2.4.1.2, 4.2.4.2.2 and 4.2.4.2.3.
func TestNTLMSpecificationVectors(t *testing.T) {
	f := func(what string, got []byte, want string) {
		t.Helper()
		if !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("%s = %x, want %s", what, got, want)
		}
	}
	f("NTOWFv1", ntHash("Password"), "a4f49c406510bdcab6824ee7c30fd852") // 4.2.2.1.2
	key := ntowfv2(ntHash("Password"), "User", "Domain")
	f("NTOWFv2", key, "0c868a403bfd7a93a3001ef22ef02e3f")

	x := specExchange(t)
	c, err := x.parseAuthenticate(unhex(t, specAuthenticate))
	if err != nil {
		t.Fatal(err)
	}
	if c.User != "User" || c.Domain != "Domain" {
		t.Errorf("claim is %q in %q, want User in Domain", c.User, c.Domain)
	}
	proof := hmacMD5(key, x.serverChallenge[:], c.nt[16:])
	f("NTProofStr", proof, "68cd0ab851e51c96aabc927bebef6a1c")
	base := hmacMD5(key, proof)
	f("SessionBaseKey", base, "8de40ccadbc14a82f15cb0ad0de95ca3")
	session, err := exportedSessionKey(base, c)
	if err != nil {
		t.Fatal(err)
	}
	f("ExportedSessionKey", session, strings.Repeat("55", 16))
	if err := x.verify(c, ntHash("Password")); err != nil {
		t.Errorf("the specification's own message is refused: %v", err)
	}
}

// clientMessage answers an exchange as [MS-NLMP] 3.1.5.1.2 says a client does, with what the test wants changed.
type clientMessage struct {
	user, domain, password string
	mic                    bool
	keyExchange            bool
	change                 func(msg []byte) // after the MIC was computed
}

func (m clientMessage) answer(t *testing.T, negotiate, challenge []byte) []byte {
	t.Helper()
	infoLen := int(binary.LittleEndian.Uint16(challenge[40:]))
	infoOff := int(binary.LittleEndian.Uint32(challenge[44:]))
	info := bytes.Clone(challenge[infoOff:][:infoLen-4])
	if m.mic {
		info = append(info, avFlags, 0, 4, 0, avFlagMIC, 0, 0, 0)
	}
	info = append(info, 0, 0, 0, 0)
	temp := append([]byte{1, 1, 0, 0, 0, 0, 0, 0}, make([]byte, 8)...)
	temp = append(temp, "clientCH"...)
	temp = append(temp, 0, 0, 0, 0)
	temp = append(append(temp, info...), 0, 0, 0, 0)
	key := ntowfv2(ntHash(m.password), m.user, m.domain)
	proof := hmacMD5(key, challenge[24:32], temp)
	session := hmacMD5(key, proof)
	nt := append(bytes.Clone(proof), temp...)

	flags := flagUnicode | flagNTLM
	var sessionKey []byte
	if m.keyExchange {
		flags |= flagKeyExchange | flagSign
		c := &ntlmClaim{flags: flags, sessionKey: bytes.Repeat([]byte{7}, 16)}
		sessionKey = c.sessionKey
		var err error
		if session, err = exportedSessionKey(session, c); err != nil {
			t.Fatal(err)
		}
	}
	msg := append([]byte(ntlmSignature), ntlmTypeAuthenticate, 0, 0, 0)
	payload := []byte{}
	const start = authenticateMICOffset + micSize
	add := func(v []byte) {
		msg = appendField(msg, len(v), start+len(payload))
		payload = append(payload, v...)
	}
	add(make([]byte, 24))
	add(nt)
	add(utf16le(m.domain))
	add(utf16le(m.user))
	add(nil)
	add(sessionKey)
	msg = binary.LittleEndian.AppendUint32(msg, flags)
	msg = append(msg, make([]byte, 8+micSize)...)
	msg = append(msg, payload...)
	if m.mic {
		copy(msg[authenticateMICOffset:], hmacMD5(session, negotiate, challenge, msg))
	}
	if m.change != nil {
		m.change(msg)
	}
	return msg
}

func negotiateMessage(flags uint32) []byte {
	msg := append([]byte(ntlmSignature), ntlmTypeNegotiate, 0, 0, 0)
	msg = binary.LittleEndian.AppendUint32(msg, flags)
	return append(msg, make([]byte, 16)...)
}

func TestNTLMVerify(t *testing.T) {
	id := ntlmIdentity{"CONTOSO", "contoso.local", "CAS01", "cas01.contoso.local"}
	f := func(name string, m clientMessage, wantErr string) {
		t.Helper()
		negotiate := negotiateMessage(flagUnicode)
		x, err := newNTLMExchange(negotiate, id, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		c, err := x.parseAuthenticate(m.answer(t, negotiate, x.challenge))
		if err == nil {
			err = x.verify(c, ntHash("right"))
		}
		switch {
		case wantErr == "" && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		case wantErr != "" && (err == nil || !strings.Contains(err.Error(), wantErr)):
			t.Errorf("%s: got %v, want an error with %q", name, err, wantErr)
		}
	}
	pat := clientMessage{user: "pat", domain: "CONTOSO", password: "right"}
	with := func(change func(*clientMessage)) clientMessage {
		m := pat
		change(&m)
		return m
	}
	f("plain", pat, "")
	f("user in capitals", with(func(m *clientMessage) { m.user = "PAT" }), "")
	f("with MIC", with(func(m *clientMessage) { m.mic = true }), "")
	f("with MIC and key exchange", with(func(m *clientMessage) { m.mic, m.keyExchange = true, true }), "")
	f("wrong password", with(func(m *clientMessage) { m.password = "wrong" }), "wrong password")
	f("empty password", with(func(m *clientMessage) { m.password = "" }), "wrong password")
	f("MIC changed", with(func(m *clientMessage) {
		m.mic = true
		m.change = func(b []byte) { b[authenticateMICOffset] ^= 1 }
	}), "MIC")
	f("message changed under the MIC", with(func(m *clientMessage) {
		m.mic = true
		m.change = func(b []byte) { b[authenticateFixed] ^= 1 } // Version
	}), "MIC")
	f("NTLMv1 sized response", with(func(m *clientMessage) {
		m.change = func(b []byte) { binary.LittleEndian.PutUint16(b[20:], 24) }
	}), "NTLMv1")
	f("no NT response, LM only", with(func(m *clientMessage) {
		m.change = func(b []byte) { binary.LittleEndian.PutUint16(b[20:], 0) }
	}), "LM only")
	f("field outside the message", with(func(m *clientMessage) {
		m.change = func(b []byte) { binary.LittleEndian.PutUint32(b[24:], 1<<31) }
	}), "outside")
	f("field over the header", with(func(m *clientMessage) {
		m.change = func(b []byte) { binary.LittleEndian.PutUint32(b[40:], 8) }
	}), "outside")
}

// A client must find in the challenge what [MS-NLMP] 2.2.1.2 promises, and two challenges must never be alike.
func TestNTLMChallengeMessage(t *testing.T) {
	id := ntlmIdentity{"CONTOSO", "contoso.local", "CAS01", "cas01.contoso.local"}
	now := time.Date(2026, 3, 1, 9, 41, 0, 0, time.UTC)
	x, err := newNTLMExchange(negotiateMessage(flagUnicode|flagOEM|flagVersion), id, now)
	if err != nil {
		t.Fatal(err)
	}
	flags := binary.LittleEndian.Uint32(x.challenge[20:])
	if flags&flagUnicode == 0 || flags&flagOEM != 0 {
		t.Errorf("flags %#x: Unicode must win over OEM", flags)
	}
	if flags&(flagSign|flagKeyExchange) != 0 {
		t.Errorf("flags %#x grant what was not asked for", flags)
	}
	n, off := binary.LittleEndian.Uint16(x.challenge[40:]), binary.LittleEndian.Uint32(x.challenge[44:])
	info := x.challenge[off:][:n]
	if !bytes.Contains(info, utf16le("cas01.contoso.local")) {
		t.Error("target information does not name the computer")
	}
	if !bytes.Contains(info, binary.LittleEndian.AppendUint64([]byte{avTimestamp, 0, 8, 0}, fileTime(now))) {
		t.Error("target information has no timestamp")
	}
	oem, err := newNTLMExchange(negotiateMessage(flagOEM), id, now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(oem.challenge[56:], []byte("CONTOSO")) {
		t.Error("OEM client got no OEM target name")
	}
	if oem.serverChallenge == x.serverChallenge {
		t.Error("two exchanges share a challenge")
	}
	if _, err := newNTLMExchange(negotiateMessage(0), id, now); err == nil {
		t.Error("a client without any character set was accepted")
	}
	if _, err := newNTLMExchange([]byte("NTLMSSP\x00\x01"), id, now); err == nil {
		t.Error("a truncated message was accepted")
	}
}

func FuzzNTLMAuthenticate(f *testing.F) {
	seed, _ := hex.DecodeString(strings.Join(strings.Fields(specAuthenticate), ""))
	f.Add(seed)
	f.Add([]byte(ntlmSignature))
	f.Fuzz(func(t *testing.T, msg []byte) {
		x := specExchange(t)
		c, err := x.parseAuthenticate(msg)
		if err != nil {
			return
		}
		// Whatever else changed, an accepted message holds the proof for this very challenge.
		if err := x.verify(c, ntHash("Password")); err == nil && len(c.nt) < 48 {
			t.Errorf("accepted with an NT response of %d bytes", len(c.nt))
		}
	})
}
