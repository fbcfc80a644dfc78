package lab

import (
	"strings"

	"github.com/beevik/etree"
)

// What Exchange says to devices, [MS-ASCMD]: the documents of an ActiveSync client's own discovery.

const (
	nsMobileSyncResponse = "http://schemas.microsoft.com/exchange/autodiscover/mobilesync/responseschema/2006"
	nsResponse           = "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"
)

// mobileSyncRequest tells whether a request asks for the MobileSync schema, and for whom. The root's namespace says nothing: some
// clients send Outlook's.
func mobileSyncRequest(body []byte) (address string, ok bool) {
	doc := etree.NewDocument()
	doc.ReadSettings.CharsetReader = nil
	if err := doc.ReadFromBytes(body); err != nil || doc.Root() == nil {
		return "", false
	}
	req := doc.Root().SelectElement("Request")
	if req == nil {
		return "", false
	}
	schema, mail := req.SelectElement("AcceptableResponseSchema"), req.SelectElement("EMailAddress")
	if schema == nil || mail == nil || !strings.EqualFold(strings.TrimSpace(schema.Text()), nsMobileSyncResponse) {
		return "", false
	}
	return strings.TrimSpace(mail.Text()), true
}

// mobileSyncAnswer is the settings of the mailbox, or the error of an address that has none here.
func (s *casServer) mobileSyncAnswer(address string) []byte {
	doc := etree.NewDocument()
	doc.CreateProcInst("xml", `version="1.0" encoding="utf-8"`)
	root := doc.CreateElement("Autodiscover")
	root.CreateAttr("xmlns", nsResponse)
	resp := root.CreateElement("Response")
	resp.CreateAttr("xmlns", nsMobileSyncResponse)
	resp.CreateElement("Culture").SetText("en:us")
	if acc := s.accounts.find(address, ""); acc != nil && strings.Contains(address, "@") {
		user := resp.CreateElement("User")
		user.CreateElement("DisplayName").SetText(acc.DisplayName)
		user.CreateElement("EMailAddress").SetText(acc.Address)
		server := resp.CreateElement("Action").CreateElement("Settings").CreateElement("Server")
		_, domain, _ := strings.Cut(acc.Address, "@")
		url := s.exchange[domain].ExternalURL + "/Microsoft-Server-ActiveSync"
		server.CreateElement("Type").SetText("MobileSync") // before Url, or Android does not see it
		server.CreateElement("Url").SetText(url)
		server.CreateElement("Name").SetText(url)
	} else {
		e := resp.CreateElement("Action").CreateElement("Error")
		e.CreateElement("Status").SetText("2")
		e.CreateElement("Message").SetText("The email address can't be found.")
		e.CreateElement("DebugData").SetText("MailUser")
		e.CreateElement("ErrorCode").SetText("500")
	}
	b, err := doc.WriteToBytes()
	if err != nil { // a document made above, written into memory
		panic(err)
	}
	return b
}
