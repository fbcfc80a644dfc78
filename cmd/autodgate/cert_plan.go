package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

func newCertPlan() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "plan --config FILE", Short: "Say which names, DNS records and certificate a configuration needs",
		Long: `Work out from a configuration which names clients use, which of them need a
certificate and where, which DNS records lead to them, and the cheapest
certificate that covers them; beside it the other ways, and what each costs.
Nothing is looked up. cert check and check --live say what there is.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, report, err := readConfig(file)
			if err != nil {
				fmt.Fprint(cmd.ErrOrStderr(), report.String())
				return err
			}
			plan := deployment(cfg).Plan()
			if asJSON {
				return printJSON(cmd.OutOrStdout(), plan)
			}
			return printPlan(cmd.OutOrStdout(), plan)
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the plan as JSON")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// deployment takes the names out of a configuration.
func deployment(cfg *config.Config) tlsconf.Deployment {
	var d tlsconf.Deployment
	hostOf := func(text string) string {
		u, err := url.Parse(text)
		if err != nil {
			return ""
		}
		return u.Hostname()
	}
	for _, name := range cfg.HostNames() {
		h := cfg.Hosts[name]
		ns := tlsconf.Namespace{Host: name, Aliases: h.Aliases, Mode: string(h.Mode()), Site: h.Site, Redirect: h.Redirect}
		switch c := h.Certificate; {
		case c == nil:
		case c.Source != "":
			ns.Certificate = c.Source
		default:
			ns.Certificate = "files"
		}
		switch h.Mode() {
		case config.ModePassthrough:
			ns.Site = h.Passthrough.Site
			ns.Services = []string{"everything"}
		case config.ModeSite:
			for _, dir := range virtualDirectories(h) {
				if dir.Access == proxy.Publish && strings.Trim(dir.Name, "/") != "" {
					ns.Services = append(ns.Services, dir.Name)
				}
			}
		default:
			ns.Services = []string{"autodiscover"}
		}
		for _, key := range config.MailKeys() {
			if p := h.Mail.Protocol(key); p != nil {
				ns.Services = append(ns.Services, key)
				if p.Mode == "passthrough" && h.Mode() != config.ModePassthrough {
					ns.Passed = append(ns.Passed, key)
				}
			}
		}
		d.Namespaces = append(d.Namespaces, ns)
	}
	for _, name := range cfg.DomainNames() {
		m := cfg.Domains[name]
		domain := tlsconf.MailDomain{Name: name, ExternalHost: hostOf(m.ExternalURL), InternalHost: hostOf(m.InternalURL), RedirectHost: hostOf(m.RedirectURL)}
		if _, at, ok := strings.Cut(m.RedirectAddr, "@"); ok && domain.RedirectHost == "" {
			domain.RedirectHost = "autodiscover." + at
		}
		d.Domains = append(d.Domains, domain)
	}
	for _, name := range cfg.SiteNames() {
		sc := cfg.Sites[name]
		site := tlsconf.ServerSite{Name: name, ExternalHost: hostOf(sc.ExternalURL), Exchange: sc.Exchange, Protection: sc.Protection() != "off"}
		for _, s := range sc.Servers {
			site.Servers = append(site.Servers, s.Host())
		}
		d.Sites = append(d.Sites, site)
	}
	if cfg.Redirects != nil {
		d.Redirected = cfg.Redirects.Target
	}
	return d
}

// printPlan writes a plan for people.
func printPlan(out io.Writer, p tlsconf.Plan) error {
	places := map[tlsconf.Place]string{
		tlsconf.Here: "here", tlsconf.OnServers: "on the servers", tlsconf.Nowhere: "none needed", tlsconf.Elsewhere: "not ours",
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "Namespace model:")
	for _, m := range p.Models {
		fmt.Fprintf(w, "  %s: %s\n", m.Name, m.Tradeoff)
	}
	fmt.Fprintln(w, "\nNames that clients use:")
	fmt.Fprintln(w, "  name\tcertificate\twhy")
	for _, n := range p.Names {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", n.Name, places[n.Place], strings.Join(n.Reasons, "; "))
		if len(n.Services) > 0 {
			fmt.Fprintf(w, "  \t\tfor %s\n", strings.Join(n.Services, ", "))
		}
	}
	fmt.Fprintln(w, "\nDNS records:")
	for _, r := range p.Records {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", r.Name, r.Type, r.Value, r.Why)
	}
	fmt.Fprintf(w, "\nCertificate: %s\n", p.Recommended.Kind)
	fmt.Fprintf(w, "  %s\n", p.Recommended.Why)
	for _, names := range p.Recommended.Certificates {
		fmt.Fprintf(w, "  common name %s, for %s\n", names[0], strings.Join(names, ", "))
	}
	limits := func(o tlsconf.Option) {
		for _, l := range o.Limits {
			fmt.Fprintf(w, "    %s: %s; %s\n", l.Client, l.Limit, l.Do)
		}
	}
	limits(p.Recommended)
	if len(p.Others) > 0 {
		fmt.Fprintln(w, "\nOther ways:")
		for _, o := range p.Others {
			var each []string
			for _, names := range o.Certificates {
				each = append(each, strings.Join(names, ", "))
			}
			fmt.Fprintf(w, "  %s", o.Kind)
			if len(each) > 0 {
				fmt.Fprintf(w, " (%s)", strings.Join(each, " | "))
			}
			fmt.Fprintf(w, ": %s\n", o.Why)
			limits(o)
		}
	}
	if len(p.Recommended.Certificates) > 0 {
		fmt.Fprintln(w, "\nWhen choosing a CA:")
		for _, h := range p.Hints {
			fmt.Fprintf(w, "  %s\n", h)
		}
	}
	return w.Flush()
}
