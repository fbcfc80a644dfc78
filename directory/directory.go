package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// ErrNotFound says that no mailbox has the address, legacyDN or GUID asked for.
var ErrNotFound = errors.New("no such mailbox")

// ErrBadCredentials says that name and password do not belong together. It is
// the same for an unknown name and for a wrong password, on purpose.
var ErrBadCredentials = errors.New("unknown user or wrong password")

// A Directory finds mailboxes and checks logins. Every error other than
// [ErrNotFound] and [ErrBadCredentials] means that the directory itself failed.
// The mailboxes it returns are shared: callers must not change them.
type Directory interface {
	// ByAddress returns the mailbox that has address as its primary address or
	// as an alias. Letter case does not matter; the domain may be in Unicode.
	ByAddress(ctx context.Context, address string) (*Mailbox, error)

	// ByLegacyDN returns the mailbox with this X.500 distinguished name. Letter
	// case does not matter.
	ByLegacyDN(ctx context.Context, dn string) (*Mailbox, error)

	// ByGUIDAddress returns the mailbox that address names in the form
	// <mailbox-guid>@<domain of its primary address>, which is how MAPI clients
	// address a mailbox.
	ByGUIDAddress(ctx context.Context, address string) (*Mailbox, error)

	// Authenticate returns the mailbox whose address, alias or login is name,
	// after removing a leading DOMAIN\, and whose password is password. An
	// unknown name takes as long as a wrong password.
	Authenticate(ctx context.Context, name, password string) (*Mailbox, error)

	// Accounts returns the GUIDs of the mailboxes that name can log in to, none
	// for an unknown name. Failed logins are counted by them, so that somebody
	// with many names has no more tries than others.
	Accounts(ctx context.Context, name string) ([]string, error)
}

// Mailbox is one mailbox. In mailboxes that come out of a [Directory] the
// addresses are normalised (see [NormalizeAddress]), and LegacyDN and
// MailboxGUID are never empty.
type Mailbox struct {
	Address      string   // primary SMTP address
	Aliases      []string // further addresses of the same mailbox
	DisplayName  string   // shown in the client's profile; may be empty
	LegacyDN     string   // X.500 name, /o=…/ou=…/cn=Recipients/cn=…
	MailboxGUID  string   // 8-4-4-4-12 hexadecimal digits, lower case
	Login        string   // further user name for Basic; several mailboxes may share it
	Password     Secret   // plain text or a hash string; empty: nobody can log in
	Site         string   // name of the Active Directory site it lives in; may be empty
	Alternatives []AlternativeMailbox

	// RedirectAddress is the address under which a mailbox that lives in another
	// organisation is known there; usually empty.
	RedirectAddress string
}

// AlternativeMailbox is another mailbox that the owner of a [Mailbox] may open,
// and that Autodiscover tells the client about ([MS-OXDSCLI] 2.2.4.1.1.2.1). It
// is named either by SMTPAddress or by LegacyDN and Server.
type AlternativeMailbox struct {
	Type             string // Archive, Delegate or TeamMailbox
	DisplayName      string // may be empty
	SMTPAddress      string
	OwnerSMTPAddress string // whose archive it is; may be empty
	LegacyDN         string
	Server           string
}

// Secret is text that never shows up in logs, errors or JSON by accident:
// formatting it prints a placeholder. Convert it to string to read it.
type Secret string

// Format writes a placeholder, whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, secretPlaceholder) }

// String returns a placeholder.
func (Secret) String() string { return secretPlaceholder }

// MarshalText returns a placeholder; it never fails.
func (Secret) MarshalText() ([]byte, error) { return []byte(secretPlaceholder), nil }

const secretPlaceholder = "(secret)"
