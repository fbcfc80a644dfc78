package proxy

import (
	"bytes"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/autodgate/autodgate/internal/peer"
)

var update = flag.Bool("update", false, "rewrite docs/smuggling.md, and testdata/smuggling/peers.txt from the peers that are here")

const (
	smugglingPage   = "../docs/smuggling.md"
	smugglingRecord = "../testdata/smuggling/peers.txt"
)

// otherProxy is a proxy that others wrote, in front of a wire.
type otherProxy struct {
	name, program, how string
	version            func(path string) string
	config             func(dir, socket, backend string) string
	args               func(config string) []string
}

var otherProxies = []otherProxy{
	{
		name: "nginx", program: "nginx", how: "apt-get install nginx-light",
		version: func(path string) string { return printedVersion(path, "-v", `nginx/([0-9.]+)`) },
		config: func(dir, socket, backend string) string {
			temp := ""
			for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
				temp += fmt.Sprintf("\t%s_temp_path %s/%s;\n", kind, dir, kind)
			}
			return fmt.Sprintf("daemon off;\nmaster_process off;\nerror_log stderr crit;\npid %s/pid;\nevents { worker_connections 256; }\nhttp {\n\taccess_log off;\n%s"+
				"\tserver {\n\t\tlisten unix:%s;\n\t\tlocation / {\n\t\t\tproxy_pass http://%s;\n\t\t\tproxy_http_version 1.1;\n\t\t\tproxy_set_header Host $host;\n\t\t}\n\t}\n}\n", dir, temp, socket, backend)
		},
		args: func(config string) []string {
			return []string{"-p", filepath.Dir(config), "-e", "stderr", "-c", config}
		},
	},
	{
		name: "HAProxy", program: "haproxy", how: "apt-get install haproxy",
		version: func(path string) string { return printedVersion(path, "-v", `version ([0-9.]+)`) },
		config: func(_, socket, backend string) string {
			return fmt.Sprintf("global\n\tmaxconn 256\ndefaults\n\tmode http\n\ttimeout connect 5s\n\ttimeout client 5s\n\ttimeout server 5s\n"+
				"frontend clients\n\tbind unix@%s\n\tdefault_backend cas\nbackend cas\n\tserver cas01 %s\n", socket, backend)
		},
		args: func(config string) []string { return []string{"-db", "-f", config} },
	},
}

// printedVersion runs a program for its version.
func printedVersion(path, arg, pattern string) string {
	out, _ := exec.Command(path, arg).CombinedOutput()
	if m := regexp.MustCompile(pattern).FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return "unknown"
}

// start starts the proxy on a socket of its own and returns that and what is behind.
func (p *otherProxy) start(t *testing.T, path string) (socket string, w *wire) {
	t.Helper()
	dir, err := os.MkdirTemp("", "peer") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w = newWire(t)
	socket, file := filepath.Join(dir, "socket"), filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(p.config(dir, socket, w.ln.Addr().String())), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, p.args(file)...)
	var said lockedBuffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	eventually(t, p.name+" listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket, w
}

// outcome is a cell of the table: what the client got, and what the backend saw. The
// mark tells what is wrong with it.
func outcome(statuses, seen []string, mark string) string {
	statuses = slices.DeleteFunc(slices.Clone(statuses), func(s string) bool { return s == "100" })
	cell := strings.Join(statuses, " ")
	if cell == "" {
		cell = "no answer"
	}
	if len(seen) > 0 {
		cell += ": " + strings.Join(seen, ", ")
	}
	return cell + mark
}

// outcome is the cell that the case must have here.
func (m mutation) outcome() string {
	statuses, seen, _ := strings.Cut(m.want, " | ")
	statuses, _, _ = strings.Cut(statuses, " or ")
	var names []string
	if seen != "" {
		names = strings.Split(seen, ", ")
	}
	return outcome(strings.Fields(strings.TrimRight(statuses, "~…")), names, "")
}

// outcomeOf sends a case to the proxy, in one piece or the head before the rest.
func outcomeOf(t *testing.T, socket string, w *wire, m mutation, inPieces bool) string {
	t.Helper()
	w.reset()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := converse(c, m.raw, inPieces, 0, time.Second)
	c.Close()
	time.Sleep(2 * time.Millisecond)
	var seen []string
	mark := ""
	for _, conn := range w.connections() {
		v := judge(conn.bytes(), false)
		seen = append(seen, v.seen...)
		switch {
		case v.ambiguous != "":
			mark = " ‡"
		case v.invalid != nil && mark == "":
			mark = " †"
		}
	}
	statuses := statusesIn(got)
	if len(statuses) == 0 && len(got) > 0 {
		statuses = []string{"bare body"} // HTTP/0.9
	}
	return outcome(statuses, seen, mark)
}

// record is what the peers were seen to do: their versions, and by case one cell
// for each.
type record struct {
	versions []string
	cells    map[string][]string
}

func readRecord(t *testing.T) (r record) {
	t.Helper()
	text, err := os.ReadFile(smugglingRecord)
	if err != nil && !*update {
		t.Fatal(err)
	}
	r.cells = map[string][]string{}
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		f := strings.Split(line, "\t")
		if i == 0 {
			r.versions = f[1:]
		} else {
			r.cells[f[0]] = f[1:]
		}
	}
	if len(r.versions) != len(otherProxies) {
		r.versions = make([]string, len(otherProxies))
	}
	return r
}

// what nginx and HAProxy do with the same bytes in front of the same
// backend is as docs/smuggling.md says, for the versions that it names.
func TestSmugglingPeers(t *testing.T) {
	t.Parallel()
	recorded := readRecord(t)
	all := mutations()
	type result struct {
		version string
		cells   []string
	}
	results := make([]result, len(otherProxies))
	var wg sync.WaitGroup
	for i, p := range otherProxies {
		path := peer.Need(t, p.program, p.how)
		results[i] = result{p.version(path), make([]string, len(all))}
		socket, w := p.start(t, path)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n, m := range all {
				want := ""
				// What the same version was seen to do once it may do again: an update
				// adds to it. To begin anew, remove the file.
				if cells := recorded.cells[m.key()]; i < len(cells) && (!*update || results[i].version == recorded.versions[i]) {
					want = cells[i]
				}
				got := ""
				for try := range 4 { // some faults come to light in a race with the answer
					got = outcomeOf(t, socket, w, m, try%2 == 1)
					if *update && !slices.Contains(strings.Split(want, " or "), got) {
						want = strings.TrimPrefix(want+" or "+got, " or ") // it depends
					} else if !*update && slices.Contains(strings.Split(want, " or "), got) {
						break
					}
				}
				results[i].cells[n] = want
				if !slices.Contains(strings.Split(want, " or "), got) {
					if results[i].version == recorded.versions[i] {
						t.Errorf("%s, %s: %s, recorded as %s", p.name, m.key(), got, want)
					} else {
						t.Logf("%s %s, %s: %s; version %s was seen to: %s", p.name, results[i].version, m.key(), got, recorded.versions[i], want)
					}
				}
			}
		}()
	}
	wg.Wait()
	if !*update {
		return
	}
	var b bytes.Buffer
	b.WriteString("case")
	for _, r := range results {
		b.WriteString("\t" + r.version)
	}
	for n, m := range all {
		b.WriteString("\n" + m.key())
		for _, r := range results {
			b.WriteString("\t" + r.cells[n])
		}
	}
	if err := os.WriteFile(smugglingRecord, append(b.Bytes(), '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (m mutation) key() string { return m.family + ": " + m.name }

// The table of docs/smuggling.md is what the cases require of us, which
// TestRequestSmuggling checks, beside what was recorded of the peers. Cases of a
// family that come out alike share a line.
func TestSmugglingPage(t *testing.T) {
	const begin, end = "<!-- table -->\n", "<!-- end of table -->\n"
	recorded := readRecord(t)
	var table strings.Builder
	fmt.Fprintf(&table, "\n%d cases. nginx is %s, HAProxy %s, both of Debian 12.\n\n", len(mutations()), recorded.versions[0], recorded.versions[1])
	table.WriteString("| Case | autodgate | nginx | HAProxy |\n|---|---|---|---|\n")
	var families []string
	rows := map[string][]string{}             // by family: outcomes, in order
	names := map[string]map[string][]string{} // by family and outcome: cases
	for _, m := range mutations() {
		if names[m.family] == nil {
			families = append(families, m.family)
			names[m.family] = map[string][]string{}
		}
		cells := recorded.cells[m.key()]
		if len(cells) != len(otherProxies) {
			t.Fatalf("%s has no line for %q; go test ./proxy -run TestSmuggling -update writes it", smugglingRecord, m.key())
		}
		row := strings.Join(append([]string{m.outcome()}, cells...), " | ")
		if names[m.family][row] == nil {
			rows[m.family] = append(rows[m.family], row)
		}
		names[m.family][row] = append(names[m.family][row], m.name)
	}
	for _, family := range families {
		fmt.Fprintf(&table, "| **%s** | | | |\n", family)
		for _, row := range rows[family] {
			fmt.Fprintf(&table, "| %s | %s |\n", strings.Join(names[family][row], "; "), row)
		}
	}
	table.WriteString("\n")
	text, err := os.ReadFile(smugglingPage)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", smugglingPage)
	}
	want := before + begin + table.String() + end + after
	if *update {
		if err := os.WriteFile(smugglingPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Errorf("the table of %s is not what the cases and the record say; go test ./proxy -run TestSmuggling -update rewrites it", smugglingPage)
	}
}
