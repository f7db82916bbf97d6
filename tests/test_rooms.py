"""A thing is added by one file: one is planted in every room of a copy of the package, and every list has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

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
CALIBRATED = '''
"""A planted method that is told something of the model, and how that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from headwise.attention.view import View
from headwise.methods.evict import Evict
from headwise.observe import Found, Material, Observer, Progress, measure
from headwise.registry import CalibrationTensor, Card, register


@register("evict", "planted_norms")
@dataclass(frozen=True)
class PlantedNorms(Evict):
    """Keeps the longest keys beside the mean length of a head's keys."""

    needs = frozenset({"keys", "calibration"})
    calibrates = {"norm": CalibrationTensor("", "mean length of the keys", "planted_norms")}
    card = Card("Planted", "none", calibrated=True, frees_memory=True, forgets="short keys")

    def score(self, view: View) -> torch.Tensor:
        """Lengths [h, n] of the keys, less the head's mean."""
        mean = view.calibration.get("norm", torch.zeros(len(view.heads)))
        return view.keys.float().norm(dim=-1) - mean[:, None]

    plain = score


@dataclass(frozen=True, eq=False)
class Lengths(Observer):
    """Keeps the mean lengths [h] of each layer's keys."""

    by_layer: dict[int, torch.Tensor] = field(default_factory=dict)

    def look(self, view: View) -> None:
        self.by_layer[view.layer] = view.keys.float().norm(dim=-1).mean(1).cpu()


@measure("planted_norms", cost=1)
def measured(material: Material, progress: Progress) -> Found:
    """Mean length of keys."""
    material.subject.observe(lengths := Lengths(), material.documents)
    return {}, {"planted_norms.norm": torch.stack([one for _, one in sorted(lengths.by_layer.items())])}
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
DECODER = '''
"""A planted decoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.decoders import Decoder, DecoderCard, register
from headwise.faithful.looks import Looks


@register("planted")
@dataclass(frozen=True)
class Planted(Decoder):
    """Sharpens."""

    power: float = 2.0

    card = DecoderCard("Planted", "none", "nothing", "none")
    needs = frozenset()
    neutral = "planted(power=1.0)"

    def step(self, logits: torch.Tensor, looks: Looks) -> torch.Tensor:
        return (self.power * logits).log_softmax(-1)
'''
MEASURE = '''
"""A planted measure."""

from headwise.observe import Found, Material, Progress, measure


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
ARRANGER = '''
"""A planted arranger."""

from __future__ import annotations

from dataclasses import dataclass

from headwise.arrangers import Arranger, ArrangerCard, register
from headwise.context.asked import Arranged, Asked


@register("planted")
@dataclass(frozen=True)
class Planted(Arranger):
    """Turns the order round."""

    card = ArrangerCard("Planted", "none", "none")

    def arrange(self, asked: Asked) -> Arranged:
        return asked.arranged(range(len(asked.documents))[::-1])
'''
PRUNER = """
from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.pruners import Pruner, PrunerCard, register
from headwise.vision.seen import Seen


@register("planted")
@dataclass(frozen=True)
class Planted(Pruner):
    \"\"\"Leaves nothing out.\"\"\"

    card = PrunerCard("Planted", "none")
    everything = "planted"

    def stay(self, seen: Seen) -> torch.Tensor | None:
        return None
"""
CONVERSION = """
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwise.conversions import Conversion, ConversionCard, register


@register("planted")
@dataclass(frozen=True)
class Planted(Conversion):
    \"\"\"Makes the same again.\"\"\"

    card = ConversionCard("Planted", "none", "always", "the same")

    @classmethod
    def exact(cls, source: Any) -> Planted:
        return cls()

    def check(self, source: Any) -> None:
        pass

    def build(self, source: Any, looked: Any) -> Any:
        return looked.model

    def cache_numbers(self, source: Any) -> int:
        return source.cache_numbers
"""
PLANTED = {
    "convert/ways/planted.py": CONVERSION,
    "vision/pruners/planted.py": PRUNER,
    "kernels/planted.py": BACKEND,
    "context/arrangers/planted.py": ARRANGER,
    "methods/evict/planted.py": METHOD,
    "methods/evict/planted_norms.py": CALIBRATED,
    "tasks/planted.py": TASK,
    "cache/codecs/planted.py": CODEC,
    "faithful/decoders/planted.py": DECODER,
    "calibrate/measures/planted.py": MEASURE,
    "cli/commands/planted.py": COMMAND,
}
LOOK = """
import json
import torch
from headwise.attention import attend
from headwise.context import arrange
from headwise.tasks import all_tasks
from headwise.cache.codecs import codec, names
from headwise.calibrate.calibrate import check_measures, measures
from headwise.cli.docs import PAGES
from headwise.conversions import conversion
from headwise.decoders import decoder
from headwise.forms import Full, Scoring
from headwise.kernels.dispatch import noted
from headwise.pruners import pruner
from headwise.recipe import Recipe
with noted() as records:
    for tokens in (1, 2):
        attend(torch.ones(1, 1, tokens, 16), torch.ones(1, 5, 16), torch.ones(1, 5, 16), Full(), Scoring(1.0))
pages = {name: page() for name, page in PAGES.items()}
print(json.dumps({
    "methods/evict": [str(Recipe.parse("planted(0.5)")), "## planted" in pages["methods.md"]],
    "tasks": ["planted" in all_tasks(), "planted" in pages["tasks.md"]],
    "cache/codecs": ["planted4" in names(), type(codec("planted7")).__name__],
    "faithful/decoders": decoder("planted(3.0)").power,
    "calibrate/measures": [check_measures(["planted", "planted_norms"]), list(measures())[:2]],
    "its own measure": ["`planted_norms.norm` [layers, KV heads]" in pages["methods.md"],
                        "| planted_norms | Mean length of keys |" in pages["methods.md"]],
    "cli/commands": "## headwise planted" in pages["cli.md"],
    "context/arrangers": [arrange(None, None, ["a", "b"], "c", "planted").documents,
                          "## planted" in pages["arrangers.md"]],
    "vision/pruners": str(pruner("planted")),
    "convert/ways": [str(conversion("planted")), "## planted" in pages["conversions.md"]],
    "kernels": [records[0].backend, records[1].refusals["planted"]],
}))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which a copy of the package, with one more file in every room, is what is imported."""
    copy = tmp_path_factory.mktemp("copy") / "headwise"
    shutil.copytree(ROOT / "src" / "headwise", copy, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    os.symlink(ROOT / "src" / "headwise" / "assets", copy / "assets")
    for file, text in PLANTED.items():
        (copy / file).write_text(text.lstrip())
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
        "faithful/decoders": 3.0,
        "calibrate/measures": [["planted", "planted_norms"], ["planted", "planted_norms"]],
        "its own measure": [True, True],
        "cli/commands": True,
        "context/arrangers": [["b", "a"], True],
        "vision/pruners": "planted",
        "convert/ways": ["planted", True],
        "kernels": ["planted", ["a prompt"]],
    }


def test_the_command_line_knows_what_one_file_adds(planted: dict[str, str]) -> None:
    assert output(planted, "-m", "headwise", "planted") == "hello from the planted command\n"
    assert json.loads(output(planted, "-m", "headwise", "methods", "planted", "--json"))[0]["part"] == "evict"
    backends = json.loads(output(planted, "-m", "headwise", "doctor", "--json"))["backends"]
    assert {"name": "planted", "usable": True, "why": "planted"} in backends


def test_a_calibrated_method_is_measured_and_told_what_was_found(planted: dict[str, str], tmp_path: Path) -> None:
    model, out, plan = tiny.build(tmp_path / "model"), tmp_path / "calibration", tmp_path / "plan"
    command = ("-m", "headwise", "calibrate", str(model), "--only", "planted_norms", "--context", "700")
    files = ("--documents", "1", "--out", str(out), "--plan", str(plan), "--recipe", "planted_norms(0.5)", "--json")
    found = json.loads(output(planted, *command, *files))
    assert found["tensors"] == {"planted_norms.norm": [3, 2]}
    card = output(planted, "-m", "headwise", "methods", "planted_norms")
    assert "`planted_norms.norm` [layers, KV heads], mean length of the keys" in card
    run = output(planted, "-m", "headwise", "run", str(model), "--plan", str(plan), "--facts", "2", "--json")
    assert json.loads(run)["rows"][1]["kept_share"] < 1


def test_the_laws_of_a_room_run_on_what_one_file_adds(planted: dict[str, str]) -> None:
    laws = (
        "tests/contract",
        "tests/kernels/test_backends.py",
        "tests/cache/test_paged.py",
        "tests/calibrate/test_calibration.py",
        "tests/tasks",
    )
    found = output(planted, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-k", "planted", *laws)
    assert "contract/context/test_laws.py" in found
    for file in (
        "test_exact",
        "test_bytes",
        "test_counts",
        "test_order",
        "test_plain",
        "test_state",
        "faithful/test_laws",
    ):
        assert f"contract/{file}.py" in found
    assert (
        "test_backends.py" in found
        and "test_paged.py" in found
        and "test_calibration.py" in found
        and "tests/tasks" in found
    )
