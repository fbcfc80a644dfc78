package tlsconf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	mdns "github.com/miekg/dns"
)

const (
	dnsTime       = 10 * time.Second // for one question or update
	dnsSpreadTime = time.Minute      // for the zone's other servers to take a record over
	dnsSpreadPoll = time.Second
	dnsTTL        = 60 // seconds
	hookTime      = 2 * time.Minute
	dnsCleanTime  = 20 * time.Second // the end of the program waits for it
	hookOutput    = 2 << 10
)

// DNSRecords writes the TXT records of dns-01 (RFC 8555 section 8.4). Several values under one name stand side by side.
type DNSRecords interface {
	// Present adds a value under a name, which ends in a dot. It may return before every server has it.
	Present(ctx context.Context, fqdn, value string) error
	// CleanUp removes the value again. It is no error if it is not there.
	CleanUp(ctx context.Context, fqdn, value string) error
}

// dnsSolver solves dns-01 with somebody's records.
type dnsSolver struct{ records DNSRecords }

var (
	_ acmez.Solver = dnsSolver{}
	_ acmez.Waiter = dnsSolver{}
)

func (s dnsSolver) Present(ctx context.Context, ch acme.Challenge) error {
	return s.records.Present(ctx, mdns.Fqdn(ch.DNS01TXTRecordName()), ch.DNS01KeyAuthorization())
}

func (s dnsSolver) Wait(ctx context.Context, ch acme.Challenge) error {
	if w, ok := s.records.(interface {
		Wait(ctx context.Context, fqdn, value string) error
	}); ok {
		return w.Wait(ctx, mdns.Fqdn(ch.DNS01TXTRecordName()), ch.DNS01KeyAuthorization())
	}
	return nil
}

func (s dnsSolver) CleanUp(ctx context.Context, ch acme.Challenge) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dnsCleanTime)
	defer cancel()
	return s.records.CleanUp(ctx, mdns.Fqdn(ch.DNS01TXTRecordName()), ch.DNS01KeyAuthorization())
}

// DNSUpdate writes records by DNS update (RFC 2136), signed with TSIG and HMAC-SHA256 (RFC 8945) if there is a key.
type DNSUpdate struct {
	Server     string // host:port of the server that takes updates, the zone's primary
	TSIGName   string // "": not signed
	TSIGSecret string // base64
}

// Present implements [DNSRecords].
func (u *DNSUpdate) Present(ctx context.Context, fqdn, value string) error {
	return u.update(ctx, fqdn, value, (*mdns.Msg).Insert)
}

// CleanUp implements [DNSRecords].
func (u *DNSUpdate) CleanUp(ctx context.Context, fqdn, value string) error {
	return u.update(ctx, fqdn, value, (*mdns.Msg).Remove)
}

func (u *DNSUpdate) update(ctx context.Context, fqdn, value string, change func(*mdns.Msg, []mdns.RR)) error {
	name, zone, err := u.zone(ctx, fqdn)
	if err != nil {
		return err
	}
	m := new(mdns.Msg).SetUpdate(zone)
	change(m, []mdns.RR{&mdns.TXT{Hdr: mdns.RR_Header{Name: name, Rrtype: mdns.TypeTXT, Class: mdns.ClassINET, Ttl: dnsTTL}, Txt: []string{value}}})
	c := &mdns.Client{Net: "tcp", Timeout: dnsTime}
	if u.TSIGName != "" {
		key := mdns.CanonicalName(u.TSIGName)
		c.TsigSecret = map[string]string{key: u.TSIGSecret}
		m.SetTsig(key, mdns.HmacSHA256, 300, time.Now().Unix())
	}
	r, _, err := c.ExchangeContext(ctx, m, u.Server)
	if r == nil {
		return fmt.Errorf("DNS update of %s at %s: %w", name, u.Server, err)
	}
	// A refusal by reason of the key is not signed with it, which is an error as well.
	if r.Rcode != mdns.RcodeSuccess {
		hint := ""
		switch r.Rcode {
		case mdns.RcodeRefused:
			hint = " (may the key change this zone?)"
		case mdns.RcodeNotAuth:
			hint = " (is the key known there, with the algorithm hmac-sha256, and are both clocks right?)"
		}
		return fmt.Errorf("DNS update of %s at %s: the server says %s%s", name, u.Server, mdns.RcodeToString[r.Rcode], hint)
	}
	if err != nil {
		return fmt.Errorf("DNS update of %s at %s: %w", name, u.Server, err)
	}
	return nil
}

// zone finds the zone that a name lies in, asking the server that has it. A CNAME is followed: that is how the name is
// delegated to a zone that may be changed.
func (u *DNSUpdate) zone(ctx context.Context, fqdn string) (name, zone string, err error) {
	name = fqdn
	c := &mdns.Client{Net: "tcp", Timeout: dnsTime}
	for range 8 {
		r, _, err := c.ExchangeContext(ctx, new(mdns.Msg).SetQuestion(name, mdns.TypeSOA), u.Server)
		if err != nil {
			return "", "", fmt.Errorf("find the zone of %s at %s: %w", name, u.Server, err)
		}
		alias := ""
		for _, rr := range slices.Concat(r.Answer, r.Ns) {
			switch rr := rr.(type) {
			case *mdns.CNAME:
				if strings.EqualFold(rr.Hdr.Name, name) {
					alias = rr.Target
				}
			case *mdns.SOA:
				if alias == "" || mdns.IsSubDomain(rr.Hdr.Name, alias) {
					if alias != "" {
						name = alias
					}
					return name, rr.Hdr.Name, nil
				}
			}
		}
		if alias == "" {
			return "", "", fmt.Errorf("%s has no zone for %s (it says %s)", u.Server, name, mdns.RcodeToString[r.Rcode])
		}
		name = alias
	}
	return "", "", fmt.Errorf("%s leads through too many CNAME records", fqdn)
}

// Wait waits until the zone's other name servers have the value, as far as they can be reached from here. After a minute it
// is left to the issuer to judge.
func (u *DNSUpdate) Wait(ctx context.Context, fqdn, value string) error {
	name, zone, err := u.zone(ctx, fqdn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dnsSpreadTime)
	defer cancel()
	c := &mdns.Client{Net: "tcp", Timeout: dnsTime}
	r, _, err := c.ExchangeContext(ctx, new(mdns.Msg).SetQuestion(zone, mdns.TypeNS), u.Server)
	if err != nil {
		return fmt.Errorf("ask for the name servers of %s: %w", zone, err)
	}
	for _, rr := range r.Answer {
		ns, ok := rr.(*mdns.NS)
		if !ok {
			continue
		}
		addresses, err := net.DefaultResolver.LookupHost(ctx, ns.Ns)
		if err != nil {
			continue
		}
		for _, a := range addresses {
			for !hasValue(ctx, net.JoinHostPort(a, "53"), name, value) && ctx.Err() == nil {
				time.Sleep(dnsSpreadPoll)
			}
		}
	}
	return nil
}

// hasValue tells whether a server has a record, or cannot be asked.
func hasValue(ctx context.Context, server, name, value string) bool {
	r, _, err := (&mdns.Client{Net: "tcp", Timeout: dnsTime}).ExchangeContext(ctx, new(mdns.Msg).SetQuestion(name, mdns.TypeTXT), server)
	if err != nil || !r.Authoritative {
		return true
	}
	return slices.ContainsFunc(r.Answer, func(rr mdns.RR) bool {
		txt, ok := rr.(*mdns.TXT)
		return ok && strings.Join(txt.Txt, "") == value
	})
}

// DNSHook writes records by a program. It is called with three arguments: present or cleanup, the name with a final dot, and
// the value. It has to end with status 0, after present not before the record can be seen.
type DNSHook struct {
	Program string        // a file name; no shell is involved
	Timeout time.Duration // 0 is two minutes; after cleanup it is 20 s at most
}

// Present implements [DNSRecords].
func (h *DNSHook) Present(ctx context.Context, fqdn, value string) error {
	return h.run(ctx, "present", fqdn, value)
}

// CleanUp implements [DNSRecords].
func (h *DNSHook) CleanUp(ctx context.Context, fqdn, value string) error {
	return h.run(ctx, "cleanup", fqdn, value)
}

// lastBytes keeps the last hookOutput bytes of what is written to it.
type lastBytes []byte

func (l *lastBytes) Write(p []byte) (int, error) {
	all := append(*l, p...)
	*l = append((*l)[:0], all[max(0, len(all)-hookOutput):]...)
	return len(p), nil
}

func (h *DNSHook) run(ctx context.Context, args ...string) error {
	limit := h.Timeout
	if limit <= 0 {
		limit = hookTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.Program, args...)
	var out lastBytes
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // children that keep the output open are not waited for
	err := cmd.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	said := strings.TrimSpace(string(out))
	if said != "" {
		return fmt.Errorf("%s %s: %w: %s", h.Program, args[0], err, said)
	}
	return fmt.Errorf("%s %s: %w", h.Program, args[0], err)
}
