"""What several commands make of their options, checked before a model is loaded: numbers, files, recipes, plans."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from headwise.drafts import check_target
from headwise.errors import FileError, HeadwiseError

if TYPE_CHECKING:
    import typer

    from headwise.bench.cells.bench import Bench
    from headwise.plan import Plan
    from headwise.recipe import Recipe

Value = TypeVar("Value")
TEXT_SAMPLE = 1 << 16  # bytes of a file in which no text has a zero
MOST_WORKERS = 8  # each holds a copy of the model


def given(option: str, text: str | None, kind: Callable[[str, str], Value]) -> Value | None:
    """An option's value, read by `kind(option, text)`; None where it was left out."""
    return None if text is None else kind(option, text)


def check_adapted(adapter: Path | None, weights: str | None) -> None:
    """Refuse an adapter that is none, weights of no known kind, and both at once."""
    from headwise.compiled.packed import check_weights
    from headwise.seams.transformers.adapters import check_adapter

    if adapter is not None:
        check_adapter(adapter)
    if weights is not None:
        check_weights(weights)
        if adapter is not None:
            raise HeadwiseError(f"--adapter {adapter} is put onto weights as they are; leave out --weights")


def command_line(call: typer.Context) -> str:
    """The command as it was given."""
    words = ["headwise", str(call.info_name)]
    for one in call.command.params:
        source, value = call.get_parameter_source(str(one.name)), call.params.get(str(one.name))
        if source is None or source.name != "COMMANDLINE":
            continue
        option = "" if one.param_type_name == "argument" else one.opts[0]
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [word for word in (option, "" if each is True else shlex.quote(str(each))) if word]
    return " ".join(words)


def several(option: str, text: str, kind: Callable[[str, str], Value]) -> tuple[Value, ...]:
    """`"0.1,0.25"` as values, each read by `kind(option, word)`."""
    return tuple(kind(option, word.strip()) for word in text.split(","))


def token_count(option: str, text: str) -> int:
    """`"32k"` -> 32768."""
    number, factor = (text[:-1], 1024) if text[-1:] in ("k", "K") else (text, 1)
    if not (number.isascii() and number.isdigit()) or not int(number):
        raise HeadwiseError(f"{option} {text} is no number of tokens; write it like 8192 or 32k")
    return int(number) * factor


def mark(option: str, text: str) -> tuple[str, str]:
    """`"emphasis: keep it short"` -> its kind and the words of the prompt that are marked."""
    kind, _, words = (part.strip() for part in text.partition(":"))
    if not kind or not words:
        raise HeadwiseError(
            f"{option} {text!r} does not name a kind and words; write it like 'emphasis: keep it short'"
        )
    return kind, words


def check_marked(sentences: Iterable[str], marks: Sequence[tuple[str, str]]) -> None:
    """Refuse recipes that steer what is marked where nothing is."""
    from headwise.recipe import Recipe

    for part in (Recipe.parse(sentence).steer for sentence in sentences):
        if part is not None and part.kinds and not part.neutral and not {kind for kind, _ in marks} & {*part.kinds}:
            raise HeadwiseError(
                f"'{part.name}' steers what is marked as '{part.kinds[0]}', but nothing is; mark words of the prompt "
                f"by --mark '{part.kinds[0]}: the words'"
            )


def share(option: str, text: str) -> float:
    """`"0.25"` -> 0.25, a share of dense bytes."""
    from headwise.shapes import Amount

    try:
        return Amount.of(float(text)).share or 0.0
    except ValueError:
        raise HeadwiseError(f"{option} {text} is no number; give a share of dense bytes such as 0.25") from None
    except HeadwiseError as error:
        raise HeadwiseError(f"{option} {text}: {error}") from None


def byte_count(option: str, text: str) -> int:
    """`"512MiB"` -> 536870912."""
    from headwise.shapes import parse_bytes

    try:
        count = parse_bytes(text)
    except HeadwiseError as error:
        raise HeadwiseError(f"{option}: {error}") from None
    if not count:
        raise HeadwiseError(f"{option} {text} holds nothing; write it like 512MiB")
    return count


def seconds(option: str, text: str) -> float:
    """`"20ms"` or `"0.02s"` -> 0.02."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)", text.strip())
    if match is None or not float(match[1]):
        raise HeadwiseError(f"{option} {text} is no time; write it like 20ms or 0.5s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def own_workers(wanted: int | None) -> int:
    """Processes to use: as asked, else one a core this process may use."""
    if wanted is not None:
        return wanted
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def check_least(**given: tuple[int | None, int]) -> None:
    """Refuse numbers below their least: `check_least(facts=(0, 1))` is about `--facts`."""
    for name, (value, least) in given.items():
        if value is not None and value < least:
            raise HeadwiseError(f"--{name.replace('_', '-')} {value} is too small; give {least} or more")


def check_chunk(chunk: int) -> None:
    """Refuse prefill pieces so short that they would count as decoding."""
    from headwise.seams.transformers.drive import LEAST_CHUNK

    if chunk and chunk < LEAST_CHUNK:
        raise HeadwiseError(f"--chunk {chunk} is too small; give {LEAST_CHUNK} or more, or 0 for one pass")


def check_text(option: str, file: Path | None) -> None:
    """Refuse a text file that is not there, or is no text."""
    if file is None:
        return
    if not file.is_file():
        raise HeadwiseError(f"{option}: there is no file {file}; check the path")
    with file.open("rb") as stream:
        if b"\0" in stream.read(TEXT_SAMPLE):
            raise HeadwiseError(
                f"{option}: {file} is no text but a picture, an archive or the like, and these models read text alone; "
                "give its words as a .txt file"
            )


def check_outputs(**paths: Path | None) -> None:
    """Refuse files that could not be written: `check_outputs(report=path)` is about `--report`."""
    for name, path in paths.items():
        if path is None:
            continue
        folder = path.absolute().parent
        if path.is_dir():
            raise HeadwiseError(f"--{name}: {path} is a folder; give a file in it")
        if not folder.is_dir():
            raise HeadwiseError(f"--{name}: there is no folder {folder}; make it first")
        if not os.access(folder, os.W_OK):
            raise HeadwiseError(f"--{name}: nothing can be written into {folder}; give another folder")
        try:
            check_target(path)
        except FileError as error:
            raise HeadwiseError(f"--{name}: {error}") from None


def check_place(dtype: str, device: str = "cpu") -> None:
    """Refuse an element type or a device that a model cannot be moved to."""
    import torch

    from headwise.seams.transformers.load import check_dtype

    check_dtype(dtype)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise HeadwiseError(f"device '{device}' cannot be used ({said}); try --device cpu") from None


def place_of_any(model: str | None) -> str:
    """`place_of` where encoders are taken as well: "minilm" is the one that its own package carries."""
    from headwise.context.arrangers.minilm import minilm_folder

    return str(minilm_folder()) if model == "minilm" else place_of(model)


def place_of(model: str | None) -> str:
    """Where a model lies: a path or hub id, the embedded model's where none is named or "embedded". A GGUF file is
    converted where that was not done before, and its folder is the place."""
    from headwise.assets import embedded_model
    from headwise.cli.progress import Watcher
    from headwise.seams.transformers.from_gguf import converted, gguf_in
    from headwise.seams.transformers.load import quiet

    if model in (None, "embedded"):
        return str(embedded_model())
    file = gguf_in(model)
    if file is None:
        return model
    quiet()
    with Watcher() as watch:
        watch.resume = "the same command converts it anew"
        return str(converted(file, watch))


def check_contexts(place: str, contexts: Iterable[int], new_tokens: int = 0, remote_code: bool = False) -> None:
    """Refuse contexts that, with new tokens after them, are longer than what the model was trained on, as its
    config.json tells."""
    from headwise.errors import ContextError
    from headwise.seams.transformers.load import load_config

    limit = getattr(load_config(place, remote_code), "max_position_embeddings", None)
    for context in contexts:
        if limit is not None and context + new_tokens > limit:
            after, most = f" with {new_tokens} new tokens" if new_tokens else "", limit - new_tokens
            raise ContextError(
                f"--context {context}{after}: the model was trained on {limit} positions; give 1 to {most}"
            )


def check_plan(path: str | Path, place: str, remote_code: bool = False) -> Plan:
    """The plan of a file, refused where it cannot be read or its layers are not the model's."""
    from headwise.errors import PlanError
    from headwise.plan import Plan
    from headwise.seams.transformers.load import load_config

    plan = Plan.read(path)
    layers = getattr(load_config(place, remote_code), "num_hidden_layers", len(plan.recipes))
    if layers != len(plan.recipes):
        raise PlanError(
            f"{path} is a plan for {len(plan.recipes)} layers, the model at {place} has {layers}; make a plan for "
            "this model"
        )
    return plan


def is_plan(text: str) -> bool:
    """Whether a recipe-or-plan argument is the path of a plan file."""
    return text.endswith(".plan") or Path(text).is_file()


def check_recipe_or_plan(text: str, place: str) -> Recipe | Plan:
    """What RECIPE_OR_PLAN means, for the model at `place`. A plan that was never checked is warned of."""
    from headwise.plan import Plan
    from headwise.recipe import Recipe

    if not is_plan(text):
        return Recipe.parse(text)
    check_plan(text, place)
    return Plan.load(text)


def made_bench(
    model: str | None,
    *,
    recipes: Sequence[str],
    plans: Sequence[Path],
    tasks: Sequence[str],
    budgets: Sequence[float],
    contexts: Sequence[int],
    items: int,
    seed: int,
    dtype: str,
    device: str,
    calibration: Path | None,
) -> Bench:
    """The comparison that these options mean; nothing named is everything there is."""
    from headwise.assets import embedded_calibration
    from headwise.bench.cells.bench import Bench
    from headwise.bench.cells.listed import arms_of, check_budgets, default_sentences
    from headwise.bench.cells.worker import Setting
    from headwise.calibrate.calibration import Calibration
    from headwise.plan import Plan
    from headwise.seams.transformers.cache import attach
    from headwise.seams.transformers.load import load_model, quiet
    from headwise.tasks.taskbook import DEFAULT_TASKS, build_task

    quiet()
    check_budgets(budgets)
    check_least(items=(items, 1))
    check_place(dtype, device)
    names = tuple(tasks) or DEFAULT_TASKS
    for name in names:
        build_task(name)
    sentences = tuple(recipes) or (() if plans else default_sentences())
    listed = arms_of(sentences, plans, budgets)
    place = place_of(model)
    check_contexts(place, contexts)
    for path in plans:
        check_plan(path, place)
        Plan.load(path)  # warns once of a plan that was not checked, not in every process
    own = embedded_calibration() if model is None and calibration is None else calibration
    measured = None if own is None else Calibration.load(own)
    seam = attach(load_model(place, dtype, device))
    told = ("", "") if measured is None else (str(own), Calibration.load(str(own), seam.fingerprint).digest)
    setting = Setting(place, seam.fingerprint, dtype, device, items, seed, *told)
    return Bench(setting, tuple(listed), names, tuple(contexts))
