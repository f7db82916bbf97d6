"""The command `headwise serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Serving:
    """A server's process. url: where it listens. lines: what it said on stderr."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)


@contextmanager
def serving(place: Path, *options: str) -> Iterator[Serving]:
    """A server of the model in a folder, under the name "tiny"; where it still runs at the end it is told to stop, and
    does."""
    command = [sys.executable, "-m", "headwise", "serve", str(place), "--name", "tiny", "--port", "0"]
    with subprocess.Popen(
        [*command, "--kv-bytes", "8MiB", *options], stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        made = Serving(process)
        assert process.stderr is not None
        for line in process.stderr:
            made.lines.append(line)
            if found := re.search(r"http://[\d.]+:\d+", line):
                made.url = found[0]
            if "startup complete" in line:
                break
        rest = threading.Thread(target=lambda: made.lines.extend(process.stderr or ()), daemon=True)
        rest.start()
        try:
            assert made.url, "".join(made.lines)
            yield made
            process.terminate()
            assert process.wait(60) in (0, -signal.SIGTERM, -signal.SIGKILL), made.lines  # it may have ended before
        finally:
            process.kill()
            rest.join(10)
