package throttle

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// Name returns the name under which a login name is counted where no directory
// tells whose it is: CONTOSO\pat, pat@contoso.com and PAT are pat. Active Directory
// compares names without regard to letter case, width and accents, and so does
// this: otherwise each spelling would have a count of its own. Users of one name in
// two domains count together, which costs them tries but never gives any away.
func Name(login string) string {
	if i := strings.LastIndexAny(login, `\/`); i >= 0 {
		login = login[i+1:]
	}
	login, _, _ = strings.Cut(login, "@")
	if plain := strings.IndexFunc(login, func(r rune) bool { return r >= unicode.MaxASCII }) < 0; !plain {
		decomposed := norm.NFKD.String(strings.ToValidUTF8(login, "\ufffd"))
		login = strings.Map(func(r rune) rune {
			if unicode.In(r, unicode.Mn, unicode.Cf) {
				return -1
			}
			return r
		}, decomposed)
	}
	return strings.TrimSpace(strings.ToLower(strings.ToUpper(login)))
}
