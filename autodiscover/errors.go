package autodiscover

import (
	"hash/fnv"
	"strconv"
	"time"

	"github.com/beevik/etree"
)

// errorCode is the ErrorCode of a POX answer ([MS-OXDSCLI] 2.2.4.1.3).
type errorCode int

const (
	codeNotFound       errorCode = 500 // no such address, or none this user may ask about
	codeNoSettings     errorCode = 501 // the mailbox exists, but nothing is configured for its domain
	codeInvalidRequest errorCode = 600 // not a request at all
	codeNoProvider     errorCode = 601 // asks for a kind of answer that we do not give
	codeBadConfig      errorCode = 602 // the domain is configured in a way that cannot be answered
	codeServerError    errorCode = 603 // our fault
)

// errorText is fixed text on purpose: nothing of a request comes back in an error.
var errorText = map[errorCode]string{
	codeNotFound:       "Address not found",
	codeNoSettings:     "Bad Address",
	codeInvalidRequest: "Invalid Request",
	codeNoProvider:     "Provider is not available",
	codeBadConfig:      "Bad configuration",
	codeServerError:    "Server Error",
}

// renderError writes the error document. Its Response has no namespace of its
// own, unlike that of a successful answer; Time has exactly seven digits after
// the second ([MS-ASCMD] 2.2.3.63), and serverID stays the same for a server.
func renderError(code errorCode, now time.Time, serverID uint32) []byte {
	doc, root := newDocument()
	e := root.CreateElement("Response").CreateElement("Error")
	e.CreateAttr("Time", now.Format("15:04:05.0000000"))
	e.CreateAttr("Id", strconv.FormatUint(uint64(serverID), 10))
	text(e, "ErrorCode", strconv.Itoa(int(code)))
	text(e, "Message", errorText[code])
	e.CreateElement("DebugData")
	return write(doc)
}

// hashID makes the Id of error documents from the name of the server.
func hashID(name string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name))
	return h.Sum32()
}

// text adds an element that holds nothing but value; an empty value adds none.
func text(parent *etree.Element, tag, value string) {
	if value != "" {
		parent.CreateElement(tag).SetText(value)
	}
}
