package autodiscover

import (
	"context"
	"errors"
	"net/url"
	"strings"

	"github.com/autodgate/autodgate/directory"
)

// query is a checked question in no dialect.
type query struct {
	address  string             // normalised; may be empty when legacyDN is set
	legacyDN string             // decides when it is set
	login    *directory.Mailbox // who asks; nil when no login is needed
	host     string             // the host the question was sent to
}

// resolve finds the answer to a question. Errors are those of the directory.
func (h *Handler) resolve(ctx context.Context, q query, c client) (outcome, error) {
	if h.directory == nil {
		return h.resolveByDomain(q, c), nil
	}
	var m *directory.Mailbox
	var err error
	if q.legacyDN != "" {
		m, err = h.directory.ByLegacyDN(ctx, q.legacyDN)
	} else {
		d := h.domainOf(q.address)
		switch {
		case d == nil:
			return failed(codeNotFound, "the domain is not served"), nil
		case d.unusable != nil:
			return failed(codeBadConfig, d.unusable.Error()), nil
		case d.Action == ActionRedirect:
			// By domain alone: the mailbox need not exist here, its new home knows.
			return redirect(d, q.address, q.host), nil
		}
		m, err = h.byAddress(ctx, q.address)
	}
	if errors.Is(err, directory.ErrNotFound) {
		return failed(codeNotFound, "no such mailbox"), nil
	}
	if err != nil {
		return outcome{}, err
	}
	if !h.permitted(q.login, m) {
		// As if it did not exist: whoever has one password learns nothing of others.
		return failed(codeNotFound, "not a mailbox this login may ask about"), nil
	}

	if m.RedirectAddress != "" && m.RedirectAddress != q.address {
		return outcome{redirectAddr: m.RedirectAddress}, nil
	}

	// A mailbox belongs to the domain of its primary address; where that one is not
	// answered, the domain that was asked for stands in, and its address with it.
	address := m.Address
	d := h.domainOf(address)
	if asked := h.domainOf(q.address); q.legacyDN == "" && (d == nil || d.Action != ActionAnswer) {
		d, address = asked, q.address
	}
	switch {
	case d == nil:
		return failed(codeNoSettings, "the domain of the mailbox is not served"), nil
	case d.unusable != nil:
		return failed(codeBadConfig, d.unusable.Error()), nil
	case d.Action == ActionRedirect:
		return redirect(d, address, q.host), nil
	}
	s := h.settings(d, m, c)
	s.address = address
	s.alternatives = h.alternatives(ctx, m)
	return outcome{settings: s}, nil
}

// resolveByDomain answers without a directory: every mailbox of a domain exists,
// and all get the same answer. It comes without a login, so it tells clients
// outside nothing about the inside when there is anything else to tell.
func (h *Handler) resolveByDomain(q query, c client) outcome {
	d := h.domainOf(q.address)
	switch {
	case d == nil:
		return failed(codeNotFound, "the domain is not served")
	case d.unusable != nil:
		return failed(codeBadConfig, d.unusable.Error())
	}
	m := &directory.Mailbox{Address: q.address, DisplayName: q.address}
	m.Identify()
	if q.legacyDN != "" && !strings.EqualFold(q.legacyDN, m.LegacyDN) {
		// The DN decides, and the only ones we know are those that we make.
		return failed(codeNotFound, "no mailbox with this legacyDN")
	}
	if d.Action == ActionRedirect {
		return redirect(d, q.address, q.host)
	}
	s := h.settings(d, m, c)
	if !c.inside && s.external != "" {
		s.internal = ""
	}
	return outcome{settings: s}
}

// redirect sends a client elsewhere, but never to where it is: clients follow ten
// times before they notice.
func redirect(d *domain, address, host string) outcome {
	if d.RedirectURL != "" {
		u, err := url.Parse(d.RedirectURL)
		if err != nil || sameHost(u, host) && strings.EqualFold(u.Path, poxPath) {
			return failed(codeBadConfig, "redirect_url is the URL that was asked")
		}
		return outcome{redirectURL: d.RedirectURL}
	}
	target := d.redirectAddress(address)
	if target == address {
		return failed(codeBadConfig, "redirect_addr is the address that was asked about")
	}
	return outcome{redirectAddr: target}
}

// sameHost compares a target with a Host header. A port counts only where both
// have one: in between, ports may be mapped.
func sameHost(target *url.URL, host string) bool {
	asked := url.URL{Host: host}
	return strings.EqualFold(target.Hostname(), asked.Hostname()) &&
		(target.Port() == asked.Port() || target.Port() == "" || asked.Port() == "")
}

func (h *Handler) byAddress(ctx context.Context, address string) (*directory.Mailbox, error) {
	m, err := h.directory.ByAddress(ctx, address)
	if errors.Is(err, directory.ErrNotFound) {
		return h.directory.ByGUIDAddress(ctx, address)
	}
	return m, err
}

// permitted reports whether a login may ask about a mailbox: its own under any of
// its names, those listed as its alternative mailboxes (clients ask about each
// with the credentials of the owner), and the public folder mailbox of its domain.
func (h *Handler) permitted(login, m *directory.Mailbox) bool {
	if login.Address == m.Address {
		return true
	}
	for _, a := range login.Alternatives {
		if a.SMTPAddress != "" && hasAddress(m, a.SMTPAddress) || a.LegacyDN != "" && strings.EqualFold(a.LegacyDN, m.LegacyDN) {
			return true
		}
	}
	d := h.domainOf(login.Address)
	return d != nil && d.publicFolder != "" && hasAddress(m, d.publicFolder)
}

func hasAddress(m *directory.Mailbox, address string) bool {
	if m.Address == address {
		return true
	}
	for _, alias := range m.Aliases {
		if alias == address {
			return true
		}
	}
	return false
}

func (h *Handler) settings(d *domain, m *directory.Mailbox, c client) *settings {
	primary := domainPart(m.Address)
	return &settings{
		displayName:  firstOf(m.DisplayName, m.Address),
		address:      m.Address,
		legacyDN:     m.LegacyDN,
		mailboxID:    m.MailboxGUID + "@" + primary,
		deploymentID: directory.DeriveGUID("deployment", d.name),
		domain:       primary,
		site:         m.Site,
		addressBook:  d.OfflineAddressBook,
		version:      d.version,
		authPackage:  d.AuthPackage,
		external:     d.ExternalURL,
		internal:     d.InternalURL,
		inside:       c.inside,
		publicFolder: d.publicFolder,
	}
}

// alternatives completes what the directory says about the alternative mailboxes
// of m: the name of those that have none, and whose they are.
func (h *Handler) alternatives(ctx context.Context, m *directory.Mailbox) []directory.AlternativeMailbox {
	out := make([]directory.AlternativeMailbox, 0, len(m.Alternatives))
	for _, a := range m.Alternatives {
		if a.SMTPAddress != "" && a.OwnerSMTPAddress == "" {
			// An archive is its owner's; Exchange repeats the address for the others.
			if a.OwnerSMTPAddress = a.SMTPAddress; a.Type == "Archive" {
				a.OwnerSMTPAddress = m.Address
			}
		}
		if a.DisplayName == "" && a.SMTPAddress != "" {
			a.DisplayName = a.SMTPAddress
			// A name is not worth failing for.
			if other, err := h.directory.ByAddress(ctx, a.SMTPAddress); err == nil {
				a.DisplayName = firstOf(other.DisplayName, a.SMTPAddress)
			}
		}
		out = append(out, a)
	}
	return out
}

// domainOf returns the domain of a normalised address, or nil.
func (h *Handler) domainOf(address string) *domain { return h.domains[domainPart(address)] }

func domainPart(address string) string { return address[strings.LastIndexByte(address, '@')+1:] }
