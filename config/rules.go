package config

// Rule names what a Problem breaks. testdata/config holds a file for each, of the same name.
type Rule string

// The rules, by the step that knows them.
const (
	// The file as such.
	RuleFileEmpty        Rule = "file-empty"
	RuleFileTooLarge     Rule = "file-too-large"    // bytes
	RuleFileTooLong      Rule = "file-too-long"     // lines or values
	RuleFileTooDeep      Rule = "file-too-deep"     // values inside values
	RuleFileEncoding     Rule = "file-encoding"     // not UTF-8
	RuleControlCharacter Rule = "control-character" // NUL, escape, a lone CR
	RuleTooManyProblems  Rule = "too-many-problems" // the report stops here
	RuleYAMLSyntax       Rule = "yaml-syntax"
	RuleYAMLAnchor       Rule = "yaml-anchor"      // anchors, aliases, merge keys
	RuleYAMLTag          Rule = "yaml-tag"         // !!str and the like
	RuleYAMLDocuments    Rule = "yaml-documents"   // directives, a second document
	RuleYAMLComplexKey   Rule = "yaml-complex-key" // ? key

	// One key or one value.
	RuleUnknownKey    Rule = "unknown-key"
	RuleDuplicateKey  Rule = "duplicate-key"
	RuleMissingKey    Rule = "missing-key"
	RuleEmptyValue    Rule = "empty-value" // key without value, ""
	RuleWrongType     Rule = "wrong-type"
	RuleUnknownValue  Rule = "unknown-value" // not one of the permitted words
	RuleListTwice     Rule = "list-twice"    // the same value twice in one list
	RuleNumber        Rule = "number"        // not a number, or out of range
	RuleDuration      Rule = "duration"
	RuleSize          Rule = "size"
	RuleMethod        Rule = "method"
	RulePrefix        Rule = "prefix"
	RuleHostName      Rule = "host-name"
	RuleHostWildcard  Rule = "host-wildcard"
	RuleHostPort      Rule = "host-port"
	RuleListenAddress Rule = "listen-address"
	RuleURL           Rule = "url"
	RuleServerURL     Rule = "server-url"
	RuleRedirectURL   Rule = "redirect-url"
	RuleRedirectAddr  Rule = "redirect-addr"
	RuleMailBackend   Rule = "mail-backend"
	RuleMailboxesFile Rule = "mailboxes-file"
	RuleStorage       Rule = "storage"
	RuleEmail         Rule = "email"
	RulePin           Rule = "pin"
	RuleHostMapName   Rule = "host-map-name"
	RuleRootRedirect  Rule = "root-redirect"
	RuleHeaderName    Rule = "header-name"
	RuleHeaderNeeded  Rule = "header-needed" // hidden, and clients act upon it
	RuleCipher        Rule = "cipher"
	RuleVdirName      Rule = "vdir-name"
	RuleVdirPath      Rule = "vdir-path"

	// What this version does not do yet.
	RuleNotInEffect Rule = "not-in-effect" // accepted, and without effect for now

	// What several values say together.
	RuleNoHosts          Rule = "no-hosts"
	RuleListenNothing    Rule = "listen-nothing"
	RuleListenPortTwice  Rule = "listen-port-twice"
	RuleAdminExposed     Rule = "admin-exposed"
	RulePrefixEveryone   Rule = "prefix-everyone"
	RuleHostNoMode       Rule = "host-no-mode"
	RuleHostTwoModes     Rule = "host-two-modes"
	RuleHostNameTwice    Rule = "host-name-twice"
	RuleHostKeyUnused    Rule = "host-key-unused"   // a key its mode has no use for
	RulePassthroughTLS   Rule = "passthrough-tls"   // a key that needs decryption
	RulePassthroughClear Rule = "passthrough-clear" // TLS to servers that speak none
	RulePassthroughPage  Rule = "passthrough-page"  // a health page that nobody asks for
	RuleClientAuth       Rule = "client-auth"       // half of what client certificates need
	RuleClientUnchecked  Rule = "client-auth-unchecked"
	RuleProfileOld       Rule = "profile-old"
	RuleCertificateForm  Rule = "certificate-form"
	RuleStorageKey       Rule = "storage-key"   // for another kind of storage
	RuleStorageClear     Rule = "storage-clear" // private keys in clear on the network
	RuleNoCertificate    Rule = "no-certificate"
	RuleACMEChallenge    Rule = "acme-challenge" // one that no issuer can reach us for
	RuleACMEDNS          Rule = "acme-dns"
	RuleACMEAutocert     Rule = "acme-autocert" // what autocert cannot do
	RuleDefaultTwice     Rule = "default-twice"
	RuleDefaultListener  Rule = "default-listener"
	RuleRedirectSelf     Rule = "redirect-self"
	RuleRedirectChain    Rule = "redirect-chain"
	RuleRedirectRefused  Rule = "redirect-refused" // to a host of ours that refuses TLS
	RuleRedirectsHTTP    Rule = "redirects-http"   // a redirect site without the port it is on
	RuleVdirAccess       Rule = "vdir-access"
	RuleVdirNamed        Rule = "vdir-named"
	RuleVdirNeeds        Rule = "vdir-needs" // less than the protocol of a directory needs
	RuleVdirInClear      Rule = "vdir-in-clear"
	RuleMailProtocol     Rule = "mail-protocol"
	RuleMailPort         Rule = "mail-port"
	RuleMailForm         Rule = "mail-form"     // not clear where a protocol goes
	RuleMailScheme       Rule = "mail-scheme"   // passthrough to a server whose TLS begins otherwise
	RuleMailOffload      Rule = "mail-offload"  // in clear, without being asked for
	RuleMailListener     Rule = "mail-listener" // a protocol without listener, or the other way round
	RuleMailIdle         Rule = "mail-idle"     // shorter than clients may be silent
	RuleSiteUnknown      Rule = "site-unknown"
	RuleSiteUnused       Rule = "site-unused"
	RuleSiteNoServers    Rule = "site-no-servers"
	RuleServerTwice      Rule = "server-twice"
	RuleServerHTTP       Rule = "server-http"
	RuleServerOffload    Rule = "server-offload"
	RuleServersDrain     Rule = "servers-drain" // all of them
	RuleHealthCount      Rule = "health-count"
	RuleRPCPort          Rule = "rpc-port"
	RuleTrustForm        Rule = "trust-form"
	RuleTrustConflict    Rule = "trust-conflict"
	RuleSiteTLS          Rule = "site-tls"
	RuleSiteTLSOld       Rule = "site-tls-old"
	RuleHostMapLoop      Rule = "host-map-loop"     // what a name is mapped to is mapped itself
	RuleHostMapUnserved  Rule = "host-map-unserved" // what a name is mapped to is no host here
	RuleMultiplexers     Rule = "multiplexers"      // trusted proxies of which it is not said
	RuleUntrustedCerts   Rule = "untrusted-certs"
	RuleDomainKeyUnused  Rule = "domain-key-unused" // a key its mode has no use for
	RuleDomainURL        Rule = "domain-url"
	RuleDomainRedirect   Rule = "domain-redirect"
	RuleDomainSelf       Rule = "domain-self"
	RuleDomainLoop       Rule = "domain-loop"
	RuleDomainChain      Rule = "domain-chain" // more redirects than clients follow
	RuleDomainSite       Rule = "domain-site"
	RuleDomainUnanswered Rule = "domain-unanswered"
	RuleAnswerNoDomains  Rule = "answer-no-domains"
	RuleInternalNobody   Rule = "internal-nobody"
	RuleMailboxesForm    Rule = "mailboxes-form"
	RuleLDAPAccount      Rule = "ldap-account" // a name without a password, or the reverse

	// What Extended Protection and the servers outside need.
	RuleExternalUntrusted     Rule = "external-untrusted-certs"
	RuleProtectionOffload     Rule = "protection-offload"
	RuleProtectionCertificate Rule = "protection-certificate"      // renewed here alone
	RuleProtectionTwo         Rule = "protection-two-certificates" // of one site
)
