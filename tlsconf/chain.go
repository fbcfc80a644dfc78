package tlsconf

import (
	"bytes"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Pair is a certificate with its key and what goes with it.
type Pair struct {
	Chain []*x509.Certificate // the certificate (leaf), its issuer, and so on; no root, unless the certificate is its own
	Root  *x509.Certificate   // what the chain leads to, if it was at hand. Servers do not send it: clients have it, or do not believe it
	Key   crypto.Signer
}

// TLS returns the pair as crypto/tls wants it.
func (p *Pair) TLS() *tls.Certificate {
	cert := &tls.Certificate{PrivateKey: p.Key, Leaf: p.Chain[0]}
	for _, c := range p.Chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// Certificates are what goes into a file: the chain, and behind it the root, if it is a private one. It is not sent from
// there either, but tells a private CA from a chain that ends too early.
func (p *Pair) Certificates() []*x509.Certificate {
	if p.Root == nil || verifies(p.Chain, nil, time.Now()) {
		return p.Chain
	}
	return append(slices.Clone(p.Chain), p.Root)
}

// Inspect is [Inspect] for the chain, with its root where that is known.
func (p *Pair) Inspect(names []string, now time.Time) []string {
	chain := p.Chain
	if p.Root != nil {
		chain = append(slices.Clone(chain), p.Root)
	}
	return Inspect(chain, names, now)
}

var errNoLeaf = errors.New("no certificate for the key")

// NewPair finds the certificate of a key among certs and puts its issuers behind it, whatever their order. Where two
// issuers of one name and key exist (cross-signing, a renewed intermediate), the way to a root of roots is taken (nil: of
// the system), else one on which nothing is expired, else one to a root that is among certs, else the first. extra are
// further certificates that may be issuers. Of certs that are left out there is a line each among the warnings.
func NewPair(certs, extra []*x509.Certificate, key crypto.Signer, roots *x509.CertPool, now time.Time) (*Pair, []string, error) {
	var leaf *x509.Certificate
	for _, c := range certs {
		// Of several certificates for one key, which a renewal may leave, the newest.
		if pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(key.Public()) && (leaf == nil || c.NotBefore.After(leaf.NotBefore)) {
			leaf = c
		}
	}
	if leaf == nil {
		return nil, nil, errNoLeaf
	}
	p := &Pair{Key: key}
	p.Chain, p.Root = bestPath(leaf, append(slices.Clone(certs), extra...), roots, now)
	var warnings []string
	for i, c := range p.Chain {
		if i >= len(certs) || !certs[i].Equal(c) {
			if !slices.ContainsFunc(extra, c.Equal) {
				warnings = append(warnings, "the chain was not in order (certificate first, then its issuers); put in order")
			}
			break
		}
	}
	for _, c := range certs {
		if !c.Equal(p.Root) && !slices.ContainsFunc(p.Chain, c.Equal) {
			warnings = append(warnings, fmt.Sprintf("certificate %q in the file is no issuer of the first one; left out", displayName(c)))
		}
	}
	return p, warnings, nil
}

const (
	maxPath  = 8  // certificates in a chain; four is much
	maxPaths = 64 // ways that are compared
)

// bestPath chooses among the ways from leaf through the certificates of bag. root is the self-signed one it ends at, if
// that is in the bag.
func bestPath(leaf *x509.Certificate, bag []*x509.Certificate, roots *x509.CertPool, now time.Time) (chain []*x509.Certificate, root *x509.Certificate) {
	var all [][]*x509.Certificate
	walkPaths([]*x509.Certificate{leaf}, bag, &all)
	best, most := 0, -1
	for i, path := range all {
		score := 0
		if len(all) > 1 { // verifying costs signatures, and mostly there is nothing to choose
			if verifies(path, roots, now) {
				score += 4
			}
			if !slices.ContainsFunc(path, func(c *x509.Certificate) bool { return now.After(c.NotAfter) }) {
				score += 2
			}
			if selfIssued(path[len(path)-1]) {
				score++
			}
		}
		if score > most {
			best, most = i, score
		}
	}
	chain = all[best]
	if last := len(chain) - 1; last > 0 && selfIssued(chain[last]) {
		return chain[:last:last], chain[last]
	}
	return chain, nil
}

// walkPaths appends every way on from path that cannot be made longer.
func walkPaths(path, bag []*x509.Certificate, all *[][]*x509.Certificate) {
	last := path[len(path)-1]
	longer := false
	if !selfIssued(last) && len(path) < maxPath {
		for i, c := range bag {
			// The signature decides; two intermediates of one name and different keys exist.
			if len(*all) == maxPaths || !bytes.Equal(last.RawIssuer, c.RawSubject) || slices.ContainsFunc(path, c.Equal) ||
				slices.ContainsFunc(bag[:i], c.Equal) || last.CheckSignatureFrom(c) != nil {
				continue
			}
			longer = true
			walkPaths(append(slices.Clone(path), c), bag, all)
		}
	}
	if !longer && len(*all) < maxPaths {
		*all = append(*all, path)
	}
}

// verifies reports whether the path leads to one of the roots (nil: of the system). That something on it is expired is
// another question.
func verifies(path []*x509.Certificate, roots *x509.CertPool, now time.Time) bool {
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}
	if leaf := path[0]; now.Before(leaf.NotBefore) {
		o.CurrentTime = leaf.NotBefore
	}
	for i, c := range path {
		if c.NotAfter.Before(o.CurrentTime) {
			o.CurrentTime = c.NotAfter
		}
		if i > 0 {
			o.Intermediates.AddCert(c)
		}
	}
	_, err := path[0].Verify(o)
	return err == nil
}
