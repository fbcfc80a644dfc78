package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// ServeRPC serves connections of ln that Outlook makes to the RPC Client Access
// service of Exchange 2010 (a CAS array) until Shutdown or an error: they are carried
// to the same port of a server of the site that the table has for name, which is the
// listener's address. One client reaches one server on all ports. Nothing is
// decrypted: the protocol brings its own protection.
func (s *Server) ServeRPC(ln net.Listener, name string) error {
	return s.serve(ln, name, false, s.serveRPC)
}

func (s *Server) serveRPC(ctx context.Context, c *clientConn) error {
	c.event.mode = Passthrough.String()
	site := c.table.RPCClientAccess[c.listener]
	if site == nil {
		return fmt.Errorf("no site has %s in rpc_client_access any more", c.listener)
	}
	_, port, err := net.SplitHostPort(c.listener)
	if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil {
		return fmt.Errorf("listener %q is no address", c.listener)
	}
	u, led, err := s.dialFor(ctx, site, &VirtualDirectory{}, rpcGroup, c.remote.Addr(), func(ctx context.Context, a *attempt, timeout time.Duration) (*upstream, error) {
		a.apart.Store(true)
		host, _, err := net.SplitHostPort(a.backend.Address)
		if err != nil {
			return nil, err
		}
		to := &Backend{Name: a.backend.Name, Address: net.JoinHostPort(host, port)}
		u, err := s.dial.tcp(ctx, &attempt{backend: to}, timeout)
		if err == nil {
			u.backend = a.backend
			a.tcp.Store(true)
		}
		return u, err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", errNoBackend, err)
	}
	defer led.done()
	c.event.backend, c.event.in, c.event.out, err = passthrough(ctx, c.conn, func(context.Context) (*upstream, error) { return u, nil }, 0, c.log)
	return err
}

// rpcGroup is what RPC Client Access shares its servers as.
const rpcGroup = "rpc_client_access"

// dialFor connects a client whose connection is not decrypted to a server of the
// site: by its address, where that is how clients are known again there. The caller
// ends what leads it.
func (s *Server) dialFor(ctx context.Context, site *Site, v *VirtualDirectory, group string, client netip.Addr, connect connectFunc) (*upstream, *leading, error) {
	var led *leading
	dir := v.health()
	order := site.order(dir)
	if len(order) > 1 && (group == rpcGroup || site.bySource()) {
		led = site.leadSource(group, dir, client)
		led.claim(order[0].known(site), dir)
	}
	u, err := s.connect(ctx, site, led.first(order), led.belongs(), connect)
	if err != nil {
		return nil, nil, err
	}
	u.serves.Store(v)
	if led != nil {
		led.wanted = nil // where it could not go it does not belong
		led.settle(u.state, dir)
	}
	return u, led, nil
}

// bySource tells whether clients whose connections are not decrypted stay with a
// server: on versions that need it, or where the site says so.
func (s *Site) bySource() bool {
	if s.Affinity != nil {
		return slices.Contains(s.Affinity, BySourceIP)
	}
	return s.old()
}
