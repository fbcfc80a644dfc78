package config

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
)

// Parse reads a configuration. The name is the file's: it stands in the report, and relative file names inside the
// configuration are relative to its directory. Nothing is opened. The Config is nil when the report holds an error.
func Parse(name string, src []byte) (*Config, Report) {
	r := Report{name: name}
	body := read(src, &r)
	if body == nil {
		r.sort()
		return nil, r
	}
	c := &Config{dir: filepath.Dir(name)}
	f := newFindings(&r)
	d := decoder{f}
	d.place(nil, nil, body)
	d.value(body, reflect.ValueOf(c).Elem(), field{typ: reflect.TypeFor[Config]()}, nil)
	validator{findings: f, c: c}.all()
	r.sort()
	if !r.OK() {
		return nil, r
	}
	return c, r
}

// Load reads a configuration file. The error is about reading it; what is wrong inside is in the report.
func Load(name string) (*Config, Report, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, Report{}, fmt.Errorf("read config: %w", err)
	}
	defer file.Close()
	src, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return nil, Report{}, fmt.Errorf("read config: %w", err)
	}
	c, r := Parse(name, src)
	return c, r, nil
}

// Path is a file name of the configuration as it is to be opened: relative names are relative to the directory of the
// configuration file.
func (c *Config) Path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(c.dir, name)
}

// HostNames returns the names of the hosts, without their aliases, in order.
func (c *Config) HostNames() []string { return sortedKeys(c.Hosts) }

// SiteNames returns the names of the sites, in order.
func (c *Config) SiteNames() []string { return sortedKeys(c.Sites) }

// DomainNames returns the mail domains, in order.
func (c *Config) DomainNames() []string { return sortedKeys(c.Domains) }

// Mode is the one thing a host does.
type Mode string

// The modes of a host, by the key that sets them.
const (
	ModeSite        Mode = "site"
	ModePassthrough Mode = "passthrough"
	ModeRedirect    Mode = "redirect"
	ModeAnswer      Mode = "answer"
)

// Mode returns the one thing the host does.
func (h *Host) Mode() Mode {
	switch {
	case h.Passthrough != nil:
		return ModePassthrough
	case h.Redirect != "":
		return ModeRedirect
	case h.Answer:
		return ModeAnswer
	}
	return ModeSite
}

// Path is a published, internal or denied path of a host.
type Path struct {
	Prefix string // in lower case, to be matched on segment borders and without regard to case
	Name   string // of the virtual directory; empty for a prefix of the file's own
	// VirtualDirectory is what the file says about it. Zero values leave what the preset has.
	VirtualDirectory
}

// Paths returns what the file says about the host's virtual directories and path prefixes, in the order of their prefixes.
// The preset they are merged over is not in it.
func (h *Host) Paths() []Path {
	var paths []Path
	for key, v := range h.VirtualDirectories {
		p := Path{Prefix: key, VirtualDirectory: *v}
		if known, ok := vdirPaths[key]; ok {
			p.Prefix, p.Name = known, key
		}
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(a, b Path) int { return strings.Compare(a.Prefix, b.Prefix) })
	return paths
}

// Protection returns the Extended Protection in effect: off, auto or required. Without the key it is auto where Exchange has
// it on by default, which is from 2019 CU14 on.
func (s *Site) Protection() string {
	switch {
	case s.ExtendedProtection != "":
		return s.ExtendedProtection
	case s.Offload:
		return "off" // nothing to compare; see RuleProtectionOffload
	case s.Exchange == "2019" || s.Exchange == "SE":
		return "auto"
	}
	return "off"
}

// Scheme returns https or http.
func (s Server) Scheme() string { return s.url().Scheme }

// Host returns the server's host name or IP address, without brackets.
func (s Server) Host() string { return s.url().Hostname() }

// Address returns host:port, as it is dialled. Without a port in the URL it is the scheme's own: 443 or 80.
func (s Server) Address() string {
	u := s.url()
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// ServerLabel returns what a server of the site is called in logs: its host, and its port as well where that alone tells
// two servers apart.
func (s *Site) ServerLabel(server Server) string {
	for _, other := range s.Servers {
		if other.Host() == server.Host() && other.Address() != server.Address() {
			return server.Address()
		}
	}
	return server.Host()
}

// url parses what Parse has accepted.
func (s Server) url() *url.URL {
	u, err := url.Parse(s.URL)
	if err != nil {
		return &url.URL{}
	}
	return u
}

// identification are the response headers that tell which server answered, and in which version (PROXYING.md section 11.5).
var identification = []string{"X-FEServer", "X-BEServer", "X-CalculatedBETarget", "X-DiagInfo", "X-OWA-Version", "X-AspNet-Version", "X-Powered-By", "Server"}

// HiddenHeaders returns the response headers that clients of the host do not get.
func (h *Host) HiddenHeaders() []string {
	switch {
	case h.HideHeaders == nil:
		return nil
	case h.HideHeaders.Known != "":
		return slices.Clone(identification)
	}
	return slices.Clone(h.HideHeaders.Names)
}
