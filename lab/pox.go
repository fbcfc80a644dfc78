package lab

import (
	"net/http"

	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/autodiscover"
	"github.com/autodgate/autodgate/directory"
)

// newPOX makes what the servers answer to Outlook about their own mailboxes. It is the front door's own code with the company's
// Exchange in the place of the front door: the lab proves with it that documents come through a bridge, not that they are right.
func newPOX(s *Scenario, log zerolog.Logger) (http.Handler, error) {
	domains := map[string]autodiscover.Domain{}
	for name, d := range s.Exchange {
		domains[name] = autodiscover.Domain{
			Action: autodiscover.ActionAnswer, ExternalURL: d.ExternalURL, InternalURL: d.InternalURL,
		}
	}
	var boxes []directory.Mailbox
	for _, m := range s.Mailboxes {
		if m.Login != "" {
			boxes = append(boxes, directory.Mailbox{
				Address: m.Address, DisplayName: m.DisplayName, Password: directory.Secret(m.Password),
			})
		}
	}
	dir, err := directory.New(boxes, log, directory.Lab())
	if err != nil {
		return nil, err
	}
	return autodiscover.NewHandler(autodiscover.Options{Domains: domains, Directory: dir, Logger: log}), nil
}
