package discovery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/beevik/etree"
)

// Namespaces of the POX documents. They begin with http://; the https:// of today's web pages is a mistake of a
// rewrite of the documentation, and clients do not match it.
const (
	nsPrefix         = "http://schemas.microsoft.com/exchange/autodiscover/"
	nsFrame          = nsPrefix + "responseschema/2006"
	nsOutlook        = nsPrefix + "outlook/responseschema/2006a"
	nsOutlookOld     = nsPrefix + "outlook/responseschema/2006"
	nsOutlookRequest = nsPrefix + "outlook/requestschema/2006"
	nsMobile         = nsPrefix + "mobilesync/responseschema/2006"
	nsMobileRequest  = nsPrefix + "mobilesync/requestschema/2006"
)

// maxDepth bounds the nesting of an answer. Real ones have seven levels: Autodiscover to the ASUrl of a Protocol within a WEB block.
const maxDepth = 16

// Values of Answer.Action.
const (
	actionSettings = "settings"
	actionAddress  = "redirectAddr"
	actionURL      = "redirectUrl"
	actionError    = "error"
)

// writeRequest is the POX request for an address: [DSCLI] 2.2.3 for Outlook, [ASCMD] 2.2.1.1 for ActiveSync.
func writeRequest(schema Schema, address string) ([]byte, error) {
	request, answer := nsOutlookRequest, nsOutlook
	if schema == SchemaMobileSync {
		request, answer = nsMobileRequest, nsMobile
	}
	doc := etree.NewDocument()
	doc.CreateProcInst("xml", `version="1.0" encoding="utf-8"`)
	root := doc.CreateElement("Autodiscover")
	root.CreateAttr("xmlns", request)
	r := root.CreateElement("Request")
	r.CreateElement("EMailAddress").SetText(address)
	r.CreateElement("AcceptableResponseSchema").SetText(answer)
	return doc.WriteToBytes()
}

// readAnswer reads a POX answer the way the profile's client does. Its error says, in words for a trace, why the document is of no use to that client.
func readAnswer(p *Profile, body []byte) (*Answer, error) {
	root, err := readXML(body)
	if err != nil {
		return nil, err
	}
	if root.Tag != "Autodiscover" {
		return nil, fmt.Errorf("the answer is <%s>, not an Autodiscover document", root.Tag)
	}
	if p.StrictNamespaces && root.NamespaceURI() != nsFrame {
		return nil, fmt.Errorf("the root is in the namespace %q, expected %q", root.NamespaceURI(), nsFrame)
	}
	resp := root.SelectElement("Response")
	if resp == nil {
		return nil, errors.New("the answer has no Response")
	}
	if e := resp.SelectElement("Error"); e != nil {
		return readError(e), nil
	}
	if p.StrictNamespaces {
		allowed := []string{nsOutlook, nsOutlookOld}
		if p.Schema == SchemaMobileSync {
			allowed = []string{nsMobile}
		}
		if !slices.Contains(allowed, resp.NamespaceURI()) {
			return nil, fmt.Errorf("the Response is in the namespace %q, expected %q", resp.NamespaceURI(), allowed[0])
		}
	}
	if p.Schema == SchemaMobileSync {
		return readMobileSync(resp)
	}
	return readOutlook(resp)
}

// readXML parses one document without directives. encoding/xml, on which etree stands, would let a DOCTYPE, a second root and stray text pass.
func readXML(body []byte) (*etree.Element, error) {
	body = bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, errors.New("the answer is empty")
	}
	doc := etree.NewDocument()
	doc.ReadSettings.MaxDepth = maxDepth
	doc.ReadSettings.CharsetReader = func(label string, _ io.Reader) (io.Reader, error) {
		return nil, fmt.Errorf("encoding %q", label)
	}
	err := doc.ReadFromBytes(body)
	if lower := bytes.ToLower(body[:min(len(body), 1024)]); bytes.Contains(lower, []byte("<html")) || bytes.Contains(lower, []byte("<!doctype html")) {
		return nil, errors.New("the answer is a web page, not an Autodiscover document")
	}
	switch {
	case errors.Is(err, etree.ErrMaxDepth):
		return nil, errors.New("the answer is nested too deeply")
	case err != nil:
		return nil, errors.New("the answer is not well-formed XML")
	}
	roots := 0
	for _, t := range doc.Child {
		switch t := t.(type) {
		case *etree.Directive:
			return nil, errors.New("the answer has a DOCTYPE")
		case *etree.Element:
			roots++
		case *etree.CharData:
			if strings.TrimSpace(t.Data) != "" {
				return nil, errors.New("the answer has text outside its root")
			}
		}
	}
	if roots != 1 {
		return nil, errors.New("the answer is not one XML document")
	}
	return doc.Root(), nil
}

// text is the content of a leaf child, trimmed; empty when it is missing or not a leaf.
func text(e *etree.Element, tag string) string {
	c := e.SelectElement(tag)
	if c == nil || len(c.ChildElements()) > 0 {
		return ""
	}
	return strings.TrimSpace(c.Text())
}

func readError(e *etree.Element) *Answer {
	a := &Answer{Action: actionError, Message: clip(text(e, "Message"), 200)}
	a.ErrorCode, _ = strconv.Atoi(text(e, "ErrorCode"))
	return a
}

// readOutlook reads Response/Account of [DSCLI] 2.2.4.
func readOutlook(resp *etree.Element) (*Answer, error) {
	account := resp.SelectElement("Account")
	if account == nil {
		return nil, errors.New("the answer has no Account")
	}
	if e := account.SelectElement("Error"); e != nil {
		return readError(e), nil
	}
	switch action := text(account, "Action"); {
	case strings.EqualFold(action, actionAddress):
		return redirectAnswer(actionAddress, text(account, "RedirectAddr"))
	case strings.EqualFold(action, actionURL):
		return redirectAnswer(actionURL, text(account, "RedirectUrl"))
	case strings.EqualFold(action, actionSettings):
	default:
		return nil, fmt.Errorf("the answer has the unknown Action %q", clip(action, 40))
	}
	s := &Settings{Protocols: []Protocol{}}
	if user := resp.SelectElement("User"); user != nil {
		s.Address = text(user, "AutoDiscoverSMTPAddress")
	}
	for _, e := range account.SelectElements("Protocol") {
		p := Protocol{Type: text(e, "Type"), Server: text(e, "Server")}
		if p.Type == "" {
			p.Type = e.SelectAttrValue("Type", "") // mapiHttp says it in an attribute
		}
		if p.Type == "" {
			return nil, errors.New("the answer has a Protocol without Type")
		}
		p.Type, p.Server = clip(p.Type, 40), clip(p.Server, 320)
		p.URLs = urls(e, "")
		s.Protocols = append(s.Protocols, p)
	}
	return &Answer{Action: actionSettings, Settings: s}, nil
}

func redirectAnswer(action, to string) (*Answer, error) {
	if to == "" {
		return nil, fmt.Errorf("the answer says %s but not where to", action)
	}
	return &Answer{Action: action, RedirectTo: clip(to, 2048)}, nil
}

// urls collects the URLs below an element, named by their path, in the order of the document. EcpUrl fragments are no URLs of their own.
func urls(e *etree.Element, path string) []URL {
	var list []URL
	for _, c := range e.ChildElements() {
		name := path + c.Tag
		if len(c.ChildElements()) > 0 {
			list = append(list, urls(c, name+"/")...)
			continue
		}
		if v := strings.TrimSpace(c.Text()); strings.HasPrefix(v, "https://") || strings.HasPrefix(v, "http://") {
			list = append(list, URL{Name: name, URL: clip(v, 2048)})
		}
	}
	return list
}

// readMobileSync reads Response/Action of [ASCMD] 2.2.1.1.2, and as AOSP does ignores a Url that comes before its Type.
func readMobileSync(resp *etree.Element) (*Answer, error) {
	action := resp.SelectElement("Action")
	if action == nil {
		return nil, errors.New("the answer has no Action")
	}
	if to := text(action, "Redirect"); to != "" {
		return redirectAnswer(actionAddress, to)
	}
	settings := action.SelectElement("Settings")
	if settings == nil {
		if e := action.SelectElement("Error"); e != nil {
			return readError(e), nil
		}
		return nil, errors.New("the answer has neither Settings nor Redirect nor Error")
	}
	s := &Settings{Protocols: []Protocol{}}
	if user := resp.SelectElement("User"); user != nil {
		s.Address = text(user, "EMailAddress")
	}
	for _, e := range settings.SelectElements("Server") {
		var p Protocol
		for _, c := range e.ChildElements() {
			switch v := strings.TrimSpace(c.Text()); c.Tag {
			case "Type":
				p.Type = v
			case "Url":
				if p.Type != "" {
					p.URLs = append(p.URLs, URL{Name: c.Tag, URL: clip(v, 2048)})
				}
			case "Name":
				p.Server = clip(v, 2048)
			}
		}
		if p.Type == "MobileSync" && len(p.URLs) == 0 {
			return nil, errors.New("the answer has no Url after Type MobileSync")
		}
		s.Protocols = append(s.Protocols, p)
	}
	return &Answer{Action: actionSettings, Settings: s}, nil
}

// usable says whether the settings hold what the client needs.
func (s *Settings) usable(needs []string) bool {
	return slices.ContainsFunc(s.Protocols, func(p Protocol) bool { return slices.Contains(needs, p.Type) })
}

// clip shortens text of a stranger for a trace.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
