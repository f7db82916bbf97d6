"""Valid files of every form, changed by a seed with their checksums made anew: they are refused by our errors, or work.

`run_case(seed, folder)` is one case; a seed gives the same case everywhere.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open

from headwise.bench.cells.sweep import Sweep
from headwise.bench.judging.compare import compared, load_result
from headwise.bench.protocol import FORMAT as RESULT
from headwise.bench.protocol import HASHED
from headwise.calibrate.calibration import FORMAT as CALIBRATION
from headwise.calibrate.calibration import Calibration
from headwise.engine.persist import FORMAT as SESSION
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import HeadwiseError
from headwise.files import write_tensors
from headwise.plan import FORMAT as PLAN
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.tasks.on_disk import read_lines
from tests.contract.drive import COMBINED, Text, decode, geometry, prefill
from tests.fuzz import Machine

JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf"), "", "x", "torch.float99", [],
    [1], {}, {"a": 1}, [[[[[]]]]], "snapkv(", "\ud800", "a" * 10_000,
)  # fmt: skip
DTYPES = (torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool, torch.float64)
RECIPES = (
    *COMBINED,
    "razor(0.3, sinks=2, recent=6)",
    "xkv(window=8)",
    "cam(0.3, sinks=2, recent=6)",
    *(f"{name}(8, sinks=0, recent=2)" for name in ("loki", "recycled", "token_select", "magicpig", "double_sparsity")),
    *(f"{name}(8, sinks=0, recent=2)" for name in ("ltri", "retrieval_attention", "act_qkv", "tidal")),
    "kivi(window=8, group=16)",
    "low_rank(window=8)",
    "dense",
)
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Kind:
    """A form of file with tensors: valid facts and tensors, and what reads it and works with what was read."""

    form: str
    facts: dict[str, Any]
    tensors: Tensors
    use: Callable[[Path], object]


def run_case(seed: int, folder: Path) -> str:
    """Change a file by the seed and read it; "used" or "refused". Anything but HeadwiseError comes through."""
    rng = Random(seed)
    path = folder / "file"
    kind = rng.choice((*(("tensors",) * 8), "result", "sweep", "task"))
    use = {"tensors": _with_tensors, "result": _result, "sweep": _sweep, "task": _task}[kind](rng, path)
    try:
        use(path)
    except HeadwiseError as error:
        assert str(path) in str(error), f"it names no file: {error}"
        return "refused"
    return "used"


def machines() -> dict[str, Machine]:
    """By name."""

    def machine(seed: int, examples: int) -> None:
        rng = Random(seed)
        with TemporaryDirectory() as folder:
            for case in (rng.randrange(2**32) for _ in range(examples)):
                try:
                    run_case(case, Path(folder))
                except Exception as error:
                    raise AssertionError(f"run_case({case}, folder)") from error

    return {"files": machine}


def _with_tensors(rng: Random, path: Path) -> Callable[[Path], object]:
    """Write a plan, a calibration or a session, changed in what it says, or in its bytes."""
    kind = rng.choice(kinds())
    facts, tensors = copy.deepcopy(kind.facts), dict(kind.tensors)
    for _ in range(rng.randint(1, 2)):
        if rng.random() < 0.5 or not tensors:
            change(rng, facts)
        else:
            change_tensor(rng, tensors)
    path.unlink(missing_ok=True)
    write_tensors(path, kind.form, facts, tensors)
    if rng.random() < 0.2:
        path.write_bytes(changed_bytes(rng, path.read_bytes()))
    return kind.use


def _result(rng: Random, path: Path) -> Callable[[Path], object]:
    task = {"samples": [{"item": 0, "ask": one, "score": 0.5} for one in range(3)]}
    row = {"name": "a", "tasks": {"t 1": task}, "overall": {"mean": 0.5}, "byte_steps_of_dense": 0.3}
    result = {"protocol": {"format": RESULT, "hashes": dict.fromkeys(HASHED, "0")}, "rows": [row, {"name": "b"}]}
    change(rng, result)
    path.write_text(json.dumps(result))
    return lambda place: compared(load_result(place), load_result(place))


def _sweep(rng: Random, path: Path) -> Callable[[Path], object]:
    said = {"recipes": ["snapkv"], "budgets": [0.1], "contexts": [100], "items": 1, "tasks": ["passkey"], "model": "m"}
    change(rng, said)
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in said.items()))
    return Sweep.load


def _task(rng: Random, path: Path) -> Callable[[Path], object]:
    forms = (
        {"input": "Some text.\nWhat?", "outputs": ["12"], "answer_prefix": " It is"},
        {"context": "Some text.", "input": "Where?", "answers": ["here"]},
        {"context": "Some text.", "question": "What?", "answer": "owl"},
    )
    rows: list[Any] = [copy.deepcopy(rng.choice(forms)) for _ in range(2)]
    change(rng, rows)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return lambda place: read_lines(str(place))


@cache
def kinds() -> tuple[Kind, ...]:
    """A valid file of every form; of sessions, one for each way in which tokens lie."""
    shape = geometry()
    directions = torch.zeros(*shape.by_head, shape.size("d"))
    recipe = Recipe.parse("snapkv(0.3) | int8")
    plan = Plan(
        shape, ((recipe, Recipe()),) * 2, "m", ((0, 4),), {"check": {"passed": True, "failures": []}, "kl": 0.1},
        {"q_filters.direction": directions, "others": torch.ones(3)},
    )  # fmt: skip
    about = {"geometry": shape.describe(), "model": "m", "data": "d", "figures": {"a": {"b": 1}}}
    calibration = Kind(CALIBRATION, about, {"q_filters.direction": directions}, Calibration.load)
    return (Kind(PLAN, plan.describe(), plan.calibration, _use_plan), calibration, *map(_session, RECIPES))


def _use_plan(path: Path) -> None:
    plan = Plan.load(path)
    plan.digest  # noqa: B018 (what every use begins with)
    for layer in range(len(plan.geometry.layers)):
        plan.groups(layer)


@cache
def _session(sentence: str) -> Kind:
    plan = Plan.uniform(geometry(windows=(None, None, 16)), sentence)
    session, text = Session(plan, rows=2), Text.random(plan.geometry, 90, rows=2)
    prefill(session, text, (50,))
    decode(session, text, 50, 3)
    with TemporaryDirectory() as folder:
        save_session(session, Path(folder) / "session")
        facts, tensors = opened(Path(folder) / "session")

    def use(path: Path) -> None:
        loaded, _ = load_session(path, plan)
        if loaded.rows == 2 and loaded.dtype == torch.float32:
            decode(loaded, text, 53, 2)

    return Kind(SESSION, facts, tensors, use)


def opened(path: Path) -> tuple[dict[str, Any], Tensors]:
    """Facts and tensors of a file, unchecked."""
    with safe_open(str(path), framework="pt") as stream:
        ours = json.loads(stream.metadata()["headwise"])
        return json.loads(ours["facts"]), {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118


def change(rng: Random, facts: Any) -> None:
    """Change one value somewhere in JSON data: gone, of another kind, out of range, repeated, or one too many."""
    holder: Any = facts
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = rng.choice(keys)
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.75:
            holder = inner
            continue
        break
    how = rng.randrange(4)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[rng.choice(("other", "", "check", *map(str, holder)))] = copy.deepcopy(rng.choice(JUNK))
    elif how == 1:
        holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(rng.choice(holder)))
    elif how == 2 and isinstance(inner, int) and not isinstance(inner, bool):
        holder[key] = inner + rng.choice((-1, 1, 100, 2**31, -(2**31)))
    else:
        holder[key] = copy.deepcopy(rng.choice(JUNK))


def change_tensor(rng: Random, tensors: Tensors) -> None:
    """Change one tensor: gone, another's, of another type or shape, or of other numbers; or add one."""
    name = rng.choice(sorted(tensors))
    one = tensors[name]
    how = rng.randrange(9)
    if how == 0:
        del tensors[name]
    elif how == 1:
        other = rng.choice(sorted(tensors))
        tensors[name], tensors[other] = tensors[other], one
    elif how == 2:
        tensors[name] = one.nan_to_num().to(rng.choice(DTYPES))
    elif how == 3:
        tensors[name] = one.reshape(rng.choice(([-1], [1, *one.shape])))
    elif how == 4 and one.dim() and len(one):
        tensors[name] = rng.choice((one[:-1], one[:0], torch.cat((one, one[:1]))))
    elif how == 5:
        tensors[rng.choice(("other", "0.other", "memory.0.0.0.1.0.x", "memory.x", f"{name}.more", "9.lengths"))] = one
    elif how == 6 and one.dim() and len(one) > 1:
        tensors[name] = one.flip(0)
    elif one.numel():
        changed = one.clone()
        value = rng.choice((-1, 0, 1, 7, 100)) if one.dtype != torch.bool else True
        big = 2**62 if one.dtype == torch.int64 else 2**30 if one.dtype == torch.int32 else 1
        changed.view(-1)[rng.randrange(one.numel())] = value if one.is_floating_point() else rng.choice((value, big))
        tensors[name] = changed


def changed_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes flipped, cut off or put in, of the header most of all."""
    at = rng.randrange(8) if rng.random() < 0.2 else rng.randrange(min(len(data), 2000))
    how = rng.randrange(3)
    if how == 0:
        return data[:at]
    piece = rng.choice((b"", b"\xff" * 8, b"9" * 12, b"[" * 500))
    return data[:at] + piece + data[at + (1 if how == 1 else len(piece)) :]
