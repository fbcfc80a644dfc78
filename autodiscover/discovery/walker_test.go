package discovery

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The order of each profile against a world where every name exists, nothing works and the redirect site answers 404:
// each candidate is asked once, in the order of AUTODISCOVER.md section 1.2.
func TestOrderOfEachProfile(t *testing.T) {
	const xml = "/autodiscover/autodiscover.xml"
	orders := map[string]struct {
		requests []string
		steps    []string
	}{
		"outlook-2007": {
			[]string{"POST https://contoso.com" + xml, "POST https://autodiscover.contoso.com" + xml, "GET http://autodiscover.contoso.com" + xml, "POST https://srv.contoso.com" + xml},
			[]string{"scp skip", "post next", "post next", "get next", "srv next", "skip skip"},
		},
		"outlook-2016": {
			[]string{
				"GET https://autodiscover.contoso.com/autodiscover/autodiscover.json?Email=pat%40contoso.com&Protocol=Autodiscoverv1&RedirectCount=1",
				"POST https://contoso.com" + xml, "POST https://autodiscover.contoso.com" + xml, "GET http://autodiscover.contoso.com" + xml, "POST https://srv.contoso.com" + xml,
			},
			[]string{"skip skip", "skip skip", "skip skip", "skip skip", "scp skip", "json next", "post next", "post next", "skip skip", "get next", "srv next", "skip skip"},
		},
		"activesync": {
			[]string{"POST https://contoso.com" + xml, "POST https://autodiscover.contoso.com" + xml, "GET http://autodiscover.contoso.com" + xml},
			[]string{"post next", "post next", "get next"},
		},
	}
	for _, p := range Profiles() {
		want, ok := orders[p.Name]
		if !ok {
			t.Errorf("no order is expected of %s", p.Name)
			continue
		}
		t.Run(p.Name, func(t *testing.T) {
			w := newWorld(t)
			w.tls(http.NotFound, "contoso.com", "autodiscover.contoso.com", "srv.contoso.com")
			w.record("_autodiscover._tcp.contoso.com. 60 IN SRV 0 0 443 srv.contoso.com.")
			wk := w.walker(p.Name)
			wk.Credentials = Credentials{}
			tr := walk1(wk, "pat@contoso.com")
			w.want(want.requests...)
			var steps []string
			for _, s := range tr.Steps {
				steps = append(steps, string(s.Kind)+" "+string(s.Outcome))
				if s.Why == "" {
					t.Errorf("step %q does not say why", s.What)
				}
			}
			if !slices.Equal(steps, want.steps) {
				t.Errorf("steps %v\nwant  %v", steps, want.steps)
			}
			if tr.Connected || tr.Verdict != "fails" || tr.FailedAt == "" {
				t.Errorf("connected %v, verdict %s, failed at %q", tr.Connected, tr.Verdict, tr.FailedAt)
			}
		})
	}
}

// What a profile sends: schema, headers in the client's letter case (trace and wire agree), HTTP/1.1.
func TestRequestsSent(t *testing.T) {
	f := func(client, schema string, header map[string]string) {
		t.Helper()
		w := newWorld(t)
		w.tls(http.NotFound, "contoso.com")
		tr := walk1(w.walker(client), "o'brien&co@contoso.com")
		s := find(t, tr, KindPost, "https://contoso.com/")
		got := w.headers[0]
		body := w.bodies[0]
		for k, v := range header {
			if got.Get(k) != v {
				t.Errorf("%s: header %s is %q, want %q", client, k, got.Get(k), v)
			}
		}
		for _, h := range s.Exchanges[0].RequestHeader {
			if want := got.Get(h.Name); h.Name != "Content-Length" && h.Value != want && !strings.HasSuffix(h.Value, removed) {
				t.Errorf("%s: trace says %s: %s, the server got %q", client, h.Name, h.Value, want)
			}
		}
		if len(s.Exchanges[0].RequestHeader) != len(got) {
			t.Errorf("%s: trace has %v, the server got %v", client, s.Exchanges[0].RequestHeader, got)
		}
		if !strings.HasPrefix(body, `<?xml version="1.0" encoding="utf-8"?>`) || !strings.Contains(body, "<EMailAddress>o&apos;brien&amp;co@contoso.com</EMailAddress>") ||
			!strings.Contains(body, "<AcceptableResponseSchema>"+schema+"</AcceptableResponseSchema>") {
			t.Errorf("%s: body %s", client, body)
		}
	}
	f("outlook-2007", nsOutlook, map[string]string{"X-MapiHttpCapability": "", "X-ClientCanHandle": "", "Content-Type": "text/xml; charset=utf-8", "Authorization": ""})
	f("activesync", nsMobile, map[string]string{"MS-ASProtocolVersion": "2.5", "User-Agent": "Android/0.3", "Authorization": "Basic bydicmllbiZjb0Bjb250b3NvLmNvbTpzM2NyZXQtcGFzcw=="})

	w := newWorld(t)
	w.tls(http.NotFound, "contoso.com")
	walk1(w.walker("outlook-2016"), "pat@contoso.com")
	if got := w.headers[0]; got.Get("X-MapiHttpCapability") != "1" || got.Get("X-ClientCanHandle") != "Negotiate, ExHttpInfo" {
		t.Errorf("outlook-2016 sends %v", got)
	}
}

// a redirect-only name refuses TLS with unrecognized_name; the client is at the next step at once.
func TestAlertMovesOnQuickly(t *testing.T) {
	w := newWorld(t)
	w.a("contoso.com") // no host on 443: the alert
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "autodiscover.contoso.com")
	wk := w.walker("outlook-2007")
	tr := walk1(wk, "pat@contoso.com")
	s := find(t, tr, KindPost, "https://contoso.com/")
	if s.TLSAlert != "unrecognized_name" || s.Certificate != nil || s.Outcome != OutcomeNext || s.UserSees != silent || s.Duration > wk.StepTimeout/4 {
		t.Errorf("alert %q, certificate %v, outcome %s, user sees %q after %s", s.TLSAlert, s.Certificate, s.Outcome, s.UserSees, s.Duration)
	}
	if !tr.Connected || tr.Verdict != "silent" {
		t.Errorf("%s: %s", tr.Verdict, tr.Why)
	}
	w.want("POST https://autodiscover.contoso.com/autodiscover/autodiscover.xml", "POST https://autodiscover.contoso.com/autodiscover/autodiscover.xml Basic")
	if tr.ExpectedLine != "silent, settings from https://autodiscover.contoso.com/autodiscover/autodiscover.xml (EXCH EXPR WEB)" {
		t.Errorf("expected line %q", tr.ExpectedLine)
	}
}

// RST, silence (gotcha 13), no such name and refused connections are all the next step, each told apart.
func TestDeadCandidates(t *testing.T) {
	f := func(why string, set func(*world)) {
		t.Helper()
		w := newWorld(t)
		set(w)
		w.tls(basicPOX("pat@contoso.com", settingsDoc()), "autodiscover.contoso.com")
		wk := w.walker("outlook-2007")
		if strings.HasPrefix(why, "no answer within") {
			wk.StepTimeout = 2 * time.Second // the good candidate has no more
		}
		tr := walk1(wk, "pat@contoso.com")
		s := find(t, tr, KindPost, "https://contoso.com/")
		if s.Why != why || s.Outcome != OutcomeNext {
			t.Errorf("outcome %s because %q, want %q", s.Outcome, s.Why, why)
		}
		if !tr.Connected {
			t.Errorf("not connected: %s", tr.Why)
		}
	}
	f("connection reset by the server", func(w *world) { w.a("contoso.com"); w.set("contoso.com", &host{raw: reset}) })
	f("no answer within 2s", func(w *world) { w.a("contoso.com"); w.set("contoso.com", &host{raw: hang}) })
	f("contoso.com does not exist in DNS", func(*world) {})
	f("contoso.com has no address", func(w *world) { w.record("contoso.com. 60 IN TXT \"x\"") })
	f("the server does not speak TLS on this port", func(w *world) {
		w.a("contoso.com")
		w.set("contoso.com", &host{raw: func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}})
	})
}

// B5, B8: every https attempt fails, the redirect site answers 302, one prompt names the target, then POST with login there.
func TestRedirectSite(t *testing.T) {
	site := func(t *testing.T) *world {
		w := newWorld(t)
		w.record("contoso.com. 60 IN A 127.0.0.1")
		w.record("autodiscover.contoso.com. 60 IN CNAME redirect.hoster.example.")
		w.a("redirect.hoster.example")
		w.http(redirectTo(302, "https://mail.hoster.example/autodiscover/autodiscover.xml"), "autodiscover.contoso.com")
		w.mu.Lock()
		delete(w.records, "A autodiscover.contoso.com.")
		w.mu.Unlock()
		w.tls(basicPOX("pat@contoso.com", settingsDoc()), "mail.hoster.example")
		return w
	}
	t.Run("accepted", func(t *testing.T) {
		w := site(t)
		tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
		w.want(
			"GET http://autodiscover.contoso.com/autodiscover/autodiscover.xml",
			"POST https://mail.hoster.example/autodiscover/autodiscover.xml",
			"POST https://mail.hoster.example/autodiscover/autodiscover.xml Basic",
		)
		if want := []string{"May https://mail.hoster.example/autodiscover/autodiscover.xml configure the account of pat@contoso.com?"}; !slices.Equal(tr.Prompts, want) {
			t.Errorf("prompts %q", tr.Prompts)
		}
		if !tr.Connected || tr.Verdict != "prompt" || tr.FoundAt != "https://mail.hoster.example/autodiscover/autodiscover.xml" {
			t.Errorf("%+v", tr)
		}
		get := find(t, tr, KindGet, "http://autodiscover")
		if !slices.Contains(get.DNS, "autodiscover.contoso.com CNAME redirect.hoster.example") || !slices.Contains(get.DNS, "redirect.hoster.example A 127.0.0.1") {
			t.Errorf("dns %q", get.DNS)
		}
		if len(w.leaked) > 0 {
			t.Errorf("credentials over plain HTTP: %v", w.leaked)
		}
	})
	t.Run("refused", func(t *testing.T) {
		w := site(t)
		wk := w.walker("outlook-2007")
		wk.Prompts.RefuseRedirects = true
		tr := walk1(wk, "pat@contoso.com")
		w.want("GET http://autodiscover.contoso.com/autodiscover/autodiscover.xml")
		if s := find(t, tr, KindRedirect, "mail.hoster.example"); s.Outcome != OutcomePrompt {
			t.Errorf("outcome %s", s.Outcome)
		}
		if tr.Connected || tr.FailedAt != "redirect to https://mail.hoster.example/autodiscover/autodiscover.xml" || len(tr.Prompts) != 1 {
			t.Errorf("connected %v, failed at %q, prompts %q", tr.Connected, tr.FailedAt, tr.Prompts)
		}
	})
	t.Run("activesync follows without asking", func(t *testing.T) {
		w := site(t)
		w.tls(basicPOX("pat@contoso.com", mobileDoc(mobileServer)), "mail.hoster.example")
		tr := walk1(w.walker("activesync"), "pat@contoso.com")
		w.want("GET http://autodiscover.contoso.com/autodiscover/autodiscover.xml", "POST https://mail.hoster.example/autodiscover/autodiscover.xml Basic")
		if tr.Verdict != "silent" {
			t.Errorf("%s: %s", tr.Verdict, tr.Why)
		}
	})
}

// Gotcha 14 and section 1.3: what a redirect site can do wrong.
func TestRedirectsNotObeyed(t *testing.T) {
	f := func(client string, handler http.HandlerFunc, why string) {
		t.Helper()
		w := newWorld(t)
		w.tls(basicPOX("pat@contoso.com", settingsDoc()), "mail.contoso.com")
		w.http(handler, "autodiscover.contoso.com", "plain.contoso.com")
		tr := walk1(w.walker(client), "pat@contoso.com")
		get := find(t, tr, KindGet, "http://autodiscover")
		got := get.Why
		if len(get.Children) > 0 {
			got = get.Children[0].Why
		}
		if tr.Connected || got != why {
			t.Errorf("connected %v, why %q, want %q", tr.Connected, got, why)
		}
		if len(w.leaked) > 0 || len(w.requests()) != 1 {
			t.Errorf("leaked %v, requests %v", w.leaked, w.requests())
		}
	}
	f("outlook-2007", redirectTo(302, "/autodiscover/other.xml"), "the client ignores a relative URL")
	f("outlook-2007", redirectTo(302, "http://plain.contoso.com/autodiscover/autodiscover.xml"), "the target is not https")
	f("activesync", redirectTo(302, "http://plain.contoso.com/autodiscover/autodiscover.xml"), "the target is not https")
	f("outlook-2007", redirectTo(308, "https://mail.contoso.com/autodiscover/autodiscover.xml"), "HTTP status 308 is no redirect this client obeys")
	f("outlook-2007", redirectTo(302, ""), "HTTP status 302 without a Location")
	f("outlook-2007", redirectTo(302, "https://x:y@mail.contoso.com/"), "the target carries user information")
	f("outlook-2007", redirectTo(302, "https://autodiscover.net/autodiscover/autodiscover.xml"), "autodiscover.net is the name under a public suffix that collects strangers' credentials; it is never asked")
	f("outlook-2007", answer(settingsDoc()), "HTTP status 200 is no redirect this client obeys") // a payload without TLS is discarded [KB]
	f("activesync", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, "HTTP status 401 is no redirect this client obeys")
}

// B3: SRV found after everything else, one redirect prompt, the port is not used [GX].
func TestSRV(t *testing.T) {
	f := func(connected bool, prompts int, records ...string) *Trace {
		t.Helper()
		w := newWorld(t)
		w.tls(basicPOX("pat@contoso.com", settingsDoc()), "mail.contoso.com")
		for _, r := range records {
			w.record("_autodiscover._tcp.contoso.com. 60 IN SRV " + r)
		}
		tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
		if tr.Connected != connected || len(tr.Prompts) != prompts {
			t.Errorf("%v: connected %v after %q: %s", records, tr.Connected, tr.Prompts, tr.Why)
		}
		return tr
	}
	tr := f(true, 1, "0 0 443 mail.contoso.com.")
	if s := find(t, tr, KindSRV, "_autodiscover._tcp.contoso.com"); !slices.Equal(s.DNS, []string{"_autodiscover._tcp.contoso.com SRV 0 0 443 mail.contoso.com."}) || s.Outcome != OutcomeOK {
		t.Errorf("dns %q, outcome %s", s.DNS, s.Outcome)
	}
	f(true, 1, "0 0 4443 mail.contoso.com.")
	f(true, 1, "10 0 443 nowhere.contoso.com.", "5 1 443 other.contoso.com.", "5 9 443 mail.contoso.com.")
	tr = f(false, 0, "0 0 443 .")
	if s := find(t, tr, KindSRV, ""); s.Why != "the record says that there is no such service" {
		t.Errorf("why %q", s.Why)
	}
	tr = f(false, 0)
	if s := find(t, tr, KindSRV, ""); s.Why != "_autodiscover._tcp.contoso.com does not exist in DNS" {
		t.Errorf("why %q", s.Why)
	}
}

// The V2 answer of the account wizard names the URL to post to.
func TestJSONNamesTheURL(t *testing.T) {
	w := newWorld(t)
	w.tls(func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", "application/json; charset=utf-8")
		_, _ = io.WriteString(rw, `{"Protocol":"AutodiscoverV1","Url":"https://mail.contoso.com/autodiscover/autodiscover.xml"}`)
	}, "autodiscover.contoso.com")
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "mail.contoso.com")
	tr := walk1(w.walker("outlook-2016"), "pat@contoso.com")
	w.want(
		"GET https://autodiscover.contoso.com/autodiscover/autodiscover.json?Email=pat%40contoso.com&Protocol=Autodiscoverv1&RedirectCount=1",
		"POST https://mail.contoso.com/autodiscover/autodiscover.xml",
		"POST https://mail.contoso.com/autodiscover/autodiscover.xml Basic",
	)
	if tr.Verdict != "silent" {
		t.Errorf("%s: %s", tr.Verdict, tr.Why)
	}
	f := func(want string, handler http.HandlerFunc) {
		t.Helper()
		w := newWorld(t)
		w.tls(handler, "autodiscover.contoso.com")
		if s := find(t, walk1(w.walker("outlook-2016"), "pat@contoso.com"), KindJSON, ""); s.Why != want {
			t.Errorf("why %q, want %q", s.Why, want)
		}
	}
	f("HTTP status 404: the server does not answer V2 for this domain", http.NotFound)
	f("the answer is not JSON", func(rw http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(rw, "<html>") })
	f("the answer is the error InvalidProtocol", func(rw http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(rw, `{"ErrorCode":"InvalidProtocol"}`)
	})
}

// redirectAddr leads to another domain, where discovery starts over; the login stays the first address's.
func TestRedirectAddrAcrossDomains(t *testing.T) {
	w := newWorld(t)
	w.tls(basicPOX("pat@contoso.com", outlookDoc(`<Action>redirectAddr</Action><RedirectAddr>pat@fabrikam.example</RedirectAddr>`)), "contoso.com")
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "autodiscover.fabrikam.example")
	tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
	w.want(
		"POST https://contoso.com/autodiscover/autodiscover.xml",
		"POST https://contoso.com/autodiscover/autodiscover.xml Basic",
		"POST https://autodiscover.fabrikam.example/autodiscover/autodiscover.xml",
		"POST https://autodiscover.fabrikam.example/autodiscover/autodiscover.xml Basic",
	)
	if !tr.Connected || tr.Address != "pat@contoso.com" {
		t.Errorf("connected %v: %s", tr.Connected, tr.Why)
	}
	if !strings.Contains(w.bodies[3], "<EMailAddress>pat@fabrikam.example</EMailAddress>") {
		t.Errorf("body %s", w.bodies[3])
	}
	find(t, tr, KindRedirect, "start over with pat@fabrikam.example")
}

// Gotcha 27: an address that leads to itself, or to the first one in the end, is a circle; a public suffix is no domain.
func TestRedirectAddrCircle(t *testing.T) {
	f := func(to, why string) {
		t.Helper()
		w := newWorld(t)
		w.tls(basicPOX("pat@contoso.com", outlookDoc(`<Action>redirectAddr</Action><RedirectAddr>`+to+`</RedirectAddr>`)), "contoso.com")
		w.tls(basicPOX("pat@contoso.com", outlookDoc(`<Action>redirectAddr</Action><RedirectAddr>Pat@contoso.com</RedirectAddr>`)), "fabrikam.example")
		tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
		if tr.Connected || tr.Why != why {
			t.Errorf("%s: connected %v, why %q, want %q", to, tr.Connected, tr.Why, why)
		}
	}
	const circle = "the redirects go round in a circle: discovery has already been started with this address"
	f("PAT@contoso.com", circle)
	f("pat@fabrikam.example", circle)
	f("pat@co.uk", "co.uk is a public suffix: autodiscover.co.uk would belong to a stranger")
	f("nobody", `"nobody" is not a mail address`)
}

// redirectUrl posts again to the URL in the answer, without a prompt, since it came over TLS from a server that knew the user.
func TestRedirectURL(t *testing.T) {
	w := newWorld(t)
	w.tls(basicPOX("pat@contoso.com", outlookDoc(`<Action>redirectUrl</Action><RedirectUrl>https://eu.contoso.com/autodiscover/autodiscover.xml</RedirectUrl>`)), "contoso.com")
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "eu.contoso.com")
	tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
	w.want(
		"POST https://contoso.com/autodiscover/autodiscover.xml",
		"POST https://contoso.com/autodiscover/autodiscover.xml Basic",
		"POST https://eu.contoso.com/autodiscover/autodiscover.xml",
		"POST https://eu.contoso.com/autodiscover/autodiscover.xml Basic",
	)
	if tr.Verdict != "silent" {
		t.Errorf("%s: %s", tr.Verdict, tr.Why)
	}
}

// A 302 on POST before any challenge is posted to again [DSCLI 3.2.5]; 451 carries its target in X-MS-Location [ASHTTP].
func TestRedirectOnPost(t *testing.T) {
	w := newWorld(t)
	w.tls(redirectTo(302, "https://mail.contoso.com/autodiscover/autodiscover.xml"), "contoso.com")
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "mail.contoso.com")
	if tr := walk1(w.walker("outlook-2016"), "pat@contoso.com"); tr.Verdict != "silent" || tr.FoundAt != "https://mail.contoso.com/autodiscover/autodiscover.xml" {
		t.Errorf("%s at %s: %s", tr.Verdict, tr.FoundAt, tr.Why)
	}
	w = newWorld(t)
	w.tls(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("X-MS-Location", "https://mail.contoso.com/autodiscover/autodiscover.xml")
		rw.WriteHeader(451)
	}, "contoso.com")
	w.tls(basicPOX("pat@contoso.com", mobileDoc(mobileServer)), "mail.contoso.com")
	if tr := walk1(w.walker("activesync"), "pat@contoso.com"); tr.Verdict != "silent" {
		t.Errorf("%s: %s", tr.Verdict, tr.Why)
	}
}

// A chain of redirects ends after ten hops, a circle at once.
func TestRedirectLoop(t *testing.T) {
	w := newWorld(t)
	n := 0
	w.tls(func(rw http.ResponseWriter, _ *http.Request) {
		n++
		redirectTo(302, fmt.Sprintf("https://contoso.com/hop%d/autodiscover.xml", n))(rw, nil)
	}, "contoso.com")
	tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
	if got := len(w.requests()); got != 11 || tr.Why != "more than 10 redirects" {
		t.Errorf("%d requests, %q", got, tr.Why)
	}

	w = newWorld(t)
	w.tls(redirectTo(302, "https://b.contoso.com/autodiscover/autodiscover.xml"), "contoso.com")
	w.tls(redirectTo(302, "https://CONTOSO.com/autodiscover/autodiscover.xml"), "b.contoso.com")
	tr = walk1(w.walker("outlook-2007"), "pat@contoso.com")
	w.want("POST https://contoso.com/autodiscover/autodiscover.xml", "POST https://b.contoso.com/autodiscover/autodiscover.xml")
	if tr.Why != "the redirects go round in a circle" {
		t.Errorf("why %q", tr.Why)
	}

	// Every address leads to a fresh one: the walk as a whole starts over ten times, not ten times per candidate.
	w = newWorld(t)
	n = 0
	w.tls(func(rw http.ResponseWriter, r *http.Request) {
		n++
		answer(outlookDoc(fmt.Sprintf(`<Action>redirectAddr</Action><RedirectAddr>p%d@contoso.com</RedirectAddr>`, n)))(rw, r)
	}, "contoso.com", "autodiscover.contoso.com")
	tr = walk1(w.walker("outlook-2007"), "pat@contoso.com")
	if got := len(w.requests()); tr.Connected || got > 40 {
		t.Errorf("connected %v after %d requests", tr.Connected, got)
	}
}

// A wrong password: Outlook asks again and goes on [EXDOC], a device stops at the first [AND].
func TestWrongPassword(t *testing.T) {
	w := newWorld(t)
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "contoso.com", "autodiscover.contoso.com")
	wk := w.walker("outlook-2007")
	wk.Credentials.Password = "wrong"
	tr := walk1(wk, "pat@contoso.com")
	if tr.Connected || len(w.requests()) != 5 || tr.FailedAt != "POST https://contoso.com/autodiscover/autodiscover.xml" || tr.Why != "401: the credentials were refused with Basic" {
		t.Errorf("connected %v, requests %v, failed at %q: %s", tr.Connected, w.requests(), tr.FailedAt, tr.Why)
	}
	if len(tr.Prompts) != 2 || tr.Prompts[0] != "Password for pat@contoso.com at contoso.com?" {
		t.Errorf("prompts %q", tr.Prompts)
	}

	w = newWorld(t)
	w.tls(basicPOX("pat@contoso.com", mobileDoc(mobileServer)), "contoso.com", "autodiscover.contoso.com")
	wk = w.walker("activesync")
	wk.Credentials.Password = "wrong"
	tr = walk1(wk, "pat@contoso.com")
	w.want("POST https://contoso.com/autodiscover/autodiscover.xml Basic")
	if s := tr.Steps[len(tr.Steps)-1]; s.Outcome != OutcomeFail || s.UserSees != "The user name or password is wrong." {
		t.Errorf("outcome %s, user sees %q", s.Outcome, s.UserSees)
	}
	if tr.ExpectedLine != "fails at POST https://contoso.com/autodiscover/autodiscover.xml: 401: the credentials were refused with Basic" {
		t.Errorf("expected line %q", tr.ExpectedLine)
	}
}

// Documents of no use, each said in words; gotchas 4, 9, 10, 11, and the ErrorCode 601 of a server without MobileSync.
func TestUselessAnswers(t *testing.T) {
	f := func(client, doc, why string) {
		t.Helper()
		w := newWorld(t)
		w.tls(answer(doc), "contoso.com")
		tr := walk1(w.walker(client), "pat@contoso.com")
		if s := find(t, tr, KindPost, "https://contoso.com/"); s.Outcome != OutcomeNext || s.Why != why || tr.Connected || tr.Why != why {
			t.Errorf("%s: outcome %s, why %q, want %q (trace %q)", client, s.Outcome, s.Why, why, tr.Why)
		}
	}
	f("outlook-2007", "<!DOCTYPE html><html><body>Welcome<br></body></html>", "the answer is a web page, not an Autodiscover document")
	f("outlook-2007", "", "the answer is empty")
	f("outlook-2007", "<Autodiscover>", "the answer is not well-formed XML")
	f("outlook-2007", `<?xml version="1.0" encoding="utf-16"?><Autodiscover/>`, "the answer is not well-formed XML")
	f("outlook-2007", `<!DOCTYPE x>`+strings.TrimPrefix(settingsDoc(), `<?xml version="1.0" encoding="utf-8"?>`), "the answer has a DOCTYPE")
	f("outlook-2007", settingsDoc()+"<again/>", "the answer is not one XML document")
	f("outlook-2007", settingsDoc()+"tail", "the answer has text outside its root")
	f("outlook-2007", strings.ReplaceAll(settingsDoc(), "http://schemas.microsoft.com/exchange/autodiscover/responseschema", "https://schemas.microsoft.com/exchange/autodiscover/responseschema"),
		`the root is in the namespace "https://schemas.microsoft.com/exchange/autodiscover/responseschema/2006", expected "http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006"`)
	f("outlook-2007", strings.ReplaceAll(settingsDoc(), "2006a", "2007"),
		`the Response is in the namespace "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2007", expected "http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a"`)
	f("outlook-2007", outlookDoc(`<Action>redirectUrl</Action>`), "the answer says redirectUrl but not where to")
	f("outlook-2007", outlookDoc(`<Action>dance</Action>`), `the answer has the unknown Action "dance"`)
	f("outlook-2007", outlookDoc(`<Action>settings</Action>`), "the answer has no protocol, the client needs EXPR or POP3 or IMAP")
	f("outlook-2007", outlookDoc(`<Action>settings</Action><Protocol><Server>x</Server></Protocol>`), "the answer has a Protocol without Type")
	f("outlook-2007", outlookDoc(`<Action>settings</Action><Protocol Type="mapiHttp" Version="1"><MailStore><ExternalUrl>https://mail.contoso.com/mapi</ExternalUrl></MailStore></Protocol>`),
		"the answer has mapiHttp, the client needs EXPR or POP3 or IMAP")
	f("outlook-2016", outlookDoc(`<Action>settings</Action><Protocol><Type>IMAP</Type></Protocol><Protocol><Type>SMTP</Type></Protocol>`),
		"the answer has IMAP, SMTP, the client needs mapiHttp or EXHTTP or EXPR or EXCH")
	f("outlook-2007", errorDoc(500, "The email address can't be found."), "the server answers with ErrorCode 500: The email address can't be found.")
	f("activesync", errorDoc(601, "Provider is not available"), "the server answers with ErrorCode 601: Provider is not available")
	f("activesync", strings.ReplaceAll(strings.ReplaceAll(mobileDoc(""), "<Settings>", "<Error><Status>2</Status><Message>No such mailbox</Message></Error>"), "<Server></Server></Settings>", ""),
		"the server answers with an Error: No such mailbox")
	f("activesync", mobileDoc(`<Url>https://mail.contoso.com/x</Url><Type>MobileSync</Type>`), "the answer has no Url after Type MobileSync") // gotcha 28
	f("activesync", mobileDoc(`<Type>CertEnroll</Type><Url>https://pki.contoso.com/</Url>`), "the answer has CertEnroll, the client needs MobileSync")
}

// Certificates: each fault is a verdict of its own, and every client takes it in its way. Nothing is sent before.
func TestCertificateVerdicts(t *testing.T) {
	now := time.Now()
	f := func(verdict string, fault Faults, h func(*world) *host) {
		t.Helper()
		make := func() *world {
			w := newWorld(t)
			w.a("contoso.com")
			w.set("contoso.com", h(w))
			return w
		}
		// Outlook asks; the user of the default policy refuses.
		w := make()
		tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
		s := find(t, tr, KindPost, "https://contoso.com/")
		if s.Certificate == nil || s.Certificate.Verdict != verdict || s.Outcome != OutcomePrompt || len(tr.Prompts) != 1 || len(w.requests()) != 0 {
			t.Errorf("%s: certificate %+v, outcome %s, prompts %q, requests %v", verdict, s.Certificate, s.Outcome, tr.Prompts, w.requests())
		}
		if want := "the user did not accept the certificate: " + fault.sentence(); tr.Why != want {
			t.Errorf("why %q, want %q", tr.Why, want)
		}
		// A user who clicks it away gets on.
		w = make()
		wk := w.walker("outlook-2007")
		wk.Prompts.AcceptCertificates = fault
		if tr := walk1(wk, "pat@contoso.com"); tr.Verdict != "prompt" {
			t.Errorf("%s accepted: %s: %s", verdict, tr.Verdict, tr.Why)
		}
		// A device fails without a word.
		w = make()
		tr = walk1(w.walker("activesync"), "pat@contoso.com")
		if s := find(t, tr, KindPost, "https://contoso.com/"); s.Outcome != OutcomeNext || s.UserSees != silent || len(w.requests()) != 0 {
			t.Errorf("%s: outcome %s, user sees %q, requests %v", verdict, s.Outcome, s.UserSees, w.requests())
		}
	}
	serve := basicPOX("pat@contoso.com", settingsDoc())
	f("name_mismatch", NameMismatch, func(w *world) *host {
		return &host{cert: w.cert(func(*x509.Certificate) {}, "www.contoso.com", "*.contoso.com"), handler: serve}
	})
	f("unknown_issuer", UnknownIssuer, func(w *world) *host { return &host{cert: w.selfSigned("contoso.com"), handler: serve} })
	f("unknown_issuer,name_mismatch", UnknownIssuer|NameMismatch, func(w *world) *host { // B1
		return &host{cert: w.selfSigned("server01", "server01.contoso.com"), handler: serve}
	})
	f("expired", Expired, func(w *world) *host {
		return &host{cert: w.cert(func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour)
		}, "contoso.com"), handler: serve}
	})
	f("expired", Expired, func(w *world) *host {
		return &host{cert: w.cert(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(10*time.Minute), now.Add(20*time.Minute) }, "contoso.com"), handler: serve}
	})
}

// A certificate without alternative names counts by its common name for Outlook, not for a device.
func TestCommonName(t *testing.T) {
	f := func(client, doc, verdict string) {
		t.Helper()
		w := newWorld(t)
		w.a("contoso.com")
		w.set("contoso.com", &host{cert: w.cert(func(c *x509.Certificate) { c.DNSNames = nil }, "contoso.com"), handler: basicPOX("pat@contoso.com", doc)})
		tr := walk1(w.walker(client), "pat@contoso.com")
		if s := find(t, tr, KindPost, "https://contoso.com/"); s.Certificate.Verdict != verdict {
			t.Errorf("%s: %s", client, s.Certificate.Verdict)
		}
	}
	f("outlook-2007", settingsDoc(), "ok")
	f("activesync", mobileDoc(mobileServer), "name_mismatch")
}

// Connections after the first must show the certificate that was judged: the server here changes it after the 401.
func TestCertificateMayNotChange(t *testing.T) {
	w := newWorld(t)
	first := true
	w.tls(func(rw http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			w.set("contoso.com", &host{cert: w.selfSigned("contoso.com"), handler: basicPOX("pat@contoso.com", settingsDoc())})
		}
		rw.Header().Set("Connection", "close")
		rw.Header().Set("WWW-Authenticate", "Basic")
		rw.WriteHeader(401)
	}, "contoso.com")
	tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
	w.want("POST https://contoso.com/autodiscover/autodiscover.xml")
	if s := find(t, tr, KindPost, "https://contoso.com/"); s.Why != "a second connection shows another certificate" {
		t.Errorf("why %q", s.Why)
	}
}

// Section 9, credential leak: no Basic unless allowed, nothing for a domain that is a public suffix, nothing above the registrable domain.
func TestCredentialsStay(t *testing.T) {
	for _, client := range []string{"outlook-2007", "activesync"} {
		w := newWorld(t)
		w.tls(basicPOX("pat@contoso.com", settingsDoc()), "contoso.com")
		wk := w.walker(client)
		wk.Credentials.AllowBasic = false
		tr := walk1(wk, "pat@contoso.com")
		for _, l := range w.requests() {
			if strings.HasSuffix(l, " Basic") {
				t.Errorf("%s sent Basic: %s", client, l)
			}
		}
		if tr.Why != "401: the server takes Basic, which is not allowed for this walk" {
			t.Errorf("%s: %s", client, tr.Why)
		}
	}

	for _, address := range []string{"pat@co.uk", "pat@com", "pat@contoso", "pat", "@contoso.com", "pat@", "pat@192.0.2.1", "pat@con toso.com", "pat@-x-.com"} {
		w := newWorld(t)
		tr := walk1(w.walker("outlook-2007"), address)
		if tr.FailedAt != "start" || tr.Why == "" || len(w.questions)+len(w.requests()) != 0 {
			t.Errorf("%s: failed at %q (%s), asked %v", address, tr.FailedAt, tr.Why, w.questions)
		}
	}

	// A client that backs off upwards, as data: its two last candidates are never asked, in DNS neither.
	w := newWorld(t)
	w.a("com", "autodiscover.com")
	w.tls(basicPOX("pat@sales.contoso.com", settingsDoc()), "contoso.com", "autodiscover.com")
	wk := w.walker("activesync")
	wk.Profile.Stages = nil
	for _, u := range []string{"https://autodiscover.com/autodiscover/autodiscover.xml", "https://com/autodiscover/autodiscover.xml", "https://evilcontoso.com/", "https://contoso.com/autodiscover/autodiscover.xml"} {
		wk.Profile.Stages = append(wk.Profile.Stages, Stage{Kind: KindPost, Name: u, Method: http.MethodPost, URL: u})
	}
	tr := walk1(wk, "pat@sales.contoso.com")
	w.want("POST https://contoso.com/autodiscover/autodiscover.xml Basic")
	for _, s := range tr.Steps[:3] {
		if s.Outcome != OutcomeSkip || !strings.Contains(s.Why, "is outside contoso.com") {
			t.Errorf("%s: %s because %s", s.What, s.Outcome, s.Why)
		}
	}
	for _, q := range w.questions {
		if !strings.HasSuffix(q, " contoso.com.") {
			t.Errorf("asked DNS for %s", q)
		}
	}
}

// A profile that would post over plain HTTP, as some clients do for an SRV record on port 80, is not followed there.
func TestNothingPostedInTheClear(t *testing.T) {
	w := newWorld(t)
	w.http(basicPOX("pat@contoso.com", mobileDoc(mobileServer)), "contoso.com")
	wk := w.walker("activesync")
	wk.Profile.Stages = []Stage{{Kind: KindPost, Name: "plain", Method: http.MethodPost, URL: "http://{domain}/autodiscover/autodiscover.xml"}}
	tr := walk1(wk, "pat@contoso.com")
	w.want()
	if tr.Why != "the target is not https: nothing is posted in the clear" {
		t.Errorf("why %q", tr.Why)
	}
}

// A client that does not follow RedirectAddr stays where it is.
func TestAddressRedirectNotFollowed(t *testing.T) {
	w := newWorld(t)
	w.tls(answer(outlookDoc(`<Action>redirectAddr</Action><RedirectAddr>pat@fabrikam.example</RedirectAddr>`)), "contoso.com")
	wk := w.walker("outlook-2007")
	wk.Profile.FollowAddress = false
	tr := walk1(wk, "pat@contoso.com")
	w.want("POST https://contoso.com/autodiscover/autodiscover.xml")
	if s := find(t, tr, KindRedirect, "start over"); s.Why != "the client does not follow address redirects" {
		t.Errorf("why %q", s.Why)
	}
}

// A server that offers only something else than the client knows, or a walk without a password.
func TestNoLogin(t *testing.T) {
	f := func(offer, password, why string) {
		t.Helper()
		w := newWorld(t)
		w.tls(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("WWW-Authenticate", offer)
			rw.WriteHeader(401)
		}, "contoso.com")
		wk := w.walker("outlook-2007")
		wk.Credentials.Password = password
		tr := walk1(wk, "pat@contoso.com")
		if tr.Why != why || len(w.requests()) != 1 {
			t.Errorf("why %q, want %q; requests %v", tr.Why, why, w.requests())
		}
	}
	f(`Bearer authorization_uri="https://login.example"`, "x", "401: the server offers no login this client knows")
	f("Basic", "", "401: no password was given")
}

// NTLM is preferred over Basic, runs on one connection, and says what a refusal may mean.
func TestNTLM(t *testing.T) {
	const u = "POST https://contoso.com/autodiscover/autodiscover.xml"
	w := newWorld(t)
	w.tls((&ntlmServer{doc: settingsDoc()}).ServeHTTP, "contoso.com")
	tr := walk1(w.walker("outlook-2007"), "pat@contoso.com")
	w.want(u, u+" NTLM", u+" NTLM")
	if tr.Verdict != "silent" {
		t.Errorf("%s: %s", tr.Verdict, tr.Why)
	}
	s := find(t, tr, KindPost, "https://contoso.com/")
	for _, e := range s.Exchanges {
		for _, f := range slices.Concat(e.RequestHeader, e.ResponseHeader) {
			if strings.Contains(f.Value, "TlRM") { // "NTL" of the signature
				t.Errorf("the trace shows a token: %s: %s", f.Name, f.Value)
			}
		}
	}

	w = newWorld(t)
	w.tls((&ntlmServer{doc: settingsDoc()}).ServeHTTP, "contoso.com")
	wk := w.walker("outlook-2007")
	wk.Credentials.User = `CONTOSO\eve`
	tr = walk1(wk, "pat@contoso.com")
	w.want(u, u+" NTLM", u+" NTLM") // and no Basic after it
	if tr.Why != "401: the credentials were refused with NTLM; wrong password, or the server demands Extended Protection" {
		t.Errorf("why %q", tr.Why)
	}

	w = newWorld(t)
	w.tls((&ntlmServer{doc: settingsDoc(), drop: true}).ServeHTTP, "contoso.com")
	tr = walk1(w.walker("outlook-2007"), "pat@contoso.com")
	if !strings.HasSuffix(tr.Why, "the connection was closed between the messages of NTLM, which authenticates the connection") {
		t.Errorf("why %q", tr.Why)
	}
}

// --server: connect there whatever DNS says; SNI and Host stay those of the URL.
func TestServerOverride(t *testing.T) {
	w := newWorld(t)
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "contoso.com")
	wk := w.walker("outlook-2007")
	wk.Resolver = "127.0.0.1:1" // nobody answers
	wk.Ports = map[int]int{80: w.httpPort}
	wk.Server = fmt.Sprintf("127.0.0.1:%d", w.httpsPort)
	if tr := walk1(wk, "pat@contoso.com"); tr.Verdict != "silent" || tr.FoundAt != "https://contoso.com/autodiscover/autodiscover.xml" {
		t.Errorf("%s at %s: %s", tr.Verdict, tr.FoundAt, tr.Why)
	}
	if len(w.questions) != 0 {
		t.Errorf("asked DNS %v", w.questions)
	}
}

// A cancelled walk ends at once, wherever it is: in DNS, in a silent TLS handshake, in a silent answer.
func TestCancel(t *testing.T) {
	f := func(set func(w *world, wk *Walker, reached func())) {
		t.Helper()
		w := newWorld(t)
		wk := w.walker("outlook-2016")
		wk.StepTimeout = 30 * time.Second
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		set(w, wk, func() { time.AfterFunc(50*time.Millisecond, cancel) })
		begun := time.Now()
		tr := wk.Walk(ctx, "pat@contoso.com")
		if d := time.Since(begun); d > wk.StepTimeout/3 {
			t.Errorf("ended after %s", d)
		}
		last := tr.Steps[len(tr.Steps)-1]
		if tr.Connected || tr.Why != "interrupted" || last.Outcome != OutcomeFail {
			t.Errorf("connected %v, why %q, last step %s", tr.Connected, tr.Why, last.Outcome)
		}
	}
	f(func(w *world, _ *Walker, reached func()) {
		w.a("autodiscover.contoso.com")
		w.set("autodiscover.contoso.com", &host{raw: func(c net.Conn) { reached(); hang(c) }})
	})
	f(func(w *world, _ *Walker, reached func()) {
		w.tls(func(_ http.ResponseWriter, r *http.Request) { reached(); <-r.Context().Done() }, "autodiscover.contoso.com")
	})
	f(func(w *world, wk *Walker, reached func()) { wk.Resolver = silentUDP(t, reached) })

	// The time for the whole walk.
	w := newWorld(t)
	w.a("contoso.com")
	w.set("contoso.com", &host{raw: hang})
	wk := w.walker("outlook-2007")
	wk.Timeout = 200 * time.Millisecond
	if tr := walk1(wk, "pat@contoso.com"); tr.Why != "the time for the whole walk is over" || tr.Duration > wk.StepTimeout/2 {
		t.Errorf("why %q after %s", tr.Why, tr.Duration)
	}
}

// Progress tells every step twice: as it begins and as it ends.
func TestProgress(t *testing.T) {
	w := newWorld(t)
	w.tls(basicPOX("pat@contoso.com", mobileDoc(mobileServer)), "autodiscover.contoso.com")
	wk := w.walker("activesync")
	var got []string
	wk.Progress = func(s Step) { got = append(got, fmt.Sprintf("%s %s", s.What, s.Outcome)) }
	walk1(wk, "pat@contoso.com")
	want := []string{
		"POST https://contoso.com/autodiscover/autodiscover.xml ", "POST https://contoso.com/autodiscover/autodiscover.xml next",
		"POST https://autodiscover.contoso.com/autodiscover/autodiscover.xml ", "POST https://autodiscover.contoso.com/autodiscover/autodiscover.xml ok",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// Adding a client is adding data: the POX mode of the EWS Managed API differs in redirect rules only.
func TestProfileIsData(t *testing.T) {
	w := newWorld(t)
	w.tls(basicPOX("pat@contoso.com", settingsDoc()), "mail.contoso.com")
	w.tls(redirectTo(307, "https://mail.contoso.com/login"), "contoso.com")
	w.tls(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/autodiscover/autodiscover.xml" {
			redirectTo(303, "../AutoDiscover/v1/Autodiscover.XML")(rw, r)
			return
		}
		redirectTo(301, "https://mail.contoso.com/autodiscover/autodiscover.xml")(rw, r)
	}, "autodiscover.contoso.com")
	wk := w.walker("outlook-2007")
	wk.Profile.Stages = wk.Profile.Stages[1:3]
	wk.Profile.Redirects = Redirects{Codes: []int{301, 302, 303, 307}, Relative: true, Path: `(?i)^/autodiscover/([^/]+/)*autodiscover\.xml$`, Limit: 10}
	tr := walk1(wk, "pat@contoso.com")
	w.want(
		"POST https://contoso.com/autodiscover/autodiscover.xml",
		"POST https://autodiscover.contoso.com/autodiscover/autodiscover.xml",
		"POST https://autodiscover.contoso.com/AutoDiscover/v1/Autodiscover.XML",
		"POST https://mail.contoso.com/autodiscover/autodiscover.xml",
		"POST https://mail.contoso.com/autodiscover/autodiscover.xml Basic",
	)
	if s := find(t, tr, KindRedirect, "mail.contoso.com/login"); s.Why != "the client does not accept the path of the target" {
		t.Errorf("why %q", s.Why)
	}
	if !tr.Connected {
		t.Error(tr.Why)
	}
}

// A trace holds no secret, comes out the same twice, and its forms are pinned by golden files.
func TestTraceGolden(t *testing.T) {
	write := func(headers bool) (text, js, full string) {
		w := newWorld(t)
		w.record("autodiscover.contoso.com. 60 IN CNAME redirect.hoster.example.")
		w.a("contoso.com", "redirect.hoster.example")
		w.set("contoso.com", &host{cert: w.cert(func(*x509.Certificate) {}, "www.contoso.com"), handler: http.NotFound})
		w.mu.Lock()
		w.plain["autodiscover.contoso.com"] = redirectTo(302, "https://mail.hoster.example/autodiscover/autodiscover.xml")
		w.mu.Unlock()
		ntlm := &ntlmServer{doc: settingsDoc()}
		w.tls(func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Set-Cookie", "session=c00kie")
			ntlm.ServeHTTP(rw, r)
		}, "mail.hoster.example")
		tr := walk1(w.walker("outlook-2016"), "pat@contoso.com")
		var a, b, c bytes.Buffer
		must(t, tr.WriteText(&a, Render{Stable: true, Headers: headers}))
		must(t, tr.WriteJSON(&b, Render{Stable: true}))
		must(t, tr.WriteJSON(&c, Render{}))
		must(t, tr.WriteText(&c, Render{Headers: true, Color: true}))
		return a.String(), b.String(), c.String()
	}
	text, js, full := write(false)
	text2, js2, _ := write(false)
	if text != text2 || js != js2 {
		t.Error("two walks of the same world are written differently")
	}
	for _, secret := range []string{"s3cret-pass", "TlRM", "c00kie"} {
		if strings.Contains(full, secret) {
			t.Errorf("the trace holds %q", secret)
		}
	}
	if strings.Contains(js, "duration") || !strings.Contains(full, "duration_ns") || !strings.Contains(full, "not_after") {
		t.Error("durations belong into the full form, and only there")
	}
	for _, line := range strings.Split(text, "\n") {
		if width(line) > 100 {
			t.Errorf("wider than 100 columns: %s", line)
		}
	}
	if !json.Valid([]byte(js)) {
		t.Error("no JSON")
	}
	golden(t, "trace.txt", text)
	golden(t, "trace.json", js)
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if got != string(want) {
		t.Errorf("%s is different now (go test -update rewrites it):\n%s", path, got)
	}
}
