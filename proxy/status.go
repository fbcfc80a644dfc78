package proxy

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/autodgate/autodgate/internal/throttle"
)

// Status is what a server knows of itself and of the servers behind it, for
// administrators.
type Status struct {
	Connections int          `json:"connections"` // of clients, of every kind
	Sites       []SiteStatus `json:"sites"`
	// Certificates are what the hosts show now, in the order of their names.
	Certificates []HostCertificate `json:"certificates"`
	// FailedLogins tells who is shut out after too many of them.
	FailedLogins throttle.Counts `json:"failed_logins"`
}

// HostCertificate is the certificate that a host shows to clients.
type HostCertificate struct {
	Host        string           `json:"host"`
	Certificate *CertificateInfo `json:"certificate"` // nil: there is none, and TLS is refused
}

// SiteStatus is what is known of the servers of a site.
type SiteStatus struct {
	Name    string `json:"name"`
	Clients int    `json:"clients"` // signs of clients that lead to a server
	// AllowInternalUntrustedCerts is true where the servers are not authenticated.
	AllowInternalUntrustedCerts bool            `json:"allow_internal_untrusted_certs"`
	ExtendedProtection          string          `json:"extended_protection"`
	Servers                     []BackendStatus `json:"servers"`
}

// BackendStatus is what is known of one server.
type BackendStatus struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	Drain       bool   `json:"drain"`
	Connections int    `json:"connections"` // that are held to it for clients
	// Weight is the share of its turns that it gets: less than 1 while it starts slowly.
	Weight             float64       `json:"weight"`
	Connect            CheckStatus   `json:"connect"`
	VirtualDirectories []CheckStatus `json:"virtual_directories,omitempty"`
	// Bindings compares the server's certificate with that of each host, for Extended
	// Protection.
	Bindings []BindingStatus `json:"bindings,omitempty"`
}

// CheckStatus is what a check has found.
type CheckStatus struct {
	Name   string     `json:"name,omitempty"`   // the virtual directory
	State  string     `json:"state"`            // unknown, up, doubtful (passed over until it answers) or down
	Since  *time.Time `json:"since,omitempty"`  // when that was found
	Cause  string     `json:"cause,omitempty"`  // of the last failure since it was up
	Server string     `json:"server,omitempty"` // how the server calls itself
}

// Status returns what is known now.
func (s *Server) Status() Status {
	t := s.table.Load()
	out := Status{Connections: s.Connections(), Sites: []SiteStatus{}, FailedLogins: s.opts.Logins.Counts()}
	now := time.Now()
	bindings := s.Bindings()
	for _, site := range t.sites() {
		st := site.known()
		sum := SiteStatus{
			Name: site.Name, Clients: st.clients.len(), Servers: []BackendStatus{},
			AllowInternalUntrustedCerts: site.AllowInternalUntrustedCerts, ExtendedProtection: site.ExtendedProtection.String(),
		}
		for _, b := range site.Backends {
			bs := b.known(site)
			one := BackendStatus{
				Name: b.Name, Address: b.Address, Drain: bs.drain.Load(), Connections: bs.connections(),
				Weight: site.weight(bs, now), Connect: bs.reach.status(""),
			}
			if m := bs.checks.Load(); m != nil {
				for name, c := range *m {
					one.VirtualDirectories = append(one.VirtualDirectories, c.status(name))
				}
			}
			slices.SortFunc(one.VirtualDirectories, func(a, b CheckStatus) int { return strings.Compare(a.Name, b.Name) })
			for _, binding := range bindings {
				if binding.server == (serverKey{site.Name, b.Address}) {
					one.Bindings = append(one.Bindings, binding)
				}
			}
			sum.Servers = append(sum.Servers, one)
		}
		out.Sites = append(out.Sites, sum)
	}
	out.Certificates = t.certificates()
	slices.SortFunc(out.Sites, func(a, b SiteStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (c *check) status(name string) CheckStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := CheckStatus{Name: name, Cause: c.cause, Server: c.server}
	switch {
	case c.down.Load():
		s.State = "down"
	case c.out.Load():
		s.State = "doubtful"
	case c.known:
		s.State = "up"
	default:
		s.State = "unknown"
	}
	if !c.since.IsZero() {
		since := c.since.UTC()
		s.Since = &since
	}
	return s
}

// certificates returns what each host that has a certificate of its own shows.
func (t *Table) certificates() []HostCertificate {
	out := []HostCertificate{}
	seen := map[*Host]bool{}
	for _, h := range t.Hosts {
		if h.Leaf != nil && !seen[h] {
			seen[h] = true
			out = append(out, HostCertificate{h.Name, DescribeCertificate(h.leaf())})
		}
	}
	slices.SortFunc(out, func(a, b HostCertificate) int { return cmp.Compare(a.Host, b.Host) })
	return out
}
