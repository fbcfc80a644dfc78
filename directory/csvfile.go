package directory

import (
	"bufio"
	"encoding/csv"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// mailboxKeys are the keys of a mailbox and the columns of a CSV file, as text
// for messages.
const mailboxKeys = "address, aliases, display_name, legacy_dn, mailbox_guid, login, password, site, alternative_mailboxes"

// scalarFields sets the part of a mailbox that a key with a single value names.
var scalarFields = map[string]func(m *Mailbox, value string){
	"address":      func(m *Mailbox, v string) { m.Address = v },
	"display_name": func(m *Mailbox, v string) { m.DisplayName = v },
	"legacy_dn":    func(m *Mailbox, v string) { m.LegacyDN = v },
	"mailbox_guid": func(m *Mailbox, v string) { m.MailboxGUID = v },
	"login":        func(m *Mailbox, v string) { m.Login = v },
	"password":     func(m *Mailbox, v string) { m.Password = Secret(v) },
	"site":         func(m *Mailbox, v string) { m.Site = v },
}

// readCSV adds every mailbox of r to b, record by record, so that the size of
// the file does not matter. Spaces around a value are dropped, except in passwords.
func readCSV(r io.Reader, b *builder) error {
	in := bufio.NewReader(r)
	// Spreadsheets write a byte order mark.
	if bom, err := in.Peek(3); err == nil && string(bom) == "\xef\xbb\xbf" {
		_, _ = in.Discard(3)
	}
	records := csv.NewReader(in)
	records.ReuseRecord = true

	header, err := records.Read()
	if err == io.EOF {
		b.problem(1, "the file is empty; the first line names the columns: %s", mailboxKeys)
		return nil
	}
	if err != nil {
		return csvProblem(err, b)
	}
	header = slices.Clone(header) // the reader reuses the slice
	columns, ok := csvColumns(header, b)
	if !ok {
		return nil
	}
	for {
		record, err := records.Read()
		if err == io.EOF {
			return nil
		}
		if errors.Is(err, csv.ErrFieldCount) {
			at, _ := records.FieldPos(0)
			b.problem(at, "has %d columns, the first line has %d", len(record), len(columns))
			continue
		}
		if err != nil {
			// After a broken quote nothing later can be trusted.
			return csvProblem(err, b)
		}
		at, _ := records.FieldPos(0)
		var m Mailbox
		for i, set := range columns {
			if !utf8.ValidString(record[i]) {
				b.problem(at, "%s is not UTF-8; save the file as UTF-8", strings.TrimSpace(header[i]))
				continue
			}
			set(&m, record[i])
		}
		b.add(at, m)
	}
}

// csvColumns finds the setter of every column.
func csvColumns(header []string, b *builder) (columns []func(*Mailbox, string), ok bool) {
	seen := map[string]bool{}
	for _, name := range header {
		name = strings.ToLower(strings.TrimSpace(name))
		if seen[name] {
			b.problem(1, "the column %s is there twice", printable(name))
		}
		seen[name] = true
		field := scalarFields[name]
		switch {
		case name == "password":
			columns = append(columns, field)
		case field != nil:
			columns = append(columns, func(m *Mailbox, v string) { field(m, strings.TrimSpace(v)) })
		case name == "aliases":
			columns = append(columns, func(m *Mailbox, v string) { m.Aliases = splitList(v) })
		case name == "alternative_mailboxes":
			columns = append(columns, func(m *Mailbox, v string) {
				for _, s := range splitList(v) {
					m.Alternatives = append(m.Alternatives, parseAlternative(s))
				}
			})
		default:
			b.problem(1, "unknown column %s; the columns are %s, separated by commas", printable(name), mailboxKeys)
		}
	}
	if !seen["address"] {
		b.problem(1, "the column address is missing; the first line names the columns")
	}
	return columns, len(b.err.Problems) == 0
}

// splitList splits at semicolons and white space: an address has neither.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ';' || r == ' ' || r == '\t' || r == '\n' || r == '\r' })
}

func csvProblem(err error, b *builder) error {
	var e *csv.ParseError
	if errors.As(err, &e) {
		b.problem(e.Line, "no valid CSV: %v", e.Err)
		return nil
	}
	return err
}

// printable quotes a key from the file for a message: a misspelt key helps to
// find it, a password pasted into the wrong place must not be repeated.
func printable(key string) string {
	for i := range len(key) {
		if c := key[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '-') {
			return "(no name)"
		}
	}
	if len(key) > 32 {
		return "(no name)"
	}
	return strconv.Quote(key)
}
