package tlsconf

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// FirstUse is trust by first use in one backend: the key that it shows first is remembered in a file, and no other is
// accepted after that, also not by the next process. Whoever removes the file begins anew. It is safe for several
// connections, and for several processes with one directory.
type FirstUse struct {
	file, address string
	log           zerolog.Logger
}

// NewFirstUse says where the key of a site's server (host:port) is remembered: in a file of its own in dir, which is made
// when there is something to remember. Nothing is opened yet. The log is told of the key when it is.
func NewFirstUse(dir, site, address string, log zerolog.Logger) *FirstUse {
	return &FirstUse{
		file: pinFile(dir, site, address), address: address,
		log: log.With().Str("site", site).Str("backend", address).Logger(),
	}
}

// File is where the key is remembered.
func (f *FirstUse) File() string { return f.file }

// pinFile is the file for one server of one site. Names that differ have files that differ, whatever is in them.
func pinFile(dir, site, address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, ""
	}
	return filepath.Join(dir, fileName(site)+"@"+fileName(host)+"_"+fileName(port)+".pin")
}

// fileName escapes what has no place in the name of a file, and what separates names there.
func fileName(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// check accepts the key that is remembered, or remembers this one. The file is read every time, so that removing it takes
// effect without a restart.
func (f *FirstUse) check(cs tls.ConnectionState) error {
	leaf, err := leafOf(cs)
	if err != nil {
		return err
	}
	pins, err := f.read()
	for range 3 {
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err = f.remember(leaf); err == nil {
			f.log.Warn().Str("pin", KeyPin(leaf).String()).Str("subject", displayName(leaf)).Str("file", f.file).
				Msg("first use: the server's key is remembered, and trusted from now on")
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("trust by first use: the server's key is not accepted, since it cannot be remembered: %w", err)
		}
		// Another connection or another process came first: what that one saw counts.
		pins, err = f.read()
	}
	if err != nil {
		return fmt.Errorf("trust by first use: %w", err)
	}
	if slices.ContainsFunc(pins, func(p Pin) bool { return p.matches(leaf) }) {
		return nil
	}
	return fmt.Errorf("the server's key is not the one of the first use: it is %s, of %q, and %s says %s (if the server has been given a new key, "+
		"remove that file; if not, somebody stands in between)", KeyPin(leaf), displayName(leaf), f.file, pins[0])
}

// read returns the pins in the file. There is more than one where somebody wrote the next key into it beforehand. The error
// is fs.ErrNotExist if there is no file; an empty one is not that.
func (f *FirstUse) read() ([]Pin, error) {
	data, err := os.ReadFile(f.file)
	if err != nil {
		return nil, err
	}
	var pins []Pin
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		p, err := ParsePin(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.file, err)
		}
		pins = append(pins, p)
	}
	if len(pins) == 0 {
		return nil, fmt.Errorf("%s holds no pin; remove it to begin anew", f.file)
	}
	return pins, nil
}

// remember writes the file, whole or not at all, and only if there is none: fs.ErrExist otherwise.
func (f *FirstUse) remember(leaf *x509.Certificate) (err error) {
	dir := filepath.Dir(f.file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".pin-*") // made with 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	var text bytes.Buffer
	fmt.Fprintf(&text, "# The key that %s showed at its first use, %s, in the certificate\n# of %q. No other key is accepted. Remove this file when the server has been given a new key.\n%s\n",
		f.address, time.Now().UTC().Format(time.RFC3339), displayName(leaf), KeyPin(leaf))
	if _, err = tmp.Write(text.Bytes()); err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	// A link, since a rename would replace what another has just remembered.
	return os.Link(tmp.Name(), f.file)
}
