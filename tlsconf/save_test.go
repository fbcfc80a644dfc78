package tlsconf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "mail.key")
	holds := func(want string, mode fs.FileMode) {
		t.Helper()
		got, err := os.ReadFile(path)
		if err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("mode %v, %v, want %v", info.Mode(), err, mode)
		}
		if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) != 0 {
			t.Errorf("temporary files left: %v %v", left, err)
		}
	}
	if err := WriteFile(path, []byte("one"), 0o600, false); err != nil {
		t.Fatal(err)
	}
	holds("one", 0o600)
	if err := WriteFile(path, []byte("two"), 0o600, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file that is there: %v", err)
	}
	holds("one", 0o600)
	if err := WriteFile(path, []byte("three"), 0o644, true); err != nil {
		t.Fatal(err)
	}
	holds("three", 0o644)
	// A name that leads nowhere is not written through.
	dangling := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "target"), dangling); err == nil {
		if err := WriteFile(dangling, []byte("x"), 0o600, false); !errors.Is(err, fs.ErrExist) {
			t.Errorf("over a symbolic link: %v", err)
		}
	}
	missing := filepath.Join(dir, "none", "mail.key")
	if err := WriteFile(missing, nil, 0o600, true); err == nil || err.Error() != "write "+missing+": no such file or directory" {
		t.Errorf("no directory: %v", err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 4711, 4712); err != nil {
			t.Skip(err)
		}
		if err := WriteFile(path, []byte("four"), 0o600, true); err != nil {
			t.Fatal(err)
		}
		holds("four", 0o600)
		old, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		// A look through reflection: the type of Sys is the system's.
		st := reflect.ValueOf(old.Sys()).Elem()
		if uid, gid := st.FieldByName("Uid").Uint(), st.FieldByName("Gid").Uint(); uid != 4711 || gid != 4712 {
			t.Errorf("the owner is %d:%d now, want 4711:4712", uid, gid)
		}
	}
}
