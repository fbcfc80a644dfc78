package proxy

import (
	"bytes"
	"net"
	"net/http"
	"sync"
)

// Sizes. One header line of 88 KiB and a head of 128 KiB carry the largest
// Kerberos tokens; what is larger is answered with 431.
const (
	bufferSize   = 16 << 10 // one TLS record
	maxHeadBytes = 128 << 10
	maxLineBytes = 88 << 10
	maxFields    = 1000 // header lines of a head
	maxNominated = 64   // Connection options beside the known ones; every field is compared with each
)

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// reader buffers what was read from a connection and not yet used. Its buffer is
// borrowed while it holds bytes and given back while the connection is idle.
type reader struct {
	conn net.Conn
	buf  []byte
	r, w int
	pool *[bufferSize]byte // what buf was borrowed as; nil once it has grown
}

func (b *reader) buffered() int { return b.w - b.r }

// take returns and consumes up to n buffered bytes. They are valid until the
// next fill.
func (b *reader) take(n int) []byte {
	n = min(n, b.w-b.r)
	p := b.buf[b.r : b.r+n]
	b.r += n
	return p
}

// fill reads once from the connection. It returns nil when bytes arrived.
func (b *reader) fill() error {
	switch {
	case b.buf == nil:
		b.pool = buffers.Get().(*[bufferSize]byte)
		b.buf = b.pool[:]
		b.r, b.w = 0, 0
	case b.r == b.w:
		b.r, b.w = 0, 0
	case b.w == len(b.buf) && b.r > 0:
		b.w = copy(b.buf, b.buf[b.r:b.w])
		b.r = 0
	case b.w == len(b.buf):
		bigger := make([]byte, 2*len(b.buf))
		copy(bigger, b.buf[:b.w])
		b.giveBack()
		b.buf = bigger
	}
	for {
		n, err := b.conn.Read(b.buf[b.w:])
		b.w += n
		if n > 0 {
			return nil // an error with it shows again on the next read
		}
		if err != nil {
			return err
		}
	}
}

// release gives the buffer back if nothing is in it.
func (b *reader) release() {
	if b.r == b.w {
		b.giveBack()
		b.buf, b.r, b.w = nil, 0, 0
	}
}

func (b *reader) giveBack() {
	if b.pool != nil {
		buffers.Put(b.pool)
		b.pool = nil
	}
}

var (
	errHeadTooLarge = &headError{http.StatusRequestHeaderFieldsTooLarge, "head or header line too large, or too many lines"}
	errBareLF       = &headError{http.StatusBadRequest, "line feed without carriage return"}
)

// headScanner finds the end of an HTTP/1 head in a reader's buffer without
// looking at a byte twice.
type headScanner struct {
	scanned, lineStart int // relative to reader.r
}

// next returns the whole head, including its empty line, once it is buffered;
// nil if more bytes are needed.
func (s *headScanner) next(b *reader) ([]byte, error) {
	data := b.buf[b.r:b.w]
	for {
		i := bytes.IndexByte(data[s.scanned:], '\n')
		if i < 0 {
			s.scanned = len(data)
			if len(data)-s.lineStart > maxLineBytes || len(data) > maxHeadBytes {
				return nil, errHeadTooLarge
			}
			return nil, nil
		}
		i += s.scanned
		if i == 0 || data[i-1] != '\r' {
			return nil, errBareLF
		}
		if i+1-s.lineStart > maxLineBytes+2 || i+1 > maxHeadBytes {
			return nil, errHeadTooLarge
		}
		s.scanned = i + 1
		if i-1 == s.lineStart {
			b.r += i + 1
			return data[:i+1], nil
		}
		s.lineStart = i + 1
	}
}
