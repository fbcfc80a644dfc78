package tlsconf

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"time"

	"github.com/caddyserver/certmagic"
)

// StoredACME reads the certificate that certmagic keeps for a name, whichever issuer it is from; of several the one that
// lasts longest. where is its key in the storage. The error is [fs.ErrNotExist] if there is none.
func StoredACME(ctx context.Context, storage certmagic.Storage, name string) (best *Pair, where string, err error) {
	issuers, err := storage.List(ctx, "certificates", false)
	if err != nil {
		return nil, "", fmt.Errorf("look for certificates in the storage: %w", err)
	}
	safe := certmagic.StorageKeys.Safe(name)
	failed := fs.ErrNotExist
	for _, issuer := range issuers {
		base := path.Join(issuer, safe, safe)
		if !storage.Exists(ctx, base+".crt") {
			continue
		}
		pair, err := loadStored(ctx, storage, base)
		switch {
		case err != nil:
			failed, where = fmt.Errorf("%s.crt in the storage: %w", base, err), base+".crt"
		case best == nil || pair.Chain[0].NotAfter.After(best.Chain[0].NotAfter):
			best, where = pair, base+".crt"
		}
	}
	if best == nil {
		return nil, where, failed
	}
	return best, where, nil
}

func loadStored(ctx context.Context, storage certmagic.Storage, base string) (*Pair, error) {
	certPEM, err := storage.Load(ctx, base+".crt")
	if err != nil {
		return nil, err
	}
	keyPEM, err := storage.Load(ctx, base+".key")
	if err != nil {
		return nil, err
	}
	return readPair(certPEM, keyPEM)
}

func readPair(certPEM, keyPEM []byte) (*Pair, error) {
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, err
	}
	pair, _, err := NewPair(certs, nil, key, nil, time.Now())
	return pair, err
}
