package lab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Outlook Anywhere: RPC over HTTP version 2 ([MS-RPCH]), inbound proxy, outbound proxy and server in one. A client sends its calls as the
// endless body of one request (the IN channel) and gets the answers as the endless body of another one's response (the OUT channel); the
// two become one virtual connection by a cookie. What is called then is in dcerpc.go.

// rpcProxy knows the virtual connections, by their cookies. From Exchange 2013 on the servers of a site share one: channels find each
// other wherever they arrive. Before, each server has its own.
type rpcProxy struct {
	mu          sync.Mutex
	connections map[[16]byte]*virtualConnection
}

// virtualConnection is a pair of channels, of which the first may wait for the other.
type virtualConnection struct {
	login  string        // whose it is
	joined chan struct{} // closed when both are there
	ended  chan struct{} // closed when one has gone
	once   sync.Once

	mu  sync.Mutex
	in  bool
	out net.Conn // where answers go

	keepalive time.Duration // silence on OUT after which a ping is due
	sent      time.Time     // when OUT was last written to
}

// Times and sizes of a virtual connection. Those that the client is told are Exchange's.
const (
	rpcJoinTime       = 10 * time.Second // for the second channel to come
	rpcWriteTime      = 30 * time.Second
	rpcKeepalive      = 5 * time.Minute // ClientKeepalive, [MS-RPCH] 2.2.3.5.6, of a client that names none
	rpcTimeout        = 15 * 60 * 1000  // ms, ConnectionTimeout
	rpcWindow         = 64 << 10        // ReceiveWindowSize of the IN channel
	rpcChannelLength  = 1 << 30         // Content-Length of the OUT channel
	rpcEchoLength     = 16              // [MS-RPCH] 2.1.2.1.5: a body as short as this asks for an echo
	rpcHeaderLength   = 16              // of any PDU
	rtsHeaderLength   = 20
	rpcMaxRequestBody = 1 << 20 // of one call, all fragments
)

// Flags of RTS PDUs, [MS-RPCH] 2.2.3.6.1, and commands in them, 2.2.3.5.
const (
	rtsPing     = 1
	rtsOtherCmd = 2
	rtsEcho     = 0x40

	rtsReceiveWindowSize = 0
	rtsFlowControlAck    = 1
	rtsConnectionTimeout = 2
	rtsCookie            = 3
	rtsChannelLifetime   = 4
	rtsClientKeepalive   = 5
	rtsVersion           = 6
	rtsAssociationGroup  = 12
	rtsDestination       = 13
)

var errRTS = errors.New("not the RTS PDU that was due")

// get finds a virtual connection or begins one. Nobody joins somebody else's.
func (p *rpcProxy) get(cookie [16]byte, login string) *virtualConnection {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.connections[cookie]
	if v == nil {
		v = &virtualConnection{
			login: login, joined: make(chan struct{}), ended: make(chan struct{}),
			keepalive: rpcKeepalive, sent: time.Now(),
		}
		if p.connections == nil {
			p.connections = map[[16]byte]*virtualConnection{}
		}
		p.connections[cookie] = v
	}
	if v.login != login {
		return nil
	}
	return v
}

// end ends a virtual connection with both its channels.
func (p *rpcProxy) end(cookie [16]byte, v *virtualConnection) {
	p.mu.Lock()
	if p.connections[cookie] == v {
		delete(p.connections, cookie)
	}
	p.mu.Unlock()
	v.once.Do(func() { close(v.ended) })
}

// join notes that a channel is there: out, or in when out is nil. It reports false when there is one already.
func (v *virtualConnection) join(out net.Conn) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if out == nil && v.in || out != nil && v.out != nil {
		return false
	}
	if out == nil {
		v.in = true
	} else {
		v.out = out
	}
	if v.in && v.out != nil {
		close(v.joined)
	}
	return true
}

// wait waits for the other channel. It reports false when that does not come, or has gone.
func (v *virtualConnection) wait() bool {
	select {
	case <-v.joined:
		return true
	case <-v.ended:
	case <-time.After(rpcJoinTime):
	}
	return false
}

// send writes a PDU to the OUT channel.
func (v *virtualConnection) send(pdu []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	_ = v.out.SetWriteDeadline(time.Now().Add(rpcWriteTime))
	_, err := v.out.Write(pdu)
	v.sent = time.Now()
	return err
}

// serveRPC is rpcproxy.dll. Other methods than the two only show that a login would have let a client in.
func (s *casServer) serveRPC(w http.ResponseWriter, r *http.Request, l login) {
	if strings.ToLower(r.URL.Path) != "/rpc/rpcproxy.dll" {
		s.status(w, http.StatusNotFound)
		return
	}
	channel := r.Method == "RPC_IN_DATA" || r.Method == "RPC_OUT_DATA"
	switch {
	case channel && r.ContentLength <= rpcEchoLength:
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header()["Content-Type"] = []string{"application/rpc"}
		_, _ = w.Write(rtsPDU(rtsEcho))
	case channel && !rpcPort(r.URL.RawQuery):
		s.rpcRaw(w, http.StatusServiceUnavailable, "RPC Error: 6ba", 0, nil) // RPC_S_SERVER_UNAVAILABLE
	case r.Method == "RPC_IN_DATA":
		s.serveRPCIn(w, r, l)
	case r.Method == "RPC_OUT_DATA":
		s.serveRPCOut(w, r, l)
	default:
		w.Header()["Content-Type"] = []string{"application/rpc"}
		w.WriteHeader(http.StatusOK)
	}
}

// rpcPort tells whether a query is of the form server:port with a port that Exchange listens on: mailboxes, referrals, address book.
func rpcPort(query string) bool {
	_, port, err := net.SplitHostPort(query)
	return err == nil && (port == "6001" || port == "6002" || port == "6004")
}

// rpcRaw begins a response with a reason phrase of its own, which net/http cannot, and returns the connection for the rest of it. If there
// is no rest, the connection is closed and not returned.
func (s *casServer) rpcRaw(w http.ResponseWriter, status int, reason string, length int, body []byte) (net.Conn, *bufio.Reader) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.log.Error().Err(err).Msg("lab RPC proxy")
		return nil, nil
	}
	if rec, ok := w.(*recordingWriter); ok && !rec.done {
		rec.done = true
		rec.record(status)
	}
	var head strings.Builder
	fmt.Fprintf(&head, "HTTP/1.1 %d %s\r\nContent-Type: application/rpc\r\nContent-Length: %d\r\n", status, reason, length)
	for name, values := range w.Header() {
		for _, v := range values {
			fmt.Fprintf(&head, "%s: %s\r\n", name, v)
		}
	}
	ends := len(body) == length
	if ends {
		head.WriteString("Connection: close\r\n")
	}
	_ = conn.SetDeadline(time.Time{})
	_, err = conn.Write(append([]byte(head.String()+"\r\n"), body...))
	if err != nil || ends {
		_ = conn.Close()
		return nil, nil
	}
	return conn, rw.Reader
}

// serveRPCOut is the outbound proxy: it takes CONN/A1 ([MS-RPCH] 2.2.4.2), answers CONN/A3, and from there on the channel is written to
// by whoever serves the IN channel.
func (s *casServer) serveRPCOut(w http.ResponseWriter, r *http.Request, l login) {
	first, err := readPDU(r.Body)
	if err != nil {
		s.status(w, http.StatusBadRequest)
		return
	}
	commands, err := first.commands(rtsVersion, rtsCookie, rtsCookie, rtsReceiveWindowSize)
	if err != nil {
		s.status(w, http.StatusBadRequest)
		return
	}
	cookie := [16]byte(commands[1])
	v := s.rpc.get(cookie, l.account.login)
	if v == nil {
		s.status(w, http.StatusServiceUnavailable)
		return
	}
	defer s.rpc.end(cookie, v)
	conn, br := s.rpcRaw(w, http.StatusOK, "Success", rpcChannelLength, rtsPDU(0, command(rtsConnectionTimeout, u32(rpcTimeout))))
	if conn == nil {
		return
	}
	defer func() { _ = conn.Close() }()
	if !v.join(conn) || !v.wait() {
		return
	}
	gone := make(chan struct{})
	go func() { // ends with conn
		_, _ = br.ReadByte() // the client has nothing to say here any more
		close(gone)
	}()
	defer func() { _ = conn.Close(); <-gone }()
	for {
		v.mu.Lock()
		due := v.keepalive - time.Since(v.sent)
		v.mu.Unlock()
		if due <= 0 {
			if v.send(rtsPDU(rtsPing)) != nil {
				return
			}
			continue
		}
		select {
		case <-v.ended:
			return
		case <-gone:
			return
		case <-s.closing:
			return
		case <-time.After(due):
		}
	}
}

// serveRPCIn is the inbound proxy and the server: it takes CONN/B1 (2.2.4.5), tells the client on the other channel that the virtual
// connection stands (CONN/C2, 2.2.4.9), and answers calls until the client ends the channel, which has no other answer.
func (s *casServer) serveRPCIn(w http.ResponseWriter, r *http.Request, l login) {
	body := bufio.NewReader(r.Body)
	first, err := readPDU(body)
	if err != nil {
		s.status(w, http.StatusBadRequest)
		return
	}
	commands, err := first.commands(rtsVersion, rtsCookie, rtsCookie, rtsChannelLifetime, rtsClientKeepalive, rtsAssociationGroup)
	if err != nil {
		s.status(w, http.StatusBadRequest)
		return
	}
	cookie := [16]byte(commands[1])
	v := s.rpc.get(cookie, l.account.login)
	if v == nil || !v.join(nil) {
		s.status(w, http.StatusServiceUnavailable)
		return
	}
	defer s.rpc.end(cookie, v)
	if ms := binary.LittleEndian.Uint32(commands[4]); ms > 0 {
		v.mu.Lock()
		v.keepalive = time.Duration(ms) * time.Millisecond
		v.mu.Unlock()
	}
	if !v.wait() {
		s.status(w, http.StatusServiceUnavailable)
		return
	}
	err = v.send(rtsPDU(0, command(rtsVersion, u32(1)), command(rtsReceiveWindowSize, u32(rpcWindow)), command(rtsConnectionTimeout, u32(rpcTimeout))))
	c := rpcCalls{reply: v.send}
	for received, acknowledged := 0, 0; err == nil; {
		var p pdu
		if p, err = readPDU(body); err != nil {
			break
		}
		if p.kind() == pduRTS {
			c.rts(p)
			continue
		}
		// Only RPC PDUs count, [MS-RPCH] 3.2.1.1.4. Half a window later the client may send as much again.
		if received += len(p); received-acknowledged >= rpcWindow/2 {
			acknowledged = received
			ack := append(u32(uint32(received)), u32(rpcWindow)...)
			if err = v.send(rtsPDU(rtsOtherCmd, command(rtsDestination, u32(0)), command(rtsFlowControlAck, append(ack, commands[2]...)))); err != nil {
				break
			}
		}
		err = c.serve(p)
	}
	s.log.Debug().Err(err).Str("server", s.name).Msg("lab RPC channel ended")
	w.WriteHeader(http.StatusOK) // for the record: the client has gone
}

// pdu is one PDU of connection-oriented RPC, [C706] 12.6, little-endian.
type pdu []byte

func (p pdu) kind() byte { return p[2] }

// readPDU reads one PDU.
func readPDU(r io.Reader) (pdu, error) {
	head := make([]byte, rpcHeaderLength)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	n := int(binary.LittleEndian.Uint16(head[8:]))
	if head[0] != 5 || head[4]&0xf0 != 0x10 || n < rpcHeaderLength {
		return nil, errors.New("not a PDU of RPC, or not a little-endian one")
	}
	p := append(head, make([]byte, n-rpcHeaderLength)...)
	_, err := io.ReadFull(r, p[rpcHeaderLength:])
	return p, err
}

// newPDU begins a PDU; what follows its header is appended, and finish called.
func newPDU(kind, flags byte, call uint32) pdu {
	p := pdu{5, 0, kind, flags, 0x10, 0, 0, 0, 0, 0, 0, 0}
	return binary.LittleEndian.AppendUint32(p, call)
}

// finish puts the length in.
func (p pdu) finish() []byte {
	binary.LittleEndian.PutUint16(p[8:], uint16(len(p)))
	return p
}

// rtsPDU makes an RTS PDU, [MS-RPCH] 2.2.3.6.
func rtsPDU(flags uint16, commands ...[]byte) []byte {
	p := newPDU(pduRTS, pduFirst|pduLast, 0)
	p = binary.LittleEndian.AppendUint16(p, flags)
	p = binary.LittleEndian.AppendUint16(p, uint16(len(commands)))
	for _, c := range commands {
		p = append(p, c...)
	}
	return p.finish()
}

func command(kind uint32, value []byte) []byte { return append(u32(kind), value...) }

func u32(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }

// rtsFlags returns the flags of an RTS PDU.
func (p pdu) rtsFlags() uint16 {
	if len(p) < rtsHeaderLength {
		return 0
	}
	return binary.LittleEndian.Uint16(p[16:])
}

// commands returns the values of an RTS PDU without flags that consists of these commands.
func (p pdu) commands(kinds ...uint32) ([][]byte, error) {
	if len(p) < rtsHeaderLength || p.kind() != pduRTS || p.rtsFlags() != 0 || int(binary.LittleEndian.Uint16(p[18:])) != len(kinds) {
		return nil, errRTS
	}
	rest := p[rtsHeaderLength:]
	var values [][]byte
	for _, kind := range kinds {
		n := 4
		if kind == rtsCookie || kind == rtsAssociationGroup {
			n = 16
		}
		if len(rest) < 4+n || binary.LittleEndian.Uint32(rest) != kind {
			return nil, errRTS
		}
		values = append(values, rest[4:4+n])
		rest = rest[4+n:]
	}
	return values, nil
}
