package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/autodiscover/discovery"
	"github.com/autodgate/autodgate/config"
	"github.com/autodgate/autodgate/lab"
)

func newLab() *cobra.Command {
	var o labOptions
	cmd := &cobra.Command{
		Use: "lab [SCENARIO]", Short: "Bring up a simulated company and run every client through the front door", Args: cobra.MaximumNArgs(1),
		Long: `Bring up a simulated company on free ports of 127.0.0.1 - a certificate
authority, DNS, Client Access servers that really check NTLM - with the real
front door before it. Walk real clients' Autodiscover discovery against it, send
requests through it, and print what happened. Then stay up and say what to try,
until interrupted.

Scenarios: ` + strings.Join(lab.List(), ", ") + `

Exit status: 0 every flow came out as the scenario says, 1 one did not.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := lab.DefaultScenario
			if len(args) > 0 {
				name = args[0]
			}
			scenario, err := lab.Load(name)
			if err != nil {
				return badUsage(err)
			}
			o.name = name
			return runLab(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), scenario, o)
		},
	}
	cmd.Flags().BoolVar(&o.once, "once", false, "end after the table")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "print the table alone, not the clients' steps")
	cmd.Flags().StringVar(&o.keylog, "keylog", "", "append the secrets of all TLS sessions to this file, for Wireshark to read recorded traffic (the format of SSLKEYLOGFILE)")
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "print the front door's log too")
	return cmd
}

type labOptions struct {
	name                 string
	once, quiet, verbose bool
	keylog               string
}

// labRow is a line of the result table.
type labRow struct {
	what, expected, got string
	ok                  bool
}

// runLab brings the company and the front door up, runs everything and prints it.
func runLab(ctx context.Context, out, logTo io.Writer, scenario *lab.Scenario, o labOptions) (err error) {
	log := zerolog.Nop() // what the lab does on purpose needs no warning: the table tells
	if o.verbose {
		log = newLogger(logTo, config.Log{Level: "debug", Format: "console"})
	}
	company, err := lab.Start(ctx, scenario, lab.Options{Logger: log})
	if err != nil {
		return notFine(fmt.Errorf("start the lab: %w", err))
	}
	defer func() { err = errors.Join(err, company.Close()) }()

	file := filepath.Join(company.Dir(), "autodgate.yaml") // for the user to look at
	if err := os.WriteFile(file, []byte(company.Config()), 0o600); err != nil {
		return notFine(err)
	}
	cfg, report := config.Parse(file, []byte(company.Config()))
	if !report.OK() {
		return notFine(fmt.Errorf("the scenario's front door config:\n%s", report.String()))
	}
	options := frontDoorOptions{Lab: true}
	if o.keylog != "" {
		// The lab alone has this: with it, whoever has the file and the traffic has the mail.
		keys, kerr := os.OpenFile(o.keylog, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if kerr != nil {
			return notFine(fmt.Errorf("--keylog: %w", kerr))
		}
		defer func() { err = errors.Join(err, keys.Close()) }()
		options.KeyLog = keys
		fmt.Fprintf(logTo, "KEY LOG: whoever reads %s can decrypt everything that goes through this lab's front door\n", o.keylog)
	}
	front, err := newFrontDoor(cfg, log, options)
	if err != nil {
		return notFine(err)
	}
	if err := front.listen(); err != nil {
		return notFine(errors.Join(err, front.close()))
	}
	defer func() {
		sctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if serr := front.shutdown(sctx); serr != nil && !errors.Is(serr, context.DeadlineExceeded) {
			err = errors.Join(err, serr)
		}
	}()
	if len(front.https) == 0 || len(front.http) == 0 {
		return notFine(errors.New("the scenario's front door needs listen.https and listen.http"))
	}

	fmt.Fprintf(out, "autodgate lab: %s\n%s\n\n", o.name, wrap(scenario.Description, 98))
	rows := walkClients(ctx, out, company, front, o)
	target := lab.Target{HTTPS: front.https[0], HTTP: front.http[0]}
	for _, r := range company.RunFlows(ctx, target) {
		rows = append(rows, labRow{what: r.Name + ": " + r.What, expected: r.Expected, got: r.Got, ok: r.OK})
	}
	if v := company.Recorder().Violations(); len(v) > 0 {
		rows = append(rows, labRow{what: "recorder: every backend connection the servers saw", expected: "one client each", got: strings.Join(v, "; ")})
	}
	if ctx.Err() != nil {
		return notFine(errors.New("interrupted"))
	}
	failed := printRows(out, rows)
	switch {
	case o.once && failed > 0:
		return notFine(fmt.Errorf("%d of %d did not come out as the scenario says", failed, len(rows)))
	case o.once:
		return nil
	}
	printHints(out, company, front, file)
	<-ctx.Done()
	fmt.Fprintln(out, "\nending")
	if failed > 0 {
		return notFine(nil)
	}
	return nil
}

// walkClients runs the scenario's discoveries, prints their steps, and returns
// how each came out.
func walkClients(ctx context.Context, out io.Writer, company *lab.Company, front *frontDoor, o labOptions) (rows []labRow) {
	for _, e := range company.Expectations() {
		row := labRow{what: "discover: " + e.Client + ", " + e.Address, expected: e.Outcome}
		profile, ok := discovery.Find(e.Client)
		if !ok {
			row.got = "there is no such client"
			rows = append(rows, row)
			continue
		}
		w := &discovery.Walker{
			Profile: profile, Resolver: company.DNSAddr(), RootCAs: company.RootCAs(), Timeout: time.Minute,
			Ports: map[int]int{443: portOf(front.https[0]), 80: portOf(front.http[0])},
		}
		if account, ok := company.Account(e.Address); ok {
			// The lab's servers are its own: Basic gives nothing away.
			w.Credentials = discovery.Credentials{User: account.Login, Password: account.Password, AllowBasic: true}
		}
		trace := w.Walk(ctx, e.Address)
		if !o.quiet {
			if err := trace.WriteText(out, discovery.Render{Stable: true}); err != nil {
				row.got = err.Error()
			}
			fmt.Fprintln(out)
		}
		row.expected, row.got, row.ok = judge(e, trace)
		rows = append(rows, row)
	}
	return rows
}

// judge holds a walk against what the scenario expects of it.
func judge(e lab.Expectation, t *discovery.Trace) (expected, got string, ok bool) {
	expected = outcomeLine(e.Outcome, e.Prompts, e.FoundAt)
	got = outcomeLine(t.Verdict, len(t.Prompts), t.FoundAt)
	if got != expected {
		if t.Why != "" {
			got += " (" + t.Why + ")"
		}
		return expected, got, false
	}
	if len(e.Steps) == 0 {
		return expected, got, true
	}
	var steps []string
	for _, s := range t.Steps {
		if s.Outcome != discovery.Outcome("skip") {
			steps = append(steps, fmt.Sprintf("%s %s: %s", s.Kind, s.URL, s.Outcome))
		}
	}
	if !slices.Equal(steps, e.Steps) {
		return "steps " + strings.Join(e.Steps, "; "), "steps " + strings.Join(steps, "; "), false
	}
	return expected, got, true
}

func outcomeLine(verdict string, prompts int, foundAt string) string {
	s := verdict
	if prompts > 0 {
		s += ", " + count(prompts, "question")
	}
	if foundAt != "" {
		s += ", at " + foundAt
	}
	return s
}

// printRows prints the result table and returns how many rows are not as expected.
func printRows(out io.Writer, rows []labRow) (failed int) {
	for _, r := range rows {
		mark := "ok  "
		if !r.ok {
			mark = "FAIL"
			failed++
		}
		fmt.Fprintf(out, "%s  %s\n", mark, r.what)
		if r.ok {
			fmt.Fprintf(out, "      %s\n", r.got)
		} else {
			fmt.Fprintf(out, "      expected %s\n      got      %s\n", r.expected, r.got)
		}
	}
	fmt.Fprintf(out, "\n%d of %d as the scenario says\n", len(rows)-failed, len(rows))
	return failed
}

// printHints says what to try against the running lab.
func printHints(out io.Writer, company *lab.Company, front *frontDoor, config string) {
	https, http := front.https[0], front.http[0]
	to := func(host string) string {
		return fmt.Sprintf("--cacert %s --connect-to %s:443:%s", company.CAFile(), host, https)
	}
	fmt.Fprintf(out, `
The lab is up.
  front door   https %s, http %s, admin %s
  DNS          %s
  CA           %s
  config       %s
`, https, http, front.admin, company.DNSAddr(), company.CAFile(), config)
	for _, s := range company.Servers() {
		fmt.Fprintf(out, "  server       %s at %s, certificate SHA-256 %s\n", s.FQDN, s.Address, s.Fingerprint)
	}
	fmt.Fprintf(out, "\nAccounts:\n")
	var ntlm, basic *lab.Mailbox
	for _, m := range company.Accounts() {
		login := m.Login
		if login == "" {
			login = m.Address
		}
		fmt.Fprintf(out, "  %-24s login %-24s password %s\n", m.Address, login, m.Password)
		if m.FrontDoor && basic == nil {
			basic = &m
		} else if !m.FrontDoor && ntlm == nil {
			ntlm = &m
		}
	}
	flows := company.Scenario().Flows
	fmt.Fprintf(out, "\nTry:\n")
	if ntlm != nil && flows.Bridge != "" {
		fmt.Fprintf(out, "  curl --ntlm -u '%s:%s' %s https://%s/EWS/Exchange.asmx\n", ntlm.Login, ntlm.Password, to(flows.Bridge), flows.Bridge)
	}
	if flows.Bridge != "" {
		fmt.Fprintf(out, "  chromium --user-data-dir=%s --host-resolver-rules='MAP %s:443 %s' https://%s/owa/    # the certificate is from the lab's CA\n",
			filepath.Join(company.Dir(), "browser"), flows.Bridge, https, flows.Bridge)
	}
	if flows.Redirect.Host != "" {
		fmt.Fprintf(out, "  curl -i --connect-to %s:80:%s http://%s/autodiscover/autodiscover.xml\n", flows.Redirect.Host, http, flows.Redirect.Host)
		fmt.Fprintf(out, "  curl %s https://%s/        # refused: unrecognized name\n", to(flows.Redirect.Host), flows.Redirect.Host)
	}
	if flows.Passthrough.Host != "" {
		fmt.Fprintf(out, "  curl -kv --connect-to %s:443:%s https://%s/    # the server's own certificate\n", flows.Passthrough.Host, https, flows.Passthrough.Host)
	}
	if basic != nil {
		fmt.Fprintf(out, "  echo '%s' | %s discover %s --dns %s --ca %s --https-port %d --http-port %d --password-file - --allow-basic\n",
			basic.Password, programName(), basic.Address, company.DNSAddr(), company.CAFile(), portOf(https), portOf(http))
	}
	fmt.Fprintf(out, "\nInterrupt (Ctrl-C) ends it.\n")
}

// programName is how the user can call this program again.
func programName() string {
	exe, err := os.Executable()
	switch {
	case err != nil:
		return "autodgate"
	case strings.Contains(exe, "go-build"):
		return "go run ./cmd/autodgate"
	}
	return exe
}

// wrap breaks text at blanks into lines of at most width characters.
func wrap(text string, width int) string {
	var b strings.Builder
	n := 0
	for word := range strings.FieldsSeq(text) {
		if n > 0 && n+1+len(word) > width {
			b.WriteByte('\n')
			n = 0
		} else if n > 0 {
			b.WriteByte(' ')
			n++
		}
		b.WriteString(word)
		n += len(word)
	}
	return b.String()
}
