package tlsconf

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// filePoll is how often the files are looked at. Polling sees what notification misses: symbolic links that are switched
// (certbot, Kubernetes), network file systems, a file that is replaced by rename.
const filePoll = 2 * time.Second

// FilesOptions are the settings of [NewFiles] and [NewPFX].
type FilesOptions struct {
	Names []string       // host names that will show the certificate; those it does not cover are warned about
	Poll  time.Duration  // how often the files are looked at; 0 is every 2 s, negative is never
	Log   zerolog.Logger // told of warnings, of every swap, and once of each cause that prevents one
	// Wait makes a pair that does not load at the start no error: the log says why, and it is shown as soon as it does.
	Wait bool
}

// Files is a certificate with its chain and key that comes out of files. When a file changes, the new pair is shown from
// the next handshake on. While the files do not make a good pair, which is normal between the writing of one and of the
// other, the last good one is kept.
type Files struct {
	paths []string // what is watched; the first is what the certificate is called after
	load  func() (*tls.Certificate, []string, error)
	log   zerolog.Logger

	current atomic.Pointer[tls.Certificate]
	worker  worker
}

var _ Source = (*Files)(nil)

// NewFiles loads a chain and its key from PEM files and starts watching. The files may be one and the same. The error is
// one line that names the file and what is wrong with it.
func NewFiles(certFile, keyFile string, o FilesOptions) (*Files, error) {
	return newFiles([]string{certFile, keyFile}, func() (*tls.Certificate, []string, error) { return LoadFiles(certFile, keyFile, o.Names) }, o)
}

func newFiles(paths []string, load func() (*tls.Certificate, []string, error), o FilesOptions) (*Files, error) {
	f := &Files{paths: paths, load: load, log: o.Log.With().Str("cert", paths[0]).Logger()}
	watch := &fileWatch{f: f, seen: f.state()}
	cert, warnings, err := load()
	switch {
	case err == nil:
		f.current.Store(cert)
		f.warn(warnings)
	case o.Wait:
		watch.fail(err)
	default:
		return nil, err
	}
	poll := o.Poll
	if poll == 0 {
		poll = filePoll
	}
	if poll > 0 {
		f.worker.start(poll, watch.look)
	}
	return f, nil
}

// GetCertificate implements [Source].
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	cert := f.current.Load()
	if cert == nil {
		return nil, fmt.Errorf("certificate %s could not be loaded yet", f.paths[0])
	}
	return cert, nil
}

// Leaf implements [Source].
func (f *Files) Leaf() *x509.Certificate {
	cert := f.current.Load()
	if cert == nil {
		return nil
	}
	return cert.Leaf
}

// Close implements [Source].
func (f *Files) Close() error {
	f.worker.stop()
	return nil
}

func (f *Files) warn(warnings []string) {
	for _, w := range warnings {
		f.log.Warn().Msg("certificate: " + w)
	}
}

// fileState is by what a changed file is recognised.
type fileState struct {
	info os.FileInfo
	err  string
}

func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{err: err.Error()}
	}
	return fileState{info: info}
}

// same compares time, size and identity (inode): any of them alone misses some way of replacing a file.
func (s fileState) same(t fileState) bool {
	if s.info == nil || t.info == nil {
		return s.info == nil && t.info == nil && s.err == t.err
	}
	return s.info.ModTime().Equal(t.info.ModTime()) && s.info.Size() == t.info.Size() && os.SameFile(s.info, t.info)
}

func (f *Files) state() []fileState {
	var all []fileState
	for _, p := range f.paths {
		all = append(all, stateOf(p))
	}
	return all
}

// fileWatch is what the watching goroutine remembers from look to look.
type fileWatch struct {
	f      *Files
	seen   []fileState
	failed string // the last cause that was logged; "" after a success
	warned time.Time
}

// expiry warns once a day of a certificate that ends soon: nobody else renews what is in files.
func (w *fileWatch) expiry(now time.Time) {
	leaf := w.f.Leaf()
	if leaf == nil || leaf.NotAfter.Sub(now) > ExpirySoon(leaf) || now.Sub(w.warned) < 24*time.Hour {
		return
	}
	w.warned = now
	w.f.log.Warn().Time("not_after", leaf.NotAfter).Int("days_left", int(leaf.NotAfter.Sub(now)/(24*time.Hour))).Msg("certificate expires soon, or has expired: renew it")
}

func (w *fileWatch) look() {
	// The state is taken before the files are read: what changes meanwhile is seen at the next look.
	w.expiry(time.Now())
	now := w.f.state()
	if w.failed == "" && slices.EqualFunc(now, w.seen, fileState.same) {
		return
	}
	w.seen = now
	cert, warnings, err := w.f.load()
	if err != nil {
		w.fail(err)
		return
	}
	old := w.f.current.Swap(cert)
	w.failed = ""
	if old == nil || !old.Leaf.Equal(cert.Leaf) {
		w.f.log.Info().Time("not_after", cert.Leaf.NotAfter).Strs("names", sanNames(cert.Leaf)).Msg("certificate changed")
	}
	w.f.warn(warnings)
}

// fail logs why there is no new certificate, once for each cause.
func (w *fileWatch) fail(err error) {
	if w.failed == err.Error() {
		return
	}
	w.failed = err.Error()
	if leaf := w.f.Leaf(); leaf != nil {
		w.f.log.Error().Err(err).Time("not_after", leaf.NotAfter).Msg("certificate not changed, the old one is kept")
		return
	}
	w.f.log.Error().Err(err).Msg("no certificate: TLS connections for its names are refused until there is one")
}

// worker runs a function at an interval until it is stopped.
type worker struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *worker) start(every time.Duration, run func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan struct{})
	go func() {
		defer close(w.done)
		t := time.NewTicker(every)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				run()
			}
		}
	}()
}

func (w *worker) stop() {
	if w.cancel != nil {
		w.cancel()
		<-w.done
	}
}

// LoadFiles reads a chain and its key from PEM files. The chain is put in order, leaf first, whatever the order in the
// file; what was wrong with it and what [Inspect] finds for names is returned as warnings. The error is one line that
// names the file, what is wrong, and what would be right.
func LoadFiles(certFile, keyFile string, names []string) (cert *tls.Certificate, warnings []string, err error) {
	pair, warnings, err := ReadFiles(certFile, keyFile)
	if err != nil {
		return nil, nil, err
	}
	return pair.TLS(), append(warnings, pair.Inspect(names, time.Now())...), nil
}

// ReadFiles is [LoadFiles] without looking at what clients will dislike.
func ReadFiles(certFile, keyFile string) (*Pair, []string, error) {
	certPEM, err := readFile("certificate", certFile)
	if err != nil {
		return nil, nil, err
	}
	keyPEM, err := readFile("key", keyFile)
	if err != nil {
		return nil, nil, err
	}
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate %s: %w", certFile, err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s: %w", keyFile, err)
	}
	pair, warnings, err := NewPair(certs, nil, key, nil, time.Now())
	if err != nil {
		return nil, nil, fmt.Errorf("key %s does not belong to certificate %s (%s)", keyFile, certFile, displayName(certs[0]))
	}
	return pair, warnings, nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d in the file is broken: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("no PEM block CERTIFICATE in it%s", notPEM(data))
	}
	return certs, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	for rest := data; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if !strings.HasSuffix(block.Type, "PRIVATE KEY") {
			continue
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return nil, errors.New("the key is encrypted; write it without a password (openssl pkey -in … -out …) and keep the file private")
		}
		var key any
		var err error
		switch block.Type {
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		}
		if err != nil {
			return nil, fmt.Errorf("the key is broken: %w", err)
		}
		switch key := key.(type) {
		case *rsa.PrivateKey:
			return key, nil
		case *ecdsa.PrivateKey:
			return key, nil
		case ed25519.PrivateKey:
			return key, nil
		}
		return nil, fmt.Errorf("a key of type %T cannot sign a handshake; RSA or ECDSA is needed", key)
	}
	return nil, fmt.Errorf("no PEM block PRIVATE KEY in it%s", notPEM(data))
}
