// Command autodgate is the front door for Exchange-style mail servers: it
// terminates TLS per host name, answers or redirects Autodiscover, bridges client
// access to internal servers, and brings a lab that shows all of it at work.
//
// This package is the only one that knows all the others: it turns a
// configuration into the tables, certificates and handlers of the traffic path.
// There is a file for each command; frontdoor.go is what serve and lab share.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker (see Makefile).
var version = ""

// exitError is an error with an exit status: 1 if what was looked at is not fine,
// 2 for wrong usage or a config that does not load. Its text may be empty when
// everything has been said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// notFine reports that what was looked at is not fine.
func notFine(err error) error { return &exitError{1, err} }

// badUsage reports a command line, or a config, that cannot be used.
func badUsage(err error) error { return &exitError{2, err} }

func main() {
	// A reader that goes away (lab | head) is a write error, not the program's end:
	// the lab cleans up behind itself.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run executes a command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	ran, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	code := 2 // what cobra itself complains of is usage
	var ee *exitError
	if errors.As(err, &ee) {
		code = ee.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(stderr, "autodgate: %s\n", text)
		if ee == nil {
			fmt.Fprintf(stderr, "Run '%s --help' to see what there is.\n", ran.CommandPath())
		}
	}
	return code
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "autodgate",
		Short: "The front door for Exchange-style mail servers",
		Long: `autodgate is the front door for Exchange-style mail servers: it terminates TLS
per host name, serves the Autodiscover redirect site, answers Autodiscover
itself, and bridges client access to internal servers so that NTLM, Outlook
Anywhere, MAPI over HTTP, ActiveSync, EWS and OWA work.

Try it: autodgate lab`,
		Version:      versionString(),
		SilenceUsage: true, SilenceErrors: true,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("autodgate {{.Version}}\n")
	root.AddCommand(newServe(), newCheck(), newDiscover(), newLab(), newCert(), newConfig(), newHealth(), newVersion(), newMan())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "autodgate", versionString())
			return nil
		},
	}
}

// versionString is the version the linker set, else what the Go toolchain knows.
func versionString() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(len(s.Value), 12)]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision != "" {
		return revision + modified
	}
	return "development"
}
