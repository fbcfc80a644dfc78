package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/lab"
)

// The lab's default scenario comes out as it says, well within its 20 seconds.
func TestLabOnce(t *testing.T) {
	var out, errOut bytes.Buffer
	start := time.Now()
	if code := run([]string{"lab", "--once"}, &out, &errOut); code != 0 {
		t.Fatalf("exit status %d\n%s%s", code, &out, &errOut)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	m := regexp.MustCompile(`\n(\d+) of (\d+) as the scenario says\n$`).FindStringSubmatch(out.String())
	if m == nil || m[1] != m[2] || m[1] == "0" {
		t.Errorf("result line: %q", m)
	}
	for _, want := range []string{
		"outlook-2007 looks for the server of pat@contoso.com", "outlook-2016 looks", "activesync looks",
		"result  prompt, 1 question, settings from https://mail.contoso.com/autodiscover/autodiscover.xml", "result  fails at GET http://autodiscover.tailspin.example",
		"the server refused TLS with the alert unrecognized_name", "302 to https://mail.contoso.com/autodiscover/autodiscover.xml",
		"ok    ntlm: ", "ok    crowd: 200 clients",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if strings.Contains(out.String(), "FAIL") {
		t.Error(out.String())
	}
}

// A flow that does not come out as the scenario says is shown and ends with 1.
func TestLabTellsFailure(t *testing.T) {
	s, err := lab.Load(lab.DefaultScenario)
	if err != nil {
		t.Fatal(err)
	}
	s.Expect = []lab.Expectation{{Client: "outlook-2007", Address: "kim@fabrikam.com", Outcome: lab.OutcomePrompt, Prompts: 1}}
	var out bytes.Buffer
	err = runLab(t.Context(), &out, os.Stderr, s, labOptions{once: true})
	if err == nil || !strings.Contains(out.String(), "FAIL  discover: outlook-2007, kim@fabrikam.com\n      expected prompt, 1 question\n      got      silent, at ") {
		t.Errorf("%v\n%s", err, &out)
	}
}

// startLab brings up the default company, changed as the test wants, with its
// front door.
func startLab(t *testing.T, change ...func(*lab.Scenario)) (*lab.Company, *frontDoor) {
	t.Helper()
	s, err := lab.Load(lab.DefaultScenario)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(s)
	}
	company, err := lab.Start(t.Context(), s, lab.Options{Logger: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { company.Close() })
	return company, startFront(t, filepath.Join(company.Dir(), "autodgate.yaml"), company.Config())
}

// startFront brings up a front door from the text of a config.
func startFront(t *testing.T, name, text string) *frontDoor {
	t.Helper()
	cfg, report := config.Parse(name, []byte(text))
	if !report.OK() {
		t.Fatal(report.String())
	}
	front, err := newFrontDoor(cfg, zerolog.Nop(), frontDoorOptions{Lab: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := front.listen(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		front.shutdown(ctx)
	})
	return front
}

// curl runs curl against the front door as if it stood on the standard ports.
func curl(t *testing.T, company *lab.Company, front *frontDoor, args ...string) string {
	t.Helper()
	path := peer.Need(t, "curl", "apt-get install curl")
	cmd := exec.CommandContext(t.Context(), path, curlArguments(company, front, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func curlArguments(company *lab.Company, front *frontDoor, args ...string) []string {
	return append([]string{
		"--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--cacert", company.CAFile(),
		"--connect-to", ":443:" + front.https[0], "--connect-to", ":80:" + front.http[0],
	}, args...)
}

// curl --ntlm through the front door against the lab's CAS: 200, and 50 further
// requests on the same connection as the same user, on one backend connection
// . Without credentials, or with wrong ones: 401.
func TestCurlNTLM(t *testing.T) {
	company, front := startLab(t)
	pat, ok := company.Account("pat@contoso.com")
	if !ok {
		t.Fatal("no pat")
	}
	args := []string{"--ntlm", "-u", pat.Login + ":" + pat.Password, "-w", "%{http_code} %{num_connects} %header{x-lab-user} %header{x-lab-server} %header{x-lab-connection}\n"}
	for range 51 {
		args = append(args, "-o", "/dev/null", "https://mail.contoso.com/EWS/Exchange.asmx")
	}
	lines := strings.Split(strings.TrimSpace(curl(t, company, front, args...)), "\n")
	if len(lines) != 51 {
		t.Fatalf("%d answers: %q", len(lines), lines)
	}
	first := strings.Fields(lines[0])
	if len(first) != 5 || first[0] != "200" || first[1] != "1" || !strings.Contains(strings.ToLower(first[2]), "pat") {
		t.Fatalf("first answer %q", lines[0])
	}
	for i, l := range lines[1:] {
		if f := strings.Fields(l); len(f) != 5 || f[0] != "200" || f[1] != "0" || f[2] != first[2] || f[3] != first[3] || f[4] != first[4] {
			t.Errorf("answer %d: %q, first %q", i+2, l, lines[0])
		}
	}
	got := curl(t, company, front, "-o", "/dev/null", "-w", "%{http_code}", "https://mail.contoso.com/EWS/Exchange.asmx")
	if got != "401" {
		t.Errorf("without credentials: %s", got)
	}
	got = curl(t, company, front, "--ntlm", "-u", pat.Login+":wrong", "-o", "/dev/null", "-w", "%{http_code}", "https://mail.contoso.com/EWS/Exchange.asmx")
	if got != "401" {
		t.Errorf("wrong password: %s", got)
	}
	// With a body over 1 MiB, before which curl waits for 100 Continue (R-5.2, G8).
	body := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(body, bytes.Repeat([]byte("x"), 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	got = curl(t, company, front, "--ntlm", "-u", pat.Login+":"+pat.Password, "--data-binary", "@"+body, "-o", "/dev/null", "-w", "%{http_code} %{num_connects}", "https://mail.contoso.com/EWS/Exchange.asmx")
	if got != "200 1" {
		t.Errorf("POST with Expect: %s", got)
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}
}

// The names of the lab as openssl sees them.
func TestOpenSSLNames(t *testing.T) {
	company, front := startLab(t)
	path := peer.Need(t, "openssl", "apt-get install openssl")
	s := func(name string) string {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		out, _ := exec.CommandContext(ctx, path, "s_client", "-connect", front.https[0], "-servername", name, "-CAfile", company.CAFile(), "-alpn", "h2,http/1.1").CombinedOutput()
		return string(out)
	}
	if out := s("mail.contoso.com"); !strings.Contains(out, "Verify return code: 0 (ok)") || !strings.Contains(out, "ALPN protocol: http/1.1") || !strings.Contains(out, "CN = mail.contoso.com") {
		t.Errorf("mail: %s", out)
	}
	if out := s("eas.contoso.com"); !strings.Contains(out, "CN = cas01") || strings.Contains(out, "mail.contoso.com") {
		t.Errorf("passthrough: %s", out)
	}
	for _, name := range []string{"autodiscover.contoso.com", "nobody.example"} {
		if out := s(name); !strings.Contains(out, "SSL alert number 112") || !strings.Contains(out, "no peer certificate available") {
			t.Errorf("%s: %s", name, out)
		}
	}
}

// POX answered by the front door, asked by curl: login first, then settings; the
// hostile documents get their error and nothing else.
func TestCurlPOX(t *testing.T) {
	company, front := startLab(t)
	kim, _ := company.Account("kim@fabrikam.com")
	url := "https://autodiscover.fabrikam.com/Autodiscover/Autodiscover.xml"
	post := func(file string, args ...string) string {
		return curl(t, company, front, append(args, "-H", "Content-Type: text/xml; charset=utf-8", "--data-binary", "@"+file, "-i", url)...)
	}
	request := filepath.Join(t.TempDir(), "req.xml")
	data, err := os.ReadFile("../../testdata/pox/outlook/req-email.xml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(request, bytes.ReplaceAll(data, []byte("pat@contoso.com"), []byte("kim@fabrikam.com")), 0o600); err != nil {
		t.Fatal(err)
	}
	anonymous := post(request)
	if !strings.HasPrefix(anonymous, "HTTP/1.1 401 ") || !strings.Contains(anonymous, "\r\nWWW-Authenticate: Basic realm=") || !strings.Contains(anonymous, "\r\nX-SOAP-Enabled: True\r\n") {
		t.Errorf("anonymous: %s", anonymous)
	}
	login := []string{"-u", kim.Address + ":" + kim.Password}
	if out := post(request, login...); !strings.HasPrefix(out, "HTTP/1.1 200 ") || !strings.Contains(out, "<Type>EXPR</Type>") || !strings.Contains(out, "Content-Type: text/xml; charset=utf-8\r\n") {
		t.Errorf("settings: %s", out)
	}
	if out := post(request, append(login, "-H", "X-MapiHttpCapability: 1")...); !strings.Contains(out, `<Protocol Type="mapiHttp" Version="1">`) || strings.Contains(out, "EXPR</Type>\n      <Server") {
		t.Errorf("mapiHttp: %s", out)
	}
	files, _ := filepath.Glob("../../testdata/pox/hostile/*")
	if len(files) == 0 {
		t.Fatal("no hostile fixtures")
	}
	for _, file := range files {
		out := post(file, login...)
		if !strings.Contains(out, "<ErrorCode>600</ErrorCode>") && !strings.Contains(out, "<ErrorCode>601</ErrorCode>") && !strings.HasPrefix(out, "HTTP/1.1 413 ") {
			t.Errorf("%s: %s", filepath.Base(file), out)
		}
	}
}

// discover against the lab from the command line, as a user would type it.
func TestDiscoverCommand(t *testing.T) {
	company, front := startLab(t)
	lee, _ := company.Account("lee@contoso.com")
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte(lee.Password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"discover", "lee@contoso.com", "--client", "outlook-2016", "--dns", company.DNSAddr(), "--ca", company.CAFile(),
		"--https-port", strconv.Itoa(portOf(front.https[0])), "--http-port", strconv.Itoa(portOf(front.http[0])), "--user", lee.Login,
	}
	var out, errOut bytes.Buffer
	if code := run(append(args, "--password-file", secret, "--json"), &out, &errOut); code != 0 {
		t.Fatalf("exit %d: %s%s", code, &out, &errOut)
	}
	var trace map[string]any
	if err := json.Unmarshal(out.Bytes(), &trace); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(out.Bytes(), []byte(lee.Password)) {
		t.Error("the password is in the trace")
	}
	out.Reset()
	if code := run(args, &out, &errOut); code != 1 || !strings.Contains(out.String(), "401") {
		t.Errorf("without password: exit %d\n%s", code, &out)
	}
}

// A certificate file that changes is shown to the next connection, while the
// connections there are live on; a broken host does not take the others down.
func TestCertificateSwapAndBrokenHost(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) {
		t.Helper()
		path := peer.Need(t, "openssl", "apt-get install openssl")
		out, err := exec.Command(path, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN="+name,
			"-addext", "subjectAltName=DNS:mail.contoso.com", "-keyout", filepath.Join(dir, "mail.key"), "-out", filepath.Join(dir, "mail.pem")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	write("first")
	front := startFront(t, filepath.Join(dir, "front.yaml"), `
listen: {https: ["127.0.0.1:0"], http: [], admin: "127.0.0.1:0"}
hosts:
  mail.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, answer: true}
  broken.contoso.com: {certificate: {cert: none.pem, key: none.key}, answer: true}
domains:
  contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}
`)
	dial := func(sni string) (*tls.Conn, error) {
		return tls.Dial("tcp", front.https[0], &tls.Config{InsecureSkipVerify: true, ServerName: sni})
	}
	old, err := dial("mail.contoso.com")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if _, err := dial("broken.contoso.com"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("broken host: %v", err)
	}
	for _, ext := range []string{".key", ".pem"} { // the broken host is mended while the front door runs
		data, err := os.ReadFile(filepath.Join(dir, "mail"+ext))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "none"+ext), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("second")
	deadline := time.Now().Add(15 * time.Second)
	for {
		c, err := dial("mail.contoso.com")
		if err != nil {
			t.Fatal(err)
		}
		cn := c.ConnectionState().PeerCertificates[0].Subject.CommonName
		c.Close()
		if cn == "second" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still shows %q", cn)
		}
		time.Sleep(200 * time.Millisecond)
	}
	for {
		c, err := dial("broken.contoso.com")
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the mended host: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	fmt.Fprint(old, "GET /autodiscover/autodiscover.xml HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
	buf := make([]byte, 12)
	if _, err := old.Read(buf); err != nil || !strings.HasPrefix(string(buf), "HTTP/1.1 200") {
		t.Errorf("the old connection: %q %v", buf, err)
	}
	resp, err := http.Get("http://" + front.admin + "/health")
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("health: %v", err)
	} else {
		resp.Body.Close()
	}
}

// TLS to the backend: trust: ca verifies, server_name overrides, and without
// either an Exchange server's own certificate is refused with 502.
func TestBackendTrust(t *testing.T) {
	company, _ := startLab(t)
	server := company.Servers()[0]
	ca := filepath.Join(t.TempDir(), "cas.pem")
	c, err := tls.Dial("tcp", server.Address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	leaf := c.ConnectionState().PeerCertificates[0]
	c.Close()
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(name, site string, want int) {
		t.Helper()
		front := startFront(t, "front.yaml", `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: `+t.TempDir()+`}
hosts:
  mail.contoso.com: {certificate: self_signed, site: hq}
sites:
  hq: {servers: ["https://`+server.Address+`"], `+site+`}
`)
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "mail.contoso.com"},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", front.https[0])
			},
		}}
		defer client.CloseIdleConnections()
		resp, err := client.Get("https://mail.contoso.com/ews/exchange.asmx")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, want)
		}
	}
	f("verify", "trust: verify", 502)
	f("ca, wrong name", "trust: {ca: "+ca+"}", 502) // the address is not in the certificate
	f("ca and server_name", "trust: {ca: "+ca+"}, server_name: cas01.contoso.local", 401)
	f("ca and other server_name", "trust: {ca: "+ca+"}, server_name: cas02.contoso.local", 502)
	f("untrusted allowed", "allow_internal_untrusted_certs: true", 401)
	f("untrusted allowed, server_name", "allow_internal_untrusted_certs: true, server_name: cas01.contoso.local", 401)
}

// Without --once the lab stays up, says what to try, and ends when interrupted,
// leaving nothing behind.
func TestLabStaysUp(t *testing.T) {
	s, err := lab.Load(lab.DefaultScenario)
	if err != nil {
		t.Fatal(err)
	}
	s.Expect = s.Expect[:1]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &watchedBuffer{want: "Interrupt (Ctrl-C) ends it."}
	var file string
	out.seen = func() {
		defer cancel()
		m := regexp.MustCompile(`config +(\S+)`).FindStringSubmatch(out.String())
		if m == nil {
			t.Error("no config in the output")
			return
		}
		file = m[1]
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	if err := runLab(ctx, out, os.Stderr, s, labOptions{quiet: true}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, want := range []string{"The lab is up.", "curl --ntlm -u 'CONTOSO\\pat:Lab-Pat-1' --cacert ", "discover kim@fabrikam.com --dns 127.0.0.1:", "\nending\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, out.String())
		}
	}
	if _, err := os.Stat(filepath.Dir(file)); !os.IsNotExist(err) {
		t.Errorf("the lab's directory is left: %v", err)
	}
}

// watchedBuffer calls seen once want has been written.
type watchedBuffer struct {
	bytes.Buffer
	want string
	seen func()
	once sync.Once
}

func (b *watchedBuffer) Write(p []byte) (int, error) {
	n, err := b.Buffer.Write(p)
	if strings.Contains(b.String(), b.want) {
		b.once.Do(b.seen)
	}
	return n, err
}
