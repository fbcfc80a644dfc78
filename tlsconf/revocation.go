package tlsconf

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"
)

// RevocationStatus is what is known about the revocation of a certificate.
type RevocationStatus string

// What may be known. Unknown is no answer, as when the responder is down: most clients go on then (soft fail).
const (
	NotRevoked        RevocationStatus = "good"
	Revoked           RevocationStatus = "revoked"
	RevocationUnknown RevocationStatus = "unknown"
	CannotBeRevoked   RevocationStatus = "none" // the certificate names neither a responder nor a list
)

// Revocation is the answer about one certificate.
type Revocation struct {
	Status RevocationStatus
	Source string    // who said so: "OCSP, stapled", "OCSP http://…", "CRL http://…", "CRL FILE"
	At     time.Time // when it was revoked; zero if that is not known
	Reason string    // the CRLReason of RFC 5280 section 5.3.1, "" if none was given
	Causes []string  // of an unknown status: why each source gave no answer
}

// Revocations asks whether certificates are revoked. It goes to the network, so it is for checks by people, never for
// traffic. The zero value is ready.
type Revocations struct {
	Client  *http.Client  // nil is the usual one, without cookies
	Timeout time.Duration // of each request; 0 is 5 s
	Lists   []FileCRL     // looked at beside what the certificate itself names
	Offline bool          // only look at Lists and at what was stapled
}

// FileCRL is a certificate revocation list from a file.
type FileCRL struct {
	File string
	List *x509.RevocationList
}

// Bounds of what is read from a responder and from a distribution point. A list of a busy public CA has some tens of MiB.
const (
	maxOCSP = 1 << 20
	maxCRL  = 64 << 20
)

// clockSkew is how far the clock of a responder may be ahead of ours.
const clockSkew = 5 * time.Minute

// Ask asks about a certificate: the lists at hand, the stapled response, the responder, then the distribution points. The
// first definite answer counts; every answer is held against the issuer's signature and the time. stapled may be nil.
func (r Revocations) Ask(ctx context.Context, c, issuer *x509.Certificate, stapled []byte, now time.Time) Revocation {
	var causes []string
	fail := func(source string, err error) { causes = append(causes, source+": "+err.Error()) }
	good := Revocation{}
	for _, l := range r.Lists {
		source := "CRL " + l.File
		switch a, err := readCRL(l.List, c, issuer, now); {
		case errors.Is(err, errOtherIssuer) && (c.IsCA || len(r.Lists) > 1): // the list of another CA of the chain
		case err != nil:
			fail(source, err)
		case a.Status == Revoked:
			a.Source = source
			return a
		default:
			good = Revocation{Status: a.Status, Source: source}
		}
	}
	if len(stapled) > 0 {
		const source = "OCSP, stapled"
		a, err := readOCSP(stapled, c, issuer, now)
		if err == nil {
			a.Source = source
			return a
		}
		fail(source, err)
	}
	if good.Status != "" {
		return good
	}
	if r.Offline && len(c.OCSPServer)+len(c.CRLDistributionPoints) > 0 {
		return Revocation{Status: RevocationUnknown, Causes: append(causes, "nobody was asked")}
	}
	ask := func(kind string, addresses []string, one func(context.Context, string) (Revocation, error)) (Revocation, bool) {
		for _, address := range addresses {
			source := kind + " " + address
			u, err := url.Parse(address)
			switch {
			case err != nil:
				fail(source, errors.New("is no URL"))
				continue
			case u.Scheme != "http" && u.Scheme != "https":
				fail(source, fmt.Errorf("%s is not asked, only http", u.Scheme))
				continue
			}
			a, err := one(ctx, address)
			if err == nil {
				a.Source = source
				return a, true
			}
			fail(source, err)
		}
		return Revocation{}, false
	}
	if a, ok := ask("OCSP", c.OCSPServer, func(ctx context.Context, address string) (Revocation, error) {
		return r.askOCSP(ctx, address, c, issuer, now)
	}); ok {
		return a
	}
	if a, ok := ask("CRL", c.CRLDistributionPoints, func(ctx context.Context, address string) (Revocation, error) {
		body, err := r.get(ctx, http.MethodGet, address, nil, "", maxCRL)
		if err != nil {
			return Revocation{}, err
		}
		list, err := ParseCRL(body)
		if err != nil {
			return Revocation{}, err
		}
		return readCRL(list, c, issuer, now)
	}); ok {
		return a
	}
	if len(causes) == 0 {
		return Revocation{Status: CannotBeRevoked}
	}
	return Revocation{Status: RevocationUnknown, Causes: causes}
}

func (r Revocations) askOCSP(ctx context.Context, address string, c, issuer *x509.Certificate, now time.Time) (Revocation, error) {
	request, err := ocsp.CreateRequest(c, issuer, nil)
	if err != nil {
		return Revocation{}, err
	}
	body, err := r.get(ctx, http.MethodPost, address, request, "application/ocsp-request", maxOCSP)
	if err != nil {
		return Revocation{}, err
	}
	return readOCSP(body, c, issuer, now)
}

// get sends a request and returns the body of its answer.
func (r Revocations) get(ctx context.Context, method, address string, body []byte, contentType string, limit int64) ([]byte, error) {
	timeout := r.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	client := r.Client
	if client == nil {
		client = &http.Client{}
	}
	resp, err := client.Do(request)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("no answer in %s", timeout)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // the address has been said
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answers %s", resp.Status)
	}
	answer, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("no whole answer in %s", timeout)
	case err != nil:
		return nil, err
	case int64(len(answer)) > limit:
		return nil, fmt.Errorf("the answer is larger than %d MiB", limit>>20)
	}
	return answer, nil
}

// readOCSP takes the answer about a certificate out of a response, if the response is fresh and from the issuer or from
// whom it has charged with it.
func readOCSP(response []byte, c, issuer *x509.Certificate, now time.Time) (Revocation, error) {
	// Without an issuer the signature is checked against the certificate in the response alone; whose that is, is checked
	// below, where the issuer's own certificate may be it (RFC 6960 section 4.2.2.2).
	a, err := ocsp.ParseResponseForCert(response, c, nil)
	if err != nil {
		return Revocation{}, fmt.Errorf("is no usable response: %s", strings.TrimPrefix(err.Error(), "ocsp: "))
	}
	signer := a.Certificate
	switch {
	case signer == nil || signer.Equal(issuer):
		if err := a.CheckSignatureFrom(issuer); err != nil {
			return Revocation{}, errors.New("the response is not signed by the issuer of the certificate")
		}
	case !slices.Contains(signer.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return Revocation{}, fmt.Errorf("the response is signed by %q, which is no OCSP responder", displayName(signer))
	case signer.CheckSignatureFrom(issuer) != nil:
		return Revocation{}, fmt.Errorf("the response is signed by %q, which the issuer of the certificate has not charged with it", displayName(signer))
	case now.Before(signer.NotBefore) || now.After(signer.NotAfter):
		return Revocation{}, fmt.Errorf("the certificate of the responder %q is not valid now", displayName(signer))
	}
	if err := fresh(a.ThisUpdate, a.NextUpdate, now); err != nil {
		return Revocation{}, fmt.Errorf("the response %w", err)
	}
	switch a.Status {
	case ocsp.Good:
		return Revocation{Status: NotRevoked}, nil
	case ocsp.Revoked:
		return Revocation{Status: Revoked, At: a.RevokedAt, Reason: revocationReasons[a.RevocationReason]}, nil
	}
	return Revocation{}, errors.New("the responder does not know the certificate")
}

// fresh checks the times of a response or list. RFC 5019 section 4: what has no next update may be as old as it likes,
// which says nothing, so it is no answer.
func fresh(this, next, now time.Time) error {
	switch {
	case this.After(now.Add(clockSkew)):
		return fmt.Errorf("is from the future (%s): is one of the clocks wrong?", this.UTC().Format(time.DateTime))
	case next.IsZero():
		return errors.New("does not say until when it holds")
	case now.After(next):
		return fmt.Errorf("is out of date since %s", next.UTC().Format(time.DateTime))
	}
	return nil
}

// ParseCRL reads a certificate revocation list, DER or PEM.
func ParseCRL(data []byte) (*x509.RevocationList, error) {
	if block, _ := pem.Decode(data); block != nil {
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("it is a PEM file of %s, not of X509 CRL", block.Type)
		}
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, errors.New("it is no certificate revocation list")
	}
	return list, nil
}

// LoadCRL reads a certificate revocation list from a file, DER or PEM. The error is one line that names the file.
func LoadCRL(file string) (FileCRL, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return FileCRL{}, fmt.Errorf("CRL %s cannot be read: %w", file, bare(err))
	case info.IsDir():
		return FileCRL{}, fmt.Errorf("CRL %s is a directory, a file is needed", file)
	case info.Size() > maxCRL:
		return FileCRL{}, fmt.Errorf("CRL %s is larger than %d MiB", file, maxCRL>>20)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return FileCRL{}, fmt.Errorf("CRL %s cannot be read: %w", file, bare(err))
	}
	list, err := ParseCRL(data)
	if err != nil {
		return FileCRL{}, fmt.Errorf("CRL %s: %w", file, err)
	}
	return FileCRL{file, list}, nil
}

var errOtherIssuer = errors.New("the list is of another issuer")

// Extensions of lists, RFC 5280 sections 5.2.4 and 5.2.5.
var (
	oidDeltaCRL     = asn1.ObjectIdentifier{2, 5, 29, 27}
	oidIssuingPoint = asn1.ObjectIdentifier{2, 5, 29, 28}
)

// issuingPoint is the IssuingDistributionPoint of RFC 5280 section 5.2.5: which certificates a list is about.
type issuingPoint struct {
	Point        pointName      `asn1:"optional,tag:0"`
	OnlyUser     bool           `asn1:"optional,tag:1"`
	OnlyCA       bool           `asn1:"optional,tag:2"`
	OnlyReasons  asn1.BitString `asn1:"optional,tag:3"`
	Indirect     bool           `asn1:"optional,tag:4"`
	OnlyAttribut bool           `asn1:"optional,tag:5"`
}

type pointName struct {
	FullName []asn1.RawValue `asn1:"optional,tag:0"`
}

// readCRL looks a certificate up in a list, if the list is fresh, from the issuer, and about certificates like this one.
func readCRL(list *x509.RevocationList, c, issuer *x509.Certificate, now time.Time) (Revocation, error) {
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return Revocation{}, fmt.Errorf("%w, %s, than the certificate", errOtherIssuer, list.Issuer)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return Revocation{}, errors.New("the list is not signed by the issuer of the certificate")
	}
	if err := fresh(list.ThisUpdate, list.NextUpdate, now); err != nil {
		return Revocation{}, fmt.Errorf("the list %w", err)
	}
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(oidDeltaCRL):
			return Revocation{}, errors.New("the list holds changes alone (delta CRL)")
		case e.Id.Equal(oidIssuingPoint):
			if err := aboutThis(e.Value, c); err != nil {
				return Revocation{}, err
			}
		case e.Critical:
			return Revocation{}, fmt.Errorf("the list has an extension that is not understood (%s)", e.Id)
		}
	}
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(c.SerialNumber) == 0 && entry.ReasonCode != ocsp.RemoveFromCRL {
			return Revocation{Status: Revoked, At: entry.RevocationTime, Reason: revocationReasons[entry.ReasonCode]}, nil
		}
	}
	return Revocation{Status: NotRevoked}, nil
}

// aboutThis checks that a list which is about some certificates alone is about this one.
func aboutThis(extension []byte, c *x509.Certificate) error {
	var p issuingPoint
	if rest, err := asn1.Unmarshal(extension, &p); err != nil || len(rest) > 0 {
		return errors.New("the list does not say in a readable way which certificates it is about")
	}
	if p.Indirect || p.OnlyAttribut || p.OnlyReasons.BitLength > 0 || p.OnlyCA && !c.IsCA || p.OnlyUser && c.IsCA {
		return errors.New("the list is about other certificates")
	}
	var points []string
	for _, name := range p.Point.FullName {
		if name.Class == asn1.ClassContextSpecific && name.Tag == 6 { // uniformResourceIdentifier
			points = append(points, string(name.Bytes))
		}
	}
	if len(points) > 0 && !slices.ContainsFunc(points, func(u string) bool { return slices.Contains(c.CRLDistributionPoints, u) }) {
		return errors.New("the list is about the certificates of another distribution point")
	}
	return nil
}

// revocationReasons are the words of RFC 5280 section 5.3.1. 0, unspecified, says nothing.
var revocationReasons = map[int]string{
	ocsp.KeyCompromise: "key compromise", ocsp.CACompromise: "CA compromise", ocsp.AffiliationChanged: "affiliation changed",
	ocsp.Superseded: "superseded", ocsp.CessationOfOperation: "cessation of operation", ocsp.CertificateHold: "on hold",
	ocsp.PrivilegeWithdrawn: "privilege withdrawn", ocsp.AACompromise: "AA compromise",
}
