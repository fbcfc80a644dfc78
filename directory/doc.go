// Package directory knows who has a mailbox and proves who is asking.
//
// A [Directory] answers four questions: which mailbox has this address, which
// one has this legacyDN, which one has this GUID address, and does this name
// with this password belong to a mailbox. [Static] answers them from a file,
// mailboxes.yaml or a .csv of any size, and reads the file again when it
// changes. [LDAP] asks servers such as Active Directory.
//
// How the files map to the code:
//
//	directory.go   the interface and the Mailbox
//	address.go     what an address is, and its one normal form
//	identity.go    the legacyDN and GUID of mailboxes that name none
//	password.go    plain passwords and hash strings, checked in even time
//	basic.go       the two encodings of an Authorization: Basic header
//	index.go       mailboxes ready to be looked up, or every problem at once
//	yamlfile.go    mailboxes.yaml
//	csvfile.go     mailboxes.csv
//	static.go      the file behind an atomic pointer, reloaded on change
//	domains.go     the domains of the redirect site, likewise
//	ldap.go        servers, connections, fail-over, the bind that checks a password
//	ldapentry.go   questions as filters, entries as mailboxes
//	ldapcache.go   what servers said, for a while
//
// # The file
//
// mailboxes.yaml has one top-level key, mailboxes, a list. Only address is
// required:
//
//	mailboxes:
//	  - address: pat@contoso.com
//	    aliases: [patricia@contoso.com]
//	    display_name: Pat Doe
//	    legacy_dn: /o=Contoso/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=pat
//	    mailbox_guid: 0c3de0f1-6a52-4a55-9d9b-5f8f6f1f2b77
//	    login: CONTOSO\pat
//	    password: $argon2id$v=19$m=19456,t=2,p=1$…$…
//	    site: hq
//	    alternative_mailboxes:
//	      - helpdesk@contoso.com
//	      - archive:pat-archive@contoso.com
//	      - {type: Delegate, display_name: Old form, legacy_dn: /o=…/cn=old, server: 9b1c…@contoso.com}
//
// The CSV form has the same names as columns, in any order, separated by
// commas, with a header line. aliases and alternative_mailboxes hold several
// values separated by semicolons or spaces, which no address contains.
//
// Everything that is wrong with a file is reported together, each problem with
// its line. The messages name lines and keys, never passwords or addresses, so
// that they may be logged.
package directory
