package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	acmez "github.com/mholt/acmez/v3/acme"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/tlsconf"
)

// storedTime is how long the begin of serving waits for certificates that are stored.
const storedTime = 5 * time.Second

// issuing is a client of ACME issuers: certmagic's or autocert's.
type issuing interface {
	http.Handler
	Serves(name string) bool
	Start()
	Closed() bool
}

// acmeClients are the ACME clients that sources stem from, by their settings: a
// reload that does not change them goes on with the same client, and a client whose
// last source is closed has closed itself.
type acmeClients map[string]issuing

// start begins the orders of what has come in by the last table. Validations can be
// answered now.
func (c acmeClients) start() {
	for key, client := range c {
		if client.Closed() {
			delete(c, key)
			continue
		}
		client.Start()
	}
}

// loaded waits for stored certificates, so that the first clients are not refused.
func (c acmeClients) loaded() {
	ctx, cancel := context.WithTimeout(context.Background(), storedTime)
	defer cancel()
	for _, client := range c {
		if l, ok := client.(interface{ Loaded(ctx context.Context) }); ok {
			l.Loaded(ctx)
		}
	}
}

// running is a client for hosts of one source of certificates; nil if there is none.
func (c acmeClients) running(source string) issuing {
	for key, client := range c {
		if strings.HasPrefix(key, source+"|") && !client.Closed() {
			return client
		}
	}
	return nil
}

// ServeHTTP hands a validation by HTTP-01 to the client that has the name.
func (c acmeClients) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.Host
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name = name[:i]
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	// The path that a request is routed by is in lower case, and a token is not.
	if asked, err := url.ParseRequestURI(r.RequestURI); err == nil {
		r = r.Clone(r.Context())
		r.URL.Path = asked.Path
	}
	for _, client := range c {
		if !client.Closed() && client.Serves(name) {
			client.ServeHTTP(w, r)
			return
		}
	}
	http.NotFound(w, r)
}

// forTable are the clients as a table sees them: those there are when it is made.
func (c acmeClients) forTable() http.Handler {
	if len(c) == 0 {
		return nil
	}
	copied := acmeClients{}
	for key, client := range c {
		copied[key] = client
	}
	return copied
}

// acmeSource opens the source of a host whose certificate is ordered.
func (f *frontDoor) acmeSource(cfg *config.Config, name string, h *config.Host) (tlsconf.Source, error) {
	settings, err := acmeSettings(cfg)
	if err != nil {
		// A reload that cannot read a file takes no certificate away.
		if client := f.acme.running(h.Certificate.Source); client != nil {
			f.log.Error().Str("host", name).Err(err).Msg("certificates.acme cannot be used: certificates are shown and renewed as before")
			return openACME(client, name, h.Aliases)
		}
		return nil, fmt.Errorf("certificates.acme: %w", err)
	}
	key := h.Certificate.Source + settings.key
	if client := f.acme[key]; client != nil {
		if src, err := openACME(client, name, h.Aliases); !errors.Is(err, tlsconf.ErrACMEClosed) {
			return src, err
		}
	}
	var client issuing
	if h.Certificate.Source == "autocert" {
		client, err = f.newAutocert(settings)
	} else {
		client, err = f.newACME(cfg, settings)
	}
	if err != nil {
		return nil, err
	}
	f.acme[key] = client
	return openACME(client, name, h.Aliases)
}

func openACME(client issuing, name string, aliases []string) (tlsconf.Source, error) {
	if c, ok := client.(*tlsconf.Autocert); ok {
		src, err := c.Source(name, aliases)
		if err != nil {
			return nil, err
		}
		return src, nil
	}
	src, err := client.(*tlsconf.ACME).Source(name, aliases)
	if err != nil {
		return nil, err
	}
	return src, nil
}

// acmeConfig is certificates.acme with the files it names read.
type acmeConfig struct {
	config.ACME
	key       string // tells two settings apart
	issuers   []tlsconf.ACMEIssuer
	dnsSecret string
}

func acmeSettings(cfg *config.Config) (s acmeConfig, err error) {
	if cfg.Certificates.ACME != nil {
		s.ACME = *cfg.Certificates.ACME
	}
	sum := sha256.New()
	read := func(file string) ([]byte, error) {
		data, err := os.ReadFile(cfg.Path(file))
		sum.Write(data)
		sum.Write([]byte{0})
		return data, err
	}
	issuer := func(directory, ca string, eab *config.ACMEEAB) (i tlsconf.ACMEIssuer, err error) {
		i.Directory = directory
		if ca != "" {
			if _, err := read(ca); err != nil {
				return i, fmt.Errorf("directory_ca: %w", err)
			}
			if i.Roots, err = tlsconf.LoadRoots(cfg.Path(ca)); err != nil {
				return i, fmt.Errorf("directory_ca: %w", err)
			}
		}
		if eab != nil {
			key, err := read(eab.HMACKeyFile)
			if err != nil {
				return i, fmt.Errorf("eab: %w", err)
			}
			i.EAB = &acmez.EAB{KeyID: eab.KeyID, MACKey: strings.TrimRight(strings.TrimSpace(string(key)), "=")}
			if _, err := base64.RawURLEncoding.DecodeString(i.EAB.MACKey); err != nil {
				return i, fmt.Errorf("eab: %s holds no key in base64url", eab.HMACKeyFile)
			}
		}
		return i, nil
	}
	first, err := issuer(s.Directory, s.DirectoryCA, s.EAB)
	if err != nil {
		return s, err
	}
	s.issuers = append(s.issuers, first)
	if fb := s.Fallback; fb != nil {
		second, err := issuer(fb.Directory, fb.DirectoryCA, fb.EAB)
		if err != nil {
			return s, fmt.Errorf("fallback: %w", err)
		}
		s.issuers = append(s.issuers, second)
	}
	if d := s.DNS; d != nil && d.TSIGSecretFile != "" {
		secret, err := read(d.TSIGSecretFile)
		if err != nil {
			return s, fmt.Errorf("dns: %w", err)
		}
		s.dnsSecret = strings.TrimSpace(string(secret))
		if _, err := base64.StdEncoding.DecodeString(s.dnsSecret); err != nil {
			return s, fmt.Errorf("dns: %s holds no TSIG secret in base64", d.TSIGSecretFile)
		}
	}
	said, err := json.Marshal(s.ACME)
	if err != nil {
		return s, err
	}
	s.key = fmt.Sprintf("|%s|%+v|%x", said, storageOptions(cfg), sum.Sum(nil))
	return s, nil
}

func (f *frontDoor) newACME(cfg *config.Config, s acmeConfig) (*tlsconf.ACME, error) {
	o := tlsconf.ACMEOptions{
		Email: s.Email, Issuers: s.issuers, OnDemand: s.OnDemand, Storage: f.storage.Certificates(), Log: f.log, RenewCheck: f.renewCheck,
	}
	for _, c := range s.Challenges {
		// One that cannot be answered here is not begun: config warns of it.
		if c == "http-01" && len(cfg.Listen.HTTP) == 0 || c == "tls-alpn-01" && len(cfg.Listen.HTTPS) == 0 {
			continue
		}
		o.Challenges = append(o.Challenges, c)
	}
	if d := s.DNS; d != nil {
		if d.Exec != "" {
			o.DNS = &tlsconf.DNSHook{Program: cfg.Path(d.Exec)}
		} else {
			o.DNS = &tlsconf.DNSUpdate{Server: d.Server, TSIGName: d.TSIGName, TSIGSecret: s.dnsSecret}
		}
	}
	return tlsconf.NewACME(o)
}

func (f *frontDoor) newAutocert(s acmeConfig) (*tlsconf.Autocert, error) {
	if f.storage.Dir() == "" {
		return nil, errors.New("autocert needs a directory as certificates.storage")
	}
	o := tlsconf.AutocertOptions{
		Email: s.Email, Directory: s.Directory, Roots: s.issuers[0].Roots, Log: f.log,
		Dir: filepath.Join(f.storage.Dir(), "autocert"),
	}
	if eab := s.issuers[0].EAB; eab != nil {
		key, err := base64.RawURLEncoding.DecodeString(eab.MACKey)
		if err != nil {
			return nil, err
		}
		o.EABKeyID, o.EABKey = eab.KeyID, key
	}
	return tlsconf.NewAutocert(o), nil
}
