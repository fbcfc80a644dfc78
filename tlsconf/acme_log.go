package tlsconf

import (
	"github.com/rs/zerolog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger is a logger for certmagic that writes into ours. What certmagic tells at info is how it goes about things, which
// is debug here; its debug lines, which hold whole requests, are left out.
func zapLogger(log zerolog.Logger) *zap.Logger { return zap.New(&zapCore{log: log}) }

type zapCore struct {
	log    zerolog.Logger
	fields []zapcore.Field
}

var _ zapcore.Core = (*zapCore)(nil)

func (c *zapCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && zapLevel(l) >= c.log.GetLevel()
}

func (c *zapCore) With(fields []zapcore.Field) zapcore.Core {
	return &zapCore{c.log, append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, list := range [][]zapcore.Field{c.fields, fields} {
		for _, f := range list {
			f.AddTo(enc)
		}
	}
	c.log.WithLevel(zapLevel(e.Level)).Str("from", "certmagic").Fields(enc.Fields).Msg(e.Message)
	return nil
}

func (c *zapCore) Sync() error { return nil }

func zapLevel(l zapcore.Level) zerolog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return zerolog.ErrorLevel
	case l >= zapcore.WarnLevel:
		return zerolog.WarnLevel
	}
	return zerolog.DebugLevel
}
