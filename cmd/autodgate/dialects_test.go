package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A SOAP client that others wrote finds its settings from the address alone: by the
// GET that tells whether there is SOAP, by autodiscover.svc, and for a hosted domain
// by the 302 on port 80 and the redirect to another address.
func TestSOAPClient(t *testing.T) {
	path := node(t)
	company, front := startLab(t)
	t.Setenv("NODE_EXTRA_CA_CERTS", company.CAFile())
	kim, _ := company.Account("kim@fabrikam.com")
	type line struct {
		Asked, Address, Code, URL, Name, DN, EWS, Version string
		OWA, Lacks                                        []string
	}
	got := objects[line](t, output(t, path, "testdata/npm/autodiscover.js", front.https[0], front.http[0], kim.Address, kim.Password,
		"kim@fabrikam.com", "kim@hosted.example"))
	want := line{
		Asked: "kim@fabrikam.com", Address: "kim@fabrikam.com", Code: "NoError", URL: "https://autodiscover.fabrikam.com/autodiscover/autodiscover.svc",
		Name: "Kim Akers", EWS: "https://mail.contoso.com/EWS/Exchange.asmx", Version: "15.02.2562.000",
		OWA: []string{"https://mail.contoso.com/owa/"}, Lacks: []string{"ExternalUMUrl"},
	}
	for i, asked := range []string{"kim@fabrikam.com", "kim@hosted.example"} {
		if len(got) != 2 {
			t.Fatalf("%d answers", len(got))
		}
		if !strings.HasPrefix(got[i].DN, "/o=") {
			t.Errorf("UserDN %q", got[i].DN)
		}
		want.Asked, want.DN = asked, got[i].DN
		if diff := cmp.Diff(want, got[i]); diff != "" {
			t.Error(diff)
		}
	}
}

// The lines of testdata/v2 as they go over the wire, each on a connection of its own:
// what the path rules refuse and what autodiscover refuses have the statuses expected.
func TestV2RequestLinesOnTheWire(t *testing.T) {
	lines, err := os.ReadFile("../../testdata/v2/request-lines.txt")
	if err != nil {
		t.Fatal(err)
	}
	company, front := startLab(t)
	ca, err := os.ReadFile(company.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	asked := 0
	for line := range strings.Lines(strings.ReplaceAll(string(lines), "contoso.com", "fabrikam.com")) {
		request, want, ok := strings.Cut(strings.TrimSpace(line), " => ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		asked++
		c, err := tls.Dial("tcp", front.https[0], &tls.Config{ServerName: "autodiscover.fabrikam.com", RootCAs: roots})
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(clientTime))
		length := ""
		if strings.HasPrefix(request, "POST") {
			length = "Content-Length: 0\r\n"
		}
		fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: autodiscover.fabrikam.com\r\n%s\r\n", request, length)
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: %v", request, err)
		} else {
			status := strconv.Itoa(a.StatusCode)
			if a.Body.Close(); !strings.HasPrefix(want, status) && want != "400 or "+status {
				t.Errorf("%s: %s, want %s", request, status, want)
			}
		}
		c.Close()
	}
	if asked < 25 {
		t.Errorf("only %d lines", asked)
	}
}
