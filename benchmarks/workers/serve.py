"""A worker's side of `benchmarks/peers.py`: calls come as JSON lines on standard input, answers go as they came."""

from __future__ import annotations

import json
import os
import sys
import traceback


def serve(worker: object) -> None:
    """Answer `[method, arguments]` lines until standard input ends. What the worker prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"found": getattr(worker, name)(*arguments)}
        except Exception as error:  # told to the driver, which goes on with the other contenders
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
