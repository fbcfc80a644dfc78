package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/Azure/go-ntlmssp"
)

// wire is one client connection that can neither be swapped for another nor retried behind the caller's back, as net/http's would be;
// and it shows header lines as they came, which net/http respells.
type wire struct {
	conn   net.Conn
	br     *bufio.Reader
	host   string // Host header
	client string // ClientHeader
}

// answer is a response with its header lines as they came.
type answer struct {
	status int
	lines  []string
	header http.Header
	body   string
}

// maxAnswer bounds what a flow reads of a response.
const maxAnswer = 1 << 20

// dial opens a connection to host through the target's HTTPS address. It ends with ctx.
func (c *Company) dial(ctx context.Context, t Target, host, client string) (*wire, error) {
	cfg := &tls.Config{
		ServerName: host, RootCAs: c.RootCAs(), NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: t.Unverified, //nolint:gosec // only for runs against a CAS, whose certificate is its own
	}
	return dialTLS(ctx, t.HTTPS, cfg, client)
}

func dialTLS(ctx context.Context, addr string, cfg *tls.Config, client string) (*wire, error) {
	conn, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newWire(ctx, conn, cfg.ServerName, client), nil
}

func newWire(ctx context.Context, conn net.Conn, host, client string) *wire {
	if d, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(d)
	}
	return &wire{conn: conn, br: bufio.NewReader(conn), host: host, client: client}
}

func (w *wire) close() { _ = w.conn.Close() }

// do sends one request and reads its answer. Every request carries a Content-Length, as http.sys demands of a POST.
func (w *wire) do(method, target, authorization, body string) (*answer, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: autodgate-lab\r\n", method, target, w.host)
	if w.client != "" {
		fmt.Fprintf(&b, "%s: %s\r\n", ClientHeader, w.client)
	}
	if authorization != "" {
		fmt.Fprintf(&b, "Authorization: %s\r\n", authorization)
	}
	if body != "" {
		b.WriteString("Content-Type: text/xml; charset=utf-8\r\n")
	}
	if body != "" || method == http.MethodPost {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n" + body)
	if _, err := io.WriteString(w.conn, b.String()); err != nil {
		return nil, fmt.Errorf("send %s %s: %w", method, target, err)
	}
	a, err := readAnswer(w.br, method)
	if err != nil {
		return nil, fmt.Errorf("read answer to %s %s: %w", method, target, err)
	}
	return a, nil
}

func readAnswer(br *bufio.Reader, method string) (*answer, error) {
	tp := textproto.NewReader(br)
	first, err := tp.ReadLine()
	if err != nil {
		return nil, err
	}
	f := strings.SplitN(first, " ", 3)
	if len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") {
		return nil, fmt.Errorf("not an HTTP/1.1 answer: %.80q", first)
	}
	a := &answer{header: http.Header{}}
	if a.status, err = strconv.Atoi(f[1]); err != nil {
		return nil, fmt.Errorf("bad status line %.80q", first)
	}
	for {
		line, err := tp.ReadLine()
		if err != nil {
			return nil, err
		}
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || len(a.lines) > 200 {
			return nil, fmt.Errorf("bad header line %.80q", line)
		}
		a.lines = append(a.lines, line)
		a.header.Add(name, strings.TrimSpace(value))
	}
	var body io.Reader
	switch cl := a.header.Get("Content-Length"); {
	case method == http.MethodHead || a.status == http.StatusNoContent || a.status == http.StatusNotModified:
		return a, nil
	case strings.EqualFold(a.header.Get("Transfer-Encoding"), "chunked"):
		body = httputil.NewChunkedReader(br)
	case cl != "":
		n, err := strconv.ParseInt(cl, 10, 64)
		if err != nil || n < 0 || n > maxAnswer {
			return nil, fmt.Errorf("bad Content-Length %q", cl)
		}
		body = io.LimitReader(br, n)
	default:
		body = br
	}
	b, err := io.ReadAll(io.LimitReader(body, maxAnswer))
	if err != nil {
		return nil, err
	}
	a.body = string(b)
	if a.header.Get("Transfer-Encoding") != "" {
		for { // trailer section
			line, err := tp.ReadLine()
			if err != nil {
				return nil, err
			}
			if line == "" {
				break
			}
		}
	}
	return a, nil
}

// Legs of an NTLM login, made by a library that is not ours.

// negotiate sends the first leg that carries a token and returns the server's challenge.
func (w *wire) negotiate(scheme, method, target string) ([]byte, error) {
	msg, err := ntlmssp.NewNegotiateMessage("", "")
	if err != nil {
		return nil, err
	}
	a, err := w.do(method, target, scheme+" "+base64.StdEncoding.EncodeToString(msg), "")
	if err != nil {
		return nil, err
	}
	lines := a.header.Values("WWW-Authenticate")
	if a.status != http.StatusUnauthorized || len(lines) != 1 {
		return nil, fmt.Errorf("status %d with %d challenges to the first NTLM message, want 401 with one", a.status, len(lines))
	}
	got, token, _ := strings.Cut(lines[0], " ")
	if got != scheme || token == "" {
		return nil, errors.New("the answer to the first NTLM message holds no challenge")
	}
	return base64.StdEncoding.DecodeString(token)
}

// prove makes the Authorization value of the last leg.
func prove(scheme string, challenge []byte, user, password string) (string, error) {
	msg, err := ntlmssp.NewAuthenticateMessage(challenge, user, password, nil)
	if err != nil {
		return "", err
	}
	return scheme + " " + base64.StdEncoding.EncodeToString(msg), nil
}

// login runs both legs with tokens and returns the answer to the last, without judging it.
func (w *wire) login(scheme, method, target, body string, m Mailbox) (*answer, error) {
	challenge, err := w.negotiate(scheme, method, target)
	if err != nil {
		return nil, err
	}
	token, err := prove(scheme, challenge, m.Login, m.Password)
	if err != nil {
		return nil, err
	}
	return w.do(method, target, token, body)
}
