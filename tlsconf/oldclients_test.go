package tlsconf

import (
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"testing"
)

// The clients of PROXYING 11.6, by the versions and suites that their vendors document,
// meet the strictest profile that lets them in, with an RSA key and with an ECDSA key. It
// is the one that docs/tls.md names.
func TestOldClients(t *testing.T) {
	page, err := os.ReadFile("../docs/tls.md")
	if err != nil {
		t.Fatal(err)
	}
	const none Profile = "none"
	rsaCBC := []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}
	ecdheCBC := append([]uint16{
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	}, rsaCBC...)
	schannel := append([]uint16{ // DHE with GCM besides, which Go lacks
		tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	}, ecdheCBC...)
	gcm := append([]uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}, schannel...)
	servers := map[bool]map[Profile]string{}
	for isECDSA, src := range map[bool]fixed{false: rsaSource(t), true: fixedSource(t)} {
		servers[isECDSA] = map[Profile]string{}
		for _, p := range Profiles() {
			servers[isECDSA][p] = listenTLS(t, serverConfig(t, p, src))
		}
	}
	for _, c := range []struct {
		name               string
		newest             uint16
		suites             []uint16
		withRSA, withECDSA Profile
	}{
		{"Windows XP, Outlook 2003 to 2010 on it", tls.VersionTLS10, []uint16{tls.TLS_RSA_WITH_RC4_128_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA}, Old, none},
		{"Windows Mobile 6", tls.VersionTLS10, append([]uint16{tls.TLS_RSA_WITH_RC4_128_SHA}, rsaCBC...), Old, none},
		{"Windows 7 as delivered (WinHTTP)", tls.VersionTLS10, ecdheCBC, Old, Old},
		{"Windows 7 to 8.1, Server 2008 R2 to 2012 R2, with TLS 1.2 switched on", tls.VersionTLS12, schannel, Old, Intermediate},
		{"Windows 10, Server 2016", tls.VersionTLS12, gcm, Intermediate, Intermediate},
		{"Windows 11, Server 2022", tls.VersionTLS13, gcm, Modern, Modern},
		{"Android up to 4.3", tls.VersionTLS10, ecdheCBC, Old, Old},
		{"Android 4.4 to 9", tls.VersionTLS12, gcm, Intermediate, Intermediate},
		{"iOS up to 8, OS X up to 10.10", tls.VersionTLS12, ecdheCBC, Old, Old},
		{"iOS 9 to 12.1", tls.VersionTLS12, gcm, Intermediate, Intermediate},
		{"clients with RC4 alone", tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_RC4_128_SHA, tls.TLS_ECDHE_RSA_WITH_RC4_128_SHA, tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA}, none, none},
	} {
		strictest := func(isECDSA bool) Profile {
			for _, p := range Profiles() {
				conn, err := tls.Dial("tcp", servers[isECDSA][p], &tls.Config{
					InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: c.newest, CipherSuites: c.suites,
					CurvePreferences: []tls.CurveID{tls.CurveP256, tls.CurveP384},
				})
				if err == nil {
					conn.Close()
					return p
				}
			}
			return none
		}
		if a, b := strictest(false), strictest(true); a != c.withRSA || b != c.withECDSA {
			t.Errorf("%s: %s with an RSA key and %s with an ECDSA key, want %s and %s", c.name, a, b, c.withRSA, c.withECDSA)
		}
		cell := func(p Profile) string {
			if p == none {
				return "none"
			}
			return "`" + string(p) + "`"
		}
		_, row, _ := strings.Cut(string(page), "\n| "+c.name+" |")
		row, _, _ = strings.Cut(row, "\n")
		if want := fmt.Sprintf(" %s | %s |", cell(c.withRSA), cell(c.withECDSA)); !strings.HasSuffix(row, "|"+want) {
			t.Errorf("docs/tls.md, %s: %q, want %q at the end", c.name, row, want)
		}
	}
}
