package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

func newCertList() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list --config FILE [HOST...]", Short: "Show the certificates of a configuration (Get-ExchangeCertificate)",
		Long: `Show the certificates of a configuration, as Get-ExchangeCertificate does: for each
host its services, names, thumbprint, expiry and status. With hosts named, all that
is known of theirs.

The files are read, and for self_signed, acme and autocert what the front door keeps
in its storage, which takes the right to read its keys. IIS stands for what is
served over HTTPS.

Exit status: 0 all are valid, 1 one is missing, expired or not for its host, 2 the
configuration does not load.`,
		Example: `  autodgate cert list --config autodgate.yaml
  autodgate cert list --config autodgate.yaml mail.contoso.com
  autodgate cert list --config autodgate.yaml --json`,
		RunE: func(cmd *cobra.Command, hosts []string) error {
			cfg, report, err := readConfig(file)
			if err != nil {
				fmt.Fprint(cmd.ErrOrStderr(), report.String())
				return err
			}
			named := len(hosts) > 0
			if !named {
				hosts = cfg.HostNames()
			}
			list := []listedCertificate{}
			bad := 0
			for _, name := range hosts {
				h, err := hostOf(cfg, name)
				switch {
				case err != nil:
					return err
				case h.Certificate == nil && named:
					return badUsage(fmt.Errorf("host %s has no certificate", name))
				case h.Certificate == nil:
					continue
				}
				l := listCertificate(cmd.Context(), cfg, name, time.Now())
				if l.Status != certValid && l.Status != certSoon {
					bad++
				}
				list = append(list, l)
			}
			out := cmd.OutOrStdout()
			switch {
			case asJSON:
				e := json.NewEncoder(out)
				e.SetIndent("", "  ")
				err = e.Encode(list)
			case named:
				err = printCertificates(out, list)
			default:
				err = printCertificateTable(out, list)
			}
			if err == nil && bad > 0 {
				err = notFine(fmt.Errorf("%s of %d cannot be used as it is", count(bad, "certificate"), len(list)))
			}
			return err
		},
	}
	configFlag(cmd, &file)
	cmd.Args = cobra.ArbitraryArgs
	cmd.Flags().BoolVar(&asJSON, "json", false, "print it as JSON")
	return cmd
}

// listedCertificate is what cert list says of a host's certificate. Names of fields are Get-ExchangeCertificate's where it
// has them.
type listedCertificate struct {
	Host               string     `json:"host"`
	Source             string     `json:"source"`
	File               string     `json:"file,omitempty"`
	Status             string     `json:"status"`
	Problem            string     `json:"problem,omitempty"`
	Services           []string   `json:"services"`
	VirtualDirectories []string   `json:"virtual_directories,omitempty"`
	Subject            string     `json:"subject,omitempty"`
	Issuer             string     `json:"issuer,omitempty"`
	IsSelfSigned       bool       `json:"is_self_signed"`
	CertificateDomains []string   `json:"certificate_domains,omitempty"`
	Key                string     `json:"key,omitempty"`
	SerialNumber       string     `json:"serial_number,omitempty"`
	Thumbprint         string     `json:"thumbprint,omitempty"`
	SHA256             string     `json:"sha256,omitempty"`
	NotBefore          *time.Time `json:"not_before,omitempty"`
	NotAfter           *time.Time `json:"not_after,omitempty"`
	DaysLeft           *int       `json:"days_left,omitempty"`
	Warnings           []string   `json:"warnings,omitempty"`
}

func listCertificate(ctx context.Context, cfg *config.Config, name string, now time.Time) listedCertificate {
	h := cfg.Hosts[name]
	l := listedCertificate{Host: name, Source: h.Certificate.Source}
	switch {
	case h.Certificate.PFX != "":
		l.Source = "pfx"
	case h.Certificate.Cert != "":
		l.Source = "cert"
	}
	l.Services, l.VirtualDirectories = services(h)
	pair, where, err := storedPair(ctx, cfg, name)
	l.File = where
	switch {
	case errors.Is(err, errNoneYet):
		l.Status, l.Problem = certMissing, "there is none yet: serve gets it when it runs"
		return l
	case err != nil:
		l.Status, l.Problem = certUnusable, err.Error()
		return l
	}
	leaf := pair.Chain[0]
	names := append([]string{name}, h.Aliases...)
	l.Status = certStatus(pair, names, now)
	l.Warnings = pair.Inspect(names, now)
	if l.Status != certValid && l.Status != certSoon && len(l.Warnings) > 0 {
		l.Problem = l.Warnings[0]
	}
	l.Subject, l.Issuer = leaf.Subject.String(), leaf.Issuer.String()
	l.IsSelfSigned = l.Subject == l.Issuer
	l.CertificateDomains = leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		l.CertificateDomains = append(l.CertificateDomains, ip.String())
	}
	l.Key, l.SerialNumber = describeKey(leaf), fmt.Sprintf("%X", leaf.SerialNumber)
	l.Thumbprint, l.SHA256 = tlsconf.Thumbprint(leaf), tlsconf.Fingerprint(leaf)
	l.NotBefore, l.NotAfter = &leaf.NotBefore, &leaf.NotAfter
	days := int(leaf.NotAfter.Sub(now) / (24 * time.Hour))
	l.DaysLeft = &days
	return l
}

// services are those of Enable-ExchangeCertificate that a host's certificate is shown for, and what of IIS is published.
func services(h *config.Host) (services, directories []string) {
	services = []string{"IIS"}
	if h.Mail != nil {
		for _, s := range []struct {
			name string
			keys []string
		}{{"IMAP", []string{"imaps", "imap"}}, {"POP", []string{"pop3s", "pop3"}}, {"SMTP", []string{"submissions", "submission"}}} {
			for _, key := range s.keys {
				if p := h.Mail.Protocol(key); p != nil && p.Mode == "bridge" {
					services = append(services, s.name)
					break
				}
			}
		}
	}
	switch h.Mode() {
	case config.ModeSite:
		for _, d := range virtualDirectories(h) {
			switch d.Access {
			case proxy.Publish:
				directories = append(directories, d.Name)
			case proxy.Internal:
				directories = append(directories, d.Name+" (internal)")
			}
		}
	case config.ModePassthrough:
		services = services[1:] // HTTPS is the servers' own
	default:
		directories = []string{"autodiscover"}
	}
	return services, directories
}

func describeKey(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", key.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return c.PublicKeyAlgorithm.String()
}

func printCertificateTable(out io.Writer, list []listedCertificate) error {
	if len(list) == 0 {
		fmt.Fprintln(out, "no host has a certificate")
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tSTATUS\tEXPIRES\tDAYS\tSERVICES\tTHUMBPRINT\tNAMES")
	for _, l := range list {
		expires, days, thumbprint, names := "-", "-", "-", "-"
		if l.NotAfter != nil {
			expires, days = l.NotAfter.UTC().Format(time.DateOnly), fmt.Sprint(*l.DaysLeft)
			thumbprint, names = l.Thumbprint, strings.Join(l.CertificateDomains, ", ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Host, l.Status, expires, days, strings.Join(l.Services, " "), thumbprint, names)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, l := range list {
		if l.Problem != "" {
			fmt.Fprintf(out, "error: host %s: %s\n", l.Host, l.Problem)
		}
	}
	return nil
}

func printCertificates(out io.Writer, list []listedCertificate) error {
	for i, l := range list {
		if i > 0 {
			fmt.Fprintln(out)
		}
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		row := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "%s\t%s\n", name, value)
			}
		}
		row("Host", l.Host)
		row("Status", l.Status)
		row("Problem", l.Problem)
		row("Services", strings.Join(l.Services, ", "))
		row("Virtual directories", strings.Join(l.VirtualDirectories, ", "))
		if l.NotAfter != nil {
			row("Subject", l.Subject)
			row("Names", strings.Join(l.CertificateDomains, ", "))
			row("Issuer", l.Issuer)
			row("Key", l.Key)
			row("Serial number", l.SerialNumber)
			row("Thumbprint", l.Thumbprint)
			row("SHA-256", l.SHA256)
			row("Not before", l.NotBefore.UTC().Format(time.DateTime))
			row("Not after", fmt.Sprintf("%s (%d days left)", l.NotAfter.UTC().Format(time.DateTime), *l.DaysLeft))
		}
		row("Source", strings.TrimSpace(l.Source+" "+l.File))
		for _, text := range l.Warnings {
			if text != l.Problem {
				row("Warning", text)
			}
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}
