package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"
)

// SCENARIOS.md B1, and openssl agrees: common name the short name, both names as SAN, server authentication, 12 months.
func TestSelfSignedShape(t *testing.T) {
	before := time.Now().Truncate(time.Second)
	certPEM, keyPEM, err := SelfSignedPEM("SERVER01", "server01.contoso.com", nil, SelfSignedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		t.Fatal(err)
	}
	leaf := pair.Leaf
	if !leaf.NotAfter.Equal(leaf.NotBefore.AddDate(1, 0, 0)) || leaf.NotBefore.Before(before) {
		t.Errorf("valid from %v to %v, want 12 months from now", leaf.NotBefore, leaf.NotAfter)
	}
	for _, name := range []string{"server01", "SERVER01.contoso.com"} {
		if !Covers(leaf, name) {
			t.Errorf("does not cover %s", name)
		}
	}
	if got := Inspect([]*x509.Certificate{leaf}, nil, time.Now()); len(got) != 0 {
		t.Errorf("warnings: %q", got)
	}
	if err := leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature); err != nil {
		t.Error(err)
	}

	text := openssl(t, certPEM, "x509", "-noout", "-text")
	for _, want := range []string{
		`Subject: CN = server01\n`, `Issuer: CN = server01\n`,
		`DNS:server01, DNS:server01\.contoso\.com\n`,
		`Extended Key Usage: (critical)?\s*TLS Web Server Authentication\n`,
		`Key Usage: critical\s*Digital Signature, Key Encipherment\n`,
		`CA:FALSE`, `Public-Key: \(2048 bit\)`, `sha256WithRSAEncryption`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("openssl x509 does not show %s in\n%s", want, text)
		}
	}
	file := writeFile(t, tempFile(t, "cert.pem"), certPEM)
	openssl(t, nil, "verify", "-CAfile", file, "-verify_hostname", "server01.contoso.com", "-purpose", "sslserver", file)
}

func TestSelfSignedOptions(t *testing.T) {
	s, err := NewSelfSigned("cas01", "cas01.contoso.local.", []string{"*.contoso.com", "192.0.2.1", "CAS01"}, SelfSignedOptions{Key: ECDSAP256, Validity: 48 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	leaf := s.Leaf()
	if got, want := strings.Join(sanNames(leaf), " "), "cas01 cas01.contoso.local *.contoso.com 192.0.2.1"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
	if leaf.PublicKeyAlgorithm != x509.ECDSA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || leaf.NotAfter.Sub(leaf.NotBefore) != 48*time.Hour {
		t.Errorf("%v, usage %v, %v", leaf.PublicKeyAlgorithm, leaf.KeyUsage, leaf.NotAfter.Sub(leaf.NotBefore))
	}
	for _, bad := range [][2]string{{"", "a.example"}, {"a", ""}, {"a/b", "a.example"}, {"a", "../etc"}, {"a", "a b"}} {
		if _, err := NewSelfSigned(bad[0], bad[1], nil, SelfSignedOptions{Key: ECDSAP256}); err == nil || !strings.Contains(err.Error(), "is not a host name") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := NewSelfSigned("a", "a.example", nil, SelfSignedOptions{Key: "dsa"}); err == nil || !strings.Contains(err.Error(), `unknown key type "dsa"`) {
		t.Errorf("unknown key type: %v", err)
	}
}

func TestSelfSignedStorage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	log := &safeBuffer{}
	start := func(fqdn string, change func(*SelfSignedOptions)) *x509.Certificate {
		t.Helper()
		o := SelfSignedOptions{Dir: dir, Key: ECDSAP256, Log: zerolog.New(log)}
		if change != nil {
			change(&o)
		}
		s, err := NewSelfSigned("cas01", fqdn, nil, o)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if got, err := s.GetCertificate(nil); err != nil || !bytes.Equal(got.Certificate[0], s.Leaf().Raw) {
			t.Errorf("GetCertificate: %v", err)
		}
		return s.Leaf()
	}
	const name = "cas01.contoso.local"
	first := start(name, nil)
	file := filepath.Join(dir, "self-signed-"+name+".pem")
	for path, want := range map[string]os.FileMode{dir: 0o700, file: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	if again := start(name, nil); !again.Equal(first) {
		t.Error("a new certificate at the second start")
	}
	rsaKey := start(name, func(o *SelfSignedOptions) { o.Key = "" })
	if rsaKey.PublicKeyAlgorithm != x509.RSA {
		t.Error("the stored key of another type was taken")
	}
	writeFile(t, file, []byte("broken"))
	if c := start(name, nil); c.Equal(first) || !strings.Contains(log.String(), "no PEM block CERTIFICATE") {
		t.Errorf("broken file; log:\n%s", log)
	}
	other := start("cas02.contoso.local", nil)
	if err := os.Rename(filepath.Join(dir, "self-signed-cas02.contoso.local.pem"), file); err != nil {
		t.Fatal(err)
	}
	if c := start(name, nil); c.Equal(other) || !Covers(c, name) {
		t.Error("a stored certificate for other names was taken")
	}
	short := start("short.contoso.local", func(o *SelfSignedOptions) { o.Validity = time.Nanosecond })
	if c := start("short.contoso.local", nil); c.Equal(short) || !strings.Contains(log.String(), "is due for renewal") {
		t.Error("an expired certificate was taken")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".self-signed-*")); err != nil || len(left) != 0 {
		t.Errorf("temporary files left: %v %v", left, err)
	}
	// What cannot be kept is served all the same, and said.
	src, err := NewSelfSigned("a", "a.example", nil, SelfSignedOptions{Dir: file, Key: ECDSAP256, Log: zerolog.New(log)})
	if err != nil {
		t.Fatalf("a file where the directory should be: %v", err)
	}
	defer src.Close()
	if !Covers(src.Leaf(), "a.example") || !strings.Contains(log.String(), "not a directory") || !strings.Contains(log.String(), "self-signed certificate not kept") {
		t.Errorf("a file where the directory should be; log:\n%s", log)
	}
}

func TestSelfSignedRenewal(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		log := &safeBuffer{}
		s, err := NewSelfSigned("cas01", "cas01.contoso.local", nil, SelfSignedOptions{Dir: dir, Key: ECDSAP256, Log: zerolog.New(log)})
		if err != nil {
			t.Fatal(err)
		}
		first := s.Leaf()
		time.Sleep(330 * 24 * time.Hour)
		if !s.Leaf().Equal(first) {
			t.Error("renewed after 330 days, want a month before the end")
		}
		time.Sleep(10 * 24 * time.Hour)
		second := s.Leaf()
		if second.Equal(first) || !second.NotAfter.After(first.NotAfter) {
			t.Error("not renewed a month before the end")
		}
		// A directory that is lost costs the copy, not the service.
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir, nil)
		time.Sleep(340 * 24 * time.Hour)
		if s.Leaf().Equal(second) || !strings.Contains(log.String(), "self-signed certificate not kept") {
			t.Errorf("not renewed without its directory; log:\n%s", log)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
