package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

// a phone that vanishes without a word, in the middle of a long poll, does not
// hold its connection to the server for longer than tcp_user_timeout. The test runs
// in a network of its own, in which it can take the phone off the air.
func TestVanishedPhone(t *testing.T) {
	const inside = "AUTODGATE_TEST_NETWORK"
	if os.Getenv(inside) == "" {
		// Where others than root do not look for programs.
		t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
		peer.Need(t, "ip", "apt-get install iproute2")
		peer.Need(t, "iptables", "apt-get install iptables")
		cmd := exec.Command(os.Args[0], "-test.run=^TestVanishedPhone$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		if id := os.Getuid(); id != 0 {
			cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		switch text := string(out); {
		case strings.Contains(text, "SKIP"), err != nil && len(out) == 0:
			t.Skipf("no network of its own to be had here: %v %s", err, text)
		case err != nil:
			t.Fatalf("%v\n%s", err, text)
		}
		return
	}
	run := func(args ...string) {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%v: %v %s", args, err, out)
		}
	}
	run("ip", "link", "set", "lo", "up")
	run("iptables", "-L", "-n")
	ours, server := net.Pipe() // the server is not on the network that fails
	f := newFront(t, func(_ *front, o *Options, _ *Table) {
		o.Dial = func(context.Context, string, string) (net.Conn, error) { return ours, nil }
	}, &Backend{Name: "cas01", Address: "cas01:80"})
	ln, err := Sockets{KeepAlive: time.Second, UserTimeout: 2 * time.Second}.ListenConfig().Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go f.ServeTLS(ln, ":443")
	phone, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{RootCAs: f.roots, ServerName: "mail.contoso.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer phone.Close()
	if _, err := io.WriteString(phone, "POST /Microsoft-Server-ActiveSync?Cmd=Ping HTTP/1.1\r\nHost: mail.contoso.com\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	server.SetDeadline(time.Now().Add(time.Minute))
	br := bufio.NewReader(server)
	for line := ""; line != "\r\n"; {
		if line, err = br.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	port := strconv.Itoa(phone.LocalAddr().(*net.TCPAddr).Port)
	run("iptables", "-A", "INPUT", "-p", "tcp", "--sport", port, "-j", "DROP")
	run("iptables", "-A", "INPUT", "-p", "tcp", "--dport", port, "-j", "DROP")
	start := time.Now()
	if _, err := br.ReadByte(); err != io.EOF {
		t.Fatalf("the poll at the server: %v", err)
	}
	if err := within(patience, start, "the poll ended"); err != nil {
		t.Error(err)
	}
	t.Logf("the poll ended after %v", time.Since(start))
}
