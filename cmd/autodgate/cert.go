package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/autodgate/autodgate/tlsconf"
)

func newCert() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cert", Short: "Plan, make, request, install, check and hand on certificates",
		Long: `The life of a certificate: which names it needs (plan), made here (new) or requested
from a CA (request), installed (import), looked at (list), checked as clients check it
(check), handed on to another server or to devices (export).

Keys are written for their owner alone (0600). What is there is not overwritten
without --force. Passwords come from a file or are asked for, never from the
command line, where every user of the machine could read them.

Exit status: 0 done, or all is fine, 1 what was looked at is not fine or cannot be
used, 2 wrong usage, or a configuration that does not load.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newCertNew(),
		newCertRequest(),
		newCertImport(),
		newCertList(),
		newCertExport(),
		newCertPlan(), newCertCheck(),
	)
	return cmd
}

// oneName checks the arguments of a command that takes the names of a certificate.
func oneName(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errors.New("no name: give the names clients use, the most used one first, as in mail.contoso.com autodiscover.contoso.com")
	}
	return nil
}

// keyFlags are the kind of a new key.
type keyFlags struct {
	size  int
	ecdsa bool
}

func (k *keyFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&k.size, "key-size", 2048, "bits of the RSA key: 2048, 3072 or 4096")
	cmd.Flags().BoolVar(&k.ecdsa, "ecdsa", false, "an ECDSA key (P-256) instead; not for a certificate that Exchange gets too")
	cmd.MarkFlagsMutuallyExclusive("key-size", "ecdsa")
}

func (k *keyFlags) kind() (tlsconf.KeyType, error) {
	kinds := map[int]tlsconf.KeyType{2048: tlsconf.RSA2048, 3072: tlsconf.RSA3072, 4096: tlsconf.RSA4096}
	kind, ok := kinds[k.size]
	switch {
	case k.ecdsa:
		return tlsconf.ECDSAP256, nil
	case !ok:
		return "", badUsage(fmt.Errorf("--key-size %d: there are 2048, 3072 and 4096", k.size))
	}
	return kind, nil
}

// baseName is what files are called after their certificate's first name.
func baseName(name string) string { return strings.NewReplacer("*", "_", ":", "_").Replace(name) }

// outFile is a file to be written.
type outFile struct {
	what, path string
	data       []byte
	mode       fs.FileMode
	about      string
}

const (
	publicFile  fs.FileMode = 0o644
	privateFile fs.FileMode = 0o600
)

// mayWrite refuses files that are there, before anything has been done for them.
func mayWrite(force bool, paths ...string) error {
	for i, p := range paths {
		for _, q := range paths[:i] {
			if p == q {
				return badUsage(fmt.Errorf("%s would be written twice: two files are needed", p))
			}
		}
		if dir, err := os.Stat(filepath.Dir(p)); err != nil || !dir.IsDir() {
			return badUsage(fmt.Errorf("there is no directory %s for %s", filepath.Dir(p), filepath.Base(p)))
		}
		info, err := os.Stat(p)
		switch {
		case err != nil:
		case info.IsDir():
			return badUsage(fmt.Errorf("%s is a directory, the name of a file is needed", p))
		case !force:
			return badUsage(fmt.Errorf("%s exists already; --force overwrites it", p))
		}
	}
	return nil
}

// writeAll writes files and says so.
func writeAll(w io.Writer, force bool, files ...outFile) error {
	for _, f := range files {
		if err := tlsconf.WriteFile(f.path, f.data, f.mode, force); err != nil {
			return notFine(err)
		}
		if f.about != "" {
			f.about = " (" + f.about + ")"
		}
		fmt.Fprintf(w, "wrote %s %s%s\n", f.what, f.path, f.about)
	}
	return nil
}

// about is a certificate in a few words.
func about(c *x509.Certificate) string {
	return fmt.Sprintf("until %s, thumbprint %s", c.NotAfter.UTC().Format(time.DateOnly), tlsconf.Thumbprint(c))
}

// pfxPassword returns what is in the file (- is a line of standard input), or what is typed on the terminal if none is
// given. twice is for a new one.
func pfxPassword(cmd *cobra.Command, file, flag, what string, twice bool) (string, error) {
	switch file {
	case "":
	case "-":
		password, err := readPassword(cmd.InOrStdin(), file)
		if err != nil {
			return "", notFine(err)
		}
		return password, nil
	default:
		password, err := tlsconf.ReadPassword(file)
		if err != nil {
			return "", notFine(err)
		}
		return password, nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return "", badUsage(fmt.Errorf("no password for %s: give it in a file with %s, or run this on a terminal", what, flag))
	}
	ask := func(prompt string) (string, error) {
		fmt.Fprint(cmd.ErrOrStderr(), prompt)
		typed, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(cmd.ErrOrStderr())
		if err != nil {
			return "", notFine(fmt.Errorf("read the password: %w", err))
		}
		return string(typed), nil
	}
	password, err := ask("Password for " + what + ": ")
	if err != nil || !twice {
		return password, err
	}
	again, err := ask("Once more: ")
	if err == nil && again != password {
		err = notFine(errors.New("these are two different passwords; nothing was written"))
	}
	return password, err
}

// newPassword is pfxPassword for a PFX that is to be written.
func newPassword(cmd *cobra.Command, file, flag, pfx string) (string, error) {
	password, err := pfxPassword(cmd, file, flag, pfx, true)
	if err == nil && password == "" {
		err = badUsage(fmt.Errorf("the password for %s is empty: it would protect no key, and Windows takes no such file", pfx))
	}
	return password, err
}

// writePFX writes certificate, chain and key as one PFX.
func writePFX(w io.Writer, force bool, path string, pair *tlsconf.Pair, password string, legacy bool) error {
	data, err := tlsconf.EncodePFX(pair.Key, pair.Certificates(), password, legacy)
	if err != nil {
		return notFine(err)
	}
	return writeAll(w, force, outFile{"PFX", path, data, privateFile, about(pair.Chain[0])})
}

// writePair writes the key, and certificate and chain, as PEM. The key comes first: without it the certificate is worth
// nothing.
func writePair(w io.Writer, force bool, certFile, keyFile string, pair *tlsconf.Pair) error {
	keyPEM, err := tlsconf.KeyPEM(pair.Key)
	if err != nil {
		return notFine(err)
	}
	return writeAll(w, force, outFile{"key", keyFile, keyPEM, privateFile, ""}, certificateFile(certFile, pair))
}

// certificateFile is certificate and chain as PEM.
func certificateFile(path string, pair *tlsconf.Pair) outFile {
	certs := pair.Certificates()
	what := about(certs[0])
	if n := len(certs) - 1; n > 0 {
		what += ", with " + count(n, "issuer")
	}
	return outFile{"certificate", path, tlsconf.CertificatesPEM(certs...), publicFile, what}
}
