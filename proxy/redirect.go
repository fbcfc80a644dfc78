package proxy

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// autodiscoverFile recognises the Autodiscover documents in a canonical path:
// /autodiscover/autodiscover.{xml,svc,json}, with or without a suffix.
func autodiscoverFile(path string) (ext string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/autodiscover/autodiscover.")
	if !ok {
		return "", false
	}
	ext, _, _ = strings.Cut(rest, "/")
	return ext, ext == "xml" || ext == "svc" || ext == "json"
}

// redirectAutodiscover is the redirect site (AUTODISCOVER.md section 1.4): GET,
// HEAD and POST for an Autodiscover document get 302 to the same document at
// target, everything else 404. The Location comes from the config alone, lower
// case and without port; of a V2 query only the known keys are re-encoded.
func redirectAutodiscover(target, method, path, query string) route {
	ext, ok := autodiscoverFile(path)
	if !ok {
		return refuse(http.StatusNotFound, "nothing but Autodiscover is redirected here")
	}
	if method != "GET" && method != "HEAD" && method != "POST" {
		return refuse(http.StatusNotFound, "the redirect site takes GET, HEAD and POST")
	}
	location := "https://" + target + "/autodiscover/autodiscover." + ext
	if ext == "json" {
		suffix, _ := underV2(path)
		q, err := parseV2(suffix, query)
		if err != nil && !errors.Is(err, errV2Key) { // unknown keys are left behind, not carried on
			return refuse(http.StatusNotFound, err.Error())
		}
		q.redirectCount++
		if q.redirectCount > maxV2Redirects {
			return refuse(http.StatusNotFound, "RedirectCount is over the limit")
		}
		if enc := q.encode(); enc != "" {
			location += "?" + enc
		}
	}
	return route{action: actRedirect, location: location}
}

// maxV2Redirects is how many redirects a V2 request may report to have followed:
// the limit the other dialects have (our rule, AUTODISCOVER.md section 5).
const maxV2Redirects = 10

// v2Request is an Autodiscover V2 request reduced to what clients legitimately
// send. ProxyShell and ProxyNotShell lived from the rest.
type v2Request struct {
	email, protocol, serverLocation, hostNameHint string
	redirectCount                                 int // as sent; 0: absent
}

var (
	errV2Path  = errors.New("autodiscover.json: path suffix other than /v1.0/<address>")
	errV2Query = errors.New("autodiscover.json: malformed query")
	errV2Key   = errors.New("autodiscover.json: unknown or repeated query key")
	errV2Value = errors.New("autodiscover.json: value with characters no address or protocol has")
)

// underV2 returns what follows /autodiscover/autodiscover.json in a canonical
// path, and whether the path is that document at all.
func underV2(path string) (suffix string, ok bool) {
	suffix, ok = strings.CutPrefix(path, "/autodiscover/autodiscover.json")
	return suffix, ok
}

// parseV2 checks path suffix and raw query of a V2 request against the
// allow-list of PROXYING.md section 11.3. With errV2Key the result is still
// complete, less the keys that are not allowed.
func parseV2(suffix, query string) (v2Request, error) {
	var q v2Request
	var unknown error
	seen := map[string]bool{}
	suffix = strings.TrimSuffix(suffix, "/")
	if suffix != "" {
		email, ok := strings.CutPrefix(suffix, "/v1.0/")
		if !ok || strings.Contains(email, "/") {
			return q, errV2Path
		}
		if !plainV2Value(email, "@") || strings.Count(email, "@") != 1 {
			return q, errV2Value
		}
		q.email, seen["email"] = email, true
	}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		rawKey, rawValue, _ := strings.Cut(pair, "=")
		key, err1 := url.QueryUnescape(rawKey)
		value, err2 := url.QueryUnescape(rawValue)
		if err1 != nil || err2 != nil {
			return q, errV2Query
		}
		key = strings.ToLower(key)
		if seen[key] {
			unknown = errV2Key
			continue
		}
		seen[key] = true
		switch key {
		case "email":
			// An address may also come empty: the server then answers with its own error.
			if !plainV2Value(value, "@") || strings.Count(value, "@") > 1 {
				return q, errV2Value
			}
			q.email = value
		case "protocol":
			if !plainV2Value(value, "") {
				return q, errV2Value
			}
			q.protocol = value
		case "serverlocation":
			if !plainV2Value(value, "") {
				return q, errV2Value
			}
			q.serverLocation = value
		case "hostnamehint":
			if !plainV2Value(value, "") {
				return q, errV2Value
			}
			q.hostNameHint = value
		case "redirectcount":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 || n > 1000 {
				return q, errV2Value
			}
			q.redirectCount = n
		default:
			unknown = errV2Key
		}
	}
	return q, unknown
}

// plainV2Value admits what addresses (RFC 5321 dot-atoms, UTF-8 included) and
// protocol names consist of, and so neither slashes nor question marks nor a
// further layer of percent encoding.
func plainV2Value(s, extra string) bool {
	for _, r := range s {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r > 0x9f && r != 0xfffd:
		case strings.ContainsRune(".-_", r):
		case extra != "" && strings.ContainsRune(extra+"+'!#$&*={}|~^`", r):
		default:
			return false
		}
	}
	return len(s) <= 320
}

// encode writes the query in one canonical form.
func (q v2Request) encode() string {
	var b strings.Builder
	add := func(key, value string) {
		if b.Len() > 0 {
			b.WriteByte('&')
		}
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(url.QueryEscape(value))
	}
	if q.email != "" {
		add("Email", q.email)
	}
	if q.protocol != "" {
		add("Protocol", q.protocol)
	}
	if q.redirectCount > 0 {
		add("RedirectCount", strconv.Itoa(q.redirectCount))
	}
	if q.serverLocation != "" {
		add("ServerLocation", q.serverLocation)
	}
	if q.hostNameHint != "" {
		add("HostNameHint", q.hostNameHint)
	}
	return b.String()
}

// v2Target rebuilds the request target of a bridged V2 request from its checked
// parts, so that nothing unchecked reaches the backend.
func v2Target(method, suffix, query string) (string, error) {
	if method != "GET" && method != "HEAD" {
		return "", errors.New("autodiscover.json: only GET and HEAD")
	}
	q, err := parseV2(suffix, query)
	if err != nil {
		return "", err
	}
	target := "/autodiscover/autodiscover.json"
	if suffix = strings.TrimSuffix(suffix, "/"); suffix != "" {
		target += "/v1.0/" + url.PathEscape(q.email)
		q.email = ""
	}
	if enc := q.encode(); enc != "" {
		target += "?" + enc
	}
	return target, nil
}
