package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
)

// servers behind offload: true are reached in clear; the admin listener
// tells how they are.
func TestOffloadAndStatus(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/healthcheck.htm") {
			if strings.HasPrefix(r.URL.Path, "/oab") {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			_, _ = io.WriteString(w, "200 OK<br/>CAS01.contoso.local")
		}
	}))
	t.Cleanup(backend.Close)
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: "127.0.0.1:0"}
certificates: {storage: `+t.TempDir()+`}
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq}
sites:
  hq:
    servers: ["`+backend.URL+`"]
    offload: true
    exchange: "2016"
    health: {interval: 20ms, fall: 1}
`)
	p := published{front, frontTransport(t, front)}
	if got := p.status(t, "GET", "/owa/"); got != 200 {
		t.Errorf("/owa/: %d", got)
	}
	states := map[string]string{}
	for end := time.Now().Add(20 * time.Second); states["oab"] != "down" || states["owa"] != "up"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("states %v", states)
		}
		resp, err := http.Get("http://" + front.admin + "/status")
		if err != nil {
			t.Fatal(err)
		}
		var st proxy.Status
		err = json.NewDecoder(resp.Body).Decode(&st)
		resp.Body.Close()
		if err != nil || len(st.Sites) != 1 || len(st.Sites[0].Servers) != 1 {
			t.Fatalf("%v %+v", err, st)
		}
		for _, c := range st.Sites[0].Servers[0].VirtualDirectories {
			if states[c.Name] = c.State; c.State == "up" && c.Server != "CAS01.contoso.local" {
				t.Errorf("%s: the server calls itself %q", c.Name, c.Server)
			}
		}
	}
	// Health only chooses between servers: there is one.
	if got := p.status(t, "GET", "/oab/x"); got != 200 {
		t.Errorf("/oab: %d", got)
	}
}

// The status shows of mail servers too where they are not authenticated.
func TestStatusOfUntrustedMailServers(t *testing.T) {
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], imaps: ["127.0.0.1:0"], pop3s: ["127.0.0.1:0"], submissions: ["127.0.0.1:0"], admin: ""}
certificates: {storage: `+t.TempDir()+`}
hosts:
  mail.contoso.com:
    certificate: self_signed
    site: hq
    mail: {imaps: bridge, backend: "tls://imap.contoso.local", allow_internal_untrusted_certs: true}
  pop.contoso.com:
    certificate: self_signed
    site: hq
    mail: {pop3s: bridge, site: hq}
  smtp.contoso.com:
    certificate: self_signed
    site: hq
    mail: {submissions: bridge, backend: "tls://smtp.contoso.local"}
sites:
  hq: {servers: ["https://cas01.contoso.local"], allow_internal_untrusted_certs: true}
`)
	got := map[string]bool{}
	for _, s := range front.server.Status().Sites {
		got[s.Name] = s.AllowInternalUntrustedCerts
	}
	want := map[string]bool{"hq": true, "mail.contoso.com imaps": true, "pop.contoso.com pop3s": true, "smtp.contoso.com submissions": false}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// what a site's keys mean to the traffic path.
func TestBalanceOfASite(t *testing.T) {
	f := func(keys string) *proxy.Site {
		t.Helper()
		cfg, report := config.Parse("front.yaml", []byte(`
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq}
sites:
  hq:
    servers: [https://cas01.contoso.local]
    `+keys+"\n"))
		if !report.OK() {
			t.Fatal(report.String())
		}
		site := &proxy.Site{}
		balance(site, cfg.Sites["hq"])
		return site
	}
	if s := f("exchange: 2010"); s.Affinity != nil || s.Health == nil || s.Exchange != "2010" || s.SlowStart != 30*time.Second || s.HandshakesPerSecond != 200 || s.Balance != proxy.RoundRobin {
		t.Errorf("%+v", s)
	}
	if s := f("affinity: none"); s.Affinity == nil || len(s.Affinity) != 0 {
		t.Errorf("none: %v", s.Affinity)
	}
	if s := f("affinity: source_ip"); !slices.Equal(s.Affinity, []proxy.Affinity{proxy.BySourceIP}) {
		t.Errorf("source_ip: %v", s.Affinity)
	}
	if s := f("affinity: [cookie, existing_cookie, user]"); !slices.Equal(s.Affinity, []proxy.Affinity{proxy.ByCookie, proxy.ByExistingCookie, proxy.ByUser}) {
		t.Errorf("a list: %v", s.Affinity)
	}
	if s := f("health: off"); s.Health != nil {
		t.Errorf("off: %v", s.Health)
	}
	if s := f("health: {fall: 2, rise: 4, unauthorized: up, host: mail.contoso.com}"); s.Health.Fall != 2 || s.Health.Rise != 4 || !s.Health.Unauthorized || s.Health.Host != "mail.contoso.com" {
		t.Errorf("%+v", s.Health)
	}
	if s := f("balance: least_connections"); s.Balance != proxy.LeastConnections {
		t.Error("least_connections")
	}
}
