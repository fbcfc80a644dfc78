package proxy

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// an error of a backend whose cause is known comes with a hint in the log, on
// the request's own line; other answers come without.
func TestHints(t *testing.T) {
	const httpSys, iis = "Server: Microsoft-HTTPAPI/2.0\r\n", "Server: Microsoft-IIS/10.0\r\n"
	ntlm := "Authorization: NTLM " + b64(type3("CONTOSO", "pat", "wrong", true)) + "\r\n"
	for name, tc := range map[string]struct {
		lines              string // of the request
		status, head, body string
		repeat             int
		want               string
	}{
		"request too long":   {"", "400 Bad Request", httpSys, "<h2>Bad Request - Request Too Long</h2>", 1, hintFieldLength},
		"large, body later":  {"Authorization: Negotiate " + strings.Repeat("A", 20000) + "\r\n", "400 Bad Request", httpSys, "", 1, hintFieldLength},
		"invalid host name":  {"", "400 Bad Request", httpSys, "<h2>Bad Request - Invalid Hostname</h2>", 1, hintHostName},
		"http.sys":           {"", "400 Bad Request", httpSys, "<h2>Bad Request - Invalid Verb</h2>", 1, hintHTTPSys},
		"an application":     {"", "400 Bad Request", iis, "Request Too Long", 1, ""},
		"RPC":                {"", "503 RPC Error: 6ba", iis, "", 1, hintRPC},
		"pool":               {"", "503 Service Unavailable", httpSys, "", 1, hintPool},
		"busy":               {"", "503 Service Unavailable", iis + "Retry-After: 5\r\n", "", 1, ""},
		"login timeout":      {"", "440 Login Timeout", iis, "", 1, hintSession},
		"too large":          {"", "413 Request Entity Too Large", iis, "", 1, hintTooLarge},
		"no Basic":           {basic("pat", "x"), "401 Unauthorized", "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\n", "", 1, hintNoBasic},
		"wrong password":     {basic("pat", "x"), "401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", "", 3, ""},
		"first leg":          {"", "401 Unauthorized", "WWW-Authenticate: Negotiate\r\nWWW-Authenticate: NTLM\r\n", "", 3, ""},
		"NTLM once":          {ntlm, "401 Unauthorized", "WWW-Authenticate: NTLM\r\n", "", 1, ""},
		"NTLM over and over": {ntlm, "401 Unauthorized", "WWW-Authenticate: NTLM\r\n", "", 3, hintBinding},
		"no status text":     {"", "503", "", "", 1, ""},
		"fine":               {"", "200 OK", httpSys, "Request Too Long", 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newRecorder(t, func(c *recorded) {
				for {
					h, err := c.head()
					if err != nil {
						return
					}
					io.CopyN(io.Discard, c.br, contentLength(h))
					fmt.Fprintf(c, "HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s", tc.status, tc.head, len(tc.body), tc.body)
				}
			})
			f := newFront(t, nil, b.backend())
			c := f.dial("mail.contoso.com")
			for range tc.repeat {
				c.send("POST /ews/exchange.asmx HTTP/1.1\r\nHost: mail.contoso.com\r\n" + tc.lines + "Content-Length: 0\r\n\r\n")
				if _, body := c.response("POST"); body != tc.body {
					t.Errorf("the answer has become %q", body)
				}
			}
			eventually(t, "the requests' lines", func() bool { return strings.Count(f.log.String(), `"message":"request"`) == tc.repeat })
			lines := strings.Split(strings.TrimSpace(f.log.String()), "\n")
			last := lines[len(lines)-1]
			quoted := strings.ReplaceAll(tc.want, `\`, `\\`)
			if tc.want == "" && strings.Contains(last, `"hint"`) || tc.want != "" && !strings.Contains(last, `"hint":"`+quoted+`"`) {
				t.Errorf("want the hint %q in\n%s", tc.want, last)
			}
		})
	}
}
