package proxy

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// startUplink starts the goroutine that copies the rest of the request body and
// then watches the client.
func (x *exchange) startUplink() {
	x.started = true
	x.s.clearWriteDeadline()
	x.up.conn.SetWriteDeadline(time.Time{}) // as there; IIS renews its keys too
	x.stop, x.bodyDone, x.ended = make(chan struct{}), make(chan struct{}), make(chan struct{})
	if x.body.done {
		close(x.bodyDone)
	}
	go x.uplink()
}

// stopUplink ends the uplink and waits for it. The client's connection can be
// read again afterwards.
func (x *exchange) stopUplink() {
	if !x.started {
		return
	}
	x.mu.Lock()
	if !x.stopping {
		x.stopping = true
		close(x.stop)
		x.s.conn.SetReadDeadline(past)
	}
	x.mu.Unlock()
	<-x.ended
	x.s.conn.SetReadDeadline(time.Time{})
}

// arm sets the client's read deadline, unless the uplink is being stopped.
func (x *exchange) arm(t time.Time) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.stopping {
		return false
	}
	x.s.conn.SetReadDeadline(t)
	return true
}

var errStopped = errors.New("stopped")

// fillClient reads once from the client; the client may be silent for the
// directory's limit, counted from the last byte in either direction.
func (x *exchange) fillClient() error {
	for {
		wait := x.vdir.RequestIdle - x.idleFor()
		if wait <= 0 {
			return errClientStalled
		}
		if !x.arm(time.Now().Add(wait)) {
			return errStopped
		}
		err := x.s.in.fill()
		if isTimeout(err) {
			continue
		}
		if err == nil {
			x.touch()
		}
		return err
	}
}

// uplink carries the request body to the backend, then watches the client.
func (x *exchange) uplink() {
	defer close(x.ended)
	defer recovered(x.s.log, x.s.abort)
	if !x.bodySent() {
		err := x.sendBody()
		if err == nil {
			x.up.conn.SetWriteDeadline(time.Time{})
			close(x.bodyDone)
		} else {
			x.bodyErr = err
			x.bodyFailed(err)
			return
		}
	}
	for x.s.in.buffered() < bufferSize {
		if !x.arm(time.Time{}) {
			return
		}
		err := x.s.in.fill() // a pipelined request stays in the buffer
		if err != nil && !isTimeout(err) {
			x.clientSentFIN(err)
			return
		}
	}
}

// bodyFailed handles a request body that did not get through.
func (x *exchange) bodyFailed(err error) {
	var he *headError
	switch {
	case errors.Is(err, errStopped), errors.Is(err, errBackendWrite):
		// Being stopped, or the backend has closed: its response, if it sent one, is
		// the session's to read.
	case errors.Is(err, errClientStalled), errors.As(err, &he):
		x.up.close()
	default:
		x.clientSentFIN(err)
	}
}

// sendBody copies the request body until its end.
func (x *exchange) sendBody() error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	chunked := x.body.kind == chunkedBody
	for !x.body.done {
		out := buf[:0]
		piece, err := x.body.next(bufferSize-64, x.fillClient)
		if err != nil && err != io.EOF {
			return err
		}
		for piece != nil {
			x.moved.Add(int64(len(piece)))
			out = appendPiece(out, piece, chunked)
			room := bufferSize - 64 - len(out)
			if room < 1024 {
				break
			}
			if piece, err = x.body.buffered(room); err != nil {
				return err
			}
		}
		if x.body.done && chunked {
			out = append(out, lastChunk...)
		}
		if len(out) == 0 {
			continue
		}
		x.up.conn.SetWriteDeadline(time.Now().Add(x.vdir.RequestIdle))
		if _, err := x.up.conn.Write(out); err != nil {
			return fmt.Errorf("%w: %w", errBackendWrite, err)
		}
		x.touch()
	}
	return nil
}

// clientSentFIN handles the end of the client's sending side. An orderly TLS
// close_notify without FIN is a client that waits for its answer (RFC 8446
// section 6.1). A FIN may be that or a client that is gone: it is given the time
// in which an answer to a client that waits would come.
func (x *exchange) clientSentFIN(err error) {
	s := x.s
	if err == io.EOF && s.conn != s.raw {
		var one [1]byte
		for {
			if !x.arm(time.Time{}) {
				return
			}
			if n, err := s.raw.Read(one[:]); n == 0 && err != nil && !isTimeout(err) {
				break
			}
		}
	} else if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		x.clientLeft() // reset, or bytes that are no TLS
		return
	}
	x.touch()
	for {
		wait := halfCloseGrace - x.idleFor()
		if wait <= 0 {
			x.clientLeft()
			return
		}
		t := time.NewTimer(wait)
		select {
		case <-x.stop:
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// clientLeft closes the backend connection, which ends the session's read on it.
func (x *exchange) clientLeft() {
	x.gone.Store(true)
	x.up.close()
}
