package proxy

import (
	"io"
	"net/http"
	"strconv"
)

// bodyKind is how a message's end is marked (RFC 9112 section 6.3).
type bodyKind int

const (
	noBody bodyKind = iota
	lengthBody
	chunkedBody
	untilClose
)

// body reads a message body piece by piece out of a reader, as it arrives:
// nothing is collected, so a stream of any length costs one buffer.
type body struct {
	kind bodyKind
	src  *reader
	// left is what remains of the body (lengthBody) or of the current chunk.
	left    int64
	state   chunkState
	trailer int // bytes of trailer lines so far
	scan    int // how much of the line at hand has been looked at
	done    bool
}

type chunkState int

const (
	chunkSize chunkState = iota // at the start of a chunk-size line
	chunkData                   // inside a chunk
	chunkEnd                    // at the CRLF behind a chunk's data
	chunkTail                   // in the trailer section
)

// Limits of chunk framing. Extensions and trailers are dropped, so they
// get just enough room not to break anyone.
const (
	maxChunkLine    = 4 << 10
	maxTrailerBytes = 16 << 10
)

// requestBody returns the body that follows a request head.
func requestBody(h *requestHead, src *reader) body {
	switch {
	case h.chunked:
		return body{kind: chunkedBody, src: src}
	case h.contentLength > 0:
		return body{kind: lengthBody, src: src, left: h.contentLength}
	}
	return body{kind: noBody, done: true}
}

// responseBody returns the body that follows a final response head to a request
// of the given method.
func responseBody(h *responseHead, method string, src *reader) body {
	switch {
	case method == "HEAD", h.status == http.StatusNoContent, h.status == http.StatusNotModified, h.status < 200:
		return body{kind: noBody, done: true}
	case h.chunked:
		return body{kind: chunkedBody, src: src}
	case h.contentLength == 0:
		return body{kind: lengthBody, done: true}
	case h.contentLength > 0:
		return body{kind: lengthBody, src: src, left: h.contentLength}
	}
	return body{kind: untilClose, src: src}
}

// next returns the next piece of payload, at most limit bytes, calling fill when
// nothing is buffered; the piece is valid until the next call. At the end of the
// body it returns io.EOF, and a body that ends too early io.ErrUnexpectedEOF.
func (b *body) next(limit int, fill func() error) ([]byte, error) {
	for !b.done {
		if piece, err := b.buffered(limit); piece != nil || err != nil {
			return piece, err
		}
		if b.done {
			break
		}
		if err := fill(); err != nil {
			if err == io.EOF {
				if b.kind == untilClose {
					b.done = true
					break
				}
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return nil, io.EOF
}

// buffered returns the next piece that needs no reading; nil, nil if there is
// none (look at done for why).
func (b *body) buffered(limit int) ([]byte, error) {
	if b.done {
		return nil, nil
	}
	if b.kind == chunkedBody {
		return b.bufferedChunk(limit)
	}
	if b.src.buffered() == 0 {
		return nil, nil
	}
	if b.kind == untilClose {
		return b.src.take(limit), nil
	}
	piece := b.src.take(int(min(b.left, int64(limit))))
	b.left -= int64(len(piece))
	b.done = b.left == 0
	return piece, nil
}

func (b *body) bufferedChunk(limit int) ([]byte, error) {
	for {
		if b.state == chunkData {
			if b.src.buffered() == 0 {
				return nil, nil
			}
			piece := b.src.take(int(min(b.left, int64(limit))))
			if b.left -= int64(len(piece)); b.left == 0 {
				b.state = chunkEnd
			}
			return piece, nil
		}
		line, err := b.line()
		if line == nil || err != nil {
			return nil, err
		}
		line = line[:len(line)-2]
		switch b.state {
		case chunkEnd:
			if len(line) > 0 {
				return nil, malformed("chunk data is not followed by CRLF")
			}
			b.state = chunkSize
		case chunkSize:
			size, err := parseChunkSize(line)
			if err != nil {
				return nil, err
			}
			b.left, b.state = size, chunkData
			if size == 0 {
				b.state = chunkTail
			}
		case chunkTail:
			if len(line) == 0 {
				b.done = true
				return nil, nil
			}
			if b.trailer += len(line) + 2; b.trailer > maxTrailerBytes {
				return nil, malformed("trailer section too large")
			}
			if _, err := parseFields(append(line[:len(line):len(line)], "\r\n\r\n"...), nil); err != nil {
				return nil, err
			}
		}
	}
}

// line takes the next CRLF-terminated line of chunk framing; nil if it has not
// arrived whole.
func (b *body) line() ([]byte, error) {
	data := b.src.buf[b.src.r:b.src.w]
	for b.scan < len(data) {
		i := b.scan
		b.scan++
		if b.state == chunkEnd && (i == 0 && data[0] != '\r' || i == 1 && data[1] != '\n') {
			return nil, malformed("chunk data is not followed by CRLF")
		}
		if data[i] == '\n' {
			if i == 0 || data[i-1] != '\r' {
				return nil, malformed("bare line feed in chunk framing")
			}
			b.scan = 0
			return b.src.take(i + 1), nil
		}
		if b.scan > maxChunkLine {
			return nil, malformed("line of chunk framing too long")
		}
	}
	return nil, nil
}

// parseChunkSize reads "size[;extensions]". The extensions are checked for
// control characters and otherwise ignored.
func parseChunkSize(line []byte) (int64, error) {
	var n int64
	i := 0
	for ; i < len(line) && isHex(line[i]); i++ {
		if i == 15 {
			return 0, malformed("chunk size too large")
		}
		n = n<<4 | int64(unhex(line[i]))
	}
	if i == 0 || i < len(line) && line[i] != ';' || !isFieldValue(line[i:]) {
		return 0, malformed("bad chunk size")
	}
	return n, nil
}

// appendPiece appends a piece of payload, as a chunk if the receiver's framing is
// chunked.
func appendPiece(dst, piece []byte, chunked bool) []byte {
	if !chunked {
		return append(dst, piece...)
	}
	dst = strconv.AppendUint(dst, uint64(len(piece)), 16)
	dst = append(dst, "\r\n"...)
	dst = append(dst, piece...)
	return append(dst, "\r\n"...)
}

// lastChunk ends a chunked body; trailers are not passed on.
const lastChunk = "0\r\n\r\n"
