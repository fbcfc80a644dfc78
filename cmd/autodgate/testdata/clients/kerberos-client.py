"""GETs URLs with a Kerberos login by MIT Kerberos, and prints a line of JSON for each answer.

usage: kerberos-client.py ADDRESS CA CBT URL...

ADDRESS is host:port of a TLS server, CBT whether channel bindings are sent (yes or no). All requests go over one connection, the first
with a token; the server must prove itself as well. The user is the owner of the tickets in KRB5CCNAME.
"""

import base64
import hashlib
import http.client
import json
import socket
import ssl
import sys
from urllib.parse import urlsplit

import gssapi
from gssapi.raw import ChannelBindings

address, ca, cbt = sys.argv[1:4]
host, port = address.rsplit(":", 1)
name = urlsplit(sys.argv[4]).hostname

connection = http.client.HTTPSConnection(name, timeout=20)
connection.sock = ssl.create_default_context(cafile=ca).wrap_socket(socket.create_connection((host, int(port))), server_hostname=name)
connection.auto_open = False
bindings = None
if cbt == "yes":  # the lab's certificates are signed with SHA-256: RFC 5929 section 4.1
    leaf = hashlib.sha256(connection.sock.getpeercert(binary_form=True)).digest()
    bindings = ChannelBindings(application_data=b"tls-server-end-point:" + leaf)
context = gssapi.SecurityContext(
    name=gssapi.Name("HTTP@" + name, gssapi.NameType.hostbased_service),
    mech=gssapi.OID.from_int_seq("1.3.6.1.5.5.2"),
    flags=gssapi.RequirementFlag.mutual_authentication,
    channel_bindings=bindings,
    usage="initiate",
)
headers = {"Authorization": "Negotiate " + base64.b64encode(context.step()).decode()}
for url in sys.argv[4:]:
    connection.request("GET", urlsplit(url).path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    token = (answer.getheader("WWW-Authenticate") or "").removeprefix("Negotiate ")
    if headers and answer.status == 200:
        context.step(base64.b64decode(token))
        if not context.complete:
            sys.exit("the server has not proved itself")
    headers = {}
    print(json.dumps({
        "status": answer.status,
        "user": answer.getheader("X-Lab-User") or "",
        "server": answer.getheader("X-Lab-Server") or "",
        "connection": answer.getheader("X-Lab-Connection") or "",
        "body": body,
    }))
