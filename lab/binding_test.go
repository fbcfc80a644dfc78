package lab

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"testing"
)

// RFC 5929 section 4.1: the hash of the certificate's own signature, and never one as weak as MD5 or SHA-1.
func TestEndpointHash(t *testing.T) {
	f := func(alg x509.SignatureAlgorithm, want crypto.Hash) {
		t.Helper()
		if got, err := endpointHash(alg); got != want || (err != nil) != (want == 0) {
			t.Errorf("%v: %v, %v, want %v", alg, got, err, want)
		}
	}
	f(x509.MD5WithRSA, crypto.SHA256)
	f(x509.SHA1WithRSA, crypto.SHA256)
	f(x509.ECDSAWithSHA1, crypto.SHA256)
	f(x509.SHA256WithRSA, crypto.SHA256)
	f(x509.SHA256WithRSAPSS, crypto.SHA256)
	f(x509.ECDSAWithSHA384, crypto.SHA384)
	f(x509.SHA384WithRSAPSS, crypto.SHA384)
	f(x509.SHA512WithRSA, crypto.SHA512)
	f(x509.ECDSAWithSHA512, crypto.SHA512)
	f(x509.PureEd25519, 0) // has no hash of its own: undefined there
}

// What each setting makes of each binding. That the binding itself is right is for clients written by others to show.
func TestExtendedProtectionCheck(t *testing.T) {
	leaf := func() []byte {
		tmpl, err := certificateTemplate(pkix.Name{CommonName: "cas01"})
		if err != nil {
			t.Fatal(err)
		}
		cert, _, err := sign(tmpl, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		data, err := endpointData(cert)
		if err != nil {
			t.Fatal(err)
		}
		return ntlmBinding(data)
	}
	own, other := leaf(), leaf()
	if len(own) != 16 || bytes.Equal(own, other) {
		t.Fatalf("bindings %x and %x", own, other)
	}
	f := func(p ExtendedProtection, got []byte, ok bool) {
		t.Helper()
		if err := p.check(got, own); (err == nil) != ok {
			t.Errorf("%q, binding %x: %v", p, got, err)
		}
	}
	for _, none := range [][]byte{nil, make([]byte, 16)} { // all zeros is none, [MS-NLMP] 2.2.2.1
		f("", none, true)
		f(ProtectionOff, none, true)
		f(ProtectionAllow, none, true)
		f(ProtectionRequire, none, false)
	}
	f("", other, true)
	f(ProtectionOff, other, true)
	f(ProtectionAllow, other, false)
	f(ProtectionRequire, other, false)
	f(ProtectionAllow, own, true)
	f(ProtectionRequire, own, true)
}

func TestChannelBindingsPair(t *testing.T) {
	f := func(pairs string, want string, ok bool) {
		t.Helper()
		_, got, err := readAVPairs(unhex(t, pairs))
		if !bytes.Equal(got, unhex(t, want)) || (err == nil) != ok {
			t.Errorf("%s: %x, %v", pairs, got, err)
		}
	}
	f("00000000", "", true)
	f("0a001000 000102030405060708090a0b0c0d0e0f 00000000", "000102030405060708090a0b0c0d0e0f", true)
	f("06000400 00000000 0a001000 000102030405060708090a0b0c0d0e0f 00000000", "000102030405060708090a0b0c0d0e0f", true)
	f("0a000400 00010203 00000000", "", false)
	f("0a001000 00010203", "", false)
}
