package lab

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"
)

// Login at a CAS: Basic holds for one request, Windows authentication for the rest of the connection.

// casAccount is a mailbox account as the Active Directory of the lab knows it.
type casAccount struct {
	Mailbox
	login  string // CONTOSO\pat
	ntHash []byte
}

// accounts is the lab's Active Directory: one domain.
type accounts struct {
	netbios, dns string
	list         []*casAccount
}

func newAccounts(netbios, dnsName string, mailboxes []Mailbox) *accounts {
	a := &accounts{netbios: netbios, dns: dnsName}
	for _, m := range mailboxes {
		if m.Login != "" {
			a.list = append(a.list, &casAccount{Mailbox: m, login: m.Login, ntHash: ntHash(m.Password)})
		}
	}
	return a
}

// find looks an account up as Windows does: CONTOSO\pat by NetBIOS or DNS name of the domain, pat@contoso.com (the user principal
// name, which is the mail address here) without a domain, and a bare pat in the server's own domain.
func (a *accounts) find(user, domain string) *casAccount {
	upn := domain == "" && strings.Contains(user, "@")
	if !upn && domain != "" && !strings.EqualFold(domain, a.netbios) && !strings.EqualFold(domain, a.dns) {
		return nil
	}
	for _, acc := range a.list {
		_, sam, _ := strings.Cut(acc.login, `\`)
		if upn && strings.EqualFold(user, acc.Address) || !upn && strings.EqualFold(user, sam) {
			return acc
		}
	}
	return nil
}

// checkBasic tells whose credentials these are; nil when they are nobody's.
func (a *accounts) checkBasic(name, password string) *casAccount {
	domain, user, ok := strings.Cut(name, `\`)
	if !ok {
		domain, user = "", name
	}
	acc := a.find(user, domain)
	want := ""
	if acc != nil {
		want = acc.Password
	}
	// Digests have one length, so the comparison tells nothing about the password's.
	g, w := sha256.Sum256([]byte(password)), sha256.Sum256([]byte(want))
	if subtle.ConstantTimeCompare(g[:], w[:]) != 1 || acc == nil {
		return nil
	}
	return acc
}

// methods are the kinds of login a virtual directory offers. None means anonymous. With forms, who does not say anything is shown a page.
type methods struct{ basic, windows, forms bool }

// connection is the login state of one TCP connection. Requests on an HTTP/1.1 connection come one after the other, so it needs no
// lock.
type connection struct {
	rec      *Connection
	exchange *ntlmExchange // an open challenge
	scheme   string        // under which it was asked for
	wrapped  bool          // its messages come inside SPNEGO
	account  *casAccount   // who the connection belongs to since a successful type 3
	by       string        // the login's method that made it so
}

func (c *connection) reset() { c.exchange, c.account = nil, nil }

// login is the outcome of looking at one request.
type login struct {
	account   *casAccount // nil: nobody
	method    string      // Basic, NTLM, Negotiate, Kerberos
	challenge string      // when not empty: answer 401 with this single WWW-Authenticate line
	final     string      // token to send along with the success
	refused   error       // why credentials that were sent did not do; for the log
}

// maxTokenSize bounds what a client may make the server decode; a Windows ticket of many groups stays below 64 KiB.
const maxTokenSize = 64 << 10

// authenticate looks at the Authorization header of a request. A header always starts over ([MS-NTHT]): it ends what an
// earlier one established on this connection, even when it fails.
func (s *casServer) authenticate(c *connection, r *http.Request, offer methods) login {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	switch {
	case r.Header.Get("Authorization") == "":
		c.exchange = nil // the answer to a challenge is the next request or never
		if c.account != nil && offer.windows {
			return login{account: c.account, method: c.by}
		}
		return login{}
	case strings.EqualFold(scheme, "Basic") && offer.basic:
		c.reset()
		name, password, ok := r.BasicAuth()
		if !ok {
			return login{refused: errors.New("malformed Basic credentials")}
		}
		if acc := s.accounts.checkBasic(name, password); acc != nil {
			return login{account: acc, method: "Basic"}
		}
		return login{refused: errors.New("unknown user or wrong password")}
	case (strings.EqualFold(scheme, "NTLM") || strings.EqualFold(scheme, "Negotiate")) && offer.windows:
		return s.windows(c, scheme, strings.TrimSpace(token))
	}
	c.reset()
	return login{refused: errors.New("authentication scheme not offered here")}
}

// windows runs one leg of NTLM, sent as it is or inside SPNEGO.
func (s *casServer) windows(c *connection, scheme, token string) login {
	x, wasWrapped := c.exchange, c.wrapped
	if !strings.EqualFold(scheme, c.scheme) {
		x = nil // the challenge was given under the other scheme
	}
	c.reset()
	if len(token) > maxTokenSize {
		return login{refused: errors.New("token too long")}
	}
	raw, err := base64.StdEncoding.DecodeString(token)
	if err != nil {
		return login{refused: errors.New("token is not base64")}
	}
	msg, wrapped := raw, false
	if _, ok := ntlmMessageType(raw); !ok && strings.EqualFold(scheme, "Negotiate") {
		if msg, err = unwrapSPNEGO(raw); err != nil && s.kerberos != nil {
			return s.acceptKerberos(c, raw)
		} else if err != nil {
			return login{refused: err}
		}
		wrapped = true
	}
	canonical := "NTLM"
	if strings.EqualFold(scheme, "Negotiate") {
		canonical = "Negotiate"
	}

	switch typ, _ := ntlmMessageType(msg); typ {
	case ntlmTypeNegotiate:
		x, err := newNTLMExchange(msg, s.identity, time.Now())
		if err != nil {
			return login{refused: err}
		}
		c.exchange, c.scheme, c.wrapped = x, scheme, wrapped
		answer := x.challenge
		if wrapped {
			answer = wrapSPNEGO(negAcceptIncomplete, answer)
		}
		return login{challenge: canonical + " " + base64.StdEncoding.EncodeToString(answer)}
	case ntlmTypeAuthenticate:
		if x == nil || wrapped != wasWrapped {
			return login{refused: errors.New("type 3 message without a challenge on this connection")}
		}
		claim, err := x.parseAuthenticate(msg)
		if err != nil {
			return login{refused: err}
		}
		acc := s.accounts.find(claim.User, claim.Domain)
		hash := make([]byte, 16)
		if acc != nil {
			hash = acc.ntHash
		}
		if err := x.verify(claim, hash); err != nil {
			return login{refused: err}
		}
		if acc == nil { // a client may know the hash of sixteen zeros, too
			return login{refused: errors.New("unknown user")}
		}
		if err := s.protection.check(claim.bindings, ntlmBinding(s.binding)); err != nil {
			return login{refused: err}
		}
		c.account, c.by = acc, canonical
		l := login{account: acc, method: canonical}
		if wrapped {
			l.final = canonical + " " + base64.StdEncoding.EncodeToString(wrapSPNEGO(negAcceptCompleted, nil))
		}
		return l
	}
	return login{refused: errors.New("unexpected NTLM message")}
}

// KerberosAcceptor is the server's side of a Kerberos login: somebody who has the key of the service. It gets a GSSAPI token, within SPNEGO
// or not, and the application data of the channel bindings that the token must not contradict, nil if any will do. It returns the
// client's principal, name@REALM, the token for the client, and whether the client's token holds these bindings. There is no second leg.
type KerberosAcceptor func(token, bindings []byte) (principal string, reply []byte, bound bool, err error)

// acceptKerberos logs in by the one token that Kerberos needs; as with NTLM, the connection is the user's from then on. That is IIS with
// authPersistNonNTLM.
func (s *casServer) acceptKerberos(c *connection, token []byte) login {
	var bindings []byte
	if !s.protection.off() {
		bindings = s.binding
	}
	principal, reply, bound, err := s.kerberos(token, bindings)
	if err != nil {
		return login{refused: err}
	}
	if s.protection == ProtectionRequire && !bound {
		return login{refused: errNoBindings}
	}
	user, realm, _ := strings.Cut(principal, "@")
	acc := s.accounts.find(user, realm)
	if acc == nil || realm == "" {
		return login{refused: errors.New("principal without an account")}
	}
	c.account, c.by = acc, "Kerberos"
	return login{account: acc, method: c.by, final: "Negotiate " + base64.StdEncoding.EncodeToString(reply)}
}

// drain takes a request's body off the connection, so that the next leg of a login finds it clean; net/http would close the
// connection of a client that sent Expect, or more than 256 KiB.
func drain(r *http.Request) { _, _ = io.CopyN(io.Discard, r.Body, 1<<20) }
