package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// clearConn is a client that has said all it will say, and takes every answer.
type clearConn struct {
	scriptedConn
	out bytes.Buffer
}

func (c *clearConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func (c *clearConn) CloseWrite() error { return nil }

// runClear plays the part in clear against what a client says.
func runClear(p MailProtocol, r io.Reader) (said string, upgrade bool, left []byte, c *clientConn, err error) {
	conn := &clearConn{scriptedConn: scriptedConn{r: r}}
	c = &clientConn{
		conn: newPeekedConn(conn), listener: ":143",
		table: &Table{Defaults: map[string]*Host{"": {Name: "mail.contoso.com"}}},
	}
	upgrade, err = clearText(c, p)
	return conn.out.String(), upgrade, c.conn.ahead, c, err
}

// The dialogues in clear, each as the client's lines, and ours behind the greeting.
func TestClearText(t *testing.T) {
	f := func(p MailProtocol, client, want string, wantUpgrade bool) {
		t.Helper()
		for _, r := range []io.Reader{strings.NewReader(client), iotest.OneByteReader(strings.NewReader(client))} {
			said, upgrade, left, _, err := runClear(p, r)
			greeting := mailProtocols[p].dialect.clearGreeting("mail.contoso.com")
			rest, ok := strings.CutPrefix(said, greeting)
			if !ok || rest != want || upgrade != wantUpgrade || err != nil || len(left) > 0 {
				t.Errorf("%v: %q is answered with\n%q, TLS %v, %v, want\n%q, TLS %v", p, client, rest, upgrade, err, want, wantUpgrade)
			}
		}
	}
	f(IMAP, "a1 CAPABILITY\r\n", "* CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED\r\na1 OK done\r\n", false)
	f(IMAP, "a1 noop\r\n. STARTTLS\r\n", "a1 OK done\r\n. OK begin TLS now\r\n", true)
	f(IMAP, "a1 LOGOUT\r\n", "* BYE until next time\r\na1 OK done\r\n", false)
	f(IMAP, "a1 LOGIN joe secret\r\na2 AUTHENTICATE PLAIN AGpvZQBzZWNyZXQ=\r\n",
		"a1 NO [PRIVACYREQUIRED] STARTTLS comes first\r\na2 NO [PRIVACYREQUIRED] STARTTLS comes first\r\n", false)
	f(IMAP, "a1 SELECT INBOX\r\na2 STARTTLS now\r\n\r\na3\r\n", "a1 BAD not before STARTTLS, or no command\r\na2 BAD not before STARTTLS, or no command\r\n"+
		"* BAD a command begins with a tag\r\na3 BAD not before STARTTLS, or no command\r\n", false)
	f(IMAP, "a+1 NOOP\r\n* NOOP\r\n\xff NOOP\r\n"+strings.Repeat("x", 65)+" NOOP\r\n", strings.Repeat("* BAD a command begins with a tag\r\n", 4), false)
	f(IMAP, "a1 LOGIN {3+}\r\n", "a1 BAD no literals before STARTTLS\r\n", false)
	f(IMAP, "a1 LOGIN {3}\r\na2 NOOP\r\n", "a1 NO [PRIVACYREQUIRED] STARTTLS comes first\r\na2 OK done\r\n", false)

	f(POP3, "CAPA\r\nstls\r\n", "+OK\r\nSTLS\r\n.\r\n+OK begin TLS now\r\n", true)
	f(POP3, "USER joe\r\nPASS secret\r\nAPOP joe 0123\r\nAUTH PLAIN x\r\n", strings.Repeat("-ERR STLS comes first\r\n", 4), false)
	f(POP3, "STAT\r\nCAPA x\r\nSTLS x\r\n\r\nQUIT\r\n", strings.Repeat("-ERR not before STLS, or no command\r\n", 4)+"+OK until next time\r\n", false)

	f(Submission, "EHLO client\r\nSTARTTLS\r\n", "250-mail.contoso.com\r\n250-ENHANCEDSTATUSCODES\r\n250 STARTTLS\r\n220 2.0.0 begin TLS now\r\n", true)
	f(Submission, "HELO client\r\nEHLO\r\nSTARTTLS x\r\n", "250 mail.contoso.com\r\n501 5.5.4 a name is missing\r\n501 5.5.4 STARTTLS has no arguments\r\n", false)
	f(Submission, "AUTH PLAIN AGpvZQBzZWNyZXQ=\r\nMAIL FROM:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\nVRFY joe\r\n", strings.Repeat("530 5.7.0 STARTTLS comes first\r\n", 5), false)
	f(Submission, "NOOP\r\nRSET\r\nQUIT\r\n", "250 2.0.0 done\r\n250 2.0.0 done\r\n221 2.0.0 mail.contoso.com until next time\r\n", false)
}

// Nobody can put words into a client's mouth: what stands behind its STARTTLS in the
// same packet is refused, not kept for later (CVE-2011-0411). What cannot be told
// apart into lines by everybody alike is refused as well.
func TestClearTextRefused(t *testing.T) {
	f := func(p MailProtocol, client string, cause error, word string) {
		t.Helper()
		said, upgrade, _, _, err := runClear(p, strings.NewReader(client))
		_, last, _ := strings.Cut(said, "\r\n")
		if lines := strings.Split(strings.TrimSuffix(last, "\r\n"), "\r\n"); upgrade || !errors.Is(err, cause) || !strings.HasPrefix(lines[len(lines)-1], word) {
			t.Errorf("%v: %.60q: %q, TLS %v, %v", p, client, last, upgrade, err)
		}
	}
	f(IMAP, "a STARTTLS\r\nb LOGIN joe secret\r\n", errPipelinedTLS, "* BYE")
	f(IMAP, "a STARTTLS\r\n\x16\x03\x01", errPipelinedTLS, "* BYE")
	f(POP3, "STLS\r\nUSER joe\r\n", errPipelinedTLS, "-ERR")
	f(Submission, "EHLO x\r\nSTARTTLS\r\nRSET\r\n", errPipelinedTLS, "421")
	f(Submission, "STARTTLS\r\n\n", errPipelinedTLS, "421")
	for p, word := range map[MailProtocol]string{IMAP: "* BYE", POP3: "-ERR", Submission: "421"} {
		f(p, "NOOP\n", errLineEnding, word)
		f(p, "NO\rOP\r\n", errLineEnding, word)
		f(p, "NOOP\r\r\n", errLineEnding, word)
		f(p, "NO\x00OP\r\n", errLineEnding, word)
		f(p, strings.Repeat("x", maxClearLine)+"\r\n", errLineLong, word)
		f(p, strings.Repeat("x NOOP\r\n", maxClearCommands+1), errTooManyClear, word)
		f(p, "\x16\x03\x01\x02\x00", errTLSTooEarly, "")
		f(p, "x NOOP", io.ErrUnexpectedEOF, "")
	}
	if said, upgrade, _, _, err := runClear(IMAP, strings.NewReader("x NOOP "+strings.Repeat("x", maxClearLine-9)+"\r\n")); err != nil || upgrade || !strings.Contains(said, "x BAD") {
		t.Errorf("the longest line: %v, %q", err, said)
	}
}

// Words under TLS are not taken for what was said before: through the listener, with
// the bytes behind STARTTLS in the same packet or right behind it.
func TestClearTextInjection(t *testing.T) {
	t.Parallel()
	for _, p := range []MailProtocol{IMAP, POP3, Submission} {
		for _, pause := range []time.Duration{0, 20 * time.Millisecond} {
			s := newMailServer(t, implicit(p))
			f := newMailFront(t, p, Bridge, nil, s.backend())
			c := f.open()
			c.line()
			c.send(upgrades[languageOf(p)].ask)
			time.Sleep(pause)
			c.send("INJECTED\r\n")
			c.SetReadDeadline(time.Now().Add(patience))
			rest, err := io.ReadAll(c.br)
			if isTimeout(err) {
				t.Errorf("%v: connection not closed", p)
			}
			if n := s.accepted(); n != 0 {
				t.Errorf("%v: the server was asked; the client got %q", p, rest)
			}
		}
	}
}

// A client that dawdles in clear, or after it has asked for TLS, is cut off.
func TestClearTextTimeout(t *testing.T) {
	t.Parallel()
	for _, p := range []MailProtocol{IMAP, POP3, Submission} {
		f := newMailFront(t, p, Bridge, func(_ *Mail, o *Options, _ *Table) {
			o.RequestHeadTimeout, o.HelloTimeout = 100*time.Millisecond, time.Minute
		})
		c := f.open()
		c.line()
		c.ends()
		f = newMailFront(t, p, Bridge, func(_ *Mail, o *Options, _ *Table) {
			o.RequestHeadTimeout, o.HelloTimeout = time.Minute, 500*time.Millisecond
		})
		c = f.open()
		c.askTLS(p)
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadAll(c.br); isTimeout(err) {
			t.Errorf("%v: a client without a hello is waited for", p)
		}
	}
}

// A login in clear is noted in the log: whoever listened knows the password. The
// password is not.
func TestClearLoginIsLogged(t *testing.T) {
	t.Parallel()
	for p, login := range map[MailProtocol]string{IMAP: "a LOGIN joe s3cret\r\n", POP3: "PASS s3cret\r\n", Submission: "AUTH PLAIN s3cret\r\n"} {
		f := newMailFront(t, p, Bridge, nil)
		c := f.open()
		c.line()
		c.send(login)
		c.line()
		c.Close()
		f.waitForLog(`"authorization":true,"in_clear":true`)
		if strings.Contains(f.log.String(), "s3cret") {
			t.Errorf("%v: the log has the password", p)
		}
	}
}

// Before a name is known we are called as the default host, or as our address.
func TestGreetingName(t *testing.T) {
	f := func(local, defaultHost, want string) {
		t.Helper()
		c := &clientConn{local: netip.MustParseAddrPort(local), listener: ":587", table: &Table{Defaults: map[string]*Host{}}}
		if defaultHost != "" {
			c.table.Defaults[":587"] = &Host{Name: defaultHost}
		}
		if got := c.greetingName(); got != want {
			t.Errorf("%s: %q, want %q", local, got, want)
		}
	}
	f("192.0.2.1:587", "mail.contoso.com", "mail.contoso.com")
	f("192.0.2.1:587", "", "[192.0.2.1]")
	f("[2001:db8::1%eth0]:587", "", "[IPv6:2001:db8::1]")
	if got := (&clientConn{table: &Table{}}).greetingName(); got != "localhost" {
		t.Error(got)
	}
}

// Whatever a client says in clear, it gets whole lines of text, a bounded number of
// them, and TLS begins only right behind a line that asks for it.
func FuzzClearText(f *testing.F) {
	for _, seed := range []string{
		"a1 CAPABILITY\r\na2 STARTTLS\r\n", "CAPA\r\nSTLS\r\n", "EHLO x\r\nSTARTTLS\r\n", "EHLO x\r\nSTARTTLS\r\nRSET\r\n",
		"a LOGIN {3+}\r\nabc\r\n", "NOOP\n", "a\x00\r\n", "QUIT\r\n", "\x16\x03\x01", strings.Repeat("NOOP\r\n", 30),
	} {
		for p := range byte(3) {
			f.Add(p, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, language byte, client []byte) {
		p := []MailProtocol{IMAP, POP3, Submission}[language%3]
		r := bytes.NewReader(client)
		said, upgrade, left, _, err := runClear(p, r)
		if !strings.HasSuffix(said, "\r\n") || len(said) > 8<<10 {
			t.Fatalf("%d bytes: %q", len(said), said)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(said, "\r\n"), "\r\n") {
			if line == "" || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Fatalf("line %q", line)
			}
		}
		if !upgrade {
			return
		}
		client = client[:len(client)-r.Len()] // what lies beyond was not there yet
		lines := bytes.Split(client, []byte("\r\n"))
		asked := bytes.ToUpper(lines[len(lines)-2])
		if err != nil || len(left) > 0 || !bytes.HasSuffix(client, []byte("\r\n")) || !bytes.HasSuffix(asked, []byte("STARTTLS")) && string(asked) != "STLS" {
			t.Fatalf("TLS after %q: %v, %q left", client, err, left)
		}
	})
}
