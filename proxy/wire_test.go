package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// This file reads HTTP/1.1 off recorded bytes for the smuggling suite, with no
// line of the program's own parser: once strictly, as RFC 9112 has it without any
// of its tolerances, and in several very lenient ways in which servers in the
// field have been found to read. Bytes on which all of them agree can be told
// apart by any server; bytes on which two differ are what smuggling is made of.

// message is one request or response found in a byte stream.
type message struct {
	start, end int // of the whole message; end is where the bytes run out if it is cut off
	headEnd    int // 0: the head is cut off
	line       string
	method     string
	target     string // the last segment of the target's path
	status     int
	expect     bool
	complete   bool
}

// strictRequests reads requests as RFC 9112 defines them, and not one byte beside
// them. narrow admits less: of the ways to write a framing only the one in which
// this program writes it, and no trailers.
func strictRequests(data []byte, narrow bool) (all []message, err error) {
	for pos := 0; pos < len(data); {
		m := message{start: pos}
		head, _, ok := bytes.Cut(data[pos:], []byte("\r\n\r\n"))
		if !ok {
			m.end = len(data)
			return append(all, m), nil
		}
		m.headEnd = pos + len(head) + 4
		lines := strings.Split(string(head), "\r\n")
		f := requestLine.FindStringSubmatch(lines[0])
		if f == nil {
			return all, fmt.Errorf("request line %q", lines[0])
		}
		if narrow && (f[3] != "1" || f[2][0] != '/') {
			return all, fmt.Errorf("request line %q", lines[0])
		}
		m.line, m.method, m.target = lines[0], f[1], lastSegment(f[2])
		length, chunked, hosts, err := strictFields(lines[1:], &m, narrow)
		if err != nil {
			return all, err
		}
		if hosts != 1 && (f[3] == "1" || hosts > 1) {
			return all, fmt.Errorf("%d Host lines", hosts)
		}
		if length < 0 && !chunked {
			length = 0
		}
		if err := m.strictBody(data, length, chunked, narrow); err != nil {
			return all, err
		}
		all, pos = append(all, m), m.end
	}
	return all, nil
}

// strictResponses reads the responses to requests with the given methods; the last
// may end with the connection.
func strictResponses(data []byte, methods ...string) (all []message, err error) {
	for pos := 0; pos < len(data); {
		m := message{start: pos}
		head, _, ok := bytes.Cut(data[pos:], []byte("\r\n\r\n"))
		if !ok {
			m.end = len(data)
			return append(all, m), nil
		}
		m.headEnd = pos + len(head) + 4
		lines := strings.Split(string(head), "\r\n")
		f := statusLine.FindStringSubmatch(lines[0])
		if f == nil {
			return all, fmt.Errorf("status line %q", lines[0])
		}
		m.line = lines[0]
		m.status, _ = strconv.Atoi(f[1])
		length, chunked, _, err := strictFields(lines[1:], &m, true)
		if err != nil {
			return all, err
		}
		if m.status < 200 {
			if length >= 0 || chunked {
				return all, fmt.Errorf("%d with a body", m.status)
			}
			m.end, m.complete = m.headEnd, true
			all, pos = append(all, m), m.end
			continue
		}
		if len(methods) == 0 {
			return all, fmt.Errorf("an answer that nobody asked for: %q", lines[0])
		}
		m.method, methods = methods[0], methods[1:]
		switch {
		case m.status == 204 && (length >= 0 || chunked):
			return all, errors.New("204 with a body")
		case m.method == "HEAD", m.status == 204, m.status == 304:
			m.end, m.complete = m.headEnd, true
		case length < 0 && !chunked:
			m.end, m.complete = len(data), true // until the connection ends
		default:
			if err := m.strictBody(data, length, chunked, true); err != nil {
				return all, err
			}
		}
		all, pos = append(all, m), m.end
	}
	return all, nil
}

var (
	// Targets may hold bytes over 0x7f: browsers send them in queries.
	requestLine = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^\\x00-\\x20\\x7f#]+) HTTP/1\\.([01])$")
	statusLine  = regexp.MustCompile(`^HTTP/1\.1 ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?$`)
	fieldLine   = regexp.MustCompile("^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \\t]*([^\\x00-\\x08\\x0a-\\x1f\\x7f]*)$")
	hostValue   = regexp.MustCompile(`^([0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]*)?$`)
	// narrowly: without the leading zeros that the grammar has
	number    = regexp.MustCompile(`^(0|[1-9][0-9]{0,17})$`)
	digits    = regexp.MustCompile(`^[0-9]+$`)
	chunkLine = regexp.MustCompile(`^[0-9a-fA-F]{1,15}$`)
)

func strictFields(lines []string, m *message, narrow bool) (length int64, chunked bool, hosts int, err error) {
	length = -1
	lengths := 0
	for _, l := range lines {
		f := fieldLine.FindStringSubmatch(l)
		if f == nil {
			return 0, false, 0, fmt.Errorf("header line %q", l)
		}
		// Some servers tell "_" from "-" and others do not.
		value := strings.TrimRight(f[2], " \t")
		switch strings.ReplaceAll(strings.ToLower(f[1]), "_", "-") {
		case "content-length":
			length, err = strconv.ParseInt(value, 10, 64)
			if lengths++; lengths > 1 || f[1][7] == '_' || !digits.MatchString(value) || err != nil || narrow && !number.MatchString(value) {
				return 0, false, 0, fmt.Errorf("%q", l)
			}
		case "transfer-encoding":
			if chunked || f[1][8] == '_' || !strings.EqualFold(value, "chunked") || narrow && value != "chunked" {
				return 0, false, 0, fmt.Errorf("%q", l)
			}
			chunked = true
		case "host":
			hosts++
			if !hostValue.MatchString(value) {
				return 0, false, 0, fmt.Errorf("%q", l)
			}
		case "expect":
			if m.expect || !strings.EqualFold(value, "100-continue") {
				return 0, false, 0, fmt.Errorf("%q", l)
			}
			m.expect = true
		}
	}
	if length >= 0 && chunked {
		return 0, false, 0, errors.New("both Content-Length and Transfer-Encoding")
	}
	return length, chunked, hosts, nil
}

// strictBody finds the message's end.
func (m *message) strictBody(data []byte, length int64, chunked, narrow bool) error {
	if !chunked {
		m.end = min(len(data), m.headEnd+int(min(length, 1<<40)))
		m.complete = int64(len(data)-m.headEnd) >= length
		return nil
	}
	for pos := m.headEnd; ; {
		line, _, ok := bytes.Cut(data[pos:], []byte("\r\n"))
		if !ok {
			m.end = len(data)
			return nil
		}
		if !chunkLine.Match(line) {
			return fmt.Errorf("chunk size %q", line)
		}
		n, _ := strconv.ParseInt(string(line), 16, 64)
		pos += len(line) + 2
		if n == 0 && !narrow {
			for {
				line, _, ok := bytes.Cut(data[pos:], []byte("\r\n"))
				if !ok {
					m.end = len(data)
					return nil
				}
				if pos += len(line) + 2; len(line) == 0 {
					m.end, m.complete = pos, true
					return nil
				} else if !fieldLine.Match(line) {
					return fmt.Errorf("trailer %q", line)
				}
			}
		}
		if int64(len(data)-pos) < n+2 {
			m.end = len(data)
			return nil
		}
		pos += int(n)
		if string(data[pos:pos+2]) != "\r\n" {
			return fmt.Errorf("behind a chunk: %q", data[pos:pos+2])
		}
		if pos += 2; n == 0 {
			m.end, m.complete = pos, true // no trailers
			return nil
		}
	}
}

// leniency is one way to read where others would refuse.
type leniency struct {
	name        string
	lengthWins  bool // of both Content-Length and Transfer-Encoding
	lastLength  bool // of several lengths
	bareCR      bool // a carriage return alone ends a line too
	foldedAlone bool // a folded line is a line of its own
}

var leniencies = []leniency{
	{name: "chunked wins"},
	{name: "length wins", lengthWins: true, foldedAlone: true},
	{name: "last length wins", lengthWins: true, lastLength: true},
	{name: "CR ends lines", bareCR: true, foldedAlone: true},
}

// nextLine cuts off a line that ends in CRLF, LF or perhaps CR.
func (l leniency) nextLine(data []byte) (line string, n int, ok bool) {
	for i, c := range data {
		switch {
		case c == '\n':
			return strings.TrimSuffix(string(data[:i]), "\r"), i + 1, true
		case c == '\r' && l.bareCR && i+1 < len(data) && data[i+1] != '\n':
			return string(data[:i]), i + 1, true
		}
	}
	return "", 0, false
}

// requests reads requests as loosely as the worst of servers.
func (l leniency) requests(data []byte) (all []message) {
	for pos := 0; pos < len(data); {
		m := message{start: pos, end: len(data)}
		length, chunked := int64(0), false
		head, name := false, ""
		at := pos
		for {
			line, n, ok := l.nextLine(data[at:])
			if !ok {
				return append(all, m)
			}
			at += n
			if m.line == "" {
				if strings.Trim(line, " \t\r") == "" {
					m.start = at // empty lines before a request
					if at == len(data) {
						return all
					}
					continue
				}
				m.line = line
				f := strings.Fields(line)
				m.method = f[0]
				if len(f) > 1 {
					m.target = lastSegment(f[1])
				}
				continue
			}
			if line == "" {
				head = true
				break
			}
			value := line
			if folded := line[0] == ' ' || line[0] == '\t'; !folded || l.foldedAlone {
				name, value, _ = strings.Cut(line, ":")
				name = strings.ReplaceAll(strings.ToLower(trimJunk(name)), "_", "-")
			}
			value = strings.ToLower(trimJunk(value))
			switch name {
			case "content-length":
				if n := atoi(value, l.lastLength); length == 0 || l.lastLength {
					length = n
				}
			case "transfer-encoding":
				chunked = chunked || strings.Contains(value, "chunked")
			case "expect":
				m.expect = m.expect || strings.Contains(value, "100-continue")
			}
		}
		if !head {
			return append(all, m)
		}
		m.headEnd = at
		if chunked && (!l.lengthWins || length == 0) {
			m.end, m.complete = l.chunks(data, at)
		} else if int64(len(data)-at) >= length {
			m.end, m.complete = at+int(length), true
		}
		all, pos = append(all, m), m.end
		if !m.complete {
			return all
		}
	}
	return all
}

// chunks finds the end of a chunked body.
func (l leniency) chunks(data []byte, pos int) (end int, complete bool) {
	for {
		line, n, ok := l.nextLine(data[pos:])
		if !ok {
			return len(data), false
		}
		pos += n
		size := hexadecimal(line)
		if size == 0 {
			break
		}
		if int64(len(data)-pos) <= size {
			return len(data), false
		}
		pos += int(size)
		if bytes.HasPrefix(data[pos:], []byte("\r\n")) {
			pos += 2
		} else if data[pos] == '\n' || data[pos] == '\r' {
			pos++
		}
	}
	for { // trailers
		line, n, ok := l.nextLine(data[pos:])
		if !ok {
			return len(data), false
		}
		if pos += n; line == "" {
			return pos, true
		}
	}
}

// trimJunk removes blanks, controls, quotes and what is not ASCII from both ends.
func trimJunk(s string) string {
	return strings.TrimFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\'' || r == ':' })
}

// atoi reads digits as C does, from the first element of a list or from the last.
func atoi(s string, last bool) (n int64) {
	if i := strings.LastIndexByte(s, ','); i >= 0 && last {
		s = s[i+1:]
	}
	for _, c := range strings.TrimLeft(s, " \t+") {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
		n = min(n, 1<<40)
	}
	return n
}

// hexadecimal reads digits as C does.
func hexadecimal(s string) (n int64) {
	s = strings.TrimPrefix(strings.TrimLeft(strings.ToLower(s), " \t+"), "0x")
	for _, c := range []byte(s) {
		if !isHex(c) {
			break
		}
		n = min(n<<4|int64(unhex(c)), 1<<40)
	}
	return n
}

func lastSegment(target string) string {
	target, _, _ = strings.Cut(target, "?")
	return target[strings.LastIndexByte(target, '/')+1:]
}

// finding is what servers can find in the bytes of one connection.
type finding struct {
	seen      []string // the whole requests; on the strict reading, if there is one
	partial   bool     // the last one is cut off
	invalid   error    // why there is no strict reading
	ambiguous string   // which two readings differ; "" if none do
}

// judge holds the readings of a connection's bytes against each other.
func judge(data []byte, narrow bool) (v finding) {
	all, err := strictRequests(data, narrow)
	name := "strictly"
	if v.invalid = err; err != nil {
		name, all = leniencies[0].name, leniencies[0].requests(data)
	}
	for _, m := range all {
		if m.complete {
			v.seen = append(v.seen, m.target)
		}
		v.partial = v.partial || !m.complete
	}
	for _, l := range leniencies {
		if other := l.requests(data); !slices.EqualFunc(all, other, func(a, b message) bool {
			return a.start == b.start && a.end == b.end && a.complete == b.complete && a.headEnd == b.headEnd && (!a.complete || a.method == b.method && a.target == b.target)
		}) {
			v.ambiguous = fmt.Sprintf("%s: %d requests; %s: %d", name, len(all), l.name, len(other))
			break
		}
	}
	return v
}

// wire is a plain-text backend that records every byte and reads leniently: it
// answers what it takes for requests, as soon as they are complete. How it answers
// is in the last segment of the target:
//
//	early    at the end of the head, before the body
//	bodiless at the end of the head as well, and takes the body for requests
type wire struct {
	ln net.Listener

	mu    sync.Mutex
	conns []*wired
}

// wired is one connection at a wire.
type wired struct {
	net.Conn
	mu     sync.Mutex
	data   []byte
	closed chan struct{} // when the front door has closed it
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{}
	var err error
	if w.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := w.ln.Accept()
			if err != nil {
				return
			}
			c := &wired{Conn: conn, closed: make(chan struct{})}
			conn.SetDeadline(time.Now().Add(3 * time.Minute))
			w.mu.Lock()
			w.conns = append(w.conns, c)
			w.mu.Unlock()
			go c.serve()
		}
	}()
	t.Cleanup(func() {
		w.ln.Close()
		w.reset()
	})
	return w
}

// reset ends all connections and forgets them.
func (w *wire) reset() {
	w.mu.Lock()
	for _, c := range w.conns {
		c.Conn.Close()
	}
	conns := w.conns
	w.conns = nil
	w.mu.Unlock()
	for _, c := range conns {
		<-c.closed
	}
}

func (w *wire) connections() []*wired {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.conns)
}

func (c *wired) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Clone(c.data)
}

func (c *wired) serve() {
	defer close(c.closed)
	defer c.Conn.Close()
	answered, continued := 0, 0
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Conn.Read(buf)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.data = append(c.data, buf[:n]...)
		data := bytes.Clone(c.data)
		c.mu.Unlock()
		var out []byte
		all := leniencies[0].requests(data)
		for i, m := range all {
			switch {
			case i < answered:
			case m.complete, m.headEnd > 0 && m.target == "early":
				out = append(out, wireAnswer(m)...)
				if m.complete && m.target == "bodiless" {
					for _, m := range leniencies[0].requests(data[m.headEnd:m.end]) {
						out = append(out, wireAnswer(m)...)
					}
				}
				answered++
			case m.headEnd > 0 && m.expect && i >= continued:
				out = append(out, "HTTP/1.1 100 Continue\r\n\r\n"...)
				continued = i + 1
			}
		}
		if len(out) > 0 {
			c.Conn.Write(out)
		}
	}
}

func wireAnswer(m message) string {
	body := m.target
	if m.method == "HEAD" {
		body = ""
	}
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Answer: %s\r\nContent-Length: %d\r\n\r\n%s", m.target, len(m.target), body)
}
