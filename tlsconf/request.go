package tlsconf

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// HostNames puts names for a certificate into the form it carries them in: lower case, internationalised ones as
// A-labels, without a trailing dot, none twice. A wildcard may be the whole first label; IP addresses are names too. The
// error says which name is none.
func HostNames(names ...string) ([]string, error) {
	var out []string
	for _, given := range names {
		n := strings.ToLower(strings.TrimSuffix(given, "."))
		if ip := net.ParseIP(n); ip != nil {
			n = ip.String()
		} else {
			rest, wild := strings.CutPrefix(n, "*.")
			ascii, err := idna.Lookup.ToASCII(rest)
			switch {
			case strings.Contains(n, "://"):
				return nil, fmt.Errorf("%q is not a host name: it is given alone, without %s and path", given, n[:strings.Index(n, "://")+3])
			case err != nil || rest == "" || len(ascii) > 253 || strings.ContainsAny(ascii, "/\\@:*\x00 \t\r\n") || strings.HasPrefix(ascii, "."):
				return nil, fmt.Errorf("%q is not a host name", given)
			case wild && !strings.Contains(rest, "."):
				return nil, fmt.Errorf("%q is not a host name a certificate may carry: a wildcard stands below a domain, as in *.contoso.com", given)
			}
			if n = ascii; wild {
				n = "*." + ascii
			}
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}
