package main

import (
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/autodgate/autodgate/lab"
	"github.com/autodgate/autodgate/proxy"
)

// with a client that binds its login to the certificate it sees:
// servers that check bindings, of which one has the certificate that clients see. With
// required every login gets in, at that one; if none has it, the answer is 502.
func TestExtendedProtectionRequired(t *testing.T) {
	path := python(t, "requests_ntlm", "python3-requests-ntlm")
	allowMD4(t)
	f := func(mode string, servers []string, want int) {
		t.Helper()
		company, front := startLab(t, func(s *lab.Scenario) {
			s.Config = strings.Replace(s.Config, "allow_internal_untrusted_certs: true", "allow_internal_untrusted_certs: true\n    extended_protection: "+mode, 1)
			for i := range s.Servers {
				s.Servers[i].ExtendedProtection, s.Servers[i].Certificate = lab.ProtectionRequire, servers[i%len(servers)]
			}
		})
		if got := front.server.Bindings(); len(got) < 2 || got[0].ExtendedProtection != mode {
			t.Fatalf("%s: %+v", mode, got)
		}
		pat, _ := company.Account("pat@contoso.com")
		for range 2 {
			got := objects[labAnswer](t, output(t, path, "testdata/clients/requests-ntlm.py", front.https[0], company.CAFile(), pat.Login, pat.Password, "yes",
				"https://mail.contoso.com/EWS/Exchange.asmx"))
			if len(got) != 1 || got[0].Status != want || (want == 200) != (got[0].User == pat.Login) {
				t.Errorf("%s, servers with %q: %+v, want %d", mode, servers, got, want)
			}
		}
		if want == http.StatusBadGateway {
			got := curl(t, company, front, "--ntlm", "-u", pat.Login+":"+pat.Password, "-o", os.DevNull, "-w", "%{http_code}", "https://mail.contoso.com/EWS/Exchange.asmx")
			if got != strconv.Itoa(want) {
				t.Errorf("curl: %s, want %d", got, want)
			}
		}
		unknown := func(b proxy.BindingStatus) bool { return b.State == proxy.BindingUnknown }
		for end := time.Now().Add(30 * time.Second); slices.ContainsFunc(front.server.Bindings(), unknown); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%+v", front.server.Bindings())
			}
		}
	}
	f("required", []string{"mail", ""}, 200)
	f("required", []string{"", "mail"}, 200)
	f("required", []string{""}, 502)
	f("auto", []string{"mail"}, 200)
	f("auto", []string{""}, 401)
}
