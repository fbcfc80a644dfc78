package directory

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxProblems bounds the report about a large file that is wrong throughout.
const maxProblems = 100

// Problem is one thing wrong with a mailboxes file.
type Problem struct {
	Line int    // first line is 1; 0 when no line is to blame
	Text string // names keys and lines, never addresses or passwords
}

// LoadError is everything that is wrong with a mailboxes file.
type LoadError struct {
	Path     string
	Problems []Problem
	Omitted  int // problems beyond those listed
}

// Error lists the problems, one a line, each as path:line: text.
func (e *LoadError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Path)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": " + p.Text)
	}
	if e.Omitted > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more problems", e.Path, e.Omitted)
	}
	return b.String()
}

// entry is a mailbox in an index.
type entry struct {
	Mailbox
	line     int
	password verifier // nil: nobody can log in
}

// index is a set of mailboxes, ready to be looked up. It is never changed once
// built. All keys are normalised.
type index struct {
	byAddress map[string]*entry // primary addresses and aliases
	byDN      map[string]*entry
	byGUID    map[string]*entry
	byLogin   map[string][]*entry
	loginable []*entry // those with a password, in file order
}

// candidates returns the mailboxes that name can log in to, the owner of the
// address first, then those that list it as their login, in file order.
func (ix *index) candidates(name string) []*entry {
	var out []*entry
	owner := ix.byAddress[name]
	if owner != nil && owner.password != nil {
		out = append(out, owner)
	}
	for _, e := range ix.byLogin[name] {
		if e != owner {
			out = append(out, e)
		}
	}
	return out
}

// builder fills an index and collects what is wrong on the way.
type builder struct {
	ix       *index
	err      LoadError
	plain    int // mailboxes with a plain password, and the line of the first
	plainRef int
}

func newBuilder(path string) *builder {
	return &builder{
		ix: &index{
			byAddress: map[string]*entry{},
			byDN:      map[string]*entry{},
			byGUID:    map[string]*entry{},
			byLogin:   map[string][]*entry{},
		},
		err: LoadError{Path: path},
	}
}

func (b *builder) problem(line int, format string, args ...any) {
	if len(b.err.Problems) >= maxProblems {
		b.err.Omitted++
		return
	}
	b.err.Problems = append(b.err.Problems, Problem{Line: line, Text: fmt.Sprintf(format, args...)})
}

// add checks one mailbox as it stands in the file and puts it into the index.
func (b *builder) add(line int, m Mailbox) {
	e := &entry{Mailbox: m, line: line}
	if m.Address == "" {
		b.problem(line, "the mailbox has no address")
		return
	}
	address, err := NormalizeAddress(m.Address)
	if err != nil {
		b.problem(line, "address: %v", err)
		return
	}
	e.Address = address
	b.claimAddress("address", address, e)
	e.Aliases = nil
	for _, alias := range m.Aliases {
		alias, err := NormalizeAddress(alias)
		if err != nil {
			b.problem(line, "aliases: %v", err)
			continue
		}
		e.Aliases = append(e.Aliases, alias)
		b.claimAddress("aliases", alias, e)
	}

	for _, f := range []struct {
		key, value string
		limit      int
	}{
		{"display_name", m.DisplayName, 256},
		{"legacy_dn", m.LegacyDN, 1024},
		{"login", m.Login, 320},
		{"site", m.Site, 256},
	} {
		if why := badText(f.value, f.limit); why != "" {
			b.problem(line, "%s %s", f.key, why)
		}
	}
	if m.LegacyDN != "" && !strings.HasPrefix(m.LegacyDN, "/") {
		b.problem(line, "legacy_dn does not begin with /; write /o=…/ou=…/cn=Recipients/cn=…")
	}
	if strings.Contains(m.Login, ":") {
		b.problem(line, "login has a colon, which HTTP Basic cannot carry")
	}
	if m.MailboxGUID != "" {
		guid, err := parseGUID(m.MailboxGUID)
		if err != nil {
			b.problem(line, "mailbox_guid %v", err)
		}
		e.MailboxGUID = guid
	}
	e.Alternatives = nil
	for _, a := range m.Alternatives {
		if a, err := checkAlternative(a); err != nil {
			b.problem(line, "alternative_mailboxes: %v", err)
		} else {
			e.Alternatives = append(e.Alternatives, a)
		}
	}

	// The index holds verifiers; the text of the password goes no further.
	e.Password = ""
	if m.Password != "" {
		e.password, err = parsePassword(string(m.Password))
		if err != nil {
			b.problem(line, "password: %v", err)
		} else {
			b.ix.loginable = append(b.ix.loginable, e)
			if e.password.plain() {
				if b.plain++; b.plain == 1 {
					b.plainRef = line
				}
			}
		}
	}

	// Two mailboxes with one address also derive one identity; once is enough.
	if e.Identify(); b.ix.byAddress[e.Address] == e {
		b.claim("legacy_dn", foldCase(e.LegacyDN), b.ix.byDN, e)
		b.claim("mailbox_guid", e.MailboxGUID, b.ix.byGUID, e)
	}
	if login := NormalizeLogin(m.Login); login != "" && e.password != nil {
		b.ix.byLogin[login] = append(b.ix.byLogin[login], e)
	} else if m.Login != "" && login == "" {
		b.problem(line, "login has nothing after the last backslash")
	}
}

// claimAddress is claim for addresses, which a mailbox could also repeat itself.
func (b *builder) claimAddress(key, address string, e *entry) {
	if b.ix.byAddress[address] == e {
		b.problem(e.line, "%s repeats an address of the same mailbox", key)
		return
	}
	b.claim(key, address, b.ix.byAddress, e)
}

// claim gives key to one mailbox; a second one that wants it is a problem that
// names both lines.
func (b *builder) claim(key, value string, owners map[string]*entry, e *entry) {
	if owner, taken := owners[value]; taken {
		b.problem(e.line, "%s already belongs to the mailbox on line %d; each may stand in the file once", key, owner.line)
		return
	}
	owners[value] = e
}

// finish returns the index, or a *LoadError with everything that is wrong.
func (b *builder) finish() (*index, error) {
	for login := range b.ix.byLogin {
		b.checkShared(login)
	}
	// The logins come out of a map; the report is in the order of the file.
	slices.SortStableFunc(b.err.Problems, func(x, y Problem) int { return x.Line - y.Line })
	if len(b.err.Problems) > 0 {
		return nil, &b.err
	}
	return b.ix, nil
}

// checkShared reports two mailboxes that share login and password, because nothing
// tells them apart. Equal entries are found here; two hashes of one password
// cannot be, and then the first mailbox in the file wins.
func (b *builder) checkShared(login string) {
	group := b.ix.candidates(login)
	seen := make(map[string]*entry, len(group))
	for _, e := range group {
		if other := seen[e.password.key()]; other != nil {
			first, second := min(e.line, other.line), max(e.line, other.line)
			b.problem(second, "login and password are those of the mailbox on line %d; give one of them another password", first)
			return
		}
		seen[e.password.key()] = e
	}
}

// checkAlternative returns a with its parts normalised.
func checkAlternative(a AlternativeMailbox) (AlternativeMailbox, error) {
	switch kind := strings.ToLower(a.Type); kind {
	case "archive":
		a.Type = "Archive"
	case "", "delegate":
		a.Type = "Delegate"
	case "teammailbox":
		a.Type = "TeamMailbox"
	default:
		return a, fmt.Errorf("the type is Archive, Delegate or TeamMailbox")
	}
	byName := a.LegacyDN != "" || a.Server != ""
	switch {
	case a.SMTPAddress != "" && byName:
		return a, fmt.Errorf("smtp_address excludes legacy_dn and server; write one form")
	case a.SMTPAddress == "" && (a.LegacyDN == "" || a.Server == ""):
		return a, fmt.Errorf("write smtp_address, or legacy_dn and server together")
	case byName && a.OwnerSMTPAddress != "":
		return a, fmt.Errorf("owner_smtp_address belongs to the form with smtp_address")
	}
	for _, p := range []*string{&a.SMTPAddress, &a.OwnerSMTPAddress} {
		if *p == "" {
			continue
		}
		n, err := NormalizeAddress(*p)
		if err != nil {
			return a, err
		}
		*p = n
	}
	for _, text := range []string{a.DisplayName, a.LegacyDN, a.Server} {
		if why := badText(text, 1024); why != "" {
			return a, fmt.Errorf("a value %s", why)
		}
	}
	return a, nil
}

// parseAlternative reads the short form [type:]address.
func parseAlternative(s string) AlternativeMailbox {
	kind, address, ok := strings.Cut(s, ":")
	if !ok {
		kind, address = "", s
	}
	return AlternativeMailbox{Type: kind, SMTPAddress: address}
}

// badText says what keeps text out of an XML document or a log line.
func badText(s string, limit int) string {
	switch {
	case !utf8.ValidString(s):
		return "is not UTF-8"
	case utf8.RuneCountInString(s) > limit:
		return fmt.Sprintf("has more than %d characters", limit)
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == 0xfffe || r == 0xffff }):
		return "has a control character"
	}
	return ""
}
