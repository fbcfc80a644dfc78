package directory

import (
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/scrypt"
	"golang.org/x/text/unicode/norm"
)

// Bounds on what a hash string may ask of us. They are far above every
// recommendation and keep a slip of the keyboard from stopping the server.
const (
	maxArgon2KiB     = 1 << 20 // 1 GiB
	maxArgon2Passes  = 64
	maxPBKDF2Rounds  = 10_000_000
	maxScryptLogN    = 20
	maxBcryptCost    = 16
	maxSaltOrHashLen = 512 // decoded bytes
	minHashLen       = 16  // shorter ones are found by chance too soon
)

// verifier checks one password. Its cost does not depend on the password.
type verifier interface {
	verify(password string) bool
	// plain reports whether the password stands in the file in clear.
	plain() bool
	// key is equal for two verifiers that stand for the same text or hash.
	key() string
}

// parsePassword reads the password of a mailbox: a hash string when it begins
// with $, plain text otherwise. The strings are those of the PHC format (argon2id,
// scrypt, pbkdf2-sha256), passlib's older spelling of pbkdf2-sha256, and bcrypt.
// Errors do not repeat the string.
func parsePassword(s string) (verifier, error) {
	if !strings.HasPrefix(s, "$") {
		return plainPassword(sha256.Sum256([]byte(norm.NFC.String(s)))), nil
	}
	f := strings.Split(s[1:], "$")
	switch f[0] {
	case "argon2id":
		return parseArgon2id(f[1:])
	case "scrypt":
		return parseScrypt(f[1:])
	case "pbkdf2-sha256":
		return parsePBKDF2(f[1:])
	case "2a", "2b", "2y":
		return parseBcrypt(s)
	}
	return nil, errors.New("begins with $ but is no known hash; use argon2id, scrypt, pbkdf2-sha256 or bcrypt, and no plain password that begins with $")
}

// plainPassword is the SHA-256 of the text: it makes the comparison independent
// of the length, and keeps the text out of memory dumps. It is no protection.
type plainPassword [sha256.Size]byte

func (p plainPassword) verify(password string) bool {
	sum := sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(sum[:], p[:]) == 1
}

func (plainPassword) plain() bool   { return true }
func (p plainPassword) key() string { return string(p[:]) }

type argon2id struct {
	passes, kib uint32
	threads     uint8
	salt, hash  []byte
}

func (a argon2id) verify(password string) bool {
	sum := argon2.IDKey([]byte(password), a.salt, a.passes, a.kib, a.threads, uint32(len(a.hash)))
	return subtle.ConstantTimeCompare(sum, a.hash) == 1
}

func (argon2id) plain() bool   { return false }
func (a argon2id) key() string { return string(a.salt) + string(a.hash) }

func parseArgon2id(f []string) (verifier, error) {
	if len(f) != 4 {
		return nil, errors.New("is no argon2id hash; write $argon2id$v=19$m=…,t=…,p=…$salt$hash")
	}
	v, err := phcParams(f[0], "v")
	if err != nil || v["v"] != argon2.Version {
		return nil, fmt.Errorf("argon2id: only version %d (v=%d) is supported", argon2.Version, argon2.Version)
	}
	p, err := phcParams(f[1], "m", "t", "p")
	if err != nil {
		return nil, fmt.Errorf("argon2id: %w", err)
	}
	if p["t"] < 1 || p["t"] > maxArgon2Passes || p["p"] < 1 || p["p"] > 255 || p["m"] < 8*p["p"] || p["m"] > maxArgon2KiB {
		return nil, fmt.Errorf("argon2id: parameters out of range; m is 8·p to %d (KiB), t is 1 to %d, p is 1 to 255", maxArgon2KiB, maxArgon2Passes)
	}
	salt, hash, err := saltAndHash(base64.RawStdEncoding, f[2], f[3])
	if err != nil {
		return nil, fmt.Errorf("argon2id: %w", err)
	}
	return argon2id{passes: uint32(p["t"]), kib: uint32(p["m"]), threads: uint8(p["p"]), salt: salt, hash: hash}, nil
}

type scryptHash struct {
	n, r, p    int
	salt, hash []byte
}

func (s scryptHash) verify(password string) bool {
	sum, err := scrypt.Key([]byte(password), s.salt, s.n, s.r, s.p, len(s.hash))
	return err == nil && subtle.ConstantTimeCompare(sum, s.hash) == 1
}

func (scryptHash) plain() bool   { return false }
func (s scryptHash) key() string { return string(s.salt) + string(s.hash) }

func parseScrypt(f []string) (verifier, error) {
	if len(f) != 3 {
		return nil, errors.New("is no scrypt hash; write $scrypt$ln=…,r=…,p=…$salt$hash")
	}
	p, err := phcParams(f[0], "ln", "r", "p")
	if err != nil {
		return nil, fmt.Errorf("scrypt: %w", err)
	}
	if p["ln"] < 1 || p["ln"] > maxScryptLogN || p["r"] < 1 || p["r"] > 32 || p["p"] < 1 || p["p"] > 16 {
		return nil, fmt.Errorf("scrypt: parameters out of range; ln is 1 to %d, r is 1 to 32, p is 1 to 16", maxScryptLogN)
	}
	salt, hash, err := saltAndHash(base64.RawStdEncoding, f[1], f[2])
	if err != nil {
		return nil, fmt.Errorf("scrypt: %w", err)
	}
	return scryptHash{n: 1 << p["ln"], r: p["r"], p: p["p"], salt: salt, hash: hash}, nil
}

type pbkdf2Hash struct {
	rounds     int
	salt, hash []byte
}

func (k pbkdf2Hash) verify(password string) bool {
	sum, err := pbkdf2.Key(sha256.New, password, k.salt, k.rounds, len(k.hash))
	return err == nil && subtle.ConstantTimeCompare(sum, k.hash) == 1
}

func (pbkdf2Hash) plain() bool   { return false }
func (k pbkdf2Hash) key() string { return string(k.salt) + string(k.hash) }

// passlibEncoding is passlib's "adapted base64": a dot in the place of the plus.
var passlibEncoding = base64.NewEncoding("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789./").WithPadding(base64.NoPadding)

func parsePBKDF2(f []string) (verifier, error) {
	if len(f) != 3 {
		return nil, errors.New("is no pbkdf2-sha256 hash; write $pbkdf2-sha256$i=…$salt$hash")
	}
	var rounds int
	encoding := base64.RawStdEncoding
	if n, err := strconv.Atoi(f[0]); err == nil {
		rounds, encoding = n, passlibEncoding
	} else {
		p, err := phcParams(f[0], "i", "l?")
		if err != nil {
			return nil, fmt.Errorf("pbkdf2-sha256: %w", err)
		}
		rounds = p["i"]
	}
	if rounds < 1 || rounds > maxPBKDF2Rounds {
		return nil, fmt.Errorf("pbkdf2-sha256: the number of rounds is 1 to %d", maxPBKDF2Rounds)
	}
	salt, hash, err := saltAndHash(encoding, f[1], f[2])
	if err != nil {
		return nil, fmt.Errorf("pbkdf2-sha256: %w", err)
	}
	return pbkdf2Hash{rounds: rounds, salt: salt, hash: hash}, nil
}

type bcryptHash string

func (b bcryptHash) verify(password string) bool {
	return bcrypt.CompareHashAndPassword([]byte(b), []byte(password)) == nil
}

func (bcryptHash) plain() bool   { return false }
func (b bcryptHash) key() string { return string(b) }

func parseBcrypt(s string) (verifier, error) {
	// $2y$ is PHP's name for $2b$; both compute what Go computes.
	b := "$2a$" + s[len("$2a$"):]
	cost, err := bcrypt.Cost([]byte(b))
	// bcrypt.Cost reads no further than the cost: 7 characters, then 22 of salt
	// and 31 of hash in bcrypt's own alphabet.
	if err != nil || len(b) != 60 || strings.Trim(b[7:], "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return nil, errors.New("is no bcrypt hash; write $2b$<cost>$ and 53 characters")
	}
	if cost > maxBcryptCost {
		return nil, fmt.Errorf("bcrypt: the cost is at most %d", maxBcryptCost)
	}
	return bcryptHash(b), nil
}

// phcParams reads "m=1,t=2" into numbers. Each name must be there once, one
// written with ? may be missing, and no other may be there.
func phcParams(s string, names ...string) (map[string]int, error) {
	out := make(map[string]int, len(names))
	for _, part := range strings.Split(s, ",") {
		name, value, ok := strings.Cut(part, "=")
		n, err := strconv.ParseUint(value, 10, 31)
		if _, twice := out[name]; !ok || err != nil || twice {
			return nil, errors.New("parameters are not name=number, each once")
		}
		out[name] = int(n)
	}
	found := 0
	for _, name := range names {
		bare := strings.TrimSuffix(name, "?")
		if _, ok := out[bare]; ok {
			found++
		} else if bare == name {
			return nil, fmt.Errorf("parameter %s is missing", bare)
		}
	}
	if found != len(out) {
		return nil, errors.New("has an unknown parameter")
	}
	return out, nil
}

func saltAndHash(encoding *base64.Encoding, salt, hash string) (s, h []byte, err error) {
	// Some tools pad base64 though the PHC format does not.
	s, err = encoding.Strict().DecodeString(strings.TrimRight(salt, "="))
	if err != nil || len(s) == 0 || len(s) > maxSaltOrHashLen {
		return nil, nil, errors.New("the salt is no base64 of a sensible length")
	}
	h, err = encoding.Strict().DecodeString(strings.TrimRight(hash, "="))
	if err != nil || len(h) < minHashLen || len(h) > maxSaltOrHashLen {
		return nil, nil, errors.New("the hash is no base64 of a sensible length")
	}
	return s, h, nil
}
