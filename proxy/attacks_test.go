package proxy

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// request is one line of the tables below: "METHOD target", then header lines.
type request struct {
	line    string
	headers []string
}

func req(line string, headers ...string) request { return request{line, headers} }

func (r request) text() string {
	lines := append([]string{r.line + " HTTP/1.1", "Host: mail.contoso.com"}, r.headers...)
	if strings.HasPrefix(r.line, "POST") || strings.HasPrefix(r.line, "RPC_") {
		lines = append(lines, "Content-Length: 0")
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// head parses the request as a connection does.
func (r request) head(t testing.TB) *requestHead {
	t.Helper()
	var h requestHead
	if err := parseRequestHead([]byte(r.text()), &h); err != nil {
		t.Fatalf("%s: %v", r.line, err)
	}
	return &h
}

const v2 = "/autodiscover/autodiscover.json"

// attacks are requests that the rules stop, by the rule that does. What is under
// "400" and "404" never gets as far: its path is refused or not published.
var attacks = map[string][]request{
	"proxylogon": {
		req("GET /owa/auth/x.js", "Cookie: X-AnonResource=true; X-AnonResource-Backend=localhost/ecp/default.flt?~3; X-BEResource=localhost/owa/auth/logon.aspx?~3"),
		req("GET /owa/auth/x.js", "Cookie: x-anonresource-backend=attacker.example"),
		req("GET /owa/", "Cookie: a=b;X-ANONRESOURCE-BACKEND=x"),
		req("GET /owa/", "Cookie: a=b,X-AnonResource-Backend"),
		req("POST /ecp/y.js", "Cookie: X-BEResource=administrator@EXCHANGE01:444/ecp/DDI/DDIService.svc/SetObject?schema=OABVirtualDirectory#~1942062522"),
		req("POST /ecp/y.js", "cookie: foo=bar; x-beresource=EXCHANGE01:444/mapi/emsmdb?MailboxId=a@b~1941962753"),
		req("GET /ecp/y.js", "Cookie: X-BEResource=EXCHANGE01%3a444%2Fecp%2fproxyLogon.ecp~1941962753"),
		req("GET /ecp/y.js", "Cookie: X-BEResource=EXCHANGE01%253a444%252Fecp~1941962753"),
		req("GET /ecp/y.js", `Cookie: X-BEResource=EXCHANGE01\ecp~1941962753`),
		req("GET /ecp/y.js", `Cookie: X-BEResource = "name]@EXCHANGE01#~1941962753"`),
		req("GET /ecp/y.js", "Cookie: X-BEResource=EXCHANGE01", "Cookie: /ecp/proxyLogon.ecp~1941962753"),
		req("GET /ews/exchange.asmx", "Cookie: a=b", "COOKIE: X-BEResource=a/b~1"),
	},
	"proxyshell": {
		req("GET " + v2 + "?@evil.example/powershell/?X-Rps-CAT=VgEAVAdXaW5kb3dz&Email=autodiscover/autodiscover.json%3F@evil.example"),
		req("POST " + v2 + "?@evil.example/powershell/?&Email=autodiscover/autodiscover.json%3F@evil.example"),
		req("POST /Autodiscover/Autodiscover.json?@evil.example/PowerShell/&Email=autodiscover/autodiscover.json%3f@evil.example"),
		req("GET /AUTODISCOVER/AUTODISCOVER.JSON?@EVIL.EXAMPLE/POWERSHELL/"),
		req("GET " + v2 + "?@evil.example/%70owershell/"),
		req("GET " + v2 + "?@evil.example/%50%4F%57%45%52%53%48%45%4C%4C/"),
		req("GET " + v2 + "?@evil.example/p%6fwersh%65ll&Email=x"),
		req("GET " + v2 + "?@evil.example/%2570owershell/"),
		req("GET " + v2 + "?a%2540b%252fPower%2553hell"),
		req("GET " + v2 + "?@evil.example/%u0070owershell/"),
		req("GET " + v2 + "?@evil.example/%uff50owershell/"),
		req("GET " + v2 + "?@evil.example/power\u017fhell/"),
		req("GET " + v2 + "?a+@evil.example+/+Powershell"),
		req("GET " + v2 + "?Email=a%40b&Protocol=XYZ&FooProtocol=Powershell"),
		req("GET " + v2 + "?Email=a%40b&Protocol=Powershell"),
		req("GET /%61utodiscover/autodiscover%2ejson?@evil.example/powershell/"),
		req("GET /autodiscover/admin@localhost/powershell/autodiscover.json?x=a"),
		req("GET /autodiscover/powershell?x=a"),
		req("POST /autodiscover/autodiscover.xml?@evil.example/powershell"),
		req("GET /ews/powershell/?Email=autodiscover"),
		req("POST /mapi/nspi/?MailboxId=a@b&Email=AutoDiscover%2Fautodiscover.json%3F&x=pOwErShElL"),
		req("GET "+v2+"?Email=a%40b&Protocol=EWS", "Cookie: Email=autodiscover/autodiscover.json?@evil.example"),
		req("GET /autodiscover/autodiscover.xml", "Cookie: a=b; EMAIL=Auto%64iscover%2Fa"),
	},
	"owassrf": {
		req("POST /owa/mastermailbox@outlook.com/powershell"),
		req("POST /owa/mastermailbox%40outlook.com/powershell"),
		req("POST /OWA/mastermailbox%40outlook.com/PowerShell/"),
		req("POST /owa/a%40b/%70ower%73hell"),
		req("POST /owa/a+b%40c/POWERSHELL?PSVersion=5.1"),
		req("POST /owa/a@b/powershell-liveid"),
		req("POST /owa/?x=%2fpowershell"),
		req("POST /owa/?x=%252Fpowershell"),
		req("POST /owa/?x=%25252Fpowershell"),
		req(`POST /owa/?x=\Powershell`),
		req("POST /owa/?x=%5cPowershell"),
		req("POST /owa/redir.aspx/powershell"),
		req("POST /ecp/a@b/powershell/"),
		req("POST /ews/a@b//powershell"),
		req("POST /ews/exchange.asmx?/./powershell"),
		req("POST /mapi/emsmdb/powershell"),
		req("RPC_IN_DATA /rpc/powershell"),
		req("GET /oab/powershell"),
		req("POST /Microsoft-Server-ActiveSync/powershell"),
		req("POST https://mail.contoso.com/owa/a@b/PowerShell"),
	},
	"autodiscover-v2": {
		req("GET " + v2 + "?@evil.example/mapi/nspi/?&Email=autodiscover/autodiscover.json%3f@evil.example"),
		req("GET " + v2 + "?a=b@evil.example/ews/exchange.asmx&Email=autodiscover/autodiscover.json?a=b@evil.example"),
		req("GET " + v2 + "?Email=autodiscover%2fautodiscover.json@evil.example"),
		req("GET " + v2 + "?Email=autodiscover%252fautodiscover.json%253f@evil.example"),
		req("GET " + v2 + "?Email=a%40b/mapi/nspi"),
		req("GET " + v2 + "?Email=a%40b%2fmapi"),
		req("GET " + v2 + "?Email=a%2540b%252f"),
		req("GET " + v2 + "?Email=a%40b%3f"),
		req(`GET ` + v2 + `?Email=a%40b\mapi`),
		req("GET " + v2 + "?Email=a@b@c"),
		req("GET " + v2 + "?Email=a%40b&Email=c%40d"),
		req("GET " + v2 + "?Email=a%40b&email=c%40d"),
		req("GET " + v2 + "?Email=a%40b&Protocol=EWS/x"),
		req("GET " + v2 + "?Email=a%40b&Protocol=EWS&Foo=bar"),
		req("GET " + v2 + "?Email=a%40b&RedirectCount=-1"),
		req("GET " + v2 + "?%zz"),
		req("GET " + v2 + "/v1.0/a@b/mapi/nspi"),
		req("GET " + v2 + "/v1.0/a%40b%20/x"),
		req("GET " + v2 + "/mapi/nspi"),
		req("GET " + v2 + "x?Email=a%40b"),
		req("GET /Autodiscover/x/Autodiscover.json?Email=a%40b"),
		req("GET /owa/autodiscover.json?Email=a%40b"),
		req("GET /ecp/%61utodiscover%2Ejson"),
		req("POST /mapi/nspi/?MailboxId=x&Email=autodiscover/autodiscover.json%3f@evil.example"),
		req("GET /ews/exchange.asmx?a@b&Email=AUTODISCOVER%5cAUTODISCOVER.JSON"),
	},
	"proxytoken": {
		req("POST /ecp/victim@contoso.com/RulesEditor/InboxRules.svc/NewObject", "Cookie: SecurityToken=x"),
		req("GET /ECP/victim@contoso.com/PersonalSettings/HomePage.aspx?showhelp=false", "Cookie: a=b; securitytoken=SAML"),
		req("GET /%65cp/target.js", "Cookie: a=b;SECURITYTOKEN = 0"),
		req("GET /ecp", "Cookie: a=b", "Cookie: SecurityToken=1"),
	},
	"backend-token": {
		req("POST /ews/exchange.asmx?X-Rps-CAT=VgEAVAdXaW5kb3dz"),
		req("POST /ews/exchange.asmx?x-rps-cat%3DVgEAVAdXaW5kb3dz"),
		req("POST /mapi/emsmdb/?a=b&X-RPS-C%41T=VgEAVAdXaW5kb3dz"),
	},
	"400": {
		req("GET /autodiscover/autodiscover.json/%2570owershell"), req("GET /owa/a@b/%252fpowershell"), req("GET /owa/a@b%2fpowershell"), req("GET /owa/%2e%2e/powershell"),
		req(`GET /owa/..\powershell`), req("GET /autodiscover/autodiscover.json/%u0070owershell"), req("GET /autodiscover/autodiscover.xml;x"), req("GET /autodiscover/%3b/autodiscover.xml"),
	},
	"404": {
		req("POST /powershell?X-Rps-CAT=x"), req("POST /PowerShell-LiveID/"), req("GET /powershell/autodiscover"), req("GET /autodiscovery/autodiscover.json"),
	},
}

// harmless are requests of real clients, with what a server is to see if it is not
// the line as it came.
var harmless = []struct {
	request
	target string
}{
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=AutodiscoverV1&RedirectCount=1"), "="},
	{req("GET " + v2 + "?Email=pat@contoso.com&Protocol=Autodiscoverv1&RedirectCount=1"), v2 + "?Email=pat%40contoso.com&Protocol=Autodiscoverv1&RedirectCount=1"},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=activesync&RedirectCount=3"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=ActiveSync"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=EWS&RedirectCount=1"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=Ews"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=actions"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=Rest"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=SubstrateSearchService"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=OwaPoweredExperienceV2"), "="},
	{req("HEAD " + v2 + "?Email=pat%40contoso.com&Protocol=EWS"), "="},
	{req("GET /autodiscover/Autodiscover.json?email=pat%40contoso.com&protocol=ews"), v2 + "?Email=pat%40contoso.com&Protocol=ews"},
	{req("GET /AutoDiscover/AutoDiscover.json?EMAIL=pat%40contoso.com&PROTOCOL=ews"), v2 + "?Email=pat%40contoso.com&Protocol=ews"},
	{req("GET /AUTODISCOVER/AUTODISCOVER.JSON?Email=pat%40contoso.com"), v2 + "?Email=pat%40contoso.com"},
	{req("GET " + v2 + "?Email=Pat.Smith%2Bnews%40contoso.com&Protocol=EWS"), "="},
	{req("GET " + v2 + "?Email=o%27brien%40contoso.com&Protocol=EWS"), "="},
	{req("GET " + v2 + "?Email=p%C3%A9%40contoso.com&Protocol=EWS"), "="},
	{req("GET " + v2 + "?Protocol=EWS&Email=pat%40contoso.com"), v2 + "?Email=pat%40contoso.com&Protocol=EWS"},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=EWS&ServerLocation=true"), "="},
	{req("GET " + v2 + "?Email=pat%40contoso.com&Protocol=EWS&HostNameHint=mail.contoso.com"), "="},
	{req("GET " + v2 + "/v1.0/pat%40contoso.com?Protocol=ActiveSync&RedirectCount=1"), v2 + "/v1.0/pat@contoso.com?Protocol=ActiveSync&RedirectCount=1"},
	{req("GET " + v2 + "/v1.0/pat@contoso.com?Protocol=EWS&ServerLocation=true"), "="},
	{req("GET /Autodiscover/autodiscover.json/V1.0/pat@contoso.com?Protocol=Rest"), v2 + "/v1.0/pat@contoso.com?Protocol=Rest"},
	{req("GET " + v2 + "/v1.0/pat@contoso.com/?Protocol=EWS"), v2 + "/v1.0/pat@contoso.com?Protocol=EWS"},
	{req("GET " + v2), "="},

	{req("POST /Autodiscover/Autodiscover.xml"), "="},
	{req("POST /autodiscover/autodiscover.svc/wssecurity"), "="},
	{req("GET /owa/?ae=Item&t=IPM.Note&id=RgAAA%2b%2fA&s=Re%3a%20powershell%20tips"), "="},
	{req("GET /owa/?q=PowerShell"), "="},
	{req("GET /owa/?q=autodiscover.json+answers+404"), "="},
	{req("GET /owa/?q=autodiscover%20problems"), "="},
	{req("GET /owa/redir.aspx?C=a.b&URL=https%3a%2f%2flearn.microsoft.com%2fpowershell%2fexchange%2f"), "="},
	{req("GET /owa/auth/logon.aspx?replaceCurrent=1&url=https%3a%2f%2fmail.contoso.com%2fowa%2f%3fae%3dItem"), "="},
	{req("GET /owa/pat@contoso.com/?path=/mail"), "="},
	{req("GET /owa/100%25?x=%"), "="},
	{req("GET /owa/", "Cookie: cadata=SGVsbG8/v=; X-BackEndCookie=S-1-5-21-1=u56Lnp2ejJqBypvLmw==; X-OWA-CANARY=a/b.c; UC=1; PrivateComputer=true"), "="},
	{req("GET /owa/auth/x.js", "Cookie: X-AnonResource=true; X-BEResource=cas01.contoso.local~1942062522; a=b/c"), "="},
	{req("GET /owa/", "Cookie: X-BEResource=cas01.contoso.local~1942062522"), "="},
	{req("GET /owa/", "Cookie: X-BackEndOverrideCookie=cas02.contoso.local~1942062522; exchangecookie=0123/4567"), "="},
	{req("POST /ews/exchange.asmx", "X-AnchorMailbox: pat@contoso.com", "X-PreferServerAffinity: true", "Cookie: X-BackEndOverrideCookie=a~1", "SOAPAction: x"), "="},
	{req("GET /ecp/", "Cookie: SecurityToken=; Email=pat%40contoso.com; mySecurityToken=x"), "="},
	{req("GET /owa/", "Cookie: SecurityToken=x", "X-OWA-UrlPostData: %7b%22q%22%3a%22%2fpowershell%22%7d"), "="},
	{req("POST /Microsoft-Server-ActiveSync?Cmd=Sync&User=CONTOSO%5Cpat&DeviceId=a&DeviceType=iPhone"), "="},
	{req("POST /Microsoft-Server-ActiveSync?jAAJBAp2MTQwRGV2aWNlBAEAAAALYmFzZTY0/+=="), "="},
	{req("RPC_IN_DATA /rpc/rpcproxy.dll?cas01.contoso.local:6001"), "="},
	{req("POST /mapi/emsmdb/?MailboxId=0123@contoso.com"), "="},
	{req("GET /OAB/0123-4567/oab.xml"), "="},
}

// nothing is a backend that answers every request with an empty 200.
func nothing(c *recorded) {
	for {
		if _, err := c.head(); err != nil {
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// published is every preset directory, PowerShell denied as it is.
func published() (*Host, origin) {
	host := &Host{Name: "mail.contoso.com", Mode: Bridge, VirtualDirectories: Preset(), Site: &Site{}}
	return host, origin{table: &Table{Hosts: map[string]*Host{host.Name: host}}, secure: true, host: host}
}

// no attack reaches a server; each is answered with 404, logged
// with its rule, and counted.
func TestAttacksAreBlocked(t *testing.T) {
	b := newRecorder(t, nothing)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	all, counted := 0, map[string]uint64{}
	for _, r := range Rules() {
		counted[r.ID] = 0
	}
	var want []string // rule by rule, in the order of the log
	for _, rule := range slices.Sorted(maps.Keys(attacks)) {
		for _, a := range attacks[rule] {
			c.send(a.text())
			method, _, _ := strings.Cut(a.line, " ")
			r, _ := c.response(method)
			if status := map[bool]int{true: 400, false: 404}[rule == "400"]; r.StatusCode != status {
				t.Errorf("%s: %q: %d, want %d", rule, a, r.StatusCode, status)
			}
			if n := len(b.connections()); n > 0 {
				t.Fatalf("%s: %q reached the server: %q", rule, a, b.asked(0, 1).seen())
			}
			if r.Close {
				c.Close()
				c = f.dial("mail.contoso.com")
			}
			if rule == "400" || rule == "404" {
				want = append(want, "")
				continue
			}
			want = append(want, rule)
			all++
			counted[rule]++
		}
	}
	if all < 40 {
		t.Errorf("only %d attacks", all)
	}
	if hits := f.RuleHits(); !maps.Equal(hits, counted) {
		t.Errorf("counted %v, want %v", hits, counted)
	}
	c.Close()
	requests, _ := f.events()
	if len(requests) != len(want) {
		t.Fatalf("%d records for %d requests", len(requests), len(want))
	}
	// The record of a request can come after the first of the next connection.
	var rules []string
	for _, e := range requests {
		rule, _ := e["rule"].(string)
		cause, _ := e["error"].(string)
		if rule != "" && !strings.HasPrefix(cause, "blocked by rule "+rule) {
			t.Errorf("rule %s, error %q", rule, cause)
		}
		rules = append(rules, rule)
	}
	slices.Sort(rules)
	slices.Sort(want)
	if !slices.Equal(rules, want) {
		t.Errorf("logged %v, want %v", rules, want)
	}
}

// what clients send passes, untouched but for autodiscover.json, which is
// rebuilt.
func TestHarmlessRequestsPass(t *testing.T) {
	b := newRecorder(t, nothing)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	documents := 0
	for i, r := range harmless {
		method, target, _ := strings.Cut(r.line, " ")
		if strings.Contains(strings.ToLower(target), v2) {
			documents++
		}
		c.send(r.text())
		if resp, body := c.response(method); resp.StatusCode != 200 {
			t.Fatalf("%q: %d %s", r.request, resp.StatusCode, body)
		}
		seen := b.asked(0, i+1).seen()[i]
		if r.target != "=" {
			target = r.target
		}
		if start, _, _ := strings.Cut(seen, "\r\n"); start != method+" "+target+" HTTP/1.1" {
			t.Errorf("%q: the server saw %q", r.request, start)
		}
		for _, h := range r.headers {
			if !strings.Contains(seen, "\r\n"+h+"\r\n") {
				t.Errorf("%q: %q is missing in %q", r.request, h, seen)
			}
		}
	}
	if documents < 20 {
		t.Errorf("only %d V2 requests", documents)
	}
	for rule, n := range f.RuleHits() {
		if n > 0 {
			t.Errorf("%s: %d", rule, n)
		}
	}
}

// Headers that only Exchange's front end sends do not come through from clients, in
// any spelling, and are counted; those of the clients do.
func TestBackEndHeadersAreRemoved(t *testing.T) {
	b := newRecorder(t, nothing)
	f := newFront(t, nil, b.backend())
	c := f.dial("mail.contoso.com")
	bad := []string{"X-CommonAccessToken", "x-commonaccesstoken", "X_CommonAccessToken", "X-Rps-CAT", "X-Rps_CAT", "x_rps_cat", "X-RPS-CAT", "X-IsFromCafe", "X-IsFromBackend", "X-SourceCafeServer", "X_SOURCECAFESERVER"}
	for i, name := range bad {
		c.send(req("POST /ews/exchange.asmx", "X-Before: 1", name+": secret", "X-After: 2").text())
		if r, _ := c.response("POST"); r.StatusCode != 200 {
			t.Fatalf("%s: %d", name, r.StatusCode)
		}
		seen := b.asked(0, i+1).seen()[i]
		if strings.Contains(seen, "secret") || !strings.Contains(seen, "\r\nX-Before: 1\r\nX-After: 2\r\n") {
			t.Errorf("%s: the server saw %q", name, seen)
		}
	}
	for i, name := range []string{"X-BackEndCookie", "X-CommonAccessTokens", "X-Rps-CA", "XCommonAccessToken"} {
		c.send(req("POST /ews/exchange.asmx", name+": kept").text())
		c.response("POST")
		if seen := b.asked(0, len(bad)+i+1).seen()[len(bad)+i]; !strings.Contains(seen, "\r\n"+name+": kept\r\n") {
			t.Errorf("%s was removed: %q", name, seen)
		}
	}
	if n := f.RuleHits()["backend-headers"]; n != uint64(len(bad)) {
		t.Errorf("counted %d, want %d", n, len(bad))
	}
	c.Close()
	requests, _ := f.events()
	if rule := requests[0]["rule"]; rule != "backend-headers" || requests[0]["status"] != 200. {
		t.Errorf("logged %v", requests[0])
	}
}

// A published PowerShell directory, preset or custom, takes what it is there for,
// and still no attack through Autodiscover; the other directories stay closed to it.
func TestPublishedPowershell(t *testing.T) {
	host, o := published()
	for i := range host.VirtualDirectories {
		if host.VirtualDirectories[i].Name == "powershell" {
			host.VirtualDirectories[i].Access = Publish
		}
	}
	host.VirtualDirectories = append(host.VirtualDirectories, CustomDirectory("/PowerShell-LiveID", Publish))
	f := func(target, want string) {
		t.Helper()
		r := routeRequest(o, req("POST "+target).head(t))
		if got := attackRules[r.rule].ID; got != want || (want == "") != (r.action == actBridge) {
			t.Errorf("%s: rule %q, want %q; status %d", target, got, want, r.status)
		}
	}
	f("/PowerShell/?PSVersion=5.1.1&x=/powershell", "")
	f("/powershell-liveid?PSVersion=5.1", "")
	f("/powershell?Email=autodiscover/x", "proxyshell")
	f("/powershell?X-Rps-CAT=x", "backend-token")
	f("/owa/a@b/powershell", "owassrf")
}

// each directory takes its methods and no other; the others are answered
// with 405 and the list, and no server sees them.
func TestMethodMatrix(t *testing.T) {
	allowed := map[string]string{ // PROXYING.md section 11.4
		"owa": "GET, HEAD, POST, OPTIONS", "ecp": "GET, HEAD, POST, OPTIONS", "ews": "GET, HEAD, POST, OPTIONS", "mapi": "POST, GET, OPTIONS",
		"rpc": "RPC_IN_DATA, RPC_OUT_DATA, GET, POST", "oab": "GET, HEAD", "autodiscover": "GET, HEAD, POST, OPTIONS",
		"activesync": "POST, OPTIONS, GET", "powershell": "POST",
	}
	for _, legacy := range []string{"exchange", "public", "exchweb"} {
		allowed[legacy] = "GET, HEAD, POST, OPTIONS, PUT, DELETE, PROPFIND, PROPPATCH, SEARCH, MKCOL, MOVE, COPY, LOCK, UNLOCK, " +
			"SUBSCRIBE, UNSUBSCRIBE, POLL, NOTIFY, BMOVE, BCOPY, BDELETE, BPROPFIND, BPROPPATCH"
	}
	methods := []string{
		"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "RPC_IN_DATA", "RPC_OUT_DATA", "DEBUG", "get", "Post", "X",
		"PROPFIND", "PROPPATCH", "SEARCH", "MKCOL", "MOVE", "COPY", "LOCK", "UNLOCK",
		"SUBSCRIBE", "UNSUBSCRIBE", "POLL", "NOTIFY", "BMOVE", "BCOPY", "BDELETE", "BPROPFIND", "BPROPPATCH",
	}
	b := newRecorder(t, nothing)
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		for i := range f.mail.VirtualDirectories {
			f.mail.VirtualDirectories[i].Access = Publish
		}
	}, b.backend())
	c := f.dial("mail.contoso.com")
	passed := 0
	for _, dir := range f.mail.VirtualDirectories {
		list, ok := allowed[dir.Name]
		if !ok {
			t.Errorf("no methods for directory %s", dir.Name)
			continue
		}
		for _, prefix := range dir.Prefixes {
			for _, method := range methods {
				target, allow := prefix+"/x", list
				switch method {
				case "CONNECT", "TRACE":
					allow = "GET, HEAD, POST, OPTIONS" // never served, whatever the target
				}
				c.send(method + " " + target + " HTTP/1.1\r\nHost: mail.contoso.com\r\n\r\n")
				r, _ := c.response(method)
				if slices.Contains(strings.Split(list, ", "), method) {
					passed++
					if r.StatusCode != 200 {
						t.Errorf("%s %s: %d", method, target, r.StatusCode)
					}
				} else if r.StatusCode != 405 || r.Header.Get("Allow") != allow {
					t.Errorf("%s %s: %d, Allow %q, want 405 and %q", method, target, r.StatusCode, r.Header.Get("Allow"), allow)
				}
				if r.Close {
					t.Errorf("%s %s ended the connection", method, target)
					c = f.dial("mail.contoso.com")
				}
			}
		}
	}
	if seen := len(b.asked(0, passed).seen()); seen != passed || len(b.connections()) != 1 {
		t.Errorf("the server saw %d requests of %d", seen, passed)
	}
	// The document of V2 is for GET and HEAD alone.
	for _, method := range []string{"POST", "OPTIONS"} {
		c.send(req(method + " " + v2 + "?Email=pat%40contoso.com").text())
		if r, _ := c.response(method); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s %s: %d, Allow %q", method, v2, r.StatusCode, r.Header.Get("Allow"))
		}
	}
	if seen := len(b.connections()[0].seen()); seen != passed {
		t.Errorf("the server saw %d requests of %d", seen, passed)
	}
}

// An ordinary request costs the rules no memory.
func TestRulesDoNotAllocate(t *testing.T) {
	host, _ := published()
	for _, r := range harmless {
		h := r.head(t)
		rawPath, query, _ := strings.Cut(h.target, "?")
		path, err := canonicalPath(rawPath)
		if err != nil {
			t.Fatal(err)
		}
		v := findDirectory(host.VirtualDirectories, path)
		if strings.Contains(strings.Join(r.headers, "\n"), "X-BEResource") || strings.Contains(strings.Join(r.headers, "\n"), "Email") {
			continue // cookies that are looked into
		}
		if n := testing.AllocsPerRun(10, func() { findAttack(h, v, path, query) }); n > 0 {
			t.Errorf("%q: %v allocations", r.request, n)
		}
	}
}

func BenchmarkFindAttack(b *testing.B) {
	host, _ := published()
	for _, r := range []request{
		req("POST /EWS/Exchange.asmx", "User-Agent: Outlook", "Content-Type: text/xml", "Authorization: Basic x"),
		req("GET /owa/?ae=Item&id=RgAAA%2b%2fA", "Cookie: cadata="+strings.Repeat("x", 800)+"; sessionid=0123"),
	} {
		h := r.head(b)
		rawPath, query, _ := strings.Cut(h.target, "?")
		path, _ := canonicalPath(rawPath)
		v := findDirectory(host.VirtualDirectories, path)
		b.Run(r.line, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if findAttack(h, v, path, query) != noRule {
					b.Fatal("blocked")
				}
			}
		})
	}
}

// FuzzAttacks: no panic; a request that is blocked is blocked in any letter case and
// with its query encoded once more; one that goes on holds nothing a rule stops in
// the form the server gets it.
func FuzzAttacks(f *testing.F) {
	for _, list := range attacks {
		for _, a := range list {
			_, target, _ := strings.Cut(a.line, " ")
			cookie := ""
			for _, h := range a.headers {
				_, cookie, _ = strings.Cut(h, ": ")
			}
			f.Add(target, cookie)
		}
	}
	for _, r := range harmless {
		_, target, _ := strings.Cut(r.line, " ")
		f.Add(target, "a=b")
	}
	_, o := published()
	f.Fuzz(func(t *testing.T, target, cookie string) {
		outcome := func(target, cookie string) (route, bool) {
			var h requestHead
			text := "GET " + target + " HTTP/1.1\r\nHost: mail.contoso.com\r\nCookie: " + cookie + "\r\n\r\n"
			if strings.Count(text, "\n") != 4 || strings.Count(text, "\r\n") != 4 || parseRequestHead([]byte(text), &h) != nil {
				return route{}, false
			}
			return routeRequest(o, &h), true
		}
		r, ok := outcome(target, cookie)
		if !ok {
			return
		}
		if r.rule == noRule {
			if r.action == actBridge && r.target != "" {
				if again, ok := outcome(r.target, cookie); !ok || again.action != actBridge || again.target != r.target {
					t.Fatalf("%q goes on as %q, which is not taken: %d %s", target, r.target, again.status, again.why)
				}
			}
			return
		}
		if r.status != http.StatusNotFound || r.action != actStatus {
			t.Fatalf("%q matches rule %s and is not refused", target, attackRules[r.rule].ID)
		}
		for _, change := range []func(string) string{upperASCII, lowerASCII, mixedASCII} {
			other, ok := outcome(change(target), change(cookie))
			if ok && other.action == actBridge {
				t.Fatalf("%q, %q is stopped by rule %s, but not %q, %q", target, cookie, attackRules[r.rule].ID, change(target), change(cookie))
			}
		}
		if path, query, found := strings.Cut(target, "?"); found && !strings.Contains(query, "%") {
			encoded := path + "?" + encodeAll(query)
			if other, ok := outcome(encoded, cookie); ok && other.action == actBridge && r.rule != ruleV2 {
				t.Fatalf("%q is stopped by rule %s, but not %q", target, attackRules[r.rule].ID, encoded)
			}
		}
	})
}

func upperASCII(s string) string {
	return mapASCII(s, func(int, byte) bool { return true }, false)
}

func lowerASCII(s string) string {
	return mapASCII(s, func(int, byte) bool { return true }, true)
}

func mixedASCII(s string) string {
	return mapASCII(mapASCII(s, func(i int, _ byte) bool { return i%2 == 0 }, false), func(i int, _ byte) bool { return i%2 == 1 }, true)
}

// mapASCII changes the letter case of those bytes that are chosen.
func mapASCII(s string, choose func(int, byte) bool, lower bool) string {
	b := []byte(s)
	for i, c := range b {
		switch {
		case !choose(i, c):
		case lower && 'A' <= c && c <= 'Z':
			b[i] |= 0x20
		case !lower && 'a' <= c && c <= 'z':
			b[i] &^= 0x20
		}
	}
	return string(b)
}

func encodeAll(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		b.WriteByte('%')
		b.WriteByte(digits[s[i]>>4])
		b.WriteByte(digits[s[i]&15])
	}
	return b.String()
}
