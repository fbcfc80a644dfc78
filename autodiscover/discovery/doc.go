// Package discovery simulates what a mail client does to find its server.
//
// A Profile is one client as data: the stages it tries in order, what it sends, which redirects it
// obeys, how it takes a bad certificate, what it needs in the answer. A Walker runs a profile for one
// address against any target (the Internet, one server, or a lab on loopback ports), and returns a
// Trace: the tree of steps with DNS answers, certificates, requests, answers, why the client moved on
// and what its user would have seen.
//
//	profile, _ := discovery.Find("outlook-2016")
//	w := discovery.Walker{Profile: profile, Credentials: discovery.Credentials{Password: secret}}
//	trace := w.Walk(ctx, "pat@contoso.com")
//	trace.WriteText(os.Stdout, discovery.Render{})
//
// The package is an independent client: it shares no code with the server side of the project, so that
// the two can disagree. It never runs a client's code, only the client's order, as far as that order is documented.
//
// What it never does, whatever the profile says: send credentials over plain HTTP, send Basic unless that is
// allowed, send credentials to a server whose certificate is not accepted or to a target the user has
// refused, ask a name outside the registrable domain of the address unless a redirect or SRV record led
// there, or ask autodiscover.<public suffix>. A trace holds no password, Authorization value, cookie or body.
//
// The files follow the walk: profile.go (data), walker.go (order, redirects), guard.go (what is never
// contacted), resolve.go, connect.go (TCP, TLS, certificate verdict), exchange.go (HTTP and login), pox.go and v2.go
// (documents), trace.go, render.go.
//
// A new client is a new Profile value; code is only touched when it does something no profile did before.
package discovery
