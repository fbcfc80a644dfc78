package lab

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Target is where flows go: the addresses that a front door listens on.
type Target struct {
	HTTPS, HTTP string // host:port
	// Unverified accepts any certificate. It is for runs against a server of the lab itself, without a front door before it.
	Unverified bool
}

// Flow is something that a client or an attacker does, and what should come of it. Flows go over the wire only.
type Flow struct {
	Name     string
	What     string // the whole sequence in a sentence
	Expected string
	run      func(context.Context, *Company, Target) error
}

// FlowResult is how a flow came out. Its text holds neither times nor ports when OK.
type FlowResult struct {
	Name, What, Expected string
	Got                  string
	OK                   bool
}

// flowTime bounds one flow; a front door that hangs must not hang the lab.
const flowTime = 30 * time.Second

// RunFlows runs all flows against a target, one after the other.
func (c *Company) RunFlows(ctx context.Context, t Target) []FlowResult {
	var out []FlowResult
	for _, f := range Flows() {
		out = append(out, c.RunFlow(ctx, f, t))
	}
	return out
}

// RunFlow runs one flow against a target.
func (c *Company) RunFlow(ctx context.Context, f Flow, t Target) FlowResult {
	ctx, cancel := context.WithTimeout(ctx, flowTime)
	defer cancel()
	r := FlowResult{Name: f.Name, What: f.What, Expected: f.Expected, Got: f.Expected, OK: true}
	if err := f.run(ctx, c, t); err != nil {
		r.Got, r.OK = err.Error(), false
	}
	return r
}

// Paths that flows ask for. The page tells who is logged in, and how.
const (
	pathWhoAmI     = "/mapi/emsmdb/?showdebug=yes"
	pathEWS        = "/EWS/Exchange.asmx"
	pathActiveSync = "/Microsoft-Server-ActiveSync"
	pathPOX        = "/autodiscover/autodiscover.xml"
)

const (
	afterLogin = 50  // requests without credentials after a login
	sideBySide = 200 // clients at once
)

// Flows returns all flows, in the order in which the lab shows them.
func Flows() []Flow {
	return []Flow{
		{
			"ntlm", fmt.Sprintf("a client logs in with NTLM in three legs, then sends %d requests without credentials", afterLogin),
			"200 for all, one user, one backend connection", flowNTLM,
		},
		{
			"negotiate", "the same with NTLM messages under the name Negotiate, and a body in the last leg",
			"200 for all, one user, one backend connection", flowNegotiate,
		},
		{
			"two-clients", "two users log in leg by leg in turn; a third client has no credentials; a fourth comes after one has left",
			"three backend connections, 401 for both without credentials", flowTwoClients,
		},
		{
			"crowd", fmt.Sprintf("%d clients with connections open side by side, every other one logged in without having been asked, the others with no credentials", sideBySide),
			"a backend connection each; 200 with credentials, 401 without", flowCrowd,
		},
		{
			"wrong-password", "NTLM and Basic with a wrong password, then a request without credentials on the same connection",
			"401 each time", flowWrongPassword,
		},
		{
			"replay", "the last NTLM message of a good login again: on its connection, on another one, and with no challenge at all",
			"401 each time", flowReplay,
		},
		{
			"challenges", "a request without credentials to Autodiscover",
			"401 with Negotiate, NTLM and Basic as three lines in this order, letter case kept", flowChallenges,
		},
		{
			"activesync", "a device asks for OPTIONS with Basic",
			"200 with MS-ASProtocolVersions in just these letters", flowActiveSync,
		},
		{
			"passthrough", "a device connects to the passthrough name",
			"the server's own certificate, and OPTIONS answered by that server", flowPassthrough,
		},
		{
			"redirect-name", "the name without a certificate: TLS, then GET on port 80",
			"TLS alert unrecognized_name; 302 to the published name, no challenge, no cookie", flowRedirectName,
		},
		{
			"unknown-name", "TLS with a name that nobody configured",
			"TLS alert unrecognized_name", flowUnknownName,
		},
		{
			"unpublished", "POST to /powershell",
			"404, and no server has seen the request", flowUnpublished,
		},
	}
}

// windowsUsers returns the first two accounts of the CAS.
func (c *Company) windowsUsers() (a, b Mailbox, err error) {
	var found []Mailbox
	for _, m := range c.scenario.Mailboxes {
		if m.Login != "" {
			found = append(found, m)
		}
	}
	if len(found) < 2 {
		return a, b, errors.New("the scenario has fewer than two accounts on the servers")
	}
	return found[0], found[1], nil
}

// served checks that an answer is a 200 for user, and returns the backend connection it came on.
func (a *answer) served(user string) (string, error) {
	if a.status != http.StatusOK {
		return "", fmt.Errorf("status %d for %s, want 200", a.status, user)
	}
	if got := a.header.Get(UserHeader); got != user {
		return "", fmt.Errorf("served as %q, want %s", got, user)
	}
	conn := a.header.Get(ServerHeader) + "#" + a.header.Get(ConnectionHeader)
	if conn == "#" {
		return "", errors.New("the answer does not come from a server of the lab")
	}
	return conn, nil
}

func (a *answer) refused() error {
	if a.status != http.StatusUnauthorized {
		return fmt.Errorf("status %d served as %q, want 401", a.status, a.header.Get(UserHeader))
	}
	if user := a.header.Get(UserHeader); user != "" {
		return fmt.Errorf("401, but as %q", user)
	}
	return nil
}

// violated says what the recorder holds against a run since the given state.
func (c *Company) violated(before int) error {
	if v := c.recorder.Violations(); len(v) > before {
		return errors.New(v[before])
	}
	return nil
}

func flowNTLM(ctx context.Context, c *Company, t Target) error {
	return stayLoggedIn(ctx, c, t, "ntlm", "NTLM", http.MethodGet, pathWhoAmI, "")
}

func flowNegotiate(ctx context.Context, c *Company, t Target) error {
	body := `<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body/></s:Envelope>`
	return stayLoggedIn(ctx, c, t, "negotiate", "Negotiate", http.MethodPost, pathEWS, body)
}

func stayLoggedIn(ctx context.Context, c *Company, t Target, client, scheme, method, path, body string) error {
	user, _, err := c.windowsUsers()
	if err != nil {
		return err
	}
	before := len(c.recorder.Violations())
	w, err := c.dial(ctx, t, c.scenario.Flows.Bridge, client)
	if err != nil {
		return err
	}
	defer w.close()
	a, err := w.do(method, path, "", body)
	if err != nil {
		return err
	}
	if err := a.refused(); err != nil {
		return fmt.Errorf("without credentials: %w", err)
	}
	if a, err = w.login(scheme, method, path, body, user); err != nil {
		return err
	}
	first, err := a.served(user.Login)
	if err != nil {
		return err
	}
	for i := range afterLogin {
		if a, err = w.do(method, path, "", body); err != nil {
			return fmt.Errorf("request %d after the login: %w", i+1, err)
		}
		conn, err := a.served(user.Login)
		if err != nil {
			return fmt.Errorf("request %d after the login: %w", i+1, err)
		}
		if conn != first {
			return fmt.Errorf("request %d after the login came on another backend connection", i+1)
		}
		if path == pathWhoAmI && !strings.Contains(a.body, "Authentication: "+scheme) {
			return fmt.Errorf("request %d after the login: the server does not say %s", i+1, scheme)
		}
	}
	return c.violated(before)
}

func flowTwoClients(ctx context.Context, c *Company, t Target) error {
	pat, lee, err := c.windowsUsers()
	if err != nil {
		return err
	}
	before := len(c.recorder.Violations())
	users := []Mailbox{pat, lee}
	wires := make([]*wire, 3)
	for i := range wires {
		if wires[i], err = c.dial(ctx, t, c.scenario.Flows.Bridge, fmt.Sprintf("two-clients-%d", i+1)); err != nil {
			return err
		}
		defer wires[i].close()
	}
	challenges := make([][]byte, len(users))
	for i := range users {
		if challenges[i], err = wires[i].negotiate("NTLM", http.MethodGet, pathWhoAmI); err != nil {
			return err
		}
	}
	conns := make([]string, len(users))
	for i, u := range users {
		token, err := prove("NTLM", challenges[i], u.Login, u.Password)
		if err != nil {
			return err
		}
		a, err := wires[i].do(http.MethodGet, pathWhoAmI, token, "")
		if err != nil {
			return err
		}
		if conns[i], err = a.served(u.Login); err != nil {
			return err
		}
	}
	if conns[0] == conns[1] {
		return errors.New("both users were served on one backend connection")
	}
	for range 10 {
		for i, u := range users {
			a, err := wires[i].do(http.MethodGet, pathWhoAmI, "", "")
			if err != nil {
				return err
			}
			conn, err := a.served(u.Login)
			if err != nil {
				return err
			}
			if conn != conns[i] {
				return errors.New("a user changed the backend connection")
			}
		}
	}
	a, err := wires[2].do(http.MethodGet, pathWhoAmI, "", "")
	if err != nil {
		return err
	}
	if err := a.refused(); err != nil {
		return fmt.Errorf("third client without credentials: %w", err)
	}
	if conn := a.header.Get(ServerHeader) + "#" + a.header.Get(ConnectionHeader); slices.Contains(conns, conn) {
		return errors.New("the client without credentials shares a user's backend connection")
	}
	wires[0].close()
	late, err := c.dial(ctx, t, c.scenario.Flows.Bridge, "two-clients-late")
	if err != nil {
		return err
	}
	defer late.close()
	if a, err = late.do(http.MethodGet, pathWhoAmI, "", ""); err != nil {
		return err
	}
	if err := a.refused(); err != nil {
		return fmt.Errorf("client that came after %s had left: %w", pat.Login, err)
	}
	return c.violated(before)
}

func flowCrowd(ctx context.Context, c *Company, t Target) error {
	pat, lee, err := c.windowsUsers()
	if err != nil {
		return err
	}
	before := len(c.recorder.Violations())
	wires := make([]*wire, sideBySide)
	defer func() {
		for _, w := range wires {
			if w != nil {
				w.close()
			}
		}
	}()
	user := func(i int) Mailbox { return []Mailbox{pat, lee}[i/2%2] }
	err = each(sideBySide, func(i int) (err error) {
		w, err := c.dial(ctx, t, c.scenario.Flows.Bridge, fmt.Sprintf("crowd-%d", i))
		if err != nil {
			return err
		}
		wires[i] = w
		if i%2 == 1 {
			return w.stranger()
		}
		a, err := w.login("NTLM", http.MethodGet, pathWhoAmI, "", user(i))
		if err != nil {
			return err
		}
		_, err = a.served(user(i).Login)
		return err
	})
	if err != nil {
		return err
	}
	// Now all are there at once, and nothing but the connection tells whose a request is.
	conns := make([]string, sideBySide)
	err = each(sideBySide, func(i int) error {
		if i%2 == 1 {
			return wires[i].stranger()
		}
		a, err := wires[i].do(http.MethodGet, pathWhoAmI, "", "")
		if err != nil {
			return err
		}
		conns[i], err = a.served(user(i).Login)
		return err
	})
	if err != nil {
		return err
	}
	conns = slices.DeleteFunc(conns, func(s string) bool { return s == "" })
	slices.Sort(conns)
	if n := len(slices.Compact(conns)); n != sideBySide/2 {
		return fmt.Errorf("%d logged-in clients were served on %d backend connections", sideBySide/2, n)
	}
	return c.violated(before)
}

// stranger sends a request without credentials, which must be refused.
func (w *wire) stranger() error {
	a, err := w.do(http.MethodGet, pathWhoAmI, "", "")
	if err != nil {
		return err
	}
	return a.refused()
}

// inFlight bounds what a crowd does at the same moment: all of it at once would measure how fast a small machine makes handshakes.
const inFlight = 16

// each calls f for every client of a crowd, and returns the first client's error.
func each(n int, f func(i int) error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, inFlight)
	var done sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		done.Go(func() {
			defer func() { <-slots }()
			errs[i] = f(i)
		})
	}
	done.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("client %d: %w", i+1, err)
		}
	}
	return nil
}

func flowWrongPassword(ctx context.Context, c *Company, t Target) error {
	user, _, err := c.windowsUsers()
	if err != nil {
		return err
	}
	wrong := user
	wrong.Password = "not " + user.Password
	w, err := c.dial(ctx, t, c.scenario.Flows.Bridge, "wrong-password")
	if err != nil {
		return err
	}
	defer w.close()
	a, err := w.login("NTLM", http.MethodGet, pathWhoAmI, "", wrong)
	if err != nil {
		return err
	}
	if err := a.refused(); err != nil {
		return fmt.Errorf("NTLM: %w", err)
	}
	for _, auth := range []string{"", basic(wrong), ""} {
		if a, err = w.do(http.MethodGet, pathPOX, auth, ""); err != nil {
			return err
		}
		if err := a.refused(); err != nil {
			return fmt.Errorf("%s: %w", cmp.Or(strings.SplitN(auth, " ", 2)[0], "afterwards"), err)
		}
	}
	return nil
}

func basic(m Mailbox) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(m.Address+":"+m.Password))
}

func flowReplay(ctx context.Context, c *Company, t Target) error {
	user, _, err := c.windowsUsers()
	if err != nil {
		return err
	}
	var wires [3]*wire
	for i := range wires {
		if wires[i], err = c.dial(ctx, t, c.scenario.Flows.Bridge, fmt.Sprintf("replay-%d", i+1)); err != nil {
			return err
		}
		defer wires[i].close()
	}
	challenge, err := wires[0].negotiate("NTLM", http.MethodGet, pathWhoAmI)
	if err != nil {
		return err
	}
	token, err := prove("NTLM", challenge, user.Login, user.Password)
	if err != nil {
		return err
	}
	a, err := wires[0].do(http.MethodGet, pathWhoAmI, token, "")
	if err != nil {
		return err
	}
	if _, err := a.served(user.Login); err != nil {
		return err
	}
	if _, err := wires[1].negotiate("NTLM", http.MethodGet, pathWhoAmI); err != nil {
		return err
	}
	for i, what := range []string{"on its own connection", "as the answer to another challenge", "without a challenge"} {
		if a, err = wires[i].do(http.MethodGet, pathWhoAmI, token, ""); err != nil {
			return err
		}
		if err := a.refused(); err != nil {
			return fmt.Errorf("replayed %s: %w", what, err)
		}
	}
	return nil
}

func flowChallenges(ctx context.Context, c *Company, t Target) error {
	w, err := c.dial(ctx, t, c.scenario.Flows.Bridge, "challenges")
	if err != nil {
		return err
	}
	defer w.close()
	a, err := w.do(http.MethodGet, pathPOX, "", "")
	if err != nil {
		return err
	}
	if err := a.refused(); err != nil {
		return err
	}
	var got []string
	for _, l := range a.lines {
		if v, ok := strings.CutPrefix(l, "WWW-Authenticate: "); ok {
			got = append(got, v)
		}
	}
	want := []string{"Negotiate", "NTLM", fmt.Sprintf("Basic realm=%q", c.scenario.Flows.Bridge)}
	if !slices.Equal(got, want) {
		return fmt.Errorf("WWW-Authenticate lines are %q, want %q", got, want)
	}
	return nil
}

func flowActiveSync(ctx context.Context, c *Company, t Target) error {
	user, _, err := c.windowsUsers()
	if err != nil {
		return err
	}
	w, err := c.dial(ctx, t, c.scenario.Flows.Bridge, "activesync")
	if err != nil {
		return err
	}
	defer w.close()
	return w.activeSyncOptions(user)
}

func (w *wire) activeSyncOptions(user Mailbox) error {
	a, err := w.do(http.MethodOptions, pathActiveSync, basic(user), "")
	if err != nil {
		return err
	}
	if _, err := a.served(user.Login); err != nil {
		return err
	}
	if !slices.ContainsFunc(a.lines, func(l string) bool { return strings.HasPrefix(l, "MS-ASProtocolVersions: ") }) {
		return errors.New("no header line begins with MS-ASProtocolVersions")
	}
	return nil
}

func flowPassthrough(ctx context.Context, c *Company, t Target) error {
	user, _, err := c.windowsUsers()
	if err != nil {
		return err
	}
	p := c.scenario.Flows.Passthrough
	i := slices.IndexFunc(c.servers, func(s *casServer) bool { return s.name == p.Server })
	if i < 0 {
		return fmt.Errorf("the scenario has no server %q", p.Server)
	}
	// The certificate does not carry the public name: what counts is that it is the server's, to the byte.
	w, err := dialTLS(ctx, t.HTTPS, &tls.Config{
		ServerName: p.Host, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true, //nolint:gosec // compared below
	}, "passthrough")
	if err != nil {
		return err
	}
	defer w.close()
	leaf := w.conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
	if fingerprint(leaf.Raw) != fingerprint(c.servers[i].certificate.Certificate[0]) {
		return fmt.Errorf("the certificate shown is of %q, not the server's", leaf.Subject.CommonName)
	}
	return w.activeSyncOptions(user)
}

func flowRedirectName(ctx context.Context, c *Company, t Target) error {
	r := c.scenario.Flows.Redirect
	if err := refusesName(ctx, t.HTTPS, r.Host); err != nil {
		return err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", t.HTTP)
	if err != nil {
		return err
	}
	w := newWire(ctx, conn, r.Host, "redirect-name")
	defer w.close()
	a, err := w.do(http.MethodGet, pathPOX, "", "")
	if err != nil {
		return err
	}
	want := "https://" + r.To + pathPOX
	switch {
	case a.status != http.StatusFound || a.header.Get("Location") != want:
		return fmt.Errorf("status %d to %q, want 302 to %s", a.status, a.header.Get("Location"), want)
	case a.header.Get("WWW-Authenticate") != "" || a.header.Get("Set-Cookie") != "":
		return errors.New("the redirect carries a challenge or a cookie")
	}
	return nil
}

func flowUnknownName(ctx context.Context, c *Company, t Target) error {
	return refusesName(ctx, t.HTTPS, c.scenario.Flows.Unknown)
}

// alertUnrecognizedName is RFC 6066 section 3. crypto/tls keeps alerts that it receives to itself, but for their text.
const alertUnrecognizedName tls.AlertError = 112

func refusesName(ctx context.Context, addr, host string) error {
	// No verification: the alert must come instead of a certificate, whoever's that would be.
	w, err := dialTLS(ctx, addr, &tls.Config{ServerName: host, InsecureSkipVerify: true}, "") //nolint:gosec // see above
	if err == nil {
		defer w.close()
		leaf := w.conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
		return fmt.Errorf("%s was answered with the certificate of %q", host, leaf.Subject.CommonName)
	}
	if !strings.HasSuffix(err.Error(), alertUnrecognizedName.Error()) {
		return fmt.Errorf("%s: %w, want the alert unrecognized_name", host, err)
	}
	return nil
}

func flowUnpublished(ctx context.Context, c *Company, t Target) error {
	w, err := c.dial(ctx, t, c.scenario.Flows.Bridge, "unpublished")
	if err != nil {
		return err
	}
	defer w.close()
	for _, target := range []string{"/powershell", "/PowerShell/?serializationLevel=Full", "/powershell/healthcheck.htm"} {
		a, err := w.do(http.MethodPost, target, "", "")
		if err != nil {
			return err
		}
		if a.status != http.StatusNotFound {
			return fmt.Errorf("%s: status %d, want 404", target, a.status)
		}
	}
	if seen := c.recorder.Requests(func(q Request) bool { return q.Client == "unpublished" }); len(seen) > 0 {
		return fmt.Errorf("a server has seen %s %s", seen[0].Method, seen[0].Target)
	}
	return nil
}
