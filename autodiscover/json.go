package autodiscover

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/autodgate/autodgate/directory"
)

// maxRedirectCount is how many redirects a V2 request may have followed: as many as
// a POX client follows.
const maxRedirectCount = 10

// v2Protocols are the protocols of Autodiscover V2, as they are written in answers,
// and where they are on a server.
var v2Protocols = []struct{ name, path string }{
	{"ActiveSync", activeSyncPath},
	{"AutodiscoverV1", poxPath},
	{"Ews", "/EWS/Exchange.asmx"},
	{"Rest", "/api"},
}

// v2Error is an error document. There is no public specification of V2: the names
// MissingProtocol and MandatoryParameterMissing are those that other servers send,
// InvalidProtocol is that of Exchange on premises, and the rest is ours.
type v2Error struct {
	status  int
	Code    string `json:"ErrorCode"`
	Message string `json:"ErrorMessage"`
}

// Error returns the message. It is fixed text.
func (e *v2Error) Error() string { return e.Message }

var (
	errV2Malformed  = &v2Error{http.StatusBadRequest, "InvalidRequest", "The request is not valid."}
	errV2Redirects  = &v2Error{http.StatusBadRequest, "InvalidRequest", "The request has been redirected too often."}
	errV2NoEmail    = &v2Error{http.StatusBadRequest, "MandatoryParameterMissing", "Email is a mandatory parameter."}
	errV2NoProtocol = &v2Error{http.StatusBadRequest, "MissingProtocol", "Protocol is a mandatory parameter."}
	errV2Protocol   = &v2Error{http.StatusBadRequest, "InvalidProtocol", "The given protocol value is invalid. Supported: ActiveSync,AutodiscoverV1,Ews,Rest."}
	errV2Path       = &v2Error{http.StatusNotFound, "NotFound", "There is nothing at this path."}
	errV2NotServed  = &v2Error{http.StatusNotFound, "UserNotFound", "The domain of the address is not served."}
	errV2Config     = &v2Error{http.StatusInternalServerError, "InternalServerError", "The domain of the address is not configured."}
)

// v2Answer is the document of a good answer.
type v2Answer struct {
	Protocol string `json:"Protocol"`
	URL      string `json:"Url"`
}

// v2Request is a V2 request, checked.
type v2Request struct {
	address   string // normalised
	inPath    bool   // the address is a part of the path
	protocol  int    // index in v2Protocols
	redirects int
}

// v2 answers Autodiscover V2: one question, without a login, about one protocol. It
// goes by the domain alone and never asks the directory, so that nothing tells an
// address that exists from one that does not, not even the time it takes.
func (h *Handler) v2(r *http.Request, rest string) reply {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return notAllowed("GET a document", "GET, HEAD")
	}
	source := clientAddr(r)
	q, err := parseV2(rest, r.URL.RawQuery)
	if err != nil {
		h.log.Debug().Stringer("source", source).AnErr("reason", err).Msg("autodiscover: refused")
		return v2ErrorReply(err)
	}
	address, d, refusal := h.v2Domain(q.address)
	switch {
	case refusal != nil:
		return v2ErrorReply(refusal)
	case d == nil:
		return v2Redirect(q, address, "autodiscover."+domainPart(address))
	case d.RedirectURL != "":
		target, err := url.Parse(d.RedirectURL)
		if err != nil || sameHost(target, r.Host) {
			return v2ErrorReply(errV2Config)
		}
		return v2Redirect(q, address, target.Host)
	}
	protocol := v2Protocols[q.protocol]
	s := settings{external: d.ExternalURL, internal: d.InternalURL, inside: h.client(r, source).inside}
	base := s.near()
	if asked := (&url.URL{Host: r.Host}).Hostname(); protocol.path == poxPath && h.hosts[strings.ToLower(asked)] {
		base = "https://" + strings.ToLower(asked)
	}
	return jsonReply(http.StatusOK, v2Answer{protocol.name, base + protocol.path})
}

// v2Domain follows redirects by address to the domain that says more: where the
// services are, or an URL. It is nil when that domain is none of ours.
func (h *Handler) v2Domain(address string) (string, *domain, *v2Error) {
	d := h.domainOf(address)
	if d == nil {
		return "", nil, errV2NotServed
	}
	for range len(h.domains) {
		switch {
		case d == nil:
			return address, nil, nil
		case d.unusable != nil:
			return "", nil, errV2Config
		case d.RedirectAddr == "" || d.Action != ActionRedirect:
			return address, d, nil
		}
		address = d.redirectAddress(address)
		d = h.domainOf(address)
	}
	if d == nil {
		return address, nil, nil
	}
	return "", nil, errV2Config // a circle
}

// parseV2 reads what follows v2Path, and the query. Keys and protocols are compared
// without regard to letter case: clients spell them in many ways. Each known key
// counts once; unknown ones are ignored, as Exchange does, as long as they hold
// nothing that could be a path or an address to another reader: attacks on servers
// behind front doors lived from that.
func parseV2(rest, query string) (v2Request, *v2Error) {
	q := v2Request{protocol: -1}
	email, protocol := "", ""
	seen := map[string]bool{}
	if rest = strings.TrimSuffix(rest, "/"); rest != "" {
		const version = "/v1.0"
		tail, ok := cutPath(rest, version)
		if !ok {
			return q, errV2Path
		}
		email = strings.TrimPrefix(tail, "/")
		seen["email"], q.inPath = true, true
	}
	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		rawKey, rawValue, _ := strings.Cut(pair, "=")
		key, err1 := url.PathUnescape(rawKey)
		// A plus is a plus: addresses have them, and nothing here has spaces.
		value, err2 := url.PathUnescape(rawValue)
		if err1 != nil || err2 != nil {
			return q, errV2Malformed
		}
		key = strings.ToLower(key)
		if seen[key] {
			return q, errV2Malformed
		}
		seen[key] = true
		switch key {
		case "email":
			email = value
		case "protocol":
			protocol = value
		case "redirectcount":
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return q, errV2Malformed
			}
			if n > maxRedirectCount {
				return q, errV2Redirects
			}
			q.redirects = int(n)
		default:
			if strings.ContainsAny(key+value, `@/\?%`) {
				return q, errV2Malformed
			}
		}
	}
	if email == "" {
		return q, errV2NoEmail
	}
	// Characters that may stand before the @ but that no mailbox of Exchange has
	// there, and that mean something in an URL.
	var err error
	if q.address, err = directory.NormalizeAddress(email); err != nil || strings.ContainsAny(email, `/\?%#&=`) {
		return q, errV2Malformed
	}
	if protocol == "" {
		return q, errV2NoProtocol
	}
	for i, p := range v2Protocols {
		if strings.EqualFold(p.name, protocol) {
			q.protocol = i
			return q, nil
		}
	}
	return q, errV2Protocol
}

// v2Redirect sends the same request to another host, which comes from the
// configuration.
func v2Redirect(q v2Request, address, host string) reply {
	if q.redirects == maxRedirectCount {
		return v2ErrorReply(errV2Redirects)
	}
	target := "https://" + host + v2Path
	if q.inPath {
		target += "/v1.0/" + url.PathEscape(address) + "?"
	} else {
		target += "?Email=" + url.QueryEscape(address) + "&"
	}
	return found(target + "Protocol=" + v2Protocols[q.protocol].name + "&RedirectCount=" + strconv.Itoa(q.redirects+1))
}

// v2ErrorReply has the header by which Exchange marks error documents.
func v2ErrorReply(err *v2Error) reply {
	a := jsonReply(err.status, err)
	a.header["jsonerror"] = []string{"true"}
	return a
}

func jsonReply(status int, v any) reply {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // strings are JSON
	}
	return reply{status, http.Header{
		"Content-Type":  {"application/json; charset=utf-8"},
		"Cache-Control": {"private"},
	}, bytes.TrimSuffix(b.Bytes(), []byte("\n"))}
}
