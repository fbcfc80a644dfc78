package autodiscover

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/autodgate/autodgate/directory"
	"github.com/beevik/etree"
)

// soapCode is an ErrorCode of a SOAP answer.
type soapCode string

const (
	soapNoError             soapCode = "NoError"
	soapRedirectAddress     soapCode = "RedirectAddress"
	soapRedirectURL         soapCode = "RedirectUrl"
	soapInvalidUser         soapCode = "InvalidUser"
	soapInvalidDomain       soapCode = "InvalidDomain"
	soapInvalidRequest      soapCode = "InvalidRequest"
	soapInvalidSetting      soapCode = "InvalidSetting"
	soapNotAvailable        soapCode = "SettingIsNotAvailable"
	soapNotFederated        soapCode = "NotFederated"
	soapInternalServerError soapCode = "InternalServerError"
)

// soapText is fixed text, as in POX.
var soapText = map[soapCode]string{
	soapNoError:             "No error.",
	soapRedirectAddress:     "Use the redirect address.",
	soapRedirectURL:         "Use the redirect URL.",
	soapInvalidUser:         "Unknown user.",
	soapInvalidDomain:       "Domain is not served here.",
	soapInvalidRequest:      "The request is not valid.",
	soapInvalidSetting:      "Setting name is not known.",
	soapNotAvailable:        "Setting has no value.",
	soapNotFederated:        "Federation is not configured.",
	soapInternalServerError: "The request could not be answered.",
}

// soapAnswer is the answer to one request.
type soapAnswer struct {
	operation string
	relatesTo string
	version   serverVersion // that of the first who was asked about; zero: the default
	code      soapCode
	subjects  []soapSubject
}

// soapSubject is the answer for one user or domain.
type soapSubject struct {
	code     soapCode
	target   string // with the two redirects
	errors   []soapSettingError
	settings []soapSetting
}

type soapSettingError struct {
	name string
	code soapCode
}

type soapSetting struct {
	name  string
	value soapValue
}

// soapValue is what a setting holds; the zero value is a setting without any.
type soapValue struct {
	text         string
	owa, logins  string // WebClientUrls
	alternatives []directory.AlternativeMailbox
}

func (u *soapSubject) add(name string, known bool, v soapValue) {
	switch {
	case !known:
		u.errors = append(u.errors, soapSettingError{name, soapInvalidSetting})
	case v.text == "" && v.owa == "" && len(v.alternatives) == 0:
		u.errors = append(u.errors, soapSettingError{name, soapNotAvailable})
	default:
		u.settings = append(u.settings, soapSetting{name, v})
	}
}

// userSettingValues are the settings there are, with nil for those that have no value
// here. They say what POX says in EXCH and WEB (Internal) and EXPR (External).
var userSettingValues = map[string]func(s *settings) soapValue{
	"UserDisplayName":         func(s *settings) soapValue { return soapValue{text: s.displayName} },
	"UserDN":                  func(s *settings) soapValue { return soapValue{text: s.legacyDN} },
	"UserDeploymentId":        func(s *settings) soapValue { return soapValue{text: s.deploymentID} },
	"UserMSOnline":            func(*settings) soapValue { return soapValue{text: "False"} },
	"AutoDiscoverSMTPAddress": func(s *settings) soapValue { return soapValue{text: s.address} },
	"MailboxVersion":          func(s *settings) soapValue { return soapValue{text: s.version.dotted()} },
	"CasVersion":              func(s *settings) soapValue { return soapValue{text: s.version.dotted()} },
	"EwsSupportedSchemas":     func(s *settings) soapValue { return soapValue{text: s.version.schemas()} },
	"EwsPartnerUrl":           func(s *settings) soapValue { return soapValue{text: ewsURL(s.near())} },
	"GroupingInformation":     func(s *settings) soapValue { return soapValue{text: s.site} },
	"CertPrincipalName":       func(*settings) soapValue { return soapValue{text: "None"} },
	"MapiHttpEnabled":         func(s *settings) soapValue { return soapValue{text: trueFalse(s.version.mapiHTTP())} },
	"PublicFolderInformation": func(s *settings) soapValue { return soapValue{text: s.publicFolder} },
	"AlternateMailboxes":      func(s *settings) soapValue { return soapValue{alternatives: s.alternatives} },

	"InternalMailboxServer":                  func(s *settings) soapValue { return soapValue{text: s.mailboxID} },
	"InternalMailboxServerDN":                func(s *settings) soapValue { return soapValue{text: serverDN(s)} },
	"InternalRpcClientServer":                func(s *settings) soapValue { return soapValue{text: s.mailboxID} },
	"InternalRpcHttpServer":                  func(s *settings) soapValue { return soapValue{text: hostOf(s.inner())} },
	"InternalRpcHttpConnectivityRequiresSsl": func(*settings) soapValue { return soapValue{text: "True"} },
	"InternalRpcHttpAuthenticationMethod":    func(s *settings) soapValue { return soapValue{text: authMethods[s.authPackage]} },
	"InternalServerExclusiveConnect":         func(*settings) soapValue { return soapValue{text: "Off"} },
	"InternalEwsUrl":                         func(s *settings) soapValue { return soapValue{text: ewsURL(s.inner())} },
	"InternalEmwsUrl":                        func(s *settings) soapValue { return soapValue{text: ewsURL(s.inner())} },
	"InternalOABUrl":                         func(s *settings) soapValue { return soapValue{text: oabURL(s, s.inner())} },
	"InternalWebClientUrls":                  func(s *settings) soapValue { return soapValue{owa: s.inner() + "/owa/", logins: "Basic, Fba"} },
	"InternalEcpUrl":                         func(s *settings) soapValue { return optionsPage(s, s.inner(), "") },
	"InternalEcpEmailSubscriptionsUrl":       func(s *settings) soapValue { return optionsPage(s, s.inner(), connectedAccounts) },
	"InternalEcpDeliveryReportUrl":           func(s *settings) soapValue { return optionsPage(s, s.inner(), deliveryReports(s.domain)) },

	"ExternalMailboxServer":                      func(s *settings) soapValue { return soapValue{text: hostOf(s.outer())} },
	"ExternalMailboxServerRequiresSSL":           func(*settings) soapValue { return soapValue{text: "True"} },
	"ExternalMailboxServerAuthenticationMethods": func(s *settings) soapValue { return soapValue{text: authMethods[s.authPackage]} },
	"ExternalServerExclusiveConnect":             func(*settings) soapValue { return soapValue{text: "On"} },
	"ExternalEwsUrl":                             func(s *settings) soapValue { return soapValue{text: ewsURL(s.outer())} },
	"ExternalEwsVersion":                         func(s *settings) soapValue { return soapValue{text: s.version.dotted()} },
	"ExternalEmwsUrl":                            func(s *settings) soapValue { return soapValue{text: ewsURL(s.outer())} },
	"ExternalOABUrl":                             func(s *settings) soapValue { return soapValue{text: oabURL(s, s.outer())} },
	"ExternalWebClientUrls":                      func(s *settings) soapValue { return soapValue{owa: s.outer() + "/owa/", logins: "Fba"} },
	"ExternalEcpUrl":                             func(s *settings) soapValue { return optionsPage(s, s.outer(), "") },
	"ExternalEcpEmailSubscriptionsUrl":           func(s *settings) soapValue { return optionsPage(s, s.outer(), connectedAccounts) },
	"ExternalEcpDeliveryReportUrl":               func(s *settings) soapValue { return optionsPage(s, s.outer(), deliveryReports(s.domain)) },
}

func init() {
	userSettingValues["EcpEmailSubscriptionsUrlFragment"] = func(s *settings) soapValue { return optionsFragment(s, connectedAccounts) }
	userSettingValues["EcpDeliveryReportUrlFragment"] = func(s *settings) soapValue { return optionsFragment(s, deliveryReports(s.domain)) }
	for _, name := range strings.Fields(`
		MailboxDN ActiveDirectoryServer PublicFolderServer MobileMailboxPolicy MobileMailboxPolicyInterop DocumentSharingLocations
		ShowGalAsDefaultView CrossOrganizationSharingEnabled RedirectUrl ExchangeRpcUrl SPMySiteHostURL SiteMailboxCreationURL
		InternalMailboxServerAuthenticationMethods InteropExternalEwsUrl InteropExternalEwsVersion EcpTeamMailboxHidingUrlFragment`) {
		userSettingValues[name] = nil
	}
	for _, side := range []string{"Internal", "External"} {
		for _, name := range strings.Fields(`PhotosUrl UMUrl OutlookServiceUrl Pop3Connections Imap4Connections SmtpConnections`) {
			userSettingValues[side+name] = nil
		}
	}
	for _, page := range strings.Fields(`Voicemail TextMessaging RetentionPolicyTags Publishing Photo Connect TeamMailbox TeamMailboxCreating
		TeamMailboxEditing TeamMailboxHiding ExtensionInstallation`) {
		userSettingValues["InternalEcp"+page+"Url"] = nil
		userSettingValues["ExternalEcp"+page+"Url"] = nil
		userSettingValues["Ecp"+page+"UrlFragment"] = nil
	}
}

// authMethods are the login methods of Outlook Anywhere in the words of SOAP.
var authMethods = map[string]string{
	"basic": "Basic", "ntlm": "Ntlm", "kerb": "Negotiate", "kerbntlm": "Negotiate", "negotiate": "Negotiate", "certificate": "Certificate",
}

// optionsPage and optionsFragment are the options pages, which moved into OWA with
// 2013; of older ones nothing is said.
func optionsPage(s *settings, base, fragment string) soapValue {
	if s.version.major < 15 {
		return soapValue{}
	}
	return soapValue{text: base + "/owa/" + fragment}
}

func optionsFragment(s *settings, fragment string) soapValue {
	if s.version.major < 15 {
		return soapValue{}
	}
	return soapValue{text: fragment}
}

func trueFalse(b bool) string {
	if b {
		return "True"
	}
	return "False"
}

// dotted is the version as SOAP has it: 15.02.2562.000.
func (v serverVersion) dotted() string {
	return fmt.Sprintf("%02d.%02d.%04d.000", v.major, v.minor, v.build)
}

// name is the version as a schema of EWS. There is none for versions after 2016.
func (v serverVersion) name() string {
	all := strings.Split(v.schemas(), ", ")
	if v.major > 15 || v.major == 15 && v.minor > 0 {
		return "Exchange2016"
	}
	return all[len(all)-1]
}

// schemas are those of EWS that a server of this version speaks.
func (v serverVersion) schemas() string {
	all := []string{"Exchange2007", "Exchange2007_SP1", "Exchange2010", "Exchange2010_SP1", "Exchange2010_SP2", "Exchange2013", "Exchange2013_SP1"}
	switch {
	case v.mapiHTTP(): // came with 2013 SP1, as the schema did
	case v.major >= 15:
		all = all[:6]
	case v.major == 14:
		all = all[:min(3+v.minor, 5)]
	default:
		all = all[:2]
	}
	return strings.Join(all, ", ")
}

// renderSOAP writes an answer, in the order of Exchange. The same answer always gives
// the same bytes.
func renderSOAP(a soapAnswer) []byte {
	doc, envelope := newEnvelope()
	envelope.CreateAttr("xmlns:wsa", nsAddressing)
	header := envelope.CreateElement("s:Header")
	action := header.CreateElement("wsa:Action")
	action.CreateAttr("s:mustUnderstand", "1")
	action.SetText(nsSOAP + "/Autodiscover/" + a.operation + "Response")
	text(header, "wsa:RelatesTo", a.relatesTo)
	v := a.version
	if v == (serverVersion{}) {
		v, _ = parseVersion(DefaultServerVersion)
	}
	info := header.CreateElement("h:ServerVersionInfo")
	info.CreateAttr("xmlns:h", nsSOAP)
	text(info, "h:MajorVersion", strconv.Itoa(v.major))
	text(info, "h:MinorVersion", strconv.Itoa(v.minor))
	text(info, "h:MajorBuildNumber", strconv.Itoa(v.build))
	text(info, "h:MinorBuildNumber", "0")
	text(info, "h:Version", v.name())

	message := envelope.CreateElement("s:Body").CreateElement(a.operation + "ResponseMessage")
	message.CreateAttr("xmlns", nsSOAP)
	message.CreateAttr("xmlns:xsi", nsXSI)
	response := message.CreateElement("Response")
	errorOf(response, a.code, a.code != soapNoError)
	switch a.operation {
	case opUserSettings:
		all := response.CreateElement("UserResponses")
		for _, u := range a.subjects {
			e := all.CreateElement("UserResponse")
			errorOf(e, u.code, true)
			targetOf(e, u)
			settingsOf(e, u, "User", "")
		}
	case opDomainSettings:
		all := response.CreateElement("DomainResponses")
		for _, u := range a.subjects {
			e := all.CreateElement("DomainResponse")
			errorOf(e, u.code, true)
			settingsOf(e, u, "Domain", "Domain")
			targetOf(e, u)
		}
	}
	return writeSOAP(doc)
}

func renderFault(f *soapFault) []byte {
	doc, envelope := newEnvelope()
	fault := envelope.CreateElement("s:Body").CreateElement("s:Fault")
	text(fault, "faultcode", "s:"+f.code)
	reason := fault.CreateElement("faultstring")
	reason.CreateAttr("xml:lang", "en-US")
	reason.SetText(f.text)
	return writeSOAP(doc)
}

func newEnvelope() (*etree.Document, *etree.Element) {
	doc := etree.NewDocument()
	doc.CreateProcInst("xml", `version="1.0" encoding="utf-8"`)
	envelope := doc.CreateElement("s:Envelope")
	envelope.CreateAttr("xmlns:s", nsEnvelope)
	return doc, envelope
}

func errorOf(e *etree.Element, code soapCode, say bool) {
	text(e, "ErrorCode", string(code))
	if message := e.CreateElement("ErrorMessage"); say {
		message.SetText(soapText[code])
	}
}

func targetOf(e *etree.Element, u soapSubject) {
	target := e.CreateElement("RedirectTarget")
	if target.SetText(u.target); u.target == "" {
		target.CreateAttr("xsi:nil", "true")
	}
}

// settingsOf writes errors and settings of a user or domain. The types carry no
// prefix: the EWS Managed API compares them as they are written.
func settingsOf(e *etree.Element, u soapSubject, kind, typePrefix string) {
	list := e.CreateElement(kind + "SettingErrors")
	for _, f := range u.errors {
		one := list.CreateElement(kind + "SettingError")
		errorOf(one, f.code, true)
		text(one, "SettingName", f.name)
	}
	list = e.CreateElement(kind + "Settings")
	for _, s := range u.settings {
		one := list.CreateElement(kind + "Setting")
		is := func(name string) {
			one.CreateAttr("xsi:type", typePrefix+name)
			text(one, "Name", s.name)
		}
		switch {
		case s.value.owa != "":
			is("WebClientUrlCollectionSetting")
			client := one.CreateElement("WebClientUrls").CreateElement("WebClientUrl")
			text(client, "AuthenticationMethods", s.value.logins)
			text(client, "Url", s.value.owa)
		case s.value.alternatives != nil:
			is("AlternateMailboxCollectionSetting")
			all := one.CreateElement("AlternateMailboxes")
			for _, a := range s.value.alternatives {
				alternative(all.CreateElement("AlternateMailbox"), a)
			}
		default:
			is("StringSetting")
			text(one, "Value", s.value.text)
		}
	}
}

// writeSOAP writes empty elements as Exchange does; a value cannot hold that text.
func writeSOAP(doc *etree.Document) []byte {
	return bytes.ReplaceAll(write(doc), []byte("/>"), []byte(" />"))
}
