package proxy

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

// asIIS is where a lenient IIS finds the resource of a request target, by rules of
// its own and not the program's: escapes decoded twice, also %uXXXX, backslashes and
// full-width separators taken for slashes, dots resolved, blanks and dots at the end
// of a segment dropped, what is behind a NUL ignored.
func asIIS(target string) string {
	p, _, _ := strings.Cut(target, "?")
	if _, rest, ok := strings.Cut(p, "://"); ok {
		_, p, _ = strings.Cut(rest, "/")
		p = "/" + p
	}
	for range 2 {
		p = strings.NewReplacer("%u002e", ".", "%u002f", "/", "%u005c", "/", "%uff0e", ".", "%uff0f", "/").Replace(p)
		if q, err := url.PathUnescape(p); err == nil {
			p = q
		}
	}
	p = strings.NewReplacer("\\", "/", "\uff0e", ".", "\uff0f", "/", "\uff3c", "/", "\u2215", "/", "\xc0\xaf", "/", "\xc0\xae", ".").Replace(p)
	p, _, _ = strings.Cut(p, "\x00")
	segments := strings.Split(p, "/")
	for i, s := range segments {
		if s != "." && s != ".." {
			segments[i] = strings.TrimRight(s, ". ")
		}
	}
	return strings.ToLower(path.Clean("/" + strings.Join(segments, "/")))
}

// no spelling of a path takes a request into a directory that is not
// published, whatever the server makes of it; and what is published gets its path and
// query as they came.
func TestBlockedDirectoryIsNeverReached(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	f := newFront(t, func(f *front, _ *Options, _ *Table) {
		for i := range f.mail.VirtualDirectories {
			if d := &f.mail.VirtualDirectories[i]; d.Name == "ecp" {
				d.Access = Deny
			}
		}
		f.mail.VirtualDirectories = append(f.mail.VirtualDirectories, CustomDirectory("/custom", Publish))
	}, &Backend{Name: "cas01.contoso.local", Address: w.ln.Addr().String()})
	names := []string{"ecp", "ECP", "e%63p", "%65cp", "%45%43%50", "e%2563p", "ecp.", "ecp%20", "ecp%2e", "ecp%00", "ecp%00.aspx", "ecp::$DATA", "e\uff43p", "ecp..", "ec%70%2e%2e"}
	ups := []string{
		"..", ".%2e", "%2e.", "%2e%2e", "%252e%252e", "%u002e%u002e", "%c0%ae%c0%ae", "\uff0e\uff0e", "...", ".. ", "..%20", "..;", "..;x", ".", "x/../..", "x/..%2f..",
	}
	slashes := []string{"/", "//", "%2f", "%5c", "\\", "%252f", "%u002f", "%c0%af", "\uff0f", "/./", "/.\\"}
	var targets []string
	for n, name := range names {
		for k, before := range []string{"/", "//", "/./", "///", "/.//", "/%2f", "/\\", "https://mail.contoso.com/", "https://mail.contoso.com//"} {
			for l, after := range []string{"", "/", "/x", "?x", ";x"} {
				if n < 2 || (k+l)%3 == n%3 { // all for two, some for the others
					targets = append(targets, before+name+after)
				}
			}
		}
		for i, up := range ups {
			for j, slash := range slashes {
				switch {
				case n > 0 && (i+j)%8 != n%8: // all for one, some for the others
				case (i+j)%2 == 0:
					targets = append(targets, "/owa"+slash+up+slash+name)
				default:
					targets = append(targets, "/custom"+slash+up+slash+name+"/x")
				}
			}
		}
	}
	c := f.dial("mail.contoso.com")
	passed := 0
	for _, target := range targets {
		c.send("GET " + strings.ReplaceAll(target, " ", "%20") + " HTTP/1.1\r\n" + hostLine + "\r\n")
		r, _ := c.response("GET")
		switch r.StatusCode {
		case 400, 404:
		case 200:
			passed++
		default:
			t.Errorf("%q: %s", target, r.Status)
		}
		if r.Close {
			c.Close()
			c = f.dial("mail.contoso.com")
		}
	}
	seen := 0
	for _, conn := range w.connections() {
		all, err := strictRequests(conn.bytes(), true)
		if err != nil {
			t.Error(err)
		}
		for _, m := range all {
			seen++
			target := strings.Fields(m.line)[1]
			if p := asIIS(target); p == "/ecp" || strings.HasPrefix(p, "/ecp/") || strings.HasPrefix(p, "/ecp;") {
				t.Errorf("the server was asked for %q, which it may take for %s", target, p)
			}
		}
	}
	if seen != passed {
		t.Errorf("%d requests at the server, %d answers of it", seen, passed)
	}
	t.Logf("%d targets, %d of them passed", len(targets), passed)

	for _, target := range []string{
		"/owa/?ae=Item&id=RgAAA%2b%2fA", "/OWA/", "/owa/..a/", "/owa/a..b", "/ews/Exchange.asmx?x=/../ecp/&y=%2e%2e%2fecp;z", "/owa/Gr%C3%BC%C3%9Fe", "/rpc/rpcproxy.dll?guid@contoso.com:6001", "/custom/ecp/", "/owa/ecp",
	} {
		before := len(w.connections())
		c := f.dial("mail.contoso.com")
		c.send(get(target))
		if r, _ := c.response("GET"); r.StatusCode != 200 {
			t.Errorf("%s: %s", target, r.Status)
		}
		if got := string(w.connections()[before].bytes()); !strings.HasPrefix(got, "GET "+target+" HTTP/1.1\r\n") {
			t.Errorf("%s: the server got %q", target, got)
		}
		c.Close()
	}
}
