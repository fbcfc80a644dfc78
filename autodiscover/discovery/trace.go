package discovery

import (
	"fmt"
	"strings"
	"time"
)

// Outcome is how a step ended.
type Outcome string

const (
	OutcomeOK     Outcome = "ok"     // this step, or what it led to, gave usable settings
	OutcomeNext   Outcome = "next"   // it did not work, the client moved on
	OutcomePrompt Outcome = "prompt" // the user was asked and refused, the client moved on
	OutcomeFail   Outcome = "fail"   // discovery ended here
	OutcomeSkip   Outcome = "skip"   // not tried, Why says for what reason
)

// silent is what UserSees holds when the client shows nothing.
const silent = "silent"

// Field is one HTTP header line.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Exchange is one request and its answer. Credentials, challenges' tokens and cookies are replaced by "(removed)".
type Exchange struct {
	Request        string  `json:"request"` // method and URL
	RequestHeader  []Field `json:"request_header,omitempty"`
	Status         int     `json:"status,omitempty"` // 0: no answer
	ResponseHeader []Field `json:"response_header,omitempty"`
	Login          string  `json:"login,omitempty"` // scheme of the credentials sent, empty for none
}

// Certificate is what a server presented, and how it stands against the name that was asked for.
type Certificate struct {
	Subject   string    `json:"subject"`
	Names     []string  `json:"names"` // DNS names and IP addresses it is valid for
	Issuer    string    `json:"issuer"`
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// Verdict is "ok" or the faults, comma-separated: unknown_issuer, name_mismatch, expired.
	Verdict string `json:"verdict"`
}

// URL is a named URL of a protocol, such as EwsUrl, External/OWAUrl or MailStore/ExternalUrl.
type URL struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// Protocol is one way to reach the mailbox, as the answer describes it.
type Protocol struct {
	Type   string `json:"type"`
	Server string `json:"server,omitempty"`
	URLs   []URL  `json:"urls,omitempty"`
}

// Settings summarises an answer that a client can configure itself with.
type Settings struct {
	Address   string     `json:"address,omitempty"` // the address the answer says to use from now on
	Protocols []Protocol `json:"protocols"`
}

// Answer summarises a POX document.
type Answer struct {
	Action     string    `json:"action"` // settings, redirectAddr, redirectUrl or error
	RedirectTo string    `json:"redirect_to,omitempty"`
	ErrorCode  int       `json:"error_code,omitempty"` // ErrorCode of the framework; 0 for an Error inside a MobileSync Action
	Message    string    `json:"message,omitempty"`
	Settings   *Settings `json:"settings,omitempty"`
}

// Step is one thing the client did.
type Step struct {
	Stage       string        `json:"stage,omitempty"` // name of the profile's stage, such as "root domain"
	Kind        Kind          `json:"kind"`
	What        string        `json:"what"` // one line for people
	URL         string        `json:"url,omitempty"`
	Source      string        `json:"source,omitempty"`      // where the reference documents this stage
	DNS         []string      `json:"dns,omitempty"`         // answers, as "name TYPE value"
	Remote      string        `json:"remote,omitempty"`      // address and port connected to
	TLSVersion  string        `json:"tls_version,omitempty"` // as negotiated
	TLSAlert    string        `json:"tls_alert,omitempty"`   // alert received, in the words of RFC 8446, such as unrecognized_name
	Certificate *Certificate  `json:"certificate,omitempty"` // leaf certificate presented
	Exchanges   []Exchange    `json:"exchanges,omitempty"`   // in the order sent
	Answer      *Answer       `json:"answer,omitempty"`      // POX document received
	Outcome     Outcome       `json:"outcome"`               // empty while the step runs
	Why         string        `json:"why,omitempty"`         // why it ended so
	UserSees    string        `json:"user_sees,omitempty"`   // text of the prompt, or "silent"
	Duration    time.Duration `json:"duration_ns,omitempty"` // including the children
	Children    []*Step       `json:"children,omitempty"`    // what the step led to

	weight int // how telling the step is when discovery fails
	begun  time.Time
}

// Trace is the whole walk of one client for one address.
type Trace struct {
	Client    string   `json:"client"`
	Address   string   `json:"address"`
	Connected bool     `json:"connected"`
	Verdict   string   `json:"verdict"` // silent, prompt (connected, the user was asked) or fails
	Prompts   []string `json:"prompts"` // everything the user was asked, in order
	FoundAt   string   `json:"found_at,omitempty"`
	// FailedAt names the step that tells most about a failure: where discovery ended, else where a login or an answer was refused, else the last one tried.
	FailedAt string    `json:"failed_at,omitempty"`
	Why      string    `json:"why,omitempty"`
	Settings *Settings `json:"settings,omitempty"`
	// ExpectedLine is the result in one line without times, ports or addresses of servers, for comparison with what a scenario expects.
	ExpectedLine string        `json:"expected_line"`
	Duration     time.Duration `json:"duration_ns,omitempty"`
	Steps        []*Step       `json:"steps"`
}

// conclude fills the fields that follow from the others.
func (t *Trace) conclude() {
	if t.Prompts == nil {
		t.Prompts = []string{}
	}
	if t.Steps == nil {
		t.Steps = []*Step{}
	}
	switch {
	case !t.Connected:
		t.Verdict = "fails"
		t.ExpectedLine = "fails"
		if t.FailedAt != "" {
			t.ExpectedLine += " at " + t.FailedAt
		}
		if t.Why != "" {
			t.ExpectedLine += ": " + t.Why
		}
		return
	case len(t.Prompts) > 0:
		t.Verdict = "prompt"
		t.ExpectedLine = "prompt, 1 question"
		if len(t.Prompts) > 1 {
			t.ExpectedLine = fmt.Sprintf("prompt, %d questions", len(t.Prompts))
		}
	default:
		t.Verdict = silent
		t.ExpectedLine = silent
	}
	t.ExpectedLine += ", settings from " + t.FoundAt
	if t.Settings != nil {
		t.ExpectedLine += " (" + strings.Join(t.Settings.types(), " ") + ")"
	}
}

// types lists the protocol types in the order of the document, each once.
func (s *Settings) types() []string {
	var types []string
	seen := map[string]bool{}
	for _, p := range s.Protocols {
		if !seen[p.Type] {
			seen[p.Type] = true
			types = append(types, p.Type)
		}
	}
	return types
}
