package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// One question to one DNS server waits this long, and is asked again once: UDP loses packets.
const (
	dnsTimeout  = 2 * time.Second
	dnsAttempts = 2
	maxCNAMEs   = 8
)

// dnsError is an answer (or its absence) in words fit for a trace.
type dnsError struct{ text string }

func (e *dnsError) Error() string { return e.text }

// resolver asks DNS servers directly, so that a trace can show every record. Without any server known it uses the system's resolver, and shows addresses only.
type resolver struct {
	servers []string
}

func newResolver(server string) (*resolver, error) {
	if server != "" {
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(strings.Trim(server, "[]"), "53")
		}
		return &resolver{servers: []string{server}}, nil
	}
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return &resolver{}, nil // not every system has the file
	}
	r := &resolver{}
	for _, s := range conf.Servers {
		r.servers = append(r.servers, net.JoinHostPort(s, conf.Port))
	}
	return r, nil
}

// addresses returns the IPv4 then IPv6 addresses of host and the records seen on the way.
func (r *resolver) addresses(ctx context.Context, host string) ([]netip.Addr, []string, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil, nil
	}
	if len(r.servers) == 0 {
		return systemAddresses(ctx, host)
	}
	var (
		addrs   []netip.Addr
		records []string
		failed  error
	)
	for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
		a, recs, err := r.chase(ctx, host, qtype)
		for _, rec := range recs {
			if !slices.Contains(records, rec) {
				records = append(records, rec)
			}
		}
		addrs = append(addrs, a...)
		if err != nil && failed == nil {
			failed = err
		}
	}
	switch {
	case len(addrs) > 0:
		return addrs, records, nil
	case failed != nil:
		return nil, records, failed
	}
	return nil, records, &dnsError{host + " has no address"}
}

// chase asks for one type and follows CNAMEs that the server did not resolve itself.
func (r *resolver) chase(ctx context.Context, host string, qtype uint16) ([]netip.Addr, []string, error) {
	var records []string
	name := dns.Fqdn(host)
	for range maxCNAMEs {
		msg, err := r.ask(ctx, name, qtype)
		if err != nil {
			return nil, records, err
		}
		var addrs []netip.Addr
		asked := name
		for range msg.Answer { // CNAMEs may come in any order
			for _, rr := range msg.Answer {
				if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, name) {
					rec := trimDot(c.Hdr.Name) + " CNAME " + trimDot(c.Target)
					if !slices.Contains(records, rec) {
						records = append(records, rec)
					}
					name = c.Target
				}
			}
		}
		for _, rr := range msg.Answer {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			var ip net.IP
			switch rr := rr.(type) {
			case *dns.A:
				ip = rr.A
			case *dns.AAAA:
				ip = rr.AAAA
			default:
				continue
			}
			if a, ok := netip.AddrFromSlice(ip); ok {
				addrs = append(addrs, a.Unmap())
				records = append(records, fmt.Sprintf("%s %s %s", trimDot(name), dns.TypeToString[rr.Header().Rrtype], a.Unmap()))
			}
		}
		if len(addrs) > 0 {
			return addrs, records, nil
		}
		if err := answerError(msg, name); err != nil {
			return nil, records, err
		}
		if name == asked {
			return nil, records, nil
		}
	}
	return nil, records, &dnsError{host + ": too many CNAMEs"}
}

// srv returns the SRV records of name, best first, and the records seen.
func (r *resolver) srv(ctx context.Context, name string) ([]*dns.SRV, []string, error) {
	if len(r.servers) == 0 {
		return systemSRV(ctx, name)
	}
	msg, err := r.ask(ctx, dns.Fqdn(name), dns.TypeSRV)
	if err != nil {
		return nil, nil, err
	}
	var (
		found   []*dns.SRV
		records []string
	)
	for _, rr := range msg.Answer {
		switch rr := rr.(type) {
		case *dns.SRV:
			found = append(found, rr)
		case *dns.CNAME:
			records = append(records, trimDot(rr.Hdr.Name)+" CNAME "+trimDot(rr.Target))
		}
	}
	if len(found) == 0 {
		if err := answerError(msg, name); err != nil {
			return nil, records, err
		}
		return nil, records, &dnsError{"there is no SRV record " + trimDot(name)}
	}
	sortSRV(found)
	for _, s := range found {
		records = append(records, fmt.Sprintf("%s SRV %d %d %d %s", trimDot(s.Hdr.Name), s.Priority, s.Weight, s.Port, s.Target))
	}
	return found, records, nil
}

// sortSRV puts the lowest priority first and the highest weight first among equals. RFC 2782 would draw lots by weight; a trace should come out the same twice.
func sortSRV(records []*dns.SRV) {
	slices.SortStableFunc(records, func(a, b *dns.SRV) int {
		if a.Priority != b.Priority {
			return int(a.Priority) - int(b.Priority)
		}
		if a.Weight != b.Weight {
			return int(b.Weight) - int(a.Weight)
		}
		return strings.Compare(a.Target, b.Target)
	})
}

// answerError turns a response code into words; nil for a name that exists.
func answerError(msg *dns.Msg, name string) error {
	switch msg.Rcode {
	case dns.RcodeSuccess:
		return nil
	case dns.RcodeNameError:
		return &dnsError{trimDot(name) + " does not exist in DNS"}
	}
	return &dnsError{fmt.Sprintf("DNS answers %s for %s", dns.RcodeToString[msg.Rcode], trimDot(name))}
}

// ask puts one question to the servers in turn until one answers.
func (r *resolver) ask(ctx context.Context, name string, qtype uint16) (*dns.Msg, error) {
	q := new(dns.Msg)
	q.SetQuestion(name, qtype)
	q.SetEdns0(1232, false)
	for range dnsAttempts {
		for _, server := range r.servers {
			msg, err := askServer(ctx, "udp", server, q)
			if err == nil && msg.Truncated {
				msg, err = askServer(ctx, "tcp", server, q)
			}
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err == nil && len(msg.Question) == 1 && (msg.Rcode == dns.RcodeSuccess || msg.Rcode == dns.RcodeNameError) {
				return msg, nil
			}
			if err == nil && server == r.servers[len(r.servers)-1] && len(msg.Question) == 1 {
				return msg, nil // a refusal by the last server is the answer
			}
		}
	}
	return nil, &dnsError{"no DNS server answers for " + trimDot(name)}
}

func askServer(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	c := dns.Client{Net: network, Timeout: dnsTimeout}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	// The library heeds the deadline of a context, but not that it is cancelled.
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		stop()
		_ = conn.Close()
	}()
	msg, _, err := c.ExchangeWithConnContext(ctx, q, conn)
	return msg, err
}

func systemAddresses(ctx context.Context, host string) ([]netip.Addr, []string, error) {
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, nil, systemError(ctx, err, host)
	}
	var records []string
	for i, a := range addrs {
		addrs[i] = a.Unmap()
		kind := "AAAA"
		if addrs[i].Is4() {
			kind = "A"
		}
		records = append(records, host+" "+kind+" "+addrs[i].String())
	}
	return addrs, records, nil
}

func systemSRV(ctx context.Context, name string) ([]*dns.SRV, []string, error) {
	_, list, err := net.DefaultResolver.LookupSRV(ctx, "", "", name)
	if err != nil {
		return nil, nil, systemError(ctx, err, name)
	}
	var (
		found   []*dns.SRV
		records []string
	)
	for _, s := range list {
		found = append(found, &dns.SRV{Priority: s.Priority, Weight: s.Weight, Port: s.Port, Target: s.Target})
	}
	sortSRV(found)
	for _, s := range found {
		records = append(records, fmt.Sprintf("%s SRV %d %d %d %s", trimDot(name), s.Priority, s.Weight, s.Port, s.Target))
	}
	return found, records, nil
}

func systemError(ctx context.Context, err error, name string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var de *net.DNSError
	if errors.As(err, &de) && de.IsNotFound {
		return &dnsError{trimDot(name) + " does not exist in DNS"}
	}
	return &dnsError{"no DNS server answers for " + trimDot(name)}
}

func trimDot(name string) string { return strings.TrimSuffix(name, ".") }
