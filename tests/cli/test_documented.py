"""Every `headwise` command line that the README, the docs and the examples show is one that the commands take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from headwise.cli.main import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.py"))]
GROUP: Any = typer.main.get_command(app)
LINE = re.compile(r"^(?:    |\t)(?:\$ |\$\(VENV\)/bin/)?headwise (.*?)(\s#.*)?$")
INLINE = re.compile(r"`headwise ([^`]* --[^`]*)`")


def shown(path: Path) -> Iterator[str]:
    """The words after `headwise`, of lines that are commands and of code inside lines that has options."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if match := LINE.match(line):
            yield match[1].split(" > ")[0].replace("$(RUN)", "")
        yield from (one.replace("\\|", "|").split(" && ")[0] for one in INLINE.findall(line))


SHOWN = [(path.name, words) for path in PAGES for words in shown(path)]


def test_there_are_some() -> None:
    assert len(SHOWN) > 20


@pytest.mark.parametrize(("page", "words"), SHOWN)
def test_a_documented_command_is_one(page: str, words: str) -> None:
    name, *rest = shlex.split(words)
    if name == "lm-eval":
        return  # handed over to lm_eval
    GROUP.commands[name].make_context(name, rest)
