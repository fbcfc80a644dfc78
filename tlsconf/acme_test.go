package tlsconf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"github.com/rs/zerolog"
	"go.uber.org/zap"
	"golang.org/x/crypto/ocsp"
)

func newTestACME(t *testing.T, o ACMEOptions) *ACME {
	t.Helper()
	if o.Storage == nil {
		o.Storage = &certmagic.FileStorage{Path: t.TempDir()}
	}
	a, err := NewACME(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func acmeSource(t *testing.T, a *ACME, name string, aliases ...string) *ACMESource {
	t.Helper()
	s, err := a.Source(name, aliases)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A reload opens the sources of the new table before it closes those of the old one.
func TestACMESources(t *testing.T) {
	a := newTestACME(t, ACMEOptions{})
	first := acmeSource(t, a, "Mail.contoso.com", "legacy.contoso.com", "a.contoso.com")
	again := acmeSource(t, a, "mail.contoso.com", "a.contoso.com", "legacy.contoso.com", "mail.contoso.com")
	if first.acmeHost != again.acmeHost {
		t.Error("the same names, and another source")
	}
	other := acmeSource(t, a, "mail.contoso.com")
	if other.acmeHost == first.acmeHost {
		t.Error("other names, and the same source")
	}
	a.Loaded(t.Context())
	if first.Ready() || first.Leaf() != nil {
		t.Error("a certificate from nowhere")
	}
	for name, want := range map[string]string{
		"mail.contoso.com": "no certificate for mail.contoso.com yet", "": "yet", "192.0.2.1": "yet", "other.contoso.com": "not a name of host mail.contoso.com",
	} {
		if _, err := first.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	for range 2 { // a handle is closed once
		first.Close()
	}
	other.Close()
	if a.Closed() || !a.Serves("legacy.contoso.com") {
		t.Error("closed while a handle is open")
	}
	again.Close()
	if _, err := a.Source("mail.contoso.com", nil); !errors.Is(err, ErrACMEClosed) || !a.Closed() {
		t.Errorf("after the last: %v", err)
	}
}

func TestACMEOptionsRefused(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	for want, o := range map[string]ACMEOptions{
		"storage":         {},
		"not an https":    {Storage: storage, Issuers: []ACMEIssuer{{Directory: "http://acme.contoso.com"}}},
		"unknown":         {Storage: storage, Challenges: []string{"http-02"}},
		"who writes DNS ": {Storage: storage, Challenges: []string{"dns-01"}},
	} {
		if _, err := NewACME(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// The issuer may come to a node that has not placed the order (RFC 8555 section 8.3, RFC 8737 section 3).
func TestACMEChallengeAtAnotherNode(t *testing.T) {
	storage := &certmagic.FileStorage{Path: t.TempDir()}
	ordering, asked := newTestACME(t, ACMEOptions{Storage: storage}), newTestACME(t, ACMEOptions{Storage: storage})
	acmeSource(t, ordering, "mail.contoso.com")
	src := acmeSource(t, asked, "mail.contoso.com")
	ch := func(kind, name string) acme.Challenge {
		return acme.Challenge{Type: kind, Token: "Token-" + name, KeyAuthorization: "Token-" + name + ".thumb", Identifier: acme.Identifier{Type: "dns", Value: name}}
	}
	all := []acme.Challenge{ch("http-01", "mail.contoso.com"), ch("tls-alpn-01", "mail.contoso.com"), ch("http-01", "other.contoso.com")}
	for _, c := range all {
		if err := ordering.challenges.Present(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	get := func(host, path string) string {
		w := httptest.NewRecorder()
		asked.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://"+host+path, nil))
		return strings.TrimSpace(w.Body.String())
	}
	const prefix = "/.well-known/acme-challenge/"
	for _, tc := range [][3]string{
		{"mail.contoso.com", prefix + "Token-mail.contoso.com", "Token-mail.contoso.com.thumb"},
		{"MAIL.contoso.com:80", prefix + "Token-mail.contoso.com", "Token-mail.contoso.com.thumb"},
		{"mail.contoso.com", prefix + "token-mail.contoso.com", "404 page not found"},
		{"mail.contoso.com", "/owa", "404 page not found"},
		{"other.contoso.com", prefix + "Token-other.contoso.com", "404 page not found"}, // no host of this front door
	} {
		if got := get(tc[0], tc[1]); got != tc[2] {
			t.Errorf("%s%s: %q", tc[0], tc[1], got)
		}
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", src.ValidationConfig())
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	})
	defer served.Wait()
	defer ln.Close()
	for name, want := range map[string]bool{"mail.contoso.com": true, "other.contoso.com": false} {
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
		}
		if (err == nil) != want {
			t.Errorf("tls-alpn-01 for %s: %v", name, err)
		}
	}
	for _, c := range all {
		if err := ordering.challenges.CleanUp(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	if got := get("mail.contoso.com", prefix+"Token-mail.contoso.com"); got != "404 page not found" {
		t.Errorf("after the order: %q", got)
	}
	if without := acmeSource(t, newTestACME(t, ACMEOptions{Challenges: []string{"http-01"}}), "mail.contoso.com"); without.ValidationConfig() != nil {
		t.Error("validations by a challenge that may not be used")
	}
}

// A stored certificate that names an OCSP responder is shown with its answer; without an answer it is shown all the same.
func TestACMEStaple(t *testing.T) {
	ca := issue(t, "CA", nil, isCA)
	for name, answers := range map[string]bool{"answers": true, "silent": false} {
		t.Run(name, func(t *testing.T) {
			responder := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked, err := io.ReadAll(r.Body)
				if err != nil || !answers {
					http.Error(w, "not today", http.StatusInternalServerError)
					return
				}
				q, err := ocsp.ParseRequest(asked)
				if err != nil {
					t.Error(err)
					return
				}
				response, err := ocsp.CreateResponse(ca.Certificate, ca.Certificate, ocsp.Response{
					Status: ocsp.Good, SerialNumber: q.SerialNumber, ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(100 * time.Hour),
				}, ca.key)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = w.Write(response)
			}))
			defer responder.Close()
			leaf := issue(t, "", ca, func(c *x509.Certificate) {
				c.DNSNames, c.OCSPServer = []string{"mail.contoso.com"}, []string{responder.URL}
			})
			storage := &certmagic.FileStorage{Path: t.TempDir()}
			const issuer = "acme.contoso.com-directory"
			for key, data := range map[string][]byte{
				certmagic.StorageKeys.SiteCert(issuer, "mail.contoso.com"):       certPEM(leaf, ca),
				certmagic.StorageKeys.SitePrivateKey(issuer, "mail.contoso.com"): keyPEM(t, leaf.key),
				certmagic.StorageKeys.SiteMeta(issuer, "mail.contoso.com"):       []byte(`{"sans": ["mail.contoso.com"]}`),
			} {
				if err := storage.Store(t.Context(), key, data); err != nil {
					t.Fatal(err)
				}
			}
			a := newTestACME(t, ACMEOptions{Storage: storage, Issuers: []ACMEIssuer{{Directory: "https://acme.contoso.com/directory"}}})
			src := acmeSource(t, a, "mail.contoso.com")
			a.Loaded(t.Context())
			cert, err := src.GetCertificate(&tls.ClientHelloInfo{ServerName: "mail.contoso.com"})
			if err != nil || !cert.Leaf.Equal(leaf.Certificate) || !src.Leaf().Equal(leaf.Certificate) {
				t.Fatalf("what is stored is not shown: %v", err)
			}
			if stapled := len(cert.OCSPStaple) > 0; stapled != answers {
				t.Errorf("stapled: %v", stapled)
			}
		})
	}
}

// certmagic may look for the certificate under any of its names.
func TestOneCertificate(t *testing.T) {
	inner := &certmagic.FileStorage{Path: t.TempDir()}
	s := oneCertificate{inner, []string{"mail.contoso.com", "a.contoso.com"}}
	for key, want := range map[string]string{
		"certificates/acme-dir/a.contoso.com/a.contoso.com.crt":         "certificates/acme-dir/mail.contoso.com/mail.contoso.com.crt",
		"certificates/acme-dir/a.contoso.com/a.contoso.com.json":        "certificates/acme-dir/mail.contoso.com/mail.contoso.com.json",
		"certificates/acme-dir/mail.contoso.com/mail.contoso.com.key":   "certificates/acme-dir/mail.contoso.com/mail.contoso.com.key",
		"certificates/acme-dir/other.contoso.com/other.contoso.com.crt": "certificates/acme-dir/other.contoso.com/other.contoso.com.crt",
		"acme/acme-dir/a.contoso.com/a.contoso.com.crt":                 "acme/acme-dir/a.contoso.com/a.contoso.com.crt",
	} {
		if got := s.key(key); got != want {
			t.Errorf("%s: %s", key, got)
		}
	}
	alias, own := certmagic.StorageKeys.SiteCert("acme-dir", "a.contoso.com"), certmagic.StorageKeys.SiteCert("acme-dir", "mail.contoso.com")
	if err := s.Store(t.Context(), alias, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if data, err := s.Load(t.Context(), alias); err != nil || string(data) != "x" || !inner.Exists(t.Context(), own) || !s.Exists(t.Context(), alias) || inner.Exists(t.Context(), alias) {
		t.Errorf("%q %v", data, err)
	}
	if info, err := s.Stat(t.Context(), alias); err != nil || info.Size != 1 {
		t.Errorf("%+v %v", info, err)
	}
	if err := s.Delete(t.Context(), alias); err != nil || inner.Exists(t.Context(), own) {
		t.Errorf("delete: %v", err)
	}
}

// Lines of certmagic are lines of ours: one format, with their fields; how it goes about things is debug, and its debug
// lines, which may hold requests, are none.
func TestZapLogger(t *testing.T) {
	var out safeBuffer
	say := func(level zerolog.Level) []map[string]any {
		out = safeBuffer{}
		l := zapLogger(zerolog.New(&out).Level(level).With().Str("host", "mail").Logger()).Named("obtain").With(zap.Int("n", 1))
		l.Debug("d", zap.String("request", "secret"))
		l.Info("i", zap.Strings("names", []string{"a"}))
		l.Warn("w")
		l.Error("e", zap.Error(errors.New("why")))
		var lines []map[string]any
		for line := range strings.Lines(out.String()) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, m)
		}
		return lines
	}
	lines := say(zerolog.DebugLevel)
	if len(lines) != 3 || lines[0]["level"] != "debug" || lines[0]["message"] != "i" || lines[1]["level"] != "warn" || lines[2]["error"] != "why" ||
		lines[2]["host"] != "mail" || lines[2]["n"] != 1.0 || lines[2]["from"] != "certmagic" {
		t.Errorf("%v", lines)
	}
	if lines := say(zerolog.InfoLevel); len(lines) != 2 {
		t.Errorf("%v", lines)
	}
}

// The program for DNS records fails, hangs, or is not there: one line says which, and nothing waits for ever.
func TestDNSHook(t *testing.T) {
	program := func(text string) string {
		file := tempFile(t, "hook")
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return file
	}
	for want, h := range map[string]*DNSHook{
		"present: exit status 3: no such zone: _acme-challenge.mail. va;l$ue": {Program: program(`echo "no such zone: $2 $3" >&2; exit 3`)},
		"present: context deadline exceeded":                                  {Program: program("exec sleep 60"), Timeout: 100 * time.Millisecond},
		"no such file":                                                        {Program: tempFile(t, "none")},
	} {
		if err := h.Present(t.Context(), "_acme-challenge.mail.", "va;l$ue"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	// Of a program that does not stop talking the last words count, and are all that is kept.
	var last lastBytes
	for i := range 100_000 {
		fmt.Fprintf(&last, "line %d\n", i)
	}
	if !strings.HasSuffix(string(last), "line 99998\nline 99999\n") || len(last) != hookOutput || cap(last) > 4*hookOutput {
		t.Errorf("%d bytes kept in %d, the last of them %q", len(last), cap(last), last[max(0, len(last)-30):])
	}
	// A child that keeps the output open holds nobody up.
	h := &DNSHook{Program: program("sleep 60 & exit 0")}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := h.CleanUp(ctx, "_acme-challenge.mail.", "x"); err != nil {
		t.Error(err)
	}
}

// A stored certificate that has expired is ordered anew after the start, when validations can be answered, and holds nobody
// up before.
func TestAutocertExpired(t *testing.T) {
	var asked atomic.Int32
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		http.Error(w, "", http.StatusNotFound)
	}))
	defer issuer.Close()
	now := time.Now()
	for name, end := range map[string]time.Time{"old.contoso.com": now.AddDate(0, 0, -1), "good.contoso.com": now.AddDate(0, 3, 0)} {
		pair, err := MakeSelfSigned([]string{name}, RSA2048, now.AddDate(0, -3, 0), end)
		if err != nil {
			t.Fatal(err)
		}
		key, err := KeyPEM(pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		a := NewAutocert(AutocertOptions{Dir: t.TempDir(), Directory: issuer.URL})
		if err := a.manager.Cache.Put(t.Context(), name+"+rsa", append(key, CertificatesPEM(pair.Chain...)...)); err != nil {
			t.Fatal(err)
		}
		s, err := a.Source(name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Leaf() != nil; got != end.After(now) || asked.Load() != 0 {
			t.Errorf("%s: shown: %t; requests to the issuer before the start: %d", name, got, asked.Load())
		}
		s.Close()
	}
}

func TestAutocertSources(t *testing.T) {
	a := NewAutocert(AutocertOptions{Dir: t.TempDir(), Directory: "https://127.0.0.1:1/dir"})
	s, err := a.Source("mail.contoso.com", []string{"legacy.contoso.com"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := a.Source("mail.contoso.com", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"legacy.contoso.com": "no certificate for legacy.contoso.com yet", "": "mail.contoso.com yet", "other.contoso.com": "not a name of host",
	} {
		if _, err := s.GetCertificate(&tls.ClientHelloInfo{ServerName: name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// Nobody but an issuer gets anywhere with a validation, and a name that is in no config is not ordered.
	conf := s.ValidationConfig()
	for _, hello := range []tls.ClientHelloInfo{
		{ServerName: "mail.contoso.com"},
		{ServerName: "mail.contoso.com", SupportedProtos: []string{"acme-tls/1"}},
		{ServerName: "other.contoso.com", SupportedProtos: []string{"acme-tls/1"}},
	} {
		if _, err := conf.GetCertificate(&hello); err == nil {
			t.Errorf("%+v: a certificate", hello)
		}
	}
	if _, err := a.manager.GetCertificate(&tls.ClientHelloInfo{ServerName: "other.contoso.com"}); err == nil || !strings.Contains(err.Error(), "not a name of a host") {
		t.Errorf("another name: %v", err)
	}
	s.Close()
	if a.Closed() || a.Serves("legacy.contoso.com") || !a.Serves("mail.contoso.com") {
		t.Error("closed too early, or not at all")
	}
	again.Close()
	if _, err := a.Source("mail.contoso.com", nil); !errors.Is(err, ErrACMEClosed) {
		t.Errorf("after the last: %v", err)
	}
	if _, err := a.manager.Client.HTTPClient.Get("https://127.0.0.1:1/dir"); !errors.Is(err, ErrACMEClosed) {
		t.Errorf("the way to the issuer is open: %v", err)
	}
}
