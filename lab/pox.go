package lab

import (
	"net/http"

	"github.com/rs/zerolog"
)

func newPOX(s *Scenario, log zerolog.Logger) (http.Handler, error) {
	return http.NotFoundHandler(), nil
}
