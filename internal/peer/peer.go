// Package peer finds the programs of others that tests run against: a peer we did
// not write does not agree with us too easily.
package peer

import (
	"os"
	"os/exec"
	"testing"
)

// Need returns the path of a program. Where it is missing, the test is skipped
// with a line that says how to get it; under CI=true that is a failure, since
// there every peer is installed.
func Need(t testing.TB, program, how string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed; get it with: %s", program, how)
	}
	t.Skipf("%s is not installed; get it with: %s", program, how)
	return ""
}
