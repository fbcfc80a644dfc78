package autodiscover

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/beevik/etree"
)

// toMail is a host map that knows two names, as the front door's does.
func toMail(text string) (string, bool) {
	for _, name := range []string{"cas01.contoso.local", "cas01"} {
		for _, scheme := range []string{"https://", "http://"} {
			rest, ok := strings.CutPrefix(text, scheme+name)
			if ok && (rest == "" || strings.ContainsAny(rest[:1], "/?#:")) {
				return "https://mail.contoso.com" + rest, true
			}
		}
		if text == name {
			return "mail.contoso.com", true
		}
	}
	return "", false
}

// answerFiles are the answers under testdata, with their content types.
func answerFiles(t testing.TB) map[string]string {
	t.Helper()
	types := map[string]string{}
	for pattern, contentType := range map[string]string{
		"pox/outlook/resp-*.xml": "text/xml; charset=utf-8", "pox/golden/*.xml": "text/xml", "pox/mobilesync/resp-*.xml": "text/xml; charset=utf-8",
		"soap/resp-*.xml": "text/xml; charset=utf-8", "v2/*.json": "application/json; charset=utf-8",
	} {
		files, err := filepath.Glob("../testdata/" + pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files", pattern)
		}
		for _, f := range files {
			types[f] = contentType
		}
	}
	return types
}

// from an answer with internal names comes the one with public names, byte for
// byte, and an answer without any comes back untouched.
func TestRewriteAnswers(t *testing.T) {
	changes := 0
	for file, contentType := range answerFiles(t) {
		public, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		got, changed, err := Rewrite(contentType, public, toMail)
		if err != nil || changed || !bytes.Equal(got, public) {
			t.Errorf("%s: changed %v, %v, without a name in it", file, changed, err)
		}
		internal := bytes.ReplaceAll(public, []byte("mail.contoso.com"), []byte("cas01.contoso.local"))
		got, changed, err = Rewrite(contentType, internal, toMail)
		if err != nil || changed == bytes.Equal(internal, public) || !bytes.Equal(got, public) {
			t.Errorf("%s: changed %v, %v:\n%s", file, changed, err, got)
		}
		if changed {
			changes++
		}
		// As .NET might as well write it: a byte order mark, lines that end in CRLF.
		windows := func(b []byte) []byte {
			return append([]byte("\xef\xbb\xbf"), bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))...)
		}
		got, _, err = Rewrite(contentType, windows(internal), toMail)
		if err != nil || !bytes.Equal(got, windows(public)) {
			t.Errorf("%s with CRLF: %v:\n%q", file, err, got)
		}
	}
	if changes < 15 {
		t.Errorf("only %d documents had a name in them", changes)
	}
}

// What changes, and how exactly nothing else does.
func TestRewriteExactly(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		contentType := "text/xml"
		if strings.HasPrefix(in, "{") || strings.HasPrefix(in, "[") || strings.HasPrefix(in, `"`) {
			contentType = "application/json"
		}
		got, changed, err := Rewrite(contentType, []byte(in), toMail)
		if err != nil || string(got) != want || changed != (in != want) {
			t.Errorf("%v %v\n got %q\nwant %q", changed, err, got, want)
		}
	}
	// Attributes, quotes, blanks, empty elements, prefixes, comments, instructions, CDATA and
	// references stay as they are written.
	f(`<?xml  version='1.0'   standalone="yes" ?><!-- https://cas01.contoso.local/ --><a:A  xmlns:a = 'https://cas01.contoso.local/ns' b="&#x41;&lt;'" c='"'><B></B><C /><?p https://cas01.contoso.local/?>`+
		`<Url>https://cas01.contoso.local/a?b=c&amp;d=&#xE9;</Url>&#13;&quot;<D><![CDATA[x > y]]></D></a:A> `+"\n<!-- end -->",
		`<?xml  version='1.0'   standalone="yes" ?><!-- https://cas01.contoso.local/ --><a:A  xmlns:a = 'https://cas01.contoso.local/ns' b="&#x41;&lt;'" c='"'><B></B><C /><?p https://cas01.contoso.local/?>`+
			`<Url>https://mail.contoso.com/a?b=c&amp;d=&#xE9;</Url>&#13;&quot;<D><![CDATA[x > y]]></D></a:A> `+"\n<!-- end -->")
	f("<A><Url>\n  https://cas01.contoso.local/\n</Url></A>", "<A><Url>\n  https://mail.contoso.com/\n</Url></A>")
	f("<A>https://cas01.contoso.local</A>", "<A>https://mail.contoso.com</A>")
	f("<A><Url><![CDATA[https://cas01.contoso.local/?a&b]]></Url></A>", "<A><Url><![CDATA[https://mail.contoso.com/?a&b]]></Url></A>")
	f("<A><Url>https&#58;//cas01.contoso.local/?a&amp;b</Url></A>", "<A><Url>https://mail.contoso.com/?a&amp;b</Url></A>")
	f("<A><Url>https://cas01<!-- x -->.contoso.local/</Url></A>", "<A><Url>https://mail.contoso.com/<!-- x --></Url></A>")
	f("<A><Url>https://<![CDATA[cas01]]>.contoso.local/</Url></A>", "<A><Url>https://mail.contoso.com/<![CDATA[]]></Url></A>")
	f(`<A u='x' location = 'https://cas01.contoso.local/x"y' v="https://cas01.contoso.local"/>`, `<A u='x' location = 'https://mail.contoso.com/x"y' v="https://mail.contoso.com"/>`)
	// Names of hosts, alone or with what Outlook wants before them.
	f("<A><Server>cas01.contoso.local</Server><Server>cas01</Server><CertPrincipalName>msstd:cas01.contoso.local</CertPrincipalName><Value>cas01.contoso.local</Value></A>",
		"<A><Server>mail.contoso.com</Server><Server>mail.contoso.com</Server><CertPrincipalName>msstd:mail.contoso.com</CertPrincipalName><Value>mail.contoso.com</Value></A>")
	// A word that is a server's name and also something else, and texts with more in them.
	same := "<A><DisplayName>cas01</DisplayName><Type>cas01</Type><ServerDN>/cn=Servers/cn=cas01</ServerDN><B>see https://cas01.contoso.local/</B><C>https://cas01.contoso.local.evil.example/</C>" +
		"<E>https://cas01.contoso.local/<F/></E><Server>0c3de0f1@cas01.contoso.local</Server></A>"
	f(same, same)
	f(`{"Protocol":"cas01","Url":"https://cas01.contoso.local/EWS"}`, `{"Protocol":"cas01","Url":"https://mail.contoso.com/EWS"}`)
	f(`{ "a" : [ "https://cas01.contoso.local", {"https://cas01.contoso.local":"x", "b":"https:\/\/cas01.contoso.local\/\u00e9<"}], "n":1.50e3, "a":null }`+"\n",
		`{ "a" : [ "https://mail.contoso.com", {"https://cas01.contoso.local":"x", "b":"https://mail.contoso.com/é<"}], "n":1.50e3, "a":null }`+"\n")
	f(`"https://cas01.contoso.local/"`, `"https://mail.contoso.com/"`)
	f(`{"u":"https://cas01.contoso.local/\"\\"}`, `{"u":"https://mail.contoso.com/\"\\"}`)
}

// What cannot be read for certain is an error; nothing hangs or grows.
func TestRewriteRefuses(t *testing.T) {
	deep := strings.Repeat("<a>", 200) + strings.Repeat("</a>", 200)
	for name, tc := range map[string][2]string{
		"empty":                 {"text/xml", ""},
		"no XML":                {"text/xml", "hello"},
		"HTML":                  {"text/xml", "<html><br></html>"},
		"DOCTYPE":               {"text/xml", `<!DOCTYPE a [<!ENTITY e "https://cas01.contoso.local/">]><a>&e;</a>`},
		"unknown entity":        {"text/xml", "<a>&e;</a>"},
		"second root":           {"text/xml", "<a/><b>https://cas01.contoso.local/</b>"},
		"text behind the root":  {"text/xml", "<a/>https://cas01.contoso.local/"},
		"CDATA behind the root": {"text/xml", "<a/><![CDATA[ ]]>"},
		"not nested":            {"text/xml", "<a><b></a></b>"},
		"not closed":            {"text/xml", "<a><b>https://cas01.contoso.local/</b>"},
		"too deep":              {"text/xml", deep},
		"too many elements":     {"text/xml", "<a>" + strings.Repeat("<b/>", maxElements) + "</a>"},
		"UTF-16":                {"text/xml", "\xff\xfe<\x00a\x00/\x00>\x00"},
		"another charset":       {"text/xml; charset=utf-16", "<a/>"},
		"another encoding":      {"text/xml", `<?xml version="1.0" encoding="iso-8859-1"?><a/>`},
		"not UTF-8":             {"text/xml", "<a>\xe9</a>"},
		"XML 1.1":               {"text/xml", `<?xml version="1.1"?><a/>`},
		"attribute unquoted":    {"text/xml", "<a b=https://cas01.contoso.local/ />"},
		"no content type":       {"", "<a/>"},
		"no JSON":               {"application/json", `{"Url":`},
		"two JSON values":       {"application/json", `{"Url":"x"}{"Url":"https://cas01.contoso.local/"}`},
		"JSON too deep":         {"application/json", strings.Repeat("[", 200) + strings.Repeat("]", 200)},
		"JSON not UTF-8":        {"application/json", "{\"Url\":\"\xe9\"}"},
	} {
		if out, changed, err := Rewrite(tc[0], []byte(tc[1]), toMail); err == nil || changed || out != nil {
			t.Errorf("%s: %q, %v, %v", name, out, changed, err)
		} else if strings.Contains(err.Error(), "cas01") {
			t.Errorf("%s: the error repeats the document: %v", name, err)
		}
	}
	files, err := filepath.Glob("../testdata/pox/hostile/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no files")
	}
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if out, changed, err := Rewrite("text/xml", body, toMail); err == nil && (changed || !bytes.Equal(out, body)) {
			t.Errorf("%s: changed", file)
		}
	}
}

// A text in very many pieces costs what its length does, and not the square of it.
func TestRewritePieces(t *testing.T) {
	body := []byte("<a>" + strings.Repeat("x<!---->", 1<<15) + "</a>")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, changed, err := Rewrite("text/xml", body, toMail); changed || err != nil {
		t.Error(changed, err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20 {
		t.Errorf("%d bytes allocated for a document of %d", n, len(body))
	}
}

// FuzzRewrite: what comes out can be read and has no internal name left where one is
// looked for; a second pass finds nothing.
func FuzzRewrite(f *testing.F) {
	for file, contentType := range answerFiles(f) {
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(strings.Contains(contentType, "json"), bytes.ReplaceAll(body, []byte("mail.contoso.com"), []byte("cas01.contoso.local")))
	}
	f.Add(false, []byte(`<a b='https://cas01.contoso.local/"'><![CDATA[https://cas01.contoso.local/]]>&#32;<!-- --></a>`))
	f.Add(true, []byte(`["https:\/\/cas01.contoso.local",{"a":"cas01.contoso.local"}]`))
	f.Fuzz(func(t *testing.T, isJSON bool, body []byte) {
		contentType := "text/xml"
		if isJSON {
			contentType = "application/json"
		}
		out, changed, err := Rewrite(contentType, body, toMail)
		if err != nil {
			return
		}
		if changed == bytes.Equal(out, body) {
			t.Fatalf("changed %v: %q", changed, out)
		}
		if again, changed, err := Rewrite(contentType, out, toMail); err != nil || changed || !bytes.Equal(again, out) {
			t.Fatalf("a second time: %v, %v: %q becomes %q", changed, err, out, again)
		}
		text := bytes.TrimPrefix(out, []byte("\xef\xbb\xbf"))
		if isJSON {
			if !json.Valid(text) {
				t.Fatalf("%q", out)
			}
			return
		}
		doc := etree.NewDocument()
		if err := doc.ReadFromBytes(text); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		for _, e := range doc.FindElements("//*") {
			if len(e.ChildElements()) == 0 {
				core := strings.Trim(allText(e), xmlSpace)
				if _, ok := toMail(core); ok && strings.Contains(core, ".") {
					t.Fatalf("%q is left in %q", core, out)
				}
			}
		}
	})
}

func BenchmarkRewrite(b *testing.B) {
	body, err := os.ReadFile("../testdata/pox/outlook/resp-classic-exch-expr-web.xml")
	if err != nil {
		b.Fatal(err)
	}
	body = bytes.ReplaceAll(body, []byte("mail.contoso.com"), []byte("cas01.contoso.local"))
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, changed, err := Rewrite("text/xml", body, toMail); !changed || err != nil {
			b.Fatal(err)
		}
	}
}
