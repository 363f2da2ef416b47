"""The loop of a process that runs peers in an environment of their own: the standard library alone.

It reads requests and writes answers, a line of JSON each: ``{"call": name of a method, "arguments": {...}}`` and
``{"result": ...}`` or ``{"error": ...}``; answers go to the file descriptor that its argument names, as libraries
print. ``peers.Worker`` is the other end.
"""

import json
import os
import sys
import traceback


def serve(peers: object) -> None:
    """Answer calls of its methods until there are no more."""
    answers = os.fdopen(int(sys.argv[1]), "w")
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(peers, request["call"])(**request["arguments"])}
        except Exception:  # the other process ends with it
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
