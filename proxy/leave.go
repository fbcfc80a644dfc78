package proxy

import (
	"errors"
	"io"
	"time"
)

// halfCloseGrace is how long a client that has sent FIN is waited for while
// nothing moves. A FIN does not tell a client that only finished sending from one
// that is gone; the first is answered promptly, the second must not keep a
// session at the backend for more than a second.
const halfCloseGrace = 600 * time.Millisecond

// finishedTick is how often a client is asked for that is not read from.
const finishedTick = 200 * time.Millisecond

// clientLeaves reads from a client that is waiting for its answer, and tells
// whether it has left. A pipelined request stays in the buffer; when that is full,
// nothing more is read, and the socket is asked instead. It returns false when the
// read deadline, which the caller sets with stop, interrupts it. moved tells for how
// long nothing has moved on the client's behalf.
func (s *session) clientLeaves(stop <-chan struct{}, moved func() time.Duration) bool {
	for s.in.buffered() < bufferSize {
		if err := s.in.fill(); err != nil {
			return s.sentFIN(err, stop, moved)
		}
	}
	tick := time.NewTicker(finishedTick)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return false
		case <-tick.C:
			if finished(s.raw) {
				return s.sentFIN(io.ErrUnexpectedEOF, stop, moved)
			}
		}
	}
}

// sentFIN tells whether a client whose sending side has ended with err is gone.
// An orderly TLS close_notify without FIN is a client that waits for its answer
// (RFC 8446 section 6.1). A FIN may be that or a client that is gone: it is given
// the time in which an answer to a client that waits would come.
func (s *session) sentFIN(err error, stop <-chan struct{}, moved func() time.Duration) bool {
	switch {
	case isTimeout(err):
		return false
	case err == io.EOF && s.conn != s.raw:
		buf := make([]byte, 512)
		for err = nil; err == nil; {
			_, err = s.raw.Read(buf)
		}
		if isTimeout(err) {
			return false
		}
	case err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF):
		return true // reset, or bytes that are no TLS
	}
	fin := time.Now()
	for {
		wait := halfCloseGrace - min(moved(), time.Since(fin))
		if wait <= 0 {
			return true
		}
		t := time.NewTimer(wait)
		select {
		case <-stop:
			t.Stop()
			return false
		case <-t.C:
		}
	}
}
