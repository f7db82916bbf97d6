"""Keys, and how much each may ask."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")

from fastapi import Request
from typer.testing import CliRunner

from headwise.cli.main import app
from headwise.errors import HeadwiseError
from headwise.serve.guard import MINUTE, Guard, Key, keys_of
from headwise.serve.refusals import Refused


def request(key: str = "", method: str = "POST") -> Request:
    headers = [(b"authorization", f"Bearer {key}".encode())] if key else []
    return Request({"type": "http", "method": method, "headers": headers})


def test_requests_of_a_minute_are_counted_by_key() -> None:
    now = [0.0]
    few, other = Key(name="ann", key="a", requests_per_minute=2), Key(name="bob", key="b")
    guard = Guard([few, other], clock=lambda: now[0])

    def ask(key: str, method: str = "POST") -> str:
        with guard.entered(request(key, method)) as name:
            return name

    assert [ask("a"), ask("b"), ask("b"), ask("b")] == ["ann", "bob", "bob", "bob"]
    now[0] = 20.0
    assert ask("a") == "ann"
    with pytest.raises(Refused, match="2 requests a minute") as refused:
        ask("a")
    assert refused.value.status == 429 and refused.value.headers == {"Retry-After": "40"}
    assert ask("a", "GET") == "ann", "looking is free"
    now[0] = MINUTE
    assert ask("a") == "ann"
    with pytest.raises(Refused):
        ask("a")


def test_answers_at_once_are_counted_until_they_end() -> None:
    guard = Guard(open_to=Key(name="all", key="-", at_once=2))
    with ExitStack() as running:
        running.enter_context(guard.entered(request()))
        with guard.entered(request()), pytest.raises(Refused, match="2 requests at once"):
            running.enter_context(guard.entered(request()))
        with pytest.raises(ZeroDivisionError), guard.entered(request()):
            raise ZeroDivisionError
        running.enter_context(guard.entered(request()))
        with pytest.raises(Refused):
            running.enter_context(guard.entered(request()))


@pytest.mark.parametrize("given", ["", "c", "ä", "a b"])
def test_no_other_key_lets_in(given: str) -> None:
    guard = Guard([Key(name="ann", key="a"), Key(name="bob", key="b")])
    with pytest.raises(Refused, match="Bearer") as refused, guard.entered(request(given)):
        pass
    assert refused.value.status == 401


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[[key]]\nname = "ann"\nkey = "a"\nat_once = 3\n[[key]]\nname = "bob"\nkey = "b"\n')
    assert keys_of(file) == [Key(name="ann", key="a", at_once=3), Key(name="bob", key="b")]
    for wrong in ("[[key]]\nname = 3\n", "[[key]", "", '[[key]]\nname = "a"\nkey = "b"\nrate = 3\n'):
        file.write_text(wrong)
        with pytest.raises(HeadwiseError, match=r"keys\.toml"):
            keys_of(file)
    with pytest.raises(HeadwiseError, match="cannot be read"):
        keys_of(tmp_path / "none.toml")
    with pytest.raises(HeadwiseError, match="two keys"):
        Guard([Key(name="ann", key="a"), Key(name="bob", key="a")])
    told = CliRunner().invoke(app, ["serve", "--key-file", str(tmp_path / "none.toml")])
    assert told.exit_code == 2 and "cannot be read" in told.output
