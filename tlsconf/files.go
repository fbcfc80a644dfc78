package tlsconf

import (
	"bytes"
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

// FilesOptions are the settings of [NewFiles].
type FilesOptions struct {
	Names []string       // host names that will show the certificate; those it does not cover are warned about
	Poll  time.Duration  // how often the files are looked at; 0 is every 2 s, negative is never
	Log   zerolog.Logger // told of warnings, of every swap, and once of each cause that prevents one
	// Wait makes a pair that does not load at the start no error: the log says why, and it is shown as soon as it does.
	Wait bool
}

// Files is a certificate chain and its key in PEM files. When a file changes, the new pair is shown from the next handshake
// on. While the files do not make a good pair, which is normal between the writing of one and of the other, the last good
// one is kept.
type Files struct {
	certFile, keyFile string
	names             []string
	log               zerolog.Logger

	current atomic.Pointer[tls.Certificate]
	worker  worker
}

var _ Source = (*Files)(nil)

// NewFiles loads the pair and starts watching. The files may be one and the same. The error is one line that names the
// file and what is wrong with it.
func NewFiles(certFile, keyFile string, o FilesOptions) (*Files, error) {
	f := &Files{certFile: certFile, keyFile: keyFile, names: o.Names, log: o.Log.With().Str("cert", certFile).Logger()}
	seen := f.state()
	watch := &fileWatch{f: f, seen: seen}
	cert, warnings, err := LoadFiles(certFile, keyFile, o.Names)
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
		return nil, fmt.Errorf("certificate %s could not be loaded yet", f.certFile)
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

func (f *Files) state() [2]fileState { return [2]fileState{stateOf(f.certFile), stateOf(f.keyFile)} }

// fileWatch is what the watching goroutine remembers from look to look.
type fileWatch struct {
	f      *Files
	seen   [2]fileState
	failed string // the last cause that was logged; "" after a success
}

func (w *fileWatch) look() {
	// The state is taken before the files are read: what changes meanwhile is seen at the next look.
	now := w.f.state()
	if w.failed == "" && now[0].same(w.seen[0]) && now[1].same(w.seen[1]) {
		return
	}
	w.seen = now
	cert, warnings, err := LoadFiles(w.f.certFile, w.f.keyFile, w.f.names)
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
	chain, warnings, err := orderChain(certs, key)
	if err != nil {
		return nil, nil, fmt.Errorf("key %s does not belong to certificate %s (%s)", keyFile, certFile, displayName(certs[0]))
	}
	cert = &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, append(warnings, Inspect(chain, names, time.Now())...), nil
}

func readFile(what, path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, fmt.Errorf("%s %s is a directory, a PEM file is needed", what, path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return nil, fmt.Errorf("%s %s cannot be read: %w", what, path, err)
	}
	return b, nil
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

// notPEM is a hint at what a file is that holds no PEM.
func notPEM(data []byte) string {
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return ", the file is empty"
	case data[0] == 0x30: // an ASN.1 SEQUENCE
		return ", it looks like DER or PFX"
	}
	return ""
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

// orderChain finds the leaf by its key and follows the issuers from there.
func orderChain(certs []*x509.Certificate, key crypto.Signer) (chain []*x509.Certificate, warnings []string, err error) {
	leaf := -1
	for i, c := range certs {
		if pub, ok := c.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); ok && pub.Equal(key.Public()) {
			leaf = i
			break
		}
	}
	if leaf < 0 {
		return nil, nil, errors.New("no certificate for the key")
	}
	chain = []*x509.Certificate{certs[leaf]}
	rest := slices.Delete(slices.Clone(certs), leaf, leaf+1)
	for {
		last := chain[len(chain)-1]
		next := -1
		for i, c := range rest {
			// The signature decides; two intermediates of one name and different keys exist (cross-signing, renewal).
			if !selfIssued(last) && bytes.Equal(last.RawIssuer, c.RawSubject) && last.CheckSignatureFrom(c) == nil {
				next = i
				break
			}
		}
		if next < 0 {
			break
		}
		chain = append(chain, rest[next])
		rest = slices.Delete(rest, next, next+1)
	}
	for i, c := range chain {
		if c != certs[i] {
			warnings = append(warnings, "the chain was not in order (certificate first, then its issuers); put in order")
			break
		}
	}
	for _, c := range rest {
		warnings = append(warnings, fmt.Sprintf("certificate %q in the file is no issuer of the first one; left out", displayName(c)))
	}
	return chain, warnings, nil
}
