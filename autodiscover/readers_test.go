package autodiscover

import (
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/autodgate/autodgate/directory"
)

// Readers of answers in the manner of real clients, each written from what is
// known of that client and standing on encoding/xml or plain text, so that they
// share nothing with the renderer.

type node struct {
	XMLName xml.Name
	Attrs   []xml.Attr `xml:",any,attr"`
	Text    string     `xml:",chardata"`
	Nodes   []node     `xml:",any"`
}

func (n node) all(name string) (out []node) {
	for _, c := range n.Nodes {
		if c.XMLName.Local == name {
			out = append(out, c)
		}
	}
	return out
}

func (n node) first(name string) node {
	if all := n.all(name); len(all) > 0 {
		return all[0]
	}
	return node{}
}

func (n node) attr(name string) string {
	for _, a := range n.Attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

func tree(body string) (node, error) {
	var n node
	err := xml.Unmarshal([]byte(body), &n)
	return n, err
}

func protocols(root node) []node { return root.first("Response").first("Account").all("Protocol") }

func protocolTypes(t *testing.T, body string) (out []string) {
	t.Helper()
	root, err := tree(body)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols(root) {
		kind := p.attr("Type")
		if kind == "" {
			kind = p.first("Type").Text
		}
		out = append(out, kind)
	}
	return out
}

// EWS Managed API: wants the declaration, and one Protocol per type, where all
// types that it does not know are one.
func readEWSMA(body string) (string, error) {
	if !strings.HasPrefix(body, "<?xml ") {
		return "", errors.New("no XML declaration")
	}
	root, err := tree(body)
	if err != nil {
		return "", err
	}
	found := map[string]node{}
	for _, p := range protocols(root) {
		kind := p.first("Type").Text
		if kind != "EXCH" && kind != "EXPR" && kind != "WEB" {
			kind = "unknown"
		}
		if _, twice := found[kind]; twice {
			return "", fmt.Errorf("two protocols of type %s", kind)
		}
		found[kind] = p
	}
	return found["EXPR"].first("EwsUrl").Text, nil
}

// Thunderbird: type by type, EWS from EXHTTP or EXCH, OWA from WEB.
func readThunderbird(contentType, body string) (ews, owa string, err error) {
	if !regexp.MustCompile(`^(text/xml|application/xml|text/rdf)`).MatchString(contentType) {
		return "", "", errors.New("not parsed: Content-Type")
	}
	root, err := tree(body)
	if err != nil {
		return "", "", err
	}
	for _, p := range protocols(root) {
		switch p.first("Type").Text {
		case "EXHTTP", "EXCH":
			for _, tag := range []string{"ASUrl", "EwsUrl"} {
				if v := p.first(tag).Text; v != "" {
					ews = v
				}
			}
		case "WEB":
			side := p.first("External")
			if side.XMLName.Local == "" {
				side = p.first("Internal")
			}
			owa = side.first("OWAUrl").Text
		}
	}
	return ews, owa, nil
}

// evolution-ews: ASUrl in EXCH or, better, EXPR; nothing else will do.
func readEvolution(body string) (as, oab string, err error) {
	root, err := tree(body)
	if err != nil {
		return "", "", err
	}
	for _, kind := range []string{"EXPR", "EXCH"} {
		for _, p := range protocols(root) {
			if p.first("Type").Text == kind && as == "" {
				as, oab = p.first("ASUrl").Text, p.first("OABUrl").Text+"oab.xml"
			}
		}
	}
	if as == "" {
		return "", "", errors.New("no ASUrl in EXCH or EXPR")
	}
	return as, oab, nil
}

// libetpan: every element by namespace, and EXCH only.
func readLibetpan(body string) (as, oof, oab string, err error) {
	var doc struct {
		XMLName  xml.Name `xml:"http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006 Autodiscover"`
		Response struct {
			Account struct {
				Protocol []struct {
					Type   string `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a Type"`
					ASUrl  string `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a ASUrl"`
					OOFUrl string `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a OOFUrl"`
					OABUrl string `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a OABUrl"`
				} `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a Protocol"`
			} `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a Account"`
		} `xml:"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a Response"`
	}
	if err := xml.Unmarshal([]byte(body), &doc); err != nil {
		return "", "", "", err
	}
	for _, p := range doc.Response.Account.Protocol {
		if p.Type == "EXCH" {
			return p.ASUrl, p.OOFUrl, p.OABUrl, nil
		}
	}
	return "", "", "", errors.New("no settings")
}

// DavMail: the Content-Type to the letter, then line by line.
func readDavMail(contentType, body string) (string, error) {
	if contentType != "text/xml; charset=utf-8" && contentType != "text/html; charset=utf-8" {
		return "", errors.New("Content-Type")
	}
	for _, line := range strings.Split(body, "\n") {
		if _, rest, ok := strings.Cut(line, "<EwsUrl>"); ok {
			if url, _, ok := strings.Cut(rest, "</EwsUrl>"); ok {
				return url, nil
			}
		}
	}
	return "", errors.New("no EwsUrl")
}

func TestClientsReadOurAnswers(t *testing.T) {
	h := NewHandler(testOptions(t))
	const ews = "https://mail.contoso.com/EWS/Exchange.asmx"
	get := func(pairs ...string) answer {
		r := request(ask("pat@contoso.com"), "pat@contoso.com", "secret")
		for i := 0; i < len(pairs); i += 2 {
			r.Header.Set(pairs[i], pairs[i+1])
		}
		return do(h, r)
	}
	for name, a := range map[string]answer{"classic": get(), "with EXHTTP": get("X-ClientCanHandle", "ExHttpInfo")} {
		kind := a.header.Get("Content-Type")
		if got, err := readEWSMA(a.body); err != nil || got != ews {
			t.Errorf("%s: EWS Managed API: %q, %v", name, got, err)
		}
		if got, owa, err := readThunderbird(kind, a.body); err != nil || got != ews || owa != "https://mail.contoso.com/owa/" {
			t.Errorf("%s: Thunderbird: %q, %q, %v", name, got, owa, err)
		}
		if as, oab, err := readEvolution(a.body); err != nil || as != ews || !strings.HasSuffix(oab, "/2b1c3f44-5a7e-4e2c-9a10-77aa01b3c9d2/oab.xml") {
			t.Errorf("%s: evolution-ews: %q, %q, %v", name, as, oab, err)
		}
		if as, oof, oab, err := readLibetpan(a.body); err != nil || as != ews || oof != ews || !strings.HasSuffix(oab, "/") {
			t.Errorf("%s: libetpan: %q, %q, %q, %v", name, as, oof, oab, err)
		}
		if got, err := readDavMail(kind, a.body); err != nil || got != ews {
			t.Errorf("%s: DavMail: %q, %v", name, got, err)
		}
	}
	mapi := get("X-MapiHttpCapability", "1")
	if _, err := readEWSMA(mapi.body); err != nil {
		t.Errorf("mapiHttp alone: EWS Managed API: %v", err)
	}
	// What the readers cannot take, so that we know that they look: both unknown
	// types at once, which only Outlook asks for (gotcha 23), and an ISP's answer.
	if _, err := readEWSMA(get("X-MapiHttpCapability", "1", "X-ClientCanHandle", "ExHttpInfo").body); err == nil {
		t.Error("the EWS Managed API reader takes EXHTTP beside mapiHttp")
	}
	if _, err := readEWSMA(sample(t, "outlook/resp-imap-pop-smtp.xml")); err == nil {
		t.Error("the EWS Managed API reader takes three unknown types")
	}
	if _, _, err := readEvolution(mapi.body); err == nil {
		t.Error("the evolution-ews reader takes an answer without EXCH and EXPR")
	}
	// Type is the first child wherever it is one.
	root, err := tree(get("X-ClientCanHandle", "ExHttpInfo").body)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range protocols(root) {
		if p.Nodes[0].XMLName.Local != "Type" {
			t.Errorf("a Protocol begins with %s", p.Nodes[0].XMLName.Local)
		}
	}
}

func cloneDomains(in map[string]Domain) map[string]Domain {
	out := make(map[string]Domain, len(in))
	for k, v := range in {
		out[k] = v
	}
	return out
}

// staticAlternatives are those of the sample resp-alternative-mailboxes.
func staticAlternatives() []directory.AlternativeMailbox {
	return slices.Clone([]directory.AlternativeMailbox{
		{Type: "archive", DisplayName: "Online archive - Pat Doe", SMTPAddress: "pat-archive@contoso.com"},
		{SMTPAddress: "helpdesk@contoso.com"},
		{
			DisplayName: "Old form", LegacyDN: "/o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=oldform",
			Server: "9b1c2d3e-0f11-4a22-8b33-c44d55e66f77@contoso.com",
		},
	})
}
