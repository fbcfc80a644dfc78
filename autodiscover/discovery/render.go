package discovery

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Render says how a trace is written. The zero value is plain text, 100 columns wide, with durations.
type Render struct {
	// Stable leaves out whatever changes from run to run against the same world: durations, addresses connected to,
	// validity times of certificates, and answer headers that no client acts upon.
	Stable  bool
	Color   bool // ANSI colours in text
	Headers bool // header lines in text; JSON always has them
	Width   int  // columns of text, 0 means 100
}

// stableHeaders are the answer headers that clients act upon; others carry dates and identifiers.
var stableHeaders = []string{"Cache-Control", "Content-Type", "Location", "WWW-Authenticate", "X-Ms-Location", "X-Oauth-Enabled", "X-Soap-Enabled", "X-Wssecurity-Enabled", "X-Wssecurity-For"}

// WriteJSON writes the trace as one indented JSON document; field names are those of the struct tags.
func (t *Trace) WriteJSON(w io.Writer, o Render) error {
	if o.Stable {
		t = t.stable()
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(t)
}

// stable is a copy without what changes from run to run.
func (t *Trace) stable() *Trace {
	c := *t
	c.Duration = 0
	c.Steps = stableSteps(t.Steps)
	return &c
}

func stableSteps(steps []*Step) []*Step {
	out := make([]*Step, 0, len(steps))
	for _, s := range steps {
		c := *s
		c.Duration, c.Remote = 0, ""
		c.DNS = slices.Sorted(slices.Values(s.DNS))
		if s.Certificate != nil {
			cert := *s.Certificate
			cert.NotBefore, cert.NotAfter = time.Time{}, time.Time{}
			c.Certificate = &cert
		}
		c.Exchanges = slices.Clone(s.Exchanges)
		for i := range c.Exchanges {
			e := &c.Exchanges[i]
			e.ResponseHeader = slices.DeleteFunc(slices.Clone(e.ResponseHeader), func(f Field) bool { return !slices.Contains(stableHeaders, f.Name) })
		}
		c.Children = nil
		if len(s.Children) > 0 {
			c.Children = stableSteps(s.Children)
		}
		out = append(out, &c)
	}
	return out
}

// WriteText writes the trace as a tree for people.
func (t *Trace) WriteText(w io.Writer, o Render) error {
	if o.Stable {
		t = t.stable()
	}
	b := bufio.NewWriter(w)
	p := &printer{w: b, o: o, width: cmp.Or(o.Width, 100)}
	fmt.Fprintf(b, "%s looks for the server of %s\n", t.Client, t.Address)
	p.steps(t.Steps, "")
	p.result(t)
	return b.Flush()
}

type printer struct {
	w     *bufio.Writer
	o     Render
	width int
}

// ANSI colours of the outcomes.
var colors = map[Outcome]string{OutcomeOK: "32", OutcomeNext: "2", OutcomePrompt: "33", OutcomeFail: "31", OutcomeSkip: "2"}

func (p *printer) paint(s string, o Outcome) string {
	if !p.o.Color || colors[o] == "" {
		return s
	}
	return "\x1b[" + colors[o] + "m" + s + "\x1b[0m"
}

func (p *printer) steps(steps []*Step, indent string) {
	for i, s := range steps {
		branch, below := "├─ ", "│  "
		if i == len(steps)-1 {
			branch, below = "└─ ", "   "
		}
		p.step(s, indent+branch, indent+below)
	}
}

// step writes the line of a step, what is known about it, and what it led to.
func (p *printer) step(s *Step, first, rest string) {
	head := fmt.Sprintf("%-6s  ", s.Outcome)
	tail := ""
	if s.Outcome != OutcomeSkip && !p.o.Stable {
		tail = "  " + s.Duration.Round(time.Millisecond).String()
	}
	inner := rest + "   "
	if len(s.Children) > 0 {
		inner = rest + "│  "
	}
	lines := wrap(s.What, p.width-width(first)-width(head)-width(tail))
	for i, l := range lines {
		if i == 0 {
			pad := ""
			if tail != "" {
				pad = strings.Repeat(" ", max(0, p.width-width(first)-width(head)-width(l)-width(tail)))
			}
			fmt.Fprintf(p.w, "%s%s%s%s%s\n", first, p.paint(head, s.Outcome), l, pad, tail)
			continue
		}
		fmt.Fprintf(p.w, "%s%s%s\n", inner, strings.Repeat(" ", width(head)-3), l)
	}
	for _, r := range s.DNS {
		p.detail(inner, "dns", r)
	}
	if c := s.Certificate; c != nil {
		names := strings.Join(c.Names, ", ")
		p.detail(inner, "cert", fmt.Sprintf("%s: %s, for %s, issued by %s", c.Verdict, cmp.Or(c.Subject, "no subject"), cmp.Or(names, "no name"), cmp.Or(c.Issuer, "nobody")))
	}
	for _, e := range s.Exchanges {
		login := ""
		if e.Login != "" {
			login = " with " + e.Login
		}
		method, _, _ := strings.Cut(e.Request, " ")
		if s.Kind == KindRedirect || !strings.HasSuffix(s.What, s.URL) {
			method = e.Request
		}
		status := "no answer"
		if e.Status != 0 {
			status = fmt.Sprint(e.Status)
		}
		p.detail(inner, "http", fmt.Sprintf("%s%s → %s%s", method, login, status, answerNote(&e)))
		if p.o.Headers {
			for _, f := range e.RequestHeader {
				p.detail(inner, "  >", f.Name+": "+f.Value)
			}
			for _, f := range e.ResponseHeader {
				p.detail(inner, "  <", f.Name+": "+f.Value)
			}
		}
	}
	if a := s.Answer; a != nil && a.Settings != nil {
		p.detail(inner, "has", strings.Join(a.Settings.types(), ", "))
	}
	if s.Why != "" {
		p.detail(inner, "why", s.Why)
	}
	if s.UserSees != "" && s.UserSees != silent {
		p.detailIn(inner, "user", s.UserSees, OutcomePrompt)
	}
	p.steps(s.Children, rest)
}

// answerNote is the header of an answer that explains its status.
func answerNote(e *Exchange) string {
	var schemes []string
	for _, f := range e.ResponseHeader {
		switch {
		case e.Status == 401 && f.Name == "WWW-Authenticate":
			scheme, _, _ := strings.Cut(f.Value, " ")
			schemes = append(schemes, scheme)
		case e.Status >= 300 && e.Status < 400 && f.Name == "Location", e.Status == 451 && f.Name == "X-Ms-Location":
			return " to " + clip(f.Value, 300)
		}
	}
	if schemes != nil {
		return " (" + strings.Join(schemes, ", ") + ")"
	}
	return ""
}

func (p *printer) detail(indent, label, value string) { p.detailIn(indent, label, value, "") }

// detailIn writes one labelled remark, wrapped under itself, in the colour of an outcome.
func (p *printer) detailIn(indent, label, value string, o Outcome) {
	head := fmt.Sprintf("%-5s ", label)
	for i, l := range wrap(value, p.width-width(indent)-width(head)) {
		if i > 0 {
			head = strings.Repeat(" ", width(head))
		}
		fmt.Fprintf(p.w, "%s%s%s\n", indent, head, p.paint(l, o))
	}
}

func (p *printer) result(t *Trace) {
	outcome := map[string]Outcome{"fails": OutcomeFail, "prompt": OutcomePrompt, silent: OutcomeOK}[t.Verdict]
	indent := "  "
	for i, l := range wrap(t.ExpectedLine, p.width-len("result  ")) {
		label := "result  "
		if i > 0 {
			label = "        "
		}
		fmt.Fprintf(p.w, "%s%s\n", label, p.paint(l, outcome))
	}
	if t.Settings == nil {
		return
	}
	for _, proto := range t.Settings.Protocols {
		fmt.Fprintf(p.w, "%s%s\n", indent, clean(strings.TrimSpace(proto.Type+"  "+proto.Server)))
		longest := 0
		for _, u := range proto.URLs {
			longest = max(longest, width(u.Name))
		}
		for _, u := range proto.URLs {
			fmt.Fprintf(p.w, "%s  %-*s  %s\n", indent, longest, clean(u.Name), clean(u.URL))
		}
	}
}

// width counts what a terminal shows of s: one column a rune.
func width(s string) int { return utf8.RuneCountInString(s) }

// clean takes control characters out of what a stranger sent, so that it cannot steer the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != ' ' {
			return '?'
		}
		return r
	}, s)
}

// breakable yields the words of s; one that fills more than a line comes in pieces, cut behind a "?", "&" or "/" where it has one.
func breakable(s string, n int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for word := range strings.FieldsSeq(s) {
			runes := []rune(word)
			for len(runes) > n {
				cut := n
				for i := n; i > n/2; i-- {
					if strings.ContainsRune("?&/", runes[i-1]) {
						cut = i
						break
					}
				}
				if !yield(string(runes[:cut])) {
					return
				}
				runes = runes[cut:]
			}
			if !yield(string(runes)) {
				return
			}
		}
	}
}

// wrap breaks text into lines of at most n columns.
func wrap(s string, n int) []string {
	n = max(n, 20)
	var lines []string
	line := ""
	for word := range breakable(clean(s), n) {
		switch {
		case line == "":
			line = word
		case width(line)+1+width(word) <= n:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}
