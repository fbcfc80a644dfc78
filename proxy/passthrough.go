package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

const (
	passthroughBuffer = 16 << 10
	// spliceAfter is how much goes through a user-space buffer in one direction before it is handed to splice(2). Handshakes
	// and short exchanges gain nothing from splice and would pay for its pipe.
	spliceAfter = 64 << 10
	// spliceChunk is how much is spliced under one read deadline. A busy stream moves it many times within spliceIdle; a slower
	// one goes through the buffer for a while, which it will not notice.
	spliceChunk = 1 << 20
	// spliceIdle is how long a silent direction keeps its pipe (two file descriptors) before it goes back to a buffer.
	spliceIdle = 20 * time.Second
	// passthroughDrain is how long one direction may go on after the other could no longer write: an answer that a server sent
	// before it closed on an upload still reaches the client.
	passthroughDrain = 5 * time.Second
	// passthroughReplay bounds the write of the hello to a backend that accepts connections and reads nothing.
	passthroughReplay = 30 * time.Second
)

// errNoBackend: no server of a passthrough host could be reached. The cause is wrapped beside it.
var errNoBackend = errors.New("no backend reachable")

var passthroughBuffers = sync.Pool{New: func() any { return new([passthroughBuffer]byte) }}

// passthrough joins client and a backend byte for byte, beginning with what was read ahead, until both directions have
// ended, and closes both. dial connects to one of the host's servers, with time limits of its own; its context ends with
// ctx. When ctx ends, so do both connections.
//
// FIN is passed on in each direction by itself; a reset ends both. When no server is reached, the client gets the alert
// internal_error and no certificate; err then wraps errNoBackend.
//
// idle is how long nothing may move in either direction; 0 is no limit.
//
// in counts bytes from client to backend, out the other way, as handed to the other socket. err is nil when both sides
// closed in order, else the first failure; resets by a peer are among them, so it is for the log only.
func passthrough(ctx context.Context, client *peekedConn, dial func(context.Context) (*upstream, error), idle time.Duration, log zerolog.Logger) (backend string, in, out int64, err error) {
	u, err := dial(ctx)
	if err != nil {
		if alertErr := refuseTLS(client, alertInternalError); alertErr != nil {
			log.Debug().Err(alertErr).Msg("passthrough: the client is gone as well")
		}
		return "", 0, 0, fmt.Errorf("%w: %w", errNoBackend, err)
	}
	defer u.close()
	u.busy.Store(true) // for as long as it lives
	up, backend := u.conn, u.backend.Name

	ahead, down := client.detach()
	p := &passthroughPair{client: down, backend: up}
	defer p.close()
	if idle > 0 {
		defer p.limitIdle(idle)()
	}
	stop := context.AfterFunc(ctx, p.close)
	defer stop()
	_ = down.SetDeadline(time.Time{}) // the hello had one

	_ = up.SetWriteDeadline(time.Now().Add(passthroughReplay))
	n, err := up.Write(ahead)
	_ = up.SetWriteDeadline(time.Time{})
	in = int64(n)
	if err != nil {
		return backend, in, 0, p.cause(ctx, fmt.Errorf("replay hello to backend: %w", err))
	}

	more, out, err := p.join(ctx, log)
	return backend, in + more, out, err
}

// join copies both ways until both directions have ended. The caller closes the pair, also when ctx ends.
func (p *passthroughPair) join(ctx context.Context, log zerolog.Logger) (in, out int64, err error) {
	clientDone := make(chan struct{})
	go func() {
		defer close(clientDone)
		defer recovered(log, p.close)
		out = p.copyToClient()
	}()
	in = p.copyToBackend()
	<-clientDone
	p.drain.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	return in, out, p.cause(ctx, p.err)
}

// passthroughPair is the two connections of one passthrough.
type passthroughPair struct {
	client, backend net.Conn

	drain passthroughTimer

	mu  sync.Mutex
	err error // the first failure of either direction
}

func (p *passthroughPair) copyToBackend() int64 {
	n, err := copyDirection(p.backend, p.client, spliceIdle)
	p.ended(p.backend, err, "client to backend")
	return n
}

func (p *passthroughPair) copyToClient() int64 {
	n, err := copyDirection(p.client, p.backend, spliceIdle)
	p.ended(p.client, err, "backend to client")
	return n
}

// ended passes the end of one direction on.
func (p *passthroughPair) ended(dst net.Conn, err error, direction string) {
	if err == nil {
		if closeWrite(dst) != nil {
			// Not a connection that can half-close, or one that is gone: no use waiting for its other half for long.
			p.drain.start(passthroughDrain, p.close)
		}
		return
	}
	p.fail(fmt.Errorf("%s: %w", direction, err))
	if isWriteError(err) {
		// The receiver of this direction takes no more, but what it has sent may still be on its way through us. Its socket
		// reports the end by itself; the timer is for the one that does not.
		p.drain.start(passthroughDrain, p.close)
		return
	}
	p.close()
}

// fail notes the first failure.
func (p *passthroughPair) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *passthroughPair) close() {
	_ = p.client.Close()
	_ = p.backend.Close()
}

// cause is err, or the reason why ctx ended if that is what closed the connections.
func (p *passthroughPair) cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// passthroughTimer runs a function once, unless it is stopped before.
type passthroughTimer struct {
	mu      sync.Mutex
	t       *time.Timer
	stopped bool
}

func (t *passthroughTimer) start(d time.Duration, f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.t == nil && !t.stopped {
		t.t = time.AfterFunc(d, f)
	}
}

func (t *passthroughTimer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	if t.t != nil {
		t.t.Stop()
	}
}

// writeError marks a failure of the receiving side.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// isWriteError tells a failed receiver from a failed sender. splice reports one error for both; EPIPE is always a write,
// and a reset is taken for the sender's.
func isWriteError(err error) bool {
	var w writeError
	return errors.As(err, &w) || errors.Is(err, syscall.EPIPE)
}

// copyDirection copies from src to dst until src ends and returns the number of bytes written. It starts with a buffer and
// goes over to splice where the platform and the connections allow it, and back when the stream falls silent.
func copyDirection(dst, src net.Conn, idle time.Duration) (int64, error) {
	_, srcTCP := src.(*net.TCPConn)
	_, dstTCP := dst.(*net.TCPConn)
	if !srcTCP || !dstTCP {
		n, _, err := copyBuffered(dst, src, -1)
		return n, err
	}
	var total int64
	for {
		n, eof, err := copyBuffered(dst, src, spliceAfter)
		total += n
		if eof || err != nil {
			return total, err
		}
		for {
			// A deadline cannot lose bytes here: the pipe is emptied into dst before src is waited for again.
			if err := src.SetReadDeadline(time.Now().Add(idle)); err != nil {
				return total, err
			}
			n, err = io.CopyN(dst, src, spliceChunk)
			total += n
			if err != nil {
				break
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return total, err
		}
		if err := src.SetReadDeadline(time.Time{}); err != nil {
			return total, err
		}
	}
}

// copyBuffered copies at most limit bytes (a negative limit is none) through a buffer; eof says that src ended.
func copyBuffered(dst io.Writer, src io.Reader, limit int64) (total int64, eof bool, err error) {
	buf := passthroughBuffers.Get().(*[passthroughBuffer]byte)
	defer passthroughBuffers.Put(buf)
	for limit < 0 || total < limit {
		n, readErr := src.Read(buf[:])
		if n > 0 {
			m, err := dst.Write(buf[:n])
			total += int64(m)
			if err != nil {
				return total, false, writeError{err}
			}
		}
		if errors.Is(readErr, io.EOF) {
			return total, true, nil
		}
		if readErr != nil {
			return total, false, readErr
		}
	}
	return total, false, nil
}
