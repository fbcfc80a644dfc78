package main

import (
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/tlsconf"
)

// storageOptions are the settings of the storage. Two front doors with the same ones
// have the same storage.
func storageOptions(cfg *config.Config) tlsconf.StorageOptions {
	c := cfg.Certificates
	if !strings.Contains(c.Storage, "://") {
		return tlsconf.StorageOptions{URL: cfg.Path(c.Storage)}
	}
	file := func(name string) string {
		if name == "" {
			return ""
		}
		return cfg.Path(name)
	}
	return tlsconf.StorageOptions{
		URL: c.Storage, CA: file(c.StorageCA), PasswordFile: file(c.StoragePasswordFile), KeyFile: file(c.StorageKeyFile),
		Prefix: c.StoragePrefix,
	}
}

// openStorage opens the storage that a configuration names; nothing is connected yet.
func openStorage(cfg *config.Config, log zerolog.Logger) (*tlsconf.Storage, error) {
	s, err := tlsconf.OpenStorage(storageOptions(cfg), log)
	if err != nil {
		return nil, fmt.Errorf("certificates.storage: %w", err)
	}
	return s, nil
}
