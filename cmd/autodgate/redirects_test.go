package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// redirectFront is a front door that is the redirect site of 100 000 domains, of which
// two have names.
func redirectFront(t *testing.T) (front *frontDoor, file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "domains.txt")
	var many strings.Builder
	many.WriteString("Fabrikam.com # the first\r\nbücher.example\r\nowner.example\r\n")
	for i := range 100_000 {
		fmt.Fprintf(&many, "customer-%06d.example\n", i)
	}
	if err := os.WriteFile(file, []byte(many.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	front = startFront(t, filepath.Join(dir, "autodgate.yaml"), `
listen: {https: ["127.0.0.1:0"], http: ["127.0.0.1:0"], admin: []}
hosts:
  autodiscover.owner.example: {redirect: mail.owner.example}
redirects: {file: domains.txt, target: Mail.Contoso.com}
`)
	return front, file
}

// plainAnswer asks the front door in clear, and returns the status and the Location.
func plainAnswer(t *testing.T, front *frontDoor, method, host, path string) string {
	t.Helper()
	conn, err := net.Dial("tcp", front.http[0])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	body := ""
	if method == "POST" {
		body = "<Autodiscover/>"
	}
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Basic eDp5\r\nContent-Length: %d\r\n\r\n%s", method, path, host, len(body), body)
	answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.ContentLength > 0 && answer.StatusCode == http.StatusFound || answer.Header.Get("WWW-Authenticate") != "" || answer.Header.Get("Set-Cookie") != "" {
		t.Errorf("%s %s%s: %v", method, host, path, answer.Header)
	}
	return strings.TrimSpace(fmt.Sprint(answer.StatusCode, " ", answer.Header.Get("Location")))
}

// The redirect site over the wire (AUTODISCOVER 1.4), with 100 000 domains.
func TestRedirectSite(t *testing.T) {
	t.Parallel()
	front, file := redirectFront(t)
	const found = "302 https://mail.contoso.com/autodiscover/autodiscover."
	f := func(method, host, path, want string) {
		t.Helper()
		if got := plainAnswer(t, front, method, host, path); got != want {
			t.Errorf("%s %s%s: %s, want %s", method, host, path, got, want)
		}
	}
	for _, method := range []string{"HEAD", "GET", "POST"} {
		for _, host := range []string{"autodiscover.fabrikam.com", "fabrikam.com", "AutoDiscover.Fabrikam.com.:80", "autodiscover.xn--bcher-kva.example", "autodiscover.customer-099999.example"} {
			f(method, host, "/autodiscover/autodiscover.xml", found+"xml")
			f(method, host, "/Autodiscover/Autodiscover.svc", found+"svc")
		}
	}
	f("GET", "autodiscover.fabrikam.com", "/autodiscover/autodiscover.json?Email=a%40fabrikam.com&Protocol=EWS&RedirectCount=1&url=//evil.example", found+"json?Email=a%40fabrikam.com&Protocol=EWS&RedirectCount=2")
	f("GET", "autodiscover.fabrikam.com", "/", "404")
	f("GET", "fabrikam.com", "/", "404")
	f("PUT", "fabrikam.com", "/autodiscover/autodiscover.xml", "404")
	f("GET", "autodiscover.customer-100000.example", "/autodiscover/autodiscover.xml", "404")
	f("GET", "www.fabrikam.com", "/autodiscover/autodiscover.xml", "404")
	f("GET", "autodiscover.owner.example", "/autodiscover/autodiscover.xml", "302 https://mail.owner.example/autodiscover/autodiscover.xml")
	f("GET", "owner.example", "/autodiscover/autodiscover.xml", found+"xml")

	// 443 knows nothing of them.
	for _, name := range []string{"autodiscover.fabrikam.com", "fabrikam.com"} {
		_, err := tls.Dial("tcp", front.https[0], &tls.Config{ServerName: name, InsecureSkipVerify: true})
		if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
			t.Errorf("TLS with the name %s: %v", name, err)
		}
	}

	// A reload takes the file as it is now, or leaves all as it was.
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("<html>gone</html>\n")
	if err := front.reload(front.cfg); err == nil || !strings.Contains(err.Error(), "redirects: ") {
		t.Errorf("reload with a broken file: %v", err)
	}
	f("GET", "autodiscover.fabrikam.com", "/autodiscover/autodiscover.xml", found+"xml")
	write("new.example\n")
	if err := front.reload(front.cfg); err != nil {
		t.Fatal(err)
	}
	f("GET", "autodiscover.fabrikam.com", "/autodiscover/autodiscover.xml", "404")
	f("GET", "autodiscover.new.example", "/autodiscover/autodiscover.xml", found+"xml")

	// Without a reload the file is looked at.
	write("newer.example\nnot a domain\nnewest.example\n")
	for deadline := time.Now().Add(30 * time.Second); plainAnswer(t, front, "GET", "newest.example", "/autodiscover/autodiscover.xml") != found+"xml"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the changed file was not read")
		}
	}
	f("GET", "autodiscover.new.example", "/autodiscover/autodiscover.xml", "404")
}

// The redirect site with curl, as hosters try it out.
func TestRedirectSiteWithCurl(t *testing.T) {
	t.Parallel()
	path := peer.Need(t, "curl", "apt-get install curl")
	front, _ := redirectFront(t)
	for _, args := range [][]string{{"--head"}, {}, {"--data", "<Autodiscover/>"}} {
		args = append(args, "--silent", "--show-error", "--max-time", "20", "--noproxy", "*", "--connect-to", ":80:"+front.http[0],
			"-o", os.DevNull, "-w", "%{http_code} %{redirect_url} %header{cache-control}", "http://autodiscover.fabrikam.com/Autodiscover/Autodiscover.xml")
		out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
		if got := string(out); err != nil || got != "302 https://mail.contoso.com/autodiscover/autodiscover.xml no-cache, no-store" {
			t.Errorf("curl %s: %s (%v)", args[0], got, err)
		}
	}
}
