"""Makes calls over RPC over HTTP version 2 with impacket, and prints a line of JSON for what it saw.

usage: outlook-anywhere.py ADDRESS SERVER:PORT DOMAIN USER PASSWORD AUTH

ADDRESS is host:port that every name leads to, SERVER:PORT what is asked of the RPC proxy, AUTH Basic or NTLM.
"""

import json
import logging
import socket
import struct
import sys
import uuid

from impacket.dcerpc.v5 import nspi
from impacket.dcerpc.v5.rpcrt import DCERPCException
from impacket.dcerpc.v5.transport import HTTPTransport
from impacket.uuid import uuidtup_to_bin

address, endpoint, domain, user, password, auth = sys.argv[1:7]
host, port = address.rsplit(":", 1)
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda name, _, *rest, **named: resolve(host, int(port), *rest, **named)
socket.setdefaulttimeout(60)
logging.disable()  # impacket wonders about a ping, which is asked for here

server, server_port = endpoint.rsplit(":", 1)
transport = HTTPTransport(server, int(server_port))
transport.set_rpc_proxy_url("https://mail.contoso.com/rpc/rpcproxy.dll")
transport.set_credentials(user, password, domain)
transport.set_auth_type(auth)
dce = transport.get_dce_rpc()
try:
    dce.connect()
except DCERPCException as error:
    print(json.dumps({"refused": str(error), "code": error.get_error_code()}))
    sys.exit()

# The address book, as Outlook opens it.
dce.bind(nspi.MSRPC_UUID_NSPI)
bound = nspi.hNspiBind(dce)
handle = bound["contextHandle"]
nspi.hNspiUnbind(dce, handle)
print(json.dumps({"session": bound["contextHandle"]["context_handle_uuid"].decode(), "result": bound["ErrorCode"]}))

# Many calls and their answers, which need both channels at once, and more bytes than the windows of both.
dce = dce.alter_ctx(uuidtup_to_bin(("6c616200-6563-686f-8c59-08002b2f8426", "1.0")))
dce.set_max_fragment_size(4000)
echoed = 0
for size in [1, 104, 4000, 20000, 1] * 20:
    data = uuid.uuid4().bytes * (size // 16 + 1)
    dce.call(0, data)
    if dce.recv() != data:
        sys.exit("an answer is not what was sent")
    echoed += len(data)
for _ in range(2):  # the server pings, and impacket's answer to that comes before the second call
    dce.call(1, b"")
    pings, acks = struct.unpack("<LL", dce.recv())
try:
    dce.call(99, b"")
    dce.recv()
    fault = None
except DCERPCException as error:
    fault = str(error)
print(json.dumps({"echoed": echoed, "pings": pings, "acks": acks, "fault": fault}))
dce.disconnect()
