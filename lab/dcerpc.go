package lab

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
)

// What is called over Outlook Anywhere ([C706] chapter 12, [MS-RPCE]): the beginning and the end of an address book session
// ([MS-OXNSPI]), and an interface of the lab's own that shows what a virtual connection does. Calls are answered one after the other, and
// there is no login on this level: Exchange 2013 and later ask for none either.

// Kinds of PDUs, [C706] 12.6.4, and RTS of [MS-RPCH]; flags of 12.6.3.1.
const (
	pduRequest       = 0
	pduResponse      = 2
	pduFault         = 3
	pduBind          = 11
	pduBindAck       = 12
	pduBindNak       = 13
	pduAlter         = 14
	pduAlterAck      = 15
	pduRTS           = 20
	pduFirst    byte = 1
	pduLast     byte = 2
	pduObject   byte = 0x80
)

// Interfaces, and the one transfer syntax (NDR 2.0), as they go over the wire: UUID and version.
var (
	nspiInterface = syntax("f5cc5a18-4264-101a-8c59-08002b2f8426", 56)
	echoInterface = syntax("6c616200-6563-686f-8c59-08002b2f8426", 1)
	ndrSyntax     = syntax("8a885d04-1ceb-11c9-9fe8-08002b104860", 2)
)

// syntax is a p_syntax_id_t, [C706] 12.6.3.1: the first three fields of a UUID are little-endian.
func syntax(uuid string, version uint32) string {
	b, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil || len(b) != 16 {
		panic(uuid)
	}
	for _, f := range [][]byte{b[0:4], b[4:6], b[6:8]} {
		for i, j := 0, len(f)-1; i < j; i, j = i+1, j-1 {
			f[i], f[j] = f[j], f[i]
		}
	}
	return string(binary.LittleEndian.AppendUint32(b, version))
}

const (
	// rpcFragment is the longest PDU that Windows makes.
	rpcFragment = 5840
	// nca_s_op_rng_error, [C706] appendix E: no such call.
	faultNoOperation = 0x1c010002
)

// rpcCalls answers calls of one virtual connection.
type rpcCalls struct {
	reply    func(pdu []byte) error
	contexts map[uint16]string // interface by presentation context
	request  bytes.Buffer      // fragments of the call under way
	pings    uint32            // that the client has sent
	acks     uint32            // likewise
}

var errPDU = errors.New("PDU shorter than its kind")

// rts takes note of a PDU that is not a call's.
func (c *rpcCalls) rts(p pdu) {
	switch p.rtsFlags() {
	case rtsPing:
		c.pings++
	case rtsOtherCmd:
		c.acks++ // FlowControlAckWithDestination is the only one that a client sends in the middle, [MS-RPCH] 2.2.4.51
	}
}

// serve answers one PDU.
func (c *rpcCalls) serve(p pdu) error {
	call := binary.LittleEndian.Uint32(p[12:])
	switch p.kind() {
	case pduBind:
		return c.bind(p, pduBindAck, call)
	case pduAlter:
		return c.bind(p, pduAlterAck, call)
	case pduRequest:
		return c.call(p, call)
	}
	return errors.New("unexpected kind of PDU")
}

// bind answers bind and alter_context.
func (c *rpcCalls) bind(p pdu, answer byte, call uint32) error {
	if binary.LittleEndian.Uint16(p[10:]) != 0 { // a login
		nak := newPDU(pduBindNak, pduFirst|pduLast, call)
		return c.reply(append(nak, 8, 0, 0).finish()) // authentication_type_not_recognized
	}
	if len(p) < 28 {
		return errPDU
	}
	ack := newPDU(answer, pduFirst|pduLast, call)
	ack = binary.LittleEndian.AppendUint16(ack, rpcFragment)
	ack = binary.LittleEndian.AppendUint16(ack, rpcFragment)
	ack = append(ack, u32(1)...)                      // association group
	ack = append(ack, 5, 0, '6', '0', '0', '1', 0, 0) // secondary address, padded
	ack = append(ack, p[24], 0, 0, 0)                 // as many results as contexts
	elements := p[28:]
	for range p[24] {
		if len(elements) < 24 {
			return errPDU
		}
		context, transfers := binary.LittleEndian.Uint16(elements), int(elements[2])
		name := string(elements[4:24])
		elements = elements[24:]
		if len(elements) < 20*transfers {
			return errPDU
		}
		result, reason, chosen := uint16(2), uint16(1), string(make([]byte, 20)) // abstract_syntax_not_supported
		if name == nspiInterface || name == echoInterface {
			reason = 2 // proposed_transfer_syntaxes_not_supported
			for i := range transfers {
				if string(elements[20*i:][:20]) == ndrSyntax {
					result, reason, chosen = 0, 0, ndrSyntax
				}
			}
		}
		elements = elements[20*transfers:]
		if result == 0 {
			if c.contexts == nil {
				c.contexts = map[uint16]string{}
			}
			c.contexts[context] = name
		}
		ack = binary.LittleEndian.AppendUint16(ack, result)
		ack = binary.LittleEndian.AppendUint16(ack, reason)
		ack = append(ack, chosen...)
	}
	return c.reply(ack.finish())
}

// call collects the fragments of a request and answers it.
func (c *rpcCalls) call(p pdu, call uint32) error {
	start := 24
	if p[3]&pduObject != 0 {
		start += 16
	}
	if len(p) < start {
		return errPDU
	}
	if p[3]&pduFirst != 0 {
		c.request.Reset()
	}
	if c.request.Write(p[start:]); c.request.Len() > rpcMaxRequestBody {
		return errors.New("call too long")
	}
	if p[3]&pduLast == 0 {
		return nil
	}
	context, operation := binary.LittleEndian.Uint16(p[20:]), binary.LittleEndian.Uint16(p[22:])
	stub, err := c.result(c.contexts[context], operation, c.request.Bytes())
	if err != nil {
		return err
	}
	if stub == nil {
		fault := newPDU(pduFault, pduFirst|pduLast, call)
		fault = append(fault, u32(0)...)
		fault = binary.LittleEndian.AppendUint16(fault, context)
		fault = append(fault, 0, 0)
		fault = append(fault, u32(faultNoOperation)...)
		return c.reply(append(fault, u32(0)...).finish())
	}
	for flags := pduFirst; ; flags = 0 {
		part := stub[:min(len(stub), rpcFragment-24)]
		if stub = stub[len(part):]; len(stub) == 0 {
			flags |= pduLast
		}
		response := newPDU(pduResponse, flags, call)
		response = append(response, u32(uint32(len(part)+len(stub)))...)
		response = binary.LittleEndian.AppendUint16(response, context)
		response = append(response, 0, 0)
		if err := c.reply(append(response, part...).finish()); err != nil || flags&pduLast != 0 {
			return err
		}
	}
}

// result carries a call out. A nil stub means that there is no such operation.
func (c *rpcCalls) result(name string, operation uint16, request []byte) (stub []byte, err error) {
	type of struct {
		name      string
		operation uint16
	}
	switch (of{name, operation}) {
	case of{nspiInterface, 0}: // NspiBind, [MS-OXNSPI] 3.1.4.1.1: server GUID, context handle, Success
		stub = append(u32(0x20000), "lab address book"...)
		stub = append(append(stub, u32(0)...), "lab session....."...)
		return append(stub, u32(0)...), nil
	case of{nspiInterface, 1}: // NspiUnbind, 3.1.4.1.2: no handle any more, UnbindSuccess
		return append(make([]byte, 20), u32(1)...), nil
	case of{echoInterface, 0}: // what came goes back
		return append([]byte{}, request...), nil
	case of{echoInterface, 1}: // pings, and tells how many pings and acknowledgements have come
		return append(u32(c.pings), u32(c.acks)...), c.reply(rtsPDU(rtsPing))
	}
	return nil, nil
}
