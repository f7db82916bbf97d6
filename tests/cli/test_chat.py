"""`headwise chat`, by lines from a pipe and in a pseudo-terminal."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headwise.assets import novel
from headwise.cli.main import app
from tests.cli.test_errors import refused

if sys.platform != "win32":
    import pty


def chat(*arguments: object, lines: str = "") -> Result:
    return CliRunner().invoke(app, ["chat", *map(str, arguments)], input=lines)


def test_a_conversation_by_lines(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.session"
    lines = [
        "Who came?",
        "/recipe snapkv(0.5) | int8",
        "/recipe",
        "Why?",
        "/report",
        f"/save {file}",
        "/reset",
        "/help",
    ]
    first = chat(tiny, "--max-new-tokens", 5, lines="\n".join(lines))
    assert first.exit_code == 0, first.output
    told = first.stderr
    assert "tokens were read again, under snapkv(0.5) | int8" in told and "[snapkv(0.5) | int8;" in told
    assert "[saved: " in told and "/quit" in told and "all is forgotten" in told
    assert "tokens kept (attention lost) by KV head" in first.stdout and "read in" not in first.stdout
    again = chat(tiny, lines=f"/load {file}\nAnd then?\n/quit\nnever said\n")
    assert "2 turns, under snapkv(0.5) | int8" in again.stderr
    assert again.stderr.count("written at") == 1


def test_orders_that_cannot_be_followed_are_a_line_and_the_conversation_goes_on(tiny: Path, tmp_path: Path) -> None:
    lines = ["/recip", "/recipe snapkw(0.2)", "/plan", "/plan no.plan", "/load no.session", "/save a", "Who?", "/quit"]
    found = chat(tiny, "--max-new-tokens", 3, lines="\n".join(lines))
    assert found.exit_code == 0
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    words = [
        "did you mean '/recipe'",
        "did you mean 'snapkv'",
        "/plan needs a file",
        "no.plan",
        "no.session",
        "nothing",
    ]
    assert len(errors) == len(words) and all(word in line for word, line in zip(words, errors, strict=True)), errors
    assert "written at" in found.stderr


def test_a_document_is_read_first(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(novel()[:1500])
    found = chat(tiny, "--prompt-file", text, "--max-new-tokens", 3, "--recipe", "snapkv(0.3)", lines="Who came?\n")
    told = re.search(r"(\d+) tokens were read; ask", found.stderr)
    read = re.search(r"\[(\d+) tokens read in", found.stderr)
    assert told and read and int(told[1]) > 300 > 30 > int(read[1])


def test_what_is_refused_before_anything_is_read(tiny: Path, tmp_path: Path) -> None:
    refused(chat(tiny, "--recipe", "snapkw(0.2)"), "did you mean 'snapkv'")
    refused(chat(tiny, "--recipe", "int8", "--plan", tmp_path / "a.plan"), "give one of them")
    refused(chat(tiny, "--max-new-tokens", 0), "--max-new-tokens 0")
    refused(chat(tiny, "--prompt-file", "/no/such.txt"), "/no/such.txt", "check the path")
    refused(chat(tiny, "--chunk", 8), "--chunk 8", "0 for one pass")
    refused(chat(tiny, "--template", "chat"), "no chat template")
    (tmp_path / "empty.txt").write_text(" \n")
    refused(chat(tiny, "--prompt-file", tmp_path / "empty.txt"), "is empty")


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        self.far, near = pty.openpty()
        command = [sys.executable, "-m", "headwise.cli.main", "chat", *map(str, arguments)]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            command, stdin=near, stdout=near, stderr=near, env=environment, start_new_session=True
        )
        os.close(near)
        self.text = ""

    def until(self, words: str, seconds: float = 120) -> str:
        """All that is shown until it ends in these words."""
        end, start = time.monotonic() + seconds, len(self.text)
        while words not in self.text[start:]:
            assert time.monotonic() < end, self.text
            if select.select([self.far], [], [], 1)[0]:
                self.text += os.read(self.far, 4096).decode(errors="replace")
        return self.text[start:]

    def type(self, line: str) -> None:
        os.write(self.far, line.encode())

    def interrupt_until(self, words: str) -> None:
        """Press Ctrl-C until these words are shown.

        Between its prompt and waiting for keys, Python's readline notes a signal and acts on it at the next one.
        """
        start = len(self.text)
        for _ in range(60):
            os.kill(self.process.pid, signal.SIGINT)
            while words not in self.text[start:] and select.select([self.far], [], [], 2)[0]:
                self.text += os.read(self.far, 4096).decode(errors="replace")
            if words in self.text[start:]:
                return
        raise AssertionError(self.text)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_in_a_terminal_ctrl_c_stops_an_answer_and_leaves_the_conversation(tiny: Path) -> None:
    terminal = Terminal(tiny, "--max-new-tokens", "1500")
    try:
        terminal.until("\n> ")
        terminal.type("Tell me a story.\n")
        terminal.until("\n")
        time.sleep(0.5)
        os.kill(terminal.process.pid, signal.SIGINT)
        assert "stopped; the conversation goes on" in terminal.until("> ")
        terminal.type("/report\n")
        seen = re.search(r"(\d+) tokens seen", terminal.until("\n> "))
        assert seen and int(seen[1]) > 10
        terminal.interrupt_until("leaves")
        terminal.type("/quit\n")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.far)
