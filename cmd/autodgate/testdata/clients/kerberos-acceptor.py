"""Accepts Kerberos logins with MIT Kerberos, for the lab's servers.

Reads lines of JSON, {"token": base64, "bindings": base64 or ""}, and answers each with one: {"principal", "reply", "bound"} or
{"error"}. The keys are those of KRB5_KTNAME. Ends when its input does.
"""

import base64
import json
import sys

import gssapi
from gssapi.raw import ChannelBindings

for line in sys.stdin:
    asked = json.loads(line)
    try:
        bindings = base64.b64decode(asked["bindings"])
        context = gssapi.SecurityContext(
            usage="accept",
            channel_bindings=ChannelBindings(application_data=bindings) if bindings else None,
        )
        reply = context.step(base64.b64decode(asked["token"]))
        if not context.complete:
            raise RuntimeError("not complete after one token")
        answer = {
            "principal": str(context.initiator_name),
            "reply": base64.b64encode(reply or b"").decode(),
            "bound": gssapi.RequirementFlag.channel_bound in context.actual_flags,
        }
    except Exception as error:  # whatever it is, the login fails
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
