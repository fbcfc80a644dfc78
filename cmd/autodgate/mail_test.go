package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/proxy"
)

// mailWorld is Dovecot and aiosmtpd on loopback, and a front door before them.
type mailWorld struct {
	*liveWorld
	ports map[string]string // of the servers
	front *frontDoor
	log   *syncBuffer // what the servers say
}

// syncBuffer may be written by several programs and read meanwhile.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// waitFor waits until a text has been written.
func (b *syncBuffer) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(b.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain for %q in:\n%s", text, b)
		}
	}
}

const dovecotConf = `protocols = imap pop3
base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = /dev/stderr
info_log_path = /dev/stderr
ssl = required
ssl_cert = <%[2]s/imap.pem
ssl_key = <%[2]s/imap.key
disable_plaintext_auth = yes
auth_failure_delay = 0
haproxy_trusted_networks = 127.0.0.0/8
mail_location = maildir:%[1]s/mail/%%u
%[3]s
passdb {
  driver = static
  args = password=secret
}
userdb {
  driver = static
  args = uid=%[4]s gid=%[5]s home=%[1]s/mail/%%u
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service imap-login {
  %[6]s
  inet_listener imap {
    address = 127.0.0.1
    port = %[7]s
  }
  inet_listener imaps {
    address = 127.0.0.1
    port = %[8]s
    ssl = yes
  }
  inet_listener imaps_proxied {
    address = 127.0.0.1
    port = %[9]s
    ssl = yes
    haproxy = yes
  }
  inet_listener imap_proxied {
    address = 127.0.0.1
    port = %[10]s
    haproxy = yes
  }
}
service pop3-login {
  %[6]s
  inet_listener pop3 {
    address = 127.0.0.1
    port = %[11]s
  }
  inet_listener pop3s {
    address = 127.0.0.1
    port = %[12]s
    ssl = yes
  }
}
`

// start runs a server until the test ends.
func (w *mailWorld) start(path string, args ...string) {
	w.t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = w.log, w.log
	cmd.Env = append(os.Environ(), "PYTHONUNBUFFERED=1")
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		kill.Stop()
		if w.t.Failed() {
			w.t.Log(w.log)
		}
	})
}

func newMailWorld(t *testing.T) *mailWorld {
	t.Helper()
	const how = "apt-get install dovecot-imapd dovecot-pop3d"
	dovecot := peer.Need(t, "/usr/sbin/dovecot", how)
	peer.Need(t, "/usr/lib/dovecot/imap-login", how)
	peer.Need(t, "/usr/lib/dovecot/pop3-login", how)
	aiosmtpd := peer.Need(t, "aiosmtpd", "apt-get install python3-aiosmtpd")
	w := &mailWorld{liveWorld: newLiveWorld(t), ports: map[string]string{}, log: &syncBuffer{}}
	w.certificate("imap", nil, "imap.contoso.local", "direct.contoso.com")
	w.certificate("mail", nil, "mail.contoso.com", "proxied.contoso.com")
	for _, name := range []string{"imap", "imaps", "imaps_proxied", "imap_proxied", "pop3", "pop3s", "smtp", "smtps"} {
		w.ports[name] = fmt.Sprint(freePort(t))
	}

	// Dovecot's processes have other users than root's, and sockets whose names must
	// be short.
	dir, err := os.MkdirTemp("", "dovecot")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	mail := filepath.Join(dir, "mail")
	if err := os.Mkdir(mail, 0o700); err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	users, chroot := "default_internal_user = "+me.Username+"\ndefault_login_user = "+me.Username+"\ndefault_internal_group = "+group.Name, "chroot ="
	uid, gid := me.Uid, me.Gid
	if uid == "0" {
		const nobody = 65534
		users, chroot, uid, gid = "", "", fmt.Sprint(nobody), fmt.Sprint(nobody)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(mail, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	p := w.ports
	conf := writeFile(t, "dovecot.conf", fmt.Sprintf(dovecotConf, dir, w.dir, users, uid, gid, chroot,
		p["imap"], p["imaps"], p["imaps_proxied"], p["imap_proxied"], p["pop3"], p["pop3s"]))
	w.start(dovecot, "-F", "-c", conf)
	cert, key := filepath.Join(w.dir, "imap.pem"), filepath.Join(w.dir, "imap.key")
	w.start(aiosmtpd, "-n", "-l", "127.0.0.1:"+p["smtp"], "--tlscert", cert, "--tlskey", key)
	w.start(aiosmtpd, "-n", "-l", "127.0.0.1:"+p["smtps"], "--smtpscert", cert, "--smtpskey", key)
	for name, port := range p {
		if strings.HasSuffix(name, "_proxied") {
			continue
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			conn, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err == nil {
				conn.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not come up: %v\n%s", name, err, w.log)
			}
		}
	}

	w.front = startFront(t, filepath.Join(w.dir, "autodgate.yaml"), strings.NewReplacer(
		"IMAPS_PROXIED", p["imaps_proxied"], "IMAP_PROXIED", p["imap_proxied"], "IMAPS", p["imaps"], "IMAP", p["imap"],
		"POP3S", p["pop3s"], "POP3", p["pop3"], "SMTPS", p["smtps"], "SMTP", p["smtp"],
	).Replace(`
listen:
  https: []
  http: []
  admin: []
  imaps: ["127.0.0.1:0"]
  pop3s: ["127.0.0.1:0"]
  submissions: ["127.0.0.1:0"]
  imap: ["127.0.0.1:0"]
  pop3: ["127.0.0.1:0"]
  submission: ["127.0.0.1:0"]
  proxy_protocol_from: [127.0.0.2]
hosts:
  mail.contoso.com:
    certificate: {cert: mail.pem, key: mail.key}
    site: hq
    default: true
    mail:
      imaps: {mode: bridge, backend: "tls://127.0.0.1:IMAPS"}
      pop3s: {mode: bridge, backend: "starttls://127.0.0.1:POP3"}
      submissions: {mode: bridge, backend: "starttls://127.0.0.1:SMTP"}
      imap: {mode: bridge, backend: ["starttls://127.0.0.1:1", "starttls://127.0.0.1:IMAP"]}
      pop3: {mode: bridge, backend: "tls://127.0.0.1:POP3S"}
      submission: {mode: bridge, backend: "tls://127.0.0.1:SMTPS"}
      trust: {ca: imap.pem}
      server_name: imap.contoso.local
  direct.contoso.com:
    passthrough: ["127.0.0.1:1"]
    mail:
      imaps: {mode: passthrough, backend: "tls://127.0.0.1:IMAPS"}
      pop3s: {mode: passthrough, backend: "tls://127.0.0.1:POP3S"}
      submissions: {mode: passthrough, backend: "tls://127.0.0.1:SMTPS"}
      imap: {mode: passthrough, backend: "starttls://127.0.0.1:IMAP"}
      pop3: {mode: passthrough, backend: "starttls://127.0.0.1:POP3"}
      submission: {mode: passthrough, backend: "starttls://127.0.0.1:SMTP"}
  proxied.contoso.com:
    certificate: {cert: mail.pem, key: mail.key}
    site: hq
    mail:
      imaps: {mode: bridge, backend: "tls://127.0.0.1:IMAPS_PROXIED"}
      imap: {mode: passthrough, backend: "starttls://127.0.0.1:IMAP_PROXIED"}
      trust: {ca: imap.pem}
      server_name: imap.contoso.local
      send_proxy: v2
sites:
  hq: {servers: [https://cas01.contoso.local]}
`))
	return w
}

// curl runs curl against a mail listener of the front door.
func (w *mailWorld) curl(protocol, host, path string, args ...string) (string, error) {
	w.t.Helper()
	scheme, tlsFlag := protocol, []string(nil)
	switch protocol {
	case "submissions":
		scheme = "smtps"
	case "submission":
		scheme, tlsFlag = "smtp", []string{"--ssl-reqd"}
	case "imap", "pop3":
		tlsFlag = []string{"--ssl-reqd"}
	}
	_, port, _ := net.SplitHostPort(w.front.mail[protocol][0])
	ca := "mail.pem"
	if host == "direct.contoso.com" {
		ca = "imap.pem"
	}
	all := append([]string{
		"--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--cacert", filepath.Join(w.dir, ca),
		"--resolve", host + ":" + port + ":127.0.0.1", scheme + "://" + host + ":" + port + path,
	}, append(tlsFlag, args...)...)
	out, err := exec.CommandContext(w.t.Context(), peer.Need(w.t, "curl", "apt-get install curl"), all...).CombinedOutput()
	return string(out), err
}

func (w *mailWorld) mustCurl(protocol, host, path string, args ...string) string {
	w.t.Helper()
	out, err := w.curl(protocol, host, path, args...)
	if err != nil {
		w.t.Fatalf("curl %s %s%s: %v\n%s", protocol, host, path, err, out)
	}
	return out
}

// curl as a mail client, Dovecot and aiosmtpd as servers: mail is put in over one
// protocol and read over the others, each bridged and passed through, with TLS from
// the first byte and with STARTTLS.
func TestMailPeers(t *testing.T) {
	w := newMailWorld(t)
	letter := "From: pat@contoso.com\r\nSubject: test\r\n\r\n" + strings.Repeat("All work and no play.\r\n", 40_000)
	file := writeFile(t, "letter.eml", letter)
	n := 0
	for _, host := range []string{"mail.contoso.com", "direct.contoso.com"} {
		for _, protocol := range []string{"imaps", "imap"} {
			w.mustCurl(protocol, host, "/INBOX", "--user", "pat:secret", "--upload-file", file)
			n++
			if got := w.mustCurl(protocol, host, fmt.Sprintf("/INBOX;MAILINDEX=%d", n), "--user", "pat:secret"); got != letter {
				t.Errorf("%s, %s: %d bytes come back of %d", protocol, host, len(got), len(letter))
			}
		}
		for _, protocol := range []string{"pop3s", "pop3"} {
			if got := w.mustCurl(protocol, host, "/1", "--user", "pat:secret"); got != letter {
				t.Errorf("%s, %s: %d bytes come back of %d", protocol, host, len(got), len(letter))
			}
		}
		for _, protocol := range []string{"submissions", "submission"} {
			mark := "X-Mark: " + protocol + " " + host
			message := writeFile(t, "message.eml", mark+"\r\nSubject: test\r\n\r\nHello.\r\n")
			w.mustCurl(protocol, host, "", "--mail-from", "pat@contoso.com", "--mail-rcpt", "sam@contoso.com", "--upload-file", message)
			w.log.waitFor(t, mark)
		}
		for _, protocol := range []string{"imaps", "imap", "pop3s", "pop3"} {
			if out, err := w.curl(protocol, host, "/", "--user", "pat:wrong"); err == nil {
				t.Errorf("%s, %s: a wrong password is taken: %s", protocol, host, out)
			}
		}
	}
	// Not a password goes out in clear: curl offers one, and is told to keep it.
	_, port, _ := net.SplitHostPort(w.front.mail["imap"][0])
	out, err := exec.CommandContext(t.Context(), "curl", "--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--verbose",
		"--user", "pat:secret", "imap://127.0.0.1:"+port+"/").CombinedOutput()
	if err == nil || strings.Contains(string(out), "LOGIN pat") || strings.Contains(string(out), "AUTHENTICATE") {
		t.Errorf("without TLS: %v\n%s", err, out)
	}
}

// openssl s_client does STARTTLS in each language, and sees our certificate, the
// server's, the default host's, and the alert for a name that nobody serves.
func TestMailOpenSSL(t *testing.T) {
	w := newMailWorld(t)
	openssl := peer.Need(t, "openssl", "apt-get install openssl")
	for protocol, starttls := range map[string]string{"imaps": "", "pop3s": "", "submissions": "", "imap": "imap", "pop3": "pop3", "submission": "smtp"} {
		f := func(name, ca, want string) {
			t.Helper()
			args := []string{"s_client", "-brief", "-connect", w.front.mail[protocol][0], "-CAfile", filepath.Join(w.dir, ca), "-verify_return_error", "-ign_eof"}
			if starttls != "" {
				args = append(args, "-starttls", starttls)
			}
			if name == "" {
				args = append(args, "-noservername", "-verify_hostname", "mail.contoso.com")
			} else {
				args = append(args, "-servername", name, "-verify_hostname", name)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, openssl, args...)
			cmd.Stdin = strings.NewReader(map[string]string{"imap": "a LOGOUT\r\n", "pop3": "QUIT\r\n"}[strings.TrimSuffix(protocol, "s")] + "QUIT\r\n")
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), want) {
				t.Errorf("%s, %q: %v\n%s", protocol, name, err, out)
			}
		}
		f("mail.contoso.com", "mail.pem", "Verification: OK")
		f("direct.contoso.com", "imap.pem", "Verification: OK")
		f("", "mail.pem", "Verification: OK")
		f("imap.fabrikam.com", "mail.pem", "unrecognized name")
	}
}

// Dovecot is told the client's address, which the proxy before us has told
// us, bridged and passed through behind STARTTLS.
func TestMailSendProxyPeers(t *testing.T) {
	w := newMailWorld(t)
	for i, protocol := range []string{"imaps", "imap"} {
		// All of 127.0.0.0/8 is this machine; the one proxy that is believed has this address.
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		conn, err := from.Dial("tcp", w.front.mail[protocol][0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(time.Minute))
		client := fmt.Sprintf("192.0.2.%d", 70+i)
		io.WriteString(conn, "PROXY TCP4 "+client+" 198.51.100.1 50000 993\r\n")
		br := bufio.NewReader(conn)
		if protocol == "imap" {
			br.ReadString('\n')
			io.WriteString(conn, "a STARTTLS\r\n")
			if line, err := br.ReadString('\n'); err != nil || !strings.HasPrefix(line, "a OK") {
				t.Fatalf("STARTTLS: %q, %v", line, err)
			}
		}
		tc := tls.Client(conn, &tls.Config{ServerName: "proxied.contoso.com", InsecureSkipVerify: true})
		io.WriteString(tc, "b LOGIN pat secret\r\n")
		for br = bufio.NewReader(tc); ; {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "b ") {
				if !strings.HasPrefix(line, "b OK") {
					t.Error(line)
				}
				break
			}
		}
		w.log.waitFor(t, "rip="+client+", lip=198.51.100.1")
	}
}

// A client in IDLE hears of new mail the moment it is there (RFC 2177).
func TestMailIdlePeers(t *testing.T) {
	w := newMailWorld(t)
	pem, err := os.ReadFile(filepath.Join(w.dir, "mail.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	conn, err := tls.Dial("tcp", w.front.mail["imaps"][0], &tls.Config{RootCAs: roots, ServerName: "mail.contoso.com", NextProtos: []string{"imap"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(conn)
	until := func(want string) {
		t.Helper()
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Fatalf("%v before %q", err, want)
			}
			if strings.HasPrefix(line, want) {
				return
			}
		}
	}
	until("* OK")
	io.WriteString(conn, "a LOGIN sam secret\r\n")
	until("a OK")
	io.WriteString(conn, "b SELECT INBOX\r\n")
	until("b OK")
	io.WriteString(conn, "c IDLE\r\n")
	until("+ ")
	w.mustCurl("imap", "mail.contoso.com", "/INBOX", "--user", "sam:secret", "--upload-file", writeFile(t, "letter.eml", "Subject: news\r\n\r\nNews.\r\n"))
	until("* 1 EXISTS")
	io.WriteString(conn, "DONE\r\n")
	until("c OK")
	io.WriteString(conn, "d LOGOUT\r\n")
	until("d OK")
	if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
		t.Errorf("behind LOGOUT: %q, %v", rest, err)
	}
}

// check opens the CA certificates of mail servers too, and serve does not start
// without them: it would trust others than it is told to.
func TestMailTrustFile(t *testing.T) {
	w := newLiveWorld(t)
	w.certificate("mail", nil, "mail.contoso.com")
	const text = `
listen: {https: [], http: [], admin: [], imaps: ["127.0.0.1:0"]}
hosts:
  mail.contoso.com:
    certificate: {cert: mail.pem, key: mail.key}
    site: hq
    mail: {imaps: bridge, backend: tls://imap.contoso.local, trust: {ca: none.pem}}
sites:
  hq: {servers: [https://cas01.contoso.local]}
`
	w.file("autodgate.yaml", text)
	file := filepath.Join(w.dir, "autodgate.yaml")
	var out, errOut bytes.Buffer
	if code := run([]string{"check", "--config", file}, &out, &errOut); code != 1 || !strings.Contains(out.String(), "host mail.contoso.com: mail: ") || !strings.Contains(out.String(), "none.pem") {
		t.Errorf("check: %d\n%s%s", code, &out, &errOut)
	}
	cfg, report := config.Parse(file, []byte(text))
	if cfg == nil {
		t.Fatal(report)
	}
	if _, err := newFrontDoor(cfg, zerolog.Nop(), frontDoorOptions{}); err == nil || !strings.Contains(err.Error(), "none.pem") {
		t.Errorf("serve: %v", err)
	}
}

// send_proxy of a passthrough host is the host's own: the servers of its site
// get no header from other hosts, and are looked after as before.
func TestSendProxyOfSite(t *testing.T) {
	w := newLiveWorld(t)
	w.certificate("mail", nil, "mail.contoso.com")
	cfg, report := config.Parse(filepath.Join(w.dir, "autodgate.yaml"), []byte(`
hosts:
  mail.contoso.com: {certificate: {cert: mail.pem, key: mail.key}, site: hq}
  eas.contoso.com: {passthrough: hq, send_proxy: v1}
  rpc.contoso.com: {passthrough: ["192.0.2.1:443"], send_proxy: v2}
  owa.contoso.com: {passthrough: hq}
sites:
  hq: {servers: [https://cas01.contoso.local, https://cas02.contoso.local]}
`))
	if !report.OK() {
		t.Fatal(report)
	}
	f, err := newFrontDoor(cfg, zerolog.Nop(), frontDoorOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.close() }()
	table, closers, err := f.buildTable(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = closeAll(closers) }()
	hq := table.Hosts["mail.contoso.com"].Site
	for name, want := range map[string]proxy.ProxyVersion{"mail": 0, "owa": 0, "eas": proxy.ProxyV1, "rpc": proxy.ProxyV2} {
		site := table.Hosts[name+".contoso.com"].Site
		for _, b := range site.Backends {
			if b.SendProxy != want {
				t.Errorf("%s: %s gets version %d, want %d", name, b.Name, b.SendProxy, want)
			}
		}
		if name == "eas" && (site.Name == hq.Name || site.Health != hq.Health || len(site.Backends) != 2) {
			t.Errorf("eas: %s with %d servers", site.Name, len(site.Backends))
		}
	}
}
