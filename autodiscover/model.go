package autodiscover

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/autodgate/autodgate/directory"
)

// Action says what is done for the mailboxes of a mail domain.
type Action string

// The actions of a [Domain].
const (
	ActionAnswer   Action = "answer"   // we tell the settings
	ActionRedirect Action = "redirect" // we name another address or URL
	ActionBridge   Action = "bridge"   // a server behind us answers; not by this handler, which says 602
)

// Domain is how Autodiscover answers for one mail domain. URLs are https and
// name a server only, without a path.
type Domain struct {
	Action      Action
	ExternalURL string // where EWS, OAB, OWA and MAPI are published
	InternalURL string // the same for clients in the internal networks
	AuthPackage string // AuthPackage in the answers; empty: the element is left out

	RedirectAddr string // "@contoso.com" keeps the local part; a full address is used as it is
	RedirectURL  string // another server's autodiscover.xml; excludes RedirectAddr

	// ServerVersion is the Exchange version told to clients, as
	// major.minor.build; empty means [DefaultServerVersion]. Before 15.0.847
	// (Exchange 2013 SP1) there is no MAPI over HTTP to offer.
	ServerVersion string
	// OfflineAddressBook is the GUID of the address book, the directory below
	// /OAB/ in which Exchange keeps it; empty: clients are told /OAB/.
	OfflineAddressBook string
	// PublicFolderMailbox is the address through which clients find the public
	// folder hierarchy; empty: none.
	PublicFolderMailbox string
}

// DefaultServerVersion is told to clients of domains that name no version:
// Exchange Server SE, of which clients expect everything that we announce.
const DefaultServerVersion = "15.2.2562"

// domain is a Domain, checked. Its URLs have no slash at the end.
type domain struct {
	Domain
	name         string
	version      serverVersion
	publicFolder string // normalised PublicFolderMailbox
	unusable     error  // why nobody of this domain can be answered: ErrorCode 602
}

// newDomain checks d. What is wrong with a domain breaks that domain alone.
func newDomain(name string, d Domain) *domain {
	out := &domain{Domain: d, name: name}
	out.unusable = out.check()
	return out
}

func (d *domain) check() (err error) {
	switch d.Action {
	case ActionBridge:
		return errors.New("a bridged domain is answered by its own servers, not by this one")
	case ActionRedirect:
		return d.checkRedirect()
	case ActionAnswer:
	default:
		return fmt.Errorf("unknown action %q", d.Action)
	}
	if d.ExternalURL, err = baseURL(d.ExternalURL); err != nil {
		return fmt.Errorf("external_url: %w", err)
	}
	if d.InternalURL, err = baseURL(d.InternalURL); err != nil {
		return fmt.Errorf("internal_url: %w", err)
	}
	if d.ExternalURL == "" && d.InternalURL == "" {
		return errors.New("neither external_url nor internal_url is set")
	}
	if d.ServerVersion == "" {
		d.ServerVersion = DefaultServerVersion
	}
	if d.version, err = parseVersion(d.ServerVersion); err != nil {
		return err
	}
	if d.PublicFolderMailbox != "" {
		if d.publicFolder, err = directory.NormalizeAddress(d.PublicFolderMailbox); err != nil {
			return fmt.Errorf("public folder mailbox: %w", err)
		}
	}
	d.AuthPackage = strings.ToLower(strings.TrimSpace(d.AuthPackage))
	return nil
}

func (d *domain) checkRedirect() (err error) {
	switch {
	case (d.RedirectAddr == "") == (d.RedirectURL == ""):
		return errors.New("a redirected domain has either redirect_addr or redirect_url")
	case strings.HasPrefix(d.RedirectAddr, "@"):
		target, err := directory.NormalizeDomain(d.RedirectAddr[1:])
		if err != nil {
			return fmt.Errorf("redirect_addr: %w", err)
		}
		d.RedirectAddr = "@" + target
	case d.RedirectAddr != "":
		if d.RedirectAddr, err = directory.NormalizeAddress(d.RedirectAddr); err != nil {
			return fmt.Errorf("redirect_addr: %w", err)
		}
	default:
		u, err := url.Parse(d.RedirectURL)
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			return errors.New("redirect_url is no https URL")
		}
	}
	return nil
}

// redirectAddress returns the address that stands for address in a domain with
// RedirectAddr.
func (d *domain) redirectAddress(address string) string {
	if !strings.HasPrefix(d.RedirectAddr, "@") {
		return d.RedirectAddr
	}
	local, _, _ := strings.Cut(address, "@")
	return local + d.RedirectAddr
}

// baseURL returns s without a slash at the end; an empty s stays empty.
func baseURL(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	u, err := url.Parse(strings.TrimSuffix(s, "/"))
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil ||
		u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("is not https://name without a path")
	}
	return u.String(), nil
}

// serverVersion is an Exchange version.
type serverVersion struct{ major, minor, build int }

func parseVersion(s string) (v serverVersion, err error) {
	parts := strings.Split(s, ".")
	if len(parts) < 3 {
		return v, errors.New("the server version is not major.minor.build")
	}
	for i, limit := range []int{1 << 6, 1 << 6, 1 << 15} {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 || n >= limit {
			return v, errors.New("the server version is not major.minor.build")
		}
		*[]*int{&v.major, &v.minor, &v.build}[i] = n
	}
	return v, nil
}

// hex is the version as ServerVersion has it: 15.1.2507 is 73C189CB. The constant
// bits say that it is a version in the format of Exchange 2007 and later.
func (v serverVersion) hex() string {
	return fmt.Sprintf("%08X", 0x70008000|v.major<<22|v.minor<<16|v.build)
}

// mapiHTTP reports whether servers of this version speak MAPI over HTTP.
func (v serverVersion) mapiHTTP() bool {
	return v.major > 15 || v.major == 15 && (v.minor > 0 || v.build >= 847)
}

// client is what the request says about the program that sent it.
type client struct {
	inside     bool // its address is in an internal network
	mapiHTTP   bool // X-MapiHttpCapability: 1 or more
	exHTTPInfo bool // X-ClientCanHandle: ExHttpInfo
	negotiate  bool // X-ClientCanHandle: Negotiate
}

// settings is what a client is told about one mailbox, in no dialect.
type settings struct {
	displayName  string
	address      string // the address later runs should use
	legacyDN     string // a pair with mailboxID, see directory.Mailbox.Identify
	mailboxID    string // <guid>@<domain>
	deploymentID string
	domain       string // of address
	site         string
	addressBook  string
	version      serverVersion
	authPackage  string // empty: not told
	external     string // https://name, empty when there is none
	internal     string
	inside       bool
	alternatives []directory.AlternativeMailbox
	publicFolder string
}

// near is the server for the place the client is at now.
func (s *settings) near() string {
	if s.inside {
		return s.inner()
	}
	return s.outer()
}

// inner and outer are the two servers, each standing in for the other where only
// one is configured.
func (s *settings) inner() string { return firstOf(s.internal, s.external) }
func (s *settings) outer() string { return firstOf(s.external, s.internal) }

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// outcome is the answer in no dialect: exactly one of code, redirectAddr,
// redirectURL and settings is set.
type outcome struct {
	code         errorCode
	why          string // for the log, only with code
	redirectAddr string
	redirectURL  string
	settings     *settings
}

func failed(code errorCode, why string) outcome { return outcome{code: code, why: why} }
