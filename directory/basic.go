package directory

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// Credential is a user name and password as a client sent them.
type Credential struct {
	Name     string
	Password Secret
}

// ParseBasic reads the value of an Authorization header. It returns the readings
// worth trying, best first, or none when the value is not well-formed Basic
// (RFC 7617).
//
// There can be two: RFC 7617 leaves the encoding open, mobile clients send UTF-8
// and Outlook sends ISO-8859-1, and nothing in the header tells which. Bytes that
// are not UTF-8 have one reading, and so have plain ASCII ones.
func ParseBasic(authorization string) []Credential {
	scheme, token, ok := strings.Cut(authorization, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return nil
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(token))
	if err != nil {
		return nil
	}
	var readings []string
	if utf8.Valid(raw) {
		readings = append(readings, string(raw))
	}
	latin1 := make([]rune, len(raw))
	ascii := true
	for i, b := range raw {
		latin1[i] = rune(b)
		ascii = ascii && b < utf8.RuneSelf
	}
	if !ascii {
		readings = append(readings, string(latin1))
	}
	var out []Credential
	for _, reading := range readings {
		name, password, ok := strings.Cut(reading, ":")
		// RFC 7617 section 2 forbids control characters in both halves.
		if !ok || strings.ContainsFunc(reading, isControl) {
			continue
		}
		out = append(out, Credential{Name: name, Password: Secret(password)})
	}
	return out
}

// isControl knows the ASCII controls only: 0x80 to 0x9F are controls in
// ISO-8859-1 but letters in the code page some clients mean by it.
func isControl(r rune) bool { return r < 0x20 || r == 0x7f }
