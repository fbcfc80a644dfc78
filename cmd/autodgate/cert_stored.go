package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/tlsconf"
)

// loadCertificate reads the certificate of a host once, where it is in files that the config names, and says what clients
// will dislike about it.
func loadCertificate(cfg *config.Config, c *config.Certificate, names []string) (*tls.Certificate, []string, error) {
	if c.PFX != "" {
		return tlsconf.LoadPFX(cfg.Path(c.PFX), cfg.Path(c.PasswordFile), names)
	}
	return tlsconf.LoadFiles(cfg.Path(c.Cert), cfg.Path(c.Key), names)
}

// errNoneYet is that a certificate which serve makes or orders is not there.
var errNoneYet = errors.New("there is none yet")

// storedPair reads the certificate of a host from where the running front door has it, be that files of the config or the
// storage. where says where.
func storedPair(ctx context.Context, cfg *config.Config, name string) (pair *tlsconf.Pair, where string, err error) {
	c := cfg.Hosts[name].Certificate
	switch {
	case c.PFX != "":
		where = cfg.Path(c.PFX)
		password := ""
		if c.PasswordFile != "" {
			if password, err = tlsconf.ReadPassword(cfg.Path(c.PasswordFile)); err != nil {
				return nil, where, err
			}
		}
		pair, _, err = tlsconf.ReadPFX(where, password, nil)
		return pair, where, err
	case c.Cert != "":
		where = cfg.Path(c.Cert)
		pair, _, err = tlsconf.ReadFiles(where, cfg.Path(c.Key))
		return pair, where, err
	}
	storage, err := openStorage(cfg, zerolog.Nop())
	if err != nil {
		return nil, "", err
	}
	defer storage.Close()
	switch {
	case c.Source == "acme":
		pair, where, err = tlsconf.StoredACME(ctx, storage.Certificates(), name)
		if errors.Is(err, fs.ErrNotExist) {
			err = errNoneYet
		}
	case c.Source == "self_signed" && storage.Redis() != nil:
		pair, where, err = tlsconf.StoredSelfSigned(ctx, storage.Redis(), shortName(name), name, cfg.Hosts[name].Aliases)
		if errors.Is(err, fs.ErrNotExist) {
			err = errNoneYet
		}
	case storage.Dir() == "":
		err = fmt.Errorf("certificate: %s is kept by the running front door alone: its storage is no directory", c.Source)
	case c.Source == "self_signed":
		where = tlsconf.SelfSignedFile(selfSignedDir(storage), []string{shortName(name), name})
		pair, err = newestPair(where)
	default: // autocert: the key and the chain in one file, by the kind of key
		where = filepath.Join(storage.Dir(), "autocert", name)
		pair, err = newestPair(where, where+"+rsa")
	}
	return pair, where, err
}

// newestPair reads files with certificate and key and returns the pair that lasts longest. Files that are not there do
// not matter, unless it is all of them.
func newestPair(files ...string) (*tlsconf.Pair, error) {
	var best *tlsconf.Pair
	failed := errNoneYet
	for _, f := range files {
		if _, err := os.Stat(f); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		pair, _, err := tlsconf.ReadFiles(f, f)
		switch {
		case err != nil:
			failed = err
		case best == nil || pair.Chain[0].NotAfter.After(best.Chain[0].NotAfter):
			best = pair
		}
	}
	if best == nil {
		return nil, failed
	}
	return best, nil
}

// The states of a certificate.
const (
	certValid    = "valid"
	certSoon     = "expires soon"
	certExpired  = "expired"
	certNotYet   = "not yet valid"
	certNames    = "wrong names"
	certMissing  = "missing"
	certUnusable = "unusable"
)

// certStatus is the state of a certificate that could be read.
func certStatus(pair *tlsconf.Pair, names []string, now time.Time) string {
	leaf := pair.Chain[0]
	switch {
	case now.After(leaf.NotAfter):
		return certExpired
	case now.Before(leaf.NotBefore):
		return certNotYet
	case slices.ContainsFunc(names, func(n string) bool { return !tlsconf.Covers(leaf, n) }):
		return certNames
	case leaf.NotAfter.Sub(now) <= tlsconf.ExpirySoon(leaf):
		return certSoon
	}
	return certValid
}
