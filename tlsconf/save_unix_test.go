//go:build unix

package tlsconf

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// Whoever has the directory can put a link in the place of a new file, which must not give them what it leads to.
func TestKeepOwnerFollowsNoLink(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root gives files away")
	}
	dir := t.TempDir()
	target, old, link := filepath.Join(dir, "target"), filepath.Join(dir, "old"), filepath.Join(dir, "link")
	for _, f := range []string{target, old} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(old, 4711, 4712); err != nil {
		t.Skip(err)
	}
	info, err := os.Stat(old)
	if err != nil {
		t.Fatal(err)
	}
	keepOwner(link, info)
	if info, err = os.Stat(target); err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 {
		t.Errorf("the target of a link was given to %d", st.Uid)
	}
}
