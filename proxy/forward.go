package proxy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// dropped tells which fields of a message end here because they speak of one
// connection only (RFC 9110 section 7.6.1). Transfer-Encoding is not among them:
// we re-frame chunks as chunks, so its line still holds.
func dropped(f *field, nominated []string) bool {
	switch len(f.name) {
	case 2:
		return f.is("TE")
	case 3:
		// Not of one hop only, but IIS was seen to forget a login behind it.
		return f.is("Via")
	case 7:
		if f.is("Upgrade") || f.is("Trailer") {
			return true
		}
	case 10:
		if f.is("Connection") || f.is("Keep-Alive") {
			return true
		}
	case 14:
		if f.is("HTTP2-Settings") {
			return true
		}
	case 16:
		if f.is("Proxy-Connection") {
			return true
		}
	case 18:
		if f.is("Proxy-Authenticate") {
			return true
		}
	case 19:
		if f.is("Proxy-Authorization") {
			return true
		}
	}
	if len(nominated) == 0 || f.is("Host") || f.is("Content-Length") || f.is("Transfer-Encoding") || f.is("Expect") {
		return false // what routes and frames a message cannot be nominated away
	}
	return slices.Contains(nominated, strings.ToLower(string(f.name)))
}

// claimed tells whether a request field is one by which a proxy tells a server
// about its client. From clients they are forgeries and are removed, also
// when spelled with "_", which some servers read as "-". The same goes for what
// Exchange's front end tells its back end (rule backend-headers).
func claimed(name []byte) bool {
	for _, c := range claims {
		if beginsAs(name, c.name) && (len(name) == len(c.name) || c.prefix) {
			return true
		}
	}
	return backEndHeader(name)
}

// claims are the fields of claimed, some by how they begin.
var claims = []struct {
	name   string
	prefix bool
}{
	{"x-forwarded", false},
	{"x-forwarded-", true},
	{"x-real-ip", false},
	{"x-arr-", true},
	{"x-ssl-", true},
	{"forwarded", false},
	{"front-end-https", false},
	{"true-client-ip", false},
	{"client-cert", false},
	{"client-cert-chain", false},
}

// beginsAs compares without regard to letter case, and "_" as "-"; it is asked of
// every header line, and so allocates nothing.
func beginsAs(name []byte, start string) bool {
	if len(name) < len(start) {
		return false
	}
	for i := range len(start) {
		c := name[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c |= 0x20
		case c == '_':
			c = '-'
		}
		if c != start[i] {
			return false
		}
	}
	return true
}

// forwardedClient returns the client that trusted proxies name in X-Forwarded-For:
// the last address that is not one of theirs. What stands before it a client may
// have made up. The unspecified address stands for nobody in particular.
func forwardedClient(fields []field, trusted []netip.Prefix) netip.Addr {
	client := netip.IPv4Unspecified()
	for i := len(fields) - 1; i >= 0; i-- {
		if !fields[i].is("X-Forwarded-For") {
			continue
		}
		list := strings.Split(string(fields[i].value), ",")
		for _, text := range slices.Backward(list) {
			text = strings.Trim(text, " \t")
			addr, err := netip.ParseAddr(strings.Trim(text, "[]"))
			if err != nil {
				ap, err := netip.ParseAddrPort(text) // some add the port
				if err != nil {
					return netip.IPv4Unspecified()
				}
				addr = ap.Addr()
			}
			if client = addr.Unmap(); !contains(trusted, client) {
				return client
			}
		}
	}
	return client
}

// forwarding is what the proxy adds to a request.
type forwarding struct {
	client  netip.Addr
	trusted bool // the peer is a trusted proxy: its X-Forwarded-For is continued
	host    string
	// certificate is the lines of RFC 9440 for the servers; nil: none.
	certificate []byte
	upgrade     bool // the Upgrade of this request is forwarded
	rename      bool // Host and Destination are left out: insertNames brings them
	whole       bool // the answer is to be read here: no part of it, and not compressed
}

// appendRequestHead appends the head a backend gets: the client's lines in their
// order and letter case, less what ends here, plus our own. No Via, never
// HTTP/1.0.
func appendRequestHead(dst []byte, h *requestHead, target string, fw forwarding) []byte {
	dst = append(dst, h.method...)
	dst = append(dst, ' ')
	dst = append(dst, target...)
	dst = append(dst, " HTTP/1.1\r\n"...)
	if !fw.rename && (h.absolute || h.authority == "") {
		// RFC 9112 section 3.2.2: the target's authority replaces what Host says.
		dst = append(dst, "Host: "...)
		if h.authority != "" {
			dst = append(dst, h.authority...)
		} else {
			dst = append(dst, fw.host...)
		}
		dst = append(dst, "\r\n"...)
	}
	var forwardedFor []byte
	for i := range h.fields {
		f := &h.fields[i]
		switch {
		case h.absolute && f.is("Host"), h.minor == 0 && f.is("Expect"):
			continue
		case fw.rename && (f.is("Host") || f.is("Destination")):
			continue
		case fw.whole && (f.is("Accept-Encoding") || f.is("Range") || f.is("If-Range")):
			continue
		case dropped(f, h.nominated):
			continue
		case claimed(f.name):
			if fw.trusted && f.is("X-Forwarded-For") {
				if forwardedFor != nil {
					forwardedFor = append(forwardedFor, ", "...)
				}
				forwardedFor = append(forwardedFor, f.value...)
			}
			continue
		}
		dst = appendField(dst, f, &h.framing)
	}
	if !h.chunked && h.contentLength < 0 && needsLength(h.method) {
		// http.sys answers 411 to a POST that says nothing of its body.
		dst = append(dst, "Content-Length: 0\r\n"...)
	}
	if fw.whole {
		dst = append(dst, "Accept-Encoding: identity\r\n"...)
	}
	if fw.upgrade {
		dst = append(dst, "Connection: Upgrade\r\nUpgrade: "...)
		dst = append(dst, h.upgradeTo...)
		dst = append(dst, "\r\n"...)
	}
	dst = append(dst, fw.certificate...)
	dst = append(dst, "X-Forwarded-For: "...)
	if forwardedFor != nil {
		dst = append(dst, forwardedFor...)
		dst = append(dst, ", "...)
	}
	dst = fw.client.AppendTo(dst)
	// Front-End-Https is what Exchange up to 2010 looks at (KB 327800).
	return append(dst, "\r\nX-Forwarded-Proto: https\r\nFront-End-Https: On\r\n\r\n"...)
}

// appendField appends a header line as it came. Only the two that frame the body
// are written anew, so that the receiver cannot read their blanks or letter case
// in another way than we did.
func appendField(dst []byte, f *field, fr *framing) []byte {
	switch {
	case f.is("Content-Length"):
		dst = append(append(dst, f.name...), ": "...)
		dst = strconv.AppendInt(dst, fr.contentLength, 10)
	case f.is("Transfer-Encoding"):
		dst = append(append(dst, f.name...), ": chunked"...)
	default:
		dst = append(dst, f.line...)
	}
	return append(dst, "\r\n"...)
}

func needsLength(method string) bool {
	switch method {
	case "POST", "PUT", "PATCH", "RPC_IN_DATA", "RPC_OUT_DATA":
		return true
	}
	return false
}

// appendResponseHead appends the head the client gets: status, reason phrase and
// lines as the backend sent them, less what speaks of the backend's connection
// only. connection is our own Connection option, "" for none. dropFraming removes
// Content-Length and Transfer-Encoding where the framing changes. edit is what else
// changes, nil for nothing.
func appendResponseHead(dst []byte, h *responseHead, connection string, dropFraming bool, edit *responseEdit) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = append(dst, h.statusLine...)
	dst = append(dst, "\r\n"...)
	for i := range h.fields {
		f := &h.fields[i]
		if dropped(f, h.nominated) && !(connection == "Upgrade" && f.is("Upgrade")) || dropFraming && (f.is("Transfer-Encoding") || f.is("Content-Length")) {
			continue
		}
		if edit != nil {
			dst = edit.appendField(dst, f, &h.framing)
			continue
		}
		dst = appendField(dst, f, &h.framing)
	}
	if edit != nil && edit.whole {
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, h.contentLength, 10)
		dst = append(dst, "\r\n"...)
	}
	if connection != "" {
		dst = append(dst, "Connection: "...)
		dst = append(dst, connection...)
		dst = append(dst, "\r\n"...)
	}
	return append(dst, "\r\n"...)
}
