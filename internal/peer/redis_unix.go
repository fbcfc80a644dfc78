//go:build unix

package peer

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// RedisServer is a Redis server of a test's own, which listens on a socket and
// forgets everything when it ends.
type RedisServer struct {
	// Socket is the path of the Unix socket.
	Socket string

	t       testing.TB
	program string
	args    []string

	mu  sync.Mutex
	cmd *exec.Cmd
}

// Redis starts a Redis server; it ends with the test. The arguments are added to
// its command line.
func Redis(t testing.TB, args ...string) *RedisServer {
	t.Helper()
	program := Need(t, "redis-server", "apt-get install redis-server")
	dir, err := os.MkdirTemp("", "redis") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	r := &RedisServer{t: t, program: program, Socket: filepath.Join(dir, "redis.sock")}
	r.args = append([]string{"--port", "0", "--unixsocket", r.Socket, "--dir", dir, "--save", "", "--appendonly", "no", "--loglevel", "warning"}, args...)
	t.Cleanup(func() {
		r.Stop()
		os.RemoveAll(dir)
	})
	r.Start()
	return r
}

// URL is that of the server.
func (r *RedisServer) URL() string { return "unix://" + r.Socket }

// Start starts the server, anew after Stop, and waits until it can be connected to.
func (r *RedisServer) Start() {
	r.t.Helper()
	cmd := exec.Command(r.program, r.args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.cmd = cmd
	r.mu.Unlock()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", r.Socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("redis-server does not answer: %v", err)
		}
	}
}

// Stop ends the server at once, as a crash does.
func (r *RedisServer) Stop() {
	r.mu.Lock()
	cmd := r.cmd
	r.cmd = nil
	r.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		os.Remove(r.Socket)
	}
}

// Pause makes the server answer nothing until Resume: connections to it are made
// and stay silent.
func (r *RedisServer) Pause() { r.signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (r *RedisServer) Resume() { r.signal(syscall.SIGCONT) }

func (r *RedisServer) signal(s syscall.Signal) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}
