package lab

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// Forms-based login of OWA and ECP, as Exchange 2010 and later have it for browsers, beside Basic for those who send that: a page that
// asks, cookies that remember, and an application that keeps a request open for what is new.

// formsSessions are the logins by cookie. All servers of a company know them, as from Exchange 2013 on, where the cookie itself holds the
// login under a key that the servers share; before, each server has its own.
type formsSessions struct {
	mu     sync.Mutex
	active map[string]*formsSession
}

type formsSession struct {
	user   string // sAMAccountName
	canary string // what a page must show that it is Exchange's own
	finish chan struct{}
}

func (f *formsSessions) add(user string) (cookie string, s *formsSession) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active == nil {
		f.active = map[string]*formsSession{}
	}
	cookie, s = rand.Text(), &formsSession{user: user, canary: rand.Text(), finish: make(chan struct{}, 1)}
	f.active[cookie] = s
	return cookie, s
}

func (f *formsSessions) get(r *http.Request) *formsSession {
	c, err := r.Cookie(cookieData)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.active[c.Value]
}

func (f *formsSessions) remove(r *http.Request) {
	if c, err := r.Cookie(cookieData); err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.active, c.Value)
	}
}

const (
	cookieData   = "cadata"
	cookieCanary = "X-OWA-CANARY"

	pathLogon    = "/owa/auth/logon.aspx"
	pathLogonTo  = "/owa/auth.owa"
	pathLogoff   = "/owa/logoff.owa"
	pathNotified = "/owa/ev.owa2"
	pathService  = "/owa/service.svc"

	statusRetryWith    = 449 // no canary, or not this one
	statusLoginTimeout = 440 // for requests that no page could be shown for
)

// forms looks at a request for OWA or ECP that has no Authorization. It reports whose it is, or that it has answered.
func (s *casServer) forms(w http.ResponseWriter, r *http.Request) (l login, answered bool) {
	path := strings.ToLower(r.URL.Path)
	switch {
	case path == pathLogon:
		s.logonPage(w, r)
		return login{}, true
	case path == pathLogonTo && r.Method == http.MethodPost:
		s.logon(w, r)
		return login{}, true
	case path == pathLogoff:
		s.sessions.remove(r)
		for _, name := range []string{cookieData, cookieCanary} {
			http.SetCookie(w, &http.Cookie{Name: name, Path: "/", Secure: true, HttpOnly: true, MaxAge: -1})
		}
		redirect(w, r, pathLogon+"?replaceCurrent=1&reason=1")
		return login{}, true
	}
	if session := s.sessions.get(r); session != nil {
		return login{account: s.accounts.find(session.user, ""), method: "Forms"}, false
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		redirect(w, r, pathLogon+"?url="+url.QueryEscape("https://"+r.Host+r.RequestURI)+"&reason=0")
	} else {
		drain(r)
		s.status(w, statusLoginTimeout)
	}
	return login{}, true
}

// redirect sends the client on, with the absolute URL that Exchange uses.
func redirect(w http.ResponseWriter, r *http.Request, target string) {
	w.Header()["Location"] = []string{"https://" + r.Host + target}
	w.Header()["Content-Length"] = []string{"0"}
	w.WriteHeader(http.StatusFound)
}

func (s *casServer) logonPage(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h["Content-Type"] = []string{"text/html; charset=utf-8"}
	h["Cache-Control"] = []string{"no-cache, no-store"}
	h["X-OWA-Version"] = []string{"15.2.1544.4"}
	wrong := ""
	if r.URL.Query().Get("reason") == "2" {
		wrong = "<p id=wrong>The user name or password is wrong.</p>"
	}
	_, _ = fmt.Fprintf(w, `<!DOCTYPE html><html><head><title>Outlook</title></head><body>%s<form name=logonForm method=POST action="%s">
<input type=hidden name=destination value="%s"><input type=hidden name=flags value=4><input type=hidden name=forcedownlevel value=0>
<input name=username id=username><input name=password id=password type=password><input type=hidden name=isUtf8 value=1>
<input type=submit id=signin value="sign in"></form></body></html>
`, wrong, pathLogonTo, html.EscapeString(r.URL.Query().Get("url")))
}

// logon answers the form: with cookies and where the user wanted to go, or with the form again.
func (s *casServer) logon(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxAutodiscoverBody)
	destination := "/owa/"
	if u, err := url.Parse(r.PostFormValue("destination")); err == nil && u.Host == r.Host && strings.HasPrefix(u.Path, "/") {
		destination = u.RequestURI() // nobody is sent to another host
	}
	account := s.accounts.checkBasic(r.PostFormValue("username"), r.PostFormValue("password"))
	if account == nil {
		redirect(w, r, pathLogon+"?url="+url.QueryEscape("https://"+r.Host+destination)+"&reason=2")
		return
	}
	_, user, _ := strings.Cut(account.login, `\`)
	cookie, session := s.sessions.add(user)
	for name, value := range map[string]string{
		cookieData: cookie, "cadataTTL": rand.Text(), "cadataKey": rand.Text(), "cadataIV": rand.Text(), "cadataSig": rand.Text(),
	} {
		http.SetCookie(w, &http.Cookie{Name: name, Value: value, Path: "/", Secure: true, HttpOnly: true})
	}
	http.SetCookie(w, &http.Cookie{Name: cookieCanary, Value: session.canary, Path: "/", Secure: true}) // the page has to read it
	redirect(w, r, destination)
}

// serveOWA is the application: a page, a request that stays open until the page says that it has seen what came, and a service that takes
// calls and attachments.
func (s *casServer) serveOWA(w http.ResponseWriter, r *http.Request, l login) {
	session := s.sessions.get(r)
	path := strings.ToLower(r.URL.Path)
	if session == nil || path != pathNotified && path != pathService && path != "/owa/" {
		s.servePage(w, r, l)
		return
	}
	h := w.Header()
	h["Cache-Control"] = []string{"no-cache, no-store"}
	if c, err := r.Cookie(cookieCanary); path != "/owa/" && (err != nil || c.Value != session.canary || r.Header.Get(cookieCanary) != session.canary) {
		drain(r)
		s.status(w, statusRetryWith)
		return
	}
	switch path {
	case "/owa/":
		h["Content-Type"] = []string{"text/html; charset=utf-8"}
		_, _ = fmt.Fprintf(w, "<!DOCTYPE html><html><head><title>Mail</title></head><body><p id=user>%s</p></body></html>\n", html.EscapeString(l.account.login))
	case pathNotified:
		s.serveNotifications(w, r, session)
	case pathService:
		sum := sha256.New()
		n, err := io.Copy(sum, http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			s.status(w, http.StatusRequestEntityTooLarge)
			return
		}
		h["Content-Type"] = []string{"application/json; charset=utf-8"}
		_, _ = fmt.Fprintf(w, `{"action":%q,"length":%d,"sha256":"%x","urlPostData":%d}`,
			r.Header.Get("Action"), n, sum.Sum(nil), len(r.Header.Get("X-OWA-UrlPostData")))
	}
}

// notificationTime ends a request that nobody finishes.
const notificationTime = time.Minute

// serveNotifications keeps PendingNotificationRequest open after its first piece until FinishNotificationRequest comes. Then it says so,
// and else it breaks off: a page gets to the end only if it was shown the first piece in time.
func (s *casServer) serveNotifications(w http.ResponseWriter, r *http.Request, session *formsSession) {
	if r.URL.Query().Get("ev") == "FinishNotificationRequest" {
		select {
		case session.finish <- struct{}{}:
		default:
		}
		w.WriteHeader(http.StatusOK)
		return
	}
	w.Header()["Content-Type"] = []string{"text/plain; charset=utf-8"}
	_, _ = io.WriteString(w, "{id:'NewMail'}\r\n")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-session.finish:
		_, _ = io.WriteString(w, "{id:'Finished'}\r\n")
	case <-r.Context().Done():
	case <-time.After(notificationTime):
		panic(http.ErrAbortHandler)
	}
}
