package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/tlsconf"
)

func newCertExport() *cobra.Command {
	var o struct {
		key, inPassword        string
		config, host           string
		pfx, password          string
		pem, pemKey, der       string
		legacy, force, noChain bool
	}
	cmd := &cobra.Command{
		Use: "export [FILE]", Short: "Hand on a certificate: a PFX for a server, DER for devices (Export-ExchangeCertificate)",
		Long: `Write a certificate for somebody else, as Export-ExchangeCertificate does: --pfx with
its key and chain and a password, for an Exchange server or another proxy; --der
without key or chain, for devices and for group policy (.cer); --pem with its chain,
and the key to --pem-key. Several at once may be given.

The certificate is that of a host in the configuration, from wherever the front door
has it, or the one in FILE: PEM, with --key unless the key is in it, or a PFX.

A PFX is encrypted with AES, which Windows reads since Server 2019 and Windows 10
1709. For what is older, Exchange 2010 on Server 2008 R2 among it, --legacy writes
3DES: then it is the way it is carried that has to protect it.`,
		Example: `  autodgate cert export --config autodgate.yaml --host mail.contoso.com --pfx mail.pfx
  autodgate cert export --config autodgate.yaml --host mail.contoso.com --der mail.cer
  autodgate cert export mail.pem --key mail.key --pfx mail.pfx --password-file pass --legacy`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.pfx == "" && o.pem == "" && o.pemKey == "" && o.der == "" {
				return badUsage(errors.New("nothing to write: give --pfx FILE, --pem FILE or --der FILE"))
			}
			var pair *tlsconf.Pair
			switch {
			case (len(args) == 0) == (o.config == ""):
				return badUsage(errors.New("which certificate? Give a FILE, or --config and --host"))
			case o.config != "" && (o.key != "" || o.inPassword != ""):
				return badUsage(errors.New("the configuration knows key and password of its host: leave --key and --in-password-file out"))
			case o.config != "":
				cfg, report, err := readConfig(o.config)
				if err != nil {
					fmt.Fprint(cmd.ErrOrStderr(), report.String())
					return err
				}
				h, err := hostOf(cfg, o.host)
				switch {
				case err != nil:
					return err
				case h.Certificate == nil:
					return badUsage(fmt.Errorf("host %s has no certificate", o.host))
				}
				if pair, _, err = storedPair(cmd.Context(), cfg, o.host); err != nil {
					return notFine(fmt.Errorf("host %s: %w", o.host, err))
				}
			case tlsconf.IsPFX(args[0]):
				if o.key != "" {
					return badUsage(fmt.Errorf("%s is a PFX and has its own key: leave --key out", args[0]))
				}
				password, err := pfxPassword(cmd, o.inPassword, "--in-password-file", args[0], false)
				if err != nil {
					return err
				}
				if pair, _, err = tlsconf.ReadPFX(args[0], password, nil); err != nil {
					return notFine(err)
				}
			case o.key == "" && o.pfx == "" && o.pemKey == "": // what has no key in it needs none
				certs, err := tlsconf.ReadCertificates(args[0])
				if err != nil {
					return notFine(err)
				}
				pair = &tlsconf.Pair{Chain: certs}
			default:
				keyFile := o.key
				if keyFile == "" {
					keyFile = args[0]
				}
				var err error
				if pair, _, err = tlsconf.ReadFiles(args[0], keyFile); err != nil {
					if o.key == "" {
						err = fmt.Errorf("%w; give the key with --key", err)
					}
					return notFine(err)
				}
			}

			var targets []string
			for _, t := range []string{o.pfx, o.pemKey, o.pem, o.der} {
				if t != "" {
					targets = append(targets, t)
				}
			}
			if err := mayWrite(o.force, targets...); err != nil {
				return err
			}
			if o.noChain {
				pair.Chain, pair.Root = pair.Chain[:1], nil
			}
			out := cmd.OutOrStdout()
			if o.pfx != "" {
				password, err := newPassword(cmd, o.password, "--password-file", o.pfx)
				if err != nil {
					return err
				}
				if err := writePFX(out, o.force, o.pfx, pair, password, o.legacy); err != nil {
					return err
				}
			}
			var files []outFile
			if o.pemKey != "" {
				keyPEM, err := tlsconf.KeyPEM(pair.Key)
				if err != nil {
					return notFine(err)
				}
				files = append(files, outFile{"key", o.pemKey, keyPEM, privateFile, ""})
			}
			if o.pem != "" {
				files = append(files, certificateFile(o.pem, pair))
			}
			if o.der != "" {
				files = append(files, outFile{"certificate", o.der, pair.Chain[0].Raw, publicFile, about(pair.Chain[0])})
			}
			return writeAll(out, o.force, files...)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.config, "config", "c", "", "the configuration")
	f.StringVar(&o.host, "host", "", "the host in it whose certificate is meant")
	f.StringVar(&o.key, "key", "", "the key of the certificate in FILE, PEM")
	f.StringVar(&o.inPassword, "in-password-file", "", "the password of FILE, if it is a PFX; without it you are asked")
	f.StringVar(&o.pfx, "pfx", "", "write a PFX here: certificate, chain and key")
	f.StringVar(&o.password, "password-file", "", "the password of the PFX that is written; without it you are asked")
	f.BoolVar(&o.legacy, "legacy", false, "write the PFX with 3DES, for Windows before Server 2019")
	f.StringVar(&o.pem, "pem", "", "write certificate and chain here, PEM")
	f.StringVar(&o.pemKey, "pem-key", "", "write the key here, PEM, not encrypted")
	f.StringVar(&o.der, "der", "", "write the certificate alone here, DER (.cer)")
	f.BoolVar(&o.noChain, "no-chain", false, "leave the issuers out")
	f.BoolVar(&o.force, "force", false, "overwrite files that are there")
	cmd.MarkFlagsRequiredTogether("config", "host")
	return cmd
}
