package lab

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/beevik/etree"
)

// The little of EWS that a client needs to come to the end of its call ([MS-OXWSFOLD], [MS-OXWSSRCH], [MS-OXWSNTIF]): every folder is
// called what it was asked for as, with one message in it that names the user; a streaming subscription brings one event.

const (
	ewsMessages = "http://schemas.microsoft.com/exchange/services/2006/messages"
	ewsTypes    = "http://schemas.microsoft.com/exchange/services/2006/types"
	ewsHead     = `<?xml version="1.0" encoding="utf-8"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Header>` +
		`<h:ServerVersionInfo MajorVersion="15" MinorVersion="2" MajorBuildNumber="1544" MinorBuildNumber="4" Version="V2017_07_11"` +
		` xmlns:h="` + ewsTypes + `"/></s:Header>`
	ewsTail = `</s:Envelope>`
)

// maxEWSOperation bounds a request that is looked into; what is longer is read and answered like one that is not known.
const maxEWSOperation = 256 << 10

// subscriptions are those streams that wait for their end: a channel by subscription, closed by Unsubscribe. All servers of a
// company share them, as from Exchange 2013 on, which finds the mailbox's server by itself; before, each has its own.
type subscriptions struct {
	mu     sync.Mutex
	last   int
	active map[string]chan struct{}
}

func (s *subscriptions) add() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == nil {
		s.active = map[string]chan struct{}{}
	}
	s.last++
	id := fmt.Sprintf("lab-subscription-%d", s.last)
	s.active[id] = make(chan struct{})
	return id
}

// ended returns what is closed when the subscription ends; nil when there is none of that name.
func (s *subscriptions) ended(id string) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.active[id]
}

func (s *subscriptions) remove(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.active[id]
	if ok {
		close(c)
		delete(s.active, id)
	}
	return ok
}

// serveEWS answers SOAP requests, those it does not know with an empty success, so that a client sees who it is; GET shows a page.
func (s *casServer) serveEWS(w http.ResponseWriter, r *http.Request, l login) {
	if strings.ToLower(r.URL.Path) != "/ews/exchange.asmx" {
		s.status(w, http.StatusNotFound)
		return
	}
	body := http.MaxBytesReader(w, r.Body, maxBody)
	var head bytes.Buffer
	_, err := io.CopyN(&head, body, maxEWSOperation)
	if err == nil {
		_, err = io.Copy(io.Discard, body)
	}
	if err != nil && err != io.EOF {
		s.status(w, http.StatusRequestEntityTooLarge)
		return
	}
	if r.Method == http.MethodGet {
		s.servePage(w, r, l)
		return
	}
	w.Header()["Content-Type"] = []string{"text/xml; charset=utf-8"}
	operation := ewsOperation(head.Bytes())
	if operation != nil && operation.Tag == "GetStreamingEvents" {
		s.streamEvents(w, r, operation)
		return
	}
	_, _ = io.WriteString(w, s.ewsAnswer(operation, l))
}

// ewsOperation is the one element in the body of an envelope; nil when there is none.
func ewsOperation(envelope []byte) *etree.Element {
	doc := etree.NewDocument()
	if err := doc.ReadFromBytes(envelope); err != nil || doc.Root() == nil {
		return nil
	}
	for _, e := range doc.Root().ChildElements() {
		if ops := e.ChildElements(); e.Tag == "Body" && len(ops) == 1 {
			return ops[0]
		}
	}
	return nil
}

func (s *casServer) ewsAnswer(operation *etree.Element, l login) string {
	if operation == nil {
		return ewsHead + `<s:Body/>` + ewsTail
	}
	folder := "Folder"
	for _, e := range operation.FindElements(".//DistinguishedFolderId") {
		folder = e.SelectAttrValue("Id", folder)
	}
	message := ""
	switch operation.Tag {
	case "GetFolder":
		message = fmt.Sprintf(`<m:Folders><t:Folder><t:FolderId Id="lab-%[1]s" ChangeKey="1"/><t:DisplayName>%[1]s</t:DisplayName>`+
			`<t:TotalCount>1</t:TotalCount><t:ChildFolderCount>0</t:ChildFolderCount><t:UnreadCount>0</t:UnreadCount></t:Folder></m:Folders>`,
			html.EscapeString(folder))
	case "FindItem":
		message = fmt.Sprintf(`<m:RootFolder IndexedPagingOffset="1" TotalItemsInView="1" IncludesLastItemInRange="true"><t:Items><t:Message>`+
			`<t:ItemId Id="lab-item" ChangeKey="1"/><t:Subject>For %s in %s, by %s</t:Subject></t:Message></t:Items></m:RootFolder>`,
			html.EscapeString(who(l)), html.EscapeString(folder), s.fqdn)
	case "Subscribe":
		message = `<m:SubscriptionId>` + s.streams.add() + `</m:SubscriptionId>`
	case "Unsubscribe":
		if !s.streams.remove(childText(operation, "SubscriptionId")) {
			return ewsResponse("Unsubscribe", "Error", "ErrorSubscriptionNotFound", "")
		}
	default:
		return ewsHead + `<s:Body/>` + ewsTail
	}
	return ewsResponse(operation.Tag, "Success", "NoError", message)
}

func childText(e *etree.Element, tag string) string {
	for _, c := range e.FindElements(".//" + tag) {
		return c.Text()
	}
	return ""
}

func ewsResponse(operation, class, code, message string) string {
	return fmt.Sprintf(`%[1]s<s:Body><m:%[3]sResponse xmlns:m="%[6]s" xmlns:t="%[7]s"><m:ResponseMessages><m:%[3]sResponseMessage ResponseClass="%[4]s">`+
		`<m:ResponseCode>%[5]s</m:ResponseCode>%[8]s</m:%[3]sResponseMessage></m:ResponseMessages></m:%[3]sResponse></s:Body>%[2]s`,
		ewsHead, ewsTail, operation, class, code, ewsMessages, ewsTypes, message)
}

// How long a stream of events lasts that nobody ends, and how often it says that it stands: 45 s in Exchange, less for tests.
const (
	streamTime      = time.Minute
	streamHeartbeat = 250 * time.Millisecond
)

// streamEvents answers GetStreamingEvents: an envelope that says the connection stands, one with an event, and when the client has
// unsubscribed, which it can do elsewhere only, the one that says it is closed. So a client gets to the end in time only if it was shown
// the event while the response was under way.
func (s *casServer) streamEvents(w http.ResponseWriter, r *http.Request, operation *etree.Element) {
	id := childText(operation, "SubscriptionId")
	ended := s.streams.ended(id)
	if ended == nil {
		_, _ = io.WriteString(w, ewsResponse(operation.Tag, "Error", "ErrorSubscriptionNotFound", ""))
		return
	}
	send := func(message string) {
		// In streams, Exchange's envelopes have no prefix, and clients look for that.
		text := strings.NewReplacer("<s:", "<", "</s:", "</", "xmlns:s=", "xmlns=").Replace(ewsResponse(operation.Tag, "Success", "NoError", message))
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
	}
	status := func(is string) { send(`<m:ConnectionStatus>` + is + `</m:ConnectionStatus>`) }
	status("OK")
	send(fmt.Sprintf(`<m:Notifications><m:Notification><t:SubscriptionId>%s</t:SubscriptionId><t:NewMailEvent>`+
		`<t:TimeStamp>2026-01-01T00:00:00Z</t:TimeStamp><t:ItemId Id="lab-item" ChangeKey="1"/><t:ParentFolderId Id="lab-inbox" ChangeKey="1"/>`+
		`</t:NewMailEvent></m:Notification></m:Notifications>`, html.EscapeString(id)))
	heartbeat := time.NewTicker(streamHeartbeat)
	defer heartbeat.Stop()
	end := time.After(streamTime)
	for {
		select {
		case <-ended:
			status("Closed")
			return
		case <-heartbeat.C:
			status("OK")
		case <-r.Context().Done():
			return
		case <-end: // too late for a client that sees the event now
			s.streams.remove(id)
			panic(http.ErrAbortHandler)
		}
	}
}
