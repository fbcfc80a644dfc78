package directory

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	ber "github.com/go-asn1-ber/asn1-ber"
	"github.com/go-ldap/ldap/v3"
	"github.com/rs/zerolog"
)

const (
	// ldapSearches and ldapBinds are how many of each run at once. Whoever comes
	// later waits, and not longer than for a server.
	ldapSearches = 4
	ldapBinds    = 8

	ldapIdle = time.Minute      // a connection that was silent for longer is not used again
	ldapDown = 15 * time.Second // a server that failed is asked last for that long

	// maxMessage is the largest LDAP message taken from a server, and maxAnswer the
	// most that it may send for one question, both in bytes. An entry with 500
	// addresses has 20 KiB.
	maxMessage = 1 << 20
	maxAnswer  = 16 << 20
	// maxDiagnostic is how much of what a server says about an error goes into the
	// log, in bytes.
	maxDiagnostic = 300

	// maxSameName is how many entries may have the name that is looked for.
	maxSameName = 8
	pageSize    = 500 // Active Directory gives 1000 entries and no more without pages
)

// The library would read a message of any length that a server announces, and
// knows no other way to be told.
func init() { ber.MaxPacketLengthBytes = maxMessage }

// LDAPOptions says where an [LDAP] directory is and how it is asked.
type LDAPOptions struct {
	// Servers are ldaps://host[:port], or ldap://host[:port] where TLS begins with
	// STARTTLS, in the order they are asked in. Nothing is ever asked in clear.
	Servers []string
	TLS     *tls.Config // with which CAs the servers are verified; nil: the system's
	BaseDN  string      // where in the tree the mailboxes are

	// BindDN is the account that searches, empty for nobody (anonymous), and
	// PasswordFile the file with its password, read for every new connection.
	BindDN, PasswordFile string

	Filter        string // which entries are mailboxes; empty: [DefaultFilter]
	SiteAttribute string // whose value is the site of a mailbox; empty: none

	Timeout      time.Duration // for one server and one question; 0: 5 s
	CacheAge     time.Duration // how long answers are kept; 0: not at all
	CacheEntries int           // how many answers are kept, and how many times "there is none"

	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // nil: the network
	Logger zerolog.Logger
}

// DefaultFilter matches the users of Active Directory, without its contacts and
// groups, and the people of other directories.
const DefaultFilter = "(|(objectClass=user)(objectClass=inetOrgPerson))"

// LDAP is a [Directory] over one or more LDAP servers that hold the same entries.
// Passwords are verified by a bind as the user, each over a connection of its own
// that is closed afterwards: no connection ever carries two users. Referrals are
// not followed: they would take the password to a server that nobody configured.
// It is safe for concurrent use.
type LDAP struct {
	o        LDAPOptions
	log      zerolog.Logger
	servers  []*ldapServer
	searches chan struct{}
	binds    chan struct{}
	cache    *ldapCache

	mu      sync.Mutex // guards what follows
	closed  bool
	refused refusal
}

var _ Directory = (*LDAP)(nil)

// refusal is a password of our own that a server refused. Trying it with every
// request would lock the account.
type refusal struct {
	password Secret
	err      error
	until    time.Time
}

// OpenLDAP returns a directory over LDAP. It connects when it is asked something,
// so that a front door can start before its directory; an error is about the
// options.
func OpenLDAP(o LDAPOptions) (*LDAP, error) {
	if len(o.Servers) == 0 {
		return nil, errors.New("ldap: no server")
	}
	if (o.BindDN == "") != (o.PasswordFile == "") {
		return nil, errors.New("ldap: an account and a password file go together")
	}
	if _, err := ldap.ParseDN(o.BaseDN); err != nil {
		return nil, fmt.Errorf("ldap: the base DN %q is none: %w", o.BaseDN, err)
	}
	if o.Filter == "" {
		o.Filter = DefaultFilter
	}
	if _, err := ldap.CompileFilter(o.Filter); err != nil {
		return nil, fmt.Errorf("ldap: the filter %q is none: %w", o.Filter, err)
	}
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	d := &LDAP{
		o: o, log: o.Logger, cache: newLDAPCache(o.CacheAge, o.CacheEntries),
		searches: make(chan struct{}, ldapSearches), binds: make(chan struct{}, ldapBinds),
	}
	for _, text := range o.Servers {
		s, err := newLDAPServer(text, o.TLS)
		if err != nil {
			return nil, err
		}
		d.servers = append(d.servers, s)
	}
	return d, nil
}

// Close closes the idle connections; questions that are under way come to their
// end.
func (d *LDAP) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	for _, s := range d.servers {
		s.mu.Lock()
		idle := s.idle
		s.idle = nil
		s.mu.Unlock()
		for _, c := range idle {
			c.close()
		}
	}
	return nil
}

// ldapServer is one of the servers.
type ldapServer struct {
	name     string // as configured
	address  string
	startTLS bool
	tls      *tls.Config

	mu   sync.Mutex // guards what follows
	idle []*ldapConn
	down time.Time // until then
}

func newLDAPServer(text string, base *tls.Config) (*ldapServer, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("ldap: %q is not ldaps://host", text)
	}
	port := u.Port()
	s := &ldapServer{name: text}
	switch u.Scheme {
	case "ldaps":
		if port == "" {
			port = ldap.DefaultLdapsPort
		}
	case "ldap":
		s.startTLS = true
		if port == "" {
			port = ldap.DefaultLdapPort
		}
	default:
		return nil, fmt.Errorf("ldap: %q is neither ldaps:// nor ldap://", text)
	}
	s.address = net.JoinHostPort(u.Hostname(), port)
	s.tls = &tls.Config{}
	if base != nil {
		s.tls = base.Clone()
	}
	s.tls.ServerName = u.Hostname()
	s.tls.MinVersion = max(s.tls.MinVersion, tls.VersionTLS12)
	// Every login has a connection of its own: resumption makes it cheap.
	s.tls.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	return s, nil
}

// failed notes that the server did not answer, so that others are asked first.
func (s *ldapServer) failed() (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = time.Now().After(s.down)
	s.down = time.Now().Add(ldapDown)
	return first
}

// order returns the servers as configured, those that failed lately last.
func (d *LDAP) order() []*ldapServer {
	var up, down []*ldapServer
	for _, s := range d.servers {
		s.mu.Lock()
		if time.Now().Before(s.down) {
			down = append(down, s)
		} else {
			up = append(up, s)
		}
		s.mu.Unlock()
	}
	return append(up, down...)
}

// each runs a question on one server after the other until one answers it.
// ErrBadCredentials is an answer; every other error is that of a server.
func (d *LDAP) each(ctx context.Context, slots chan struct{}, ask func(context.Context, *ldapServer) error) error {
	waiting := time.NewTimer(d.o.Timeout)
	defer waiting.Stop()
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-waiting.C:
		return errors.New("ldap: too many questions at once")
	case <-ctx.Done():
		return ctx.Err()
	}
	var failures []error
	for _, s := range d.order() {
		limited, cancel := context.WithTimeout(ctx, d.o.Timeout)
		err := ask(limited, s)
		cancel()
		switch {
		case err == nil:
			s.mu.Lock()
			s.down = time.Time{}
			s.mu.Unlock()
			return nil
		case errors.Is(err, ErrBadCredentials):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		}
		err = fmt.Errorf("%s: %w", s.name, err)
		if !fromServer(err) || ldap.IsErrorAnyOf(err, ldap.LDAPResultBusy, ldap.LDAPResultUnavailable) {
			if s.failed() && len(d.servers) > 1 {
				d.log.Warn().Err(err).Msg("ldap: server failed; others are asked first")
			}
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// fromServer reports whether an error is an LDAP result, and not that none came.
func fromServer(err error) bool {
	var e *ldap.Error
	return errors.As(err, &e) && e.ResultCode > 0 && e.ResultCode < ldap.ErrorNetwork
}

// search returns the entries that match; more than limit of them are an error.
func (d *LDAP) search(ctx context.Context, filter string, limit int) (found []*ldap.Entry, err error) {
	request := ldap.NewSearchRequest(d.o.BaseDN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, limit,
		int((d.o.Timeout+time.Second-1)/time.Second), false, "(&"+d.o.Filter+filter+")", d.attributes(), nil)
	err = d.each(ctx, d.searches, func(ctx context.Context, s *ldapServer) error {
		var result *ldap.SearchResult
		err := d.use(ctx, s, func(c *ldapConn) (err error) {
			result, err = c.Search(request)
			return err
		})
		if err != nil {
			return err
		}
		if len(result.Entries) > limit {
			return errors.New("more entries than were asked for")
		}
		found = result.Entries
		return nil
	})
	return found, err
}

// use runs f with a connection that is bound as the searching account. One that
// was idle may have been closed by the server meanwhile: then f runs once more.
func (d *LDAP) use(ctx context.Context, s *ldapServer, f func(*ldapConn) error) error {
	for {
		c := s.take()
		reused := c != nil
		if !reused {
			var err error
			if c, err = d.connectBound(ctx, s); err != nil {
				return err
			}
		}
		err := c.run(ctx, func() error { return f(c) })
		if err == nil {
			d.put(s, c)
			return nil
		}
		c.close()
		if !reused || fromServer(err) || ctx.Err() != nil {
			return err
		}
	}
}

func (s *ldapServer) take() *ldapConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.idle) > 0 {
		c := s.idle[len(s.idle)-1]
		s.idle = s.idle[:len(s.idle)-1]
		if !c.IsClosing() && time.Since(c.used) < ldapIdle {
			return c
		}
		c.close()
	}
	return nil
}

// put keeps a connection for the next question. There are never more than run at
// once, because each was in use.
func (d *LDAP) put(s *ldapServer, c *ldapConn) {
	d.mu.Lock()
	closed := d.closed
	d.mu.Unlock()
	c.used = time.Now()
	s.mu.Lock()
	keep := !closed && len(s.idle) < ldapSearches
	if keep {
		s.idle = append(s.idle, c)
	}
	s.mu.Unlock()
	if !keep {
		c.close()
	}
}

// connectBound connects as the account that searches.
func (d *LDAP) connectBound(ctx context.Context, s *ldapServer) (*ldapConn, error) {
	password, err := d.ownPassword()
	if err != nil {
		return nil, err
	}
	c, err := d.connect(ctx, s)
	if err != nil || d.o.BindDN == "" {
		return c, err
	}
	err = c.run(ctx, func() error { return c.Bind(d.o.BindDN, string(password)) })
	if err == nil {
		return c, nil
	}
	c.close()
	err = fmt.Errorf("bind as %s: %w", d.o.BindDN, err)
	if fromServer(err) && ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials) {
		d.mu.Lock()
		d.refused = refusal{password, err, time.Now().Add(ldapDown)}
		d.mu.Unlock()
	}
	return nil, err
}

// ownPassword reads the password of the account that searches. One that has just
// been refused is not tried again before it changes or some time has gone by.
func (d *LDAP) ownPassword() (Secret, error) {
	if d.o.BindDN == "" {
		return "", nil
	}
	text, err := os.ReadFile(d.o.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	password := Secret(strings.TrimRight(string(text), "\r\n"))
	if password == "" {
		// A server would take it as a bind without a name (RFC 4513 section 5.1.2).
		return "", fmt.Errorf("the password in %s is empty", d.o.PasswordFile)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refused.password == password && time.Now().Before(d.refused.until) {
		return "", d.refused.err
	}
	return password, nil
}

// verify binds as an entry, over a connection of its own. nobody says that there
// is no such entry, and that the bind is there for the time it takes: then every
// result of a server is the refusal it must be.
func (d *LDAP) verify(ctx context.Context, dn, password string, nobody bool) error {
	if dn == "" || password == "" {
		// Without a password a bind is one without a name, and succeeds (RFC 4513
		// section 5.1.2).
		return ErrBadCredentials
	}
	return d.each(ctx, d.binds, func(ctx context.Context, s *ldapServer) error {
		c, err := d.connect(ctx, s)
		if err != nil {
			return err
		}
		defer c.close()
		err = c.run(ctx, func() error { return c.Bind(dn, password) })
		switch {
		case nobody && (err == nil || fromServer(err)):
			return ErrBadCredentials
		case err == nil:
			return nil
		// Inappropriate authentication is what an entry without a password says, and
		// constraint violation that of 389 Directory Server after too many failures:
		// as an error it would tell that the user exists, and count for nothing.
		case fromServer(err) && ldap.IsErrorAnyOf(err, ldap.LDAPResultInvalidCredentials, ldap.LDAPResultInappropriateAuthentication,
			ldap.LDAPResultConstraintViolation):
			return ErrBadCredentials
		}
		return fmt.Errorf("bind as a user: %w", err)
	})
}

// ldapConn is a connection, used by one goroutine at a time.
type ldapConn struct {
	*ldap.Conn
	raw  *boundedConn
	used time.Time
}

// connect opens a connection and its TLS.
func (d *LDAP) connect(ctx context.Context, s *ldapServer) (*ldapConn, error) {
	tcp, err := d.o.Dial(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	raw := &boundedConn{Conn: tcp}
	if s.startTLS {
		c := &ldapConn{Conn: ldap.NewConn(raw, false), raw: raw}
		c.Start()
		if err := c.run(ctx, func() error { return c.StartTLS(s.tls) }); err != nil {
			c.close()
			return nil, fmt.Errorf("STARTTLS: %w", err)
		}
		return c, nil
	}
	raw.allow(maxAnswer)
	secure := tls.Client(raw, s.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		tcp.Close()
		return nil, err
	}
	c := &ldapConn{Conn: ldap.NewConn(secure, true), raw: raw}
	c.Start()
	return c, nil
}

// run runs one question, within the time limit of ctx and bounds for what the
// server sends. The connection is of no use after an error.
func (c *ldapConn) run(ctx context.Context, f func() error) (err error) {
	c.raw.allow(maxAnswer)
	// The library waits without a context; it ends when the connection does.
	stop := context.AfterFunc(ctx, func() { c.raw.Close() })
	defer func() {
		if p := recover(); p != nil {
			// It takes the shape of some messages for granted.
			err = errors.New("the server sent a message that is no LDAP")
		}
		if !stop() {
			err = fmt.Errorf("no answer in time: %w", context.Cause(ctx))
		}
		var e *ldap.Error
		if errors.As(err, &e) && e.Err != nil && len(e.Err.Error()) > maxDiagnostic {
			err = ldap.NewError(e.ResultCode, errors.New(strings.ToValidUTF8(e.Err.Error()[:maxDiagnostic], "")))
		}
	}()
	return f()
}

// close closes the connection at once: first the network, so that nothing of the
// library can wait for it.
func (c *ldapConn) close() {
	c.raw.Close()
	_ = c.Close()
}

// boundedConn ends when a server sends more than was allowed.
type boundedConn struct {
	net.Conn
	mu   sync.Mutex
	left int
}

func (b *boundedConn) allow(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = n
}

// Read implements [net.Conn].
func (b *boundedConn) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left -= n; b.left < 0 {
		b.Conn.Close()
		return 0, errors.New("the server sends too much")
	}
	return n, err
}

// A ServerReport says how one server of an [LDAP] directory is.
type ServerReport struct {
	Server    string // as configured
	Mailboxes int    // entries that are mailboxes
	Err       error  // why the server is of no use
}

// Look asks every server, whatever the others say: it binds and counts the
// mailboxes.
func (d *LDAP) Look(ctx context.Context) []ServerReport {
	var out []ServerReport
	for _, s := range d.servers {
		r := ServerReport{Server: s.name}
		r.Mailboxes, r.Err = d.count(ctx, s)
		out = append(out, r)
	}
	return out
}

// count asks for all mailboxes, in pages (RFC 2696), each with the time limit of
// a question.
func (d *LDAP) count(ctx context.Context, s *ldapServer) (n int, err error) {
	limited, cancel := context.WithTimeout(ctx, d.o.Timeout)
	c, err := d.connectBound(limited, s)
	cancel()
	if err != nil {
		return 0, err
	}
	defer c.close()
	paging := ldap.NewControlPaging(pageSize)
	request := ldap.NewSearchRequest(d.o.BaseDN, ldap.ScopeWholeSubtree, ldap.NeverDerefAliases, 0, 0, false,
		"(&"+d.o.Filter+"(mail=*))", []string{"1.1"}, []ldap.Control{paging})
	for {
		page, err := d.page(ctx, c, request)
		if err != nil {
			return n, fmt.Errorf("search: %w", err)
		}
		n += len(page.Entries)
		next, _ := ldap.FindControl(page.Controls, ldap.ControlTypePaging).(*ldap.ControlPaging)
		if next == nil || len(next.Cookie) == 0 {
			return n, nil
		}
		if len(page.Entries) == 0 {
			return n, errors.New("search: the server sends empty pages")
		}
		paging.SetCookie(next.Cookie)
	}
}

func (d *LDAP) page(ctx context.Context, c *ldapConn, request *ldap.SearchRequest) (page *ldap.SearchResult, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.o.Timeout)
	defer cancel()
	err = c.run(ctx, func() (err error) {
		page, err = c.Search(request)
		return err
	})
	return page, err
}
