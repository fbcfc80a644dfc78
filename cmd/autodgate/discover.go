package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/autodiscover/discovery"
)

func newDiscover() *cobra.Command {
	var o struct {
		client, server, dns, ca, user, passwordFile string
		httpsPort, httpPort                         int
		basic, json, headers                        bool
		timeout                                     time.Duration
	}
	var clients []string
	for _, p := range discovery.Profiles() {
		clients = append(clients, p.Name)
	}
	cmd := &cobra.Command{
		Use: "discover ADDRESS", Short: "Walk a client's Autodiscover order and show every step", Args: cobra.ExactArgs(1),
		Long: `Walk the Autodiscover discovery order of a client for a mail address, and print
every step: what was tried, what came back, what the user would have seen, and
why the client moved on.

Clients: ` + strings.Join(clients, ", ") + `

Without a password nothing is logged in to: the walk shows how far a client
gets until it is asked. Basic is never sent unless --allow-basic says so.

Exit status: 0 the client would connect, 1 it would not, 2 wrong usage.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if at := strings.LastIndexByte(args[0], '@'); at <= 0 || at == len(args[0])-1 {
				return badUsage(fmt.Errorf("%s is not a mail address; give one such as pat@contoso.com", args[0]))
			}
			profile, ok := discovery.Find(o.client)
			if !ok {
				return badUsage(fmt.Errorf("--client: there is no %q; there are %s", o.client, strings.Join(clients, ", ")))
			}
			for flag, port := range map[string]int{"--https-port": o.httpsPort, "--http-port": o.httpPort} {
				if port < 1 || port > 65535 {
					return badUsage(fmt.Errorf("%s: %d is not a port", flag, port))
				}
			}
			if o.timeout <= 0 {
				return badUsage(errors.New("--timeout: give a time such as 30s"))
			}
			if o.dns != "" {
				if _, err := netip.ParseAddr(o.dns); err != nil {
					if _, err := netip.ParseAddrPort(o.dns); err != nil {
						return badUsage(fmt.Errorf("--dns: %s is neither an IP address nor ip:port", o.dns))
					}
				}
			}
			w := &discovery.Walker{
				Profile: profile, Resolver: o.dns, Server: o.server, Timeout: o.timeout,
				Credentials: discovery.Credentials{User: o.user, AllowBasic: o.basic},
				Ports:       map[int]int{},
			}
			if o.httpsPort != 443 {
				w.Ports[443] = o.httpsPort
			}
			if o.httpPort != 80 {
				w.Ports[80] = o.httpPort
			}
			if o.ca != "" {
				pem, err := os.ReadFile(o.ca)
				if err != nil {
					return badUsage(fmt.Errorf("--ca: %w", err))
				}
				if w.RootCAs = x509.NewCertPool(); !w.RootCAs.AppendCertsFromPEM(pem) {
					return badUsage(fmt.Errorf("--ca: %s holds no PEM certificate", o.ca))
				}
			}
			if o.passwordFile != "" {
				password, err := readPassword(cmd.InOrStdin(), o.passwordFile)
				if err != nil {
					return badUsage(err)
				}
				w.Credentials.Password = password
			}
			trace := w.Walk(cmd.Context(), args[0])
			render := discovery.Render{Headers: o.headers}
			write := trace.WriteText
			if o.json {
				write = trace.WriteJSON
			}
			if err := write(cmd.OutOrStdout(), render); err != nil {
				return err
			}
			if !trace.Connected {
				return notFine(nil)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.client, "client", "outlook-2016", "the client whose order is walked")
	f.StringVar(&o.server, "server", "", "connect to this host[:port] whatever DNS says")
	f.StringVar(&o.dns, "dns", "", "ask this DNS server, ip[:port]")
	f.StringVar(&o.ca, "ca", "", "trust the CA certificates (PEM) in this file instead of the system's")
	f.StringVar(&o.user, "user", "", "log in as this user (default: the address)")
	f.StringVar(&o.passwordFile, "password-file", "", "log in with the password in this file; - reads a line from standard input")
	f.BoolVar(&o.basic, "allow-basic", false, "send the password with Basic where a server offers nothing better")
	f.IntVar(&o.httpsPort, "https-port", 443, "the port that stands for 443, for a lab")
	f.IntVar(&o.httpPort, "http-port", 80, "the port that stands for 80, for a lab")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "give up after this time")
	f.BoolVar(&o.json, "json", false, "print the trace as JSON")
	f.BoolVar(&o.headers, "headers", false, "show the headers sent and received, less secrets")
	return cmd
}

// readPassword reads the first line of a file, or of standard input for "-".
func readPassword(stdin io.Reader, file string) (string, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("--password-file: %w", err)
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, 4<<10))
	if err != nil {
		return "", fmt.Errorf("--password-file: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return "", errors.New("--password-file: its first line is empty")
	}
	return line, nil
}

// portOf returns the port of a listen address.
func portOf(address string) int {
	n, err := strconv.Atoi(address[strings.LastIndexByte(address, ':')+1:])
	if err != nil {
		return 0
	}
	return n
}
