package discovery

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"testing"
)

// silentUDP is a DNS server that never answers.
// silentUDP is the address of a resolver that answers nothing; heard is called at each question.
func silentUDP(t *testing.T, heard func()) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		for {
			if _, _, err := pc.ReadFrom(make([]byte, 512)); err != nil {
				return
			}
			heard()
		}
	}()
	return pc.LocalAddr().String()
}

func TestProfilesAreSound(t *testing.T) {
	names := map[string]bool{}
	for _, p := range Profiles() {
		if err := p.check(); err != nil {
			t.Error(err)
		}
		if names[p.Name] || p.Title == "" || p.Source == "" || p.UserAgent == "" {
			t.Errorf("profile %q lacks a name of its own, a title, a source or a user agent", p.Name)
		}
		names[p.Name] = true
		for _, st := range p.Stages {
			if st.Source == "" {
				t.Errorf("%s, %s: no source", p.Name, st.Name)
			}
		}
	}
	for _, n := range []string{"outlook-2007", "outlook-2016", "activesync"} {
		if _, ok := Find(n); !ok {
			t.Errorf("no profile %s", n)
		}
	}
	if _, ok := Find("outlook-1"); ok {
		t.Error("found a profile that does not exist")
	}
}

func TestUnsoundProfileIsRefused(t *testing.T) {
	f := func(want string, change func(*Profile)) {
		t.Helper()
		p, _ := Find("outlook-2007")
		p.Stages = append([]Stage(nil), p.Stages...)
		change(&p)
		tr := walk1(&Walker{Profile: p}, "pat@contoso.com")
		if tr.FailedAt != "start" || !strings.Contains(tr.Why, want) || len(tr.Steps) != 0 {
			t.Errorf("failed at %q: %q, want %q", tr.FailedAt, tr.Why, want)
		}
	}
	f("unknown schema", func(p *Profile) { p.Schema = "" })
	f("needs nothing", func(p *Profile) { p.Needs = nil })
	f("unknown login", func(p *Profile) { p.Login = "" })
	f("must be positive", func(p *Profile) { p.Redirects.Limit = 0 })
	f("unknown reaction", func(p *Profile) { p.Certificate.Expired = "" })
	f("error parsing regexp", func(p *Profile) { p.Redirects.Path = "(" })
	f("scp can only be skipped", func(p *Profile) { p.Stages[0].Skip = "" })
	f("wants POST and a URL", func(p *Profile) { p.Stages[1].Method = http.MethodGet })
	f("wants a record name", func(p *Profile) { p.Stages[4].URL = "" })
	f("has no name", func(p *Profile) { p.Stages[2].Name = "" })
}

func TestSplitAddress(t *testing.T) {
	f := func(address, want string) {
		t.Helper()
		if got, err := splitAddress(address); err != nil || got != want {
			t.Errorf("%s: %q, %v", address, got, err)
		}
	}
	f("pat@contoso.com", "contoso.com")
	f("a@b@Sales.Contoso.com.", "sales.contoso.com")
	f("pat@bücher.example", "xn--bcher-kva.example")
	f("pat@contoso.local", "contoso.local")
}

func TestGuardTarget(t *testing.T) {
	f := func(host, domain string, good bool) {
		t.Helper()
		if err := guardTarget(host, domain); (err == nil) != good {
			t.Errorf("%s for %s: %v", host, domain, err)
		}
	}
	f("mail.hoster.example", "contoso.com", true)
	f("autodiscover.contoso.com", "contoso.com", true)
	f("192.0.2.1", "contoso.com", true)
	f("autodiscover.com", "contoso.com", false)
	f("AutoDiscover.co.uk.", "contoso.co.uk", false)
	f("autodiscover.com", "autodiscover.com", true) // whoever has an address there
	f("co.uk", "contoso.co.uk", false)
	f("localhost", "contoso.com", false)
	f("", "contoso.com", false)
}

func TestReaction(t *testing.T) {
	s := Strictness{UnknownIssuer: Silent, NameMismatch: Prompt, Expired: Fail}
	f := func(faults Faults, want Reaction, asks Faults) {
		t.Helper()
		if r, a := s.reaction(faults); r != want || a != asks {
			t.Errorf("%s: %s, asks about %s", faults, r, a)
		}
	}
	f(0, Silent, 0)
	f(UnknownIssuer, Silent, 0)
	f(UnknownIssuer|NameMismatch, Prompt, NameMismatch)
	f(NameMismatch|Expired, Fail, NameMismatch)
}

func TestChallenges(t *testing.T) {
	f := func(want string, lines ...string) {
		t.Helper()
		got := challenges(http.Header{"Www-Authenticate": lines})
		var names []string
		for _, n := range []string{"negotiate", "ntlm", "basic", "bearer", "digest"} {
			if v, ok := got[n]; ok {
				names = append(names, n+"="+v)
			}
		}
		if strings.Join(names, " ") != want || len(got) != len(names) {
			t.Errorf("%q: %v", lines, got)
		}
	}
	f(`negotiate= ntlm= basic=realm="mail"`, "Negotiate", "NTLM", `Basic realm="mail"`)
	f("negotiate= ntlm=", "Negotiate, NTLM") // gotcha 19: folded by a proxy
	f("ntlm=TlRMTVNTUAACAAAA==", "NTLM TlRMTVNTUAACAAAA==")
	f(`digest=realm="x"`, `Digest realm="x", nonce="y", qop="auth"`)
	f("")
}

func TestAlertNames(t *testing.T) {
	f := func(code byte, want string) {
		t.Helper()
		client, server := net.Pipe()
		go func() {
			_, _ = server.Read(make([]byte, 4096))
			_, _ = server.Write([]byte{21, 3, 3, 0, 2, 2, code})
			_ = server.Close()
		}()
		err := tls.Client(client, &tls.Config{ServerName: "contoso.com"}).Handshake() //nolint:gosec // never gets that far
		_ = client.Close()
		if got := alert(err); got != want {
			t.Errorf("%d: %q (%v)", code, got, err)
		}
	}
	f(112, "unrecognized_name")
	f(40, "handshake_failure")
	f(80, "internal_error")
}

// Text of a stranger cannot steer a terminal.
func TestTextIsCleaned(t *testing.T) {
	tr := &Trace{Client: "x", Address: "a@b.example", Steps: []*Step{{Kind: KindPost, What: "POST https://x/\x1b]0;owned\x07", Outcome: OutcomeNext, Why: "bad \x1b[31mthing", DNS: []string{"x\x9b31m TXT y"}}}}
	tr.conclude()
	var b bytes.Buffer
	must(t, tr.WriteText(&b, Render{}))
	if strings.ContainsAny(b.String(), "\x1b\x07\u009b") {
		t.Errorf("%q", b.String())
	}
}

func TestWrap(t *testing.T) {
	got := wrap("one two three four five six seven eight", 20)
	if strings.Join(got, "|") != "one two three four|five six seven eight" {
		t.Errorf("%q", got)
	}
	if got := wrap("", 20); len(got) != 1 {
		t.Errorf("%q", got)
	}
}

// Nesting is bounded, and real nesting is within the bound.
func TestDeepAnswer(t *testing.T) {
	p, _ := Find("outlook-2007")
	f := func(depth int) (*Answer, error) {
		deep := strings.Repeat("<a>", depth) + "https://x.example/" + strings.Repeat("</a>", depth)
		return readAnswer(&p, []byte(outlookDoc(`<Action>settings</Action><Protocol><Type>EXPR</Type>`+deep+`</Protocol>`)))
	}
	if a, err := f(3); err != nil || a.Settings.Protocols[0].URLs[0] != (URL{"a/a/a", "https://x.example/"}) {
		t.Errorf("%v, %v", a, err)
	}
	if _, err := f(50); err == nil || err.Error() != "the answer is nested too deeply" {
		t.Error(err)
	}
}

// FuzzReadAnswer: any bytes give either an answer of a known action or an error in words.
func FuzzReadAnswer(f *testing.F) {
	for _, doc := range []string{
		settingsDoc(), mobileDoc(mobileServer), errorDoc(601, "x"), "<html>", "",
		outlookDoc(`<Action>redirectUrl</Action><RedirectUrl>https://a.example/</RedirectUrl>`), outlookDoc(`<Protocol Type="mapiHttp"/>`),
	} {
		f.Add([]byte(doc))
	}
	outlook, _ := Find("outlook-2016")
	device, _ := Find("activesync")
	f.Fuzz(func(t *testing.T, doc []byte) {
		for _, p := range []*Profile{&outlook, &device} {
			a, err := readAnswer(p, doc)
			switch {
			case err != nil:
				if err.Error() == "" || a != nil {
					t.Errorf("%v, %q", a, err)
				}
			case a.Action == actionSettings && a.Settings == nil,
				(a.Action == actionAddress || a.Action == actionURL) && a.RedirectTo == "":
				t.Errorf("%+v", a)
			}
		}
	})
}
