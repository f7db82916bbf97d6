"""The log of a server: a JSON object a line, on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time


class Lines(logging.Formatter):
    """Writes a record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        facts = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        facts |= getattr(record, "told", {})
        if record.exc_info:
            facts["trace"] = self.formatException(record.exc_info)
        return json.dumps(facts)


def start_log() -> None:
    """Send what the server and uvicorn tell to stderr, in lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name in ("headwise.serve", "uvicorn", "uvicorn.error"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler] if name != "uvicorn.error" else [], name == "uvicorn.error"
        log.setLevel(logging.INFO)
