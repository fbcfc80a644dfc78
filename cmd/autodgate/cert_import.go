package main

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/tlsconf"
)

func newCertImport() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use: "import FILE...", Short: "Install a certificate: the CA's answer, or a PFX (Import-ExchangeCertificate)",
		Long: `Install a certificate, as Import-ExchangeCertificate does: what a CA answered to a
request (PEM or DER: .cer, .crt, .pem; or a PKCS #7 bundle: .p7b) together with the
key that cert request made, or a PFX, such as Export-ExchangeCertificate writes.

The certificate is looked for by its key, its chain is put in order, and the issuers
that are missing are taken from the further files, or with --fetch-chain from where
the certificates say they are. What clients will dislike is said.

With --config and --host it is written to where the configuration has the
certificate of that host; the running front door notices. Otherwise it is written as
PEM, or with --pfx as a PFX.`,
		Example: `  autodgate cert import mail.p7b --key mail.contoso.com.key
  autodgate cert import mail.cer intermediate.cer --key mail.key --config autodgate.yaml --host mail.contoso.com --force
  autodgate cert import exchange.pfx --password-file pass --out mail.pem --out-key mail.key`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no file: give what the CA sent, or a PFX")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	f := cmd.Flags()
	f.StringVar(&o.key, "key", "", "the key that cert request made, PEM")
	f.StringVar(&o.password, "password-file", "", "the password of the PFX that is read; without it you are asked")
	f.BoolVar(&o.fetch, "fetch-chain", false, "get missing issuers from the URLs in the certificates")
	f.StringVarP(&o.config, "config", "c", "", "the configuration that says where the certificate goes")
	f.StringVar(&o.host, "host", "", "the host in it whose certificate this is")
	f.StringVar(&o.out, "out", "", "where the certificate and its chain go, PEM (default: the first name and .pem)")
	f.StringVar(&o.outKey, "out-key", "", "where the key goes, PEM (default: where it is; from a PFX: the first name and .key)")
	f.StringVar(&o.pfx, "pfx", "", "write this PFX instead")
	f.StringVar(&o.outPassword, "out-password-file", "", "the password of the PFX that is written; without it you are asked")
	f.BoolVar(&o.legacy, "legacy", false, "write the PFX with 3DES, for Windows before Server 2019")
	f.BoolVar(&o.force, "force", false, "overwrite files that are there")
	cmd.MarkFlagsRequiredTogether("config", "host")
	for _, other := range []string{"out", "out-key"} {
		cmd.MarkFlagsMutuallyExclusive("pfx", other)
	}
	for _, other := range []string{"out", "out-key", "pfx", "out-password-file"} {
		cmd.MarkFlagsMutuallyExclusive("config", other)
	}
	return cmd
}

type importOptions struct {
	key, password            string
	fetch                    bool
	config, host             string
	out, outKey              string
	pfx, outPassword         string
	legacy, force            bool
	names                    []string // of the host
	keyStays, passwordIsFile bool
}

func (o *importOptions) run(cmd *cobra.Command, args []string) error {
	if err := o.target(cmd.ErrOrStderr()); err != nil {
		return err
	}
	pair, err := o.read(cmd, args)
	if err != nil {
		return err
	}
	name := baseName(firstName(pair.Chain[0]))
	if o.pfx == "" && o.out == "" {
		o.out = name + ".pem"
	}
	if o.pfx == "" && o.outKey == "" && !o.keyStays {
		o.outKey = name + ".key"
	}
	if o.keyStays && o.pfx == "" && sameName(o.key, o.out) {
		return badUsage(fmt.Errorf("%s holds the key, which the certificate would overwrite: write the certificate elsewhere, or key and certificate apart", o.out))
	}
	writes := []string{o.outKey, o.out}
	switch {
	case o.pfx != "":
		writes = []string{o.pfx}
	case o.keyStays:
		writes = []string{o.out}
	}
	if err := mayWrite(o.force, writes...); err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	for _, text := range pair.Inspect(o.names, time.Now()) {
		fmt.Fprintf(out, "warning: %s\n", text)
	}
	switch {
	case o.pfx != "":
		password, err := o.newPassword(cmd)
		if err != nil {
			return err
		}
		err = writePFX(out, o.force, o.pfx, pair, password, o.legacy)
		if err != nil {
			return err
		}
	case o.keyStays:
		if err := writeAll(out, o.force, certificateFile(o.out, pair)); err != nil {
			return err
		}
	default:
		if err := writePair(out, o.force, o.out, o.outKey, pair); err != nil {
			return err
		}
	}
	return nil
}

// target reads the configuration, if one is given, for where the certificate goes.
func (o *importOptions) target(stderr io.Writer) error {
	if o.config == "" {
		return nil
	}
	cfg, report, err := readConfig(o.config)
	if err != nil {
		fmt.Fprint(stderr, report.String())
		return err
	}
	h, err := hostOf(cfg, o.host)
	if err != nil {
		return err
	}
	switch c := h.Certificate; {
	case c == nil || c.Source != "":
		return badUsage(fmt.Errorf("host %s has no certificate in files; for one, write certificate: {cert: mail.pem, key: mail.key} or {pfx: mail.pfx, password_file: pfx.pass}", o.host))
	case c.PFX != "":
		o.pfx, o.outPassword, o.passwordIsFile = cfg.Path(c.PFX), cfg.Path(c.PasswordFile), true
	default:
		o.out, o.outKey = cfg.Path(c.Cert), cfg.Path(c.Key)
		if o.key == "" { // the request may have been made for it
			if _, err := os.Stat(o.outKey); err == nil {
				o.key = o.outKey
			}
		}
	}
	o.names = append([]string{o.host}, h.Aliases...)
	return nil
}

// hostOf is a host of the configuration by its name.
func hostOf(cfg *config.Config, name string) (*config.Host, error) {
	h, ok := cfg.Hosts[name]
	if !ok {
		return nil, badUsage(fmt.Errorf("there is no host %q in the configuration; there are %s", name, strings.Join(cfg.HostNames(), ", ")))
	}
	return h, nil
}

// read makes a pair of what is given: files with certificates and the key, or a PFX.
func (o *importOptions) read(cmd *cobra.Command, args []string) (*tlsconf.Pair, error) {
	pfx := -1
	var certs []*x509.Certificate
	for i, file := range args {
		switch {
		case tlsconf.IsPFX(file) && pfx >= 0:
			return nil, badUsage(fmt.Errorf("%s and %s are both PFX files: one at a time", args[pfx], file))
		case tlsconf.IsPFX(file):
			pfx = i
		default:
			more, err := tlsconf.ReadCertificates(file)
			if err != nil {
				return nil, notFine(err)
			}
			certs = append(certs, more...)
		}
	}
	var pair *tlsconf.Pair
	var err error
	if pfx >= 0 {
		if cmd.Flags().Changed("key") {
			return nil, badUsage(fmt.Errorf("%s is a PFX and has its own key: leave --key out", args[pfx]))
		}
		password, err := pfxPassword(cmd, o.password, "--password-file", args[pfx], false)
		if err != nil {
			return nil, err
		}
		if pair, _, err = tlsconf.ReadPFX(args[pfx], password, certs); err != nil {
			return nil, notFine(err)
		}
	} else if pair, err = o.withKey(args, certs); err != nil {
		return nil, err
	}
	if !o.fetch {
		return pair, nil
	}
	known := append(pair.Chain[1:len(pair.Chain):len(pair.Chain)], certs...)
	if pair.Root != nil {
		known = append(known, pair.Root)
	}
	issuers, err := tlsconf.FetchIssuers(cmd.Context(), http.DefaultClient, pair.Chain[0], known)
	if err != nil { // what was fetched may still help, and the rest is warned about
		fmt.Fprintf(cmd.OutOrStdout(), "warning: %v\n", err)
	}
	pair, _, err = tlsconf.NewPair(pair.Chain[:1], append(known, issuers...), pair.Key, nil, time.Now())
	return pair, err
}

// withKey puts certificates and the key of the request together.
func (o *importOptions) withKey(args []string, certs []*x509.Certificate) (*tlsconf.Pair, error) {
	keyFile := o.key
	var key crypto.Signer
	var err error
	if keyFile != "" {
		key, err = tlsconf.ReadKey(keyFile)
	} else { // a PEM file may hold both
		keyFile = args[0]
		if key, err = tlsconf.ReadKey(keyFile); err != nil {
			return nil, badUsage(errors.New("no key: give the one that cert request made, with --key"))
		}
	}
	if err != nil {
		return nil, notFine(err)
	}
	o.keyStays = o.key != "" && (o.outKey == "" || sameName(o.key, o.outKey))
	pair, _, err := tlsconf.NewPair(certs, nil, key, nil, time.Now())
	if err != nil {
		var names []string
		for _, c := range certs {
			names = append(names, firstName(c))
		}
		return nil, notFine(fmt.Errorf("key %s belongs to none of the certificates in %s (%s): they answer another request", keyFile, strings.Join(args, ", "), strings.Join(names, ", ")))
	}
	return pair, nil
}

// newPassword is that of the PFX that is written. What the configuration says of it is done: no password_file is an empty
// password, as it is when the file is read.
func (o *importOptions) newPassword(cmd *cobra.Command) (string, error) {
	if o.passwordIsFile && o.outPassword == "" {
		return "", badUsage(fmt.Errorf("host %s has no password_file in %s: give it one, so that the key is not written in clear", o.host, o.config))
	}
	return newPassword(cmd, o.outPassword, "--out-password-file", o.pfx)
}

// sameName reports whether two names are those of one file.
func sameName(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// firstName is what a certificate is called after: its common name, where that is a name, else its first name.
func firstName(c *x509.Certificate) string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if cn := c.Subject.CommonName; len(names) == 0 || slices.Contains(names, cn) {
		if _, err := tlsconf.HostNames(cn); err == nil {
			return cn
		}
		return "certificate"
	}
	return names[0]
}
