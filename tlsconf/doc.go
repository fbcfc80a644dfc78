// Package tlsconf is about both sides of TLS. Towards clients it is the certificates the front door shows: where they come
// from ([Source]), which versions and suites go with them ([ServerConfig]), what is asked of clients ([AskClients]) and which
// names the certificates are good for ([Covers]). Towards backends it is what their certificates are held against
// ([BackendConfig]): CAs, pins ([Pin]), or the key of the first use ([FirstUse]).
//
// A Source belongs to one host, or to several with one certificate. It is made once, swaps its certificate by itself and
// never stops serving a good one because a newer one is broken:
//
//	files       PEM chain and key, watched for changes      NewFiles
//	self-signed what Exchange set-up makes, renewed         NewSelfSigned, NewSharedSelfSigned
//
// What must outlive the process, and what several nodes share, is in a [Storage]: a directory, or [Redis]. With the latter
// [Tickets] lets a client resume its session on any node.
//
// Other origins (PFX, ACME) are further Sources; nothing outside this package learns which one a host has.
package tlsconf
