package directory

import (
	"context"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/text/unicode/norm"
)

// DefaultPollInterval is how often a [Static] looks whether its file changed.
const DefaultPollInterval = 5 * time.Second

// Static is a [Directory] over a fixed set of mailboxes, usually a file that is
// read again when it changes. It is safe for concurrent use.
type Static struct {
	path  string
	log   zerolog.Logger
	lab   bool
	poll  time.Duration
	index atomic.Pointer[index]

	// hashing lets as many password hashes run at once as there are processors:
	// an argon2id hash takes tens of megabytes, and logins come in bursts.
	hashing chan struct{}
	seed    maphash.Seed // picks the mailbox whose work an unknown name costs

	mu   sync.Mutex // guards last and serialises loads
	last fileState

	stop    chan struct{}
	stopped sync.Once
	done    sync.WaitGroup
}

var _ Directory = (*Static)(nil)

// Option changes how a [Static] behaves.
type Option func(*Static)

// Lab says that the mailboxes are invented: plain passwords give no warning.
func Lab() Option { return func(s *Static) { s.lab = true } }

// PollInterval sets how often the file is looked at; zero or less means never,
// so that only [Static.Reload] reads it again.
func PollInterval(d time.Duration) Option { return func(s *Static) { s.poll = d } }

// Open reads a mailboxes file, CSV when its name ends in .csv and YAML otherwise,
// and keeps watching it until Close. The error is a [*LoadError] when the file
// can be read but not used.
func Open(path string, log zerolog.Logger, options ...Option) (*Static, error) {
	s := newStatic(path, log, options)
	if err := s.Reload(); err != nil {
		return nil, err
	}
	if s.poll > 0 {
		s.done.Go(s.watch)
	}
	return s, nil
}

// New returns a [Static] over the given mailboxes, checked like those of a file;
// in errors the line is the position in the list, counted from 1.
func New(mailboxes []Mailbox, log zerolog.Logger, options ...Option) (*Static, error) {
	s := newStatic("", log, options)
	b := newBuilder("mailboxes")
	for i, m := range mailboxes {
		b.add(i+1, m)
	}
	if err := s.install(b); err != nil {
		return nil, err
	}
	return s, nil
}

func newStatic(path string, log zerolog.Logger, options []Option) *Static {
	s := &Static{
		path:    path,
		log:     log,
		poll:    DefaultPollInterval,
		hashing: make(chan struct{}, runtime.GOMAXPROCS(0)),
		seed:    maphash.MakeSeed(),
		stop:    make(chan struct{}),
	}
	for _, o := range options {
		o(s)
	}
	return s
}

// Close stops watching the file. The mailboxes stay as they are.
func (s *Static) Close() error {
	s.stopped.Do(func() { close(s.stop) })
	s.done.Wait()
	return nil
}

// Len returns the number of mailboxes.
func (s *Static) Len() int { return len(s.index.Load().byGUID) }

// Reload reads the file now. On error the mailboxes stay as they were.
func (s *Static) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.load()
}

// fileState is what tells one version of a file from the next.
type fileState struct {
	size    int64
	modTime time.Time
}

func (s *Static) load() error {
	if s.path == "" {
		return nil
	}
	f, err := os.Open(s.path)
	if err != nil {
		s.last = fileState{}
		return fmt.Errorf("read mailboxes: %w", err)
	}
	defer f.Close()
	// The state is taken before reading: a file that is still being written has
	// another one at the next look, and is read again then.
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read mailboxes: %w", err)
	}
	s.last = fileState{info.Size(), info.ModTime()}

	b := newBuilder(s.path)
	if strings.EqualFold(filepath.Ext(s.path), ".csv") {
		err = readCSV(f, b)
	} else {
		var data []byte
		data, err = io.ReadAll(io.LimitReader(f, maxYAMLSize+1))
		if err == nil {
			readYAML(data, b)
		}
	}
	if err != nil {
		return fmt.Errorf("read mailboxes: %w", err)
	}
	return s.install(b)
}

func (s *Static) install(b *builder) error {
	ix, err := b.finish()
	if err != nil {
		return err
	}
	if b.plain > 0 && !s.lab {
		s.log.Warn().Str("file", s.path).Int("mailboxes", b.plain).Int("first_line", b.plainRef).
			Msg("mailboxes have plain passwords; write hash strings (argon2id) instead")
	}
	s.index.Store(ix)
	return nil
}

// watch polls instead of subscribing to file events: editors and configuration
// tools replace files, network file systems and bind mounts report nothing.
func (s *Static) watch() {
	tick := time.NewTicker(s.poll)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			s.look()
		}
	}
}

// look reads the file again if it changed. A file that cannot be used is
// reported once, until it changes again.
func (s *Static) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var now fileState
	if info, err := os.Stat(s.path); err == nil {
		now = fileState{info.Size(), info.ModTime()}
	}
	if now == s.last {
		return
	}
	if err := s.load(); err != nil {
		s.log.Error().Str("file", s.path).Err(err).Msg("mailboxes not reloaded; the old ones stay in use")
		return
	}
	s.log.Info().Str("file", s.path).Int("mailboxes", s.Len()).Msg("mailboxes reloaded")
}

// ByAddress implements [Directory].
func (s *Static) ByAddress(_ context.Context, address string) (*Mailbox, error) {
	address, err := NormalizeAddress(address)
	if err != nil {
		return nil, ErrNotFound
	}
	return found(s.index.Load().byAddress[address])
}

// ByLegacyDN implements [Directory].
func (s *Static) ByLegacyDN(_ context.Context, dn string) (*Mailbox, error) {
	return found(s.index.Load().byDN[foldCase(dn)])
}

// ByGUIDAddress implements [Directory].
func (s *Static) ByGUIDAddress(_ context.Context, address string) (*Mailbox, error) {
	local, domain, err := splitAddress(address)
	if err != nil {
		return nil, ErrNotFound
	}
	e := s.index.Load().byGUID[local]
	if e == nil || !strings.HasSuffix(e.Address, "@"+domain) {
		return nil, ErrNotFound
	}
	return &e.Mailbox, nil
}

func found(e *entry) (*Mailbox, error) {
	if e == nil {
		return nil, ErrNotFound
	}
	return &e.Mailbox, nil
}

// Authenticate implements [Directory]. When several mailboxes share the name,
// the first whose password fits is the one.
func (s *Static) Authenticate(ctx context.Context, name, password string) (*Mailbox, error) {
	ix := s.index.Load()
	name = NormalizeLogin(name)
	group := ix.candidates(name)
	known := len(group) > 0
	if !known && len(ix.loginable) > 0 {
		// An unknown name costs what some known name costs, always the same one:
		// were it a fixed hash, a file with two kinds of hashes would tell which
		// names exist.
		h := maphash.String(s.seed, name)
		stand := ix.loginable[h%uint64(len(ix.loginable))]
		group = ix.candidates(stand.Address)
		if shared := ix.candidates(NormalizeLogin(stand.Login)); h>>63 == 1 && len(shared) > 0 {
			group = shared
		}
	}
	password = norm.NFC.String(password) // RFC 8265: the same text typed elsewhere
	for _, e := range group {
		ok, err := s.check(ctx, e.password, password)
		if err != nil {
			return nil, err
		}
		if ok && known && password != "" {
			return &e.Mailbox, nil
		}
	}
	return nil, ErrBadCredentials
}

// Accounts implements [Directory].
func (s *Static) Accounts(_ context.Context, name string) ([]string, error) {
	var guids []string
	for _, e := range s.index.Load().candidates(NormalizeLogin(name)) {
		guids = append(guids, e.MailboxGUID)
	}
	return guids, nil
}

func (s *Static) check(ctx context.Context, v verifier, password string) (bool, error) {
	if !v.plain() {
		select {
		case s.hashing <- struct{}{}:
			defer func() { <-s.hashing }()
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	return v.verify(password), nil
}
