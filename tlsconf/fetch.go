package tlsconf

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

const (
	fetchTime = 20 * time.Second
	fetchSize = 1 << 20
)

// FetchIssuers gets the issuers of a certificate from where it says they are (authority information access, RFC 5280
// section 4.2.2.1), up to the root. known are certificates at hand, which are not fetched. What is fetched is not
// trusted for that: signatures decide whether it is an issuer. The URLs are the certificate's, so it is only asked for
// one that was got from its CA.
func FetchIssuers(ctx context.Context, client *http.Client, leaf *x509.Certificate, known []*x509.Certificate) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	var fetched []*x509.Certificate
	path := []*x509.Certificate{leaf}
next:
	for len(path) < maxPath {
		last := path[len(path)-1]
		if selfIssued(last) || verifies(path, nil, time.Now()) {
			return fetched, nil
		}
		issuer := func(c *x509.Certificate) bool {
			return bytes.Equal(c.RawSubject, last.RawIssuer) && last.CheckSignatureFrom(c) == nil
		}
		if i := slices.IndexFunc(known, issuer); i >= 0 {
			path = append(path, known[i])
			continue
		}
		err := fmt.Errorf("certificate %q does not say where that of its issuer %q is; get it from the CA", displayName(last), issuerName(last))
		for _, url := range last.IssuingCertificateURL {
			var certs []*x509.Certificate
			if certs, err = fetch(ctx, client, url); err != nil {
				continue
			}
			if i := slices.IndexFunc(certs, issuer); i >= 0 {
				path, fetched = append(path, certs[i]), append(fetched, certs[i])
				continue next
			}
			err = fmt.Errorf("what is at %s is not the issuer of %q", url, displayName(last))
		}
		return fetched, fmt.Errorf("fetch the chain: %w", err)
	}
	return fetched, nil
}

// fetch gets certificates over plain HTTP, as they are published: what they are good for stands in them.
func fetch(ctx context.Context, client *http.Client, url string) ([]*x509.Certificate, error) {
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") { // ldap:// is for members of the domain
		return nil, fmt.Errorf("%s is not fetched, only http and https", url)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", url, response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, fetchSize))
	if err != nil {
		return nil, err
	}
	certs, err := ParseCertificates(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	return certs, nil
}
