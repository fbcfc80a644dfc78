package autodiscover

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/internal/throttle"
)

// loginResult says who asks. Exactly one of its parts is set; none means that
// the client has to (try again to) log in.
type loginResult struct {
	mailbox *directory.Mailbox
	wait    time.Duration // too many failures
	err     error         // the directory failed, or the client left
}

// login checks the credentials of a request. A missing login, one that is no
// Basic, an unknown user and a wrong password are one and the same to the client.
func (h *Handler) login(r *http.Request, source netip.Addr) loginResult {
	values := r.Header["Authorization"]
	if len(values) != 1 {
		return loginResult{}
	}
	readings := directory.ParseBasic(values[0])
	if len(readings) == 0 {
		return loginResult{}
	}
	names := make([]string, len(readings))
	var counted []string // what a failure counts against
	for i := range readings {
		names[i] = h.loginName(readings[i].Name)
		// The name alone as well, under which logins at bridged hosts are counted.
		counted = append(counted, throttle.Name(names[i]))
	}
	// Who is shut out whatever accounts the names have costs the directory nothing.
	if wait := h.throttle.Shut(source, names[0], counted...); wait > 0 {
		return h.shutOut(source, wait)
	}
	for i := range names {
		accounts, err := h.directory.Accounts(r.Context(), names[i])
		if err != nil {
			return loginResult{err: err}
		}
		if len(accounts) == 0 {
			accounts = []string{"unknown " + names[i]}
		}
		counted = append(counted, accounts...)
	}
	attempt, wait, err := h.throttle.Begin(r.Context(), source, names[0], counted...)
	switch {
	case err != nil:
		return loginResult{err: err}
	case wait > 0:
		return h.shutOut(source, wait)
	}
	// A panic below must not leave the attempt counted as running.
	v := throttle.Undecided
	defer func() { attempt.End(v) }()

	for i, reading := range readings {
		m, err := h.directory.Authenticate(r.Context(), names[i], string(reading.Password))
		switch {
		case err == nil:
			v = throttle.Accepted
			return loginResult{mailbox: m}
		case !errors.Is(err, directory.ErrBadCredentials):
			return loginResult{err: err}
		}
	}
	v = throttle.Rejected
	h.log.Warn().Stringer("source", source).Msg("login failed")
	h.log.Debug().Stringer("source", source).Str("user", names[0]).Msg("login failed")
	return loginResult{}
}

func (h *Handler) shutOut(source netip.Addr, wait time.Duration) loginResult {
	h.log.Info().Stringer("source", source).Dur("wait_ms", wait).Msg("login refused after too many failures")
	return loginResult{wait: wait}
}

// loginName is the name under which a login is checked and counted. In a domain
// with redirect_addr that is the address it stands for: the client follows the
// redirect with the credentials it began with.
func (h *Handler) loginName(name string) string {
	name = directory.NormalizeLogin(name)
	for range len(h.domains) { // longer chains are circles
		if !strings.Contains(name, "@") {
			break
		}
		d := h.domainOf(name)
		if d == nil || d.unusable != nil || d.RedirectAddr == "" || d.Action != ActionRedirect {
			break
		}
		name = d.redirectAddress(name)
	}
	return name
}

// clientAddr is the address of the client, without a port; invalid if RemoteAddr
// is none.
func clientAddr(r *http.Request) netip.Addr {
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		return ap.Addr().Unmap()
	}
	a, _ := netip.ParseAddr(r.RemoteAddr)
	return a.Unmap()
}
