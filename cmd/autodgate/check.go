package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/directory"
	"github.com/autodgate/autodgate/tlsconf"
)

func newCheck() *cobra.Command {
	var file string
	var directories, live bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "check --config FILE", Short: "Validate a configuration and the files it names",
		Long: `Validate a configuration: every problem at once, each with its place and what
would be right. Then open the files it names: certificates and keys, CA
certificates, mailboxes, the domains of the redirect site; and say why clients
would refuse a certificate.

With --directories, also print what every bridged host publishes: its virtual
directories with their paths, who may reach them, their methods, how long client
and server may be silent, and the largest request body. What is not listed is 404.

With --live, also look at what it leads to, with a line for each finding: every
server (connection, TLS, trust, version, health pages, and where Extended
Protection is on whether it has the certificate that clients see), the hosts'
certificates and addresses, the servers outside that clients are sent to, and the
servers of an LDAP directory, each with a bind and a count of its mailboxes. It
needs no login of a user and changes nothing.

Exit status: 0 all is fine, 1 a file or what --live looks at is not, 2 the configuration does not load.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if timeout <= 0 {
				return badUsage(fmt.Errorf("--timeout %s: there has to be some time", timeout))
			}
			cfg, report, err := readConfig(file)
			fmt.Fprint(out, report.String())
			if err != nil {
				return err
			}
			problems, warnings := checkFiles(out, cfg, !live)
			if problems > 0 && !live {
				return notFine(fmt.Errorf("%s loads, but %s it names cannot be used", file, count(problems, "file")))
			}
			if live {
				p, w := checkLive(cmd.Context(), out, cfg, liveOptions{
					Dial: (&net.Dialer{}).DialContext, Lookup: net.DefaultResolver.LookupHost, LookupSRV: lookupSRV, Timeout: timeout,
				})
				problems, warnings = problems+p, warnings+w
				if problems > 0 {
					return notFine(fmt.Errorf("%s loads, but not all is fine: %s", file, count(problems, "error")))
				}
			}
			if directories {
				if err := printDirectories(out, cfg); err != nil {
					return err
				}
			}
			fine := "fine"
			if n := len(report.Warnings()) + warnings; n > 0 {
				fine += ", with " + count(n, "warning")
			}
			fmt.Fprintf(out, "%s: %s: %s, %s, %s\n", file, fine, count(len(cfg.Hosts), "host"), count(len(cfg.Sites), "site"), count(len(cfg.Domains), "domain"))
			return nil
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&live, "live", false, "also look at the servers, the certificates, DNS and the servers outside")
	cmd.Flags().DurationVar(&timeout, "timeout", 30*time.Second, "with --live: when to stop looking")
	cmd.Flags().BoolVar(&directories, "directories", false, "print the virtual directories of each bridged host")
	return cmd
}

// checkFiles opens what the configuration names, prints what is wrong or doubtful,
// and returns how much that is.
// Without doubts, those about certificates that can be used are left out.
func checkFiles(w io.Writer, cfg *config.Config, doubts bool) (problems, warnings int) {
	fail := func(format string, args ...any) {
		problems++
		fmt.Fprintf(w, "error: "+format+"\n", args...)
	}
	silent := &frontDoor{log: zerolog.Nop()}
	var err error
	if silent.storage, err = openStorage(cfg, silent.log); err != nil {
		fail("%v", err)
		return problems, warnings // what follows may be in it
	}
	defer silent.storage.Close()
	if _, err := acmeSettings(cfg); err != nil {
		fail("certificates.acme: %v", err)
	}
	for _, name := range cfg.HostNames() {
		h := cfg.Hosts[name]
		if _, err := silent.buildMail(cfg, name, nil); err != nil {
			fail("%v", err)
		}
		if h.TLS.ClientCA != "" {
			if _, err := tlsconf.LoadRoots(cfg.Path(h.TLS.ClientCA)); err != nil {
				fail("host %s: client_ca: %v", name, err)
			}
		}
		if h.Certificate == nil || h.Certificate.Source != "" {
			continue
		}
		cert, found, err := loadCertificate(cfg, h.Certificate, append([]string{name}, h.Aliases...))
		if err != nil {
			fail("host %s: %v", name, err)
		}
		if !doubts {
			found = nil
		} else if err == nil {
			found = append(found, refusals(cert, found)...)
		}
		for _, text := range found {
			warnings++
			fmt.Fprintf(w, "warning: host %s: %s\n", name, text)
		}
	}
	for _, name := range cfg.SiteNames() {
		_, opened, err := silent.buildSite(cfg, name)
		if err != nil {
			fail("%v", err)
		}
		if opened != nil {
			_ = opened.Close()
		}
	}
	if cfg.Redirects != nil {
		checkRedirects(w, cfg, fail, func(format string, args ...any) {
			warnings++
			fmt.Fprintf(w, "warning: "+format+"\n", args...)
		})
	}
	if cfg.Mailboxes != nil && cfg.Mailboxes.File != "" {
		// The directory warns through its log: show that as lines of ours.
		log := zerolog.New(zerolog.ConsoleWriter{Out: w, NoColor: true, PartsOrder: []string{"level", "message"}}).Level(zerolog.WarnLevel)
		dir, err := directory.Open(cfg.Path(cfg.Mailboxes.File), log, directory.PollInterval(-1))
		if err != nil {
			fail("mailboxes: %s", strings.TrimSpace(err.Error()))
		} else if err := dir.Close(); err != nil {
			fail("mailboxes: %v", err)
		}
	}
	if cfg.Mailboxes != nil && cfg.Mailboxes.LDAP != nil {
		if dir, err := silent.openLDAP(cfg); err != nil {
			fail("%v", err)
		} else {
			_ = dir.Close()
		}
		if file := cfg.Mailboxes.LDAP.PasswordFile; file != "" {
			if _, err := os.ReadFile(cfg.Path(file)); err != nil {
				fail("mailboxes.ldap: password_file: %v", err)
			}
		}
	}
	return problems, warnings
}

// refusals is why clients may refuse a certificate, beside what loading it has found already. Nobody is asked about
// revocation; --live does that.
func refusals(cert *tls.Certificate, known []string) (out []string) {
	for _, f := range tlsconf.Examine(context.Background(), parsedChain(cert), tlsconf.ExamineOptions{}) {
		switch f.Reason {
		case tlsconf.ReasonName: // loading has held it against the names
			continue
		case tlsconf.ReasonExpiry:
			if time.Now().After(cert.Leaf.NotAfter) || time.Now().Before(cert.Leaf.NotBefore) {
				continue // likewise
			}
		case tlsconf.ReasonIssuer:
			if slices.ContainsFunc(known, func(text string) bool { return strings.Contains(text, "issuer") }) {
				continue
			}
		}
		if f.Severity != tlsconf.Fine {
			out = append(out, "the certificate: "+f.String())
		}
	}
	return out
}
