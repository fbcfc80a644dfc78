package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/internal/peer"
)

// oneSession is a client that offers its latest session to whoever it talks to.
type oneSession struct{ state *tls.ClientSessionState }

func (s *oneSession) Get(string) (*tls.ClientSessionState, bool) { return s.state, s.state != nil }

func (s *oneSession) Put(_ string, state *tls.ClientSessionState) {
	if state != nil {
		s.state = state
	}
}

// session is a client with its session.
type session struct {
	*tls.Config
	kept *oneSession
}

func newSession(version uint16) session {
	kept := &oneSession{}
	return session{&tls.Config{InsecureSkipVerify: true, MaxVersion: version, ClientSessionCache: kept}, kept}
}

// visit makes a request, and tells whether the session was resumed.
func (s session) visit(address, name string) (resumed bool, err error) {
	conf := s.Clone()
	conf.ServerName = name
	c, err := tls.Dial("tcp", address, conf)
	if err != nil {
		return false, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := fmt.Fprintf(c, "GET /nothing HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name); err != nil {
		return false, err
	}
	if answer, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 ") {
		return false, fmt.Errorf("%q %w", answer, err)
	}
	return c.ConnectionState().DidResume, nil
}

// nodesWorld is a Redis and what the nodes on it have in their directory.
type nodesWorld struct {
	*liveWorld
	redis *peer.RedisServer
}

func newNodesWorld(t *testing.T) *nodesWorld {
	w := &nodesWorld{newLiveWorld(t), peer.Redis(t)}
	w.certificate("mail", nil, "mail.contoso.com", "owa.contoso.com")
	return w
}

const bridged = `servers: [https://192.0.2.1], allow_internal_untrusted_certs: true, extended_protection: `

// config is that of each node; site is what it says about the only site.
func (w *nodesWorld) config(site string) string {
	return `
listen: {https: ["127.0.0.1:0"], http: [], admin: []}
certificates: {storage: "` + w.redis.URL() + `"}
hosts:
  mail.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, site: hq, tls: {client_auth: none}}
  owa.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, redirect: www.contoso.com}
sites:
  hq: {` + site + `}
`
}

func (w *nodesWorld) start(t *testing.T, text string) *frontDoor {
	return startFront(t, filepath.Join(w.dir, "front.yaml"), text)
}

// agreed waits until the nodes have the same ticket keys, which on a busy machine they may not have managed at the start.
func agreed(t *testing.T, first *frontDoor, others ...*frontDoor) {
	t.Helper()
	for _, other := range others {
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			s := newSession(tls.VersionTLS13)
			_, err := s.visit(first.https[0], "mail.contoso.com")
			if err == nil {
				var resumed bool
				if resumed, err = s.visit(other.https[0], "mail.contoso.com"); resumed {
					break
				}
			}
			if time.Now().After(end) {
				t.Fatalf("the nodes do not agree: %v", err)
			}
		}
	}
}

// A session that began on one node is resumed on the other, over restarts, reloads and a Redis that is away, with
// and without the comparison of certificates for Extended Protection; never for another host or under another policy.
func TestNodesResume(t *testing.T) {
	t.Parallel()
	w := newNodesWorld(t)
	for _, protection := range []string{"off", "auto"} {
		text := w.config(bridged + protection)
		one, two, three := w.start(t, text), w.start(t, text), w.start(t, text)
		agreed(t, one, two, three)
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			s := newSession(version)
			step := func(what string, front *frontDoor, host string, want bool) {
				t.Helper()
				if got, err := s.visit(front.https[0], host); err != nil || got != want {
					t.Errorf("extended_protection: %s, %s: %s: resumed %t, %v", protection, tls.VersionName(version), what, got, err)
				}
			}
			const mail, owa = "mail.contoso.com", "owa.contoso.com"
			step("the first visit", one, mail, false)
			step("the other node", two, mail, true)
			step("and back", one, mail, true)
			step("another host", two, owa, false)
			step("that host on the other node", one, owa, true)
			step("the first host again", one, mail, false)

			cfg, report := config.Parse(filepath.Join(w.dir, "front.yaml"), []byte(text))
			if !report.OK() {
				t.Fatal(report)
			}
			if err := two.reload(cfg); err != nil {
				t.Fatal(err)
			}
			step("after a reload", two, mail, true)
			step("a third node", three, mail, true)
			w.redis.Stop()
			step("without Redis", one, mail, true)
			step("without Redis, the other node", two, mail, true)
			w.redis.Start()
			step("Redis is back, and has forgotten everything", one, mail, true)
		}
	}
}

// A session without a client certificate is none where one is required, although host and keys are the same.
func TestNodesResumePolicy(t *testing.T) {
	t.Parallel()
	w := newNodesWorld(t)
	client := w.certificate("client", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, "phone")
	require := strings.Replace(w.config(bridged+"off"), "client_auth: none", "client_auth: require, client_ca: client.pem", 1)
	open, closed := w.start(t, w.config(bridged+"off")), w.start(t, require)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		s := newSession(version)
		if _, err := s.visit(open.https[0], "mail.contoso.com"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.visit(closed.https[0], "mail.contoso.com"); err == nil {
			t.Errorf("%s: let in without a certificate", tls.VersionName(version))
		}
		s.Certificates = []tls.Certificate{client}
		for i, want := range []bool{false, true} {
			if got, err := s.visit(closed.https[0], "mail.contoso.com"); err != nil || got != want {
				t.Errorf("%s: with a certificate, visit %d: resumed %t, %v", tls.VersionName(version), i, got, err)
			}
		}
		if got, err := s.visit(open.https[0], "mail.contoso.com"); err != nil || got {
			t.Errorf("%s: a session with a certificate, where none is asked for: resumed %t, %v", tls.VersionName(version), got, err)
		}
	}
}

// The same with a client that we did not write.
func TestNodesResumeOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := peer.Need(t, "openssl", "apt-get install openssl")
	w := newNodesWorld(t)
	one, two := w.start(t, w.config(bridged+"off")), w.start(t, w.config(bridged+"off"))
	agreed(t, one, two)
	file := filepath.Join(w.dir, "session.pem")
	visit := func(version string, front *frontDoor, name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), openssl, append([]string{"s_client", "-connect", front.https[0], "-servername", name, version, "-ign_eof"}, args...)...)
		cmd.Stdin = strings.NewReader("GET /nothing HTTP/1.1\r\nHost: " + name + "\r\nConnection: close\r\n\r\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for line := range strings.Lines(string(out)) {
			if word, _, ok := strings.Cut(line, ", "); ok && (word == "New" || word == "Reused") {
				return word
			}
		}
		t.Fatalf("%s", out)
		return ""
	}
	for _, version := range []string{"-tls1_2", "-tls1_3"} {
		if got := visit(version, one, "mail.contoso.com", "-sess_out", file); got != "New" {
			t.Errorf("%s: %s", version, got)
		}
		if got := visit(version, two, "mail.contoso.com", "-sess_in", file); got != "Reused" {
			t.Errorf("%s, the other node: %s", version, got)
		}
		if got := visit(version, two, "owa.contoso.com", "-sess_in", file); got != "New" {
			t.Errorf("%s, another host: %s", version, got)
		}
	}
}

// on several nodes: what one has seen counts for the other.
func TestNodesFirstUse(t *testing.T) {
	t.Parallel()
	w := newNodesWorld(t)
	impostor, _ := trustedServer(t, nil)
	var shown atomic.Pointer[tls.Certificate]
	server, _ := trustedServer(t, func(c *tls.Config) {
		own := c.Certificates[0]
		shown.Store(&own)
		c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return &tls.Config{Certificates: []tls.Certificate{*shown.Load()}}, nil
		}
	})
	address := server.Listener.Addr().String()
	text := w.config(`servers: ["https://` + address + `"], trust: first_use, health: off, extended_protection: off`)
	status := func(front *frontDoor) int {
		t.Helper()
		transport := frontTransport(t, front)
		r, _ := http.NewRequest(http.MethodGet, "https://mail.contoso.com/owa/", nil)
		resp, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if got := status(w.start(t, text)); got != http.StatusOK {
		t.Fatalf("first use: %d", got)
	}
	if got := status(w.start(t, text)); got != http.StatusOK {
		t.Errorf("the same server on another node: %d", got)
	}
	// Somebody takes the server's place.
	shown.Store(&impostor.TLS.Certificates[0])
	if got := status(w.start(t, text)); got != http.StatusBadGateway {
		t.Errorf("another key on another node: %d", got)
	}
}

// check finds what is wrong with the settings of shared storage, check --live whether it is there.
func TestCheckStorage(t *testing.T) {
	t.Parallel()
	w := newNodesWorld(t)
	text := "certificates: {storage: \"" + w.redis.URL() + "\"}\n" + liveConfig + "    trust: first_use\n    exchange: 2019\n"
	live := liveFine(t)
	live.check(text, 0, 1, "fine: storage: redis "+w.redis.Socket+" answers", "warning: … first_use has remembered no key yet (key autodgate:shared:first-use/hq@cas01.contoso.local_443.pin in redis")
	w.redis.Stop()
	live.check(text, 2, 0, "error: storage: redis "+w.redis.Socket, "error: site hq: … first_use: redis")

	file := filepath.Join(w.dir, "check.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(w.config(bridged+"off"), "certificates: {", "certificates: {storage_password_file: none, ", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errOut strings.Builder
	if got := run([]string{"check", "--config", file}, &out, &errOut); got != 1 || !strings.Contains(out.String(), "error: certificates.storage: password") {
		t.Errorf("%d\n%s%s", got, &out, &errOut)
	}
	if _, err := newFrontDoor(mustConfig(t, file), zerolog.Nop(), frontDoorOptions{}); err == nil || !strings.Contains(err.Error(), "certificates.storage: password") {
		t.Errorf("serve: %v", err)
	}
}

func mustConfig(t *testing.T, file string) *config.Config {
	t.Helper()
	cfg, report, err := config.Load(file)
	if err != nil || !report.OK() {
		t.Fatal(report, err)
	}
	return cfg
}

// A reload may change the storage; what the old one was for ends with it, and sessions begin anew.
func TestReloadStorage(t *testing.T) {
	t.Parallel()
	w := newNodesWorld(t)
	front := w.start(t, w.config(bridged+"off"))
	parse := func(text string) *config.Config {
		t.Helper()
		cfg, report := config.Parse(filepath.Join(w.dir, "front.yaml"), []byte(text))
		if !report.OK() {
			t.Fatal(report)
		}
		return cfg
	}
	s := newSession(tls.VersionTLS13)
	visit := func(what string, want bool) {
		t.Helper()
		if got, err := s.visit(front.https[0], "mail.contoso.com"); err != nil || got != want {
			t.Errorf("%s: resumed %t, %v", what, got, err)
		}
	}
	visit("the first visit", false)
	old := front.storage
	bad := strings.Replace(w.config(bridged+"off"), "certificates: {", "certificates: {storage_key_file: none, ", 1)
	if err := front.reload(parse(bad)); err == nil || front.storage != old {
		t.Errorf("a storage that cannot be opened: %v", err)
	}
	visit("after a reload that failed", true)
	if err := front.reload(parse(strings.Replace(w.config(bridged+"off"), "certificates: {", "certificates: {storage_prefix: other, ", 1))); err != nil || front.storage == old {
		t.Errorf("another prefix: %v", err)
	}
	visit("another storage", false)
	visit("another storage, again", true)
	if err := old.Ping(context.Background()); err == nil {
		t.Error("the old storage is still open")
	}
}

// Two nodes, of which only the first is where the issuer's validations go: one account, one order, and both serve its
// certificate. The second orders, in the first case by chance, in the others because the first is never asked for a certificate.
func TestNodesACME(t *testing.T) {
	for name, first := range map[string]string{
		"both order":  "{DIRECTORY}",
		"http-01":     "{DIRECTORY, challenges: [http-01], on_demand: true}",
		"tls-alpn-01": "{DIRECTORY, challenges: [tls-alpn-01], on_demand: true}",
	} {
		t.Run(name, func(t *testing.T) {
			w := newACMEWorld(t, pebbleOptions{})
			redis := peer.Redis(t)
			listen := func(ports, acme string) string {
				t.Helper()
				cfg := w.config(ports, acme, "  mail.contoso.com: {certificate: acme, answer: true}\n")
				cfg.Certificates.Storage = redis.URL()
				front, err := newFrontDoor(cfg, zerolog.New(w.log), frontDoorOptions{RenewCheck: 100 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				if err := front.listen(); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					_ = front.shutdown(ctx)
				})
				return front.https[0]
			}
			const otherPorts = `{https: ["127.0.0.1:0"], http: ["127.0.0.1:0"], admin: []}`
			one := listen(bothPorts, first)
			w.https = listen(otherPorts, strings.ReplaceAll(first, ", on_demand: true", ""))
			leaf := w.issued("mail.contoso.com", nil)
			w.https = one
			if other := w.issued("mail.contoso.com", nil); !other.Equal(leaf) {
				t.Error("the nodes have different certificates")
			}
			w.https = listen(otherPorts, "{DIRECTORY}")
			if other, err := w.shown("mail.contoso.com"); err != nil || !other.Equal(leaf) {
				t.Errorf("a node that comes later: %v", err)
			}
			if orders, accounts := w.pebble.orders(), w.pebble.accounts(); orders != 1 || accounts != 1 {
				t.Errorf("%d orders, %d accounts", orders, accounts)
			}
			if strings.Contains(w.log.String(), "PRIVATE KEY") {
				t.Error("what has no place in the log")
			}
		})
	}
}

// Sessions of mail protocols are resumed on every node too, and not by the website of the same name.
func TestNodesResumeMail(t *testing.T) {
	t.Parallel()
	w := newNodesWorld(t)
	text := strings.NewReplacer("listen: {", `listen: {imaps: ["127.0.0.1:0"], `, "site: hq, tls", `site: hq, mail: {imaps: bridge, backend: "tls://127.0.0.1:1"}, tls`).Replace(w.config(bridged + "off"))
	one, two := w.start(t, text), w.start(t, text)
	agreed(t, one, two)
	s := newSession(tls.VersionTLS12) // whose ticket comes with the handshake; nobody is behind
	for i, step := range []struct {
		address string
		want    bool
	}{{one.mail["imaps"][0], false}, {two.mail["imaps"][0], true}, {one.mail["imaps"][0], true}, {two.https[0], false}, {one.mail["imaps"][0], false}} {
		conf := s.Clone()
		conf.ServerName = "mail.contoso.com"
		c, err := tls.Dial("tcp", step.address, conf)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().DidResume; got != step.want {
			t.Errorf("step %d: resumed %t", i, got)
		}
		c.Close()
	}
}
