package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// What a file may measure. The YAML parser takes time by the square of the keys of one map, of the brackets that are
// open, and of the blank lines in a block of text, so all of these have an end before that is felt. Within these
// bounds the worst file takes about a second.
const (
	maxBytes  = 1 << 20
	maxLines  = 20_000
	maxTokens = 60_000 // about three to a key
	maxDepth  = 32     // brackets inside brackets, dashes after dashes
)

const tablesElsewhere = "a smaller file: long lists of domains go into redirects.file, long lists of mailboxes into mailboxes.file"

// read turns the bytes of a file into the syntax tree of its one document. It returns nil after a fault that leaves
// nothing to judge; the fault is then in the report.
func read(src []byte, r *Report) ast.Node {
	if len(src) > maxBytes {
		r.add(Problem{
			Rule: RuleFileTooLarge, Message: fmt.Sprintf("the file is larger than %d KiB", maxBytes>>10),
			Want: tablesElsewhere,
		})
		return nil
	}
	src = bytes.TrimPrefix(src, []byte("\ufeff")) // Windows editors write it
	if !checkText(src, r) {
		return nil
	}
	text := strings.ReplaceAll(string(src), "\r\n", "\n")
	r.setLines(text)
	if len(r.lines) > maxLines {
		r.add(Problem{Rule: RuleFileTooLong, Message: fmt.Sprintf("the file has more than %d lines", maxLines), Want: tablesElsewhere})
		return nil
	}
	return parse(text, r)
}

// checkText looks for bytes that no text file holds. YAML would take some of them, and show them to nobody.
func checkText(src []byte, r *Report) bool {
	if len(src) >= 2 && (src[0] == 0xff && src[1] == 0xfe || src[0] == 0xfe && src[1] == 0xff) {
		r.add(Problem{Rule: RuleFileEncoding, Message: "the file is in UTF-16", Want: "the file saved as UTF-8"})
		return false
	}
	line, column := 1, 1
	for i := 0; i < len(src); {
		c, size := utf8.DecodeRune(src[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			r.setLines(strings.ToValidUTF8(string(src), "\ufffd"))
			r.add(Problem{
				Rule: RuleFileEncoding, Line: line, Column: column,
				Message: fmt.Sprintf("byte 0x%02x is not UTF-8", src[i]), Want: "the file saved as UTF-8",
			})
			return false
		case c == '\n':
			line, column = line+1, 0
		case c == '\r' && i+1 < len(src) && src[i+1] == '\n', c == '\t':
		case c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u2028' || c == '\u2029' || c == '\ufeff':
			r.setLines(string(src))
			r.add(Problem{
				Rule: RuleControlCharacter, Line: line, Column: column,
				Message: fmt.Sprintf("the character %U cannot be seen and does not belong here", c), Want: "the line without it",
			})
			return false
		}
		i += size
		column++
	}
	return true
}

func parse(src string, r *Report) (body ast.Node) {
	defer func() {
		// The parser has a history of panics on odd input. None is known now; a broken file must not end a running
		// front door that was told to reload it.
		if p := recover(); p != nil {
			body = nil
			r.add(Problem{
				Rule: RuleYAMLSyntax, Message: fmt.Sprintf("the YAML parser gave up on this file (%v)", p),
				Want: "plain YAML: keys, lists and values",
			})
		}
	}()

	tokens := joinPorts(lexer.Tokenize(src))
	if len(tokens) > maxTokens {
		r.add(Problem{Rule: RuleFileTooLong, Message: "the file has too many values", Want: tablesElsewhere})
		return nil
	}
	before := len(r.Problems)
	checkTokens(tokens, r)
	if len(r.Problems) > before {
		return nil
	}
	// Duplicate keys are ours to report, together with everything else.
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		r.add(syntaxProblem(err, r))
		return nil
	}
	if len(file.Docs) > 0 && file.Docs[0].Body != nil {
		if _, null := file.Docs[0].Body.(*ast.NullNode); !null {
			return file.Docs[0].Body
		}
	}
	r.add(Problem{
		Rule: RuleFileEmpty, Message: "the file is empty",
		Want: "at least `hosts`; `autodgate config example` prints a commented example",
	})
	return nil
}

// joinPorts makes one word of `host:port` in a list in brackets. In YAML a colon with nothing blank behind it belongs to
// the word it stands in (YAML 1.2.2 section 7.3.3); the lexer sees that everywhere but inside `{…: […]}`, where it makes a
// key of the host.
func joinPorts(tokens token.Tokens) token.Tokens {
	plain := func(t *token.Token) bool {
		switch t.Type {
		case token.StringType, token.IntegerType, token.FloatType:
			return true
		}
		return false
	}
	joined := tokens[:0:0]
	var open []token.Type
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			open = append(open, t.Type)
		case token.SequenceEndType, token.MappingEndType:
			open = open[:max(len(open)-1, 0)]
		}
		joined = append(joined, t)
		for plain(t) && len(open) > 0 && open[len(open)-1] == token.SequenceStartType && i+2 < len(tokens) {
			colon, rest := tokens[i+1], tokens[i+2]
			if colon.Type != token.MappingValueType || !plain(rest) || colon.Position.Offset != t.Position.Offset+len(t.Value) ||
				rest.Position.Offset != colon.Position.Offset+1 || rest.Position.Line != t.Position.Line {
				break
			}
			t.Type = token.StringType
			t.Value += ":" + rest.Value
			t.Origin += colon.Origin + rest.Origin
			if t.Next = rest.Next; t.Next != nil {
				t.Next.Prev = t
			}
			i += 2
		}
	}
	return joined
}

// checkTokens refuses what is YAML and has no place in this file, and what would bury the parser.
func checkTokens(tokens token.Tokens, r *Report) {
	refuse := func(t *token.Token, rule Rule, message, want string) {
		line, column := r.at(t)
		r.add(Problem{Rule: rule, Line: line, Column: column, Message: message, Want: want})
	}
	open, dashes, dashLine, anchorLine := 0, 0, 0, 0
	anchor := func(t *token.Token) {
		if t.Position.Line != anchorLine { // `<<: *name` is one thing to a reader
			refuse(t, RuleYAMLAnchor, "YAML anchors, aliases and merge keys are not used in this file",
				"the values written out where they hold; or quotes around a value that begins with * or &")
		}
		anchorLine = t.Position.Line
	}
	for i, t := range tokens {
		if len(r.Problems) > maxProblems {
			return
		}
		switch t.Type {
		case token.AnchorType, token.MergeKeyType:
			anchor(t)
		case token.AliasType:
			if t.Next != nil && strings.HasPrefix(t.Next.Value, ".") {
				refuse(t, RuleHostWildcard, "a name that begins with * is a YAML alias, and host names with a wildcard are not accepted",
					"each host name written out")
				continue
			}
			anchor(t)
		case token.TagType:
			refuse(t, RuleYAMLTag, fmt.Sprintf("YAML tags such as %s are not used in this file", t.Value), "the value alone, or quotes around it")
		case token.DirectiveType:
			refuse(t, RuleYAMLDocuments, "YAML directives are not used in this file", "the file without this line")
			return // the --- after it belongs to it
		case token.DocumentHeaderType, token.DocumentEndType:
			if i > 0 && !(t.Type == token.DocumentEndType && t.Next == nil) {
				refuse(t, RuleYAMLDocuments, "the file holds more than one YAML document", "one document: everything under one set of keys")
			}
		case token.MappingKeyType:
			refuse(t, RuleYAMLComplexKey, "keys written with ? are not used in this file", "key: value")
		case token.SequenceStartType, token.MappingStartType:
			open++
		case token.SequenceEndType, token.MappingEndType:
			open--
		case token.SequenceEntryType:
			if t.Position.Line != dashLine {
				dashes, dashLine = 0, t.Position.Line
			}
			dashes++
		}
		if open > maxDepth || dashes > maxDepth {
			refuse(t, RuleFileTooDeep, fmt.Sprintf("values stand inside more than %d others", maxDepth), "lists and keys as the example shows them")
			return
		}
	}
}

// syntaxProblem translates the parser's error. Where its words do not lead to the cause, ours do.
func syntaxProblem(err error, r *Report) Problem {
	p := Problem{Rule: RuleYAMLSyntax, Message: "this is not YAML: " + firstLine(err.Error()), Want: "the quotes, brackets and colons of YAML in balance"}
	var syntax *yaml.SyntaxError
	if !errors.As(err, &syntax) || syntax.Token == nil {
		return p
	}
	p.Line, p.Column = r.at(syntax.Token)
	p.Message = "this is not YAML: " + syntax.Message
	line := r.lines[p.Line-1]
	indent := line[:len(line)-len(strings.TrimLeft(line, " \t"))]
	switch {
	case strings.Contains(indent, "\t"):
		p.Message, p.Want = "the line is indented with a tab", "spaces only"
		p.Column = strings.IndexByte(line, '\t') + 1
	case strings.Contains(syntax.Message, "reserved character"):
		p.Message = "a value cannot begin with " + strings.Fields(syntax.Message)[0]
		p.Want = "quotes around the value"
	case strings.Contains(syntax.Message, "mapping value is not allowed"):
		p.Want = "one `key: value` a line, keys of one level in one column, and quotes around a value that holds a colon and a space"
	case strings.Contains(syntax.Message, "could not find"), strings.Contains(syntax.Message, "must be specified"),
		strings.Contains(syntax.Message, "not found"):
		p.Want = "the quote or bracket that opens here closed again"
	case strings.Contains(syntax.Message, "not allowed in this context"), strings.Contains(syntax.Message, "non-map value"),
		strings.Contains(syntax.Message, "unexpected key name"):
		p.Want = "`key: value`, and keys of one level in one column"
	}
	return p
}

// at is the place of a token. It is kept inside the file: at the file's end, and after blocks of text, the parser counts on.
func (r *Report) at(t *token.Token) (line, column int) {
	line = min(max(t.Position.Line, 1), len(r.lines))
	return line, min(max(t.Position.Column, 1), r.widths[line-1]+1)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
