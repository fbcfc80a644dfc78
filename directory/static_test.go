package directory

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

const patDN = "/o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=4f1c09d2a7e34b10-pat"

const sampleYAML = `mailboxes:
  - address: Pat@Contoso.com
    aliases: [patricia@contoso.com, "pät@bücher.example"]
    display_name: Pat Doe
    legacy_dn: ` + patDN + `
    mailbox_guid: "{0C3DE0F1-6A52-4A55-9D9B-5F8F6F1F2B77}"
    login: CONTOSO\pat
    password: plain
    site: hq
    alternative_mailboxes:
      - helpdesk@contoso.com
      - archive:pat-archive@contoso.com
  - address: lee@contoso.com
    password: secret
`

const sampleCSV = "\ufeffaddress,aliases,display_name,legacy_dn,mailbox_guid,login,password,site,alternative_mailboxes\r\n" +
	"Pat@Contoso.com,patricia@contoso.com; pät@bücher.example,Pat Doe," + patDN +
	",0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77,CONTOSO\\pat,plain,hq,helpdesk@contoso.com archive:pat-archive@contoso.com\r\n" +
	"lee@contoso.com,,,,,,secret,,\r\n"

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, name, text string, options ...Option) *Static {
	t.Helper()
	s, err := Open(write(t, name, text), zerolog.Nop(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestOpenYAMLAndCSV(t *testing.T) {
	ctx := context.Background()
	want := &Mailbox{
		Address: "pat@contoso.com", Aliases: []string{"patricia@contoso.com", "pät@xn--bcher-kva.example"},
		DisplayName: "Pat Doe", LegacyDN: patDN, MailboxGUID: "0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77",
		Login: `CONTOSO\pat`, Site: "hq",
		Alternatives: []AlternativeMailbox{
			{Type: "Delegate", SMTPAddress: "helpdesk@contoso.com"},
			{Type: "Archive", SMTPAddress: "pat-archive@contoso.com"},
		},
	}
	for name, text := range map[string]string{"m.yaml": sampleYAML, "bom.yaml": "\ufeff" + strings.ReplaceAll(sampleYAML, "\n", "\r\n"), "m.CSV": sampleCSV} {
		s := open(t, name, text)
		if s.Len() != 2 {
			t.Errorf("%s: %d mailboxes, want 2", name, s.Len())
		}
		for _, a := range []string{"pat@contoso.com", "PATRICIA@contoso.com", "pät@Bücher.example", "pät@xn--bcher-kva.example"} {
			got, err := s.ByAddress(ctx, a)
			if err != nil {
				t.Fatalf("%s: %s: %v", name, a, err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: %s (-want +got):\n%s", name, a, d)
			}
		}
		if m, err := s.ByLegacyDN(ctx, strings.ToUpper(patDN)); err != nil || m.Address != want.Address {
			t.Errorf("%s: by legacyDN: %v, %v", name, m, err)
		}
		if m, err := s.ByGUIDAddress(ctx, "0C3DE0F1-6a52-4a55-9d9b-5f8f6f1f2b77@contoso.com"); err != nil || m.Address != want.Address {
			t.Errorf("%s: by GUID address: %v, %v", name, m, err)
		}
		for what, err := range map[string]error{
			"GUID in another domain": second(s.ByGUIDAddress(ctx, "0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77@bücher.example")),
			"unknown address":        second(s.ByAddress(ctx, "eve@contoso.com")),
			"no address":             second(s.ByAddress(ctx, "*)(x=*@contoso.com")),
			"unknown legacyDN":       second(s.ByLegacyDN(ctx, "/o=x")),
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: %s: %v, want ErrNotFound", name, what, err)
			}
		}
		// A mailbox that names neither gets a pair made from its address.
		lee, err := s.ByAddress(ctx, "lee@contoso.com")
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(lee.LegacyDN, strings.ReplaceAll(lee.MailboxGUID, "-", "")) || !strings.HasPrefix(lee.LegacyDN, "/o=contoso.com"+adminGroup+"/cn=Recipients/cn=") {
			t.Errorf("%s: derived legacyDN %q and GUID %q are no pair", name, lee.LegacyDN, lee.MailboxGUID)
		}
		if back, err := s.ByGUIDAddress(ctx, lee.MailboxGUID+"@contoso.com"); err != nil || back != lee {
			t.Errorf("%s: derived GUID does not lead back: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestIdentifyIsStable(t *testing.T) {
	m := Mailbox{Address: "pat@contoso.com"}
	m.Identify()
	// A changed derivation makes every Outlook profile out there invalid.
	if m.MailboxGUID != "7c1b0e15-af1f-589d-80c9-e22fe542c6e4" {
		t.Errorf("derived GUID changed to %s", m.MailboxGUID)
	}
}

func TestLogin(t *testing.T) {
	argon := "$argon2id$v=19$m=64,t=1,p=1$" + b64("saltsalt") + "$" + b64(string(argon2id{1, 64, 1, []byte("saltsalt"), make([]byte, 32)}.sum("argon")))
	s, err := New([]Mailbox{
		{Address: "pat@contoso.com", Aliases: []string{"patricia@contoso.com"}, Login: `CONTOSO\pat`, Password: "one"},
		{Address: "info@contoso.com", Login: "office", Password: "two"},
		{Address: "sales@contoso.com", Login: "OFFICE", Password: Secret(argon)},
		{Address: "jörg@contoso.com", Password: "geheimnis\u00e4"},
		{Address: "shared@contoso.com"},
	}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	f := func(name, password, want string) {
		t.Helper()
		m, err := s.Authenticate(context.Background(), name, password)
		switch {
		case want == "":
			if !errors.Is(err, ErrBadCredentials) {
				t.Errorf("%s/%s: %v, %v; want ErrBadCredentials", name, password, m, err)
			}
		case err != nil || m.Address != want:
			t.Errorf("%s/%s: %v, %v; want %s", name, password, m, err, want)
		}
	}
	f("pat@contoso.com", "one", "pat@contoso.com")
	f("PAT@Contoso.com", "one", "pat@contoso.com")
	f("patricia@contoso.com", "one", "pat@contoso.com")
	f("pat", "one", "pat@contoso.com")
	f(`contoso\PAT`, "one", "pat@contoso.com")
	f(`contoso\pat@contoso.com`, "one", "pat@contoso.com")
	f("pat", "One", "")
	f("pat", "", "")
	f("patricia", "one", "") // no login of that name
	f("office", "two", "info@contoso.com")
	f("office", "argon", "sales@contoso.com")
	f("office", "three", "")
	f("sales@contoso.com", "two", "") // the password of another mailbox that shares the login
	f("ju\u0308rg@contoso.com", "geheimnis\u00e4", "")
	f("jo\u0308rg@contoso.com", "geheimnisa\u0308", "jörg@contoso.com")
	f("shared@contoso.com", "", "")
	f("nobody", "one", "")
	f("", "", "")
}

func (a argon2id) sum(password string) []byte {
	for i := range a.hash {
		a.hash[i] = 0
	}
	return argon2.IDKey([]byte(password), a.salt, a.passes, a.kib, a.threads, uint32(len(a.hash)))
}

func b64(s string) string { return base64.RawStdEncoding.EncodeToString([]byte(s)) }

// Strings made by other implementations: the argon2 reference tool, passlib,
// Python's hashlib and OpenBSD's bcrypt test set.
func TestPasswordFormats(t *testing.T) {
	made, err := bcrypt.GenerateFromPassword([]byte("password"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	f := func(hash, password string) {
		t.Helper()
		v, err := parsePassword(hash)
		if err != nil {
			t.Errorf("%s: %v", hash, err)
			return
		}
		if !v.verify(password) {
			t.Errorf("%s does not accept %q", hash, password)
		}
		if v.verify(password + "x") {
			t.Errorf("%s accepts another password", hash)
		}
	}
	f("plain", "plain")
	f("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "password")
	f("$pbkdf2-sha256$i=1,l=32$c2FsdA$Eg+2z/z4syxD5yJSVsT4N6hlSMkszDVICAWYfLcL4Xs", "password")
	f("$pbkdf2-sha256$1$c2FsdA$Eg.2z/z4syxD5yJSVsT4N6hlSMkszDVICAWYfLcL4Xs", "password")
	f("$scrypt$ln=10,r=8,p=16$TmFDbA$/bq+HJ00cgB4VucZDQHp/nxq18vII3gw53N2Y0s3MWIurzDZLiKjiG/xCSedmDDaxyevuUqD7m2DYMvfoswGQA", "password")
	for _, version := range []string{"$2a$", "$2b$", "$2y$"} {
		f(version+string(made[4:]), "password")
	}
}

func TestMalformedHashesAreLoadErrors(t *testing.T) {
	for _, hash := range []string{
		"$", "$1$salt$hash", "$argon2i$v=19$m=64,t=1,p=1$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=16$m=64,t=1,p=1$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=19$m=64,t=1$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=19$m=64,t=1,p=1,x=2$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=19$m=64,t=0,p=1$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=19$m=4194304,t=1,p=1$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=19$m=64,t=1,p=1$$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$argon2id$v=19$m=64,t=1,p=1$c2FsdA$short", "$argon2id$v=19$m=64,t=1,p=1$c2FsdA$not base64 at all!",
		"$argon2id$v=19$m=64,t=1,p=1$c2FsdA",
		"$scrypt$ln=30,r=8,p=1$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "$scrypt$ln=1",
		"$pbkdf2-sha256$i=0$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc", "$pbkdf2-sha256$x$c2FsdA$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
		"$2b$04$tooshort", "$2b$31$" + strings.Repeat("a", 53), "$2b$04$" + strings.Repeat("!", 53), "$2x$04$" + strings.Repeat("a", 53),
	} {
		_, err := New([]Mailbox{{Address: "pat@contoso.com", Password: Secret(hash)}}, zerolog.Nop())
		var load *LoadError
		if !errors.As(err, &load) {
			t.Errorf("%s: %v; want a LoadError", hash, err)
		} else if len(hash) > 1 && strings.Contains(err.Error(), hash) {
			t.Errorf("the error repeats the hash: %v", err)
		}
	}
}

func TestProblemsAreReportedTogether(t *testing.T) {
	f := func(name, text string, want ...string) {
		t.Helper()
		path := write(t, name, text)
		_, err := Open(path, zerolog.Nop())
		if err == nil {
			t.Errorf("no error for\n%s", text)
			return
		}
		got := strings.ReplaceAll(err.Error(), path, "m")
		if d := cmp.Diff(strings.Join(want, "\n"), got); d != "" {
			t.Errorf("for\n%s\n(-want +got):\n%s", text, d)
		}
		for _, secret := range []string{"hunter2", "pat@contoso.com"} {
			if strings.Contains(got, secret) {
				t.Errorf("the error repeats %s", secret)
			}
		}
	}
	f("m.yaml", `mailboxes:
  - address: pat@contoso.com
    aliases: [x@contoso.com]
    pasword: hunter2
  - address: Pat@contoso.com
    login: "a:b"
    aliases: y@contoso.com
  - display_name: Nobody
  - address: z@contoso.com
    aliases: [X@CONTOSO.com, z@contoso.com]
    password: $6$hunter2
    legacy_dn: CN=z
    mailbox_guid: 12
    alternative_mailboxes:
      - boss:q@contoso.com
      - {legacy_dn: /o=x}
      - {colour: blue}
  - just text
  - address:
mailbox: []
`,
		`m:4: unknown key "pasword"; a mailbox has `+mailboxKeys,
		`m:5: address already belongs to the mailbox on line 2; each may stand in the file once`,
		`m:5: login has a colon, which HTTP Basic cannot carry`,
		`m:7: aliases is not a list; write [one, two]`,
		`m:8: the mailbox has no address`,
		`m:9: aliases already belongs to the mailbox on line 2; each may stand in the file once`,
		`m:9: aliases repeats an address of the same mailbox`,
		`m:9: legacy_dn does not begin with /; write /o=…/ou=…/cn=Recipients/cn=…`,
		`m:9: alternative_mailboxes: the type is Archive, Delegate or TeamMailbox`,
		`m:9: alternative_mailboxes: write smtp_address, or legacy_dn and server together`,
		`m:9: password: begins with $ but is no known hash; use argon2id, scrypt, pbkdf2-sha256 or bcrypt, and no plain password that begins with $`,
		`m:13: mailbox_guid is not text; put it into quotes`,
		`m:17: unknown key "colour"; alternative_mailboxes have type, display_name, smtp_address, owner_smtp_address, legacy_dn, server`,
		`m:18: a mailbox is not a set of key: value`,
		`m:19: address is empty; leave the key out`,
		`m:19: the mailbox has no address`,
		`m:20: unknown key; the only one at the top is mailboxes`,
	)
	f("m.yaml", "mailboxes:\n  - address: a@contoso.com\n    login: office\n    password: hunter2\n  - address: b@contoso.com\n    login: X\\office\n    password: hunter2\n",
		`m:5: login and password are those of the mailbox on line 2; give one of them another password`)
	f("m.yaml", "mailboxes: pat\n", `m:1: mailboxes is not a list`)
	f("m.yaml", "mailboxes:\n  - &a\n    address: a@contoso.com\n  - *a\n",
		`m:2: a mailbox is not a set of key: value`, `m:4: a mailbox is not a set of key: value`)
	f("m.yaml", "", `m:1: the file is empty; write mailboxes: and a list`)
	f("m.yaml", "mailboxes: []\n---\nmailboxes: []\n", `m:3: a second YAML document; write all mailboxes in one`)
	f("m.yaml", "mailboxes:\n  - address: p\xe4t@contoso.com\n", `m:2: the line is not UTF-8; save the file as UTF-8`)
	f("m.yaml", "- a\n", `m:1: the file is not a set of key: value`)
	f("m.csv", "", `m:1: the file is empty; the first line names the columns: `+mailboxKeys)
	f("m.csv", "addres,password,password\n",
		`m:1: unknown column "addres"; the columns are `+mailboxKeys+`, separated by commas`,
		`m:1: the column "password" is there twice`,
		`m:1: the column address is missing; the first line names the columns`)
	f("m.csv", "address,password\npat@contoso.com,hunter2\n\npat@contoso.com,\nx@contoso.com\n\"y\n@contoso.com\",hunter2\n\xff@contoso.com,\n\"a\"b,c\n",
		`m:4: address already belongs to the mailbox on line 2; each may stand in the file once`,
		`m:5: has 1 columns, the first line has 2`,
		`m:6: address: the address has a character that is not allowed before the @`,
		`m:8: address is not UTF-8; save the file as UTF-8`,
		`m:8: the mailbox has no address`,
		`m:9: no valid CSV: extraneous or missing " in quoted-field`)
}

func TestYAMLSyntaxErrorsQuoteNoSource(t *testing.T) {
	for _, text := range []string{
		"mailboxes:\n  - address: pat@contoso.com\n    password: hunter2\n   bad: [\n",
		"mailboxes:\n  - password: \"hunter2\n",
		"mailboxes:\n  - password: hunter2\n    password: hunter2\n",
		"mailboxes: [hunter2: : x\n",
		"mailboxes:\n- password: hunter2 hunter2: x: y\n",
		"mailboxes:\n\t- password: hunter2\n",
		"hunter2",
		"hunter2: x\n",
	} {
		_, err := Open(write(t, "m.yaml", text), zerolog.Nop())
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestPlainPasswordsWarnOutsideTheLab(t *testing.T) {
	var log bytes.Buffer
	path := write(t, "m.yaml", sampleYAML)
	for _, lab := range []bool{false, true} {
		log.Reset()
		var options []Option
		if lab {
			options = append(options, Lab())
		}
		s, err := Open(path, zerolog.New(&log), options...)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		if warned := strings.Contains(log.String(), `"mailboxes":2,"first_line":2`); warned == lab {
			t.Errorf("lab %v: log %q", lab, log.String())
		}
		if strings.Contains(log.String(), "secret") || strings.Contains(log.String(), "contoso") {
			t.Errorf("the log tells too much: %s", log.String())
		}
	}
}

func TestReloadOnChange(t *testing.T) {
	log := &lockedBuffer{}
	path := write(t, "m.yaml", sampleYAML)
	s, err := Open(path, zerolog.New(log), PollInterval(5*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	replace := func(text, wantLog string) {
		t.Helper()
		temp := path + ".new"
		if err := os.WriteFile(temp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, path); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(30 * time.Second); !strings.Contains(log.String(), wantLog); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("no %q in the log: %s", wantLog, log.String())
			}
		}
	}
	replace("mailboxes:\n  - address: lee@contoso.com\n  - address: lee@contoso.com\n", "address already belongs to the mailbox on line 2")
	if _, err := s.ByAddress(ctx, "pat@contoso.com"); err != nil {
		t.Errorf("a bad file replaced the old content: %v", err)
	}
	replace("mailboxes:\n  - address: new@contoso.com\n", `"mailboxes":1,"message":"mailboxes reloaded"`)
	if _, err := s.ByAddress(ctx, "new@contoso.com"); err != nil {
		t.Errorf("the good file is not in use: %v", err)
	}
	if _, err := s.ByAddress(ctx, "pat@contoso.com"); !errors.Is(err, ErrNotFound) {
		t.Errorf("the old content is still there: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(); err == nil {
		t.Error("reload without a file succeeds")
	}
	if n := strings.Count(log.String(), "old ones stay in use"); n < 1 || n > 2 {
		t.Errorf("a bad file is reported %d times", n)
	}
	if err := s.Close(); err != nil || s.Close() != nil {
		t.Error("Close cannot be called twice")
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// countingVerifier stands for any hash; it counts its work.
type countingVerifier struct{ n *int }

func (c countingVerifier) verify(string) bool { *c.n++; return false }
func (countingVerifier) plain() bool          { return false }
func (countingVerifier) key() string          { return "" }

func TestUnknownUserDoesTheWorkOfAWrongPassword(t *testing.T) {
	s, err := New([]Mailbox{{Address: "a@contoso.com", Password: "x"}, {Address: "b@contoso.com", Password: "y"}}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range s.index.Load().loginable {
		e.password = countingVerifier{&n}
	}
	for _, name := range []string{"a@contoso.com", "nobody@contoso.com", "nobody", "", `X\y`} {
		n = 0
		if _, err := s.Authenticate(context.Background(), name, "z"); !errors.Is(err, ErrBadCredentials) {
			t.Fatal(err)
		}
		if n != 1 {
			t.Errorf("%q costs %d checks, want 1", name, n)
		}
	}
}

func TestAuthenticateGivesUpWithItsContext(t *testing.T) {
	s, err := New([]Mailbox{{Address: "a@contoso.com", Password: "$pbkdf2-sha256$i=1,l=32$c2FsdA$Eg+2z/z4syxD5yJSVsT4N6hlSMkszDVICAWYfLcL4Xs"}}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	for range runtime.GOMAXPROCS(0) {
		s.hashing <- struct{}{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Authenticate(ctx, "a@contoso.com", "password"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	m := Mailbox{Address: "a@contoso.com", Password: "hunter2"}
	var log bytes.Buffer
	zl := zerolog.New(&log)
	zl.Info().Interface("m", m).Stringer("p", m.Password).Msg("")
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s %q %x", m, m, m, m.Password, m.Password, m.Password), log.String()} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, "68756e74657232") {
			t.Errorf("secret shown: %s", text)
		}
	}
}

func TestParseBasic(t *testing.T) {
	enc := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	f := func(header string, want ...Credential) {
		t.Helper()
		got := ParseBasic(header)
		if len(got) != len(want) {
			t.Errorf("%q: %d readings, want %d", header, len(got), len(want))
			return
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%q: reading %d is %q/%q", header, i, got[i].Name, string(got[i].Password))
			}
		}
	}
	f(enc("pat:pass:word"), Credential{"pat", "pass:word"})
	f("bAsIc "+base64.StdEncoding.EncodeToString([]byte("pat:x")), Credential{"pat", "x"})
	f(enc("pat:"), Credential{"pat", ""})
	f(enc("pat:p\xe4ss"), Credential{"pat", "päss"})
	f(enc("pat:päss"), Credential{"pat", "päss"}, Credential{"pat", "pÃ¤ss"})
	f(enc("pat"))
	f(enc("pat:x\r\ny"))
	f("")
	f("Basic")
	f("Basic !!!")
	f("Bearer ")
	f("NTLM TlRMTVNTUAABAAAA")
}

func TestLargeCSV(t *testing.T) {
	var b strings.Builder
	b.WriteString("address,display_name\n")
	const n = 30_000
	for i := range n {
		fmt.Fprintf(&b, "user%d@contoso.com,User %d\n", i, i)
	}
	start := time.Now()
	s := open(t, "m.csv", b.String())
	if s.Len() != n {
		t.Errorf("%d mailboxes, want %d", s.Len(), n)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("loading took %v", d)
	}
}
