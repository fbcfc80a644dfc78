package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/config"
)

// drainTime is how long requests may go on after a signal to stop.
const drainTime = 30 * time.Second

func newServe() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "serve --config FILE", Short: "Run the front door until a signal; SIGHUP or a changed file reloads",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, report, err := readConfig(file)
			if err != nil {
				fmt.Fprint(cmd.ErrOrStderr(), report.String())
				return err
			}
			log := newLogger(cmd.ErrOrStderr(), cfg.Log)
			logWarnings(log, report)
			return serve(cmd.Context(), cfg, file, log)
		},
	}
	configFlag(cmd, &file)
	return cmd
}

// configFlag adds --config, which must be given.
func configFlag(cmd *cobra.Command, file *string) {
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("%s takes its file with --config: %s --config %s", cmd.Name(), cmd.CommandPath(), args[0])
		}
		return nil
	}
	cmd.Flags().StringVarP(file, "config", "c", "", "the configuration file")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined on the line above
	}
}

// readConfig reads a configuration; what there is to say about it is in the report.
func readConfig(file string) (*config.Config, config.Report, error) {
	cfg, report, err := config.Load(file)
	if err != nil {
		return nil, report, badUsage(err)
	}
	if !report.OK() {
		return nil, report, badUsage(fmt.Errorf("%s does not load: %s", file, count(len(report.Errors()), "error")))
	}
	return cfg, report, nil
}

// logWarnings logs what a configuration that loads is warned about: beside a
// running program nobody reads a report.
func logWarnings(log zerolog.Logger, report config.Report) {
	for _, p := range report.Warnings() {
		log.Warn().Str("config", p.Path).Int("line", p.Line).Str("want", p.Want).Msg(p.Message)
	}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// newLogger makes the logger that the configuration asks for.
func newLogger(w io.Writer, c config.Log) zerolog.Logger {
	if c.Format == "console" {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: true}
	}
	level, err := zerolog.ParseLevel(c.Level)
	if err != nil {
		level = zerolog.InfoLevel
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}

// serve runs a front door until ctx ends.
func serve(ctx context.Context, cfg *config.Config, file string, log zerolog.Logger) error {
	f, err := newFrontDoor(cfg, log, frontDoorOptions{})
	if err != nil {
		return notFine(err)
	}
	if err := f.listen(); err != nil {
		return notFine(errors.Join(err, f.close()))
	}
	log.Info().Str("version", versionString()).Int("hosts", len(cfg.Hosts)).Msg("serving")
	changed := time.NewTicker(configPoll)
	defer changed.Stop()
	watch := newFileWatch(file)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			watch.use()
			reloadFile(f, file)
		case <-changed.C:
			if watch.changed() {
				reloadFile(f, file)
			}
		case <-ctx.Done():
			log.Info().Int("connections", f.server.Connections()).Dur("limit_ms", drainTime).Msg("stopping")
			sctx, cancel := context.WithTimeout(context.Background(), drainTime)
			defer cancel()
			if err := f.shutdown(sctx); err != nil {
				log.Warn().Err(err).Msg("stopped; what had not ended was cut")
				return nil
			}
			log.Info().Msg("stopped")
			return nil
		}
	}
}

// configPoll is how often the configuration file is looked at.
const configPoll = 2 * time.Second

// fileWatch tells when a file has changed and has been left alone since: an editor
// may write it in several steps.
type fileWatch struct {
	name       string
	used, seen fs.FileInfo
}

func newFileWatch(name string) *fileWatch {
	w := &fileWatch{name: name}
	w.use()
	return w
}

// use takes the file as it is now for the one in use.
func (w *fileWatch) use() {
	w.used, _ = os.Stat(w.name)
	w.seen = w.used
}

// changed looks at the file. It is true once for every change.
func (w *fileWatch) changed() bool {
	info, err := os.Stat(w.name)
	if err != nil {
		return false // between the steps of a rename, say
	}
	settled := sameFile(info, w.seen)
	w.seen = info
	if !settled || sameFile(info, w.used) {
		return false
	}
	w.used = info
	return true
}

func sameFile(a, b fs.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// reloadFile loads the configuration again. A bad one keeps the old table.
func reloadFile(f *frontDoor, file string) {
	cfg, report, err := readConfig(file)
	for _, p := range report.Errors() {
		f.log.Error().Str("config", cmp.Or(p.Path, file)).Int("line", p.Line).Str("want", p.Want).Msg(p.Message)
	}
	if err == nil {
		logWarnings(f.log, report)
		err = f.reload(cfg)
	}
	if err != nil {
		f.log.Error().Err(err).Str("config", file).Msg("reload failed: the old configuration stays in force")
		return
	}
	f.log.Info().Str("config", file).Msg("reloaded; listeners and limits are those of the start")
}
