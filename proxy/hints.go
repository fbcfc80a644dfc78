package proxy

import (
	"bytes"
	"net/http"
)

// What administrators of Exchange would otherwise have to find out the long way.
const (
	hintFieldLength = "the server's http.sys takes no request headers of this size (Kerberos tickets grow with group memberships): raise MaxFieldLength and " +
		`MaxRequestBytes in HKLM\SYSTEM\CurrentControlSet\Services\HTTP\Parameters there`
	hintHostName = "the server's IIS has no binding for this host name"
	hintHTTPSys  = `http.sys on the server refused the request before IIS saw it: the reason is in %SystemRoot%\System32\LogFiles\HTTPERR there`
	hintNoBasic  = "the server does not offer Basic in this virtual directory, which is what the client sent"
	hintBinding  = "if the password is right: Extended Protection on the server needs the same certificate here and there, and no offloading"
	hintNeedsTLS = "the virtual directory may demand SSL (403.4), and the server is spoken to in clear"
	hintTooLarge = "a limit of the server: maxAllowedContentLength and maxRequestLength in the virtual directory's web.config (uploadReadAheadSize where it asks for client certificates)"
	hintSession  = "OWA's session is over, or was begun on another server: servers with one name need the same certificate for it (Exchange 2013 and later) or affinity (2007, 2010)"
	hintRPC      = "the server's RPC proxy did not get through to the RPC service (6ba: it is not there): look at MSExchangeRPC and the ports 6001, 6002 and 6004 on the server"
	hintPool     = "the application pool behind the virtual directory is stopped on the server"
)

// maxFieldLength is what http.sys takes of request headers unless told otherwise
// (KB 820129).
const maxFieldLength = 16384

// hint says what may stand behind an error that a backend answers, for the log; ""
// if nothing is known. Only errors get here.
func (x *exchange) hint() string {
	s, r := x.s, &x.s.resp
	httpSys := false
	for i := range r.fields {
		if f := &r.fields[i]; f.is("Server") {
			// With IIS it is Microsoft-IIS; http.sys answers by this name what IIS never sees.
			httpSys = bytes.HasPrefix(f.value, []byte("Microsoft-HTTPAPI/"))
		}
	}
	switch r.status {
	case http.StatusBadRequest:
		in := &x.up.in
		start := in.buf[in.r:min(in.w, in.r+1024)] // of the body, if it came with the head
		switch {
		case !httpSys:
		case bytes.Contains(start, []byte("Request Too Long")):
			return hintFieldLength
		case bytes.Contains(start, []byte("Invalid Hostname")):
			return hintHostName
		case x.headBytes > maxFieldLength:
			return hintFieldLength
		default:
			return hintHTTPSys
		}
	case http.StatusUnauthorized:
		return s.login.hint(r)
	case http.StatusForbidden:
		if x.up.backend.TLS == nil {
			return hintNeedsTLS
		}
	case http.StatusNotFound:
		if s.head.contentLength > 30_000_000 { // 404.13 is IIS's word for too large
			return hintTooLarge
		}
	case http.StatusRequestEntityTooLarge:
		return hintTooLarge
	case 440:
		return hintSession
	case http.StatusServiceUnavailable:
		switch {
		case bytes.HasPrefix(r.statusLine[min(4, len(r.statusLine)):], []byte("RPC Error")):
			return hintRPC
		case httpSys:
			return hintPool
		}
	}
	return ""
}

// hint says what may stand behind a login that failed.
func (l *login) hint(r *responseHead) string {
	switch offered := r.challenges(); {
	case l.basic && offered.any && !offered.basic:
		return hintNoBasic
	case l.bound && l.failures > 1: // once may be a typing error
		return hintBinding
	}
	return ""
}
