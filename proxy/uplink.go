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
		if !x.bodyBy.IsZero() {
			wait = min(wait, time.Until(x.bodyBy))
		}
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
	if x.arm(time.Time{}) && x.s.clientLeaves(x.stop, x.idleFor) {
		x.clientLeft()
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
		if x.arm(time.Time{}) && x.s.sentFIN(err, x.stop, x.idleFor) {
			x.clientLeft()
		}
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
			if err := x.took(piece); err != nil {
				return err
			}
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

// clientLeft closes the backend connection, which ends the session's read on it.
func (x *exchange) clientLeft() {
	x.gone.Store(true)
	x.up.close()
}
