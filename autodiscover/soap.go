package autodiscover

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"net/http"
	"regexp"
	"strings"

	"github.com/autodgate/autodgate/directory"
)

const (
	nsEnvelope   = "http://schemas.xmlsoap.org/soap/envelope/" // SOAP 1.1
	nsAddressing = "http://www.w3.org/2005/08/addressing"
	nsSOAP       = "http://schemas.microsoft.com/exchange/2010/Autodiscover"
	nsXSI        = "http://www.w3.org/2001/XMLSchema-instance"

	// MaxSOAPSize is the largest SOAP request, in bytes: some hundred settings for
	// some hundred users.
	MaxSOAPSize = 64 << 10

	// What somebody without a login may send, to ask about federation.
	maxAnonymousSOAP = 4 << 10

	maxSOAPDepth    = 16
	maxSOAPElements = 2048
	maxSOAPPrefixes = 64  // declared at one place, by an element and those around it
	maxSOAPUsers    = 100 // also of domains
	maxSOAPSettings = 256
)

// The operations, by the name that their messages and actions are made of.
const (
	opUserSettings   = "GetUserSettings"
	opDomainSettings = "GetDomainSettings"
	opFederation     = "GetFederationInformation"
	opOrganization   = "GetOrganizationRelationshipSettings" // between servers of one company; never ours
)

// soapRequest is a SOAP request, checked.
type soapRequest struct {
	operation string
	subjects  []string // addresses or domains, as they were sent
	settings  []string // names, each once
	messageID string   // to be repeated; empty: none
	invalid   string   // why the operation cannot be answered; empty: it can
}

// soapFault is a request that is no message of ours, or one that nobody could be
// found for. Its text is fixed.
type soapFault struct{ code, text string }

// Error returns the text.
func (f *soapFault) Error() string { return f.text }

// The faults of SOAP 1.1, section 4.4.1. Which of them Exchange sends when is in no
// public source.
var (
	faultClient      = &soapFault{"Client", "The request could not be understood."}
	faultUnderstand  = &soapFault{"MustUnderstand", "A header of the request is not understood."}
	faultVersion     = &soapFault{"VersionMismatch", "The request is not SOAP 1.1."}
	faultServer      = &soapFault{"Server", "The request could not be answered."}
	errNotMessage    = errors.New("not a message")
	messageIDPattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9:._/#?=@%+~-]{1,256}$`)
	settingPattern   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_]{0,63}$`)
)

// soap answers a SOAP request. All operations but GetFederationInformation want a
// login, and get the 401 before anything is parsed.
func (h *Handler) soap(r *http.Request) reply {
	source := clientAddr(r)
	var body []byte
	if h.directory != nil {
		if body = anonymousFederation(r); body != nil {
			if q, err := parseSOAP(body); err == nil && q.operation == opFederation {
				return documentReply(renderSOAP(federationAnswer(q)))
			}
			return h.loginReply()
		}
	}
	login, refusal, err := h.admit(r, source)
	if err != nil {
		h.logFailure(r.Context(), err)
		return faultReply(faultServer)
	}
	if refusal != nil {
		return *refusal
	}
	switch r.Method {
	case http.MethodPost:
	case http.MethodGet, http.MethodHead:
		// Who looks whether there is a service here finds one.
		a := plainReply(http.StatusOK, "Autodiscover. POST a SOAP 1.1 request.")
		a.header["X-SOAP-Enabled"] = []string{"True"}
		return a
	default:
		return notAllowed("POST a request", "GET, HEAD, POST")
	}
	if body, refusal = readBody(r, MaxSOAPSize); refusal != nil {
		return *refusal
	}
	q, err := parseSOAP(body)
	if err != nil {
		h.log.Debug().Stringer("source", source).AnErr("reason", err).Msg("autodiscover: refused")
		fault := faultClient
		errors.As(err, &fault)
		return faultReply(fault)
	}
	c := h.client(r, source)
	var a soapAnswer
	switch {
	case q.invalid != "":
		h.log.Debug().Stringer("source", source).Str("reason", q.invalid).Msg("autodiscover: refused")
		a = invalidAnswer(q)
	case q.operation == opUserSettings:
		a = h.userSettings(r, q, c, login)
	case q.operation == opDomainSettings:
		a = h.domainSettings(q, c, r.Host)
	default:
		a = federationAnswer(q)
	}
	h.log.Debug().Stringer("source", source).Str("operation", q.operation).Int("subjects", len(q.subjects)).Msg("autodiscover: answered")
	return documentReply(renderSOAP(a))
}

// anonymousFederation returns the body of a request without a login that looks as if
// it asked about federation: organisations ask each other, and have no logins there.
func anonymousFederation(r *http.Request) []byte {
	if r.Method != http.MethodPost || r.Header["Authorization"] != nil || r.ContentLength <= 0 || r.ContentLength > maxAnonymousSOAP {
		return nil
	}
	body, refusal := readBody(r, maxAnonymousSOAP)
	if refusal != nil || !bytes.Contains(body, []byte(opFederation+"RequestMessage")) {
		return nil
	}
	return body
}

// xmlNode is an element of a request, read strictly: it holds either elements or
// text, and all of its text is in one piece.
type xmlNode struct {
	name     xml.Name // with its namespace
	raw      xml.Name // as it is written
	attrs    []xml.Attr
	prefixes map[string]string // all that are declared here, those of its parents too
	text     string
	comment  bool
	children []*xmlNode
}

// parseSOAP reads a request. An error means that it is no message, and is a
// [soapFault] where there is more to say; otherwise what is wrong with the message is
// in its invalid.
func parseSOAP(body []byte) (*soapRequest, error) {
	root, err := scanSOAP(body)
	if err != nil {
		return nil, err
	}
	if root.name.Local != "Envelope" {
		return nil, errNotMessage
	}
	if root.name.Space != nsEnvelope {
		return nil, faultVersion
	}
	q := &soapRequest{}
	children := root.children
	action := ""
	if len(children) > 0 && children[0].name == (xml.Name{Space: nsEnvelope, Local: "Header"}) {
		if action, err = q.header(children[0]); err != nil {
			return nil, err
		}
		children = children[1:]
	}
	if len(children) != 1 || children[0].name != (xml.Name{Space: nsEnvelope, Local: "Body"}) || len(children[0].children) != 1 {
		return nil, errNotMessage
	}
	message := children[0].children[0]
	operation, ok := strings.CutSuffix(message.name.Local, "RequestMessage")
	if !ok || message.name.Space != nsSOAP {
		return nil, errNotMessage
	}
	switch operation {
	case opUserSettings, opDomainSettings, opFederation, opOrganization:
	default:
		return nil, errNotMessage
	}
	// The action may be missing, but it may not name another operation: somebody on
	// the way may have decided by it.
	if action != "" && action != nsSOAP+"/Autodiscover/"+operation {
		return nil, errors.New("the action is not that of the message")
	}
	q.operation = operation
	q.invalid = q.message(message)
	return q, nil
}

// header reads the headers that mean something here.
func (q *soapRequest) header(header *xmlNode) (action string, err error) {
	seen := map[xml.Name]bool{}
	for _, e := range header.children {
		if seen[e.name] {
			return "", errors.New("a header is there twice")
		}
		seen[e.name] = true
		switch e.name {
		case xml.Name{Space: nsAddressing, Local: "Action"}:
			action = e.text
		case xml.Name{Space: nsAddressing, Local: "MessageID"}:
			if messageIDPattern.MatchString(e.text) {
				q.messageID = e.text
			}
		default:
			// RequestedServerVersion and its like change nothing here; anything that
			// must be obeyed and is none of these, such as WS-Security, is refused.
			if e.name.Space != nsAddressing && e.name.Space != nsSOAP && e.mustUnderstand() {
				return "", faultUnderstand
			}
		}
	}
	return action, nil
}

func (n *xmlNode) mustUnderstand() bool {
	for _, a := range n.attrs {
		if a.Name.Local == "mustUnderstand" && n.prefixes[a.Name.Space] == nsEnvelope && a.Value != "0" {
			return true
		}
	}
	return false
}

// message reads the message of an operation and says what is wrong with it.
func (q *soapRequest) message(message *xmlNode) (invalid string) {
	request := message.only("Request")
	if request == nil || len(message.children) != 1 {
		return "there is not one Request"
	}
	switch q.operation {
	case opOrganization:
		return "the operation is not answered"
	case opFederation:
		domain := request.only("Domain")
		if domain == nil || domain.text == "" {
			return "there is not one Domain"
		}
		return ""
	case opUserSettings:
		users := request.only("Users")
		if users == nil {
			return "there is not one Users"
		}
		for _, user := range users.children {
			mailbox := user.only("Mailbox")
			if user.name != (xml.Name{Space: nsSOAP, Local: "User"}) || mailbox == nil {
				return "a User has not one Mailbox"
			}
			q.subjects = append(q.subjects, mailbox.text)
		}
	case opDomainSettings:
		domains := request.only("Domains")
		if domains == nil {
			return "there is not one Domains"
		}
		for _, domain := range domains.children {
			if domain.name != (xml.Name{Space: nsSOAP, Local: "Domain"}) {
				return "Domains holds something other than Domain"
			}
			q.subjects = append(q.subjects, domain.text)
		}
	}
	if len(q.subjects) == 0 || len(q.subjects) > maxSOAPUsers {
		return "there is nobody to answer for, or there are too many"
	}
	settings := request.only("RequestedSettings")
	if settings == nil || len(settings.children) == 0 || len(settings.children) > maxSOAPSettings {
		return "there are no settings to tell, or too many"
	}
	seen := map[string]bool{}
	for _, s := range settings.children {
		if s.name != (xml.Name{Space: nsSOAP, Local: "Setting"}) || !settingPattern.MatchString(s.text) {
			return "RequestedSettings holds something other than names" // which errors repeat
		}
		if !seen[s.text] {
			seen[s.text] = true
			q.settings = append(q.settings, s.text)
		}
	}
	return ""
}

// only returns the one child of that name, or nil.
func (n *xmlNode) only(local string) (found *xmlNode) {
	for _, c := range n.children {
		if c.name == (xml.Name{Space: nsSOAP, Local: local}) {
			if found != nil {
				return nil
			}
			found = c
		}
	}
	return found
}

// scanSOAP reads a document as strictly as [ParseRequest] does, but with any elements
// and attributes: SOAP is open to headers that only others know.
func scanSOAP(body []byte) (*xmlNode, error) {
	body, err := documentBody(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	if err != nil {
		return nil, err
	}
	tokens := xml.NewDecoder(bytes.NewReader(body))
	var root *xmlNode
	var open []*xmlNode
	elements := 0
	for {
		at := tokens.InputOffset()
		token, err := tokens.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, errors.New("not well-formed XML")
		}
		if bytes.HasPrefix(body[at:], []byte(cdataStart)) {
			return nil, errors.New("has a CDATA section")
		}
		switch t := token.(type) {
		case xml.StartElement:
			if elements++; root != nil && len(open) == 0 || len(open) == maxSOAPDepth || elements > maxSOAPElements {
				return nil, errors.New("has a second root, or too many elements")
			}
			n := &xmlNode{raw: t.Name}
			if len(open) > 0 {
				n.prefixes = open[len(open)-1].prefixes
			}
			if err := n.resolve(t.Attr); err != nil {
				return nil, err
			}
			if len(open) > 0 {
				parent := open[len(open)-1]
				parent.children = append(parent.children, n)
			} else {
				root = n
			}
			open = append(open, n)
		case xml.EndElement:
			if len(open) == 0 || open[len(open)-1].raw != t.Name {
				return nil, errors.New("elements are not nested")
			}
			n := open[len(open)-1]
			n.text = strings.Trim(n.text, xmlSpace)
			if n.text != "" && (n.comment || len(n.children) > 0) {
				return nil, errors.New("has text with a comment or an element in it")
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				open[len(open)-1].text += string(t)
			} else if len(bytes.Trim(t, xmlSpace)) > 0 {
				return nil, errors.New("has text where elements belong")
			}
		case xml.Comment:
			if len(open) > 0 {
				open[len(open)-1].comment = true
			}
		default:
			return nil, errors.New("has a DOCTYPE or a processing instruction")
		}
	}
	if root == nil || len(open) > 0 {
		return nil, errors.New("ends too early")
	}
	return root, nil
}

// resolve takes the attributes of an element, and finds its namespace.
func (n *xmlNode) resolve(attributes []xml.Attr) error {
	if len(attributes) > maxAttributes {
		return errors.New("has too many attributes")
	}
	seen := map[xml.Name]bool{}
	cloned := false
	for _, a := range attributes {
		if seen[a.Name] {
			return errors.New("has an attribute twice")
		}
		seen[a.Name] = true
		declared := ""
		switch {
		case a.Name.Space == "" && a.Name.Local == "xmlns":
		case a.Name.Space == "xmlns":
			if declared = a.Name.Local; a.Value == "" || declared == "xml" || declared == "xmlns" {
				return errors.New("declares a prefix that cannot be declared")
			}
		default:
			n.attrs = append(n.attrs, a)
			continue
		}
		if !cloned {
			if n.prefixes = maps.Clone(n.prefixes); n.prefixes == nil {
				n.prefixes = map[string]string{}
			}
			cloned = true
		}
		if n.prefixes[declared] = a.Value; len(n.prefixes) > maxSOAPPrefixes {
			return errors.New("declares too many prefixes")
		}
	}
	for _, prefix := range append([]string{n.raw.Space}, attributePrefixes(n.attrs)...) {
		if _, ok := n.prefixes[prefix]; prefix != "" && prefix != "xml" && !ok {
			return errors.New("has an undeclared prefix")
		}
	}
	n.name = xml.Name{Space: n.prefixes[n.raw.Space], Local: n.raw.Local}
	return nil
}

func attributePrefixes(attributes []xml.Attr) (out []string) {
	for _, a := range attributes {
		out = append(out, a.Name.Space)
	}
	return out
}

// userSettings answers for each user, in the order in which they were asked about:
// clients read the answers by their position.
func (h *Handler) userSettings(r *http.Request, q *soapRequest, c client, login *directory.Mailbox) soapAnswer {
	a := soapAnswer{operation: q.operation, relatesTo: q.messageID, code: soapNoError}
	for i, mailbox := range q.subjects {
		u := soapSubject{code: soapInvalidUser}
		address, err := directory.NormalizeAddress(mailbox)
		if err == nil {
			var o outcome
			o, err = h.resolve(r.Context(), query{address: address, login: login, host: r.Host}, c)
			if err != nil {
				h.logFailure(r.Context(), err)
				o = failed(codeServerError, "the directory failed")
			}
			u = userAnswer(o, q.settings)
			if i == 0 && o.settings != nil {
				a.version = o.settings.version
			}
		}
		a.subjects = append(a.subjects, u)
	}
	return a
}

// userAnswer is what SOAP says of an outcome.
func userAnswer(o outcome, names []string) soapSubject {
	switch {
	case o.settings != nil:
		u := soapSubject{code: soapNoError}
		for _, name := range names {
			read, known := userSettingValues[name]
			var v soapValue
			if read != nil {
				v = read(o.settings)
			}
			u.add(name, known, v)
		}
		return u
	case o.redirectAddr != "":
		return soapSubject{code: soapRedirectAddress, target: o.redirectAddr}
	case o.redirectURL != "":
		return soapSubject{code: soapRedirectURL, target: serviceURL(o.redirectURL)}
	case o.code == codeNotFound, o.code == codeNoSettings:
		return soapSubject{code: soapInvalidUser}
	}
	return soapSubject{code: soapInternalServerError}
}

// serviceURL is the SOAP service beside a POX document: a client of one cannot read
// the other (an URL with another path has been configured for a reason, and stays).
func serviceURL(pox string) string {
	if n := len(pox) - len(poxPath); n > 0 && strings.EqualFold(pox[n:], poxPath) {
		return pox[:n] + svcPath
	}
	return pox
}

// domainSettings answers for each domain.
func (h *Handler) domainSettings(q *soapRequest, c client, host string) soapAnswer {
	a := soapAnswer{operation: q.operation, relatesTo: q.messageID, code: soapNoError}
	for i, name := range q.subjects {
		u := soapSubject{code: soapInvalidDomain}
		if normal, err := directory.NormalizeDomain(name); err == nil && h.domains[normal] != nil {
			d := h.domains[normal]
			switch {
			case d.unusable != nil:
				u.code = soapInternalServerError
			case d.Action == ActionRedirect:
				o := redirect(d, "x@"+normal, host)
				o.redirectAddr = domainPart(o.redirectAddr)
				if u = userAnswer(o, nil); u.target == normal {
					u = soapSubject{code: soapInternalServerError}
				}
			default:
				u.code = soapNoError
				s := &settings{external: d.ExternalURL, internal: d.InternalURL, version: d.version, inside: c.inside}
				for _, name := range q.settings {
					known := name == "ExternalEwsUrl" || name == "ExternalEwsVersion"
					var v soapValue
					if known {
						v = userSettingValues[name](s)
					}
					u.add(name, known, v)
				}
				if i == 0 {
					a.version = d.version
				}
			}
		}
		a.subjects = append(a.subjects, u)
	}
	return a
}

// federationAnswer says that nobody is federated through here: that takes a trust
// which only servers of Exchange can keep. It is the same for every domain.
func federationAnswer(q *soapRequest) soapAnswer {
	a := soapAnswer{operation: q.operation, relatesTo: q.messageID, code: soapNotFederated}
	if q.invalid != "" {
		a.code = soapInvalidRequest
	}
	return a
}

func invalidAnswer(q *soapRequest) soapAnswer {
	return soapAnswer{operation: q.operation, relatesTo: q.messageID, code: soapInvalidRequest}
}

// faultReply is a fault, with the status that SOAP 1.1 over HTTP wants (section 6.2).
func faultReply(f *soapFault) reply {
	a := documentReply(renderFault(f))
	a.status = http.StatusInternalServerError
	return a
}
