package directory

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"
	"golang.org/x/net/idna"
)

// ldapAttributes are what Exchange writes into Active Directory, and what other
// directories have in their place: uid and entryUUID (RFC 4530).
var ldapAttributes = []string{
	"mail", "proxyAddresses", "displayName", "legacyExchangeDN", "userPrincipalName", "sAMAccountName", "uid",
	"msExchMailboxGuid", "objectGUID", "entryUUID", "userAccountControl", "msExchRecipientTypeDetails", "targetAddress",
}

func (d *LDAP) attributes() []string {
	if d.o.SiteAttribute == "" {
		return ldapAttributes
	}
	return append(slices.Clone(ldapAttributes), d.o.SiteAttribute)
}

// Bits of msExchRecipientTypeDetails.
const (
	// noAccount are the mailboxes whose account in this forest is always disabled,
	// because nobody logs in as them: linked, shared, room, equipment, public folder.
	noAccount = 1<<1 | 1<<2 | 1<<4 | 1<<5 | 1<<36
	// elsewhere are those that live in another organisation, usually the cloud:
	// remote user, room, equipment and shared mailboxes.
	elsewhere = 1<<31 | 1<<33 | 1<<34 | 1<<35
)

const accountDisabled = 1 << 1 // of userAccountControl

// maxAliases is how many addresses of an entry are read.
const maxAliases = 500

// ldapEntry is an entry that is a mailbox.
type ldapEntry struct {
	Mailbox
	dn       string
	names    []string // of the account: userPrincipalName, sAMAccountName, uid
	disabled bool     // nobody can log in, but the mailbox is there
}

// ByAddress implements [Directory].
func (d *LDAP) ByAddress(ctx context.Context, address string) (*Mailbox, error) {
	address, err := NormalizeAddress(address)
	if err != nil {
		return nil, ErrNotFound
	}
	return d.one(ctx, "address "+address, addressFilter(address), func(e *ldapEntry) bool { return e.has(address) })
}

// ByLegacyDN implements [Directory]. Former names, which Exchange keeps as X500:
// addresses, are names as well.
func (d *LDAP) ByLegacyDN(ctx context.Context, dn string) (*Mailbox, error) {
	escaped := ldap.EscapeFilter(dn)
	m, err := d.one(ctx, "dn "+foldCase(dn), "(|(legacyExchangeDN="+escaped+")(proxyAddresses=X500:"+escaped+"))", nil)
	if !errors.Is(err, ErrNotFound) {
		return m, err
	}
	// It may be one that we made, for an entry without: it has the GUID in it.
	_, guid, _ := strings.Cut(strings.ToLower(dn), "/cn=recipients/cn=")
	if len(guid) < 32 {
		return nil, ErrNotFound
	}
	guid = guid[:8] + "-" + guid[8:12] + "-" + guid[12:16] + "-" + guid[16:20] + "-" + guid[20:32]
	if m, err = d.byGUID(ctx, guid); err != nil {
		return nil, err
	}
	if foldCase(m.LegacyDN) != foldCase(dn) {
		return nil, ErrNotFound
	}
	return m, nil
}

// ByGUIDAddress implements [Directory].
func (d *LDAP) ByGUIDAddress(ctx context.Context, address string) (*Mailbox, error) {
	local, domain, err := splitAddress(address)
	if err != nil {
		return nil, ErrNotFound
	}
	m, err := d.byGUID(ctx, local)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(m.Address, "@"+domain) {
		return nil, ErrNotFound
	}
	return m, nil
}

func (d *LDAP) byGUID(ctx context.Context, text string) (*Mailbox, error) {
	guid, err := parseGUID(text)
	if err != nil {
		return nil, ErrNotFound
	}
	octets := guidOctets(guid)
	return d.one(ctx, "guid "+guid, "(|(msExchMailboxGuid="+octets+")(objectGUID="+octets+")(entryUUID="+guid+"))",
		func(e *ldapEntry) bool { return e.MailboxGUID == guid })
}

// Authenticate implements [Directory]. When several entries have the name, the
// password decides. An unknown name costs a bind as well.
func (d *LDAP) Authenticate(ctx context.Context, name, password string) (*Mailbox, error) {
	if password == "" {
		return nil, ErrBadCredentials
	}
	found, err := d.logins(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, d.verify(ctx, "CN=nobody at all,"+d.o.BaseDN, password, true)
	}
	for _, e := range found {
		err := d.verify(ctx, e.dn, password, false)
		if err == nil {
			return &e.Mailbox, nil
		}
		if !errors.Is(err, ErrBadCredentials) {
			return nil, err
		}
	}
	return nil, ErrBadCredentials
}

// Accounts implements [Directory].
func (d *LDAP) Accounts(ctx context.Context, name string) ([]string, error) {
	found, err := d.logins(ctx, name)
	var guids []string
	for _, e := range found {
		guids = append(guids, e.MailboxGUID)
	}
	return guids, err
}

// logins returns the entries that can log in by a name, the owner of the address
// first.
func (d *LDAP) logins(ctx context.Context, name string) ([]*ldapEntry, error) {
	name = NormalizeLogin(name)
	if name == "" || len(name) > 4*MaxAddressLength {
		return nil, nil
	}
	escaped := ldap.EscapeFilter(name)
	filter := "(|(sAMAccountName=" + escaped + ")(uid=" + escaped + "))"
	if address, err := NormalizeAddress(name); err == nil {
		filter = "(|" + addressFilter(address)
		for _, spelling := range spellings(address) {
			filter += "(userPrincipalName=" + ldap.EscapeFilter(spelling) + ")"
		}
		filter += ")"
	}
	found, err := d.lookup(ctx, "login "+name, filter, func(e *ldapEntry) bool {
		return !e.disabled && (e.has(name) || slices.Contains(e.names, name))
	})
	if len(found) > 1 {
		// The slice is that of the cache.
		found = slices.SortedStableFunc(slices.Values(found), func(a, b *ldapEntry) int { return rank(b.has(name)) - rank(a.has(name)) })
	}
	return found, err
}

func rank(first bool) int {
	if first {
		return 1
	}
	return 0
}

// one returns the one mailbox that matches. Two are no answer: which of them is
// meant cannot be known, and the wrong one must not be told.
func (d *LDAP) one(ctx context.Context, key, filter string, fits func(*ldapEntry) bool) (*Mailbox, error) {
	found, err := d.lookup(ctx, key, filter, fits)
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, ErrNotFound
	case len(found) > 1:
		return nil, errors.New("ldap: two entries have one address, legacyExchangeDN or GUID; look for the duplicate")
	}
	return &found[0].Mailbox, nil
}

// lookup returns the mailboxes that match, from the cache or from a server. What a
// server returns must fit as well: Active Directory compares without accents, so
// that pät finds pat.
func (d *LDAP) lookup(ctx context.Context, key, filter string, fits func(*ldapEntry) bool) ([]*ldapEntry, error) {
	if found, ok := d.cache.get(key); ok {
		return found, nil
	}
	entries, err := d.search(ctx, filter, maxSameName)
	if err != nil {
		return nil, err
	}
	var found []*ldapEntry
	for _, entry := range entries {
		if e := d.mailbox(entry); e != nil && (fits == nil || fits(e)) {
			found = append(found, e)
		}
	}
	d.cache.put(key, found)
	return found, nil
}

// has reports whether an address, normalised, is one of the mailbox.
func (e *ldapEntry) has(address string) bool {
	return e.Address == address || slices.Contains(e.Aliases, address)
}

// mailbox reads an entry; nil is one that is no mailbox: without an address, or a
// user whose account is disabled.
func (d *LDAP) mailbox(entry *ldap.Entry) *ldapEntry {
	get := entry.GetEqualFoldAttributeValue
	e := &ldapEntry{dn: entry.DN}
	add := func(text string) {
		address, err := NormalizeAddress(text)
		if err != nil || len(e.Aliases) >= maxAliases {
			return
		}
		if e.Address == "" {
			e.Address = address
		} else if !e.has(address) {
			e.Aliases = append(e.Aliases, address)
		}
	}
	proxies := entry.GetEqualFoldAttributeValues("proxyAddresses")
	// The primary address is the one with SMTP: in capitals.
	for _, prefix := range []string{"SMTP:", "", "smtp:"} {
		if prefix == "" {
			add(get("mail"))
			continue
		}
		for _, p := range proxies {
			if address, ok := strings.CutPrefix(p, prefix); ok {
				add(address)
			}
		}
	}
	if e.Address == "" {
		return nil
	}
	details, _ := strconv.ParseInt(get("msExchRecipientTypeDetails"), 10, 64)
	control, _ := strconv.ParseInt(get("userAccountControl"), 10, 64)
	if control&accountDisabled != 0 {
		if e.disabled = true; details&noAccount == 0 {
			return nil
		}
	}
	if details&elsewhere != 0 {
		target := get("targetAddress")
		if len(target) > 5 && strings.EqualFold(target[:5], "SMTP:") {
			target = target[5:]
		}
		if address, err := NormalizeAddress(target); err == nil && address != e.Address {
			e.RedirectAddress = address
		}
	}
	for _, attribute := range []string{"userPrincipalName", "sAMAccountName", "uid"} {
		for _, name := range entry.GetEqualFoldAttributeValues(attribute) {
			if name = NormalizeLogin(name); name != "" {
				e.names = append(e.names, name)
			}
		}
	}
	fine := func(text string, limit int) string {
		if badText(text, limit) != "" {
			return ""
		}
		return text
	}
	e.DisplayName = fine(get("displayName"), 256)
	if dn := fine(get("legacyExchangeDN"), 1024); strings.HasPrefix(dn, "/") {
		e.LegacyDN = dn
	}
	if d.o.SiteAttribute != "" {
		e.Site = fine(get(d.o.SiteAttribute), 256)
	}
	for _, attribute := range []string{"msExchMailboxGuid", "objectGUID"} {
		if octets := entry.GetEqualFoldRawAttributeValue(attribute); len(octets) == 16 && e.MailboxGUID == "" {
			e.MailboxGUID = guidText(octets)
		}
	}
	if guid, err := parseGUID(get("entryUUID")); err == nil && e.MailboxGUID == "" {
		e.MailboxGUID = guid
	}
	e.Identify()
	return e
}

// addressFilter matches the entries with an address, in every spelling of its
// domain.
func addressFilter(address string) string {
	filter := "(|"
	for _, spelling := range spellings(address) {
		escaped := ldap.EscapeFilter(spelling)
		filter += "(mail=" + escaped + ")(proxyAddresses=smtp:" + escaped + ")"
	}
	return filter + ")"
}

// spellings returns an address with its domain in A-labels and, where that is
// another one, in Unicode: directories have either.
func spellings(address string) []string {
	local, domain, _ := strings.Cut(address, "@")
	if unicode, err := idna.ToUnicode(domain); err == nil && unicode != domain {
		return []string{address, local + "@" + unicode}
	}
	return []string{address}
}

// swapped is where each octet of a GUID in Active Directory stands in its text:
// the first three numbers are little-endian ([MS-DTYP] section 2.3.4.2).
var swapped = [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}

func guidText(octets []byte) string {
	var b [16]byte
	for i, at := range swapped {
		b[at] = octets[i]
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// guidOctets is a GUID, checked, as the value of a filter.
func guidOctets(guid string) string {
	b, _ := hex.DecodeString(strings.ReplaceAll(guid, "-", ""))
	var out strings.Builder
	for _, at := range swapped {
		fmt.Fprintf(&out, `\%02x`, b[at])
	}
	return out.String()
}
