package autodiscover

import (
	"maps"
	"strings"
	"testing"

	"github.com/autodgate/autodgate/directory"
	"github.com/beevik/etree"
)

// The rest of what the token level has to refuse or take, beyond the samples.
func TestParseRequest(t *testing.T) {
	const (
		ns     = nsOutlookRequest
		schema = "<AcceptableResponseSchema>" + nsOutlookResponse + "</AcceptableResponseSchema>"
		pat    = "<EMailAddress>pat@contoso.com</EMailAddress>"
	)
	doc := func(inner string) string {
		return `<Autodiscover xmlns="` + ns + `"><Request>` + inner + `</Request></Autodiscover>`
	}
	good := func(name, body string) {
		t.Helper()
		q, err := ParseRequest([]byte(body))
		if err != nil || q.EMailAddress != "pat@contoso.com" {
			t.Errorf("%s: %v, %v", name, q, err)
		}
	}
	bad := func(name, body string) {
		t.Helper()
		if q, err := ParseRequest([]byte(body)); err == nil {
			t.Errorf("%s is accepted: %+v", name, q)
		} else if strings.Contains(err.Error(), "pat") || strings.Contains(err.Error(), "evil") {
			t.Errorf("%s: the error repeats the request: %v", name, err)
		}
	}
	good("plain", doc(pat+schema))
	good("white space around values", doc("<EMailAddress>\r\n pat@contoso.com\t</EMailAddress>"+schema))
	good("comment between elements", doc("<!-- x -->"+pat+schema))
	good("comment before the root", "<!-- x -->"+doc(pat+schema))
	good("unused namespaces", strings.Replace(doc(pat+schema), " xmlns=", ` xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xmlns:xsd='http://www.w3.org/2001/XMLSchema' xmlns=`, 1))
	good("character references", doc("<EMailAddress>&#112;at&#x40;contoso.com</EMailAddress>"+schema))
	good("white space after the root", doc(pat+schema)+"\r\n\t ")
	good("standalone", `<?xml version='1.0' encoding='UTF-8' standalone='yes' ?>`+doc(pat+schema))
	good("mobile sync root", strings.Replace(doc(pat+schema), ns, nsMobileSyncRequest, 1))
	good("CRLF line ends", strings.ReplaceAll(sample(t, "outlook/req-email.xml"), "\n", "\r\n"))
	good("one prefix redeclared to the same", doc(`<x:EMailAddress xmlns:x="`+ns+`">pat@contoso.com</x:EMailAddress>`+schema))

	bad("CDATA", doc("<EMailAddress><![CDATA[pat@contoso.com]]></EMailAddress>"+schema))
	bad("text and CDATA", doc("<EMailAddress>pat@contoso.com<![CDATA[.evil.example]]></EMailAddress>"+schema))
	bad("processing instruction in a value", doc("<EMailAddress>pat@contoso.com<?x?>.evil.example</EMailAddress>"+schema))
	bad("processing instruction", doc("<?x?>"+pat+schema))
	bad("stylesheet", `<?xml-stylesheet href="evil"?>`+doc(pat+schema))
	bad("declaration twice", `<?xml version="1.0"?><?xml version="1.0"?>`+doc(pat+schema))
	bad("declaration with two encodings", `<?xml version="1.0" encoding="utf-8" encoding="utf-16"?>`+doc(pat+schema))
	bad("declaration without version", `<?xml encoding="utf-8"?>`+doc(pat+schema))
	bad("byte order mark twice", "\ufeff\ufeff"+doc(pat+schema))
	bad("white space without declaration", " "+doc(pat+schema))
	bad("comment after the root", doc(pat+schema)+"<!-- x -->")
	bad("instruction after the root", doc(pat+schema)+"<?x?>")
	bad("text between elements", doc(pat+"evil"+schema))
	bad("unknown element", doc(pat+schema+"<Extra/>"))
	bad("known element of another namespace", doc(pat+`<EMailAddress xmlns="evil">eve@contoso.com</EMailAddress>`+schema))
	bad("attribute", doc(`<EMailAddress nil="true">pat@contoso.com</EMailAddress>`+schema))
	bad("xsi:nil", doc(`<EMailAddress xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:nil="true">pat@contoso.com</EMailAddress>`+schema))
	bad("xml:base", strings.Replace(doc(pat+schema), "<Request>", `<Request xml:base="evil">`, 1))
	bad("attribute twice", strings.Replace(doc(pat+schema), " xmlns=", ` xmlns="evil" xmlns=`, 1))
	bad("prefix twice", strings.Replace(doc(pat+schema), " xmlns=", ` xmlns:a="evil" xmlns:a="evil" xmlns=`, 1))
	bad("undeclared prefix", doc(`<a:EMailAddress>pat@contoso.com</a:EMailAddress>`+schema))
	bad("prefix that is the namespace", `<`+"a"+`:Autodiscover xmlns="`+ns+`"></a:Autodiscover>`)
	bad("prefix undeclared again", doc(`<x:EMailAddress xmlns:x="">pat@contoso.com</x:EMailAddress>`+schema))
	bad("prefixes exchanged in end tag", doc(`<x:EMailAddress xmlns:x="`+ns+`">pat@contoso.com</EMailAddress>`+schema))
	bad("end tag of another element", doc("<EMailAddress>pat@contoso.com</LegacyDN>"+schema))
	bad("33 attributes", strings.Replace(doc(pat+schema), " xmlns=", func() string {
		var b strings.Builder
		for i := range 32 {
			b.WriteString(" xmlns:a" + strings.Repeat("a", i) + `="x"`)
		}
		return b.String()
	}()+" xmlns=", 1))
	bad("17 levels", doc(pat+schema+strings.Repeat("<x>", 17)+strings.Repeat("</x>", 17)))
	bad("schema twice", doc(pat+schema+schema))
	bad("empty schema", doc(pat+"<AcceptableResponseSchema/>"))
	bad("element in schema", doc(pat+"<AcceptableResponseSchema>http://<b/></AcceptableResponseSchema>"))
	bad("empty request", doc(""))
	bad("no request", `<Autodiscover xmlns="`+ns+`"/>`)
	bad("element beside request", strings.Replace(doc(pat+schema), "</Autodiscover>", "<Response/></Autodiscover>", 1))
	bad("unknown namespace", strings.Replace(doc(pat+schema), ns, ns+"a", 1))
	bad("namespace in another case", strings.Replace(doc(pat+schema), ns, strings.ToUpper(ns), 1))
	bad("321 characters", doc("<EMailAddress>"+strings.Repeat("a", 321-len("@contoso.com"))+"@contoso.com</EMailAddress>"+schema))
	bad("reference to NUL", doc("<EMailAddress>pat&#0;@contoso.com</EMailAddress>"+schema))
	bad("reference to a surrogate", doc("<EMailAddress>pat&#xD800;@contoso.com</EMailAddress>"+schema))
	bad("carriage return at the end", doc("<EMailAddress>pat@contoso.com&#13;</EMailAddress>"+schema))
	bad("NUL", strings.Replace(doc(pat+schema), "<Request>", "<Request>\x00", 1))
	bad("control character in a comment", doc("<!--\x01-->"+pat+schema))
	bad("U+FFFE", doc("<!--\ufffe-->"+pat+schema))
	bad("empty legacyDN", doc(pat+"<LegacyDN/>"+schema))
	bad("legacyDN without slash", doc("<LegacyDN>CN=pat</LegacyDN>"+schema))
	bad("1025 characters of legacyDN", doc("<LegacyDN>/"+strings.Repeat("a", 1024)+"</LegacyDN>"+schema))
	bad("bad address beside a legacyDN", doc("<EMailAddress>evil</EMailAddress><LegacyDN>/o=x</LegacyDN>"+schema))
	bad("line feed in legacyDN", doc("<LegacyDN>/o=x\n/cn=y</LegacyDN>"+schema))

	if _, err := ParseRequest([]byte(doc("<LegacyDN>/" + strings.Repeat("a", 1023) + "</LegacyDN>" + schema))); err != nil {
		t.Errorf("1024 characters of legacyDN: %v", err)
	}
}

// FuzzPOXRequest holds what a parsed request promises: writing and reading it
// gives the same request, and there is one address in the document, which is the
// one that a reader of another make finds.
func FuzzPOXRequest(f *testing.F) {
	for _, pattern := range []string{"outlook/*.xml", "hostile/*"} {
		for _, path := range samples(f, pattern) {
			f.Add([]byte(sample(f, path)))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		q, err := ParseRequest(body)
		if err != nil {
			return
		}
		again, err := ParseRequest(q.Encode())
		if err != nil {
			t.Fatalf("the request written again is refused: %v\n%s", err, q.Encode())
		}
		if *again != *q {
			t.Fatalf("read %+v, written and read %+v", q, again)
		}

		doc := etree.NewDocument()
		if err := doc.ReadFromBytes(body); err != nil {
			t.Fatalf("etree refuses what was accepted: %v", err)
		}
		found := map[string]string{}
		roots := 0
		var walk func(e *etree.Element)
		walk = func(e *etree.Element) {
			if len(e.ChildElements()) == 0 && e.Tag != "Request" {
				if _, twice := found[e.Tag]; twice {
					t.Fatalf("%s is there twice", e.Tag)
				}
				var b strings.Builder
				for _, c := range e.Child {
					data, ok := c.(*etree.CharData)
					if !ok {
						t.Fatalf("%s holds something other than text", e.Tag)
					}
					b.WriteString(data.Data)
				}
				found[e.Tag] = strings.TrimSpace(b.String())
			}
			for _, c := range e.ChildElements() {
				walk(c)
			}
		}
		for _, c := range doc.Child {
			switch c := c.(type) {
			case *etree.Element:
				roots++
				walk(c)
			case *etree.Directive:
				t.Fatal("there is a DOCTYPE")
			}
		}
		want := map[string]string{"AcceptableResponseSchema": found["AcceptableResponseSchema"]}
		if q.EMailAddress != "" {
			want["EMailAddress"] = q.EMailAddress
		}
		if q.LegacyDN != "" {
			want["LegacyDN"] = q.LegacyDN
		}
		if roots != 1 || !maps.Equal(found, want) {
			t.Fatalf("etree finds %d roots and %q, we read %q", roots, found, want)
		}
		if q.EMailAddress != "" {
			if a, err := directory.NormalizeAddress(found["EMailAddress"]); err != nil || a != q.address {
				t.Fatalf("address %q, normalised %q, %v", q.EMailAddress, q.address, err)
			}
			if strings.ContainsAny(q.EMailAddress, "\r\n<>\"*()\\") {
				t.Fatalf("accepted address %q", q.EMailAddress)
			}
		}
	})
}
