package lab

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
)

// What a browser in front of the lab's forms must not be able to do. That one gets through them is shown by a real one.
func TestFormsLogin(t *testing.T) {
	c := startCompany(t)
	jar, _ := cookiejar.New(nil)
	client := &http.Client{
		Jar:           jar,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, //nolint:gosec // the server's own certificate
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	defer client.CloseIdleConnections()
	server := c.Servers()[0].URL
	f := func(method, target, body, canary string, want int, location string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, server+target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set(cookieCanary, canary)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		got := strings.TrimPrefix(resp.Header.Get("Location"), server)
		if resp.StatusCode != want || got != location {
			t.Errorf("%s %s: %d to %q, want %d to %q", method, target, resp.StatusCode, got, want, location)
		}
	}
	form := func(password, destination string) string {
		return url.Values{"username": {`CONTOSO\pat`}, "password": {password}, "destination": {destination}}.Encode()
	}
	logon := func(reason string) string {
		return "/owa/auth/logon.aspx?url=" + url.QueryEscape(server+"/owa/") + "&reason=" + reason
	}
	f("GET", "/owa/", "", "", 302, logon("0"))
	f("POST", "/owa/service.svc", "x", "", 440, "")
	f("POST", "/owa/auth.owa", form("wrong", server+"/owa/"), "", 302, logon("2"))
	f("POST", "/owa/auth.owa", form("Lab-Pat-1", "https://evil.example/owa/"), "", 302, "/owa/")
	f("GET", "/ecp/", "", "", 200, "") // one login for both
	f("POST", "/owa/service.svc", "x", "", 449, "")
	f("POST", "/owa/service.svc", "x", "guessed", 449, "")
	u, _ := url.Parse(server)
	for _, cookie := range jar.Cookies(u) {
		if cookie.Name == cookieCanary {
			f("POST", "/owa/service.svc", "x", cookie.Value, 200, "")
		}
	}
	before := jar.Cookies(u)
	f("GET", "/owa/logoff.owa", "", "", 302, "/owa/auth/logon.aspx?replaceCurrent=1&reason=1")
	jar.SetCookies(u, before) // kept by an attacker
	f("GET", "/owa/", "", "", 302, logon("0"))
}
