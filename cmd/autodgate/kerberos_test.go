package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
	"github.com/autodgate/autodgate/lab"
)

// realm is a Kerberos realm with a KDC of MIT's on loopback, in a directory of
// the test's own. Its users are the Windows accounts of the lab's default
// scenario, its one service is HTTP/mail.contoso.com.
type realm struct {
	dir    string
	env    []string // of everything that speaks to it
	keytab string
}

const realmName = "CONTOSO.LOCAL" // the Active Directory domain of the scenario

// kerberosPrograms are from krb5-kdc, krb5-admin-server and krb5-user. Debian has
// the first two where ordinary users do not look.
func kerberosProgram(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/sbin", "/usr/bin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	peer.Missing(t, name, "apt-get install krb5-kdc krb5-admin-server krb5-user")
	return ""
}

// newRealm makes the realm and starts its KDC, which ends with the test.
func newRealm(t *testing.T) *realm {
	t.Helper()
	kdc, util, admin := kerberosProgram(t, "krb5kdc"), kerberosProgram(t, "kdb5_util"), kerberosProgram(t, "kadmin.local")
	kinit := kerberosProgram(t, "kinit")
	dir := t.TempDir()
	r := &realm{dir: dir, keytab: filepath.Join(dir, "service.keytab")}
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	port := freePort(t)
	r.env = append(
		os.Environ(),
		// The names in URLs are the names of services: no DNS has a say.
		"KRB5_CONFIG="+write("krb5.conf", fmt.Sprintf(`[libdefaults]
  default_realm = %[1]s
  dns_lookup_realm = false
  dns_lookup_kdc = false
  dns_canonicalize_hostname = false
  rdns = false
[realms]
  %[1]s = {
    kdc = 127.0.0.1:%[2]d
  }
[domain_realm]
  .contoso.com = %[1]s
[logging]
  kdc = FILE:%[3]s/kdc.log
`, realmName, port, dir)),
		"KRB5_KDC_PROFILE="+write("kdc.conf", fmt.Sprintf(`[kdcdefaults]
  kdc_listen = 127.0.0.1:%[1]d
  kdc_tcp_listen = 127.0.0.1:%[1]d
[realms]
  %[2]s = {
    database_name = %[3]s/principal
    key_stash_file = %[3]s/stash
  }
`, port, realmName, dir)),
		"KRB5_KTNAME=FILE:"+r.keytab,
		"KRB5RCACHENAME=dfl:",
		"KRB5RCACHEDIR="+dir,
		"GSS_MECH_CONFIG="+write("mech", ""), // Kerberos alone, whatever this machine has
	)
	r.run(t, "", util, "create", "-s", "-P", "lab")
	s, err := lab.Load(lab.DefaultScenario)
	if err != nil {
		t.Fatal(err)
	}
	var commands strings.Builder
	for _, m := range s.Mailboxes {
		if _, sam, ok := strings.Cut(m.Login, `\`); ok {
			fmt.Fprintf(&commands, "addprinc -pw %s %s\n", m.Password, sam)
		}
	}
	fmt.Fprintf(&commands, "addprinc -randkey HTTP/mail.contoso.com\nktadd -k %s HTTP/mail.contoso.com\n", r.keytab)
	r.run(t, commands.String(), admin)

	cmd := exec.Command(kdc, "-n")
	cmd.Env = r.env
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		cmd := exec.Command(kinit, "-c", "FILE:"+filepath.Join(dir, "first"), "pat")
		cmd.Env, cmd.Stdin = r.env, strings.NewReader("Lab-Pat-1\n")
		out, err := cmd.CombinedOutput()
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(dir, "kdc.log"))
			t.Fatalf("no ticket: %v %s\n%s", err, out, log)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return r
}

// freePort returns a port that was free for TCP and UDP a moment ago: a KDC cannot
// be told to take any.
func freePort(t *testing.T) int {
	t.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := ln.Addr().(*net.TCPAddr).Port
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		ln.Close()
		if err == nil {
			pc.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

func (r *realm) run(t *testing.T, input, path string, args ...string) {
	t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Env, cmd.Stdin = r.env, strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// login gets a ticket for a user and returns the environment of a client that has
// it.
func (r *realm) login(t *testing.T, m lab.Mailbox) []string {
	t.Helper()
	_, sam, _ := strings.Cut(m.Login, `\`)
	cache := "FILE:" + filepath.Join(r.dir, sam+".tickets")
	r.run(t, m.Password+"\n", kerberosProgram(t, "kinit"), "-c", cache, sam)
	return append(r.env[:len(r.env):len(r.env)], "KRB5CCNAME="+cache)
}

// acceptor returns the server's side: MIT Kerberos in a process of its own, which
// ends with the test.
func (r *realm) acceptor(t *testing.T) lab.KerberosAcceptor {
	t.Helper()
	cmd := exec.Command(python(t, "gssapi", "python3-gssapi"), "testdata/clients/kerberos-acceptor.py")
	var stderr bytes.Buffer
	cmd.Env, cmd.Stderr = r.env, &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v\n%s", err, &stderr)
		}
	})
	var mu sync.Mutex
	lines := bufio.NewReader(out)
	return func(token, bindings []byte) (string, []byte, bool, error) {
		mu.Lock()
		defer mu.Unlock()
		question, err := json.Marshal(map[string][]byte{"token": token, "bindings": append([]byte{}, bindings...)})
		if err != nil {
			return "", nil, false, err
		}
		if _, err := in.Write(append(question, '\n')); err != nil {
			return "", nil, false, err
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return "", nil, false, errors.Join(errors.New("the acceptor has ended"), err)
		}
		var a struct {
			Principal, Error string
			Reply            []byte
			Bound            bool
		}
		if err := json.Unmarshal(line, &a); err != nil {
			return "", nil, false, err
		}
		if a.Error != "" {
			return "", nil, false, errors.New(a.Error)
		}
		return a.Principal, a.Reply, a.Bound, nil
	}
}

// startKerberosLab is startLab with a realm.
func startKerberosLab(t *testing.T, r *realm, accept lab.KerberosAcceptor, change func(*lab.Scenario)) (*lab.Company, *frontDoor) {
	t.Helper()
	s, err := lab.Load(lab.DefaultScenario)
	if err != nil {
		t.Fatal(err)
	}
	change(s)
	company, err := lab.Start(t.Context(), s, lab.Options{Logger: zerolog.Nop(), Kerberos: accept})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { company.Close() })
	return company, startFront(t, filepath.Join(company.Dir(), "autodgate.yaml"), company.Config())
}

// Kerberos through the front door, to the name that stands in the URL, since the
// Host stays the client's: curl sends its token with the first request, and the
// connection, and the one behind it, is the user's from there on, without a
// second challenge. Two users at once never meet on one.
func TestKerberos(t *testing.T) {
	path := peer.Need(t, "curl", "apt-get install curl")
	r := newRealm(t)
	company, front := startKerberosLab(t, r, r.acceptor(t), func(*lab.Scenario) {})

	const requests = 5
	type client struct {
		user lab.Mailbox
		cmd  *exec.Cmd
		out  bytes.Buffer
	}
	var clients []*client
	for _, address := range []string{"pat@contoso.com", "lee@contoso.com"} {
		user, _ := company.Account(address)
		env := r.login(t, user)
		for n := range 3 {
			args := curlArguments(company, front, "--negotiate", "-u", ":", "-H", lab.ClientHeader+": "+fmt.Sprint(address, n))
			for range requests {
				args = append(args, "-w", "%{http_code} %{num_connects} %header{x-lab-user} %header{x-lab-connection}\n", "-o", os.DevNull, "https://mail.contoso.com/EWS/Exchange.asmx")
			}
			c := &client{user: user, cmd: exec.CommandContext(t.Context(), path, args...)}
			c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr = env, &c.out, &c.out
			clients = append(clients, c)
		}
	}
	for _, c := range clients {
		if err := c.cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range clients {
		if err := c.cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, &c.out)
		}
		lines := strings.Split(strings.TrimSpace(c.out.String()), "\n")
		first := strings.Fields(lines[0])
		if len(lines) != requests || len(first) != 4 {
			t.Fatalf("answers %q", lines)
		}
		for i, line := range lines {
			connects := map[bool]string{true: "1", false: "0"}[i == 0]
			if want := strings.Join([]string{"200", connects, c.user.Login, first[3]}, " "); line != want {
				t.Errorf("answer %d: %q, want %q", i+1, line, want)
			}
		}
	}
	used := 0
	for _, c := range company.Recorder().Connections() {
		if c.Count == 0 {
			continue
		}
		used++
		if len(c.Users) != 1 || c.Count != requests {
			t.Errorf("a server's connection has %d requests of %q", c.Count, c.Users)
		}
		for i, q := range c.Requests {
			scheme := map[bool]string{true: "Negotiate"}[i == 0]
			if q.Status != 200 || q.Scheme != scheme || q.Host != "mail.contoso.com" {
				t.Errorf("request %d of a connection: %d with %q for %s", i+1, q.Status, q.Scheme, q.Host)
			}
		}
	}
	if used != len(clients) {
		t.Errorf("%d connections to servers for %d of clients", used, len(clients))
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		t.Error(v)
	}

	lee, _ := company.Account("lee@contoso.com")
	cmd := exec.CommandContext(t.Context(), path, curlArguments(company, front, "--negotiate", "-u", ":", "https://mail.contoso.com/mapi/emsmdb/?showdebug=yes")...)
	cmd.Env = r.login(t, lee)
	if page := outputOf(t, cmd); !strings.Contains(page, "User: "+lee.Login+"<br>") || !strings.Contains(page, "Authentication: Kerberos<br>") {
		t.Errorf("showdebug: %s", page)
	}
}

// Extended Protection holds for Kerberos as for NTLM. The client's token
// is MIT's, bound to the certificate, and the server has to prove itself too.
func TestKerberosExtendedProtection(t *testing.T) {
	path, curl := python(t, "gssapi", "python3-gssapi"), peer.Need(t, "curl", "apt-get install curl")
	r := newRealm(t)
	accept := r.acceptor(t)
	f := func(same bool, protection lab.ExtendedProtection, bind string, want int) {
		t.Helper()
		company, front := startKerberosLab(t, r, accept, func(s *lab.Scenario) {
			for i := range s.Servers {
				s.Servers[i].ExtendedProtection = protection
				if same {
					s.Servers[i].Certificate = "mail"
				}
			}
		})
		pat, _ := company.Account("pat@contoso.com")
		cmd := exec.CommandContext(t.Context(), path, "testdata/clients/kerberos-client.py", front.https[0], company.CAFile(), bind,
			"https://mail.contoso.com/EWS/Exchange.asmx", "https://mail.contoso.com/EWS/Exchange.asmx")
		cmd.Env = r.login(t, pat)
		got := objects[labAnswer](t, outputOf(t, cmd))
		if len(got) != 2 {
			t.Fatalf("%d answers", len(got))
		}
		for i, a := range got {
			if a.Status != want || (want == 200) != (a.User == pat.Login) {
				t.Errorf("same certificate %v, bindings %s, client binds %s, request %d: %d for %q, want %d", same, protection, bind, i+1, a.Status, a.User, want)
			}
		}
		if bind == "no" { // as curl does
			cmd := exec.Command(curl, curlArguments(company, front, "--negotiate", "-u", ":", "-o", os.DevNull, "-w", "%{http_code}", "https://mail.contoso.com/EWS/Exchange.asmx")...)
			cmd.Env = r.login(t, pat)
			if got := outputOf(t, cmd); got != strconv.Itoa(want) {
				t.Errorf("same certificate %v, bindings %s, curl: %s, want %d", same, protection, got, want)
			}
		}
	}
	f(true, lab.ProtectionRequire, "yes", 200)
	f(true, lab.ProtectionRequire, "no", 401)
	f(true, lab.ProtectionAllow, "yes", 200)
	f(true, lab.ProtectionAllow, "no", 200)
	f(false, lab.ProtectionRequire, "yes", 401)
	f(false, lab.ProtectionAllow, "yes", 401)
	f(false, lab.ProtectionAllow, "no", 200)
	f(false, lab.ProtectionOff, "yes", 200)
}
