//go:build ignore

// Command gen records the ClientHellos in this directory: `go run gen.go`, in this directory. Clients are Go's crypto/tls
// and, where they are installed, openssl and curl, each talking to a loopback listener that answers nothing.
package main

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"time"
)

const name = "mail.contoso.com"

func main() {
	log.SetFlags(0)

	base := func(c *tls.Config) *tls.Config {
		if c.ServerName == "" {
			c.ServerName = name
		}
		return c
	}
	write("go-tls10", goHello(base(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10})))
	write("go-tls12", goHello(base(&tls.Config{MaxVersion: tls.VersionTLS12})))
	write("go-tls13-x25519", goHello(base(&tls.Config{MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}})))
	mlkem := goHello(base(&tls.Config{}))
	write("go-mlkem768", mlkem)
	write("go-mlkem1024", goHello(base(&tls.Config{CurvePreferences: []tls.CurveID{tls.SecP384r1MLKEM1024}})))
	write("go-upper-case", goHello(base(&tls.Config{ServerName: "MAIL.Contoso.COM"})))
	write("go-no-sni", goHello(&tls.Config{InsecureSkipVerify: true}))
	write("go-acme-alpn", goHello(base(&tls.Config{NextProtos: []string{"acme-tls/1"}})))
	var protos []string
	for i := range 200 {
		protos = append(protos, fmt.Sprintf("experimental-protocol/%03d", i))
	}
	write("go-long-alpn", goHello(base(&tls.Config{NextProtos: append(protos, "http/1.1")})))
	write("go-ech-outer", goHello(&tls.Config{ServerName: "secret.contoso.com", EncryptedClientHelloConfigList: echConfigList()}))
	write("go-records-of-100", reframe(mlkem, 100))
	write("go-records-of-1", reframe(goHello(base(&tls.Config{MaxVersion: tls.VersionTLS12})), 1))
	write("go-early-data", append(bytes.Clone(mlkem), append([]byte{23, 3, 3, 0, 64}, bytes.Repeat([]byte{0xed}, 64)...)...))

	openssl := func(file string, args ...string) {
		command(file, "openssl", func(addr string) []string { return append([]string{"s_client", "-connect", addr}, args...) })
	}
	openssl("openssl-tls10", "-tls1", "-cipher", "ALL:@SECLEVEL=0", "-servername", name)
	openssl("openssl-tls12", "-tls1_2", "-servername", name)
	openssl("openssl-tls13", "-tls1_3", "-servername", name)
	openssl("openssl-default", "-servername", name)
	openssl("openssl-noservername", "-noservername")
	openssl("openssl-alpn", "-servername", name, "-alpn", "h2,http/1.1")
	openssl("openssl-trailing-dot", "-servername", name+".")
	openssl("openssl-upper-case", "-servername", "AutoDiscover.Contoso.COM")
	openssl("openssl-ip-literal", "-servername", "192.0.2.1")
	openssl("openssl-max-fragment", "-servername", name, "-maxfraglen", "512")
	command("curl-default", "curl", func(addr string) []string {
		return []string{"-sk", "--max-time", "2", "--connect-to", name + ":443:" + addr, "https://" + name + "/"}
	})
}

func write(file string, b []byte) {
	if err := os.WriteFile(file+".bin", b, 0o644); err != nil {
		log.Fatal(err)
	}
	log.Printf("%-24s %5d bytes", file, len(b))
}

// goHello returns what a crypto/tls client sends before it has heard anything.
func goHello(c *tls.Config) []byte {
	c.Time = func() time.Time { return time.Unix(0, 0) }
	client, server := net.Pipe()
	go func() {
		_ = tls.Client(client, c).Handshake()
		client.Close()
	}()
	defer server.Close()
	return record(server)
}

// command runs a client against a silent listener and stores what it sends.
func command(file, program string, args func(addr string) []string) {
	path, err := exec.LookPath(program)
	if err != nil {
		log.Printf("%-24s kept: %v", file, err)
		return
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.Command(path, args(ln.Addr().String())...)
	if err := cmd.Start(); err != nil {
		log.Fatal(err)
	}
	defer cmd.Wait()
	c, err := ln.Accept()
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	write(file, record(c))
}

// record reads until the client waits for an answer.
func record(c net.Conn) []byte {
	var out []byte
	buf := make([]byte, 64<<10)
	for {
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Read(buf)
		out = append(out, buf[:n]...)
		if err != nil {
			return out
		}
	}
}

// reframe spreads the one record of a hello over records of n bytes.
func reframe(rec []byte, n int) []byte {
	var out []byte
	for msg := rec[5:]; len(msg) > 0; {
		m := min(n, len(msg))
		out = append(out, 22, rec[1], rec[2], byte(m>>8), byte(m))
		out = append(out, msg[:m]...)
		msg = msg[m:]
	}
	return out
}

// echConfigList is one ECHConfig with a fresh key nobody keeps; the outer name is mail.contoso.com.
func echConfigList() []byte {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	var c []byte
	c = append(c, 1)          // config_id
	c = append(c, 0x00, 0x20) // DHKEM(X25519, HKDF-SHA256)
	c = binary.BigEndian.AppendUint16(c, 32)
	c = append(c, key.PublicKey().Bytes()...)
	c = append(c, 0, 4, 0, 1, 0, 1) // HKDF-SHA256, AES-128-GCM
	c = append(c, 32)               // maximum_name_length
	c = append(c, byte(len(name)))
	c = append(c, name...)
	c = append(c, 0, 0) // extensions
	c = append(binary.BigEndian.AppendUint16([]byte{0xfe, 0x0d}, uint16(len(c))), c...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(c))), c...)
}
