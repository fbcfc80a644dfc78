package autodiscover

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"
	"unicode/utf8"

	"github.com/beevik/etree"
)

// An answer that is rewritten has so many levels and elements at most. SOAP answers
// have 12 levels; with every setting there is, for 90 users, they have 20 000
// elements.
const (
	maxDepth    = 64
	maxElements = 1 << 16
)

// Rewrite returns an Autodiscover answer (POX, SOAP or V2, told apart by the
// content type) in which every text and attribute that external knows is replaced
// by what external says of it, and whether there was one. A text is asked about as
// a whole, without the white space around it: a URL, or the name of a host, which
// is a single word only where nothing but a host can stand. Of msstd:NAME
// (CertPrincipalName) the name counts.
//
// Answers are not limited to the elements that are known today: an exact host map
// makes no mistakes about where a name stands, and a list would let out the name
// in the element that nobody thought of.
//
// Only the bytes of the names change. Everything around them, declarations,
// prefixes, order, white space, comments and the spelling of entities, is what the
// server wrote. What cannot be read for certain is an error, and so is a result
// that a second reader understands in another way.
func Rewrite(contentType string, document []byte, external func(text string) (string, bool)) ([]byte, bool, error) {
	media, parameters, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, false, fmt.Errorf("content type: %w", err)
	}
	switch charset := strings.ToLower(parameters["charset"]); charset {
	case "", "utf-8", "us-ascii":
	default:
		return nil, false, fmt.Errorf("the document is in %q, not UTF-8", charset)
	}
	if !utf8.Valid(document) {
		return nil, false, errors.New("the document is not UTF-8")
	}
	// A byte order mark is no part of the text, and readers trip over it.
	mark := len(document) - len(bytes.TrimPrefix(document, []byte("\xef\xbb\xbf")))
	w := rewriter{body: document[mark:], external: external}
	if strings.HasSuffix(media, "json") {
		err = w.json()
	} else {
		err = w.xml()
	}
	if err != nil {
		return nil, false, err
	}
	if len(w.edits) == 0 {
		return document, false, nil
	}
	return append(document[:mark:mark], w.apply()...), true, nil
}

// edit replaces a range of the document.
type edit struct {
	from, to int
	text     string
}

// rewriter finds what changes in a document. Edits are in order and apart.
type rewriter struct {
	body     []byte
	external func(string) (string, bool)
	edits    []edit
}

func (w *rewriter) apply() []byte {
	var out []byte
	at := 0
	for _, e := range w.edits {
		out = append(append(out, w.body[at:e.from]...), e.text...)
		at = e.to
	}
	return append(out, w.body[at:]...)
}

// ask returns what stands in a text and what it becomes, both without white space
// around them. The element is that whose text it is, "" for what is no text of an
// element.
func (w *rewriter) ask(element, text string) (core, mapped string, ok bool) {
	core = strings.Trim(text, xmlSpace)
	const principal = "msstd:"
	switch {
	case core == "":
		return "", "", false
	case len(core) > len(principal) && strings.EqualFold(core[:len(principal)], principal):
		name, ok := w.external(core[len(principal):])
		host, _, _ := strings.Cut(name, ":")
		return core, core[:len(principal)] + host, ok
	case !strings.ContainsAny(core, "./:") && !namesServer(element):
		return "", "", false // a word: EXCH is the type of a Protocol before it is a server
	}
	mapped, ok = w.external(core)
	return core, mapped, ok && mapped != core
}

// namesServer tells whether the text of an element is the name of a host even when
// it is a single label.
func namesServer(element string) bool {
	switch element {
	case "Server", "Hostname", "PublicFolderServer", "AD":
		return true
	}
	return false
}

// replace notes that the raw bytes in a range, which mean core with white space
// around it, are to mean mapped. What follows the name is left as it is written;
// where the name is written in another way than it reads, all of it is written anew.
func (w *rewriter) replace(from, to int, core, mapped string, escape func(string) string) {
	for from < to && strings.IndexByte(xmlSpace, w.body[from]) >= 0 {
		from++
	}
	for from < to && strings.IndexByte(xmlSpace, w.body[to-1]) >= 0 {
		to--
	}
	name := len(core) // core[name:] is what both end in, from the end of a name on
	for n := len(mapped); name > 0 && n > 0 && core[name-1] == mapped[n-1]; n-- {
		name--
	}
	for name < len(core) && strings.IndexByte("/?#", core[name]) < 0 {
		name++
	}
	if from+name <= to && string(w.body[from:from+name]) == core[:name] {
		to, mapped = from+name, mapped[:len(mapped)-(len(core)-name)]
	}
	w.edits = append(w.edits, edit{from, to, escape(mapped)})
}

// piece is a run of character data in an element.
type piece struct {
	from, to int
	text     string
	cdata    bool
}

// openElement is an element during the walk. One that holds other elements has no
// text of its own that could be a name.
type openElement struct {
	name   xml.Name // as written
	pieces []piece
	parent bool
}

const cdataStart, cdataEnd = "<![CDATA[", "]]>"

// xml finds names in an XML document. The tokens are checked as in scanRequest: one
// root, no DOCTYPE, elements nested.
func (w *rewriter) xml() error {
	tokens := xml.NewDecoder(bytes.NewReader(w.body))
	var open []openElement
	roots, elements := 0, 0
	for {
		from := int(tokens.InputOffset())
		token, err := tokens.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return errors.New("the document is not well-formed XML in UTF-8")
		}
		to := int(tokens.InputOffset())
		switch t := token.(type) {
		case xml.Directive:
			return errors.New("the document has a DOCTYPE")
		case xml.StartElement:
			switch {
			case len(open) == maxDepth:
				return errors.New("the document is too deep")
			case elements == maxElements:
				return errors.New("the document has too many elements")
			case len(open) > 0:
				open[len(open)-1].parent = true
			default:
				if roots++; roots > 1 {
					return errors.New("the document has a second root")
				}
			}
			elements++
			if err := w.attributes(from, to, t.Attr); err != nil {
				return err
			}
			open = append(open, openElement{name: t.Name})
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1].name != t.Name {
				return errors.New("elements are not nested")
			}
			w.leaf(open[len(open)-1])
			open = open[:len(open)-1]
		case xml.CharData:
			p := piece{from: from, to: to, text: string(t)}
			if bytes.HasPrefix(w.body[from:], []byte(cdataStart)) {
				p.from, p.to, p.cdata = from+len(cdataStart), to-len(cdataEnd), true
			}
			if len(open) > 0 {
				e := &open[len(open)-1]
				e.pieces = append(e.pieces, p)
			} else if strings.Trim(p.text, xmlSpace) != "" || p.cdata {
				return errors.New("there is text outside the root")
			}
		}
	}
	if len(open) > 0 || roots == 0 {
		return errors.New("the document ends too early")
	}
	if len(w.edits) == 0 {
		return nil
	}
	return w.compare()
}

// leaf maps the text of an element that holds no other.
func (w *rewriter) leaf(e openElement) {
	if e.parent || len(e.pieces) == 0 {
		return
	}
	var text strings.Builder
	for _, p := range e.pieces {
		text.WriteString(p.text)
	}
	core, mapped, ok := w.ask(e.name.Local, text.String())
	if !ok {
		return
	}
	if first := e.pieces[0]; len(e.pieces) == 1 {
		escape := escapeXML
		if first.cdata {
			escape = func(s string) string { return s } // it was CDATA, and names cannot end it
		}
		w.replace(first.from, first.to, core, mapped, escape)
		return
	}
	// A text in pieces, with comments or CDATA between them: it all goes into the
	// first, and what was between stays.
	for i, p := range e.pieces {
		s := ""
		if i == 0 && p.cdata {
			s = mapped
		} else if i == 0 {
			s = escapeXML(mapped)
		}
		w.edits = append(w.edits, edit{p.from, p.to, s})
	}
}

// attributes maps the values in a start tag. The reader does not say where they
// stand: they are the quoted strings of the tag, in their order.
func (w *rewriter) attributes(from, to int, attributes []xml.Attr) error {
	for _, a := range attributes {
		for from < to && w.body[from] != '"' && w.body[from] != '\'' {
			from++
		}
		if from == to {
			return errors.New("an attribute is not where it should be")
		}
		end := bytes.IndexByte(w.body[from+1:to], w.body[from])
		if end < 0 {
			return errors.New("an attribute does not end")
		}
		start := from + 1
		from = start + end + 1
		if a.Name.Space == "xmlns" || a.Name.Space == "" && a.Name.Local == "xmlns" {
			continue // a name of a namespace, whatever it looks like
		}
		if core, mapped, ok := w.ask("", a.Value); ok {
			w.replace(start, start+end, core, mapped, escapeXML)
		}
	}
	return nil
}

func escapeXML(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

// compare reads both documents with the reader that the rest of the program uses,
// and finds them alike but for the names.
func (w *rewriter) compare() error {
	before, after := etree.NewDocument(), etree.NewDocument()
	for _, d := range []*etree.Document{before, after} {
		d.ReadSettings.PreserveDuplicateAttrs = true
	}
	if err := errors.Join(before.ReadFromBytes(w.body), after.ReadFromBytes(w.apply())); err != nil {
		return errors.New("the document cannot be read a second time")
	}
	if !w.alike(&before.Element, &after.Element) {
		return errors.New("the document can be read in two ways")
	}
	return nil
}

// alike tells whether an element is what becomes of another.
func (w *rewriter) alike(before, after *etree.Element) bool {
	if before.FullTag() != after.FullTag() || len(before.Attr) != len(after.Attr) {
		return false
	}
	becomes := func(element, text, now string) bool {
		if _, mapped, ok := w.ask(element, text); ok {
			return strings.Trim(now, xmlSpace) == mapped
		}
		return now == text
	}
	for i, a := range before.Attr {
		b := after.Attr[i]
		if a.FullKey() != b.FullKey() || !(a.Value == b.Value || becomes("", a.Value, b.Value)) {
			return false
		}
	}
	children, others := before.ChildElements(), after.ChildElements()
	if len(children) != len(others) {
		return false
	}
	for i := range children {
		if !w.alike(children[i], others[i]) {
			return false
		}
	}
	text, now := allText(before), allText(after)
	return text == now || len(children) == 0 && becomes(before.Tag, text, now)
}

// allText is the character data directly in an element.
func allText(e *etree.Element) string {
	var b strings.Builder
	for _, t := range e.Child {
		if c, ok := t.(*etree.CharData); ok {
			b.WriteString(c.Data)
		}
	}
	return b.String()
}

// json finds names in the values of a JSON document.
func (w *rewriter) json() error {
	if !json.Valid(w.body) {
		return errors.New("the document is not JSON")
	}
	tokens := json.NewDecoder(bytes.NewReader(w.body))
	type level struct{ object, value bool } // value: the next string is one, and no key
	var open []level
	for {
		from := int(tokens.InputOffset())
		token, err := tokens.Token()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errors.New("the document is not JSON")
		}
		var at level
		if len(open) > 0 {
			at = open[len(open)-1]
			if at.object {
				open[len(open)-1].value = !at.value
			}
		}
		switch t := token.(type) {
		case json.Delim:
			if t == '}' || t == ']' {
				open = open[:len(open)-1]
				continue
			}
			if len(open) == maxDepth {
				return errors.New("the document is too deep")
			}
			open = append(open, level{object: t == '{'})
		case string:
			if at.object && !at.value {
				continue
			}
			if core, mapped, ok := w.ask("", t); ok {
				start := from + bytes.IndexByte(w.body[from:], '"') + 1
				w.replace(start, int(tokens.InputOffset())-1, core, mapped, escapeJSON)
			}
		}
	}
}

func escapeJSON(s string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // a string is JSON
	return strings.TrimSuffix(strings.TrimPrefix(b.String(), `"`), "\"\n")
}
