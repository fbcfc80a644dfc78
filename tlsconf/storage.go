package tlsconf

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/caddyserver/certmagic"
	"github.com/rs/zerolog"
)

// Storage is where the front door keeps what must outlive it: a directory, or Redis for several nodes.
type Storage struct {
	dir   string
	redis *Redis // nil: the directory
}

// OpenStorage opens storage at a directory or at a URL of Redis. Neither is touched yet; the
// error is about the settings. Close it after the last use.
func OpenStorage(o StorageOptions, log zerolog.Logger) (*Storage, error) {
	if !strings.Contains(o.URL, "://") {
		return &Storage{dir: o.URL}, nil
	}
	r, err := NewRedis(o, log)
	if err != nil {
		return nil, err
	}
	return &Storage{redis: r}, nil
}

// Certificates is the storage in the form that certmagic uses.
func (s *Storage) Certificates() certmagic.Storage {
	if s.redis != nil {
		return s.redis
	}
	return &certmagic.FileStorage{Path: s.dir}
}

// Dir is the directory, "" if the storage is none.
func (s *Storage) Dir() string { return s.dir }

// Redis is what several nodes share, nil if the storage is a directory.
func (s *Storage) Redis() *Redis { return s.redis }

// FirstUse is trust by first use in a site's server (host:port), remembered here.
func (s *Storage) FirstUse(site, address string, log zerolog.Logger) *FirstUse {
	if s.redis != nil {
		return NewSharedFirstUse(s.redis, site, address, log)
	}
	return NewFirstUse(filepath.Join(s.dir, "first-use"), site, address, log)
}

// NewTickets makes the keeper of session ticket keys: shared if the storage is, else in memory only.
func (s *Storage) NewTickets(log zerolog.Logger) *Tickets {
	o := TicketsOptions{Log: log}
	if s.redis != nil {
		o.Shared = s.redis
	}
	return NewTickets(o)
}

// Ping asks whether shared storage is there. A directory always is.
func (s *Storage) Ping(ctx context.Context) error {
	if s.redis == nil {
		return nil
	}
	return s.redis.Ping(ctx)
}

// Close ends the use of the storage.
func (s *Storage) Close() error {
	if s.redis == nil {
		return nil
	}
	return s.redis.Close()
}
