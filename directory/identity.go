package directory

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
)

// adminGroup is the administrative group every Exchange organisation since 2007
// has; clients know it and show the rest of a legacyDN.
const adminGroup = "/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)"

// guidNamespace keeps the GUIDs that we derive apart from those of anybody else
// who derives GUIDs from the same addresses (RFC 9562 section 5.5).
var guidNamespace = [16]byte{
	0x5b, 0x0d, 0x6a, 0x1e, 0x93, 0xc7, 0x4f, 0x28, 0xa4, 0x6d, 0x1b, 0xe2, 0x70, 0x9f, 0xc5, 0x3a,
}

// DeriveGUID returns the version 5 UUID of kind and name, in lower case. It is
// the same on every node and after every restart, so that a client never sees
// an identifier change.
func DeriveGUID(kind, name string) string {
	h := sha1.New()
	h.Write(guidNamespace[:])
	h.Write([]byte(kind + ":" + name))
	id := h.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x50
	id[8] = id[8]&0x3f | 0x80
	s := hex.EncodeToString(id)
	return s[0:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Identify fills in MailboxGUID and LegacyDN where they are empty, from the
// normalised address. Both come from one place because clients use them as a
// pair: the GUID of one answer with the legacyDN of another connects and is
// refused later with ecWrongServer.
func (m *Mailbox) Identify() {
	if m.MailboxGUID == "" {
		m.MailboxGUID = DeriveGUID("mailbox", m.Address)
	}
	if m.LegacyDN == "" {
		local, domain, _ := strings.Cut(m.Address, "@")
		m.LegacyDN = "/o=" + domain + adminGroup + "/cn=Recipients/cn=" +
			strings.ReplaceAll(m.MailboxGUID, "-", "") + "-" + dnText(local)
	}
}

// dnText keeps of a local part what is safe in an X.500 name; the GUID before
// it makes the name unique.
func dnText(local string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-', r == '_':
			return r
		}
		return '_'
	}, local)
}

// parseGUID returns s as 8-4-4-4-12 lower-case digits; braces around it, as
// PowerShell and AD tools print them, are removed.
func parseGUID(s string) (string, error) {
	t := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(s, "{"), "}"))
	bad := fmt.Errorf("is no GUID; write 8-4-4-4-12 hexadecimal digits")
	if len(t) != 36 {
		return "", bad
	}
	for i, c := range []byte(t) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return "", bad
			}
		} else if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f') {
			return "", bad
		}
	}
	return t, nil
}
