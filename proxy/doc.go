// Package proxy is the traffic path of autodgate: everything between accept and
// the last byte of an answer.
//
//	accept ─ (PROXY header) ─ peek ClientHello ─ decide ─┬─ pass through ─────────────→ backend, bytes untouched
//	                                                     ├─ refuse (unrecognized_name)
//	                                                     └─ terminate ─ relay loop: read one request head
//	                                                                      └─ route host+path ─┬─ redirect
//	                                                                                          ├─ answer (http.Handler)
//	                                                                                          └─ bridge → CAS over TLS
//	mail: accept ─ (PROXY header) ─ (in clear, up to STARTTLS) ─ peek ClientHello ─ decide ─┬─ pass through, refuse: as above
//	                                                                                        └─ terminate ─ copy both ways → mail server
//	plain HTTP: accept ─ relay loop ─ route ─ ACME HTTP-01 | redirect site | to https | 404
//
// Data goes forward only; a later step never calls an earlier one. Each box is a
// file named after it: accept.go, hello.go, decide.go, passthrough.go,
// terminate.go, relay.go, route.go (with attacks.go for the requests that are
// known attacks), redirect.go, answer.go, bridge.go (with uplink.go for the
// client's side of an exchange, and tunnel.go for what follows 101 Switching
// Protocols), mail.go (with starttls.go for what is said in clear), rpc.go. Beside
// them stands what they share: table.go (what names mean), head.go and body.go
// (HTTP/1.1 heads and framing, strict) over reader.go, forward.go (which header
// lines cross), rewrite.go (which of them change, and the names in them),
// upstream.go (the connection to a backend), balance.go, health.go and affinity.go
// (which backend), status.go, sockets.go, clientcert.go (client certificates),
// binding.go (Extended Protection), limits.go and logins.go (what is too much, too
// slow, or guesses passwords), hints.go, accesslog.go.
//
// Two rules hold everywhere. One goroutine owns a client connection and its
// connections to backends, one for each; backend connections are never pooled, because
// with NTLM or Negotiate the connection is the identity. And what is doubtful on
// the wire is refused, after which both connections are closed.
//
// The package knows neither YAML nor certificates' origins nor XML: cmd/autodgate
// fills a [Table] with plain values, *tls.Config and http.Handler, and hands it
// to a [Server]. Of the project's packages it uses internal/throttle alone, which
// counts failed logins for it and for Autodiscover together.
package proxy
