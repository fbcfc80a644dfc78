package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/tlsconf"
)

// acmeWorld is a front door that orders certificates from pebble, an ACME server
// by the people of Let's Encrypt, which validates at the front door's own ports.
type acmeWorld struct {
	*liveWorld
	https, http, names string // addresses
	pebble             *pebble
	front              *frontDoor
	log                *syncBuffer
}

// pebble is a running ACME server.
type pebble struct {
	w                     *acmeWorld
	directory, management string
	log                   *syncBuffer
	client                *http.Client
}

// pebbleOptions are what differs from pebble to pebble.
type pebbleOptions struct {
	eab  map[string]string
	env  []string
	tls  string // where validations by TLS-ALPN-01 go; "" is the front door
	dns  string // a name server; "" is one that has every name at the front door
	life int    // seconds
}

func newACMEWorld(t *testing.T, o pebbleOptions) *acmeWorld {
	t.Helper()
	t.Parallel()
	w := &acmeWorld{liveWorld: newLiveWorld(t), log: &syncBuffer{}}
	w.https, w.http = fmt.Sprintf("127.0.0.1:%d", freePort(t)), fmt.Sprintf("127.0.0.1:%d", freePort(t))
	w.names = o.dns
	if w.names == "" {
		w.names = everyName(t)
	}
	w.pebble = w.startPebble(o)
	return w
}

// everyName is a name server that has every name at 127.0.0.1.
func everyName(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: ln, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.ActivateAndServe()
	}()
	t.Cleanup(func() {
		_ = ln.Close()
		<-done
	})
	return ln.Addr().String()
}

// startPebble runs an ACME server until the test ends.
func (w *acmeWorld) startPebble(o pebbleOptions) *pebble {
	w.t.Helper()
	program, err := filepath.Glob("../../dist/peers/pebble-*/pebble")
	if err != nil {
		w.t.Fatal(err)
	}
	if len(program) == 0 {
		peer.Missing(w.t, "pebble", "sh .ci/peers")
	}
	p := &pebble{w: w, log: &syncBuffer{}}
	listen, management := fmt.Sprintf("127.0.0.1:%d", freePort(w.t)), fmt.Sprintf("127.0.0.1:%d", freePort(w.t))
	p.directory, p.management = "https://"+listen+"/dir", "https://"+management
	cert := w.certificate("pebble", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} }, "localhost")
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	port := func(address string) int {
		a, err := net.ResolveTCPAddr("tcp", address)
		if err != nil {
			w.t.Fatal(err)
		}
		return a.Port
	}
	if o.tls == "" {
		o.tls = w.https
	}
	settings := map[string]any{
		"listenAddress": listen, "managementListenAddress": management,
		"certificate": filepath.Join(w.dir, "pebble.pem"), "privateKey": filepath.Join(w.dir, "pebble.key"),
		"httpPort": port(w.http), "tlsPort": port(o.tls), "keyAlgorithm": "ecdsa",
		"externalAccountBindingRequired": o.eab != nil, "externalAccountMACKeys": o.eab,
	}
	if o.life > 0 {
		settings["profiles"] = map[string]any{"default": map[string]any{"description": "short", "validityPeriod": o.life}}
	}
	text, err := json.Marshal(map[string]any{"pebble": settings})
	if err != nil {
		w.t.Fatal(err)
	}
	w.file("pebble.json", string(text))
	cmd := exec.Command(program[len(program)-1], "-config", filepath.Join(w.dir, "pebble.json"), "-dnsserver", w.names)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.Env = append(os.Environ(), append([]string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0"}, o.env...)...)
	runPeer(w.t, cmd, p.log)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := p.client.Get(p.directory)
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("pebble does not answer: %v\n%s", err, p.log)
		}
	}
	return p
}

// runPeer runs a program until the test ends.
func runPeer(t *testing.T, cmd *exec.Cmd, log fmt.Stringer) {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		if t.Failed() {
			t.Log(log)
		}
	})
}

// get reads from pebble's management.
func (p *pebble) get(path string) []byte {
	p.w.t.Helper()
	resp, err := p.client.Get(p.management + path)
	if err != nil {
		p.w.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		p.w.t.Fatalf("%s: %s %v", path, resp.Status, err)
	}
	return data
}

// orders counts the orders placed.
func (p *pebble) orders() int { return strings.Count(p.log.String(), "Added order ") }

// accounts counts the accounts registered.
func (p *pebble) accounts() int { return strings.Count(p.log.String(), "POST /sign-me-up") }

// config is a config with an acme section and hosts, each in one line; HTTP and
// HTTPS, DIRECTORY and STORAGE stand for what they are here.
func (w *acmeWorld) config(listen, acme, hosts string) *config.Config {
	w.t.Helper()
	text := "listen: " + listen + "\ncertificates:\n  acme: " + acme + "\n  storage: STORAGE\nhosts:\n" + hosts +
		"domains: {contoso.com: {autodiscover: answer, external_url: https://mail.contoso.com}}\n"
	text = strings.NewReplacer("HTTPS", w.https, "HTTP", w.http, "DIRECTORY", fmt.Sprintf("directory: %s, directory_ca: pebble.pem", w.pebble.directory),
		"STORAGE", filepath.Join(w.dir, "storage")).Replace(text)
	cfg, report := config.Parse(filepath.Join(w.dir, "autodgate.yaml"), []byte(text))
	if !report.OK() {
		w.t.Fatal(report.String())
	}
	return cfg
}

// acmePatience is how long a test waits for an order: a key of 2048 bits alone takes a
// busy machine seconds, and after a failure the next attempt comes in a minute.
const acmePatience = 100 * time.Second

const bothPorts = `{https: ["HTTPS"], http: ["HTTP"], admin: []}`

func (w *acmeWorld) serve(cfg *config.Config) {
	w.t.Helper()
	front, err := newFrontDoor(cfg, zerolog.New(w.log), frontDoorOptions{RenewCheck: 100 * time.Millisecond})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := front.listen(); err != nil {
		w.t.Fatal(err)
	}
	w.front = front
	w.t.Cleanup(func() {
		w.stop()
		if w.t.Failed() {
			w.t.Log(w.log)
		}
	})
}

func (w *acmeWorld) stop() {
	if w.front != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = w.front.shutdown(ctx)
		w.front = nil
	}
}

// shown is the certificate that a client sees, which trusts what pebble's root
// vouches for.
func (w *acmeWorld) shown(name string) (*x509.Certificate, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.pebble.get("/roots/0"))
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 20 * time.Second}, Config: &tls.Config{RootCAs: roots, ServerName: name}}
	conn, err := d.Dial("tcp", w.https)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// issued waits until a client sees a certificate that it trusts, and other than the
// given one.
func (w *acmeWorld) issued(name string, but *x509.Certificate) *x509.Certificate {
	w.t.Helper()
	for deadline := time.Now().Add(acmePatience); ; time.Sleep(20 * time.Millisecond) {
		leaf, err := w.shown(name)
		if err == nil && (but == nil || !leaf.Equal(but)) {
			return leaf
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("no certificate for %s: %v\n%s\n%s", name, err, w.log, w.pebble.log)
		}
	}
}

// Each challenge alone, through the ports that serve everything else: one order for
// all names of the host, whose certificate has them all.
func TestACMEChallenges(t *testing.T) {
	for name, acme := range map[string]string{
		"http-01":     `{DIRECTORY, email: hostmaster@contoso.com, challenges: [http-01]}`,
		"tls-alpn-01": `{DIRECTORY, challenges: [tls-alpn-01]}`,
		"both":        `{DIRECTORY}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newACMEWorld(t, pebbleOptions{})
			listen := bothPorts
			if name == "tls-alpn-01" {
				listen = `{https: ["HTTPS"], http: [], admin: []}`
			}
			w.serve(w.config(listen, acme, "  mail.contoso.com: {certificate: acme, aliases: [a.contoso.com, legacy.contoso.com], answer: true}\n"+
				"  own.contoso.com: {certificate: self_signed, answer: true}\n"))
			leaf := w.issued("mail.contoso.com", nil)
			for _, name := range []string{"a.contoso.com", "legacy.contoso.com"} {
				if other, err := w.shown(name); err != nil || !other.Equal(leaf) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if n := w.pebble.orders(); n != 1 {
				t.Errorf("%d orders", n)
			}
			log := w.log.String()
			for _, line := range []string{`"message":"ordering a certificate"`, `"message":"certificate issued"`, `"message":"validation answered"`} {
				if !strings.Contains(log, line) {
					t.Errorf("no line %s", line)
				}
			}
			if strings.Contains(log, "hostmaster@") || strings.Contains(log, "PRIVATE KEY") {
				t.Error("what has no place in the log")
			}
			// What is stored is for nobody else (certmagic's keys, our account).
			if err := filepath.WalkDir(filepath.Join(w.dir, "storage"), func(path string, d fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
					t.Errorf("%s: %v %v", path, info.Mode(), err)
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			// A validation of a name for which none is under way is refused, and one of a name that has no ACME as well (RFC 8737
			// section 3): neither sees a certificate.
			for _, name := range []string{"mail.contoso.com", "own.contoso.com", "nobody.contoso.com"} {
				seen := false
				conf := &tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true, VerifyConnection: func(tls.ConnectionState) error {
					seen = true
					return nil
				}}
				if conn, err := tls.Dial("tcp", w.https, conf); err == nil {
					conn.Close()
					t.Errorf("%s: validated", name)
				}
				if seen {
					t.Errorf("%s: a certificate was shown", name)
				}
			}
			if name == "http-01" {
				resp, err := http.Get("http://" + w.http + "/.well-known/acme-challenge/x")
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
				if resp.StatusCode != 404 {
					t.Errorf("an unknown token: %s", resp.Status)
				}
			}
		})
	}
}

// The next start shows what is stored and orders nothing; a reload goes on with the
// same client and account, and orders for what is new alone.
func TestACMEReload(t *testing.T) {
	w := newACMEWorld(t, pebbleOptions{})
	const first = "  mail.contoso.com: {certificate: acme, answer: true}\n"
	w.serve(w.config(bothPorts, `{DIRECTORY}`, first))
	leaf := w.issued("mail.contoso.com", nil)
	w.stop()
	w.serve(w.config(bothPorts, `{DIRECTORY}`, first))
	// Loaded before the first client can come.
	if again, err := w.shown("mail.contoso.com"); err != nil || !again.Equal(leaf) {
		t.Errorf("after a restart: %v", err)
	}
	client := slices.Collect(maps.Values(w.front.acme))
	if err := w.front.reload(w.config(bothPorts, `{DIRECTORY}`, first+"  eas.contoso.com: {certificate: acme, answer: true}\n")); err != nil {
		t.Fatal(err)
	}
	if again, err := w.shown("mail.contoso.com"); err != nil || !again.Equal(leaf) {
		t.Errorf("after a reload: %v", err)
	}
	w.issued("eas.contoso.com", nil)
	if now := slices.Collect(maps.Values(w.front.acme)); len(now) != 1 || now[0] != client[0] {
		t.Error("the reload made another client")
	}
	if n := w.pebble.orders(); n != 2 {
		t.Errorf("%d orders", n)
	}
	// A file that is gone takes no certificate away.
	if err := w.front.reload(w.config(bothPorts, `{DIRECTORY, eab: {key_id: kid-1, hmac_key_file: none.key}}`, first+"  eas.contoso.com: {certificate: acme, answer: true}\n")); err != nil {
		t.Fatal(err)
	}
	if again, err := w.shown("mail.contoso.com"); err != nil || !again.Equal(leaf) {
		t.Errorf("after a reload with a file that is not there: %v", err)
	}
	w.log.waitFor(t, "none.key")
	// With one more name the certificate is another, and the old one is shown until it is there.
	if err := w.front.reload(w.config(bothPorts, `{DIRECTORY}`, "  mail.contoso.com: {certificate: acme, aliases: [a.contoso.com], answer: true}\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.shown("mail.contoso.com"); err != nil {
		t.Errorf("while another certificate is ordered: %v", err)
	}
	if next := w.issued("mail.contoso.com", leaf); next.VerifyHostname("a.contoso.com") != nil {
		t.Errorf("names %v", next.DNSNames)
	}
	if _, err := w.shown("eas.contoso.com"); err == nil {
		t.Error("a host that is gone is served")
	}
	if n := w.pebble.accounts(); n != 1 {
		t.Errorf("%d accounts", n)
	}
}

// DNS-01 by updates that BIND takes with TSIG (RFC 2136, RFC 8945), and by a program.
func TestACMEDNS(t *testing.T) {
	named := peer.Need(t, "/usr/sbin/named", "apt-get install bind9")
	nsupdate := peer.Need(t, "nsupdate", "apt-get install bind9-dnsutils")
	const secret = "c2VjcmV0IG9mIHRoZSBUU0lHIGtleSwgMzIgYnl0ZXM="
	for name, writer := range map[string]string{
		"update": "{server: SERVER, tsig_name: autodgate, tsig_secret_file: tsig.secret}",
		"exec":   "{exec: hook}",
	} {
		t.Run(name, func(t *testing.T) {
			server := fmt.Sprintf("127.0.0.1:%d", freePort(t))
			_, port, _ := net.SplitHostPort(server)
			w := newACMEWorld(t, pebbleOptions{dns: server})
			w.file("tsig.secret", secret+"\n")
			// _acme-challenge of the alias leads into another zone, as where the first may not be changed.
			w.file("contoso.zone", "$TTL 60\n@ SOA localhost. hostmaster 1 60 60 600 60\n@ NS localhost.\n_acme-challenge.legacy CNAME legacy.validation.example.\n")
			w.file("validation.zone", "$TTL 60\n@ SOA localhost. hostmaster 1 60 60 600 60\n@ NS localhost.\n")
			w.file("named.conf", fmt.Sprintf(`options { directory %[1]q; listen-on port %[2]s { 127.0.0.1; }; listen-on-v6 { none; }; recursion yes; notify no;
				pid-file "named.pid"; session-keyfile "session.key"; allow-query { any; }; dnssec-validation no; };
				controls {};
				key autodgate { algorithm hmac-sha256; secret %[3]q; };
				zone contoso.com { type primary; file "contoso.zone"; allow-update { key autodgate; }; };
				zone validation.example { type primary; file "validation.zone"; allow-update { key autodgate; }; };`, w.dir, port, secret))
			hook := filepath.Join(w.dir, "hook")
			if err := os.WriteFile(hook, []byte(fmt.Sprintf(`#!/bin/sh
echo "$@" >>%[1]s/hook.log
case $1 in present) action=add ;; *) action=delete ;; esac
name=$(echo "$2" | sed 's/^_acme-challenge.legacy.contoso.com.$/legacy.validation.example./')
printf 'server 127.0.0.1 %[2]s\nupdate %%s %%s 60 TXT %%s\nsend\n' "$action" "$name" "$3" | %[3]s -y hmac-sha256:autodgate:%[4]s
`, w.dir, port, nsupdate, secret)), 0o700); err != nil {
				t.Fatal(err)
			}
			log := &syncBuffer{}
			cmd := exec.Command(named, "-f", "-c", filepath.Join(w.dir, "named.conf"))
			cmd.Stdout, cmd.Stderr = log, log
			runPeer(t, cmd, log)
			ask := func(name string) *dns.Msg {
				r, _, err := (&dns.Client{Net: "tcp"}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeTXT), server)
				if err != nil {
					return nil
				}
				return r
			}
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				if r := ask("contoso.com."); r != nil && r.Authoritative {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("named does not answer\n%s", log)
				}
			}
			if name == "update" {
				// What an administrator gets to see whose key is wrong, or may not do this.
				for want, u := range map[string]tlsconf.DNSUpdate{
					"is the key known there":       {Server: server, TSIGName: "autodgate", TSIGSecret: "b3RoZXI="},
					"may the key change this zone": {Server: server},
				} {
					if err := u.Present(t.Context(), "_acme-challenge.mail.contoso.com.", "x"); err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%q: %v", want, err)
					}
				}
			}
			// No port for validations is open, and none is needed.
			w.serve(w.config(`{https: ["HTTPS"], http: [], admin: []}`, `{DIRECTORY, challenges: [dns-01], dns: `+strings.ReplaceAll(writer, "SERVER", server)+"}",
				"  mail.contoso.com: {certificate: acme, aliases: [legacy.contoso.com], answer: true}\n"))
			leaf := w.issued("mail.contoso.com", nil)
			if err := leaf.VerifyHostname("legacy.contoso.com"); err != nil {
				t.Error(err)
			}
			for _, name := range []string{"_acme-challenge.mail.contoso.com.", "legacy.validation.example."} {
				r := ask(name)
				if r == nil || slices.ContainsFunc(r.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeTXT }) {
					t.Errorf("%s was left behind: %v", name, r)
				}
			}
			if name == "exec" {
				calls, err := os.ReadFile(filepath.Join(w.dir, "hook.log"))
				if err != nil {
					t.Fatal(err)
				}
				for _, want := range []string{`(?m)^present _acme-challenge\.mail\.contoso\.com\. \S{43}$`, `(?m)^cleanup _acme-challenge\.mail\.contoso\.com\. \S{43}$`} {
					if !regexp.MustCompile(want).Match(calls) {
						t.Errorf("no call %s in\n%s", want, calls)
					}
				}
			}
		})
	}
}

// An issuer that wants external account binding (RFC 8555 section 7.3.4).
func TestACMEEAB(t *testing.T) {
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	w := newACMEWorld(t, pebbleOptions{eab: map[string]string{"kid-1": key}})
	w.file("eab.key", key+"\n")
	w.serve(w.config(bothPorts, `{DIRECTORY}`, "  mail.contoso.com: {certificate: acme, answer: true}\n  own.contoso.com: {certificate: self_signed, answer: true}\n"))
	w.log.waitFor(t, "externalAccountRequired")
	// The host without a certificate is refused with the alert, and its neighbour is not.
	if _, err := w.shown("mail.contoso.com"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("without a certificate: %v", err)
	}
	if _, err := w.shown("own.contoso.com"); err == nil || strings.Contains(err.Error(), "alert") || strings.Contains(err.Error(), "remote error") {
		t.Errorf("the neighbour: %v", err) // it shows a certificate, which is not pebble's
	}
	if err := w.front.reload(w.config(bothPorts, `{DIRECTORY, eab: {key_id: kid-1, hmac_key_file: eab.key}}`, "  mail.contoso.com: {certificate: acme, answer: true}\n")); err != nil {
		t.Fatal(err)
	}
	w.issued("mail.contoso.com", nil)
	if log := w.log.String(); strings.Contains(log, key) {
		t.Error("the key is in the log")
	}
}

// The issuer says by ARI (RFC 9773) that a certificate is due, long before its end:
// it is renewed, and the order names what it replaces. The alias comes first in the
// certificate.
func TestACMERenewal(t *testing.T) {
	w := newACMEWorld(t, pebbleOptions{})
	cfg := w.config(bothPorts, `{DIRECTORY}`, "  mail.contoso.com: {certificate: acme, aliases: [a.contoso.com], answer: true}\n")
	w.serve(cfg)
	leaf := w.issued("mail.contoso.com", nil)
	w.stop()
	// The issuer said to ask again in some hours: let them have passed.
	files, err := filepath.Glob(filepath.Join(w.dir, "storage/certificates/*/mail.contoso.com/mail.contoso.com.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	passed := regexp.MustCompile(`("_retryAfter": ?)"[^"]*"`).ReplaceAll(data, []byte(`$1"2020-01-01T00:00:00Z"`))
	if bytes.Equal(passed, data) {
		t.Fatalf("no time to ask again in %s", data)
	}
	w.file(strings.TrimPrefix(files[0], w.dir+"/"), string(passed))
	body, err := json.Marshal(map[string]string{
		"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
		"ARIResponse": `{"suggestedWindow": {"start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z"}}`,
	})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.pebble.client.Post(w.pebble.management+"/set-renewal-info/", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatal(resp.Status)
	}
	w.serve(cfg)
	next := w.issued("mail.contoso.com", leaf)
	if err := next.VerifyHostname("a.contoso.com"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(w.pebble.log.String(), "is a replacement of") {
		t.Error("the order does not say what it replaces")
	}
	w.stop()
	if n := w.pebble.orders(); n != 2 {
		t.Errorf("%d orders", n)
	}
}

// Nonces that the issuer throws away (RFC 8555 section 6.5) are no failure.
func TestACMENonces(t *testing.T) {
	w := newACMEWorld(t, pebbleOptions{env: []string{"PEBBLE_WFE_NONCEREJECT=30"}})
	w.serve(w.config(bothPorts, `{DIRECTORY}`, "  mail.contoso.com: {certificate: acme, answer: true}\n"))
	w.issued("mail.contoso.com", nil)
}

// The first issuer does not answer: the second gives the certificate.
func TestACMEFallback(t *testing.T) {
	w := newACMEWorld(t, pebbleOptions{})
	w.serve(w.config(bothPorts, fmt.Sprintf(`{directory: "https://127.0.0.1:%d/dir", fallback: {DIRECTORY}}`, freePort(t)), "  mail.contoso.com: {certificate: acme, answer: true}\n"))
	w.issued("mail.contoso.com", nil)
	if !strings.Contains(w.log.String(), `"message":"could not get certificate from issuer"`) {
		t.Error("the log does not tell of the first issuer")
	}
}

// On demand: the first hello orders, and no hello with a name that is not in the
// config does.
func TestACMEOnDemand(t *testing.T) {
	w := newACMEWorld(t, pebbleOptions{})
	w.serve(w.config(bothPorts, `{DIRECTORY, on_demand: true}`, "  mail.contoso.com: {certificate: acme, aliases: [legacy.contoso.com], default: true, answer: true}\n"))
	for _, name := range []string{"other.contoso.com", "x.mail.contoso.com"} {
		if _, err := w.shown(name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := w.pebble.orders(); n != 0 {
		t.Fatalf("%d orders before a hello", n)
	}
	leaf := w.issued("legacy.contoso.com", nil)
	if err := leaf.VerifyHostname("mail.contoso.com"); err != nil {
		t.Error(err)
	}
	if n := w.pebble.orders(); n != 1 {
		t.Errorf("%d orders", n)
	}
}

// autocert, by each of its two challenges. It tries TLS-ALPN-01 first, so for the
// other one pebble does not find that port.
func TestAutocert(t *testing.T) {
	for name, listen := range map[string]string{"tls-alpn-01": `{https: ["HTTPS"], http: [], admin: []}`, "http-01": bothPorts} {
		t.Run(name, func(t *testing.T) {
			var o pebbleOptions
			if name == "http-01" {
				o.tls = fmt.Sprintf("127.0.0.1:%d", freePort(t))
			}
			w := newACMEWorld(t, o)
			cfg := w.config(listen, `{DIRECTORY, email: hostmaster@contoso.com}`, "  mail.contoso.com: {certificate: autocert, answer: true}\n")
			w.serve(cfg)
			leaf := w.issued("mail.contoso.com", nil)
			if !strings.Contains(w.log.String(), `"challenge":"`+name+`"`) {
				t.Error("another challenge")
			}
			w.stop()
			w.serve(cfg)
			if again, err := w.shown("mail.contoso.com"); err != nil || !again.Equal(leaf) {
				t.Errorf("after a restart: %v", err)
			}
		})
	}
}
