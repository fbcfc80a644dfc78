package lab

import (
	"fmt"
	"slices"
	"sync"
)

// ClientHeader lets a client of the lab put its own name on its requests. The recorder needs it to notice that two clients share a
// backend connection when one of them never logs in.
const ClientHeader = "X-Lab-Client"

// Headers of every response of a lab server: which server it was, the number of the connection there, and who it takes the client
// for. User is missing from an anonymous answer.
const (
	ServerHeader     = "X-Lab-Server"
	ConnectionHeader = "X-Lab-Connection"
	UserHeader       = "X-Lab-User"
)

// Recorder remembers who came to the lab's servers on which connection. Its methods may be called at any time.
type Recorder struct {
	mu    sync.Mutex
	conns []*Connection
	total int
	found []string
}

// Connection is what one TCP connection to one server was used for.
type Connection struct {
	Server   string    // FQDN of the server
	Number   int       // counts from 1 over all servers of the company
	Open     bool      // not closed yet
	Requests []Request // the first keepRequests of them
	Count    int       // of all requests
	Users    []string  // who was logged in, each once, in order of appearance
	Clients  []string  // values of ClientHeader, likewise
}

// Request is one request as a lab server saw it. It holds no credentials.
type Request struct {
	Method, Target, Host string
	Client               string // ClientHeader
	Scheme               string // of the Authorization header: Basic, NTLM, Negotiate
	User                 string // DOMAIN\name, empty when anonymous
	Status               int
}

// Bounds for a lab that is left running.
const (
	keepConnections = 4096
	keepRequests    = 1024
	keepViolations  = 100
)

// open begins a record; the caller changes it only through the recorder.
func (r *Recorder) open(server string) *Connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total++
	c := &Connection{Server: server, Number: r.total, Open: true}
	if len(r.conns) >= keepConnections {
		if i := slices.IndexFunc(r.conns, func(c *Connection) bool { return !c.Open }); i >= 0 {
			r.conns = slices.Delete(r.conns, i, i+1)
		}
	}
	r.conns = append(r.conns, c)
	return c
}

func (r *Recorder) closed(c *Connection) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.Open = false
}

func (r *Recorder) add(c *Connection, req Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.Count++
	if len(c.Requests) < keepRequests {
		c.Requests = append(c.Requests, req)
	}
	users, clients := len(c.Users), len(c.Clients)
	if req.User != "" && !slices.Contains(c.Users, req.User) {
		c.Users = append(c.Users, req.User)
	}
	if req.Client != "" && !slices.Contains(c.Clients, req.Client) {
		c.Clients = append(c.Clients, req.Client)
	}
	if len(r.found) >= keepViolations {
		return
	}
	switch {
	case len(c.Clients) > clients && clients > 0:
		r.found = append(r.found, fmt.Sprintf("connection %d to %s carried requests of clients %q", c.Number, c.Server, c.Clients))
	case len(c.Users) > users && users > 0 && len(c.Clients) != 1:
		// One named client may well log in a second time as somebody else; without a name it looks like two.
		r.found = append(r.found, fmt.Sprintf("connection %d to %s served users %q", c.Number, c.Server, c.Users))
	}
}

// Connections returns a copy of what was recorded so far, oldest first. Connections without any request (health checks by a plain
// TCP connect) are among them.
func (r *Recorder) Connections() []Connection {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Connection, len(r.conns))
	for i, c := range r.conns {
		out[i] = *c
		out[i].Requests = slices.Clone(c.Requests)
		out[i].Users = slices.Clone(c.Users)
		out[i].Clients = slices.Clone(c.Clients)
	}
	return out
}

// Violations says, a sentence each, where one connection was used for two clients or two users. It is empty when the rule that a
// backend connection belongs to one client was kept.
func (r *Recorder) Violations() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.found)
}

// Requests returns the recorded requests for which keep is true, by connection, then in order.
func (r *Recorder) Requests(keep func(Request) bool) []Request {
	var out []Request
	for _, c := range r.Connections() {
		for _, q := range c.Requests {
			if keep(q) {
				out = append(out, q)
			}
		}
	}
	return out
}
