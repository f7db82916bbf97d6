"""One cell of a comparison: an entry on the documents of one task at one length, every ask on a fork."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch

from headwise.bench.arms import Frame
from headwise.bench.entry import Entry
from headwise.bench.job import encode
from headwise.bench.protocol import STOP, TEMPLATE
from headwise.bench.protocol import digest as digest_of
from headwise.bench.provenance import versions
from headwise.bench.taskbook import build_task, facts_of
from headwise.bench.tasks.base import Ask, Item, chance, digest
from headwise.calibrate.calibration import Calibration
from headwise.errors import ContextError, HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, attach
from headwise.seams.transformers.drive import decode, feed
from headwise.seams.transformers.replay import Reading, open_prompt, read_once
from headwise.shapes import Mark


@dataclass(frozen=True)
class Setting:
    """What all cells share. model: path or hub id; items: documents of each task and length.

    calibration: path of a calibration file, "" for none; calibrated: its digest.
    """

    model: str
    fingerprint: str
    dtype: str
    device: str
    items: int
    seed: int
    calibration: str = ""
    calibrated: str = ""


@dataclass(frozen=True)
class Cell:
    """One entry on one task at one context length."""

    task: str
    context: int
    entry: Entry

    def key(self, setting: Setting) -> str:
        """Name of the cell's result: equal where everything that decides the result is."""
        facts = asdict(setting) | {"task": facts_of(build_task(self.task)), "cell": asdict(self)}
        facts |= {"versions": versions(), "template": TEMPLATE, "stop": STOP}
        if self.entry.is_plan:
            facts["plan"] = Plan.read(self.entry.sentence).digest
        return digest_of({name: value for name, value in facts.items() if name not in ("model", "calibration")})


@dataclass(frozen=True)
class Prompt:
    """An item as ids: the document [1, n], each ask with its prompt [1, m], and the document's examples as marks."""

    ids: torch.Tensor
    asks: tuple[tuple[Ask, torch.Tensor], ...]
    marks: tuple[Mark, ...] = ()


class Worker:
    """Runs cells on one loaded model. Documents and their dense reading are kept while cells of one task follow."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, setting: Setting) -> None:
        self.model, self.tokenizer, self.setting = model, tokenizer, setting
        self.seam = attach(model)
        self.calibration = None
        if setting.calibration:
            self.calibration = Calibration.load(setting.calibration, self.seam.fingerprint)
        self._at: tuple[str, int] | None = None
        self._prompts: list[Prompt] = []
        self._readings: dict[int, Reading] = {}
        self._data, self._chance = "", 0.0

    def run(self, cell: Cell) -> dict[str, Any]:
        """The cell's result as plain JSON data; `refused` says why where the entry cannot take this prompt."""
        self._turn_to(cell)
        start = perf_counter()
        documents: list[dict[str, Any]] = []
        samples: list[dict[str, Any]] = []
        refused, steps, seconds = None, 0, 0.0
        try:
            for place in range(len(self._prompts)):
                document, own, clock = self._document(cell, place)
                documents.append(document)
                samples += own
                steps, seconds = steps + clock[0], seconds + clock[1]
        except HeadwiseError as error:
            if cell.entry.role in ("dense", "control"):
                raise
            documents, samples, refused = [], [], str(error)
        return {
            "cell": asdict(cell),
            "data": self._data,
            "chance": self._chance,
            "documents": documents,
            "samples": samples,
            "refused": refused,
            "timings": {"seconds": perf_counter() - start, "decode_steps": steps, "decode_seconds": seconds},
        }

    def _turn_to(self, cell: Cell) -> None:
        if self._at == (cell.task, cell.context):
            return
        task = build_task(cell.task)
        made = task.items(self._count, cell.context, self.setting.items, self.setting.seed)
        if len(made) != self.setting.items:
            raise HeadwiseError(f"task '{cell.task}' made {len(made)} items of {self.setting.items}; mend its items()")
        limit = min(cell.context, self.seam.geometry.max_positions)
        self._prompts = [encoded(self.tokenizer, cell.task, item, limit) for item in made]
        self._data, self._chance = digest(made), chance(made)
        self._readings = {}
        self._at = (cell.task, cell.context)

    def _count(self, text: str) -> int:
        return encode(self.tokenizer, text).shape[1]

    def _document(self, cell: Cell, place: int) -> tuple[dict[str, Any], list[dict[str, Any]], tuple[int, float]]:
        """One document read and asked about: its facts, a sample for each ask, decode steps and their seconds."""
        task, prompt = build_task(cell.task), self._prompts[place]
        ids = prompt.ids.to(self.model.device)
        if place not in self._readings:
            self._readings[place] = read_once(self.model, ids)
        frame = Frame(self.seam, ids.shape[1], self.model.dtype, self.calibration)
        arm = cell.entry.arm(frame)
        cache = Cache(self.model, arm.plan, seed=self.setting.seed, marks=prompt.marks)
        # the control takes the model's own way through the prompt, so it also shows that sharing changes nothing
        shared = None if cell.entry.role == "control" else self._readings[place]
        open_prompt(self.model, cache, ids, shared)
        document = {"recipes": _recipes(arm.plan), "plan": arm.plan.digest, **_held(frame, cache)}
        samples, steps, seconds = [], 0, 0.0
        for number, (ask, after) in enumerate(prompt.asks):
            fork = cache.fork()
            start = perf_counter()
            new = self._answer(fork, ask, after)
            seconds, steps = seconds + perf_counter() - start, steps + len(new)
            text = self.tokenizer.decode(new, skip_special_tokens=True)
            samples.append(
                {
                    "item": place, "ask": number, "depth": ask.depth, "score": float(task.score(ask, text)),
                    "got": text, "tokens": new, "truncated": self._truncated(ask, new),
                    "byte_steps": _byte_steps(fork) - _byte_steps(cache),
                }
            )  # fmt: skip
        return document, samples, (steps, seconds)

    def _answer(self, cache: Cache, ask: Ask, after: torch.Tensor) -> list[int]:
        logits = feed(self.model, cache, after.to(self.model.device))
        return decode(self.model, cache, logits, ask.limit, self._stop(ask))[0].tolist()

    def _stop(self, ask: Ask) -> Callable[[list[int]], bool]:
        """The rule of `protocol.STOP` beside the end-of-sequence token and the limit."""
        lines = max((one.strip().count("\n") for one in ask.expected), default=0)

        def ended(new: list[int]) -> bool:
            return self.tokenizer.decode(new, skip_special_tokens=True).lstrip().count("\n") > lines

        return ended

    def _truncated(self, ask: Ask, new: list[int]) -> bool:
        ended = new[-1] == self.tokenizer.eos_token_id or self._stop(ask)(new)
        return len(new) >= ask.limit and not ended


def encoded(tokenizer: Any, task: str, item: Item, limit: int) -> Prompt:
    """An item as ids; ContextError where document, an ask and its answer exceed `limit` tokens: nothing is cut."""
    ids = encode(tokenizer, item.document, start=True)
    asks = tuple((ask, encode(tokenizer, ask.prompt)) for ask in item.asks)
    needed = ids.shape[1] + max(after.shape[1] + ask.limit for ask, after in asks)
    if needed > limit:
        raise ContextError(
            f"an item of task '{task}' takes {needed} tokens with its longest question and answer, more than the "
            f"{limit} allowed; give --context {needed} or more, or a model trained on more positions"
        )
    return Prompt(ids, asks, _marks(tokenizer, item))


def _marks(tokenizer: Any, item: Item) -> tuple[Mark, ...]:
    """The examples of a document by token. A tokenizer that cannot tell where its tokens stand leaves them unmarked,
    which methods that ask for marks take as text without examples."""
    if not item.examples or not tokenizer.is_fast:
        return ()
    told = tokenizer(item.document, add_special_tokens=True, return_offsets_mapping=True, verbose=False)
    return tuple(Mark.of_text("example", told["offset_mapping"], *one) for one in item.examples)


def _recipes(plan: Plan) -> list[str]:
    """What a plan's heads follow."""
    return sorted({str(recipe) for heads in plan.recipes for recipe in heads})


def _held(frame: Frame, cache: Cache) -> dict[str, Any]:
    """What the cache holds right after the prompt."""
    session = cache.session
    assert session is not None, "a prompt was read"
    heads = session.plan.geometry.kv_heads
    return {
        "tokens": frame.tokens,
        "cache_bytes": session.nbytes(),
        "predicted_bytes": frame.bytes_of(session.plan),
        "dense_bytes": frame.dense_bytes,
        "kept": [session.lengths(layer)[0].tolist() for layer in range(len(heads))],
        "lost_mass": [[round(share, 6) for share in shares] for shares in session.ledger.lost_mass(heads)],
    }


def _byte_steps(cache: Cache) -> int:
    assert cache.session is not None, "a prompt was read"
    return cache.session.ledger.byte_steps
