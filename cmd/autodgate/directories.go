package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
)

// virtualDirectories merges what the config says over the preset.
func virtualDirectories(h *config.Host) []proxy.VirtualDirectory {
	dirs := proxy.Preset()
	for _, p := range h.Paths() {
		i := slices.IndexFunc(dirs, func(d proxy.VirtualDirectory) bool { return d.Name == p.Name })
		if i < 0 || p.Name == "" {
			// A path of the config's own, a directory outside the preset, or one that
			// the preset has under another's name (rpcwithcert): it gets its own entry.
			d := proxy.CustomDirectory(p.Prefix, proxy.Publish)
			for j := range dirs {
				if k := slices.Index(dirs[j].Prefixes, p.Prefix); k >= 0 {
					d = dirs[j]
					d.Prefixes = []string{p.Prefix}
					dirs[j].Prefixes = slices.Delete(slices.Clone(dirs[j].Prefixes), k, k+1)
				}
			}
			if d.Name = p.Name; d.Name == "" {
				d.Name = p.Prefix
			}
			dirs = append(dirs, d)
			i = len(dirs) - 1
		}
		switch p.Access {
		case "publish":
			dirs[i].Access = proxy.Publish
		case "internal":
			dirs[i].Access = proxy.Internal
		case "deny":
			dirs[i].Access = proxy.Deny
		}
		dirs[i].Upgrade, dirs[i].BasicOnly, dirs[i].MaxBody = p.Upgrade, p.BasicOnly, int64(p.MaxBody)
		if len(p.Methods) > 0 {
			dirs[i].Methods = p.Methods
		}
		if p.RequestTimeout > 0 {
			dirs[i].RequestIdle = p.RequestTimeout
		}
		if p.ResponseTimeout > 0 {
			dirs[i].ResponseIdle = p.ResponseTimeout
		}
	}
	return dirs
}

// printDirectories shows what the preset and the config make of each bridged host,
// as the traffic path has it.
func printDirectories(out io.Writer, cfg *config.Config) error {
	for _, name := range cfg.HostNames() {
		h := cfg.Hosts[name]
		if h.Mode() != config.ModeSite {
			continue
		}
		fmt.Fprintf(out, "%s, site %s\n", name, h.Site)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "  directory\tpath\taccess\tclient silent\tserver silent\tmax_body\tmethods")
		dirs := virtualDirectories(h)
		slices.SortStableFunc(dirs, func(a, b proxy.VirtualDirectory) int { return int(b.Access) - int(a.Access) })
		for _, d := range dirs {
			paths := strings.Join(d.Prefixes, " ")
			if d.Access == proxy.Deny {
				fmt.Fprintf(w, "  %s\t%s\tdeny: 404\n", d.Name, paths)
				continue
			}
			access, methods := "publish", "all but TRACE and CONNECT"
			if d.Access == proxy.Internal {
				access = "internal"
			}
			if d.Methods != nil {
				methods = strings.Join(d.Methods, " ")
			}
			if d.Upgrade {
				methods += "; upgrade"
			}
			if d.BasicOnly {
				methods += "; basic_only"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", d.Name, paths, access, minutes(d.RequestIdle), minutes(d.ResponseIdle), config.Size(d.MaxBody), methods)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(out, "  everything else: 404")
	}
	return nil
}

// minutes writes a duration as the config does: 62m, not 1h2m0s.
func minutes(d time.Duration) string {
	if d >= time.Minute && d%time.Minute == 0 {
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}
