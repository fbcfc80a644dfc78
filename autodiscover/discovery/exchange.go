package discovery

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	ntlmssp "github.com/Azure/go-ntlmssp"
)

const (
	maxAnswer = 1 << 20  // bytes of an answer that are read; real ones have some 10 KiB
	maxHeader = 64 << 10 // bytes of a response head
)

// removed stands where a secret was.
const removed = "(removed)"

// message is what a step sends and whether it may log in.
type message struct {
	method string
	header []Field
	body   []byte
	login  bool
}

// reply is the last answer of a conversation.
type reply struct {
	status    int
	header    http.Header
	body      []byte
	attempted string // scheme of the credentials that were sent, empty for none
	note      string // why no credentials, or not all of them, were sent
}

// conversation is all requests of one step to one server: one connection, unless the server closes it.
type conversation struct {
	k    *walk
	step *Step
	t    *target
	leaf *x509.Certificate
	tr   *http.Transport

	mu    sync.Mutex // the transport dials in a goroutine of its own
	first net.Conn
	dials int
}

// converse connects, judges the certificate, sends the message and logs in as the server asks. An error is already explained in the step.
func (k *walk) converse(ctx context.Context, step *Step, u *url.URL, m message) (*reply, error) {
	limited, cancel := context.WithTimeout(ctx, k.stepTimeout())
	defer cancel()

	r, err := k.talk(limited, step, u, m)
	if err != nil && !errors.Is(err, errCertificate) {
		k.failed(ctx, step, err)
	}
	return r, err
}

// failed explains an error in the step. When the whole walk is over, not only the step's time, discovery ends here.
func (k *walk) failed(ctx context.Context, step *Step, err error) {
	step.Why = explain(err, k.stepTimeout())
	if ctx.Err() != nil {
		step.Why = over(ctx)
		step.Outcome = OutcomeFail
		k.stopped = true
	}
}

// over says why the walk as a whole ended early.
func over(ctx context.Context) string {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return "the time for the whole walk is over"
	}
	return "interrupted"
}

func (k *walk) talk(ctx context.Context, step *Step, u *url.URL, m message) (*reply, error) {
	t, err := k.locate(ctx, step, u)
	if err != nil {
		return nil, err
	}
	conn, err := k.open(ctx, step, t)
	if err != nil {
		return nil, err
	}
	c := &conversation{k: k, step: step, t: t, first: conn}
	if tc, ok := conn.(*tls.Conn); ok {
		c.leaf = tc.ConnectionState().PeerCertificates[0]
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) }
	c.tr = &http.Transport{
		Proxy:       nil, // whatever the environment says: a diagnosis goes where it says it goes
		DialContext: dial, DialTLSContext: dial,
		TLSNextProto:           map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1 only: NTLM authenticates the connection
		MaxConnsPerHost:        1,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
	defer func() {
		c.tr.CloseIdleConnections()
		if conn := c.take(); conn != nil {
			_ = conn.Close()
		}
	}()
	return c.login(ctx, m)
}

// dial hands out the connection that was opened for the step, later ones only if they show the same certificate.
func (c *conversation) dial(ctx context.Context) (net.Conn, error) {
	c.mu.Lock()
	c.dials++
	c.mu.Unlock()
	if conn := c.take(); conn != nil {
		return conn, nil
	}
	return c.t.again(ctx, c.leaf)
}

// take gives the first connection away, once.
func (c *conversation) take() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	conn := c.first
	c.first = nil
	return conn
}

// connections is how many connections the conversation has needed so far.
func (c *conversation) connections() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dials
}

// login sends the message, answers a challenge in the way the profile prefers, and returns the last answer.
func (c *conversation) login(ctx context.Context, m message) (*reply, error) {
	p, cred := &c.k.w.Profile, c.k.credentials
	may := m.login && cred.Password != "" && c.t.url.Scheme == "https"

	if may && p.Login == LoginPreemptive && slices.Contains(p.Schemes, "Basic") && cred.AllowBasic {
		r, err := c.send(ctx, m, "Basic", basic(cred))
		if r != nil {
			r.attempted = "Basic"
		}
		return r, err
	}
	r, err := c.send(ctx, m, "", "")
	if err != nil || r.status != http.StatusUnauthorized || !m.login {
		return r, err
	}
	if !may {
		r.note = "no password was given"
		return r, nil
	}
	offered := challenges(r.header)
	for _, scheme := range p.Schemes {
		if _, ok := offered[strings.ToLower(scheme)]; !ok {
			continue
		}
		if strings.EqualFold(scheme, "Basic") {
			if !cred.AllowBasic {
				r.note = "the server takes Basic, which is not allowed for this walk"
				continue
			}
			r, err = c.send(ctx, m, "Basic", basic(cred))
		} else {
			r, err = c.ntlm(ctx, m, scheme)
		}
		if r != nil {
			r.attempted = scheme
		}
		return r, err
	}
	if r.note == "" {
		r.note = "the server offers no login this client knows"
	}
	return r, nil
}

func basic(cred Credentials) string {
	return base64.StdEncoding.EncodeToString([]byte(cred.User + ":" + cred.Password))
}

// ntlm runs the three messages of [MS-NLMP] over HTTP ([MS-NTHT] section 3.1): negotiate without a body, as WinHTTP does, then authenticate with it.
// No channel binding is sent, so a server with Extended Protection required refuses.
func (c *conversation) ntlm(ctx context.Context, m message, scheme string) (*reply, error) {
	negotiate, err := ntlmssp.NewNegotiateMessage("", "")
	if err != nil {
		return nil, err
	}
	bare := m
	bare.body = []byte{}
	r, err := c.send(ctx, bare, scheme, base64.StdEncoding.EncodeToString(negotiate))
	if err != nil || r.status != http.StatusUnauthorized {
		return r, err
	}
	challenge, err := base64.StdEncoding.DecodeString(challenges(r.header)[strings.ToLower(scheme)])
	if err != nil || len(challenge) == 0 {
		r.note = "the server sent no NTLM challenge"
		return r, nil
	}
	authenticate, err := ntlmssp.NewAuthenticateMessage(challenge, c.k.credentials.User, c.k.credentials.Password, nil)
	if err != nil {
		r.note = "the NTLM challenge cannot be read"
		return r, nil
	}
	before := c.connections()
	r, err = c.send(ctx, m, scheme, base64.StdEncoding.EncodeToString(authenticate))
	if err == nil && r.status == http.StatusUnauthorized {
		r.note = "wrong password, or the server demands Extended Protection"
		if c.connections() != before {
			r.note = "the connection was closed between the messages of NTLM, which authenticates the connection"
		}
	}
	return r, err
}

// send makes one request and records it. token goes into Authorization and nowhere else.
func (c *conversation) send(ctx context.Context, m message, scheme, token string) (*reply, error) {
	if scheme != "" && c.t.url.Scheme != "https" {
		return nil, errors.New("credentials are never sent without TLS")
	}
	c.step.Exchanges = append(c.step.Exchanges, Exchange{Request: m.method + " " + showURL(c.t.url), Login: scheme})
	ex := &c.step.Exchanges[len(c.step.Exchanges)-1]

	var body io.Reader
	if m.body != nil {
		body = bytes.NewReader(m.body)
	}
	req, err := http.NewRequestWithContext(ctx, m.method, c.t.url.String(), body)
	if err != nil {
		return nil, err
	}
	for _, f := range m.header {
		req.Header[f.Name] = append(req.Header[f.Name], f.Value) // letter case as the profile writes it
	}
	if scheme != "" {
		req.Header.Set("Authorization", scheme+" "+token)
	}
	ex.RequestHeader = showSent(req)
	resp, err := c.tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	ex.Status = resp.StatusCode
	ex.ResponseHeader = showReceived(resp.Header)
	// Read to the end, or the transport drops the connection and NTLM with it.
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && resp.StatusCode == http.StatusOK {
		return nil, err
	}
	return &reply{status: resp.StatusCode, header: resp.Header, body: answer}, nil
}

// challenges maps the schemes offered, in lower case, to what follows them. Several lines and lines folded into one are both read.
func challenges(h http.Header) map[string]string {
	offered := map[string]string{}
	for _, line := range h.Values("WWW-Authenticate") {
		for part := range strings.SplitSeq(line, ",") {
			scheme, rest, _ := strings.Cut(strings.TrimSpace(part), " ")
			if scheme == "" || strings.ContainsAny(scheme, `="`) {
				continue // a parameter of the scheme before it
			}
			offered[strings.ToLower(scheme)] = strings.TrimSpace(rest)
		}
	}
	return offered
}

// showSent lists the request header by name, as net/http writes it, without the credentials.
func showSent(req *http.Request) []Field {
	fields := []Field{{Name: "Host", Value: req.URL.Host}}
	if req.Method == http.MethodPost {
		fields = append(fields, Field{Name: "Content-Length", Value: strconv.FormatInt(req.ContentLength, 10)})
	}
	for name, values := range req.Header {
		for _, v := range values {
			if name == "Authorization" {
				scheme, _, _ := strings.Cut(v, " ")
				v = scheme + " " + removed
			}
			fields = append(fields, Field{Name: name, Value: v})
		}
	}
	sort.SliceStable(fields, func(i, j int) bool { return fields[i].Name < fields[j].Name })
	return fields
}

// showReceived lists the response header by name. Cookies go, and so do tokens of challenges: an NTLM challenge tells the names of the domain.
func showReceived(h http.Header) []Field {
	var fields []Field
	for name, values := range h {
		for _, v := range values {
			switch name {
			case "Set-Cookie":
				v = removed
			case "Www-Authenticate":
				name = "WWW-Authenticate"
				if scheme, token, ok := strings.Cut(v, " "); ok && !strings.Contains(token, "=\"") {
					v = scheme + " " + removed
				}
			case "Location", "X-Ms-Location":
				if u, err := url.Parse(v); err == nil {
					v = showURL(u)
				}
			}
			fields = append(fields, Field{Name: name, Value: v})
		}
	}
	sort.SliceStable(fields, func(i, j int) bool { return fields[i].Name < fields[j].Name })
	return fields
}

// showURL is a URL without user information.
func showURL(u *url.URL) string {
	if u.User == nil {
		return u.String()
	}
	shown := *u
	shown.User = url.User("removed")
	return shown.String()
}

// stepTimeout is the time limit of one conversation.
func (k *walk) stepTimeout() time.Duration {
	if k.w.StepTimeout > 0 {
		return k.w.StepTimeout
	}
	return k.w.Profile.StepTimeout
}
