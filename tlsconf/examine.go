package tlsconf

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Reason is why a certificate is not accepted. The first four are the ones that the documents know; every client looks for
// them.
type Reason string

// The reasons, the four first.
const (
	ReasonIssuer     Reason = "issuer"
	ReasonRevocation Reason = "revocation"
	ReasonExpiry     Reason = "expiry"
	ReasonName       Reason = "name"
	ReasonChain      Reason = "chain"
	ReasonKey        Reason = "key"
	ReasonSignature  Reason = "signature"
	ReasonUsage      Reason = "usage"
	ReasonValidity   Reason = "validity"
)

// FourReasons are why clients do not accept a certificate, in the order in which they are told, each with what it means
// and what helps.
func FourReasons() []FourReason {
	return []FourReason{
		{ReasonIssuer, "no CA that the client knows vouches for it", "a certificate from a CA that the clients trust, sent with its intermediates; or the CA's own certificate on every client"},
		{ReasonRevocation, "its issuer has taken it back, and says so by OCSP or in a CRL", "a new certificate with a new key"},
		{ReasonExpiry, "it has expired, or is not valid yet", "a renewed certificate; right clocks"},
		{ReasonName, "it does not carry the name that the client asked for", "a certificate with every name that clients use (autodgate cert plan)"},
	}
}

// FourReason is one of the four reasons why a certificate is not accepted.
type FourReason struct {
	Reason  Reason
	Meaning string
	Do      string
}

// Severity is how bad a finding is.
type Severity string

// The severities.
const (
	Fine    Severity = "fine"
	Warning Severity = "warning"
	Failure Severity = "error" // clients refuse the certificate, or ask their users about it
)

// Finding is one thing about a certificate.
type Finding struct {
	Reason   Reason   `json:"reason"`
	Severity Severity `json:"severity"`
	Text     string   `json:"text"`
	Do       string   `json:"do,omitempty"` // what helps; "" where all is fine
}

// String is the finding in one line, without its severity.
func (f Finding) String() string {
	if f.Do == "" {
		return string(f.Reason) + ": " + f.Text
	}
	return string(f.Reason) + ": " + f.Text + "; " + f.Do
}

// ExamineOptions are the settings of [Examine].
type ExamineOptions struct {
	Names       []string       // that clients ask for; none: names are not held against anything
	Roots       *x509.CertPool // the CAs that are trusted; nil: those of the system
	Revocations *Revocations   // who asks about revocation; nil: nobody, and nothing is said of it
	Stapled     []byte         // the OCSP response that came with the handshake
	Now         time.Time      // zero is now
}

// ExpirySoon is how long before its end a certificate is worth a warning: 30 days, and a third of the life of one that
// lives for less than 90.
func ExpirySoon(c *x509.Certificate) time.Duration {
	return min(30*24*time.Hour, c.NotAfter.Sub(c.NotBefore)/3)
}

// Examine says of a certificate what each of the four reasons has to say, in one finding each (several names may be wrong
// in one), and after them what else clients dislike. chain is the certificate and what is sent along with it, in that order.
// It goes to the network only for o.Revocations.
func Examine(ctx context.Context, chain []*x509.Certificate, o ExamineOptions) []Finding {
	if o.Now.IsZero() {
		o.Now = time.Now()
	}
	e := examination{leaf: chain[0], chain: chain, o: o}
	e.issuer()
	e.revocation(ctx)
	e.expiry()
	e.names()
	e.order()
	e.keys()
	e.signatures()
	e.usage()
	e.validity()
	return e.found
}

type examination struct {
	leaf     *x509.Certificate
	chain    []*x509.Certificate
	o        ExamineOptions
	verified []*x509.Certificate // up to a root; nil if there is no way
	found    []Finding
}

func (e *examination) add(r Reason, s Severity, do, format string, args ...any) {
	e.found = append(e.found, Finding{r, s, oneLine(fmt.Sprintf(format, args...)), do})
}

// oneLine takes out what a terminal would obey: the names in a certificate are whatever its maker put there.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, text)
}

// issuer looks for a way to a trusted root. The dates are a reason of their own, so that the certificate's do not count here,
// and the way is looked for at other times as well.
func (e *examination) issuer() {
	intermediates := x509.NewCertPool()
	for _, c := range e.chain[1:] {
		intermediates.AddCert(c)
	}
	leaf := *e.leaf
	leaf.NotBefore, leaf.NotAfter = e.o.Now.Add(-time.Hour), e.o.Now.Add(time.Hour)
	var err error
	for _, at := range []time.Time{e.o.Now, e.leaf.NotAfter.Add(-time.Second), e.leaf.NotBefore.Add(time.Second)} {
		c := e.leaf
		if at.Equal(e.o.Now) {
			c = &leaf
		}
		chains, failed := c.Verify(x509.VerifyOptions{
			Roots: e.o.Roots, Intermediates: intermediates, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		if failed == nil {
			e.verified = chains[0]
			root := chains[0][len(chains[0])-1]
			if len(chains[0]) == 1 {
				e.add(ReasonIssuer, Fine, "", "trusted itself")
			} else {
				e.add(ReasonIssuer, Fine, "", "%s, trusted by %s", issuerName(e.leaf), displayName(root))
			}
			return
		}
		if err == nil {
			err = failed
		}
	}
	last := e.last()
	var invalid x509.CertificateInvalidError
	var weak x509.InsecureAlgorithmError
	switch {
	case errors.As(err, &invalid) && invalid.Reason != x509.Expired:
		e.add(ReasonIssuer, Failure, "have it issued by a CA that may issue such certificates", "a CA of the chain may not issue it: %s", strings.TrimPrefix(err.Error(), "x509: "))
	case e.weak(&weak):
		e.add(ReasonIssuer, Failure, "have it issued anew, signed with SHA-256", "cannot be verified: signed with %s", x509.SignatureAlgorithm(weak))
	case selfIssued(e.leaf):
		e.add(ReasonIssuer, Failure, "get one from a CA that clients trust, or publish this one to every client (group policy, Trusted People; for devices as DER)",
			"self-signed: nobody but itself vouches for it")
	case selfIssued(last):
		e.add(ReasonIssuer, Failure, "install that CA's certificate on every client, or get a certificate from a public CA",
			"the CA %q is not trusted here", displayName(last))
	default:
		// incomplete, or of a CA whose root is not known.
		from := ""
		if len(last.IssuingCertificateURL) > 0 {
			from = " (it is to be had at " + last.IssuingCertificateURL[0] + ")"
		}
		what := "the certificate of its issuer %q is not sent along%s, and no CA of that name is trusted here"
		if last != e.leaf {
			what = "the chain ends at %q: the certificate of the issuer %q is not sent along" + from + ", and no CA of that name is trusted here"
			e.add(ReasonIssuer, Failure, "put the missing intermediate certificates into the file after the certificate; for a private CA, install its root on every client",
				what, displayName(last), issuerName(last))
			return
		}
		e.add(ReasonIssuer, Failure, "put the intermediate certificates into the file after the certificate; for a private CA, install its root on every client",
			what, issuerName(last), from)
	}
}

// weak finds a signature that is not accepted for its hash.
func (e *examination) weak(algorithm *x509.InsecureAlgorithmError) bool {
	for _, c := range e.chain {
		if !selfIssued(c) && weakSignature(c.SignatureAlgorithm) {
			*algorithm = x509.InsecureAlgorithmError(c.SignatureAlgorithm)
			return true
		}
	}
	return false
}

// last follows the issuers as far as the chain goes.
func (e *examination) last() *x509.Certificate {
	c := e.leaf
	for range e.chain {
		i := slices.IndexFunc(e.chain, func(p *x509.Certificate) bool { return p != c && issuedBy(c, p) })
		if i < 0 || selfIssued(c) {
			break
		}
		c = e.chain[i]
	}
	return c
}

// issuedBy lets a signature pass that is too weak to be verified: that is a finding of its own.
func issuedBy(c, issuer *x509.Certificate) bool {
	return bytes.Equal(c.RawIssuer, issuer.RawSubject) && (weakSignature(c.SignatureAlgorithm) || c.CheckSignatureFrom(issuer) == nil)
}

// revocation asks about every certificate but the root.
func (e *examination) revocation(ctx context.Context) {
	if e.o.Revocations == nil {
		return
	}
	path := e.verified
	if path == nil {
		path = e.chain
	}
	var answers []string
	worst := Fine
	say := func(s Severity, text string) {
		if s == Warning && worst == Fine || s == Failure {
			worst = s
		}
		answers = append(answers, text)
	}
	do := ""
	for i, c := range path {
		if i > 0 && (selfIssued(c) || worst == Failure) {
			break
		}
		what := ""
		if i > 0 {
			what = fmt.Sprintf("intermediate %q ", displayName(c))
		}
		j := slices.IndexFunc(path, func(p *x509.Certificate) bool { return issuedBy(c, p) })
		if selfIssued(c) && len(path) == 1 {
			say(Fine, "self-signed, so there is nobody who could revoke it")
			break
		}
		if j < 0 {
			if i == 0 {
				say(Warning, "unknown: without the certificate of its issuer no answer can be verified")
				do = "complete the chain"
			}
			break
		}
		var stapled []byte
		if i == 0 {
			stapled = e.o.Stapled
		}
		a := e.o.Revocations.Ask(ctx, c, path[j], stapled, e.o.Now)
		switch a.Status {
		case Revoked:
			text := what + "REVOKED"
			if !a.At.IsZero() {
				text += " on " + a.At.UTC().Format(time.DateOnly)
			}
			if a.Reason != "" {
				text += " (" + a.Reason + ")"
			}
			answers = nil
			say(Failure, text+", says "+a.Source)
			if do = "get a new certificate with a new key, and find out why this one was revoked"; i > 0 {
				do = "get a certificate from another issuer, this one is not trusted any more"
			}
		case NotRevoked:
			say(Fine, what+"not revoked, says "+a.Source)
		case CannotBeRevoked:
			if i == 0 {
				say(Fine, "names neither an OCSP responder nor a CRL, so clients cannot ask")
			}
		default:
			say(Warning, what+"unknown: "+strings.Join(a.Causes, "; "))
			do = "let clients, and this machine, reach the responder or the list; most clients accept it as it is, some wait for a time-out first"
		}
	}
	if worst == Fine {
		do = ""
	}
	e.add(ReasonRevocation, worst, do, "%s", strings.Join(answers, "; "))
}

func (e *examination) expiry() {
	end := e.leaf.NotAfter.UTC().Format(time.DateOnly)
	switch left := e.leaf.NotAfter.Sub(e.o.Now); {
	case left < 0:
		e.add(ReasonExpiry, Failure, "renew it", "expired on %s, %s ago", end, days(-left))
	case e.o.Now.Before(e.leaf.NotBefore):
		e.add(ReasonExpiry, Failure, "wait, or correct the clock of this machine", "not valid before %s", e.leaf.NotBefore.UTC().Format(time.DateTime))
	case left <= ExpirySoon(e.leaf):
		e.add(ReasonExpiry, Warning, "renew it, on the servers too where Extended Protection is on", "expires on %s, in %s", end, days(left))
	default:
		e.add(ReasonExpiry, Fine, "", "until %s, %s", end, days(left))
	}
	issuers := e.chain[1:]
	if e.verified != nil {
		issuers = slices.Concat(issuers, slices.DeleteFunc(slices.Clone(e.verified[1:]), func(c *x509.Certificate) bool {
			return slices.ContainsFunc(issuers, c.Equal)
		}))
	}
	for _, c := range issuers {
		severity, do := Failure, "get the issuer's current certificate, and one from it"
		if e.verified != nil && !slices.ContainsFunc(e.verified, c.Equal) {
			// Another way leads to a root. Clients that take the first one stumble all the same.
			severity, do = Warning, "leave it out"
		}
		switch {
		case e.o.Now.After(c.NotAfter):
			e.add(ReasonExpiry, severity, do, "%q, which issued it, expired on %s", displayName(c), c.NotAfter.UTC().Format(time.DateOnly))
		case e.o.Now.Before(c.NotBefore):
			e.add(ReasonExpiry, severity, do, "%q, which issued it, is not valid before %s", displayName(c), c.NotBefore.UTC().Format(time.DateTime))
		case c.NotAfter.Before(e.leaf.NotAfter) && c.NotAfter.Sub(e.o.Now) <= ExpirySoon(c) && severity == Failure:
			e.add(ReasonExpiry, Warning, do, "%q, which issued it, expires on %s, before the certificate", displayName(c), c.NotAfter.UTC().Format(time.DateOnly))
		}
	}
}

func days(d time.Duration) string {
	n := int(d / (24 * time.Hour))
	if n == 1 {
		return "1 day"
	}
	return fmt.Sprintf("%d days", n)
}

func (e *examination) names() {
	carried := strings.Join(sanNames(e.leaf), ", ")
	if len(sanNames(e.leaf)) == 0 {
		e.add(ReasonName, Failure, "have it issued anew with every name as subject alternative name",
			"no subject alternative name, and clients of today do not look at the common name %q", e.leaf.Subject.CommonName)
		return
	}
	if len(e.o.Names) == 0 {
		e.add(ReasonName, Fine, "", "good for %s", carried)
		return
	}
	var missing []string
	for _, name := range e.o.Names {
		if !Covers(e.leaf, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		e.add(ReasonName, Failure, "get one with every name that clients use", "not good for %s, only for %s", strings.Join(missing, ", "), carried)
		return
	}
	e.add(ReasonName, Fine, "", "good for %s", strings.Join(e.o.Names, ", "))
}

// order: each certificate certifies the one before it (RFC 5246 section 7.4.2; TLS 1.3 is lenient, its clients are not
// the only ones).
func (e *examination) order() {
	for i, c := range e.chain[1:] {
		if !issuedBy(e.chain[i], c) {
			e.add(ReasonChain, Warning, "put the certificate first, then each one's issuer, and nothing else", "%q, number %d of the chain, is not the issuer of what is before it", displayName(c), i+2)
			return
		}
	}
}

// keys: what browsers and Apple's systems accept (Baseline Requirements section 6.1.5; support.apple.com/103769).
func (e *examination) keys() {
	for i, c := range e.chain {
		what := ""
		if i > 0 {
			what = fmt.Sprintf("the intermediate certificate %q has ", displayName(c))
		}
		switch key := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if key.N.BitLen() < 2048 {
				e.add(ReasonKey, Failure, "have it issued for an RSA key of 2048 bits", "%sRSA with %d bits: clients refuse less than 2048", what, key.N.BitLen())
			}
		case *ecdsa.PublicKey:
			if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
				e.add(ReasonKey, Warning, "have it issued for P-256, or RSA with 2048 bits", "%san ECDSA key on %s, which not every browser knows", what, key.Params().Name)
			}
		case ed25519.PublicKey:
			e.add(ReasonKey, Failure, "have it issued for RSA with 2048 bits, or P-256", "%san Ed25519 key, which browsers and Windows do not accept", what)
		default:
			e.add(ReasonKey, Failure, "have it issued for RSA with 2048 bits, or P-256", "%sa key of a kind that no client of today accepts (%s)", what, c.PublicKeyAlgorithm)
		}
	}
}

func weakSignature(a x509.SignatureAlgorithm) bool {
	return slices.Contains([]x509.SignatureAlgorithm{x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1}, a)
}

// signatures: that of a root, or of a self-signed certificate, proves nothing and is not looked at.
func (e *examination) signatures() {
	for _, c := range e.chain {
		if !selfIssued(c) && weakSignature(c.SignatureAlgorithm) {
			e.add(ReasonSignature, Failure, "have it issued anew, signed with SHA-256", "%q is signed with %s, which clients refuse", displayName(c), c.SignatureAlgorithm)
		}
	}
}

// usage: what the certificate may be used for (RFC 5280 sections 4.2.1.3, 4.2.1.9 and 4.2.1.12).
func (e *examination) usage() {
	c := e.leaf
	server := slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
	switch {
	case len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0:
		e.add(ReasonUsage, Warning, "have it issued with the extended key usage serverAuth", "no extended key usage: Apple's systems want serverAuth said")
	case !server:
		e.add(ReasonUsage, Failure, "have it issued with the extended key usage serverAuth", "not for servers: serverAuth is not among its extended key usages")
	}
	if _, isRSA := c.PublicKey.(*rsa.PublicKey); c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		if isRSA && c.KeyUsage&x509.KeyUsageKeyEncipherment != 0 {
			e.add(ReasonUsage, Failure, "have it issued with the key usage digitalSignature", "the key may encipher but not sign, which only clients with RSA key exchange can use")
		} else {
			e.add(ReasonUsage, Failure, "have it issued with the key usage digitalSignature", "the key may not sign handshakes")
		}
	}
	if c.IsCA {
		e.add(ReasonUsage, Warning, "have an ordinary certificate issued", "it is the certificate of a CA, which some clients refuse for a server")
	}
}

// validityLimit is the longest life of a public certificate that is issued from a day on.
type validityLimit struct {
	from time.Time
	days int
}

// validityLimits are those of the Baseline Requirements section 6.3.2, latest first: ballot SC-081v3 for those since 2026, SC-031
// for 398 days, 193 for 825. Browsers enforce them for CAs that they bring along; for an organisation's own CA they do not.
var validityLimits = []validityLimit{
	{time.Date(2029, 3, 15, 0, 0, 0, 0, time.UTC), 47},
	{time.Date(2027, 3, 15, 0, 0, 0, 0, time.UTC), 100},
	{time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC), 200},
	{time.Date(2020, 9, 1, 0, 0, 0, 0, time.UTC), 398},
	{time.Date(2018, 3, 1, 0, 0, 0, 0, time.UTC), 825},
}

// Apple's limit holds for every CA, an organisation's own included (support.apple.com/103769).
var appleLimit = validityLimit{time.Date(2019, 7, 1, 0, 0, 0, 0, time.UTC), 825}

// publicPolicies are the CA/Browser Forum's own policy identifiers; every public certificate has one (Baseline
// Requirements section 7.1.2.7.9), and a private one has no reason to.
var publicPolicies = []asn1.ObjectIdentifier{{2, 23, 140, 1, 1}, {2, 23, 140, 1, 2, 1}, {2, 23, 140, 1, 2, 2}, {2, 23, 140, 1, 2, 3}}

func isPublic(c *x509.Certificate) bool {
	return slices.ContainsFunc(c.PolicyIdentifiers, func(p asn1.ObjectIdentifier) bool {
		return slices.ContainsFunc(publicPolicies, p.Equal)
	})
}

// validityDays counts as the Baseline Requirements do: both ends are part of the life, and a day begun counts.
func validityDays(c *x509.Certificate) int {
	life := c.NotAfter.Sub(c.NotBefore) + time.Second
	return int((life + 24*time.Hour - 1) / (24 * time.Hour))
}

func (e *examination) validity() {
	n := validityDays(e.leaf)
	if isPublic(e.leaf) {
		for _, l := range validityLimits {
			if !e.leaf.NotBefore.Before(l.from) {
				if n > l.days {
					e.add(ReasonValidity, Failure, "have it issued for a shorter time", "it lives for %d days: browsers refuse public certificates issued since %s that live longer than %d", n, l.from.Format(time.DateOnly), l.days)
				}
				return
			}
		}
		return
	}
	if !e.leaf.NotBefore.Before(appleLimit.from) && n > appleLimit.days {
		e.add(ReasonValidity, Warning, "have it issued for a shorter time", "it lives for %d days: Apple's systems refuse more than %d, whoever issued it", n, appleLimit.days)
	}
}
