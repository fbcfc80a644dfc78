package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/tlsconf"
)

func newCertNew() *cobra.Command {
	var key keyFlags
	var months int
	var certFile, keyFile, pfx, passwordFile string
	var legacy, force bool
	cmd := &cobra.Command{
		Use: "new NAME...", Short: "Make a self-signed certificate (New-ExchangeCertificate)",
		Long: `Make a self-signed certificate, as New-ExchangeCertificate does without
-GenerateRequest: the first name is the common name, all of them are subject
alternative names, and it is good for a year. It is written as PEM, certificate and
key apart, or with --pfx as one PFX for a server with Windows.

No client trusts it before it is told to: hand it out with cert export --der.
Outlook Anywhere and ActiveSync take none that is not trusted.`,
		Example: `  autodgate cert new server01 server01.contoso.com
  autodgate cert new mail.contoso.com autodiscover.contoso.com --pfx mail.pfx`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := key.kind()
			if err != nil {
				return err
			}
			names, err := tlsconf.HostNames(args...)
			if err != nil {
				return badUsage(err)
			}
			if months < 1 || months > 120 {
				return badUsage(fmt.Errorf("--months %d: between 1 and 120", months))
			}
			if certFile == "" {
				certFile = baseName(names[0]) + ".pem"
			}
			if keyFile == "" {
				keyFile = baseName(names[0]) + ".key"
			}
			files := []string{keyFile, certFile}
			if pfx != "" {
				files = []string{pfx}
			}
			if err := mayWrite(force, files...); err != nil {
				return err
			}
			var password string
			if pfx != "" {
				if password, err = newPassword(cmd, passwordFile, "--password-file", pfx); err != nil {
					return err
				}
			}
			now := time.Now()
			pair, err := tlsconf.MakeSelfSigned(names, kind, now, now.AddDate(0, months, 0))
			if err != nil {
				return notFine(err)
			}
			if pfx != "" {
				return writePFX(cmd.OutOrStdout(), force, pfx, pair, password, legacy)
			}
			return writePair(cmd.OutOrStdout(), force, certFile, keyFile, pair)
		},
	}
	key.add(cmd)
	f := cmd.Flags()
	f.IntVar(&months, "months", 12, "how long it is good for")
	f.StringVar(&certFile, "out", "", "where the certificate goes, PEM (default: the first name and .pem)")
	f.StringVar(&keyFile, "key", "", "where its key goes, PEM (default: the first name and .key)")
	f.StringVar(&pfx, "pfx", "", "write this PFX instead, with certificate and key")
	f.StringVar(&passwordFile, "password-file", "", "the password of the PFX; without it you are asked")
	f.BoolVar(&legacy, "legacy", false, "write the PFX with 3DES, for Windows before Server 2019")
	f.BoolVar(&force, "force", false, "overwrite files that are there")
	cmd.MarkFlagsMutuallyExclusive("pfx", "out")
	cmd.MarkFlagsMutuallyExclusive("pfx", "key")
	return cmd
}

func newCertRequest() *cobra.Command {
	var key keyFlags
	var subject, requestFile, keyFile string
	var force bool
	cmd := &cobra.Command{
		Use: "request NAME...", Short: "Request a certificate from a CA (New-ExchangeCertificate -GenerateRequest)",
		Long: `Make a key and a request (CSR) that a CA answers with a certificate, as
New-ExchangeCertificate -GenerateRequest does. The first name is the common name, so
let it be the one users use; all of them are subject alternative names.

Send the request to the CA and keep the key, which never leaves this machine. What
the CA answers is installed with cert import. A friendly name is no part of a
request: Windows keeps it beside the certificate (Import-ExchangeCertificate
-FriendlyName).`,
		Example: `  autodgate cert request mail.contoso.com autodiscover.contoso.com
  autodgate cert request mail.contoso.com --subject 'C=US, O="Contoso, Ltd."' --key-size 4096`,
		Args: oneName,
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := key.kind()
			if err != nil {
				return err
			}
			names, err := tlsconf.HostNames(args...)
			if err != nil {
				return badUsage(err)
			}
			who, err := tlsconf.ParseSubject(subject)
			if err != nil {
				return badUsage(fmt.Errorf("--subject: %w", err))
			}
			if cn := who.CommonName; cn != "" && !slices.Contains(names, strings.ToLower(cn)) {
				return badUsage(fmt.Errorf("--subject: the common name %s is none of the names; give it as the first of them", cn))
			}
			if requestFile == "" {
				requestFile = baseName(names[0]) + ".csr"
			}
			if keyFile == "" {
				keyFile = baseName(names[0]) + ".key"
			}
			if err := mayWrite(force, keyFile, requestFile); err != nil {
				return err
			}
			request, private, err := tlsconf.NewRequest(names, who, kind)
			if err != nil {
				return notFine(err)
			}
			keyPEM, err := tlsconf.KeyPEM(private)
			if err != nil {
				return notFine(err)
			}
			if err := writeAll(cmd.OutOrStdout(), force, outFile{"key", keyFile, keyPEM, privateFile, ""},
				outFile{"request", requestFile, request, publicFile, "for " + strings.Join(names, ", ")}); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "send %s to the CA; then: autodgate cert import ANSWER --key %s\n", requestFile, keyFile)
			return nil
		},
	}
	key.add(cmd)
	f := cmd.Flags()
	f.StringVar(&subject, "subject", "", "the rest of the subject, as in C=US, ST=Washington, L=Redmond, O=Contoso")
	f.StringVar(&requestFile, "out", "", "where the request goes, PEM (default: the first name and .csr)")
	f.StringVar(&keyFile, "key", "", "where its key goes, PEM (default: the first name and .key)")
	f.BoolVar(&force, "force", false, "overwrite files that are there")
	return cmd
}
