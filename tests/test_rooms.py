"""A thing is added by one file: one is planted in every room of a copy of the package, and every list has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
METHOD = '''
"""A planted method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from headwise.methods.evict import Latest
from headwise.registry import Card, register


@register("evict", "planted")
@dataclass(frozen=True)
class Planted(Latest):
    """Keeps the latest tokens."""

    card: ClassVar[Card] = Card("Planted", "none", frees_memory=True, forgets="the middle")
'''
TASK = '''
"""A planted task."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from headwise.tasks.base import Item, Space, Task, register


@register
@dataclass(frozen=True)
class Planted(Task):
    """Asks for a word."""

    name = "planted"
    family = "recall"
    source = "own"

    def item(self, room: Space, rng: Random, number: int) -> Item:
        return Item("The word is bell.", (room.ask("Which word?", " bell"),))
'''
CODEC = '''
"""A planted codec."""

from headwise.cache.codecs import CODECS, Family
from headwise.cache.codecs.plain import Plain

CODECS.add("planted", Family(r"planted(\\d)", lambda name: Plain(), ("planted4",)))
'''
MEASURE = '''
"""A planted measure."""

from headwise.calibrate.material import Material
from headwise.calibrate.measures import Found, measure
from headwise.seams.transformers.drive import Progress


@measure("planted", cost=1)
def planted(material: Material, progress: Progress) -> Found:
    """Nothing at all."""
    return {}, {}
'''
COMMAND = '''
"""A planted command."""

import typer

from headwise.cli.commands import command


@command("planted")
def planted() -> None:
    """Say hello."""
    typer.echo("hello from the planted command")
'''
BACKEND = '''
"""A planted backend."""

from headwise.kernels.dispatch import BACKENDS, Backend, Kernel
from headwise.kernels.reference.attention import attend
from headwise.kernels.request import Request


def refuse(request: Request) -> list[str]:
    """Takes single queries."""
    return ["a prompt"] if request.q.shape[2] > 1 else []


BACKENDS.add("planted", Backend("planted", 1, lambda: (True, "planted"), {"attend": Kernel(refuse, attend)}))
'''
PLANTED = {
    "kernels": BACKEND,
    "methods/evict": METHOD,
    "tasks": TASK,
    "cache/codecs": CODEC,
    "calibrate/measures": MEASURE,
    "cli/commands": COMMAND,
}
LOOK = """
import json
import torch
from headwise.attention import attend
from headwise.tasks import all_tasks
from headwise.cache.codecs import codec, names
from headwise.calibrate.calibrate import check_measures, measures
from headwise.cli.docs import PAGES
from headwise.forms import Full, Scoring
from headwise.kernels.dispatch import noted
from headwise.recipe import Recipe
with noted() as records:
    for tokens in (1, 2):
        attend(torch.ones(1, 1, tokens, 16), torch.ones(1, 5, 16), torch.ones(1, 5, 16), Full(), Scoring(1.0))
pages = {name: page() for name, page in PAGES.items()}
print(json.dumps({
    "methods/evict": [str(Recipe.parse("planted(0.5)")), "## planted" in pages["methods.md"]],
    "tasks": ["planted" in all_tasks(), "planted" in pages["tasks.md"]],
    "cache/codecs": ["planted4" in names(), type(codec("planted7")).__name__],
    "calibrate/measures": [check_measures(["planted"]), list(measures())[0]],
    "cli/commands": "## headwise planted" in pages["cli.md"],
    "kernels": [records[0].backend, records[1].refusals["planted"]],
}))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a copy of the package, with one more file in every room, is what is imported."""
    copy = tmp_path_factory.mktemp("copy") / "headwise"
    shutil.copytree(ROOT / "src" / "headwise", copy, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    os.symlink(ROOT / "src" / "headwise" / "assets", copy / "assets")
    for room, text in PLANTED.items():
        (copy / room / "planted.py").write_text(text.lstrip())
    return {**os.environ, "PYTHONPATH": str(copy.parent)}


def output(environment: dict[str, str], *command: str) -> str:
    found = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    return found.stdout


def test_lists_and_docs_know_what_one_file_adds(planted: dict[str, str]) -> None:
    assert json.loads(output(planted, "-c", LOOK)) == {
        "methods/evict": ["planted(0.5)", True],
        "tasks": [True, True],
        "cache/codecs": [True, "Plain"],
        "calibrate/measures": [["planted"], "planted"],
        "cli/commands": True,
        "kernels": ["planted", ["a prompt"]],
    }


def test_the_command_line_knows_what_one_file_adds(planted: dict[str, str]) -> None:
    assert output(planted, "-m", "headwise", "planted") == "hello from the planted command\n"
    assert json.loads(output(planted, "-m", "headwise", "methods", "planted", "--json"))[0]["part"] == "evict"
    backends = json.loads(output(planted, "-m", "headwise", "doctor", "--json"))["backends"]
    assert {"name": "planted", "usable": True, "why": "planted"} in backends


def test_the_laws_of_a_room_run_on_what_one_file_adds(planted: dict[str, str]) -> None:
    laws = (
        "tests/contract",
        "tests/kernels/test_backends.py",
        "tests/cache/test_paged.py",
        "tests/calibrate/test_calibration.py",
        "tests/tasks",
    )
    found = output(planted, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-k", "planted", *laws)
    for file in ("test_exact", "test_bytes", "test_counts", "test_order", "test_plain", "test_state"):
        assert f"contract/{file}.py" in found
    assert (
        "test_backends.py" in found
        and "test_paged.py" in found
        and "test_calibration.py" in found
        and "tests/tasks" in found
    )
