package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
	"github.com/rs/zerolog"
)

// dnsServer is authoritative for the scenario's zones and refuses everything else. It answers on UDP and TCP of one port.
type dnsServer struct {
	zones map[string]*zone // by origin, lower case with final dot
	addr  string
	log   zerolog.Logger
	udp   *dns.Server
	tcp   *dns.Server
	wait  sync.WaitGroup

	mu      sync.Mutex
	queries []Query
}

// Query is one question that reached the lab's DNS server.
type Query struct {
	Name string // as asked, with final dot
	Type string // A, SRV, …
	Code string // NOERROR, NXDOMAIN, REFUSED, …
}

// keepQueries bounds the memory of a lab that is left running: older queries go first.
const keepQueries = 10_000

type zone struct {
	soa     *dns.SOA
	records map[string][]dns.RR // by owner
	nodes   map[string]bool     // every name that exists, empty non-terminals too (RFC 8020)
}

// maxCNAME ends chains that a scenario made circular.
const maxCNAME = 8

// parseZone reads zone-file text (RFC 1035 section 5). A SOA is made up where the text has none, since negative answers need one.
func parseZone(origin, text string) (*zone, error) {
	origin = dns.CanonicalName(origin)
	z := &zone{records: map[string][]dns.RR{}, nodes: map[string]bool{origin: true}}
	p := dns.NewZoneParser(strings.NewReader(text), origin, "")
	p.SetDefaultTTL(60)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		h := rr.Header()
		h.Name = dns.CanonicalName(h.Name)
		if !dns.IsSubDomain(origin, h.Name) {
			return nil, fmt.Errorf("%s is not in zone %s", h.Name, origin)
		}
		switch rr := rr.(type) {
		case *dns.SOA:
			z.soa = rr
		case *dns.A, *dns.AAAA, *dns.CNAME, *dns.SRV, *dns.MX, *dns.TXT, *dns.NS:
		default:
			return nil, fmt.Errorf("%s: record type %s is not served", h.Name, dns.TypeToString[h.Rrtype])
		}
		z.records[h.Name] = append(z.records[h.Name], rr)
		for n := h.Name; n != origin; {
			z.nodes[n] = true
			i, _ := dns.NextLabel(n, 0)
			n = n[i:]
		}
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	for name, rrs := range z.records {
		cname := slices.ContainsFunc(rrs, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeCNAME })
		if cname && len(rrs) > 1 {
			return nil, fmt.Errorf("%s has a CNAME and something else (RFC 1034 section 3.6.2)", name)
		}
	}
	if z.soa == nil {
		z.soa = &dns.SOA{
			Hdr: dns.RR_Header{Name: origin, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 60},
			Ns:  "ns." + origin, Mbox: "hostmaster." + origin, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: 60,
		}
		z.records[origin] = append(z.records[origin], z.soa)
	}
	return z, nil
}

func startDNS(zones map[string]*zone, log zerolog.Logger) (*dnsServer, error) {
	s := &dnsServer{zones: zones, log: log}
	pc, ln, err := listenBoth()
	if err != nil {
		return nil, err
	}
	s.addr = pc.LocalAddr().String()
	s.udp = &dns.Server{PacketConn: pc, Handler: s}
	s.tcp = &dns.Server{Listener: ln, Handler: s}
	for _, srv := range []*dns.Server{s.udp, s.tcp} {
		// Shutdown of a server that has not come up yet does nothing, so wait for it here.
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		s.wait.Add(1)
		go func() {
			defer s.wait.Done()
			if err := srv.ActivateAndServe(); err != nil {
				log.Error().Err(err).Msg("lab DNS server ended")
			}
		}()
		<-up
	}
	return s, nil
}

// listenBoth finds a port that is free for UDP and TCP.
func listenBoth() (net.PacketConn, net.Listener, error) {
	var errs []error
	for range 20 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		if err == nil {
			return pc, ln, nil
		}
		errs = append(errs, err)
		_ = ln.Close()
	}
	return nil, nil, fmt.Errorf("no port free for UDP and TCP: %w", errors.Join(errs...))
}

func (s *dnsServer) close() {
	_ = s.udp.Shutdown()
	_ = s.tcp.Shutdown()
	s.wait.Wait()
}

// ServeDNS implements dns.Handler.
func (s *dnsServer) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	m := s.answer(req)
	size := dns.MinMsgSize
	if opt := req.IsEdns0(); opt != nil {
		size = int(max(opt.UDPSize(), dns.MinMsgSize))
		m.SetEdns0(dns.DefaultMsgSize, false)
	}
	if w.RemoteAddr().Network() == "udp" {
		m.Truncate(size)
	}
	if err := w.WriteMsg(m); err != nil {
		s.log.Debug().Err(err).Msg("write DNS answer")
	}
}

func (s *dnsServer) answer(req *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(req)
	m.Compress = true
	if req.Opcode != dns.OpcodeQuery {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	if len(req.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	q := req.Question[0]
	if q.Qclass != dns.ClassINET {
		m.Rcode = dns.RcodeRefused
	} else {
		s.resolve(m, dns.CanonicalName(q.Name), q.Qtype)
	}

	entry := Query{q.Name, dns.TypeToString[q.Qtype], dns.RcodeToString[m.Rcode]}
	s.mu.Lock()
	if len(s.queries) >= keepQueries {
		s.queries = slices.Delete(s.queries, 0, keepQueries/10)
	}
	s.queries = append(s.queries, entry)
	s.mu.Unlock()
	s.log.Debug().Str("name", entry.Name).Str("type", entry.Type).Str("code", entry.Code).Msg("DNS query")
	return m
}

// resolve follows CNAMEs as far as the lab's own zones go (RFC 1034 section 4.3.2); negative answers carry the SOA (RFC 2308).
func (s *dnsServer) resolve(m *dns.Msg, name string, qtype uint16) {
	for hop := range maxCNAME {
		z := s.zoneOf(name)
		if z == nil {
			if hop == 0 {
				m.Rcode = dns.RcodeRefused
			}
			return
		}
		m.Authoritative = true
		var cname *dns.CNAME
		found := false
		for _, rr := range z.records[name] {
			if rr.Header().Rrtype == qtype || qtype == dns.TypeANY {
				m.Answer = append(m.Answer, dns.Copy(rr))
				found = true
			} else if c, ok := rr.(*dns.CNAME); ok {
				cname = c
			}
		}
		if found {
			return
		}
		if cname == nil {
			if !z.nodes[name] {
				m.Rcode = dns.RcodeNameError
			}
			soa := dns.Copy(z.soa).(*dns.SOA)
			soa.Hdr.Ttl = min(soa.Hdr.Ttl, soa.Minttl)
			m.Ns = append(m.Ns, soa)
			return
		}
		m.Answer = append(m.Answer, dns.Copy(cname))
		name = dns.CanonicalName(cname.Target)
	}
}

// zoneOf finds the closest zone around name.
func (s *dnsServer) zoneOf(name string) *zone {
	for off, end := 0, false; !end; off, end = dns.NextLabel(name, off) {
		if z := s.zones[name[off:]]; z != nil {
			return z
		}
	}
	return nil
}

func (s *dnsServer) seen() []Query {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.queries)
}

// resolver asks this server alone, whatever the machine is configured for.
func (s *dnsServer) resolver() *net.Resolver {
	return &net.Resolver{
		PreferGo: true,
		Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, s.addr)
		},
	}
}
