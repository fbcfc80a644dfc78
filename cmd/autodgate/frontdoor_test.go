package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
)

// Exit status: 0 fine, 1 what was looked at is not fine, 2 wrong usage or a config
// that does not load (DESIGN section 6).
func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	good := write("good.yaml", "listen: {admin: []}\nhosts: {autodiscover.contoso.com: {redirect: mail.contoso.com}}\n")
	bad := write("bad.yaml", "hosts: {autodiscover.contoso.com: {redirect: mail.contoso.com, answer: true}}\n")
	files := write("files.yaml", "hosts: {a.example: {certificate: {cert: none.pem, key: none.key}, answer: true}}\ndomains: {a.example: {autodiscover: answer, external_url: https://a.example}}\n")
	for _, tc := range []struct {
		want int
		args []string
	}{
		{0, []string{"version"}},
		{0, []string{"--help"}},
		{0, []string{"check", "--config", good}},
		{1, []string{"check", "--config", files}},
		{2, []string{"check", "--config", bad}},
		{2, []string{"check", "--config", filepath.Join(dir, "none.yaml")}},
		{2, []string{"check"}},
		{2, []string{"check", "--config", good, "extra"}},
		{2, []string{"serve", "--config", bad}},
		{2, []string{"bogus"}},
		{2, []string{"lab", "nowhere"}},
		{2, []string{"discover", "nobody"}},
		{2, []string{"discover", "a@b.example", "--client", "none"}},
		{2, []string{"discover", "a@b.example", "--dns", "junk:xx"}},
		{2, []string{"discover", "a@b.example", "--https-port", "99999"}},
		{2, []string{"discover", "a@b.example", "--timeout", "0"}},
		{2, []string{"discover", "a@b.example", "--ca", filepath.Join(dir, "none.pem")}},
		{1, []string{"health", "--admin", "127.0.0.1:1"}},
		{2, []string{"health", "--admin", "nowhere"}},
		{2, []string{"health", "--config", good}}, // its admin listener is off
		{2, []string{"health", "--config", bad}},
	} {
		var out, errOut bytes.Buffer
		if got := run(tc.args, &out, &errOut); got != tc.want {
			t.Errorf("%q: %d, want %d\n%s%s", tc.args, got, tc.want, &out, &errOut)
		}
		if tc.want != 0 && errOut.Len() == 0 {
			t.Errorf("%q failed without a word", tc.args)
		}
	}
}

// virtual_directories are merged over the preset (DESIGN section 5, R-6.12).
func TestVirtualDirectories(t *testing.T) {
	f := func(text, path string, want string) {
		t.Helper()
		cfg, report := config.Parse("front.yaml", []byte("hosts: {mail.contoso.com: {certificate: self_signed, site: hq, virtual_directories: "+text+"}}\n"+
			"sites: {hq: {servers: [https://cas01.contoso.local]}}\ninternal_networks: [10.0.0.0/8]\n"))
		if !report.OK() {
			t.Fatal(report.String())
		}
		got := "none"
		longest := -1
		for _, d := range virtualDirectories(cfg.Hosts["mail.contoso.com"]) {
			for _, p := range d.Prefixes {
				if len(p) > longest && (path == p || strings.HasPrefix(path, p+"/")) {
					longest = len(p)
					got = fmt.Sprintf("%s %s", d.Name, map[proxy.Access]string{proxy.Deny: "deny", proxy.Internal: "internal", proxy.Publish: "publish"}[d.Access])
					if d.Upgrade {
						got += " upgrade"
					}
					if d.Methods == nil {
						got += " any"
					}
					if d.ResponseIdle == 7*time.Second {
						got += " 7s"
					}
				}
			}
		}
		if got != want {
			t.Errorf("%s, %s: got %q, want %q", text, path, got, want)
		}
	}
	f("{}", "/owa", "owa publish")
	f("{}", "/ecp", "ecp publish")
	f("{}", "/powershell", "powershell deny")
	f("{}", "/rpcwithcert", "rpc publish")
	f("{}", "/exadmin", "none")
	f("{}", "/exchange", "exchange deny")
	f("{exchange: publish}", "/exchange/pat", "exchange publish")
	f("{ecp: internal, powershell: deny, /custom: publish}", "/ecp/x", "ecp internal")
	f("{ecp: internal, powershell: deny, /custom: publish}", "/powershell", "powershell deny")
	f("{ecp: internal, powershell: deny, /custom: publish}", "/custom/x", "/custom publish any")
	f("{/Custom: internal}", "/custom", "/custom internal any")
	f("{rpcwithcert: deny}", "/rpcwithcert", "rpcwithcert deny")
	f("{rpcwithcert: deny}", "/rpc", "rpc publish")
	f("{rpc: deny}", "/rpcwithcert", "rpc deny")
	f("{api: publish}", "/api/v2.0", "api publish any")
	f("{/owa/closed: deny}", "/owa/closed", "/owa/closed deny any")
	f("{/owa/closed: deny}", "/owa/open", "owa publish")
	f("{ews: {upgrade: true}}", "/ews", "ews publish upgrade")
	f("{/wopi: {access: publish, upgrade: true, response_timeout: 7s}}", "/wopi", "/wopi publish upgrade any 7s")
	f("{Microsoft-Server-ActiveSync: internal}", "/microsoft-server-activesync", "activesync internal")
	if diff := cmp.Diff(proxy.Preset(), virtualDirectories(&config.Host{})); diff != "" {
		t.Errorf("without a word in the config, the preset: %s", diff)
	}
}

// published is what a front door in front of a plain backend says to requests.
type published struct {
	front *frontDoor
	conn  http.RoundTripper
}

func (p published) status(t *testing.T, method, path string) int {
	t.Helper()
	req, err := http.NewRequest(method, "https://mail.contoso.com"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := p.conn.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

func frontTransport(t *testing.T, front *frontDoor) *http.Transport {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", front.https[0])
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// What the config publishes is reached, what it does not is 404 and never seen by
// a server.
func TestPublishedOverTheWire(t *testing.T) {
	var seen []string
	backend := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { seen = append(seen, r.Method+" "+r.URL.Path) }))
	t.Cleanup(backend.Close)
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: `+t.TempDir()+`}
internal_networks: [192.0.2.0/24]
hosts:
  mail.contoso.com:
    certificate: self_signed
    site: hq
    virtual_directories: {ecp: internal, oab: deny, /custom: publish}
sites:
  hq: {servers: ["`+backend.URL+`"], allow_internal_untrusted_certs: true}
`)
	p := published{front, frontTransport(t, front)}
	for path, want := range map[string]int{"/owa/": 200, "/ecp/": 404, "/oab/x": 404, "/Custom/x": 200, "/powershell": 404, "/": 302, "/x": 404, "/owa/healthcheck.htm": 404} {
		if got := p.status(t, "GET", path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	if got := p.status(t, "PROPFIND", "/owa/"); got != 405 {
		t.Errorf("PROPFIND: %d", got)
	}
	for _, s := range seen {
		if s != "GET /owa/" && s != "GET /Custom/x" {
			t.Errorf("the server saw %s", s)
		}
	}
}

// A reload swaps the table; one that fails keeps the old one; connections live on.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "front.yaml")
	write := func(hosts string) {
		t.Helper()
		text := `
listen: {https: ["127.0.0.1:0"], http: ["127.0.0.1:0"], admin: []}
certificates: {storage: state}
hosts:
  mail.contoso.com: {certificate: self_signed, answer: true}
` + hosts + `
domains:
  contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}
`
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	cfg, _, err := config.Load(file)
	if err != nil || cfg == nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	front, err := newFrontDoor(cfg, zerolog.New(zerolog.SyncWriter(&log)), frontDoorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := front.listen(); err != nil {
		t.Fatal(err)
	}
	redirects := func() string {
		req, err := http.NewRequest("GET", "http://"+front.http[0]+"/autodiscover/autodiscover.xml", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "autodiscover.contoso.com"
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return fmt.Sprint(resp.StatusCode, resp.Header.Get("Location"))
	}
	old := published{front, frontTransport(t, front)}
	if got := old.status(t, "POST", "/autodiscover/autodiscover.xml"); got != 200 {
		t.Errorf("before: %d", got)
	}
	if got := redirects(); got != "404" {
		t.Errorf("before: %s", got)
	}
	write("  autodiscover.contoso.com: {redirect: mail.contoso.com}")
	reloadFile(front, file)
	if got := redirects(); got != "302https://mail.contoso.com/autodiscover/autodiscover.xml" {
		t.Errorf("after a good reload: %s", got)
	}
	write("  autodiscover.contoso.com: {redirect: https://mail.contoso.com}")
	reloadFile(front, file)
	if got := redirects(); !strings.HasPrefix(got, "302") {
		t.Errorf("after a bad reload: %s", got)
	}
	if got := old.status(t, "POST", "/autodiscover/autodiscover.xml"); got != 200 {
		t.Errorf("an old connection: %d", got)
	}
	write("  autodiscover.contoso.com: {") // no key is at fault, but the file
	reloadFile(front, file)
	if err := front.shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if s := log.String(); strings.Contains(s, `"config":""`) {
		t.Errorf("a fault of nobody: %s", s)
	}
	if s := log.String(); !strings.Contains(s, `"message":"reloaded`) || !strings.Contains(s, "is a URL, not a host name") || !strings.Contains(s, "reload failed: the old configuration stays in force") {
		t.Errorf("log: %s", s)
	}
}

// A self-signed certificate that cannot be kept is served all the same.
func TestSelfSignedWithoutStorage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: `+file+`}
hosts: {mail.contoso.com: {certificate: self_signed, answer: true}}
domains: {contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}}
`)
	if got := (published{front, frontTransport(t, front)}).status(t, "POST", "/autodiscover/autodiscover.xml"); got != 200 {
		t.Errorf("%d", got)
	}
}

// Two servers on one machine are told apart in the log and the status.
func TestServersOnOneMachine(t *testing.T) {
	site := &config.Site{Servers: []config.Server{
		{URL: "https://cas01.contoso.local"}, {URL: "https://cas01.contoso.local:444"}, {URL: "https://cas02.contoso.local:444"},
	}}
	for i, want := range []string{"cas01.contoso.local:443", "cas01.contoso.local:444", "cas02.contoso.local"} {
		if got := site.ServerLabel(site.Servers[i]); got != want {
			t.Errorf("%s is called %s, want %s", site.Servers[i].URL, got, want)
		}
	}
}
