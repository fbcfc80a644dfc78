"""Reads an inbox with exchangelib over NTLM, in several threads, and prints a line of JSON with what it saw.

usage: exchangelib-inbox.py ADDRESS LOGIN PASSWORD MAILBOX

ADDRESS is host:port that every name leads to. REQUESTS_CA_BUNDLE names the CA.
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import exchangelib
from exchangelib.folders import FolderCollection
from exchangelib.version import EXCHANGE_2016, Version

address, login, password, mailbox = sys.argv[1:5]
host, port = address.rsplit(":", 1)
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda name, _, *rest, **named: resolve(host, int(port), *rest, **named)

account = exchangelib.Account(
    mailbox,
    config=exchangelib.Configuration(
        service_endpoint="https://mail.contoso.com/EWS/Exchange.asmx",
        credentials=exchangelib.Credentials(login, password),
        auth_type=exchangelib.NTLM,
        version=Version(EXCHANGE_2016),
        max_connections=3,
    ),
    access_type=exchangelib.DELEGATE,
    default_timezone=exchangelib.EWSTimeZone("UTC"),
)
inbox = account.inbox


def subjects(_):
    return [item.subject for item in inbox.all().only("subject")]


with ThreadPoolExecutor(3) as threads:
    seen = [subject for one in threads.map(subjects, range(12)) for subject in one]
print(json.dumps({"folder": inbox.name, "count": inbox.total_count, "subjects": sorted(set(seen)), "messages": len(seen)}))
