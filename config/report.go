package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Severity is how bad a Problem is. Only an Error keeps a file from being used.
type Severity int

// The severities.
const (
	Error Severity = iota
	Warning
)

// String is "error" or "warning".
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// Problem is one thing that is wrong with a file, and where.
type Problem struct {
	Severity Severity
	Rule     Rule
	Path     string // such as hosts.'mail.contoso.com'.site; empty for the file as a whole
	Line     int    // from 1; 0 for the file as a whole
	Column   int    // from 1, counted in characters
	Message  string // what is wrong
	Want     string // what would be right
}

// Report is everything that is wrong with one file, in the order of its lines.
type Report struct {
	Problems []Problem

	name   string
	lines  []string
	widths []int // of the lines, in characters
}

// What a report may measure: nobody reads more, and a file made to annoy could ask for much more.
const (
	maxProblems = 200
	maxMessage  = 400
)

// OK reports whether the file can be used: it has no errors, though perhaps warnings.
func (r Report) OK() bool { return len(r.Errors()) == 0 }

// Errors returns the problems that keep the file from being used.
func (r Report) Errors() []Problem { return r.of(Error) }

// Warnings returns the problems that do not keep the file from being used.
func (r Report) Warnings() []Problem { return r.of(Warning) }

func (r Report) of(s Severity) []Problem {
	var out []Problem
	for _, p := range r.Problems {
		if p.Severity == s {
			out = append(out, p)
		}
	}
	return out
}

// String renders every problem with its source line, a caret under the spot, and what would be right. It is empty
// when there is nothing to say.
func (r Report) String() string {
	var b strings.Builder
	for i, p := range r.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(r.Render(p))
	}
	return b.String()
}

// Render renders one problem of the report.
func (r Report) Render(p Problem) string {
	var b strings.Builder
	b.WriteString(r.name)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	fmt.Fprintf(&b, ": %s: ", p.Severity)
	if p.Path != "" {
		b.WriteString(printable(p.Path) + ": ")
	}
	b.WriteString(printable(p.Message) + "\n")
	if p.Line > 0 && p.Line <= len(r.lines) {
		source, caret := excerpt(r.lines[p.Line-1], p.Column)
		number := strconv.Itoa(p.Line)
		fmt.Fprintf(&b, "  %s | %s\n", number, source)
		fmt.Fprintf(&b, "  %s | %s\n", strings.Repeat(" ", len(number)), caret)
	}
	if p.Want != "" {
		fmt.Fprintf(&b, "  want: %s\n", printable(p.Want))
	}
	return b.String()
}

// excerpt cuts a line to what fits a terminal, and makes the line below it that points at the column.
func excerpt(line string, column int) (source, caret string) {
	const width, before = 110, 60
	at := max(column-1, 0)
	start := 0
	if at > before {
		start = at - before
	}
	var window []rune // of the line, from start; one more than is shown
	i := 0
	for _, c := range line {
		if i >= start && len(window) <= width {
			window = append(window, c)
		}
		i++
	}
	if i <= width { // all of it fits
		start, window = 0, []rune(line)
	}
	source = string(window[:min(len(window), width)])

	pad := slices.Repeat([]rune{' '}, at-start)
	for i := range pad {
		if i < len(window) && window[i] == '\t' { // keeps the caret under its spot, however wide tabs are
			pad[i] = '\t'
		}
	}
	caret = string(pad) + "^"
	if start > 0 {
		source, caret = "… "+source, "  "+caret
	}
	if len(window) > width {
		source += " …"
	}
	return printable(source), caret
}

// printable keeps what a file says from steering the terminal it is shown on.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

func (r *Report) add(p Problem) {
	p.Message, p.Path, p.Want = clip(maskPasswords(p.Message)), clip(p.Path), clip(maskPasswords(p.Want))
	r.Problems = append(r.Problems, p)
}

// setLines keeps the lines as a report shows them: reports end up in logs, and passwords do not.
func (r *Report) setLines(text string) {
	r.lines = strings.Split(maskPasswords(text), "\n")
	r.widths = make([]int, len(r.lines))
	for i, line := range r.lines {
		r.widths[i] = utf8.RuneCountInString(line)
	}
}

// clip shortens what a file says at great length.
func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "…"
}

var urlPassword = regexp.MustCompile(`://[^/@\s"']*:[^/@\s"']+@`)

// maskPasswords hides the password of every user:password@ in a URL, keeping its length so that columns stay true.
func maskPasswords(s string) string {
	return urlPassword.ReplaceAllStringFunc(s, func(u string) string {
		colon := strings.Index(u[3:], ":") + 4
		password := u[colon : len(u)-1]
		return u[:colon] + strings.Repeat("*", utf8.RuneCountInString(password)) + "@"
	})
}

// sort puts the problems in the order of the file. Rules that look at maps find theirs in no order.
func (r *Report) sort() {
	slices.SortFunc(r.Problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Severity, b.Severity),
			cmp.Compare(a.Path, b.Path), cmp.Compare(a.Rule, b.Rule), cmp.Compare(a.Message, b.Message))
	})
	r.Problems = slices.Compact(r.Problems)
	if more := len(r.Problems) - maxProblems; more > 0 {
		last := Error
		if !slices.ContainsFunc(r.Problems[maxProblems:], func(p Problem) bool { return p.Severity == Error }) {
			last = Warning
		}
		r.Problems = append(r.Problems[:maxProblems], Problem{
			Severity: last, Rule: RuleTooManyProblems, Message: fmt.Sprintf("there are %d more problems", more), Want: "these mended first",
		})
	}
}
