package discovery

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Credentials are what the user would have typed.
type Credentials struct {
	User       string // empty: the address; DOMAIN\user works with NTLM
	Password   string // empty: never logs in
	AllowBasic bool   // Basic hands the password to the server; false never sends it
}

// PromptPolicy is the user's answer to the client's questions. The zero value follows redirects and accepts no doubtful certificate.
type PromptPolicy struct {
	RefuseRedirects    bool
	AcceptCertificates Faults // faults of a certificate that the user clicks away
}

// Walker walks one client's discovery order. The zero value with a Profile walks the Internet without a password.
// A Walker may be used several times, also at once; it keeps no state.
type Walker struct {
	Profile     Profile
	Resolver    string // DNS server, "ip" or "ip:port"; empty: those of /etc/resolv.conf
	RootCAs     *x509.CertPool
	Credentials Credentials
	// Ports says which port stands for another: a lab has {443: 41443, 80: 41080}. URLs in the trace keep the real port.
	Ports map[int]int
	// Server, "host" or "host:port", is connected to whatever DNS says; SNI and Host stay those of the URL. Its port counts for https only.
	Server      string
	StepTimeout time.Duration // for one candidate; 0: the profile's
	Timeout     time.Duration // for the whole walk; 0: none
	Prompts     PromptPolicy
	// Progress, if set, is called when a step begins (Outcome is empty) and when it ends, from the goroutine of Walk. Children are in the final Trace only.
	Progress func(Step)
}

// maxRestarts bounds how often one walk starts over with another address, [DSCLI] 3.1.5.1 and the ten of RedirectUrl.
const maxRestarts = 10

// walk is one run of a Walker.
type walk struct {
	w           *Walker
	resolver    *resolver
	credentials Credentials // User filled in; stays the first address's after a redirectAddr
	path        *regexp.Regexp
	trace       *Trace
	addresses   []string // every address discovery was started with, in lower case
	stopped     bool     // a step ended discovery
	telling     *Step    // the step that says most about a failure
}

// trail is how one candidate was reached: the redirects so far, to count them and to see loops.
type trail []string

// Walk runs the profile for a mail address and returns what happened. It never returns nil; what could not even be started is told in FailedAt and Why.
// It ends soon after ctx does.
func (w *Walker) Walk(ctx context.Context, address string) *Trace {
	begun := time.Now()
	t := &Trace{Client: w.Profile.Name, Address: address}
	if w.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.Timeout)
		defer cancel()
	}
	if err := w.walk(ctx, t, address); err != nil {
		t.FailedAt, t.Why = "start", err.Error()
	}
	t.Duration = time.Since(begun)
	t.conclude()
	return t
}

func (w *Walker) walk(ctx context.Context, t *Trace, address string) error {
	if err := w.Profile.check(); err != nil {
		return err
	}
	domain, err := splitAddress(address)
	if err != nil {
		return err
	}
	res, err := newResolver(w.Resolver)
	if err != nil {
		return err
	}
	k := &walk{w: w, resolver: res, credentials: w.Credentials, path: regexp.MustCompile(w.Profile.Redirects.Path), trace: t}
	if k.credentials.User == "" {
		k.credentials.User = address
	}
	k.addresses = []string{strings.ToLower(address)}
	t.Connected = k.stages(ctx, &t.Steps, address, domain, nil)
	if t.Connected {
		return nil
	}
	if k.telling != nil {
		t.FailedAt, t.Why = k.telling.What, k.telling.Why
	}
	if ctx.Err() != nil {
		t.FailedAt, t.Why = cmp.Or(t.FailedAt, "start"), over(ctx)
	}
	return nil
}

// stages tries every candidate for an address until one gives settings.
func (k *walk) stages(ctx context.Context, into *[]*Step, address, domain string, tr trail) bool {
	fill := strings.NewReplacer("{domain}", domain, "{email}", url.QueryEscape(address))
	for _, st := range k.w.Profile.Stages {
		if k.stopped || ctx.Err() != nil {
			return false
		}
		if st.Skip != "" && len(k.addresses) > 1 {
			continue // told once
		}
		target := fill.Replace(st.URL)
		step := k.begin(into, st.Kind, what(&st, target))
		step.Stage, step.Source = st.Name, st.Source
		ok := k.stage(ctx, step, &st, target, address, domain, tr)
		k.end(step, ok)
		if ok {
			return true
		}
	}
	return false
}

// what is the line of a stage.
func what(st *Stage, target string) string {
	switch {
	case st.Skip != "" || target == "":
		return st.Name
	case st.Kind == KindSRV:
		return "SRV " + target
	}
	return st.Method + " " + target
}

func (k *walk) stage(ctx context.Context, step *Step, st *Stage, target, address, domain string, tr trail) bool {
	if st.Skip != "" {
		step.Outcome, step.Why, step.UserSees = OutcomeSkip, st.Skip, ""
		return false
	}
	if st.Kind == KindSRV {
		return k.srv(ctx, step, st, target, address, domain, tr)
	}
	u, err := url.Parse(target)
	if err == nil {
		step.URL = showURL(u)
		err = guardCandidate(u.Hostname(), domain)
	}
	if err != nil {
		step.Outcome, step.Why, step.UserSees = OutcomeSkip, err.Error(), ""
		return false
	}
	switch st.Kind {
	case KindPost:
		return k.post(ctx, step, u, address, tr)
	case KindJSON:
		return k.json(ctx, step, st.Method, u, address, tr)
	default:
		return k.probe(ctx, step, st, u, address, domain, tr)
	}
}

// post sends the POX request, and does what the answer says.
func (k *walk) post(ctx context.Context, step *Step, u *url.URL, address string, tr trail) bool {
	p := &k.w.Profile
	if u.Scheme != "https" {
		step.Why = "the target is not https: nothing is posted in the clear"
		return false
	}
	tr = append(slices.Clone(tr), key(u, address))
	// What a server says over verified TLS is followed in silence; [DISCO] 3.1.5.4 warns of what plain HTTP says.
	body, err := writeRequest(p.Schema, address)
	if err != nil {
		step.Why = err.Error()
		return false
	}
	header := append([]Field{{"User-Agent", p.UserAgent}, {"Content-Type", "text/xml; charset=utf-8"}}, p.Header...)
	r, err := k.converse(ctx, step, u, message{method: http.MethodPost, header: header, body: body, login: true})
	if err != nil {
		step.weight = weightTLS(step)
		return false
	}
	switch {
	case k.redirects(r):
		return k.redirect(ctx, step, u, r, ConsentNever, address, "", tr, nil)
	case r.status == http.StatusUnauthorized:
		k.unauthorized(step, u, r)
		return false
	case r.status != http.StatusOK:
		step.Why = fmt.Sprintf("HTTP status %d is not an Autodiscover answer", r.status)
		return false
	}
	a, err := readAnswer(p, r.body)
	if err != nil {
		step.Why = err.Error()
		step.weight = 2
		return false
	}
	step.Answer = a
	switch a.Action {
	case actionError:
		step.weight = 4
		step.Why = "the server answers with an Error: " + a.Message
		if a.ErrorCode != 0 {
			step.Why = fmt.Sprintf("the server answers with ErrorCode %d: %s", a.ErrorCode, a.Message)
		}
		return false
	case actionURL:
		return k.redirect(ctx, step, u, &reply{status: http.StatusOK, header: http.Header{"Location": {a.RedirectTo}}}, ConsentNever, address, "", tr, nil)
	case actionAddress:
		return k.restart(ctx, step, a.RedirectTo, tr)
	}
	if !a.Settings.usable(p.Needs) {
		step.weight = 4
		step.Why = fmt.Sprintf("the answer has %s, the client needs %s", cmp.Or(strings.Join(a.Settings.types(), ", "), "no protocol"), strings.Join(p.Needs, " or "))
		return false
	}
	k.trace.FoundAt, k.trace.Settings = showURL(u), a.Settings
	step.Why = "settings found"
	return true
}

// probe asks over plain HTTP, anonymously, and wants a redirect. Anything else came without TLS and is of no use.
func (k *walk) probe(ctx context.Context, step *Step, st *Stage, u *url.URL, address, domain string, tr trail) bool {
	r, err := k.converse(ctx, step, u, message{method: st.Method, header: []Field{{"User-Agent", k.w.Profile.UserAgent}}})
	if err != nil {
		step.weight = weightTLS(step)
		return false
	}
	if !k.redirects(r) {
		step.Why = fmt.Sprintf("HTTP status %d is no redirect this client obeys", r.status)
		if slices.Contains(k.w.Profile.Redirects.Codes, r.status) {
			step.Why = fmt.Sprintf("HTTP status %d without a Location", r.status)
		}
		return false
	}
	return k.redirect(ctx, step, u, r, st.Consent, address, domain, append(slices.Clone(tr), key(u, address)), nil)
}

// json asks V2 for the URL to post to.
func (k *walk) json(ctx context.Context, step *Step, method string, u *url.URL, address string, tr trail) bool {
	if u.Scheme != "https" {
		step.Why = "the target is not https"
		return false
	}
	tr = append(slices.Clone(tr), key(u, address))
	header := []Field{{"User-Agent", k.w.Profile.UserAgent}, {"Accept", "application/json"}}
	r, err := k.converse(ctx, step, u, message{method: method, header: header})
	if err != nil {
		step.weight = weightTLS(step)
		return false
	}
	if k.redirects(r) {
		return k.redirect(ctx, step, u, r, ConsentNever, address, "", tr, func(s *Step, to *url.URL, tr trail) bool {
			child := k.begin(&s.Children, KindJSON, method+" "+showURL(to))
			child.URL = showURL(to)
			ok := k.json(ctx, child, method, to, address, tr)
			k.end(child, ok)
			return ok
		})
	}
	if r.status != http.StatusOK {
		step.Why = fmt.Sprintf("HTTP status %d: the server does not answer V2 for this domain", r.status)
		return false
	}
	target, err := readV2(r.body)
	if err != nil {
		step.Why = err.Error()
		return false
	}
	return k.redirect(ctx, step, u, &reply{status: http.StatusOK, header: http.Header{"Location": {target}}}, ConsentNever, address, "", tr, nil)
}

// srv looks the record up and posts to its target.
func (k *walk) srv(ctx context.Context, step *Step, st *Stage, name, address, domain string, tr trail) bool {
	limited, cancel := context.WithTimeout(ctx, k.stepTimeout())
	records, answers, err := k.resolver.srv(limited, name)
	cancel()
	step.DNS = answers
	if err != nil {
		k.failed(ctx, step, err)
		return false
	}
	// [KB] takes the first record on 443; [GX] saw Outlook disregard the port. Both hold: 443 is preferred, and always connected to.
	best := records[0]
	for _, r := range records {
		if r.Port == 443 {
			best = r
			break
		}
	}
	host := strings.ToLower(trimDot(best.Target))
	if host == "" {
		step.Why = "the record says that there is no such service" // RFC 2782: target "."
		return false
	}
	u := &url.URL{Scheme: "https", Host: host, Path: "/autodiscover/autodiscover.xml"}
	step.URL = u.String()
	return k.redirect(ctx, step, u, &reply{header: http.Header{"Location": {u.String()}}}, st.Consent, address, domain, tr, nil)
}

// redirects says whether the client takes the answer for a redirect.
func (k *walk) redirects(r *reply) bool {
	return slices.Contains(k.w.Profile.Redirects.Codes, r.status) && location(r) != ""
}

// location is where an answer points to. A 451 has its own header, [ASHTTP] 3.1.5.2.2.
func location(r *reply) string {
	if r.status == http.StatusUnavailableForLegalReasons {
		return r.header.Get("X-MS-Location")
	}
	return r.header.Get("Location")
}

// redirect judges a target, asks the user if need be, and goes on there: with next if given, else with the POX request.
func (k *walk) redirect(ctx context.Context, parent *Step, from *url.URL, r *reply, consent Consent, address, domain string, tr trail,
	next func(*Step, *url.URL, trail) bool,
) bool {
	to, err := url.Parse(location(r))
	if err != nil {
		parent.Why = "the redirect has no readable URL"
		return false
	}
	shown := showURL(to)
	step := k.begin(&parent.Children, KindRedirect, "redirect to "+clip(shown, 300))
	step.URL = shown
	ok := false
	switch why := k.judgeRedirect(from, to, address, tr); {
	case why != "":
		step.Why, step.weight = why, 3
	case (consent == ConsentAlways || consent == ConsentOtherHost && !strings.EqualFold(to.Hostname(), domain)) &&
		!k.ask(step, fmt.Sprintf("May %s configure the account of %s?", shown, address), !k.w.Prompts.RefuseRedirects):
		step.Outcome, step.Why, step.weight = OutcomePrompt, "the user refused the redirect", 3
	default:
		to = from.ResolveReference(to)
		step.URL = showURL(to)
		if next != nil {
			ok = next(step, to, tr)
			break
		}
		child := k.begin(&step.Children, KindPost, "POST "+showURL(to))
		child.URL = showURL(to)
		ok = k.post(ctx, child, to, address, tr)
		k.end(child, ok)
	}
	k.end(step, ok)
	return ok
}

// judgeRedirect says why a target is not followed, or nothing.
func (k *walk) judgeRedirect(from, to *url.URL, address string, tr trail) string {
	rules := &k.w.Profile.Redirects
	if !to.IsAbs() && !rules.Relative {
		return "the client ignores a relative URL"
	}
	to = from.ResolveReference(to)
	switch {
	case to.Scheme != "https":
		return "the target is not https"
	case to.User != nil:
		return "the target carries user information"
	case !k.path.MatchString(to.Path):
		return "the client does not accept the path of the target"
	case slices.Contains(tr, key(to, address)):
		return "the redirects go round in a circle"
	case len(tr) > rules.Limit:
		return fmt.Sprintf("more than %d redirects", rules.Limit)
	}
	if err := guardTarget(to.Hostname(), k.mailDomain(address)); err != nil {
		return err.Error()
	}
	return ""
}

// restart starts discovery over with another address; the login stays the one of the first.
func (k *walk) restart(ctx context.Context, parent *Step, address string, tr trail) bool {
	step := k.begin(&parent.Children, KindRedirect, "start over with "+clip(address, 320))
	ok := false
	domain, err := splitAddress(address)
	switch {
	case !k.w.Profile.FollowAddress:
		step.Why = "the client does not follow address redirects"
	case err != nil:
		step.Why, step.weight = err.Error(), 3
	case slices.Contains(k.addresses, strings.ToLower(address)):
		step.Why, step.weight = "the redirects go round in a circle: discovery has already been started with this address", 3
	case len(k.addresses) > maxRestarts || len(tr) > k.w.Profile.Redirects.Limit:
		step.Why, step.weight = fmt.Sprintf("more than %d redirects", k.w.Profile.Redirects.Limit), 3
	default:
		k.addresses = append(k.addresses, strings.ToLower(address))
		ok = k.stages(ctx, &step.Children, address, domain, tr)
	}
	k.end(step, ok)
	return ok
}

// unauthorized explains a 401 that was the last answer.
func (k *walk) unauthorized(step *Step, u *url.URL, r *reply) {
	step.weight = 4
	step.Why = "401: " + r.note
	if r.attempted != "" {
		step.Why = "401: the credentials were refused with " + r.attempted
		if r.note != "" {
			step.Why += "; " + r.note
		}
	}
	if k.w.Profile.UnauthorizedFinal {
		step.Outcome = OutcomeFail
		k.stopped = true
		if r.attempted != "" {
			step.UserSees = "The user name or password is wrong."
		}
		return
	}
	// One 401 does not prove the password wrong [EXDOC]: the client keeps it and goes on.
	k.ask(step, fmt.Sprintf("Password for %s at %s?", k.credentials.User, u.Hostname()), false)
}

// ask records a question to the user and returns the answer it gets.
func (k *walk) ask(step *Step, question string, answer bool) bool {
	step.UserSees = question
	k.trace.Prompts = append(k.trace.Prompts, question)
	return answer
}

func (k *walk) begin(into *[]*Step, kind Kind, what string) *Step {
	step := &Step{Kind: kind, What: what, UserSees: silent, begun: time.Now()}
	*into = append(*into, step)
	k.progress(step)
	return step
}

func (k *walk) end(step *Step, ok bool) {
	step.Duration = time.Since(step.begun)
	if ok {
		step.Outcome = OutcomeOK
		if step.Why == "" {
			step.Why = "led to the settings"
		}
	} else if step.Outcome == "" {
		step.Outcome = OutcomeNext
		if step.Why == "" {
			step.Why = "what it led to did not work"
		}
		if len(step.Children) > 0 {
			step.weight = -1 // the child says it better
		}
	}
	if step.Outcome == OutcomeFail {
		step.weight = 5
	}
	if !ok && step.Outcome != OutcomeSkip && step.weight >= 0 {
		// The latest of the ordinary failures, the first of the telling ones.
		if k.telling == nil || step.weight > k.telling.weight || step.weight == 0 && k.telling.weight == 0 {
			k.telling = step
		}
	}
	k.progress(step)
}

func (k *walk) progress(step *Step) {
	if k.w.Progress != nil {
		shown := *step
		shown.Children = nil
		k.w.Progress(shown)
	}
}

// weightTLS rates a failed connection: a certificate that was refused tells more than silence.
func weightTLS(step *Step) int {
	if step.Certificate != nil && step.Certificate.Verdict != "ok" {
		return 2
	}
	return 0
}

// key identifies a candidate in a chain of redirects.
func key(u *url.URL, address string) string {
	return strings.ToLower(address + " " + u.Scheme + "://" + u.Host + u.EscapedPath())
}

// mailDomain is the domain of an address that has already been accepted.
func (k *walk) mailDomain(address string) string {
	domain, _ := splitAddress(address)
	return domain
}
