package proxy

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The part of a mail protocol that is spoken in clear, until the client asks for
// TLS. Only then does its hello name a host, so no server is there yet and we speak
// this part ourselves: nothing but the way to TLS. What was said here means nothing
// under TLS, where the server begins anew. In the other direction we ask a server
// for TLS in the same way.

const (
	maxClearLine     = 1 << 10 // of a client, CRLF included; SMTP allows 512 (RFC 5321 section 4.5.3.1.4)
	maxClearCommands = 20
	maxIMAPTag       = 64
	maxServerLine    = 8 << 10
	maxServerLines   = 100
)

// Faults of a line, after which nobody can tell where the next one begins.
var (
	errLineLong   = errors.New("line too long")
	errLineEnding = errors.New("bare CR, bare LF or NUL in a line")
)

var (
	errTLSTooEarly  = errors.New("TLS on a STARTTLS port (the client is set to SSL/TLS instead of STARTTLS)")
	errPipelinedTLS = errors.New("bytes behind the command that asks for TLS")
	errTooManyClear = fmt.Errorf("more than %d commands before TLS", maxClearCommands)
)

// clearStep is what follows a command in clear.
type clearStep int

const (
	clearStay clearStep = iota
	clearToTLS
	clearLeave
)

// clearReply is the answer to a command in clear.
type clearReply struct {
	text  string // whole lines
	step  clearStep
	login bool // the command was a login, which may have shown a password
}

// mailDialect is a mail protocol as far as we speak it.
type mailDialect struct {
	alpn []string
	idle time.Duration
	// greeting is what a server of the name says first, under TLS.
	greeting func(name string) string
	// clearGreeting is the same in clear.
	clearGreeting func(name string) string
	// command answers a line of a client in clear. It is pure.
	command func(name, line string) clearReply
	// fault answers what is no line, or one line too many. The connection then ends.
	fault func(why error) string
	// unavailable tells a client that there is no server for it. The connection then ends.
	unavailable func(name string) string
	// greeted reads a server's greeting; the error says why it is none of welcome.
	greeted func(c *peekedConn) error
	// toTLS reads the greeting and asks for TLS, up to the server's consent.
	toTLS func(c *peekedConn, name string) error
}

// IMAP. Idle: a client in IDLE speaks every 29 minutes (RFC 2177), and a server
// waits for at least 30 (RFC 9051 section 5.4).
var imapDialect = mailDialect{
	alpn:          []string{"imap"},
	idle:          31 * time.Minute,
	greeting:      func(string) string { return "* OK IMAP4rev1 ready\r\n" },
	clearGreeting: func(string) string { return "* OK [CAPABILITY " + imapClear + "] ready for STARTTLS\r\n" },
	command:       imapCommand,
	fault:         func(why error) string { return "* BYE " + why.Error() + "\r\n" },
	unavailable:   func(string) string { return "* BYE [UNAVAILABLE] no server can be reached, try again later\r\n" }, // RFC 5530
	greeted:       imapGreeted,
	toTLS:         imapToTLS,
}

const imapClear = "IMAP4rev1 STARTTLS LOGINDISABLED"

func imapCommand(_, line string) clearReply {
	tag, rest, _ := strings.Cut(line, " ")
	if !validIMAPTag(tag) {
		return clearReply{text: "* BAD a command begins with a tag\r\n"}
	}
	verb, args, more := strings.Cut(rest, " ")
	reply := func(untagged, result string) clearReply {
		return clearReply{text: untagged + tag + " " + result + "\r\n"}
	}
	if strings.HasSuffix(args, "+}") {
		// A literal that does not wait (RFC 7888): what comes next is no command.
		r := reply("", "BAD no literals before STARTTLS")
		r.step = clearLeave
		return r
	}
	switch verb = strings.ToUpper(verb); {
	case verb == "LOGIN", verb == "AUTHENTICATE":
		r := reply("", "NO [PRIVACYREQUIRED] STARTTLS comes first") // RFC 5530
		r.login = true
		return r
	case more: // the others have no arguments
	case verb == "CAPABILITY":
		return reply("* CAPABILITY "+imapClear+"\r\n", "OK done")
	case verb == "NOOP":
		return reply("", "OK done")
	case verb == "LOGOUT":
		r := reply("* BYE until next time\r\n", "OK done")
		r.step = clearLeave
		return r
	case verb == "STARTTLS":
		r := reply("", "OK begin TLS now")
		r.step = clearToTLS
		return r
	}
	return reply("", "BAD not before STARTTLS, or no command")
}

// validIMAPTag: a tag is what an atom or an astring may hold, without "+"
// (RFC 9051 section 9).
func validIMAPTag(tag string) bool {
	if tag == "" || len(tag) > maxIMAPTag {
		return false
	}
	for i := range len(tag) {
		if ch := tag[i]; ch <= ' ' || ch >= 0x7f || strings.IndexByte(`(){%*"\+`, ch) >= 0 {
			return false
		}
	}
	return true
}

func imapGreeted(c *peekedConn) error {
	line, err := readClearLine(c, maxServerLine)
	if err != nil {
		return err
	}
	// PREAUTH is refused as well: somebody would be logged in without a word.
	if word, _, _ := strings.Cut(strings.ToUpper(line), " "); word != "*" || !imapOK(line[1:]) {
		return unwelcome(line)
	}
	return nil
}

// imapOK tells whether a response, behind its tag, is OK.
func imapOK(rest string) bool {
	word, _, _ := strings.Cut(strings.TrimPrefix(rest, " "), " ")
	return strings.EqualFold(word, "OK")
}

func imapToTLS(c *peekedConn, _ string) error {
	if err := imapGreeted(c); err != nil {
		return err
	}
	if err := say(c, "a STARTTLS"); err != nil {
		return err
	}
	for range maxServerLines {
		line, err := readClearLine(c, maxServerLine)
		if err != nil {
			return err
		}
		if rest, ok := strings.CutPrefix(line, "a "); ok {
			if !imapOK(rest) {
				return unwelcome(line)
			}
			return nil
		}
		if !strings.HasPrefix(line, "* ") {
			return unwelcome(line)
		}
	}
	return errors.New("too many lines")
}

// POP3. Idle: a server waits for at least 10 minutes (RFC 1939 section 3).
var pop3Dialect = mailDialect{
	alpn:          []string{"pop3"},
	idle:          11 * time.Minute,
	greeting:      func(string) string { return "+OK POP3 ready\r\n" },
	clearGreeting: func(string) string { return "+OK ready for STLS\r\n" },
	command:       pop3Command,
	fault:         func(why error) string { return "-ERR " + why.Error() + "\r\n" },
	unavailable:   func(string) string { return "-ERR [SYS/TEMP] no server can be reached, try again later\r\n" }, // RFC 3206
	greeted:       func(c *peekedConn) error { return pop3OK(c) },
	toTLS: func(c *peekedConn, _ string) error {
		if err := pop3OK(c); err != nil {
			return err
		}
		if err := say(c, "STLS"); err != nil {
			return err
		}
		return pop3OK(c)
	},
}

func pop3Command(_, line string) clearReply {
	verb, _, more := strings.Cut(line, " ")
	switch verb = strings.ToUpper(verb); {
	case verb == "USER", verb == "PASS", verb == "APOP", verb == "AUTH":
		return clearReply{text: "-ERR STLS comes first\r\n", login: verb != "AUTH" || more}
	case more: // the others have no arguments
	case verb == "CAPA": // RFC 2449 section 5
		return clearReply{text: "+OK\r\nSTLS\r\n.\r\n"}
	case verb == "QUIT":
		return clearReply{text: "+OK until next time\r\n", step: clearLeave}
	case verb == "STLS":
		return clearReply{text: "+OK begin TLS now\r\n", step: clearToTLS}
	}
	return clearReply{text: "-ERR not before STLS, or no command\r\n"}
}

func pop3OK(c *peekedConn) error {
	line, err := readClearLine(c, maxServerLine)
	if err != nil {
		return err
	}
	if word, _, _ := strings.Cut(line, " "); word != "+OK" {
		return unwelcome(line)
	}
	return nil
}

// SMTP submission. Idle: a server waits for at least 5 minutes, a client for 10
// behind the end of a message (RFC 5321 section 4.5.3.2).
var smtpDialect = mailDialect{
	alpn:          []string{"smtp", "esmtp"},
	idle:          11 * time.Minute,
	greeting:      func(name string) string { return "220 " + name + " ESMTP ready\r\n" },
	clearGreeting: func(name string) string { return "220 " + name + " ESMTP ready for STARTTLS\r\n" },
	command:       smtpCommand,
	fault:         func(why error) string { return "421 4.7.0 " + why.Error() + "\r\n" },
	unavailable: func(name string) string {
		return "421 4.3.2 " + name + " no server can be reached, try again later\r\n"
	},
	greeted: func(c *peekedConn) error { _, err := smtpReply(c, 220); return err },
	toTLS:   smtpToTLS,
}

func smtpCommand(name, line string) clearReply {
	verb, args, more := strings.Cut(line, " ")
	switch verb = strings.ToUpper(verb); verb {
	case "EHLO", "HELO":
		switch {
		case strings.TrimSpace(args) == "":
			return clearReply{text: "501 5.5.4 a name is missing\r\n"}
		case verb == "HELO":
			return clearReply{text: "250 " + name + "\r\n"}
		}
		return clearReply{text: "250-" + name + "\r\n250-ENHANCEDSTATUSCODES\r\n250 STARTTLS\r\n"}
	case "NOOP", "RSET":
		return clearReply{text: "250 2.0.0 done\r\n"}
	case "QUIT":
		return clearReply{text: "221 2.0.0 " + name + " until next time\r\n", step: clearLeave}
	case "STARTTLS":
		if more { // RFC 3207 section 4
			return clearReply{text: "501 5.5.4 STARTTLS has no arguments\r\n"}
		}
		return clearReply{text: "220 2.0.0 begin TLS now\r\n", step: clearToTLS}
	}
	return clearReply{text: "530 5.7.0 STARTTLS comes first\r\n", login: verb == "AUTH"} // RFC 3207 section 4
}

// smtpReply reads a reply of any number of lines, which has to begin with the code.
func smtpReply(c *peekedConn, code int) (lines []string, err error) {
	want := strconv.Itoa(code)
	for range maxServerLines {
		line, err := readClearLine(c, maxServerLine)
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(line, want) || len(line) > 3 && line[3] != '-' && line[3] != ' ' {
			return nil, unwelcome(line)
		}
		lines = append(lines, line[min(4, len(line)):])
		if len(line) == 3 || line[3] == ' ' {
			return lines, nil
		}
	}
	return nil, errors.New("too many lines")
}

func smtpToTLS(c *peekedConn, name string) error {
	if _, err := smtpReply(c, 220); err != nil {
		return err
	}
	if err := say(c, "EHLO "+name); err != nil {
		return err
	}
	lines, err := smtpReply(c, 250)
	if err != nil {
		return err
	}
	for _, line := range lines[1:] {
		if strings.EqualFold(line, "STARTTLS") {
			if err := say(c, "STARTTLS"); err != nil {
				return err
			}
			_, err := smtpReply(c, 220)
			return err
		}
	}
	return errors.New("the server does not offer STARTTLS")
}

// unwelcome is a server's answer other than the one hoped for.
func unwelcome(line string) error {
	return fmt.Errorf("the server said %q", line[:min(len(line), 200)])
}

func say(c io.Writer, line string) error {
	_, err := io.WriteString(c, line+"\r\n")
	return err
}

// clearText greets a client and answers until it asks for TLS; only then is upgrade
// true. The caller sets the deadline.
func clearText(c *clientConn, p MailProtocol) (upgrade bool, err error) {
	d := mailProtocols[p].dialect
	name := c.greetingName()
	if _, err := io.WriteString(c.conn, d.clearGreeting(name)); err != nil {
		return false, err
	}
	for range maxClearCommands {
		line, err := readClearLine(c.conn, maxClearLine)
		switch {
		case err == io.EOF:
			return false, nil
		case errors.Is(err, errLineLong), errors.Is(err, errLineEnding):
			return false, c.clearEnd(d.fault(err), err)
		case err != nil:
			return false, err
		}
		reply := d.command(name, line)
		c.event.inClear = c.event.inClear || reply.login
		if reply.step == clearToTLS && len(c.conn.ahead) > 0 {
			// Somebody on the way could have put them behind the client's command, to be
			// carried out as the client's under TLS (CVE-2011-0411).
			return false, c.clearEnd(d.fault(errPipelinedTLS), errPipelinedTLS)
		}
		if reply.step == clearLeave {
			return false, c.clearEnd(reply.text, nil)
		}
		if _, err := io.WriteString(c.conn, reply.text); err != nil {
			return false, err
		}
		if reply.step == clearToTLS {
			return true, nil
		}
	}
	return false, c.clearEnd(d.fault(errTooManyClear), errTooManyClear)
}

// clearEnd says a last word, and waits a moment so that it arrives.
func (c *clientConn) clearEnd(word string, err error) error {
	c.conn.SetDeadline(time.Now().Add(lingerAfterAlert))
	if _, wErr := io.WriteString(c.conn, word); wErr == nil && c.conn.CloseWrite() == nil {
		_, _ = io.CopyN(io.Discard, c.conn, lingerAfterAlertN)
	}
	return err
}

// greetingName is what we are called before the client has named a host: the
// default host of the listener, or the address it came to (RFC 5321 section 4.1.3).
func (c *clientConn) greetingName() string {
	if host := c.table.defaultHost(c.listener); host != nil {
		return host.Name
	}
	switch ip := c.local.Addr(); {
	case ip.Is4():
		return "[" + ip.String() + "]"
	case ip.Is6():
		return "[IPv6:" + ip.WithZone("").String() + "]"
	}
	return "localhost"
}

// readClearLine takes one line off c and returns it without its CRLF. A bare CR or
// LF and NUL are refused, since the next one who reads may see other lines than we.
// io.EOF means that nothing came after the last line.
func readClearLine(c *peekedConn, limit int) (string, error) {
	for n := 1; ; n++ {
		b, err := c.peek(n)
		switch {
		case errors.Is(err, io.EOF) && len(b) > 0:
			return "", io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return "", io.EOF
		case err != nil:
			return "", err
		}
		ch, afterCR := b[n-1], n > 1 && b[n-2] == '\r'
		switch {
		case n == 1 && ch == recordHandshake:
			return "", errTLSTooEarly
		case ch == 0, afterCR != (ch == '\n'):
			return "", errLineEnding
		case ch == '\n':
			line := string(b[:n-2])
			c.discard(n)
			return line, nil
		case n >= limit:
			return "", errLineLong
		}
	}
}
