package tlsconf

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/rs/zerolog"

	"github.com/autodgate/autodgate/internal/peer"
)

// node opens Redis as one node does. It is closed with the test.
func node(t testing.TB, o StorageOptions) *Redis {
	t.Helper()
	r, err := NewRedis(o, zerolog.New(zerolog.NewTestWriter(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// Redis behaves as the directory does that certmagic comes with: the same calls, the same outcome.
func TestStorageConformance(t *testing.T) {
	server := peer.Redis(t)
	key := writeFile(t, filepath.Join(t.TempDir(), "key"), []byte(strings.Repeat("k", 40)+"\n"))
	for name, s := range map[string]certmagic.Storage{
		"directory":       &certmagic.FileStorage{Path: t.TempDir()},
		"redis":           node(t, StorageOptions{URL: server.URL()}),
		"redis encrypted": node(t, StorageOptions{URL: server.URL(), Prefix: "other", KeyFile: key}),
	} {
		t.Run(name, func(t *testing.T) { conform(t, s) })
	}
}

func conform(t *testing.T, s certmagic.Storage) {
	ctx := t.Context()
	missing := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	list := func(dir string, recursive bool, want ...string) {
		t.Helper()
		got, err := s.List(ctx, dir, recursive)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("list %q %t: %q %v, want %q", dir, recursive, got, err, want)
		}
	}
	_, err := s.Load(ctx, "a/b/c")
	missing("load", err)
	_, err = s.Stat(ctx, "a/b/c")
	missing("stat", err)
	_, err = s.List(ctx, "a", true)
	missing("list", err)
	must(s.Delete(ctx, "a/b/c"))
	if s.Exists(ctx, "a") || s.Exists(ctx, "a/b/c") {
		t.Error("there is something in the beginning")
	}

	value := []byte("\x00binary\r\nand so on\xff")
	before := time.Now().Add(-2 * time.Second)
	must(s.Store(ctx, "a/b/c", []byte("first")))
	must(s.Store(ctx, "a/b/c", value))
	must(s.Store(ctx, "a/b.d/e", []byte{})) // sorts between a/b and a/b/
	must(s.Store(ctx, "a/f", []byte("f")))
	must(s.Store(ctx, "ab/g", []byte("g")))
	if got, err := s.Load(ctx, "a/b/c"); err != nil || !bytes.Equal(got, value) {
		t.Errorf("load: %q %v", got, err)
	}
	if got, err := s.Load(ctx, "a/b.d/e"); err != nil || len(got) != 0 {
		t.Errorf("load an empty one: %q %v", got, err)
	}
	info, err := s.Stat(ctx, "a/b/c")
	if err != nil || info.Key != "a/b/c" || !info.IsTerminal || info.Size != int64(len(value)) || info.Modified.Before(before) || info.Modified.After(time.Now().Add(2*time.Second)) {
		t.Errorf("stat: %+v %v", info, err)
	}
	if info, err := s.Stat(ctx, "a/b"); err != nil || info.IsTerminal || info.Key != "a/b" {
		t.Errorf("stat a directory: %+v %v", info, err)
	}
	for key, want := range map[string]bool{"a": true, "a/b": true, "a/b/c": true, "a/b/": true, "b": false, "a/": true, "a/c": false} {
		if got := s.Exists(ctx, key); got != want {
			t.Errorf("exists %q: %t", key, got)
		}
	}
	list("", false, "a", "ab")
	list("a", false, "a/b", "a/b.d", "a/f")
	list("a", true, "a/b", "a/b.d", "a/b.d/e", "a/b/c", "a/f")
	list("a/b", true, "a/b/c")
	list("a/f", true)
	_, err = s.List(ctx, "b", false)
	missing("list", err)

	must(s.Delete(ctx, "a/b")) // with what is below it, and not what only begins like it
	list("", true, "a", "a/b.d", "a/b.d/e", "a/f", "ab", "ab/g")
	must(s.Delete(ctx, "a/f"))
	_, err = s.Load(ctx, "a/f")
	missing("load after delete", err)
	must(s.Delete(ctx, "a/f"))

	var wg sync.WaitGroup
	long := bytes.Repeat([]byte("x"), 100_000)
	for i := range 16 {
		wg.Go(func() {
			if err := s.Store(ctx, "same", append(long, byte(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got, err := s.Load(ctx, "same"); err != nil || len(got) != len(long)+1 || !bytes.HasPrefix(got, long) {
		t.Errorf("after 16 at once: %d bytes, %v", len(got), err)
	}

	must(s.Lock(ctx, "work"))
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := s.Lock(short, "work"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held: %v", err)
	}
	must(s.Unlock(ctx, "work"))
	must(s.Lock(ctx, "work"))
	must(s.Unlock(ctx, "work"))
	if err := s.Unlock(ctx, "work"); err == nil {
		t.Error("unlocked twice")
	}
	if keys, err := s.List(ctx, "", false); err != nil || slices.Contains(keys, "work") {
		t.Errorf("%q %v", keys, err)
	}
}

// Of many that want a lock, in one process and on several nodes, one has it at a time.
func TestRedisLockExclusive(t *testing.T) {
	server := peer.Redis(t)
	nodes := []*Redis{node(t, StorageOptions{URL: server.URL()}), node(t, StorageOptions{URL: server.URL()}), node(t, StorageOptions{URL: server.URL(), Prefix: "other"})}
	if err := nodes[2].Lock(t.Context(), "work"); err != nil {
		t.Fatal(err) // with another prefix it is another lock
	}
	var inside atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 5 {
				if err := nodes[i%2].Lock(t.Context(), "work"); err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d have the lock", n)
				}
				inside.Add(-1)
				if err := nodes[i%2].Unlock(t.Context(), "work"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// holdLock is what the process that gets killed does.
const holdLock = "AUTODGATE_TEST_HOLD_LOCK"

func TestMain(m *testing.M) {
	if url := os.Getenv(holdLock); url != "" {
		r, err := NewRedis(StorageOptions{URL: url, LockLife: killedLife}, zerolog.Nop())
		if err == nil {
			err = r.Lock(context.Background(), "work")
		}
		fmt.Println("locked", err)
		select {}
	}
	os.Exit(m.Run())
}

const killedLife = 1500 * time.Millisecond

// A node that is killed while it holds the lock blocks the others until the lock's life is over, and no longer. As long as it
// lives, the lock is its own, far beyond that life.
func TestRedisLockOfKilledNode(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdLock+"="+server.URL())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	line := make([]byte, 64)
	if n, err := out.Read(line); err != nil || string(line[:n]) != "locked <nil>\n" {
		t.Fatalf("%q %v", line[:n], err)
	}
	other := node(t, StorageOptions{URL: server.URL(), LockLife: killedLife})
	ctx, cancel := context.WithTimeout(t.Context(), 2*killedLife)
	defer cancel()
	if err := other.Lock(ctx, "work"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the lock is held by a living process: %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	ctx, cancel = context.WithTimeout(t.Context(), killedLife+30*time.Second) // the latter for a busy machine
	defer cancel()
	if err := other.Lock(ctx, "work"); err != nil {
		t.Fatal(err)
	}
	t.Logf("the lock was free %s after its holder was killed; its life is %s", time.Since(killed).Round(time.Millisecond), killedLife)
	if err := other.Unlock(t.Context(), "work"); err != nil {
		t.Error(err)
	}
}

// A node that ends in order leaves no lock behind.
func TestRedisCloseReleases(t *testing.T) {
	server := peer.Redis(t)
	a, b := node(t, StorageOptions{URL: server.URL(), LockLife: time.Hour}), node(t, StorageOptions{URL: server.URL()})
	if err := a.Lock(t.Context(), "work"); err != nil {
		t.Fatal(err)
	}
	if got, err := b.TryLock(t.Context(), "work"); got || err != nil {
		t.Fatalf("%t %v", got, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := b.TryLock(t.Context(), "work"); !got || err != nil {
		t.Fatalf("%t %v", got, err)
	}
	if _, err := a.TryLock(t.Context(), "work"); err == nil {
		t.Error("a lock after the end")
	}
	if err := a.Lock(t.Context(), "work"); err == nil {
		t.Error("a lock after the end")
	}
}

// A Redis that has forgotten everything gives the lock back to its holder; one who has lost it to another learns so.
func TestRedisLockLost(t *testing.T) {
	server := peer.Redis(t)
	a, b := node(t, StorageOptions{URL: server.URL(), LockLife: time.Hour}), node(t, StorageOptions{URL: server.URL(), LockLife: time.Hour})
	ctx := t.Context()
	if err := a.Lock(ctx, "work"); err != nil {
		t.Fatal(err)
	}
	if err := a.RenewLockLease(ctx, "work", 24*time.Hour); err != nil {
		t.Error(err)
	}
	if ttl := a.client.PTTL(ctx, a.lockKey("work")).Val(); ttl > time.Hour {
		t.Errorf("the lock lives for %s", ttl) // a node that dies would block the others for a day
	}
	server.Stop()
	server.Start()
	if err := a.RenewLockLease(ctx, "work", time.Minute); err != nil {
		t.Error(err)
	}
	if got, err := b.TryLock(ctx, "work"); got || err != nil {
		t.Errorf("%t %v", got, err)
	}
	if err := a.client.Del(ctx, a.lockKey("work")).Err(); err != nil {
		t.Fatal(err)
	}
	if got, err := b.TryLock(ctx, "work"); !got || err != nil {
		t.Errorf("%t %v", got, err)
	}
	if err := a.RenewLockLease(ctx, "work", time.Minute); err == nil {
		t.Error("the lock of another is renewed")
	}
	if err := a.Unlock(ctx, "work"); err != nil {
		t.Error(err)
	}
	if got, err := a.TryLock(ctx, "work"); got || err != nil {
		t.Errorf("unlocking a lost lock took it away from another: %t %v", got, err)
	}
	if err := a.RenewLockLease(ctx, "work", time.Minute); err == nil {
		t.Error("a lock that is not held is renewed")
	}
}

// Redis gone, silent, and back: errors that say what and where within the time set, and no restart is needed.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	r := node(t, StorageOptions{URL: server.URL(), Timeout: 300 * time.Millisecond})
	patient := node(t, StorageOptions{URL: server.URL()})
	ctx := t.Context()
	if err := patient.Store(ctx, "a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	fails := func(what string) {
		t.Helper()
		for name, op := range map[string]func() error{
			"store": func() error { return r.Store(ctx, "a", nil) },
			"load":  func() error { _, err := r.Load(ctx, "a"); return err },
			"list":  func() error { _, err := r.List(ctx, "", true); return err },
			"lock":  func() error { return r.Lock(ctx, "work") },
			"ping":  func() error { return r.Ping(ctx) },
			"agree": func() error { _, err := r.Agree(ctx, "x", []byte("y"), 0); return err },
		} {
			start := time.Now()
			err := op()
			if err == nil || errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "redis "+server.Socket+": "+name) {
				t.Errorf("%s: %s: %v", what, name, err)
			}
			if d := time.Since(start); d > 20*time.Second {
				t.Errorf("%s: %s takes %s", what, name, d)
			}
		}
		if r.Exists(ctx, "a") {
			t.Error("exists, as far as one knows")
		}
	}
	server.Pause()
	fails("silent")
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := patient.Load(cancelled, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context: %v", err)
	}
	server.Resume()
	if got, err := patient.Load(ctx, "a"); err != nil || string(got) != "1" {
		t.Errorf("after the silence: %q %v", got, err)
	}
	server.Stop()
	fails("gone")
	server.Start()
	if err := patient.Ping(ctx); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// The first value counts, for all nodes.
func TestRedisAgree(t *testing.T) {
	server := peer.Redis(t)
	var nodes []*Redis
	for range 4 {
		nodes = append(nodes, node(t, StorageOptions{URL: server.URL()}))
	}
	if _, err := nodes[0].Agree(t.Context(), "x", nil, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	got := make([]string, 40)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			v, err := nodes[i%4].Agree(t.Context(), "x", fmt.Append(nil, i), 0)
			if err != nil {
				t.Error(err)
			}
			got[i] = string(v)
		})
	}
	wg.Wait()
	if slices.Sort(got); got[0] != got[len(got)-1] || got[0] == "" {
		t.Errorf("they do not agree: %q", got)
	}
	if _, err := nodes[0].Agree(t.Context(), "short", []byte("1"), time.Hour); err != nil {
		t.Error(err)
	}
	if ttl := nodes[0].client.PTTL(t.Context(), nodes[0].shared("short")).Val(); ttl <= 0 || ttl > time.Hour {
		t.Errorf("it lives for %s", ttl)
	}
}

// With a key of the nodes, Redis holds nothing that can be read, exchanged or made up.
func TestRedisEncrypted(t *testing.T) {
	server := peer.Redis(t)
	dir := t.TempDir()
	keyFile := writeFile(t, filepath.Join(dir, "key"), []byte(strings.Repeat("k", 32)))
	otherFile := writeFile(t, filepath.Join(dir, "other"), []byte(strings.Repeat("o", 32)))
	plain, sealed, other := node(t, StorageOptions{URL: server.URL()}), node(t, StorageOptions{URL: server.URL(), KeyFile: keyFile}), node(t, StorageOptions{URL: server.URL(), KeyFile: otherFile})
	ctx := t.Context()
	const secret = "-----BEGIN PRIVATE KEY-----"
	for _, key := range []string{"a", "b"} {
		if err := sealed.Store(ctx, key, []byte(secret+key)); err != nil {
			t.Fatal(err)
		}
		if _, err := sealed.Agree(ctx, key, []byte(secret+key), 0); err != nil {
			t.Fatal(err)
		}
	}
	raw := plain.client.HGet(ctx, plain.file("a"), "value").Val() + plain.client.Get(ctx, plain.shared("a")).Val()
	if len(raw) < 2*len(secret) || strings.Contains(raw, secret[:12]) {
		t.Errorf("in Redis: %q", raw)
	}
	refused := func(r *Redis, want string) {
		t.Helper()
		if v, err := r.Load(ctx, "a"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("load: %q %v, want %q", v, err, want)
		}
		if v, err := r.Agree(ctx, "a", nil, 0); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("agree: %q %v, want %q", v, err, want)
		}
	}
	refused(plain, "is encrypted")
	refused(other, "cannot be decrypted")
	for _, at := range []func(string) string{plain.file, plain.shared} {
		if err := plain.client.Copy(ctx, at("b"), at("a"), 0, true).Err(); err != nil {
			t.Fatal(err)
		}
	}
	refused(sealed, "cannot be decrypted")
	plain.client.HSet(ctx, plain.file("a"), "value", "made up")
	plain.client.Set(ctx, plain.shared("a"), "made up", 0)
	refused(sealed, "is not encrypted")
}

// Bad settings: one line that says which, and that holds no password.
func TestRedisSettings(t *testing.T) {
	dir := t.TempDir()
	empty := writeFile(t, filepath.Join(dir, "empty"), nil)
	short := writeFile(t, filepath.Join(dir, "short"), []byte("short\n"))
	f := func(o StorageOptions, want string) {
		t.Helper()
		r, err := NewRedis(o, zerolog.Nop())
		if err == nil {
			r.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
	for _, url := range []string{
		"redis://", "redis://h:0", "redis://h:x", "redis://h/x", "redis://h/-1", "redis://h/0/1", "redis://h?db=1", "redis://h#x", "unix://host/path", "unix://", "unix:///s?x=1",
		"http://h", "redis", "redis://u:s3cret@%zz",
	} {
		f(StorageOptions{URL: url}, "the forms are")
	}
	f(StorageOptions{URL: "redis://u:s3cret@h"}, "password in the URL")
	f(StorageOptions{URL: "redis://h", PasswordFile: filepath.Join(dir, "none")}, "cannot be read: no such file")
	f(StorageOptions{URL: "redis://h", PasswordFile: dir}, "is a directory")
	f(StorageOptions{URL: "redis://h", PasswordFile: empty}, "first line is empty")
	f(StorageOptions{URL: "redis://h", KeyFile: short}, "shorter than 32")
	f(StorageOptions{URL: "redis://h", CA: empty}, "rediss://")
	f(StorageOptions{URL: "rediss://h", CA: empty}, "CA file")
	s, err := OpenStorage(StorageOptions{URL: dir}, zerolog.Nop())
	if err != nil || s.Dir() != dir || s.Redis() != nil || s.Ping(t.Context()) != nil {
		t.Errorf("a directory: %v", err)
	}
	for url, want := range map[string]string{
		"redis://h": "tcp h:6379  0 false", "rediss://u@[::1]:1/7": "tcp [::1]:1 u 7 true", "unix:///run/r.sock": "unix /run/r.sock  0 false", "unix://u@/s?db=3": "unix /s u 3 false",
	} {
		network, address, user, database, secure, err := ParseRedisURL(url)
		if got := fmt.Sprint(network, " ", address, " ", user, " ", database, " ", secure); err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", url, got, err, want)
		}
	}
}

// Over TLS with a CA of one's own, as a user with a password who may do no more than what docs/several-nodes.md gives. The
// password is read again for a new connection, and never shown.
func TestRedisTLSAndPassword(t *testing.T) {
	dir := t.TempDir()
	ca := issue(t, "ca", nil, isCA)
	leaf := issue(t, "redis.contoso.local", ca, dns("localhost"))
	caFile := writeFile(t, filepath.Join(dir, "ca.pem"), certPEM(ca))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	acl := writeFile(t, filepath.Join(dir, "acl"), []byte("user default off\n"+redisUser(t, "s3cret")))
	server := peer.Redis(t, "--bind", "127.0.0.1", "--tls-port", port, "--tls-auth-clients", "no", "--aclfile", acl,
		"--tls-cert-file", writeFile(t, filepath.Join(dir, "redis.pem"), certPEM(leaf)), "--tls-key-file", writeFile(t, filepath.Join(dir, "redis.key"), keyPEM(t, leaf.key)))
	pass := writeFile(t, filepath.Join(dir, "pass"), []byte("s3cret\nnot this line\n"))
	o := StorageOptions{URL: "rediss://autodgate@localhost:" + port, CA: caFile, PasswordFile: pass}
	conform(t, node(t, o))
	if got, err := node(t, o).Agree(t.Context(), "x", []byte("1"), time.Hour); err != nil || string(got) != "1" {
		t.Errorf("%q %v", got, err)
	}
	refused := func(o StorageOptions, want string) {
		t.Helper()
		err := node(t, o).Ping(t.Context())
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	bad := o
	bad.CA = ""
	refused(bad, "certificate signed by unknown authority")
	bad = o
	bad.URL = "rediss://autodgate@127.0.0.1:" + port
	refused(bad, "127.0.0.1")
	bad = o
	bad.PasswordFile = ""
	refused(bad, "storage_password_file")
	bad = StorageOptions{URL: "unix://autodgate@" + server.Socket, PasswordFile: writeFile(t, filepath.Join(dir, "wrong"), []byte("s3cret2\n"))}
	refused(bad, "storage_password_file")
	writeFile(t, filepath.Join(dir, "wrong"), []byte("s3cret\n"))
	if err := node(t, bad).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	bad = o
	bad.Prefix = "other"
	if err := node(t, bad).Store(t.Context(), "a", nil); err == nil || !strings.Contains(err.Error(), "lacks rights") {
		t.Errorf("another prefix: %v", err)
	}
}

// redisUser is the line of docs/several-nodes.md that makes the user in Redis.
func redisUser(t *testing.T, password string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "several-nodes.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "user autodgate on ") {
			return strings.Replace(line, ">PASSWORD", ">"+password, 1)
		}
	}
	t.Fatal("docs/several-nodes.md does not say what user Redis needs")
	return ""
}

// Trust by first use on Redis: two nodes that see different keys at the same moment agree on one; Redis away, what was
// trusted stays so and nothing new is; what is removed begins anew.
func TestSharedFirstUse(t *testing.T) {
	t.Parallel()
	server := peer.Redis(t)
	var nodes []*Redis
	for range 4 {
		nodes = append(nodes, node(t, StorageOptions{URL: server.URL(), Timeout: time.Second}))
	}
	leaves := []*issued{issue(t, casName, nil, dns(casName)), issue(t, casName, nil, dns(casName))}
	shows := func(f *FirstUse, leaf *issued) error {
		return f.check(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf.Certificate}})
	}
	var accepted [2]atomic.Int32
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			err := shows(NewSharedFirstUse(nodes[i%4], "hq", "cas01:443", zerolog.Nop()), leaves[i/4%2])
			if err == nil {
				accepted[i/4%2].Add(1)
			} else if !strings.Contains(err.Error(), "not the one of the first use") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	a, b := accepted[0].Load(), accepted[1].Load()
	if (a != 20 || b != 0) && (a != 0 || b != 20) {
		t.Fatalf("accepted %d and %d", a, b)
	}
	trusted, stranger := leaves[0], leaves[1]
	if b > 0 {
		trusted, stranger = stranger, trusted
	}
	var log safeBuffer
	first := NewSharedFirstUse(nodes[0], "hq", "cas01:443", zerolog.New(&log))
	if known, err := first.Known(); !known || err != nil {
		t.Errorf("%t %v", known, err)
	}
	if err := shows(first, trusted); err != nil {
		t.Error(err)
	}
	if err := shows(first, stranger); err == nil || !strings.Contains(err.Error(), "autodgate:shared:first-use/hq@cas01_443.pin") {
		t.Error(err)
	}
	unknown := NewSharedFirstUse(nodes[1], "hq", "cas02:443", zerolog.Nop())
	server.Pause()
	if err := shows(first, trusted); err != nil {
		t.Errorf("Redis is silent: %v", err)
	}
	if err := shows(first, stranger); err == nil {
		t.Error("Redis is silent, and a stranger is trusted")
	}
	if err := shows(unknown, trusted); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("Redis is silent, and nothing is known: %v", err)
	}
	if _, err := unknown.Known(); err == nil {
		t.Error("Redis is silent, and it is known that nothing is known")
	}
	server.Resume()
	if err := nodes[0].client.Del(t.Context(), nodes[0].shared("first-use/hq@cas01_443.pin")).Err(); err != nil {
		t.Fatal(err)
	}
	// The failure is remembered for a moment.
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := shows(first, stranger); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatalf("after the key was removed: %v", err)
		}
	}
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, KeyPin(stranger.Certificate).String()) {
		t.Errorf("log: %s", got)
	}
}
