package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/proxy"
)

// domainsPoll is how often the file of the redirect site is looked at. A change is in
// effect when two looks have found the same.
const domainsPoll = 2 * time.Second

// redirectSite finds the host that all domains of a file share.
func redirectSite(domains *directory.Domains, target string) func(name string) *proxy.Host {
	host := &proxy.Host{Name: target, Mode: proxy.Redirect, RedirectTo: target}
	return func(name string) *proxy.Host {
		if domains.Serves(name) {
			return host
		}
		return nil
	}
}

// checkRedirects reads the file of the redirect site, and says what is in it.
func checkRedirects(w io.Writer, cfg *config.Config, fail, warn func(format string, args ...any)) {
	domains, err := directory.OpenDomains(cfg.Path(cfg.Redirects.File), 0, zerolog.Nop())
	if err != nil {
		fail("redirects: %v", err)
		return
	}
	defer domains.Close()
	target := cfg.Redirects.Target
	if skipped := domains.Skipped(); skipped != nil {
		for _, p := range skipped.Problems {
			warn("redirects: %s:%d: left out: %s", skipped.Path, p.Line, p.Text)
		}
		if skipped.Omitted > 0 {
			warn("redirects: %s: and %s more", skipped.Path, count(skipped.Omitted, "line"))
		}
	}
	hosts := map[string]*config.Host{}
	for _, name := range cfg.HostNames() {
		for _, n := range append([]string{name}, cfg.Hosts[name].Aliases...) {
			hosts[n] = cfg.Hosts[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		if domains.Serves(name) {
			warn("redirects: %s is a host of its own, and what the host does counts, not the domain in %s", name, cfg.Redirects.File)
		}
	}
	switch h := hosts[target]; {
	case h == nil && domains.Serves(target):
		fail("redirects: the target is of the redirect site itself: %s → %s; take the domain out of %s, or send clients to another name", target, target, cfg.Redirects.File)
	case h != nil && h.Answer:
		// Clients that come from there ask about an address in their own domain.
		unknown := domains.Len()
		for name := range cfg.Domains {
			if domains.Has(name) {
				unknown--
			}
		}
		if unknown > 0 {
			warn("redirects: %s answers for `domains` alone, which lacks %s of %s: their clients are sent to where nobody knows them",
				target, count(unknown, "domain"), cfg.Redirects.File)
		}
	}
	again := ""
	if n := domains.Duplicates(); n > 0 {
		again = fmt.Sprintf(", %s repeated,", count(n, "line"))
	}
	fmt.Fprintf(w, "redirects: %s: %s%s to %s\n", cfg.Redirects.File, count(domains.Len(), "domain"), again, target)
}
