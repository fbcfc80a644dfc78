package lab

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
)

// newSharingProxy is the mistake that the flows are there to find: a reverse proxy whose clients share one backend connection, as
// net/http's does by itself.
func newSharingProxy(t *testing.T, c *Company) (addr string) {
	t.Helper()
	backend, err := url.Parse(c.Servers()[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxConnsPerHost: 1}
	t.Cleanup(tr.CloseIdleConnections)
	p := &httputil.ReverseProxy{Transport: tr, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(backend) }}
	srv := httptest.NewTLSServer(p)
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "https://")
}
