package autodiscover

import (
	"bytes"
	"net/url"
	"strings"

	"github.com/autodgate/autodgate/directory"
	"github.com/beevik/etree"
)

const (
	nsResponse        = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"
	nsOutlookResponse = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"

	// nsOutlookOld is what nsOutlookResponse was called once; to ask for it is to
	// ask for the same.
	nsOutlookOld = "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006"
)

// wantsOutlook reports whether a schema, in the form of
// [Request.AcceptableResponseSchema], asks for the documents of this file.
func wantsOutlook(schema string) bool { return schema == nsOutlookResponse || schema == nsOutlookOld }

// renderOutlook writes an outcome other than an error in the Outlook schema
// ([MS-OXDSCLI] 2.2.4). The order of elements is that of Exchange on the wire;
// the same outcome always gives the same bytes.
func renderOutlook(o outcome, c client) []byte {
	doc, root := newDocument()
	response := root.CreateElement("Response")
	response.CreateAttr("xmlns", nsOutlookResponse)
	if o.settings != nil {
		renderSettings(response, o.settings, c)
		return write(doc)
	}
	account := response.CreateElement("Account")
	text(account, "AccountType", "email")
	if o.redirectAddr != "" {
		text(account, "Action", "redirectAddr")
		text(account, "RedirectAddr", o.redirectAddr)
	} else {
		text(account, "Action", "redirectUrl")
		text(account, "RedirectUrl", o.redirectURL)
	}
	return write(doc)
}

func renderSettings(response *etree.Element, s *settings, c client) {
	user := response.CreateElement("User")
	text(user, "DisplayName", s.displayName)
	text(user, "LegacyDN", s.legacyDN)
	text(user, "AutoDiscoverSMTPAddress", s.address)
	text(user, "DeploymentId", s.deploymentID)

	account := response.CreateElement("Account")
	text(account, "AccountType", "email")
	text(account, "Action", "settings")
	text(account, "MicrosoftOnline", "False")

	// A client that speaks MAPI over HTTP is told of that and must not be told of
	// EXCH or EXPR ([MS-OXDSCLI] 3.2.5.1); to the others mapiHttp means nothing.
	//
	// There is one Protocol per type, and EXHTTP only for clients that ask for it:
	// the EWS Managed API puts all types but EXCH, EXPR and WEB into one place and
	// fails on the second it finds there. EXHTTP and mapiHttp together are two, but
	// only a client that sent both headers gets both, and that one sends neither.
	switch mapi := c.mapiHTTP && s.version.mapiHTTP(); {
	case mapi && c.exHTTPInfo:
		renderEXHTTP(account, s, c)
		renderWEB(account, s)
		renderMapiHTTP(account, s)
	case mapi:
		renderMapiHTTP(account, s)
		renderWEB(account, s)
	default:
		renderEXCH(account, s)
		renderEXPR(account, s, c)
		if c.exHTTPInfo {
			renderEXHTTP(account, s, c)
		}
		renderWEB(account, s)
	}

	for _, a := range s.alternatives {
		renderAlternative(account, a)
	}
	if s.publicFolder != "" {
		text(account.CreateElement("PublicFolderInformation"), "SmtpAddress", s.publicFolder)
	}
}

// protocol begins a Protocol of the classic notation. Type comes first: some
// readers decide by it what to do with the rest.
func protocol(account *etree.Element, kind string) *etree.Element {
	p := account.CreateElement("Protocol")
	text(p, "Type", kind)
	return p
}

// renderEXCH is RPC over TCP inside, which since 2013 only lends its name to the
// block with the web services for clients at this place.
func renderEXCH(account *etree.Element, s *settings) {
	p := protocol(account, "EXCH")
	server := serverDN(s)
	text(p, "Server", s.mailboxID)
	text(p, "ServerDN", server)
	text(p, "ServerVersion", s.version.hex())
	text(p, "MdbDN", server+"/cn=Microsoft Private MDB")
	if s.authPackage != "" {
		// Nobody logs in over RPC/TCP through us; Exchange says the same.
		text(p, "AuthPackage", "anonymous")
	}
	text(p, "ServerExclusiveConnect", "off")
	renderServices(p, s, s.near())
}

// renderEXPR is Outlook Anywhere, always from outside.
func renderEXPR(account *etree.Element, s *settings, c client) {
	p := protocol(account, "EXPR")
	renderProxy(p, s, c, s.outer())
	text(p, "GroupingInformation", s.site)
}

// renderEXHTTP is the block of newer clients, for the place they are at.
func renderEXHTTP(account *etree.Element, s *settings, c client) {
	renderProxy(protocol(account, "EXHTTP"), s, c, s.near())
}

func renderProxy(p *etree.Element, s *settings, c client, base string) {
	text(p, "Server", hostOf(base))
	text(p, "SSL", "on")
	// Negotiate may only be told to those who say that they can; without the
	// element clients take Kerberos or NTLM, which is what it stands for.
	if s.authPackage != "negotiate" || c.negotiate {
		text(p, "AuthPackage", s.authPackage)
	}
	text(p, "ServerExclusiveConnect", "on")
	// None means to check the certificate as any. Left out, Outlook would want the
	// name of the server as the principal, which no wildcard certificate has.
	text(p, "CertPrincipalName", "None")
	renderServices(p, s, base)
}

// renderServices lists the web services. EWS is spelled exactly as IIS has it:
// clients compare. ASUrl is what many clients, evolution-ews among them, read as
// the address of EWS; OABUrl is a directory, to which they append oab.xml.
func renderServices(p *etree.Element, s *settings, base string) {
	ews := ewsURL(base)
	text(p, "ASUrl", ews)
	text(p, "EwsUrl", ews)
	text(p, "EmwsUrl", ews)
	if s.version.major >= 15 {
		// The options pages moved into OWA with 2013. The others are fragments that
		// clients append to EcpUrl as text, placeholders in angle brackets included.
		text(p, "EcpUrl", base+"/owa/")
		text(p, "EcpUrl-aggr", connectedAccounts)
		text(p, "EcpUrl-mt", deliveryReports(s.domain))
	}
	text(p, "OOFUrl", ews)
	text(p, "OABUrl", oabURL(s, base))
}

// connectedAccounts and deliveryReports are what clients append to the address of the
// options pages.
const connectedAccounts = "?path=/options/connectedaccounts"

func deliveryReports(domain string) string {
	return "options/ecp/PersonalSettings/DeliveryReport.aspx?rfr=olk&exsvurl=1&IsOWA=<IsOWA>&MsgID=<MsgID>&Mbx=<Mbx>&realm=" + domain
}

// oabURL is the directory of the offline address book.
func oabURL(s *settings, base string) string {
	oab := base + "/OAB/"
	if s.addressBook != "" {
		oab += url.PathEscape(s.addressBook) + "/"
	}
	return oab
}

// serverDN is the X.500 name of what EXCH calls the server.
func serverDN(s *settings) string {
	return organisation(s.legacyDN) + "/cn=Configuration/cn=Servers/cn=" + s.mailboxID
}

// renderMapiHTTP is MAPI over HTTP: the type is an attribute, and an URL is there
// only if it is configured.
func renderMapiHTTP(account *etree.Element, s *settings) {
	p := account.CreateElement("Protocol")
	p.CreateAttr("Type", "mapiHttp")
	p.CreateAttr("Version", "1") // the only one there is
	for _, part := range []struct{ tag, path string }{{"MailStore", "emsmdb"}, {"AddressBook", "nspi"}} {
		e := p.CreateElement(part.tag)
		for _, u := range []struct{ tag, base string }{{"InternalUrl", s.internal}, {"ExternalUrl", s.external}} {
			if u.base != "" {
				text(e, u.tag, u.base+"/mapi/"+part.path+"/?MailboxId="+s.mailboxID)
			}
		}
	}
}

// renderWEB is OWA, for both places: what a client learns at one it also uses at
// the other.
func renderWEB(account *etree.Element, s *settings) {
	p := protocol(account, "WEB")
	for _, side := range []struct{ tag, login, kind, base string }{
		{"Internal", "Basic, Fba", "EXCH", s.inner()},
		{"External", "Fba", "EXPR", s.outer()},
	} {
		e := p.CreateElement(side.tag)
		owa := e.CreateElement("OWAUrl")
		owa.CreateAttr("AuthenticationMethod", side.login)
		owa.SetText(side.base + "/owa/")
		text(protocol(e, side.kind), "ASUrl", ewsURL(side.base))
	}
}

// renderAlternative writes one of the two forms ([MS-OXDSCLI] 2.2.4.1.1.2.1).
func renderAlternative(account *etree.Element, a directory.AlternativeMailbox) {
	alternative(account.CreateElement("AlternativeMailbox"), a)
}

// alternative fills an element with an alternative mailbox; SOAP has the same names.
func alternative(e *etree.Element, a directory.AlternativeMailbox) {
	text(e, "Type", a.Type)
	text(e, "DisplayName", a.DisplayName)
	if a.SMTPAddress != "" {
		text(e, "SmtpAddress", a.SMTPAddress)
		text(e, "OwnerSmtpAddress", a.OwnerSMTPAddress)
		return
	}
	text(e, "LegacyDN", a.LegacyDN)
	text(e, "Server", a.Server)
}

func ewsURL(base string) string { return base + "/EWS/Exchange.asmx" }

// organisation is the part of a legacyDN that names organisation and
// administrative group.
func organisation(legacyDN string) string {
	lower := strings.ToLower(legacyDN)
	for _, cut := range []string{"/cn=recipients", "/cn="} {
		if i := strings.Index(lower, cut); i > 0 && len(lower) == len(legacyDN) {
			return legacyDN[:i]
		}
	}
	return legacyDN
}

func hostOf(base string) string {
	u, err := url.Parse(base)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// newDocument begins an answer. The declaration is no ornament: the EWS Managed
// API gives up on a document without one.
func newDocument() (*etree.Document, *etree.Element) {
	doc := etree.NewDocument()
	doc.CreateProcInst("xml", `version="1.0" encoding="utf-8"`)
	root := doc.CreateElement("Autodiscover")
	root.CreateAttr("xmlns", nsResponse)
	return doc, root
}

// write indents between elements, never inside a value: readers such as DavMail
// look for <EwsUrl>…</EwsUrl> on one line.
func write(doc *etree.Document) []byte {
	doc.Indent(2)
	b, err := doc.WriteToBytes()
	if err != nil {
		panic(err) // a buffer in memory does not fail
	}
	// etree leaves out the space that Exchange writes; a value cannot hold this text.
	return bytes.ReplaceAll(b, []byte("<DebugData/>"), []byte("<DebugData />"))
}
