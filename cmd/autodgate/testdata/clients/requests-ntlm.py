"""GETs URLs with requests-ntlm and prints a line of JSON for each answer.

usage: requests-ntlm.py ADDRESS CA LOGIN PASSWORD CBT URL...

ADDRESS is host:port that every name leads to, CBT whether channel bindings are sent (yes or no). All requests share one session.
"""

import json
import socket
import sys

import requests
from requests_ntlm import HttpNtlmAuth

address, ca, login, password, cbt = sys.argv[1:6]
host, port = address.rsplit(":", 1)
resolve = socket.getaddrinfo
socket.getaddrinfo = lambda name, _, *rest, **named: resolve(host, int(port), *rest, **named)

session = requests.Session()
session.trust_env = False
session.verify = ca
session.auth = HttpNtlmAuth(login, password, send_cbt=cbt == "yes")
for url in sys.argv[6:]:
    answer = session.get(url, timeout=20)
    print(json.dumps({
        "status": answer.status_code,
        "user": answer.headers.get("X-Lab-User", ""),
        "server": answer.headers.get("X-Lab-Server", ""),
        "connection": answer.headers.get("X-Lab-Connection", ""),
        "legs": len(answer.history),
        "body": answer.text,
    }))
