package directory

import (
	"strings"
	"testing"
)

func TestNormalizeAddress(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		got, err := NormalizeAddress(in)
		if err != nil || got != want {
			t.Errorf("NormalizeAddress(%q) = %q, %v; want %q", in, got, err, want)
		}
		if again, err := NormalizeAddress(got); err != nil || again != got {
			t.Errorf("not idempotent: %q becomes %q, %v", got, again, err)
		}
	}
	f("Pat@Contoso.COM", "pat@contoso.com")
	f("o'brien+tag@contoso.com", "o'brien+tag@contoso.com")
	f("r&d@contoso.com", "r&d@contoso.com")
	f("pät@Bücher.example", "pät@xn--bcher-kva.example")
	f("pa\u0308t@bücher.example", "pät@xn--bcher-kva.example")
	f("pät@xn--BCHER-kva.example", "pät@xn--bcher-kva.example")
	f("PÄT@faß.example", "pät@xn--fa-hia.example")
	f("0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77@contoso.com", "0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77@contoso.com")
}

func TestNormalizeAddressRefuses(t *testing.T) {
	for _, in := range []string{
		"", "pat", "@contoso.com", "pat@", "pat@contoso.com.", "pat@con toso.com", "pat@contoso..com",
		"pat@[192.0.2.1]", "pat@-contoso.com", "pat@contoso.com\r\nX-Evil: 1", "pat\r@contoso.com", "pat\x00@contoso.com",
		`"</DisplayName><x>"@contoso.com`, "<b>@contoso.com", "*)(objectClass=*@contoso.com", `p\2a@contoso.com`,
		"a@b@contoso.com", ".pat@contoso.com", "pat.@contoso.com", "p..t@contoso.com", "pat @contoso.com",
		"p＊t@contoso.com", "p（t@contoso.com", "p⑴t@contoso.com", "p\u202et@contoso.com", "p\ufffdt@contoso.com", "p\xfft@contoso.com",
		strings.Repeat("a", 65) + "@contoso.com", "a@" + strings.Repeat("a.", 200) + "com",
	} {
		got, err := NormalizeAddress(in)
		if err == nil {
			t.Errorf("NormalizeAddress(%q) = %q; want an error", in, got)
		} else if len(in) > 3 && strings.Contains(err.Error(), in) {
			t.Errorf("the error repeats the address: %v", err)
		}
	}
}

func FuzzNormalizeAddress(f *testing.F) {
	for _, s := range []string{"pat@contoso.com", "pät@bücher.example", "İ@contoso.com", "ﬁ@contoso.com", "a@faß.de", "Å@x", "ß@X.y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := NormalizeAddress(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(a, "\r\n\x00<>\"*()\\ \t") {
			t.Fatalf("%q normalises to %q, which is not safe", s, a)
		}
		b, err := NormalizeAddress(a)
		if err != nil || a != b {
			t.Fatalf("%q becomes %q and then %q (%v)", s, a, b, err)
		}
	})
}
