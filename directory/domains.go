package directory

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"
	"golang.org/x/net/idna"
)

// Bounds of a domains file. Both leave room for ten times the largest hoster that
// the file is meant for.
const (
	maxDomainsFile = 64 << 20 // bytes
	maxDomainsLine = 4 << 10  // bytes; more is no domain, whatever it is
)

// maxDomain is the longest domain that can have an autodiscover name below it
// (RFC 1035 section 2.3.4: 255 octets on the wire are 253 characters).
const maxDomain = 253 - len(autodiscoverLabel)

const autodiscoverLabel = "autodiscover."

// Domains are the mail domains of a file, one a line, for which the front door is
// nothing but a redirect site. They are read again when the file changes. It is
// safe for concurrent use.
type Domains struct {
	path string
	log  zerolog.Logger
	set  atomic.Pointer[domainSet]

	mu         sync.Mutex // guards the files seen, and serialises loads
	used, seen fs.FileInfo

	stop    chan struct{}
	stopped sync.Once
	done    sync.WaitGroup
}

// OpenDomains reads a domains file, and looks every poll whether it has changed,
// until Close; zero or less is never. A line that is no domain is left out and
// logged: one bad line must not take down all. The error is a [*LoadError] when the
// file can be read and has no domain in it, or more bad lines than good ones: that is
// another file, or half of one.
func OpenDomains(path string, poll time.Duration, log zerolog.Logger) (*Domains, error) {
	d := &Domains{path: path, log: log, stop: make(chan struct{})}
	if err := d.Reload(); err != nil {
		return nil, err
	}
	if poll > 0 {
		d.done.Go(func() { d.watch(poll) })
	}
	return d, nil
}

// Close stops watching the file. The domains stay as they are.
func (d *Domains) Close() error {
	d.stopped.Do(func() { close(d.stop) })
	d.done.Wait()
	return nil
}

// Len returns the number of domains, each counted once.
func (d *Domains) Len() int { return d.set.Load().count }

// Bytes returns how much memory the domains take.
func (d *Domains) Bytes() int { return d.set.Load().bytes() }

// Duplicates returns how many lines say again what another has said.
func (d *Domains) Duplicates() int { return d.set.Load().duplicates }

// Skipped returns what is wrong with the lines that were left out, of many only the
// first; nil if there are none.
func (d *Domains) Skipped() *LoadError {
	if skipped := d.set.Load().skipped; len(skipped.Problems) > 0 {
		return &skipped
	}
	return nil
}

// Has tells whether a domain, in lower-case A-labels, is in the file. It takes the
// same time for any number of domains, and allocates nothing.
func (d *Domains) Has(domain string) bool { return d.set.Load().has(domain) }

// Serves tells whether a host name, in lower-case A-labels, is one that clients look
// for the Autodiscover service of a domain under: autodiscover.<domain>, and <domain>
// itself, whose http:// URL some of them try as well ([MS-OXDISCO] section 3.1.5.2).
func (d *Domains) Serves(host string) bool {
	set := d.set.Load()
	domain, ok := strings.CutPrefix(host, autodiscoverLabel)
	return ok && set.has(domain) || set.has(host)
}

// Reload reads the file now. On error the domains stay as they were.
func (d *Domains) Reload() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.load()
}

func (d *Domains) load() error {
	f, err := os.Open(d.path)
	if err != nil {
		return fmt.Errorf("read domains: %w", err)
	}
	defer f.Close()
	// The state is taken before reading: a file that is still being written has
	// another one at the next look, and is read again then.
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read domains: %w", err)
	}
	d.used, d.seen = info, info
	if info.Size() > maxDomainsFile {
		return fmt.Errorf("read domains: %s has %d MB, and %d MB is the limit", d.path, info.Size()>>20, maxDomainsFile>>20)
	}
	set, err := readDomains(io.LimitReader(f, maxDomainsFile), d.path, int(info.Size()))
	if err != nil {
		return err
	}
	d.set.Store(set)
	if skipped := d.Skipped(); skipped != nil {
		d.log.Warn().Str("file", d.path).Int("lines", len(skipped.Problems)+skipped.Omitted).Int("first_line", skipped.Problems[0].Line).
			Str("first_problem", skipped.Problems[0].Text).Msg("lines that are no domain were left out; check lists them")
	}
	return nil
}

// watch polls instead of subscribing to file events, as for mailboxes.
func (d *Domains) watch(poll time.Duration) {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		select {
		case <-d.stop:
			return
		case <-tick.C:
			d.look()
		}
	}
}

// look reads the file again if it has changed and has been left alone since the look
// before: it may be written in many steps, and in between it holds too few domains.
// A file that cannot be used is reported once, until it changes again.
func (d *Domains) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	info, err := os.Stat(d.path)
	if err != nil {
		return // between the steps of a rename, say
	}
	settled := sameVersion(info, d.seen)
	d.seen = info
	if !settled || sameVersion(info, d.used) {
		return
	}
	d.used = info
	if err := d.load(); err != nil {
		d.log.Error().Str("file", d.path).Err(err).Msg("domains not reloaded; the old ones stay in use")
		return
	}
	d.log.Info().Str("file", d.path).Int("domains", d.Len()).Msg("domains reloaded")
}

func sameVersion(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// readDomains reads one domain a line. Empty lines, and what follows a #, are no part
// of the list. The size is that of the file, as far as it is known.
func readDomains(r io.Reader, path string, size int) (*domainSet, error) {
	set := &domainSet{seed: maphash.MakeSeed(), names: make([]byte, 0, size+1), slots: make([]uint32, 16), skipped: LoadError{Path: path}}
	in := bufio.NewReaderSize(r, maxDomainsLine)
	if bom, err := in.Peek(3); err == nil && string(bom) == "\xef\xbb\xbf" {
		_, _ = in.Discard(3)
	}
	bad := 0
	for number := 1; ; number++ {
		line, more, err := in.ReadLine()
		if err == io.EOF {
			break
		}
		if more { // the rest of a line that is too long
			line = bytes.Clone(line)
			for more && err == nil {
				_, more, err = in.ReadLine()
			}
		}
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("read domains: %w", err)
		}
		line, _, _ = bytes.Cut(line, []byte("#"))
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		domain, err := domainOfLine(line)
		if err != nil {
			bad++
			set.skip(number, "%v", err)
			continue
		}
		if !set.add(domain) {
			set.duplicates++
		}
	}
	switch {
	case set.count == 0 && bad == 0:
		return nil, &LoadError{Path: path, Problems: []Problem{{Text: "there is no domain in the file"}}}
	case bad > set.count+set.duplicates:
		e := set.skipped
		e.Problems = append([]Problem{{Text: fmt.Sprintf("%d of %d lines are no domains: this is no list of domains, one a line", bad, bad+set.count+set.duplicates)}}, e.Problems...)
		return nil, &e
	}
	set.names = bytes.Clone(set.names) // without the room that comments and repetitions had
	return set, nil
}

// domainOfLine returns the canonical form of a domain as somebody has written it. The
// result may be a part of line.
func domainOfLine(line []byte) ([]byte, error) {
	no := func(why string) ([]byte, error) {
		const most = 64 // bytes that are shown of what is no domain
		if len(line) > most {
			return nil, fmt.Errorf("%q… %s", line[:most], why)
		}
		return nil, fmt.Errorf("%q %s", line, why)
	}
	if !utf8.Valid(line) {
		return no("is not UTF-8")
	}
	name, ok := plainDomain(line)
	if !ok {
		text, err := listedDomain.ToASCII(strings.TrimSuffix(string(line), "."))
		if name, ok = plainDomain([]byte(text)); err != nil || !ok {
			return no("is not a domain such as contoso.com")
		}
	}
	switch rest := bytes.TrimPrefix(name, []byte(autodiscoverLabel)); {
	case bytes.IndexByte(name, '.') < 0:
		return no("has no dot: it would stand for a whole top-level domain")
	case len(name) > maxDomain:
		return no("is too long for a name below it")
	case len(bytes.Trim(name[bytes.LastIndexByte(name, '.')+1:], "0123456789")) == 0:
		return no("is an IP address, or looks like one")
	case len(rest) < len(name) && bytes.IndexByte(rest, '.') >= 0:
		return no("is a host name: the line is to be the mail domain, " + string(rest))
	}
	return name, nil
}

// listedDomain brings internationalised domains into A-labels, as clients do (UTS 46,
// non-transitional). Hyphens in the third and fourth place are let through: such
// domains exist.
var listedDomain = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(true), idna.CheckHyphens(false),
	idna.VerifyDNSLength(true), idna.Transitional(false))

// plainDomain folds the letter case of an ordinary domain in place: letters, digits
// and hyphens (RFC 1123 section 2.1), A-labels among them. All else is for idna, which
// takes many times as long.
func plainDomain(line []byte) (name []byte, ok bool) {
	name = bytes.TrimSuffix(line, []byte("."))
	label := 0 // where it begins
	for i := 0; i <= len(name); i++ {
		if i == len(name) || name[i] == '.' {
			if n := i - label; n == 0 || n > 63 || name[label] == '-' || name[i-1] == '-' {
				return nil, false
			}
			label = i + 1
			continue
		}
		switch c := name[i]; {
		case 'A' <= c && c <= 'Z':
			name[i] = c | 0x20
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		default:
			return nil, false
		}
	}
	return name, true
}

// domainSet is a set of names that is built once and read often: the names in one
// piece of memory, each with a line feed behind it, and an open hash table of where
// they begin. A map of strings takes three times as much.
type domainSet struct {
	names []byte
	slots []uint32 // 1 + where a name begins, or 0; a power of two, at most half of them taken
	seed  maphash.Seed
	count int

	duplicates int
	skipped    LoadError
}

func (s *domainSet) bytes() int { return cap(s.names) + 4*cap(s.slots) }

func (s *domainSet) skip(line int, format string, args ...any) {
	if len(s.skipped.Problems) >= maxProblems {
		s.skipped.Omitted++
		return
	}
	s.skipped.Problems = append(s.skipped.Problems, Problem{line, fmt.Sprintf(format, args...)})
}

// at returns the name that begins there.
func (s *domainSet) at(begin uint32) []byte {
	name := s.names[begin:]
	return name[:bytes.IndexByte(name, '\n')]
}

func (s *domainSet) has(name string) bool {
	for i := int(maphash.String(s.seed, name)); ; i++ {
		slot := s.slots[i&(len(s.slots)-1)]
		if slot == 0 {
			return false
		}
		if string(s.at(slot-1)) == name { // compared without a copy
			return true
		}
	}
}

// add reports whether the name is new.
func (s *domainSet) add(name []byte) bool {
	if s.has(string(name)) {
		return false
	}
	if s.count++; 2*s.count > len(s.slots) {
		old := s.slots
		s.slots = make([]uint32, 2*len(old))
		for _, slot := range old {
			if slot > 0 {
				s.put(slot)
			}
		}
	}
	s.names = append(append(s.names, name...), '\n')
	s.put(uint32(len(s.names) - len(name)))
	return true
}

// put enters where a name begins, plus one, into a slot.
func (s *domainSet) put(begin uint32) {
	i := int(maphash.Bytes(s.seed, s.at(begin-1)))
	for s.slots[i&(len(s.slots)-1)] != 0 {
		i++
	}
	s.slots[i&(len(s.slots)-1)] = begin
}
