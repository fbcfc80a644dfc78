package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"html"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// casServer is one simulated Client Access server. It speaks HTTP/1.1 only: Windows authentication cannot be multiplexed.
type casServer struct {
	name, fqdn   string
	addr         string
	certificate  tls.Certificate
	protection   ExtendedProtection
	binding      []byte // endpointData of certificate
	kerberos     KerberosAcceptor
	streams      *subscriptions // of the company
	rpc          *rpcProxy
	sessions     *formsSessions // of the company
	closing      chan struct{}  // closed by close, for those who have taken their connection from srv
	identity     ntlmIdentity
	accounts     *accounts
	exchange     map[string]ExchangeDomain
	recorder     *Recorder
	autodiscover http.Handler // answers POX once the client is logged in
	log          zerolog.Logger

	srv  *http.Server
	wait sync.WaitGroup
	once sync.Once
}

// vdir is a virtual directory and the login it asks for.
type vdir struct {
	path  string // lower case; IIS does not care about case
	offer methods
	serve func(s *casServer, w http.ResponseWriter, r *http.Request, l login)
}

// vdirs are those of Exchange 2016 and 2019 with the front-end defaults of set-up. Autodiscover and EWS also allow anonymous access
// in IIS and then ask for a login themselves, which looks the same from outside.
var vdirs = []vdir{
	{"/autodiscover", methods{basic: true, windows: true}, (*casServer).serveAutodiscover},
	{"/ews", methods{windows: true}, (*casServer).serveEWS},
	{"/mapi", methods{windows: true}, (*casServer).serveMAPI},
	{"/oab", methods{windows: true}, (*casServer).serveOAB},
	{"/microsoft-server-activesync", methods{basic: true}, (*casServer).serveActiveSync},
	{"/owa", methods{basic: true, forms: true}, (*casServer).serveOWA},
	{"/ecp", methods{basic: true, forms: true}, (*casServer).servePage},
	{"/rpc", methods{basic: true, windows: true}, (*casServer).serveRPC},
	{"/powershell", methods{}, (*casServer).servePage},
}

// connListener tells the recorder about every TCP connection, also about those that never get as far as HTTP.
type connListener struct {
	net.Listener
	server   string
	recorder *Recorder
}

type recordedConn struct {
	net.Conn
	rec      *Connection
	recorder *Recorder
	once     sync.Once
}

func (l connListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &recordedConn{Conn: c, rec: l.recorder.open(l.server), recorder: l.recorder}, nil
}

func (c *recordedConn) Close() error {
	c.once.Do(func() { c.recorder.closed(c.rec) })
	return c.Conn.Close()
}

type connectionKey struct{}

func (s *casServer) start() error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.addr = ln.Addr().String()
	s.srv = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 30 * time.Second,
		ErrorLog:          stdlog.New(serverLog{s.log}, "", 0),
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			rec := c.(*tls.Conn).NetConn().(*recordedConn).rec
			return context.WithValue(ctx, connectionKey{}, &connection{rec: rec})
		},
	}
	tln := tls.NewListener(connListener{ln, s.fqdn, s.recorder}, &tls.Config{
		Certificates: []tls.Certificate{s.certificate},
		NextProtos:   []string{"http/1.1"},
		MinVersion:   tls.VersionTLS12,
	})
	s.wait.Go(func() {
		if err := s.srv.Serve(tln); err != http.ErrServerClosed {
			s.log.Error().Err(err).Msg("lab server ended")
		}
	})
	return nil
}

func (s *casServer) close() {
	s.once.Do(func() { close(s.closing) })
	_ = s.srv.Close()
	s.wait.Wait()
}

// serverLog passes on what net/http has to say, such as handshakes that a client gave up.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(p []byte) (int, error) {
	l.log.Debug().Msg(strings.TrimSpace(string(p)))
	return len(p), nil
}

// recordingWriter records the request when the status is known, which is before the client can know it.
type recordingWriter struct {
	http.ResponseWriter
	record func(status int)
	done   bool
}

func (w *recordingWriter) WriteHeader(status int) {
	if !w.done && status >= 200 {
		w.done = true
		w.record(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recordingWriter) Write(p []byte) (int, error) {
	if !w.done {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap implements the contract of http.ResponseController.
func (w *recordingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP implements http.Handler. Header names are set by map key, since net/http would otherwise respell them
// (Www-Authenticate), and clients exist that look for the exact letters.
func (s *casServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connectionKey{}).(*connection)
	var l login
	rw := &recordingWriter{ResponseWriter: w, record: func(status int) {
		scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		q := Request{
			Method: r.Method, Target: r.RequestURI, Host: r.Host,
			Client: r.Header.Get(ClientHeader), Scheme: scheme, Status: status,
		}
		if l.account != nil {
			q.User = l.account.login
		}
		s.recorder.add(c.rec, q)
		e := s.log.Debug().Str("server", s.name).Int("connection", c.rec.Number).Str("method", q.Method).
			Str("path", r.URL.Path).Int("status", status)
		if l.refused != nil {
			e = e.AnErr("login", l.refused)
		}
		e.Msg("lab request")
	}}
	h := rw.Header()
	h["Server"] = []string{"Microsoft-IIS/10.0"}
	h["X-Powered-By"] = []string{"ASP.NET"}
	h["X-FEServer"] = []string{strings.ToUpper(s.name)}
	h[ServerHeader] = []string{s.fqdn}
	h[ConnectionHeader] = []string{fmt.Sprint(c.rec.Number)}

	if r.Method == http.MethodPost && r.ContentLength == 0 && r.Header.Get("Content-Length") == "" {
		s.status(rw, http.StatusLengthRequired) // as http.sys does
		return
	}
	path := strings.ToLower(r.URL.Path)
	dir := vdirOf(path)
	switch {
	case dir == nil:
		s.status(rw, http.StatusNotFound)
		return
	case path == dir.path+"/healthcheck.htm":
		h["Content-Type"] = []string{"text/html"}
		_, _ = fmt.Fprintf(rw, "200 OK<br/>%s", strings.ToUpper(s.fqdn))
		return
	}
	switch {
	case dir.offer == (methods{}):
	case dir.offer.forms && r.Header.Get("Authorization") == "":
		var answered bool
		if l, answered = s.forms(rw, r); answered {
			return
		}
		h[UserHeader] = []string{l.account.login}
	default:
		if l = s.authenticate(c, r, dir.offer); l.account == nil {
			s.unauthorized(rw, r, dir, l)
			return
		}
		h[UserHeader] = []string{l.account.login}
		if l.method != "Basic" {
			h["Persistent-Auth"] = []string{"true"}
		}
		if l.final != "" {
			h["WWW-Authenticate"] = []string{l.final}
		}
	}
	dir.serve(s, rw, r, l)
}

func vdirOf(path string) *vdir {
	for i := range vdirs {
		if rest, ok := strings.CutPrefix(path, vdirs[i].path); ok && (rest == "" || rest[0] == '/') {
			return &vdirs[i]
		}
	}
	return nil
}

// status answers with the status alone, as http.sys does.
func (s *casServer) status(w http.ResponseWriter, code int) {
	text := fmt.Sprintf("<h2>%s</h2>", http.StatusText(code))
	w.Header()["Content-Type"] = []string{"text/html; charset=us-ascii"}
	w.Header()["Content-Length"] = []string{fmt.Sprint(len(text))}
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text)
}

// unauthorized answers 401: with every method in the order of IIS, one line each, or with the next leg of a login under way.
func (s *casServer) unauthorized(w http.ResponseWriter, r *http.Request, dir *vdir, l login) {
	h := w.Header()
	var lines []string
	if l.challenge != "" {
		lines = []string{l.challenge}
		drain(r)
	} else {
		if dir.offer.windows {
			lines = append(lines, "Negotiate", "NTLM")
		}
		if dir.offer.basic {
			lines = append(lines, fmt.Sprintf("Basic realm=%q", hostOnly(r.Host)))
		}
	}
	h["WWW-Authenticate"] = lines
	if dir.path == "/autodiscover" {
		h["X-SOAP-Enabled"] = []string{"True"}
		h["X-WSSecurity-Enabled"] = []string{"False"}
		h["X-WSSecurity-For"] = []string{"None"}
		h["X-OAuth-Enabled"] = []string{"True"}
	}
	s.status(w, http.StatusUnauthorized)
}

func hostOnly(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return hostport
}

// servePage stands for what is made for people: a line that says which server shows what to whom.
func (s *casServer) servePage(w http.ResponseWriter, r *http.Request, l login) {
	h := w.Header()
	h["Content-Type"] = []string{"text/html; charset=utf-8"}
	h["Cache-Control"] = []string{"no-cache, no-store"}
	h["X-OWA-Version"] = []string{"15.2.1544.4"}
	_, _ = fmt.Fprintf(w, "<html><body>%s on %s for %s</body></html>\n", html.EscapeString(r.URL.Path), s.fqdn, html.EscapeString(who(l)))
}

func who(l login) string {
	if l.account == nil {
		return "anybody"
	}
	return l.account.login
}

// maxBody bounds the bodies that the pages below read: Exchange's own limit for EWS.
const maxBody = 64 << 20

// serveMAPI answers a request with success and no data, in the shape of [MS-OXCMAPIHTTP] 2.2.2.2; showdebug=yes shows who was
// logged in by which method, as on a real server.
func (s *casServer) serveMAPI(w http.ResponseWriter, r *http.Request, l login) {
	path := strings.ToLower(strings.TrimSuffix(r.URL.Path, "/"))
	if path != "/mapi/emsmdb" && path != "/mapi/nspi" {
		s.status(w, http.StatusNotFound)
		return
	}
	h := w.Header()
	if r.Method == http.MethodGet {
		h["Content-Type"] = []string{"text/html; charset=utf-8"}
		_, _ = fmt.Fprintf(w, "<html><body><h1>Exchange MAPI/HTTP Connectivity Endpoint</h1><p>Version: 15.2.1544.4<br>\n")
		if strings.EqualFold(r.URL.Query().Get("showdebug"), "yes") {
			_, _ = fmt.Fprintf(w, "User: %s<br>\nAuthentication: %s<br>\nServer: %s<br>\n", html.EscapeString(l.account.login), l.method, s.fqdn)
		}
		_, _ = io.WriteString(w, "</p></body></html>\n")
		return
	}
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		s.status(w, http.StatusRequestEntityTooLarge)
		return
	}
	h["Content-Type"] = []string{"application/mapi-http"}
	h["X-RequestType"] = []string{r.Header.Get("X-RequestType")}
	h["X-RequestId"] = []string{r.Header.Get("X-RequestId")}
	h["X-ResponseCode"] = []string{"0"}
	h["X-PendingPeriod"] = []string{"30000"}
	h["X-ServerApplication"] = []string{"Exchange/15.02.1544.004"}
	_, _ = io.WriteString(w, "PROCESSING\r\n")
	_ = http.NewResponseController(w).Flush()
	_, _ = io.WriteString(w, "DONE\r\nX-ResponseCode: 0\r\nX-ElapsedTime: 1\r\n\r\n")
}

// oabFile is an address book manifest without lists; its time is fixed because BITS wants a stable validator.
const oabFile = `<?xml version="1.0" encoding="utf-8"?>` + "\n<OAB></OAB>\n"

func (s *casServer) serveOAB(w http.ResponseWriter, r *http.Request, _ login) {
	if !strings.HasSuffix(strings.ToLower(r.URL.Path), "/oab.xml") {
		s.status(w, http.StatusNotFound)
		return
	}
	w.Header()["Content-Type"] = []string{"text/xml"}
	w.Header()["Etag"] = []string{`"lab-oab-1"`} // net/http looks for this spelling when it answers ranges
	http.ServeContent(w, r, "oab.xml", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), strings.NewReader(oabFile))
}

// serveActiveSync knows OPTIONS, the move of a mailbox to another URL, and an empty answer to everything else ([MS-ASHTTP]).
func (s *casServer) serveActiveSync(w http.ResponseWriter, r *http.Request, l login) {
	h := w.Header()
	h["Cache-Control"] = []string{"private"}
	if to := l.account.ActiveSyncRedirect; to != "" {
		h["X-MS-Location"] = []string{to}
		h["Content-Length"] = []string{"0"}
		w.WriteHeader(http.StatusUnavailableForLegalReasons) // 451 means something else here: [MS-ASHTTP] 3.1.5.2.2
		return
	}
	h["MS-Server-ActiveSync"] = []string{"15.2"}
	switch r.Method {
	case http.MethodOptions:
		h["Allow"] = []string{"OPTIONS,POST"}
		h["Public"] = []string{"OPTIONS,POST"}
		h["MS-ASProtocolVersions"] = []string{"2.5,12.0,12.1,14.0,14.1,16.0,16.1"}
		h["MS-ASProtocolCommands"] = []string{
			"Sync,SendMail,SmartForward,SmartReply,GetAttachment,FolderSync,FolderCreate," +
				"FolderDelete,FolderUpdate,MoveItems,GetItemEstimate,MeetingResponse,Search,Settings,Ping,ItemOperations,Provision," +
				"ResolveRecipients,ValidateCert",
		}
		h["Content-Length"] = []string{"0"}
		w.WriteHeader(http.StatusOK)
	case http.MethodPost:
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
			s.status(w, http.StatusRequestEntityTooLarge)
			return
		}
		h["Content-Length"] = []string{"0"}
		w.WriteHeader(http.StatusOK)
	default:
		s.status(w, http.StatusMethodNotAllowed)
	}
}

// maxAutodiscoverBody is more than any client sends ([DSCLI] requests are below 2 KiB).
const maxAutodiscoverBody = 64 << 10

// serveAutodiscover answers devices itself and leaves Outlook's documents to the handler it was given.
func (s *casServer) serveAutodiscover(w http.ResponseWriter, r *http.Request, l login) {
	if strings.ToLower(r.URL.Path) != "/autodiscover/autodiscover.xml" {
		s.status(w, http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAutodiscoverBody))
	if err != nil {
		s.status(w, http.StatusRequestEntityTooLarge)
		return
	}
	if address, ok := mobileSyncRequest(body); ok && r.Method == http.MethodPost {
		w.Header()["Content-Type"] = []string{"text/xml; charset=utf-8"}
		w.Header()["Cache-Control"] = []string{"private"}
		_, _ = w.Write(s.mobileSyncAnswer(address))
		return
	}
	r = r.Clone(r.Context())
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	// The handler knows addresses and passwords only; whoever came this far by whatever method has proved to be this mailbox.
	r.SetBasicAuth(l.account.Address, l.account.Password)
	s.autodiscover.ServeHTTP(w, r)
}
