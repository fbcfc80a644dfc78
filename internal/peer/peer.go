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
	if err != nil {
		Missing(t, program, how)
	}
	return path
}

// Missing ends a test that a missing peer makes impossible: as skipped, or as
// failed under CI=true.
func Missing(t testing.TB, what, how string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing; get it with: %s", what, how)
	}
	t.Skipf("%s is missing; get it with: %s", what, how)
}
