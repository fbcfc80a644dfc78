package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/miekg/dns"

	"github.com/autodgate/autodgate"
)

// Scenario is one simulated company: what stands around the front door, the front door's config, and what should happen.
type Scenario struct {
	Name            string                    `yaml:"-"` // of the file
	Description     string                    `yaml:"description"`
	ActiveDirectory ActiveDirectory           `yaml:"active_directory"`
	Version         string                    `yaml:"version"` // of Exchange; the newest if empty
	Servers         []Server                  `yaml:"servers"`
	Exchange        map[string]ExchangeDomain `yaml:"exchange"`     // by mail domain
	Certificates    map[string][]string       `yaml:"certificates"` // names on it, by file name
	Mailboxes       []Mailbox                 `yaml:"mailboxes"`
	Zones           map[string]string         `yaml:"zones"`  // zone-file text by origin, with placeholders
	Config          string                    `yaml:"config"` // YAML of the front door, with placeholders
	Flows           FlowNames                 `yaml:"flows"`
	Expect          []Expectation             `yaml:"expect"`
}

// ActiveDirectory names the one domain that the accounts of the CAS belong to.
type ActiveDirectory struct {
	NetBIOS string `yaml:"netbios"` // CONTOSO
	DNS     string `yaml:"dns"`     // contoso.local
}

// Server is one fake CAS. URL, Address and Fingerprint are known once the company runs.
type Server struct {
	Name string `yaml:"name"` // short name
	FQDN string `yaml:"fqdn"`
	// Certificate is one of the scenario's. Without it the server has a certificate of its own, as set-up leaves it.
	Certificate string `yaml:"certificate"`
	// ExtendedProtection is what the server asks of Windows authentication: off (the default), allow or require channel bindings.
	ExtendedProtection ExtendedProtection `yaml:"extended_protection"`

	URL         string `yaml:"-"` // https://127.0.0.1:PORT
	Address     string `yaml:"-"` // 127.0.0.1:PORT
	Fingerprint string `yaml:"-"` // SHA-256 of its certificate, hex
}

// ExchangeDomain is what the CAS answer to Autodiscover for a mail domain of theirs.
type ExchangeDomain struct {
	ExternalURL string `yaml:"external_url"`
	InternalURL string `yaml:"internal_url"`
}

// Mailbox is a user of the lab. It lives on the CAS (Login is its Windows account there) or is known to the front door alone.
type Mailbox struct {
	Address     string `yaml:"address"`
	Login       string `yaml:"login"` // CONTOSO\pat
	Password    string `yaml:"password"`
	DisplayName string `yaml:"display_name"`
	FrontDoor   bool   `yaml:"front_door"`
	// ActiveSyncRedirect makes the CAS answer 451 with this URL to the user's devices.
	ActiveSyncRedirect string `yaml:"active_sync_redirect"`
}

// FlowNames are the host names that the flows use.
type FlowNames struct {
	Bridge      string `yaml:"bridge"`
	Passthrough struct {
		Host   string `yaml:"host"`
		Server string `yaml:"server"` // whose certificate must be seen
	} `yaml:"passthrough"`
	Redirect struct {
		Host string `yaml:"host"`
		To   string `yaml:"to"`
	} `yaml:"redirect"`
	Unknown string `yaml:"unknown"`
}

// Expectation is what one client's discovery should come to.
type Expectation struct {
	Client  string `yaml:"client"`  // a discovery profile
	Address string `yaml:"address"` // of the user, who may be known under another one
	Outcome string `yaml:"outcome"` // silent, prompt or fails
	Prompts int    `yaml:"prompts"` // questions to the user
	FoundAt string `yaml:"found_at"`
	// Steps are the stages that the client tried, in order, as "kind URL: outcome". Without any, only the outcome counts.
	Steps []string `yaml:"steps"`
}

// The outcomes of an Expectation, in the words of the published guides: the user notices nothing, is asked, or is not connected.
const (
	OutcomeSilent = "silent"
	OutcomePrompt = "prompt"
	OutcomeFails  = "fails"
)

// DefaultScenario is loaded when no name is given.
const DefaultScenario = "contoso"

const scenarioDir = "testdata/scenario"

// List returns the names of the scenarios that the program carries, sorted.
func List() []string {
	entries, err := fs.ReadDir(autodgate.Scenarios, scenarioDir)
	if err != nil { // the directory is part of the program
		panic(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Load reads the scenario of that name; an empty name is the default one. An unknown name is an error that says which exist.
func Load(name string) (*Scenario, error) {
	if name == "" {
		name = DefaultScenario
	}
	if !slices.Contains(List(), name) {
		return nil, fmt.Errorf("there is no scenario %q; there are: %s", name, strings.Join(List(), ", "))
	}
	text, err := fs.ReadFile(autodgate.Scenarios, scenarioDir+"/"+name+".yaml")
	if err != nil {
		return nil, err
	}
	s, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("scenario %s: %w", name, err)
	}
	s.Name = name
	return s, nil
}

// Parse reads a scenario. Unknown keys and wrong types stop it with the place; what does not fit together is reported all at once.
func Parse(text []byte) (*Scenario, error) {
	var s Scenario
	dec := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	if err := dec.Decode(&s); err != nil {
		return nil, err
	}
	return &s, s.validate()
}

// legacy tells of servers that know only what came to themselves: clients need to come back to the same one.
func (s *Scenario) legacy() bool { return s.Version == "2007" || s.Version == "2010" }

func (s *Scenario) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	if s.Description == "" {
		bad("description is missing")
	}
	if s.ActiveDirectory.NetBIOS == "" || s.ActiveDirectory.DNS == "" {
		bad("active_directory needs netbios and dns")
	}
	if !slices.Contains([]string{"", "2007", "2010", "2013", "2016", "2019", "SE"}, s.Version) {
		bad("version %q is none of 2007, 2010, 2013, 2016, 2019, SE", s.Version)
	}
	servers := map[string]bool{}
	for i, srv := range s.Servers {
		short, _, ok := strings.Cut(srv.FQDN, ".")
		switch {
		case srv.Name == "":
			bad("servers[%d] has no name", i)
		case !ok || short != srv.Name:
			bad("servers[%d]: fqdn %q does not begin with %s.", i, srv.FQDN, srv.Name)
		case srv.Certificate != "" && s.Certificates[srv.Certificate] == nil:
			bad("servers[%d]: there is no certificate %q", i, srv.Certificate)
		case !srv.ExtendedProtection.valid():
			bad("servers[%d]: extended_protection %q is none of off, allow, require", i, srv.ExtendedProtection)
		case servers[srv.Name]:
			bad("two servers are called %s", srv.Name)
		}
		servers[srv.Name] = true
	}
	if len(s.Servers) == 0 {
		bad("servers is empty")
	}
	for _, d := range slices.Sorted(maps.Keys(s.Exchange)) {
		for _, u := range []string{s.Exchange[d].ExternalURL, s.Exchange[d].InternalURL} {
			if p, err := url.Parse(u); u != "" && (err != nil || p.Scheme != "https" || p.Host == "") {
				bad("exchange.%s: %q is not an https URL", d, u)
			}
		}
	}
	for _, c := range slices.Sorted(maps.Keys(s.Certificates)) {
		if len(s.Certificates[c]) == 0 {
			bad("certificates.%s has no names", c)
		}
		if strings.ContainsAny(c, `/\.`) || c == "ca" {
			bad("certificates.%s: the name becomes a file name; letters and digits will do", c)
		}
	}
	addresses := map[string]bool{}
	for i, m := range s.Mailboxes {
		_, domain, _ := strings.Cut(m.Address, "@")
		netbios, _, _ := strings.Cut(m.Login, `\`)
		switch {
		case domain == "":
			bad("mailboxes[%d]: %q is not an address", i, m.Address)
		case addresses[m.Address]:
			bad("two mailboxes have the address %s", m.Address)
		case m.Password == "":
			bad("mailboxes[%d] has no password", i)
		case m.FrontDoor == (m.Login != ""):
			bad("mailboxes[%d]: exactly one of login (an account of the CAS) and front_door", i)
		case m.Login != "" && netbios != s.ActiveDirectory.NetBIOS:
			bad(`mailboxes[%d]: login %s is not %s\name`, i, m.Login, s.ActiveDirectory.NetBIOS)
		case m.Login != "" && s.Exchange[domain] == (ExchangeDomain{}):
			bad("mailboxes[%d]: exchange has no %s", i, domain)
		}
		addresses[m.Address] = true
	}
	for _, origin := range slices.Sorted(maps.Keys(s.Zones)) {
		if _, ok := dns.IsDomainName(origin); !ok {
			bad("zones: %q is not a domain name", origin)
		}
	}
	if s.Config == "" {
		bad("config is missing")
	}
	if p := s.Flows.Passthrough; p.Host != "" && !servers[p.Server] {
		bad("flows.passthrough: there is no server %q", p.Server)
	}
	for i, e := range s.Expect {
		switch {
		case e.Client == "" || e.Address == "":
			bad("expect[%d] needs client and address", i)
		case e.Outcome != OutcomeSilent && e.Outcome != OutcomePrompt && e.Outcome != OutcomeFails:
			bad("expect[%d]: outcome %q is none of silent, prompt, fails", i, e.Outcome)
		case (e.Outcome == OutcomePrompt) != (e.Prompts > 0) && e.Outcome != OutcomeFails:
			bad("expect[%d]: outcome %s with %d prompts", i, e.Outcome, e.Prompts)
		}
	}
	// Placeholders are checked here, with values that stand for the later ones, so that Start fails for the machine's reasons alone.
	if _, err := s.fill(s.dummies()); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
