package discovery

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"time"
)

// Kind says what a stage or a step does.
type Kind string

const (
	KindSCP      Kind = "scp"      // asks the directory for service connection points; only skipped so far
	KindPost     Kind = "post"     // POST of the POX request over HTTPS
	KindGet      Kind = "get"      // anonymous request over plain HTTP that hopes for a redirect
	KindJSON     Kind = "json"     // anonymous Autodiscover V2 request; a URL in the answer is posted to
	KindSRV      Kind = "srv"      // DNS SRV record; its target is posted to
	KindRedirect Kind = "redirect" // a redirect being judged (steps only)
	KindSkip     Kind = "skip"     // something the real client would look at and we do not
)

// Schema is the answer a client asks for: [DSCLI] for Outlook, [ASCMD] for ActiveSync.
type Schema string

const (
	SchemaOutlook    Schema = "outlook"
	SchemaMobileSync Schema = "mobilesync"
)

// Consent says when a client asks its user before it uses a target that a stage has found.
type Consent string

const (
	ConsentNever     Consent = ""           // follows in silence
	ConsentAlways    Consent = "always"     // asks every time
	ConsentOtherHost Consent = "other-host" // asks unless the target is the mail domain itself
)

// Reaction is what a client does about one kind of certificate fault.
type Reaction string

const (
	Silent Reaction = "silent" // goes on without a word
	Prompt Reaction = "prompt" // asks the user
	Fail   Reaction = "fail"   // gives the candidate up
)

// Login is when a client shows its credentials.
type Login string

const (
	LoginChallenged Login = "challenged" // first request bare, then as the 401 asks
	LoginPreemptive Login = "preemptive" // Basic with the first request
)

// Stage is one candidate in a client's order.
type Stage struct {
	Kind   Kind
	Name   string // as an administrator would say it
	Method string // HTTP method, empty where no request is made
	// URL is the candidate; {domain} stands for the mail domain, {email} for the escaped address.
	// For KindSRV it is the owner name of the record instead.
	URL     string
	Consent Consent // before a target found here is used
	Skip    string  // when set, the stage is recorded with this reason and nothing is done
	Source  string  // where the reference documents it
}

// Redirects are the rules by which a client obeys an HTTP redirect.
type Redirects struct {
	Codes    []int  // status codes obeyed
	Relative bool   // a relative Location is resolved; otherwise it is ignored
	Path     string // regular expression the target's path must match; empty accepts any
	Limit    int    // hops after which a chain is given up; address redirects count as hops
}

// Strictness is how a client takes a certificate that does not verify.
type Strictness struct {
	UnknownIssuer Reaction
	NameMismatch  Reaction
	Expired       Reaction
	CommonName    bool // the common name counts when the certificate has no alternative names
}

// Profile is one client, as data. Adding a client is adding a value to the table in this file.
type Profile struct {
	Name  string // as given to --client
	Title string
	// Source names the documents the order comes from, with the tags of the reference.
	Source string
	Stages []Stage

	Schema           Schema
	StrictNamespaces bool     // answers in a wrong XML namespace are unusable
	Needs            []string // protocol types of which one must be in the answer
	FollowAddress    bool     // RedirectAddr (Redirect in MobileSync) starts discovery over

	UserAgent string
	Header    []Field // sent with every POX request

	Login             Login
	Schemes           []string // authentication schemes, best first: NTLM, Negotiate, Basic
	UnauthorizedFinal bool     // a 401 with credentials ends discovery

	Redirects   Redirects
	Certificate Strictness
	StepTimeout time.Duration // for one candidate: connect, TLS and all requests
}

const (
	rootURL     = "https://{domain}/autodiscover/autodiscover.xml"
	adURL       = "https://autodiscover.{domain}/autodiscover/autodiscover.xml"
	redirectURL = "http://autodiscover.{domain}/autodiscover/autodiscover.xml"
	srvName     = "_autodiscover._tcp.{domain}"
)

// Outlook warns about every fault of a certificate and lets the user go on ([SUP] KB2783881); Schannel still
// reads the common name of a certificate without alternative names.
var outlookCertificate = Strictness{UnknownIssuer: Prompt, NameMismatch: Prompt, Expired: Prompt, CommonName: true}

// Outlook obeys 301 and 302, https only; ten hops are what [DSCLI] documents for RedirectUrl.
var outlookRedirects = Redirects{Codes: []int{http.StatusMovedPermanently, http.StatusFound}, Limit: 10}

var profiles = []Profile{
	{
		// Order: rmilne blog 2019-12 (SCP if domain-joined, else root domain, autodiscover.<domain>, HTTP
		// redirect, SRV, local XML). SRV came with the update of June 2007. Prompts: [SUP] KB2480582, [GX] for SRV.
		Name:   "outlook-2007",
		Title:  "Outlook 2007 on the Internet, not joined to a domain",
		Source: "rmilne blog 2019-12; [DISCO] 3.1.5; [SUP] KB2480582; [GX]",
		Stages: []Stage{
			{Kind: KindSCP, Name: "SCP lookup", Skip: "the computer is not joined to a domain, there is no directory to ask", Source: "[DISCO] 3.1.5.1"},
			{Kind: KindPost, Name: "root domain", Method: http.MethodPost, URL: rootURL, Source: "[DISCO] 3.1.5.2"},
			{Kind: KindPost, Name: "autodiscover name", Method: http.MethodPost, URL: adURL, Source: "[DISCO] 3.1.5.2"},
			{Kind: KindGet, Name: "HTTP redirect", Method: http.MethodGet, URL: redirectURL, Consent: ConsentAlways, Source: "[DISCO] 3.1.5.4"},
			{Kind: KindSRV, Name: "SRV record", URL: srvName, Consent: ConsentOtherHost, Source: "[DISCO] 3.1.5.3; [GX]"},
			{Kind: KindSkip, Name: "local XML file", Skip: "a file named by the registry of the user's computer; there is none here", Source: "rmilne blog 2019-12"},
		},
		Schema: SchemaOutlook, StrictNamespaces: true, FollowAddress: true,
		// From outside only Outlook Anywhere reaches the mailbox: EXCH is RPC over TCP. mapiHttp is unknown to it.
		Needs:       []string{"EXPR", "POP3", "IMAP"},
		UserAgent:   "Microsoft Office/12.0 (Windows NT 6.0; Microsoft Office Outlook 12.0.6607; Pro)",
		Login:       LoginChallenged,
		Schemes:     []string{"NTLM", "Negotiate", "Basic"},
		Redirects:   outlookRedirects,
		Certificate: outlookCertificate,
		StepTimeout: 25 * time.Second, // a dropped packet costs 20 to 30 s per attempt
	},
	{
		// Order: [KB] 3211279, confirmed by [GX]. The V2 request is the account wizard's, which asks before anything
		// else finds a server ([ISS mailcow#2653], [ISS mox#200]): hence before the root domain, where Outlook also places its
		// V2 question to Microsoft 365. Nothing outside the target organisation is contacted here.
		Name:   "outlook-2016",
		Title:  "Outlook 2016, 2019, LTSC and 365, not joined to a domain",
		Source: "[KB] 3211279; [GX]; [ISS mailcow#2653]; [SUP] KB2480582",
		Stages: []Stage{
			{Kind: KindSkip, Name: "restart data", Skip: "left by an earlier run on the user's computer; every walk is a first run", Source: "[KB] step 1"},
			{Kind: KindSkip, Name: "local XML file preferred", Skip: "only where the registry sets PreferLocalXML", Source: "[KB] step 2"},
			{Kind: KindSkip, Name: "last known good URL", Skip: "left by an earlier run on the user's computer; every walk is a first run", Source: "[KB] step 3"},
			{Kind: KindSkip, Name: "Microsoft 365 check", Skip: "asks Exchange Online about the mailbox; nothing outside is contacted here (ExcludeExplicitO365Endpoint=1)", Source: "[KB] step 4; rmilne blog 2022-01"},
			{Kind: KindSCP, Name: "SCP lookup", Skip: "the computer is not joined to a domain, there is no directory to ask", Source: "[KB] step 5; [DISCO] 3.1.5.1"},
			{Kind: KindJSON, Name: "V2 request of the account wizard", Method: http.MethodGet, URL: "https://autodiscover.{domain}/autodiscover/autodiscover.json?Email={email}&Protocol=Autodiscoverv1&RedirectCount=1", Source: "[ISS mailcow#2653]"},
			{Kind: KindPost, Name: "root domain", Method: http.MethodPost, URL: rootURL, Source: "[KB] step 6; [DISCO] 3.1.5.2"},
			{Kind: KindPost, Name: "autodiscover name", Method: http.MethodPost, URL: adURL, Source: "[KB] step 7; [DISCO] 3.1.5.2"},
			{Kind: KindSkip, Name: "local XML file", Skip: "a file named by the registry of the user's computer; there is none here", Source: "[KB] step 8"},
			{Kind: KindGet, Name: "HTTP redirect", Method: http.MethodGet, URL: redirectURL, Consent: ConsentAlways, Source: "[KB] step 9; [DISCO] 3.1.5.4"},
			{Kind: KindSRV, Name: "SRV record", URL: srvName, Consent: ConsentOtherHost, Source: "[KB] step 10; [GX]"},
			{Kind: KindSkip, Name: "Microsoft 365 as fail-safe", Skip: "asks Exchange Online again; nothing outside is contacted here", Source: "[KB] step 11"},
		},
		Schema: SchemaOutlook, StrictNamespaces: true, FollowAddress: true,
		// The wizard takes Exchange answers only ([ISS Mailu#2276]).
		Needs:     []string{"mapiHttp", "EXHTTP", "EXPR", "EXCH"},
		UserAgent: "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17726; Pro)",
		Header: []Field{
			{Name: "X-MapiHttpCapability", Value: "1"},                  // [DSCLI] 3.2.5.1
			{Name: "X-ClientCanHandle", Value: "Negotiate, ExHttpInfo"}, // [EXDOC]
		},
		Login:       LoginChallenged,
		Schemes:     []string{"NTLM", "Negotiate", "Basic"},
		Redirects:   outlookRedirects,
		Certificate: outlookCertificate,
		StepTimeout: 25 * time.Second,
	},
	{
		// Order: AOSP EasAutoDiscover [AND], three attempts and no SRV, which is also steps 1 to 3 of Microsoft's guidance
		// for EAS clients. Redirects and the limit of ten from that guidance ([ASCMD], followed literally by [XL]); AOSP alone
		// would ignore Redirect in an answer. Certificates: devices connect with valid ones or not at all.
		Name:   "activesync",
		Title:  "ActiveSync device (AOSP mail, Microsoft's EAS guidance)",
		Source: "[AND] EasAutoDiscover; [ASCMD]; [ASHTTP] 3.1.5.2.2",
		Stages: []Stage{
			{Kind: KindPost, Name: "root domain", Method: http.MethodPost, URL: rootURL, Source: "[AND] attempt 1"},
			{Kind: KindPost, Name: "autodiscover name", Method: http.MethodPost, URL: adURL, Source: "[AND] attempt 2"},
			{Kind: KindGet, Name: "HTTP redirect", Method: http.MethodGet, URL: redirectURL, Source: "[AND] attempt 3"},
		},
		Schema: SchemaMobileSync, FollowAddress: true,
		Needs:             []string{"MobileSync"},
		UserAgent:         "Android/0.3",
		Header:            []Field{{Name: "MS-ASProtocolVersion", Value: "2.5"}},
		Login:             LoginPreemptive,
		Schemes:           []string{"Basic"},
		UnauthorizedFinal: true,
		// 3xx by the device's HTTP stack, 451 by [ASHTTP] with the target in X-MS-Location.
		Redirects:   Redirects{Codes: []int{301, 302, 303, 307, http.StatusUnavailableForLegalReasons}, Limit: 10},
		Certificate: Strictness{UnknownIssuer: Fail, NameMismatch: Fail, Expired: Fail},
		StepTimeout: 30 * time.Second,
	},
}

// Profiles returns the clients that can be simulated, oldest first. The caller must not change the slices in them.
func Profiles() []Profile {
	return append([]Profile(nil), profiles...)
}

// Find returns the profile of that name, and whether there is one.
func Find(name string) (Profile, bool) {
	for _, p := range profiles {
		if p.Name == name {
			return p, true
		}
	}
	return Profile{}, false
}

// check refuses a profile that the walk could not carry out as written.
func (p *Profile) check() error {
	if p.Schema != SchemaOutlook && p.Schema != SchemaMobileSync {
		return fmt.Errorf("profile %s: unknown schema %q", p.Name, p.Schema)
	}
	if len(p.Needs) == 0 {
		return fmt.Errorf("profile %s: needs nothing in the answer", p.Name)
	}
	if p.Login != LoginChallenged && p.Login != LoginPreemptive {
		return fmt.Errorf("profile %s: unknown login %q", p.Name, p.Login)
	}
	if p.Redirects.Limit <= 0 || p.StepTimeout <= 0 {
		return fmt.Errorf("profile %s: redirect limit and step timeout must be positive", p.Name)
	}
	for _, r := range []Reaction{p.Certificate.UnknownIssuer, p.Certificate.NameMismatch, p.Certificate.Expired} {
		if r != Silent && r != Prompt && r != Fail {
			return fmt.Errorf("profile %s: unknown reaction %q to a certificate", p.Name, r)
		}
	}
	if _, err := regexp.Compile(p.Redirects.Path); err != nil {
		return fmt.Errorf("profile %s: %w", p.Name, err)
	}
	var errs []error
	for _, st := range p.Stages {
		if err := st.check(); err != nil {
			errs = append(errs, fmt.Errorf("profile %s, stage %q: %w", p.Name, st.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (st *Stage) check() error {
	if st.Name == "" {
		return errors.New("has no name")
	}
	if st.Skip != "" {
		return nil
	}
	switch st.Kind {
	case KindPost:
		if st.Method != http.MethodPost || st.URL == "" {
			return errors.New("wants POST and a URL")
		}
	case KindGet, KindJSON:
		if st.Method == "" || st.URL == "" {
			return errors.New("wants a method and a URL")
		}
	case KindSRV:
		if st.URL == "" {
			return errors.New("wants a record name")
		}
	default:
		return fmt.Errorf("%s can only be skipped", st.Kind)
	}
	return nil
}
