package autodiscover

import "github.com/beevik/etree"

const (
	nsMobileSyncResponse = "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006"

	activeSyncPath = "/Microsoft-Server-ActiveSync"

	// mobileStatus is the only Status that is ever sent: protocol error
	// ([MS-ASCMD] 2.2.3.177.1). Success has none.
	mobileStatus = "2"
)

// mobileErrors are the Message and DebugData of errors that concern the mailbox.
// Those that concern the request (600 and 601) are framework errors, in the form
// that Outlook gets.
var mobileErrors = map[errorCode][2]string{
	codeNotFound:    {"The address cannot be found", "User"},
	codeNoSettings:  {"The address has no configuration", "User"},
	codeBadConfig:   {"The domain is not configured", "Domain"},
	codeServerError: {"The directory cannot be reached", "MailUser"},
}

// renderMobileSync writes an outcome other than a redirect to an URL in the schema
// of ActiveSync ([MS-ASCMD] 2.2.2.1). The order is that of the schema: Android
// depends on it within Server.
func renderMobileSync(o outcome, q query) []byte {
	doc, root := newDocument()
	response := root.CreateElement("Response")
	response.CreateAttr("xmlns", nsMobileSyncResponse)
	text(response, "Culture", "en:us") // as Exchange has it since 2010, whatever the client speaks
	switch {
	case o.settings != nil:
		mobileUser(response, o.settings.displayName, o.settings.address)
	case q.login != nil && hasAddress(q.login, q.address):
		// Of others nothing is said but what was decided.
		mobileUser(response, firstOf(q.login.DisplayName, q.address), q.address)
	}
	action := response.CreateElement("Action")
	switch {
	case o.settings != nil:
		server := action.CreateElement("Settings").CreateElement("Server")
		url := o.settings.near() + activeSyncPath
		text(server, "Type", "MobileSync")
		text(server, "Url", url)
		text(server, "Name", url)
	case o.redirectAddr != "":
		text(action, "Redirect", o.redirectAddr)
	default:
		e, say := action.CreateElement("Error"), mobileErrors[o.code]
		text(e, "Status", mobileStatus)
		text(e, "Message", say[0])
		text(e, "DebugData", say[1])
	}
	return write(doc)
}

func mobileUser(response *etree.Element, name, address string) {
	user := response.CreateElement("User")
	text(user, "DisplayName", name)
	text(user, "EMailAddress", address)
}
