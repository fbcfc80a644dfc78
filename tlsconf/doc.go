// Package tlsconf is about both sides of TLS. Towards clients it is the certificates the front door shows: where they come
// from ([Source]), which versions and suites go with them ([ServerConfig]), what is asked of clients ([AskClients]) and which
// names the certificates are good for ([Covers]). Towards backends it is what their certificates are held against
// ([BackendConfig]): CAs, pins ([Pin]), or the key of the first use ([FirstUse]).
//
// A Source belongs to one host, or to several with one certificate. It is made once, swaps its certificate by itself and
// never stops serving a good one because a newer one is broken:
//
//	files       PEM chain and key, watched for changes      NewFiles
//	PFX         the same in one file                        NewPFX
//	self-signed what Exchange set-up makes, renewed         NewSelfSigned, NewSharedSelfSigned
//	ACME        ordered from issuers, kept by certmagic     NewACME
//	autocert    the same for one node, small                NewAutocert
//
// ACME opens no listener: validations are answered by the http.Handler that [ACME] and [Autocert] are, and by the ValidationConfig
// of their sources.
//
// What must outlive the process, and what several nodes share, is in a [Storage]: a directory, or [Redis]. With the latter
// [Tickets] lets a client resume its session on any node.
//
// Nothing outside this package learns which origin a certificate has, but for who has to start orders.
package tlsconf
