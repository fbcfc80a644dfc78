package main

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/proxy"
	"github.com/autodgate/autodgate/tlsconf"
)

// certCheck is what cert check is asked.
type certCheck struct {
	names    []string
	ca       string
	startTLS string
	crls     []string
	timeout  time.Duration
	offline  bool
	json     bool
}

func newCertCheck() *cobra.Command {
	var o certCheck
	cmd := &cobra.Command{
		Use: "check FILE|HOST:PORT", Short: "Say whether clients accept a certificate, and why not",
		Long: `Look at a certificate in a file (PEM, DER or PKCS #7), or at the one that a server
shows, and say of each of the four reasons why clients refuse one whether it is
the case: the issuer, revocation, expiry, the name. After them what else clients
dislike: an incomplete chain, weak keys and signatures, usage, a life that is too
long, and what clients of old cannot do with it.

Revocation is asked for at the certificate's own OCSP responder and CRL, after what
the server itself has sent along (stapling). No answer is no reason by itself.

Exit status: 0 fine, 1 not fine or not to be had, 2 wrong usage.`,
		Example: `  autodgate cert check mail.pem --name mail.contoso.com --name autodiscover.contoso.com
  autodgate cert check mail.contoso.com:443
  autodgate cert check mail.contoso.com:587 --starttls smtp`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("one certificate at a time: give a FILE or a HOST:PORT")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), args[0])
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.names, "name", nil, "a name that clients use, may be repeated; for a server the first is sent as SNI (default its host)")
	f.StringVar(&o.ca, "ca", "", "CA certificates (PEM) that are trusted instead of the system's")
	f.StringVar(&o.startTLS, "starttls", "", "speak imap, pop3 or smtp in clear first")
	f.StringSliceVar(&o.crls, "crl", nil, "a certificate revocation list (DER or PEM), may be repeated")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "for the server, and for each answer about revocation")
	f.BoolVar(&o.offline, "offline", false, "ask nobody about revocation")
	f.BoolVar(&o.json, "json", false, "print the findings as JSON")
	return cmd
}

// checked is the result of cert check, as --json prints it.
type checked struct {
	Certificate string                `json:"certificate"`
	Subject     string                `json:"subject"`
	Issuer      string                `json:"issuer"`
	Names       []string              `json:"names"`
	Thumbprint  string                `json:"thumbprint"`
	NotAfter    time.Time             `json:"not_after"`
	Fine        bool                  `json:"fine"`
	Findings    []tlsconf.Finding     `json:"findings"`
	Clients     []tlsconf.ClientLimit `json:"clients"`
}

func (o *certCheck) run(ctx context.Context, w io.Writer, what string) error {
	if o.startTLS != "" && !slices.Contains(tlsconf.StartTLSProtocols(), o.startTLS) {
		return badUsage(fmt.Errorf("--starttls %s: there are %s", o.startTLS, strings.Join(tlsconf.StartTLSProtocols(), ", ")))
	}
	if o.timeout <= 0 {
		return badUsage(fmt.Errorf("--timeout %s: there has to be some time", o.timeout))
	}
	names, err := tlsconf.HostNames(o.names...)
	if err != nil {
		return badUsage(fmt.Errorf("--name: %w", err))
	}
	options := tlsconf.ExamineOptions{Names: names}
	if o.ca != "" {
		if options.Roots, err = tlsconf.LoadRoots(o.ca); err != nil {
			return notFine(err)
		}
	}
	revocations := &tlsconf.Revocations{Timeout: o.timeout}
	for _, file := range o.crls {
		list, err := tlsconf.LoadCRL(file)
		if err != nil {
			return notFine(err)
		}
		revocations.Lists = append(revocations.Lists, list)
	}
	if revocations.Offline = o.offline; !o.offline || len(o.crls) > 0 {
		options.Revocations = revocations
	}
	chain, err := o.chain(ctx, what, &options)
	var usage *exitError
	switch {
	case errors.As(err, &usage):
		return err
	case err != nil:
		return notFine(err)
	}
	leaf := chain[0]
	c := checked{
		Certificate: what, Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Names: leaf.DNSNames,
		Thumbprint: tlsconf.Thumbprint(leaf), NotAfter: leaf.NotAfter.UTC(),
		Findings: tlsconf.Examine(ctx, chain, options),
	}
	for _, ip := range leaf.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	circumstances := tlsconf.CircumstancesOf(leaf)
	if len(names) > 0 {
		circumstances.Principal = names[0]
	}
	if o.startTLS == "imap" || o.startTLS == "pop3" || strings.HasSuffix(what, ":993") || strings.HasSuffix(what, ":995") {
		circumstances.Mail = options.Names
	}
	circumstances.PrivateCA = o.ca != ""
	c.Clients = circumstances.Limits()
	errorCount, warningCount := 0, 0
	for _, f := range c.Findings {
		switch f.Severity {
		case tlsconf.Failure:
			errorCount++
		case tlsconf.Warning:
			warningCount++
		}
	}
	c.Fine = errorCount == 0
	if o.json {
		if err := printJSON(w, c); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(w, "%s: %q, issued by %q, %s, %s\n", what, cmp.Or(leaf.Subject.CommonName, strings.Join(c.Names, ", "), "no name"), cmp.Or(leaf.Issuer.CommonName, c.Issuer), keyKind(leaf), about(leaf))
		for _, f := range c.Findings {
			fmt.Fprintf(w, "%s: %s\n", f.Severity, f)
		}
		for _, l := range c.Clients {
			fmt.Fprintf(w, "note: client: %s: %s; %s\n", l.Client, l.Limit, l.Do)
		}
	}
	if errorCount > 0 {
		return notFine(fmt.Errorf("%s: not fine: %s", what, count(errorCount, "error")))
	}
	if !o.json {
		text := "fine"
		if warningCount > 0 {
			text += ", with " + count(warningCount, "warning")
		}
		fmt.Fprintf(w, "%s: %s\n", what, text)
	}
	return nil
}

// chain gets the certificate and what comes with it from a file or from a server.
func (o *certCheck) chain(ctx context.Context, what string, options *tlsconf.ExamineOptions) ([]*x509.Certificate, error) {
	host, port, err := net.SplitHostPort(what)
	_, missing := os.Stat(what)
	_, number := strconv.ParseUint(port, 10, 16)
	server := err == nil && host != "" && number == nil && missing != nil // C:\mail.pem is none
	if !server {
		if o.startTLS != "" {
			return nil, badUsage(fmt.Errorf("--starttls goes with a server, as in mail.contoso.com:587, not with the file %s", what))
		}
		chain, err := tlsconf.ReadCertificates(what)
		if err != nil && missing != nil && !strings.ContainsAny(what, `/\`) && strings.Contains(what, ".") {
			err = fmt.Errorf("%w; for a server say its port too: %s:443", err, what)
		}
		return chain, err
	}
	name := host
	if len(options.Names) > 0 {
		name = options.Names[0]
	} else {
		options.Names = []string{proxy.CanonicalName(host)}
	}
	shown, err := tlsconf.Fetch(ctx, what, tlsconf.FetchOptions{ServerName: name, StartTLS: o.startTLS, Timeout: o.timeout})
	if err != nil {
		return nil, err
	}
	options.Stapled = shown.Stapled
	return shown.Chain, nil
}

// keyKind is the kind of a certificate's key in a few words.
func keyKind(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d bits", key.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + key.Params().Name
	}
	return c.PublicKeyAlgorithm.String()
}
