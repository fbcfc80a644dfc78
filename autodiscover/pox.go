package autodiscover

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/autodgate/autodgate/directory"
	"github.com/beevik/etree"
)

const (
	nsOutlookRequest    = "http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"
	nsMobileSyncRequest = "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/requestschema/2006"

	// MaxRequestSize is the largest POX request, in bytes. Real ones stay below 1 KiB.
	MaxRequestSize = 8 << 10

	maxAttributes = 32
	maxLegacyDN   = 1024 // characters
)

// Request is a POX request, checked. At least one of EMailAddress and LegacyDN
// is set; when both are, the LegacyDN decides ([MS-OXDSCLI] 3.2.5).
type Request struct {
	EMailAddress string // as it was sent, without white space around it
	LegacyDN     string
	// AcceptableResponseSchema is the kind of answer wanted, in lower case and
	// with http:// for https://. Which ones are known is not decided here.
	AcceptableResponseSchema string

	address string // EMailAddress, normalised
}

// ParseRequest reads a POX request. Every error stands for ErrorCode 600; the
// text is for the log and repeats nothing of the request.
//
// The document is checked token by token before anything is taken from it,
// because the danger is not a broken document but one that two programs read
// differently: encoding/xml, and what stands on it, accepts a DOCTYPE, a second
// root that it never reads, and pat@contoso.com<!-- -->.example.net as one text.
// Only a document with one reading passes: a UTF-8 XML 1.0 document with the
// elements of the request schema, each once, and text in those three that hold
// text. Order, prefixes, a byte order mark and a missing declaration are free.
//
// Elements and attributes that the schema does not know are refused rather than
// skipped: no known client sends any, and what we skip a server behind us might
// obey.
func ParseRequest(body []byte) (*Request, error) {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	fields, err := scanRequest(body)
	if err != nil {
		return nil, err
	}
	// Two readers must agree before the request counts.
	again, err := readRequest(body)
	if err != nil {
		return nil, err
	}
	if !maps.Equal(fields, again) {
		return nil, errors.New("the document can be read in two ways")
	}

	q := &Request{
		EMailAddress:             fields["EMailAddress"],
		LegacyDN:                 fields["LegacyDN"],
		AcceptableResponseSchema: httpScheme(strings.ToLower(fields["AcceptableResponseSchema"])),
	}
	if q.AcceptableResponseSchema == "" {
		return nil, errors.New("AcceptableResponseSchema is missing")
	}
	_, hasAddress := fields["EMailAddress"]
	_, hasDN := fields["LegacyDN"]
	if !hasAddress && !hasDN {
		return nil, errors.New("neither EMailAddress nor LegacyDN")
	}
	if hasAddress {
		if q.address, err = directory.NormalizeAddress(q.EMailAddress); err != nil {
			return nil, err
		}
	}
	if hasDN && !validDN(q.LegacyDN) {
		return nil, errors.New("LegacyDN is not /o=… in at most 1024 characters")
	}
	return q, nil
}

// Encode writes the request as a client would send it, in the Outlook schema.
func (q *Request) Encode() []byte {
	doc := etree.NewDocument()
	doc.CreateProcInst("xml", `version="1.0" encoding="utf-8"`)
	root := doc.CreateElement("Autodiscover")
	root.CreateAttr("xmlns", nsOutlookRequest)
	request := root.CreateElement("Request")
	text(request, "EMailAddress", q.EMailAddress)
	text(request, "LegacyDN", q.LegacyDN)
	text(request, "AcceptableResponseSchema", q.AcceptableResponseSchema)
	return write(doc)
}

// validDN allows what X.500 names of Exchange hold, parentheses among it, and
// nothing that means something to a line or to markup. An LDAP directory must
// escape it all the same.
func validDN(dn string) bool {
	return strings.HasPrefix(dn, "/") && utf8.RuneCountInString(dn) <= maxLegacyDN &&
		!strings.ContainsFunc(dn, func(r rune) bool {
			return r < 0x20 || r >= 0x7f && r < 0xa0 || strings.ContainsRune("<>\"*\\", r)
		})
}

// httpScheme undoes the https:// in namespaces that some programs copied from
// documentation pages.
func httpScheme(uri string) string {
	if rest, ok := strings.CutPrefix(uri, "https://"); ok {
		return "http://" + rest
	}
	return uri
}

// declaration is the XML declaration of a UTF-8 XML 1.0 document. It is matched
// here because encoding/xml looks for version= and encoding= anywhere in it.
var declaration = regexp.MustCompile(`^<\?xml[ \t\r\n]+version[ \t\r\n]*=[ \t\r\n]*(?:"1\.0"|'1\.0')` +
	`(?:[ \t\r\n]+encoding[ \t\r\n]*=[ \t\r\n]*(?i:"utf-8"|'utf-8'))?` +
	`(?:[ \t\r\n]+standalone[ \t\r\n]*=[ \t\r\n]*(?:"(?:yes|no)"|'(?:yes|no)'))?[ \t\r\n]*\?>`)

// element is an open element during the scan.
type element struct {
	raw      xml.Name          // as written: prefix and local name
	prefixes map[string]string // declared on it
}

// scanner walks over the tokens of a request. encoding/xml only cuts it into
// tokens; names, namespaces, nesting and what may stand where are checked here.
type scanner struct {
	open      []element
	space     string // namespace of the root, which all elements share
	done      bool   // the root is closed
	requests  int
	leaf      string // the open element that holds text, if any
	leafText  string
	fieldText map[string]string
}

// documentBody returns a document without its XML declaration. What is no text of
// UTF-8 XML 1.0 is an error.
func documentBody(body []byte) ([]byte, error) {
	for i, r := range string(body) {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRune(body[i:]); size == 1 {
				return nil, errors.New("not UTF-8")
			}
		}
		if r < 0x20 && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return nil, errors.New("has characters that XML forbids")
		}
	}
	if len(body) == 0 || body[0] != '<' {
		return nil, errors.New("does not begin with <")
	}
	if bytes.HasPrefix(body, []byte("<?xml")) {
		found := declaration.Find(body)
		if found == nil {
			return nil, errors.New("the XML declaration is not that of XML 1.0 in UTF-8")
		}
		body = body[len(found):]
	}
	return body, nil
}

// scanRequest returns the text of every leaf that is there, trimmed.
func scanRequest(body []byte) (map[string]string, error) {
	if len(body) > MaxRequestSize {
		return nil, errors.New("larger than 8 KiB")
	}
	body, err := documentBody(body)
	if err != nil {
		return nil, err
	}
	tokens := xml.NewDecoder(bytes.NewReader(body))
	s := scanner{fieldText: map[string]string{}}
	for {
		at := tokens.InputOffset()
		token, err := tokens.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, errors.New("not well-formed XML")
		}
		// encoding/xml reports a CDATA section as text. Some readers take only the
		// first piece of a text, so it could hide half an address.
		if bytes.HasPrefix(body[at:], []byte("<![CDATA[")) {
			return nil, errors.New("has a CDATA section")
		}
		if err := s.token(token); err != nil {
			return nil, err
		}
	}
	if !s.done {
		return nil, errors.New("ends too early")
	}
	return s.fieldText, nil
}

func (s *scanner) token(token xml.Token) error {
	switch t := token.(type) {
	case xml.CharData:
		if s.leaf != "" {
			s.leafText += string(t)
		} else if len(bytes.Trim(t, xmlSpace)) > 0 {
			return errors.New("has text where elements belong")
		}
		return nil
	case xml.Comment:
		if s.leaf != "" || s.done {
			return errors.New("has a comment inside a value or after the root")
		}
		return nil
	case xml.StartElement:
		return s.start(t)
	case xml.EndElement:
		return s.end(t)
	case xml.ProcInst:
		return errors.New("has a processing instruction")
	case xml.Directive:
		return errors.New("has a DOCTYPE")
	}
	return errors.New("has an unknown kind of token")
}

const xmlSpace = " \t\r\n"

// start checks an element that opens. Nothing may be deeper than the third level,
// so the depth needs no limit of its own.
func (s *scanner) start(t xml.StartElement) error {
	if s.done {
		return errors.New("has a second root element")
	}
	if s.leaf != "" {
		return errors.New("has an element inside a value")
	}
	prefixes, err := declared(t.Attr)
	if err != nil {
		return err
	}
	s.open = append(s.open, element{t.Name, prefixes})
	space, err := s.resolve(t.Name.Space)
	if err != nil {
		return err
	}
	if len(s.open) == 1 {
		if known := httpScheme(space); known != nsOutlookRequest && known != nsMobileSyncRequest || t.Name.Local != "Autodiscover" {
			return errors.New("the root is not Autodiscover in a request namespace")
		}
		s.space = space
		return nil
	}
	if space != s.space {
		return errors.New("has an element of another namespace")
	}
	if len(s.open) == 2 {
		if s.requests++; t.Name.Local != "Request" || s.requests > 1 {
			return errors.New("the root holds something other than one Request")
		}
		return nil
	}
	switch t.Name.Local {
	case "EMailAddress", "LegacyDN", "AcceptableResponseSchema":
	default:
		return errors.New("the Request holds an unknown element")
	}
	if _, twice := s.fieldText[t.Name.Local]; twice {
		return errors.New("the Request holds an element twice")
	}
	s.leaf, s.leafText = t.Name.Local, ""
	return nil
}

func (s *scanner) end(t xml.EndElement) error {
	if len(s.open) == 0 || s.open[len(s.open)-1].raw != t.Name {
		return errors.New("elements are not nested")
	}
	s.open = s.open[:len(s.open)-1]
	if s.leaf != "" {
		// A carriage return can only come from a character reference here, line
		// ends are already line feeds; no client writes one for its looks.
		if strings.ContainsRune(s.leafText, '\r') {
			return errors.New("has a carriage return in a value")
		}
		s.fieldText[s.leaf] = strings.Trim(s.leafText, xmlSpace)
		s.leaf = ""
	}
	s.done = len(s.open) == 0
	return nil
}

// resolve returns the namespace of a prefix. encoding/xml takes an undeclared
// prefix for the namespace itself; here it is an error.
func (s *scanner) resolve(prefix string) (string, error) {
	for i := len(s.open) - 1; i >= 0; i-- {
		if uri, ok := s.open[i].prefixes[prefix]; ok {
			return uri, nil
		}
	}
	if prefix != "" {
		return "", errors.New("has an undeclared prefix")
	}
	return "", nil
}

// declared returns the namespace declarations among the attributes of an element.
// The schema has no attributes, so any other one is refused.
func declared(attributes []xml.Attr) (map[string]string, error) {
	if len(attributes) > maxAttributes {
		return nil, fmt.Errorf("more than %d attributes", maxAttributes)
	}
	prefixes := map[string]string{}
	seen := map[xml.Name]bool{}
	for _, a := range attributes {
		if seen[a.Name] {
			return nil, errors.New("has an attribute twice") // encoding/xml takes it
		}
		seen[a.Name] = true
		switch {
		case a.Name.Space == "" && a.Name.Local == "xmlns":
			prefixes[""] = a.Value
		case a.Name.Space == "xmlns" && a.Value != "" && a.Name.Local != "xml" && a.Name.Local != "xmlns":
			prefixes[a.Name.Local] = a.Value
		default:
			return nil, errors.New("has an attribute that is no namespace declaration")
		}
	}
	return prefixes, nil
}

// readRequest reads the same document as a tree, the way the rest of the program
// reads XML.
func readRequest(body []byte) (map[string]string, error) {
	doc := etree.NewDocument()
	doc.ReadSettings.PreserveDuplicateAttrs = true
	if err := doc.ReadFromBytes(body); err != nil {
		return nil, errors.New("not well-formed XML")
	}
	fields := map[string]string{}
	root := doc.Root()
	if root == nil {
		return fields, nil
	}
	for _, request := range root.SelectElements("Request") {
		for _, e := range request.ChildElements() {
			if e.NamespaceURI() == root.NamespaceURI() {
				fields[e.Tag] += strings.Trim(e.Text(), xmlSpace)
			}
		}
	}
	return fields, nil
}
