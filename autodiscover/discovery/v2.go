package discovery

import (
	"encoding/json"
	"errors"
)

// readV2 takes the URL out of an Autodiscover V2 answer, or says why there is none. The format has no public specification; success is {"Protocol": …, "Url": …}.
func readV2(body []byte) (string, error) {
	var a struct{ Protocol, Url, ErrorCode string } //nolint:revive,staticcheck // names of the format
	if err := json.Unmarshal(body, &a); err != nil {
		return "", errors.New("the answer is not JSON")
	}
	switch {
	case a.Url != "":
		return clip(a.Url, 2048), nil
	case a.ErrorCode != "":
		return "", errors.New("the answer is the error " + clip(a.ErrorCode, 80))
	}
	return "", errors.New("the answer has no Url")
}
