package proxy

import (
	"fmt"
	"strings"
)

// mutation is what a client sends, and what has to come of it here: the statuses
// it gets, then behind "|" the whole requests that the backend sees, each named by
// the last segment of its target. "400" alone means that no backend sees a byte,
// "400~" that one may have got the beginning of the request before the fault came
// to light. A trailing "…" means that the client is left waiting for what it did
// not send, and closes.
type mutation struct {
	family, name string
	raw          string
	want         string
}

const (
	hostLine = "Host: mail.contoso.com\r\n"
	post     = "POST /owa/a HTTP/1.1\r\n" + hostLine
	teLine   = "Transfer-Encoding: chunked\r\n"
	lastPart = "0\r\n\r\n"
	// evil is the request that nobody may take for one where it stands in a body.
	evil = "GET /owa/evil HTTP/1.1\r\n" + hostLine + "\r\n"
	// next is the request behind, which ends the connection in good order.
	next = "GET /owa/next HTTP/1.1\r\n" + hostLine + "Connection: close\r\n\r\n"
)

func lengthLine(body string) string { return fmt.Sprintf("Content-Length: %d\r\n", len(body)) }

func chunk(data string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(data), data) }

// mutations are the cases of, in the families in which such attacks are
// known. They are written against the rules of RFC 9112 sections 2.2, 3, 5, 6 and 7
// one by one: whatever a rule forbids, or lets a server read in its own way, has a
// line here.
func mutations() (all []mutation) {
	family := ""
	add := func(name, raw, want string) {
		all = append(all, mutation{family, name, raw, want})
	}
	evilLen := lengthLine(evil)
	const both, refused = "200 200 | a, next", "400"

	family = "Sound requests"
	add("two in a row", get("/owa/a")+next, both)
	add("a body that looks like a request", post+evilLen+"\r\n"+evil+next, both)
	add("a chunk that looks like a request", post+teLine+"\r\n"+chunk(evil)+lastPart+next, both)
	add("GET with a body", "GET /owa/a HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, both)
	add("HEAD with a body", "HEAD /owa/a HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, both)
	add("HEAD with chunks", "HEAD /owa/a HTTP/1.1\r\n"+hostLine+teLine+"\r\n"+chunk("a")+lastPart+next, both)
	add("OPTIONS with a body", "OPTIONS /owa/a HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, both)
	add("length 0", post+"Content-Length: 0\r\n\r\n"+next, both)
	add("POST without a length", post+"\r\n"+next, both)
	add("CRLF between requests", get("/owa/a")+"\r\n"+next, both)
	add("chunk extensions", post+teLine+"\r\n1;a=\"b;c\"\r\na\r\n0;x\r\n\r\n"+next, both)
	add("chunk sizes with leading zeros", post+teLine+"\r\n0000001\r\na\r\n000\r\n\r\n"+next, both)
	add("chunk size in capitals", post+teLine+"\r\nA\r\n0123456789\r\n"+lastPart+next, both)
	add("trailer", post+teLine+"\r\n0\r\nX-A: b\r\n\r\n"+next, both)
	add("blanks round chunked", post+"Transfer-Encoding: \t chunked \t\r\n\r\n"+lastPart+next, both)
	add("CHUNKED", post+"TRANSFER-ENCODING: CHUNKED\r\n\r\n"+lastPart+next, both)
	add("absolute form, another Host", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\nHost: legacy.contoso.com\r\n\r\n"+next, both)
	add("HTTP/1.0, keep-alive", "POST /owa/a HTTP/1.0\r\n"+hostLine+"Connection: keep-alive\r\n"+evilLen+"\r\n"+evil+next, both)
	add("HTTP/1.0", "POST /owa/a HTTP/1.0\r\n"+hostLine+evilLen+"\r\n"+evil+evil, "200 | a")

	family = "Content-Length"
	for _, m := range [][2]string{
		{"plus sign", "Content-Length: +%d"},
		{"minus sign", "Content-Length: -%d"},
		{"hexadecimal", "Content-Length: 0x%x"},
		{"list", "Content-Length: %[1]d, %[1]d"},
		{"list with 0 first", "Content-Length: 0, %d"},
		{"list with 0 last", "Content-Length: %d, 0"},
		{"list with an empty element", "Content-Length: %d,"},
		{"blank inside", "Content-Length: %d 0"},
		{"zero and blank before", "Content-Length: 0 %d"},
		{"fraction", "Content-Length: %d.0"},
		{"exponent", "Content-Length: %de0"},
		{"underscore", "Content-Length: %d_0"},
		{"letter behind", "Content-Length: %da"},
		{"semicolon behind", "Content-Length: %d;"},
		{"quoted", "Content-Length: \"%d\""},
		{"vertical tab before", "Content-Length: \v%d"},
		{"form feed behind", "Content-Length: %d\f"},
		{"NUL behind", "Content-Length: %d\x00"},
		{"NUL before", "Content-Length: \x00%d"},
		{"no-break space before", "Content-Length: \xa0%d"},
		{"NEL behind", "Content-Length: %d\u0085"},
		{"other digits", "Content-Length: \u0665\u0666"},
		{"full-width digits", "Content-Length: \uff15"},
		{"64 bits overflow", "Content-Length: 184467440737095516%d"},
		{"32 bits overflow to a small one", "Content-Length: 99999999999999999999%d"},
		{"empty", "Content-Length:"},
		{"blanks only", "Content-Length: \t "},
		{"word", "Content-Length: chunked"},
		{"blank before the colon", "Content-Length : %d"},
		{"tab before the colon", "Content-Length\t: %d"},
		{"two colons", "Content-Length:: %d"},
		{"underscore in the name", "Content_Length: %d"},
		{"NUL in the name", "Content-Length\x00: %d"},
		{"no-break space in the name", "Content-Length\xa0: %d"},
		{"blank before the name", " Content-Length: %d"},
		{"folded", "Content-Length:\r\n %d"},
		{"folded behind another header", "X: y\r\n Content-Length: %d"},
		{"behind a bare CR", "X: y\rContent-Length: %d"},
		{"behind a bare LF", "X: y\nContent-Length: %d"},
		{"bare CR inside", "Content-Length: %d\r0"},
		{"bare LF inside", "Content-Length: %d\n0"},
		{"twice, equal", "Content-Length: %[1]d\r\nContent-Length: %[1]d"},
		{"twice, 0 first", "Content-Length: 0\r\nContent-Length: %d"},
		{"twice, 0 last", "Content-Length: %d\r\nContent-Length: 0"},
		{"twice, other letter case", "Content-Length: %d\r\ncontent-length: 0"},
		{"twice, the second empty", "Content-Length: %d\r\nContent-Length:"},
	} {
		line := m[1]
		if strings.Contains(line, "%") {
			line = fmt.Sprintf(line, len(evil))
		}
		add(m[0], post+line+"\r\n\r\n"+evil+next, refused)
	}
	add("leading zeros", post+fmt.Sprintf("Content-Length: 000%d\r\n\r\n", len(evil))+evil+next, both)
	add("nominated by Connection", post+"Connection: Content-Length\r\n"+evilLen+"\r\n"+evil+next, both)
	add("one too short for its body", post+lengthLine("abc")+"\r\nabcd"+next, "200 405 | a")
	add("body left unsent", post+"Content-Length: 5\r\n\r\na", "…")

	// Each once alone, where to overlook it leaves the body to be read as requests,
	// and once beside a length, where to heed it does.
	for _, m := range [][2]string{
		{"identity", "Transfer-Encoding: identity"},
		{"gzip, chunked", "Transfer-Encoding: gzip, chunked"},
		{"chunked, gzip", "Transfer-Encoding: chunked, gzip"},
		{"chunked twice in a list", "Transfer-Encoding: chunked, chunked"},
		{"chunked, identity", "Transfer-Encoding: chunked, identity"},
		{"identity, chunked", "Transfer-Encoding: identity, chunked"},
		{"empty element", "Transfer-Encoding: ,chunked"},
		{"comma behind", "Transfer-Encoding: chunked,"},
		{"xchunked", "Transfer-Encoding: xchunked"},
		{"chunkedx", "Transfer-Encoding: chunkedx"},
		{"chunk", "Transfer-Encoding: chunk"},
		{"cow", "Transfer-Encoding: cow"},
		{"parameter", "Transfer-Encoding: chunked;a=b"},
		{"weight", "Transfer-Encoding: chunked;q=0.5"},
		{"quoted", "Transfer-Encoding: \"chunked\""},
		{"in apostrophes", "Transfer-Encoding: 'chunked'"},
		{"vertical tab before", "Transfer-Encoding: \vchunked"},
		{"form feed before", "Transfer-Encoding: \fchunked"},
		{"vertical tab behind", "Transfer-Encoding: chunked\v"},
		{"NUL before", "Transfer-Encoding: \x00chunked"},
		{"NUL behind", "Transfer-Encoding: chunked\x00"},
		{"backspace before", "Transfer-Encoding: \bchunked"},
		{"DEL behind", "Transfer-Encoding: chunked\x7f"},
		{"byte 0xff before", "Transfer-Encoding: \xffchunked"},
		{"byte 0xff behind", "Transfer-Encoding: chunked\xff"},
		{"no-break space before", "Transfer-Encoding: \xa0chunked"},
		{"NEL behind", "Transfer-Encoding: chunked\u0085"},
		{"Kelvin sign for k", "Transfer-Encoding: chun\u212aed"},
		{"byte order mark", "Transfer-Encoding: \ufeffchunked"},
		{"percent-encoded", "Transfer-Encoding: %63hunked"},
		{"encoded word", "Transfer-Encoding: =?iso-8859-1?B?Y2h1bmtlZA==?="},
		{"blank before the colon", "Transfer-Encoding : chunked"},
		{"tab before the colon", "Transfer-Encoding\t: chunked"},
		{"vertical tab before the colon", "Transfer-Encoding\v: chunked"},
		{"NUL in the name", "Transfer-Encoding\x00: chunked"},
		{"byte 0xff in the name", "Transfer-Encoding\xff: chunked"},
		{"blank in the name", "Transfer Encoding: chunked"},
		{"underscore in the name", "Transfer_Encoding: chunked"},
		{"two colons", "Transfer-Encoding:: chunked"},
		{"colon before the name", ":Transfer-Encoding: chunked"},
		{"semicolon for colon", "Transfer-Encoding; chunked"},
		{"blank before the name", " Transfer-Encoding: chunked"},
		{"tab before the name", "\tTransfer-Encoding: chunked"},
		{"byte order mark before the name", "\ufeffTransfer-Encoding: chunked"},
		{"folded", "Transfer-Encoding:\r\n chunked"},
		{"folded with a tab", "Transfer-Encoding:\r\n\tchunked"},
		{"folded inside", "Transfer-Encoding: chun\r\n ked"},
		{"folded behind another header", "X: y\r\n Transfer-Encoding: chunked"},
		{"folded, more behind", "Transfer-Encoding: chunked\r\n , identity"},
		{"empty line fold", "X: y\r\n \r\nTransfer-Encoding: chunked"},
		{"behind a bare LF", "X: y\nTransfer-Encoding: chunked"},
		{"behind a bare CR", "X: y\rTransfer-Encoding: chunked"},
		{"behind LF CR", "X: y\n\rTransfer-Encoding: chunked"},
		{"behind CR CR LF", "X: y\r\r\nTransfer-Encoding: chunked"},
		{"bare CR behind", "Transfer-Encoding: chunked\rX: y"},
		{"bare LF behind", "Transfer-Encoding: chunked\nX: y"},
		{"bare CR in the value", "Transfer-Encoding: \rchunked"},
		{"bare CR before the colon", "Transfer-Encoding\r: chunked"},
		{"empty", "Transfer-Encoding:"},
		{"twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"},
		{"twice, identity first", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"},
		{"twice, identity last", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"},
		{"twice, the second empty", "Transfer-Encoding: chunked\r\nTransfer-Encoding:"},
		{"twice, other letter case", "Transfer-Encoding: chunked\r\ntransfer-encoding: cow"},
	} {
		body := lastPart + evil
		family = "Transfer-Encoding"
		add(m[0], post+m[1]+"\r\n\r\n"+body+next, refused)
		family = "Transfer-Encoding beside Content-Length"
		add(m[0], post+lengthLine(body)+m[1]+"\r\n\r\n"+body+next, refused)
	}
	family = "Transfer-Encoding beside Content-Length"
	body := lastPart + evil
	add("plain, length first", post+lengthLine(body)+teLine+"\r\n"+body+next, refused)
	add("plain, length last", post+teLine+lengthLine(body)+"\r\n"+body+next, refused)
	add("plain, short length (TE.CL)", post+"Content-Length: 4\r\n"+teLine+"\r\n"+chunk(evil)+lastPart+next, refused)
	add("plain, length 0 (TE.0)", "OPTIONS /owa/a HTTP/1.1\r\n"+hostLine+"Content-Length: 0\r\n"+teLine+"\r\n"+chunk(evil)+lastPart+next, refused)
	family = "Transfer-Encoding"
	add("nominated by Connection", post+"Connection: keep-alive, transfer-encoding\r\n"+teLine+"\r\n"+lastPart+next, both)
	add("tab before chunked", post+"Transfer-Encoding:\tchunked\r\n\r\n"+lastPart+next, both)
	add("chunked in TE, not in Transfer-Encoding", post+"TE: chunked\r\nConnection: TE\r\n\r\n"+next, both)
	add("HTTP/1.0", "POST /owa/a HTTP/1.0\r\n"+hostLine+teLine+"\r\n"+lastPart+evil, refused)
	add("HTTP/1.0, keep-alive", "POST /owa/a HTTP/1.0\r\n"+hostLine+"Connection: keep-alive\r\n"+teLine+"\r\n"+lastPart+evil, refused)
	add("GET (TE.0)", "GET /owa/a HTTP/1.1\r\n"+hostLine+teLine+"\r\n"+chunk(evil)+lastPart+next, both)

	family = "Chunks"
	for _, m := range [][2]string{
		{"size with plus", "+1\r\na\r\n"},
		{"size with minus", "-1\r\na\r\n"},
		{"size with 0x", "0x1\r\na\r\n"},
		{"size with 0X0", "0X0\r\n\r\n"},
		{"size with underscore", "1_0\r\n0123456789abcdef\r\n"},
		{"blank before the size", " 1\r\na\r\n"},
		{"blank behind the size", "1 \r\na\r\n"},
		{"tab behind the size", "1\t\r\na\r\n"},
		{"blank before an extension", "1 ;x\r\na\r\n"},
		{"vertical tab behind the size", "1\v\r\na\r\n"},
		{"NUL behind the size", "1\x00\r\na\r\n"},
		{"size empty", "\r\na\r\n"},
		{"size empty, with an extension", ";x\r\na\r\n"},
		{"size not hexadecimal", "g\r\na\r\n"},
		{"size with a fraction", "1.0\r\na\r\n"},
		{"size with a comma", "1,0\r\na\r\n"},
		{"size quoted", "\"1\"\r\na\r\n"},
		{"size over 64 bits", "10000000000000001\r\na\r\n"},
		{"size of 16 digits", "0000000000000001\r\na\r\n"},
		{"largest size", "ffffffffffffffff\r\na\r\n"},
		{"size ends with LF", "1\na\r\n"},
		{"size ends with CR", "1\ra\r\n"},
		{"size ends with CR CR LF", "1\r\r\na\r\n"},
		{"size ends with LF CR", "1\n\ra\r\n"},
		{"last chunk ends with LF", "0\n\r\n"},
		{"extension ends with LF", "1;x\na\r\n"},
		{"extension with a bare CR", "1;x\ry\r\na\r\n"},
		{"extension with NUL", "1;\x00\r\na\r\n"},
		{"extension, quote over a line", "1;x=\"\r\na\r\n\"\n"},
		{"extension without end", "1;" + strings.Repeat("x", maxChunkLine) + "\r\na\r\n"},
		{"data ends with LF", "1\r\na\n"},
		{"data ends with CR", "1\r\na\r"},
		{"data ends with nothing", "1\r\na"},
		{"data ends with LF CR", "1\r\na\n\r"},
		{"data ends with two letters", "1\r\naXX"},
		{"data too long", "1\r\nab\r\n"},
		{"blank behind the data", "1\r\na \r\n"},
		{"trailer folded", "0\r\nA: b\r\n c\r\n\r\n"},
		{"trailer ends with LF", "0\r\nA: b\n\r\n"},
		{"trailer without a name", "0\r\n: b\r\n\r\n"},
		{"trailer with NUL", "0\r\nA: \x00\r\n\r\n"},
		{"trailer with a blank before the colon", "0\r\nA : b\r\n\r\n"},
		{"trailer that is a request", "0\r\n" + get("/owa/evil")},
		{"trailers too large", "0\r\n" + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 20) + "\r\n"},
		{"end with LF", "0\r\n\n"},
		{"end with CR", "0\r\n\r\r\n"},
	} {
		add(m[0], post+teLine+"\r\n"+m[1]+lastPart+next, "400~")
	}
	add("trailer with a length", post+teLine+"\r\n0\r\n"+evilLen+teLine+"Host: evil\r\n\r\n"+next, both)
	add("left unsent", post+teLine+"\r\n5\r\na", "…")

	family = "Header lines"
	for _, m := range [][2]string{
		{"name with a blank", "X y: z\r\n"},
		{"blank before the colon", "X : z\r\n"},
		{"no name", ": z\r\n"},
		{"no colon", "X\r\n"},
		{"name with a control character", "X\x01: z\r\n"},
		{"name with a high byte", "X\xe9: z\r\n"},
		{"name in parentheses", "(X): z\r\n"},
		{"NUL in the value", "X: \x00\r\n"},
		{"bare CR in the value", "X: y\rz\r\n"},
		{"bare LF behind the value", "X: y\n"},
		{"LF CR", "X: y\n\r"},
		{"folded", "X: y\r\n z\r\n"},
		{"folded with nothing", "X: y\r\n \r\n"},
		{"escape in the value", "X: \x1b\r\n"},
		{"first line begins with a blank", " X: y\r\n"},
	} {
		add(m[0], "GET /owa/a HTTP/1.1\r\n"+hostLine+m[1]+"\r\n"+next, refused)
	}
	add("head ends with LF LF", "GET /owa/a HTTP/1.1\nHost: mail.contoso.com\n\n"+next, refused)
	add("head ends with CRLF LF", "GET /owa/a HTTP/1.1\r\n"+hostLine+"\n"+next, refused)
	add("head ends with CR CR", "GET /owa/a HTTP/1.1\r\nHost: mail.contoso.com\r\r"+next, refused)
	add("blank line before the first header", "GET /owa/a HTTP/1.1\r\n \r\n"+hostLine+"\r\n"+next, refused)
	add("1001 lines", "GET /owa/a HTTP/1.1\r\n"+hostLine+strings.Repeat("X: y\r\n", maxFields)+"\r\n"+next, "431")
	add("a line of 90 KiB", "GET /owa/a HTTP/1.1\r\n"+hostLine+"X: "+strings.Repeat("y", 90<<10)+"\r\n\r\n"+next, "431")
	add("Connection nominates Host and Expect", post+"Connection: Host, Expect\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na"+next, "100 200 200 or 200 200 | a, next")

	family = "Host"
	for _, m := range [][2]string{
		{"twice", hostLine + hostLine},
		{"twice, another", hostLine + "host: evil.example\r\n"},
		{"missing", ""},
		{"empty", "Host:\r\n"},
		{"list", "Host: mail.contoso.com, evil.example\r\n"},
		{"with a path", "Host: mail.contoso.com/evil\r\n"},
		{"with a user", "Host: mail.contoso.com@evil.example\r\n"},
		{"with a blank", "Host: mail.contoso.com evil.example\r\n"},
		{"with NUL", "Host: mail.contoso.com\x00.evil.example\r\n"},
		{"bad port", "Host: mail.contoso.com:4a\r\n"},
		{"two ports", "Host: mail.contoso.com:443:80\r\n"},
		{"brackets that hold no address", "Host: [mail.contoso.com]\r\n"},
		{"blank before the colon", "Host : mail.contoso.com\r\n"},
		{"folded", "Host:\r\n mail.contoso.com\r\n"},
		{"first line folded", " Host: evil.example\r\n" + hostLine},
		{"behind a bare CR", "X: y\rHost: evil.example\r\n" + hostLine},
		{"high byte", "Host: mail.contoso.com\xff\r\n"},
		{"percent-encoded", "Host: mail%2econtoso.com\r\n"},
	} {
		add(m[0], "GET /owa/a HTTP/1.1\r\n"+m[1]+"\r\n"+next, refused)
	}
	add("absolute form with a user", "GET https://a@mail.contoso.com/owa/a HTTP/1.1\r\n"+hostLine+"\r\n"+next, refused)
	add("absolute form without a host", "GET https:///owa/a HTTP/1.1\r\n"+hostLine+"\r\n"+next, refused)
	add("absolute form, two Hosts", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\n"+hostLine+hostLine+"\r\n"+next, refused)
	add("absolute form, no Host", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\n\r\n"+next, refused)
	add("absolute form, malformed Host", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\nHost: a b\r\n\r\n"+next, refused)
	add("absolute form, other scheme", "GET ftp://mail.contoso.com/owa/a HTTP/1.1\r\n"+hostLine+"\r\n"+next, refused)

	family = "Request line"
	for _, m := range [][2]string{
		{"HTTP/0.9", "GET /owa/a\r\n"},
		{"HTTP/0.9 with headers", "GET /owa/a\r\n" + hostLine + "\r\n"},
		{"no target", "GET HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"two blanks", "GET  /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"blank behind", "GET /owa/a HTTP/1.1 \r\n" + hostLine + "\r\n"},
		{"tab for a blank", "GET\t/owa/a\tHTTP/1.1\r\n" + hostLine + "\r\n"},
		{"vertical tab for a blank", "GET\v/owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"blank before", " GET /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"blank in the target", "GET /owa/a b HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"version in the target", "GET /owa/a HTTP/1.1 HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"tab in the target", "GET /owa/a\tb HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"NUL in the target", "GET /owa/a\x00 HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"bare CR in the target", "GET /owa/a\rb HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"bare CR behind the version", "GET /owa/a HTTP/1.1\rX: y\r\n" + hostLine + "\r\n"},
		{"bare LF", "GET /owa/a HTTP/1.1\n" + hostLine + "\r\n"},
		{"CR CR LF", "GET /owa/a HTTP/1.1\r\r\n" + hostLine + "\r\n"},
		{"fragment", "GET /owa/a#b HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"target without a slash", "GET owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"backslash target", "GET \\owa\\a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"star with GET", "GET * HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"method with a control character", "G\x01ET /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"method with a colon", "GET: /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"byte order mark before", "\ufeffGET /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"http/1.1", "GET /owa/a http/1.1\r\n" + hostLine + "\r\n"},
		{"HTTP/1.10", "GET /owa/a HTTP/1.10\r\n" + hostLine + "\r\n"},
		{"HTTP/01.1", "GET /owa/a HTTP/01.1\r\n" + hostLine + "\r\n"},
		{"HTTP/1.", "GET /owa/a HTTP/1.\r\n" + hostLine + "\r\n"},
		{"HTTP/1,1", "GET /owa/a HTTP/1,1\r\n" + hostLine + "\r\n"},
		{"HTTPS/1.1", "GET /owa/a HTTPS/1.1\r\n" + hostLine + "\r\n"},
		{"ICY/1.1", "GET /owa/a ICY/1.1\r\n" + hostLine + "\r\n"},
		{"three empty lines before", "\r\n\r\n\r\nGET /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"LF before", "\nGET /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"CR before", "\rGET /owa/a HTTP/1.1\r\n" + hostLine + "\r\n"},
		{"TLS hello in clear", "\x16\x03\x01\x00\x05hello"},
	} {
		add(m[0], m[1]+next, refused)
	}
	for _, v := range []string{"0.9", "1.2", "1.9", "2.0", "3.0", "9.9"} {
		add("version "+v, "GET /owa/a HTTP/"+v+"\r\n"+hostLine+"\r\n"+next, "505")
	}
	add("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"+next, "505")
	add("CONNECT with a length", "CONNECT mail.contoso.com:443 HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+next, refused)
	add("CONNECT with chunks", "CONNECT mail.contoso.com:443 HTTP/1.1\r\n"+hostLine+teLine+"\r\n"+lastPart+next, refused)
	add("CONNECT", "CONNECT mail.contoso.com:443 HTTP/1.1\r\n"+hostLine+"\r\n"+next, "405 200 | next")
	add("TRACE with a body", "TRACE /owa/a HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, "405 200 | next")
	add("lower-case method", "get /owa/a HTTP/1.1\r\n"+hostLine+"\r\n"+next, "405 200 | next")
	add("unknown method", "GETGET /owa/a HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, "405 200 | next")

	family = "Expect"
	for _, m := range [][2]string{
		{"list", "Expect: 100-continue, x\r\n"}, {"twice", "Expect: 100-continue\r\nExpect: 100-continue\r\n"}, {"word before", "Expect: y 100-continue\r\n"}, {"other", "Expect: 200-ok\r\n"}, {"empty", "Expect:\r\n"}, {"parameter", "Expect: 100-continue;q=1\r\n"},
	} {
		add(m[0], post+m[1]+evilLen+"\r\n"+evil+next, "417")
	}
	add("bare LF in front", post+"Expect: x\n100-continue\r\n"+evilLen+"\r\n"+evil+next, refused)
	add("folded", post+"Expect: 100-\r\n continue\r\n"+evilLen+"\r\n"+evil+next, refused)
	add("body sent at once", post+"Expect: 100-continue\r\n"+evilLen+"\r\n"+evil+next, "100 200 200 or 200 200 | a, next")
	add("chunks sent at once", post+"Expect: 100-continue\r\n"+teLine+"\r\n"+chunk(evil)+lastPart+next, "100 200 200 or 200 200 | a, next")
	add("HTTP/1.0", "POST /owa/a HTTP/1.0\r\n"+hostLine+"Expect: 100-continue\r\nConnection: keep-alive\r\n"+evilLen+"\r\n"+evil+next, both)
	add("answered before the body", "POST /owa/early HTTP/1.1\r\n"+hostLine+"Expect: 100-continue\r\n"+evilLen+"\r\n"+evil+next, "200 200 | early, next")

	family = "Upgrade"
	const upgrade = "Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
	add("h2c", "GET /owa/a HTTP/1.1\r\n"+hostLine+upgrade+"Upgrade: h2c\r\n\r\n"+next, both)
	add("h2c with a body", post+upgrade+"Upgrade: h2c\r\n"+evilLen+"\r\n"+evil+next, both)
	add("websocket, refused by the server", "GET /ws/a HTTP/1.1\r\n"+hostLine+"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\n\r\n"+next, both)
	add("websocket with a body", "GET /ws/a HTTP/1.1\r\n"+hostLine+"Connection: Upgrade\r\nUpgrade: websocket\r\n"+evilLen+"\r\n"+evil+next, both)
	add("Upgrade without Connection", "GET /ws/a HTTP/1.1\r\n"+hostLine+"Upgrade: websocket\r\n\r\n"+next, both)

	family = "Early answers"
	add("body at once (0.CL)", "POST /owa/early HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, "200 200 | early, next")
	add("chunks at once", "POST /owa/early HTTP/1.1\r\n"+hostLine+teLine+"\r\n"+chunk(evil)+lastPart+next, "200 200 | early, next")
	add("bad chunks behind", "POST /owa/early HTTP/1.1\r\n"+hostLine+teLine+"\r\n"+chunk("a")+"zz\r\n"+evil, "400~ or 200~")
	add("a server that takes the body for a request (CL.0)", "POST /owa/bodiless HTTP/1.1\r\n"+hostLine+evilLen+"\r\n"+evil+next, "200 | bodiless")
	return all
}

// localMutations are answered here, and what is behind them is found where it
// should be.
func localMutations() []mutation {
	evilLen := lengthLine(evil)
	return []mutation{
		{"", "404 with a body", "POST /nowhere HTTP/1.1\r\n" + hostLine + evilLen + "\r\n" + evil + next, "404 200 | next"},
		{"", "404 with chunks", "POST /nowhere HTTP/1.1\r\n" + hostLine + teLine + "\r\n" + chunk(evil) + lastPart + next, "404 200 | next"},
		{"", "404 with a bad chunk", "POST /nowhere HTTP/1.1\r\n" + hostLine + teLine + "\r\n" + chunk(evil) + "-1\r\n" + evil, "404"},
		{"", "404 with Expect, unsent", "POST /nowhere HTTP/1.1\r\n" + hostLine + "Expect: 100-continue\r\n" + evilLen + "\r\n" + evil + next, "404 200 | next"},
		{"", "405 with a body", "DELETE /owa/a HTTP/1.1\r\n" + hostLine + evilLen + "\r\n" + evil + next, "405 200 | next"},
		{"", "421 with a body", "POST /owa/a HTTP/1.1\r\nHost: evil.example\r\n" + evilLen + "\r\n" + evil + next, "421 200 | next"},
		{"", "absolute form beside the Host of nobody", "GET https://mail.contoso.com/owa/a HTTP/1.1\r\nHost: evil.example\r\n\r\n" + next, "421 200 | next"},
		{"", "prefix of a request as body of 404", "GET /nowhere HTTP/1.1\r\n" + hostLine + "Content-Length: 5\r\n\r\nGET /" + next, "404 200 | next"},
		{"", "path that two servers read differently", "POST /owa/..%2fecp/ HTTP/1.1\r\n" + hostLine + evilLen + "\r\n" + evil + next, "400"},
	}
}
