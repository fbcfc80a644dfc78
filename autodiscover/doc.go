// Package autodiscover answers Autodiscover: it is the server that mail clients
// ask "here is my address, where is everything?".
//
// A request takes four steps, and each is a file:
//
//	login.go      who is asking: Basic, throttled (internal/throttle), 401 before
//	              anything of the body is read
//	pox.go        what is asked: the XML request, checked token by token
//	resolve.go    what the answer is: settings, a redirect, or an error code;
//	              knows nothing of HTTP or XML
//	outlook.go    the answer as an Outlook document; errors.go the error document
//	mobilesync.go the answer as a document for ActiveSync clients
//
// soap.go reads SOAP requests and answers them out of resolve; soapanswer.go writes
// the answers.
//
// json.go is Autodiscover V2. It needs no login and goes by the domain alone, so it
// has only the model in common with the others.
//
// rewrite.go stands apart: it changes the names in answers that a server behind the
// front door gave.
//
// handler.go strings them together as an [http.Handler]; model.go holds what
// resolve says and what the clients are told. A further dialect brings its own
// request reader and its own renderer and shares login, resolve and model.
//
// Every POX and SOAP answer is HTTP 200, errors too: to a client any other status means
// that there is no Autodiscover at this address and that it should look
// elsewhere. The exceptions are 401, 405, 413, 415 and 429, and for ActiveSync
// clients 302; and faults of SOAP, which are 500.
//
// Sources: [MS-OXDSCLI] and [MS-ASCMD] for the documents; the habits of clients named in the
// comments were read from their code or seen on the wire.
package autodiscover
