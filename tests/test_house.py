"""The laws of the house: who may import whom, how large things may grow, what a method must carry."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from headwise.registry import Card, all_methods, calibration_of, methods

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "headwise"
FILES = sorted(SRC.rglob("*.py"))
# A paper is a file in the room of its part; or a folder there, when how it is measured does not fit in beside it.
METHOD_FILES = sorted(
    [path for path in (SRC / "methods").glob("*/*.py") if path.name != "__init__.py"]
    + [*(SRC / "methods").glob("*/*/*.py")]
)

# A module imports from lines above its own, and from its own package. Names are below `headwise`.
ORDER = (
    ("errors", "watch"),
    ("rooms", "schema", "drafts", "caches"),
    ("shapes", "geometry", "files", "assets", "pretrained"),
    ("sentence",),
    ("knobs",),
    ("kept",),
    ("registry",),
    (
        "lenses",
        "explanations",
        "drafters",
        "fillers",
        "decoders",
        "layer_parts",
        "training_hooks",
        "arrangers",
        "pruners",
        "conversions",
    ),
    ("experiments", "findings"),
    ("systems",),
    ("recipe",),
    ("plan",),
    ("forms",),
    ("kernels",),
    ("attention",),
    ("choose",),
    ("layers",),
    ("observe",),
    ("cache",),
    ("methods",),
    ("engine",),
    ("seams",),
    ("decoding",),
    ("cost",),
    ("compiled", "models", "parallel", "quant"),
    ("calibrate",),
    ("faithful",),
    ("tune", "tasks"),
    ("bench", "report", "theory"),
    ("lens",),
    ("context", "vision", "convert"),
    ("claims", "chat"),
    ("serve",),
    ("cli",),
    ("", "__main__"),
)
# What a method may import of the house beside the base classes in its own part's folder.
METHOD_IMPORTS = {
    "headwise.errors",
    "headwise.shapes",
    "headwise.knobs",
    "headwise.registry",
    "headwise.choose",
    "headwise.forms",
    "headwise.forms.where",
    "headwise.attention.view",
    "headwise.attention.byproducts",
    "headwise.methods.blocks",
    "headwise.methods.chunks",
    "headwise.methods.densities",
    "headwise.methods.graph",
    "headwise.methods.half_space",
    "headwise.methods.modality",
    "headwise.methods.outliers",
    "headwise.methods.permuted",
    "headwise.methods.probing",
    "headwise.methods.projected",
    "headwise.methods.rehearsal",
    "headwise.methods.repositioned",
    "headwise.methods.roles",
    "headwise.methods.rounding",
    "headwise.methods.shards",
    "headwise.methods.tree",
    "headwise.methods.triangles",
    "headwise.methods.voted",
    "headwise.methods.window_votes",
    "headwise.methods.neighbours",
    "headwise.methods.reread",
}
# What else the measurement of a paper may import: what it shows to a model, and attention to compare with.
MEASURE_IMPORTS = {"headwise.observe", "headwise.attention.attend", "headwise.kernels.reference.scores"}
CHOOSING = {"topk", "sort", "argsort", "kthvalue", "msort"}
# The room that may name transformers, and the one file outside it, which loads the exported model as a user would.
SEAM, USERS = "seams/transformers/", {"models/embedded/measure.py", "claims/hosts/small.py"}
USERS |= {
    "models/host.py",
    "models/diffusion.py",
    "models/vlm/network.py",
    "vision/trials/host.py",
}  # hosts are transformers models
MOST_LINES, MOST_METHOD_LINES, MOST_FUNCTION_LINES, MOST_ARGUMENTS = 400, 120, 60, 7


def rank(package: str) -> int:
    places = [place for place, line in enumerate(ORDER) if package in line]
    assert places, f"'{package}' has no place in the import order; add it to ORDER"
    return places[0]


def package_of(module: str) -> str:
    """`headwise.engine.session` -> `engine`."""
    return module.partition(".")[2].partition(".")[0]


def module_of(path: Path) -> str:
    return ".".join(("headwise", *path.relative_to(SRC).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, but for those that only type checkers see."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    return set(_imports(ast.parse(path.read_text()), package))


def _imports(tree: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"headwise.{alias.name}" for alias in node.names) if module == "headwise" else (module,)
        yield from _imports(node, package)


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_imports_point_one_way() -> None:
    wrong = []
    for path in FILES:
        own = package_of(module_of(path))
        for target in imports(path):
            if not target.startswith("headwise."):
                continue
            other = package_of(target)
            if other != own and rank(other) >= rank(own):
                wrong.append(f"{path.relative_to(SRC)} imports {target}")
    assert not wrong


def paper_of(path: Path) -> str:
    """`methods/evict/moa/choice.py` -> `evict.moa`: the part and the name of the paper that a file belongs to."""
    return ".".join(module_of(path).split(".")[2:4])


@pytest.mark.parametrize("path", METHOD_FILES, ids=lambda path: module_of(path).removeprefix("headwise.methods."))
def test_a_method_imports_little_and_leaves_choosing_to_choose(path: Path) -> None:
    part = paper_of(path).partition(".")[0]
    allowed = {*METHOD_IMPORTS, "headwise.methods", f"headwise.methods.{part}"}
    paper = f"headwise.methods.{paper_of(path)}"
    own = {name for name in imports(path) if name == paper or name.startswith(f"{paper}.")}
    if path.name == "__init__.py":
        assert not own, "a method knows nothing of how it is measured"
    else:
        allowed |= own | MEASURE_IMPORTS
    outside = {name for name in imports(path) if name.startswith("headwise") and name not in allowed}
    foreign = {name.partition(".")[0] for name in imports(path)} - {"headwise", "torch"} - set(sys.stdlib_module_names)
    assert not outside | foreign
    used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not used & CHOOSING


def test_verbs_left_open_are_abstract_and_methods_rewrite_no_field() -> None:
    """`abc.abstractmethod` is the one idiom; what a knob changes is a property."""
    assert not [path for path in FILES if "raise NotImplementedError" in path.read_text()]
    assert not [path for path in (SRC / "methods").rglob("*.py") if "__setattr__" in path.read_text()]


def test_only_the_seam_names_transformers() -> None:
    naming = {
        str(path.relative_to(SRC))
        for path in FILES
        if any(name.partition(".")[0] == "transformers" for name in imports(path))
    }
    assert {name for name in naming if not name.startswith(SEAM)} == USERS


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: p.stem)
def test_sizes(path: Path) -> None:
    most = MOST_METHOD_LINES if path in METHOD_FILES else MOST_LINES
    assert len(path.read_text().splitlines()) <= most
    for function in functions(path):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= MOST_FUNCTION_LINES, f"{function.name} has {lines} lines"
        arguments = function.args
        names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls")]
        command = path.is_relative_to(SRC / "cli")  # the arguments of a command are its options
        if not function.name.startswith("_") and not command and "tests" not in path.parts:
            assert len(names) <= MOST_ARGUMENTS, f"{function.name} takes {len(names)} arguments"


@pytest.mark.parametrize("part", ["prefill", "evict", "budget", "compress", "select"])
def test_every_method_file_registers_methods_of_its_part(part: str) -> None:
    homes = {cls.__module__.removeprefix("headwise.methods.") for cls in methods(part).values()}
    assert homes == {paper for paper in map(paper_of, METHOD_FILES) if paper.startswith(f"{part}.")}


@pytest.mark.parametrize("name", all_methods())
def test_every_method_carries_what_users_need(name: str) -> None:
    cls = all_methods()[name]
    card: Card = cls.card
    assert cls.name == name
    assert callable(cls.plain)
    assert cls.__dataclass_params__.frozen
    assert cls() == cls()
    for text in (card.title, card.paper, card.phase, card.forgets, card.deviations, cls.__doc__):
        assert text and text.strip()
    assert card.phase in ("prefill", "decode", "prefill and decode")
    assert card.chunking in ("exact", "approximate", "whole_prompt")
    assert card.frees_memory == (cls.part in ("evict", "budget", "compress"))
    assert card.calibrated == bool(calibration_of(cls))
    own = [field.name for field in fields(cls)]
    described = (cls.__doc__ or "") + "".join(base.__doc__ or "" for base in cls.__mro__)
    assert all(knob in described for knob in own), "every knob is described in the docstring"


LOOK = """
import sys, time
import torch, transformers
from transformers import AttentionInterface, AttentionMaskInterface
def known():
    return [sorted(AttentionInterface().keys()), sorted(AttentionMaskInterface().keys())]
before, modules = known(), set(sys.modules)
start = time.perf_counter()
import headwise
took = time.perf_counter() - start
assert known() == before, "import headwise changed transformers' registries"
foreign = {m.partition(".")[0] for m in set(sys.modules) - modules} - {"headwise"} - set(sys.stdlib_module_names)
assert not foreign, foreign
headwise.Cache
assert known() == before, "loading headwise.Cache changed transformers' registries"
print(took)
"""


def test_import_changes_nothing_and_is_quick() -> None:
    def seconds() -> float:
        found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr
        return float(found.stdout)

    assert any(seconds() < 0.3 for _ in range(3))


def test_every_exception_to_a_law_still_exists() -> None:
    assert (SRC / SEAM).is_dir() and all((SRC / name).is_file() for name in USERS)
