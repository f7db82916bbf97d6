"""Tests of a Hugging Face model on long documents: read once, ask many questions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from headwise.seams.transformers.forward import cache_argument, forward

from . import tasks
from .encode import Encoder, Texts
from .prepare import BOS_ID

CHUNK = 4096  # tokens of one prefill forward pass

RECORDS = 128  # of a list at most: there are not many more held-out keys of one kind


class Reader:
    """A model that has read a document and answers questions about it, each from the same cache."""

    def __init__(self, model: Any, encoder: Encoder) -> None:
        self.model, self.encode = model, encoder
        self.cache: Any = None

    def _forward(self, ids: Sequence[int]) -> torch.Tensor:
        """Append tokens to the cache; logits [t, vocab]."""
        batch = torch.tensor([list(ids)], device=self.model.device)
        out = forward(self.model, self.cache, batch)
        self.cache = out[cache_argument(type(self.model))]
        logits: torch.Tensor = out.logits[0]
        return logits

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> None:
        """Start anew with BOS and the document's ids."""
        whole = [BOS_ID, *ids]
        self.cache = None
        for at in range(0, len(whole), CHUNK):
            self._forward(whole[at : at + CHUNK])

    @torch.no_grad()
    def ask(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[bool, float]:
        """(greedy decoding gives exactly the answer, share of its tokens foretold given those before)."""
        logits = self._forward([*prompt, *answer[:-1]])
        self.cache.crop(-(len(prompt) + len(answer) - 1))
        found = logits[len(prompt) - 1 :].argmax(-1).tolist()
        hits = [a == b for a, b in zip(found, answer, strict=True)]
        return all(hits), sum(hits) / len(hits)

    def ask_text(self, prompt: str, answer: str) -> bool:
        """`ask` with strings; the exact verdict only."""
        return self.ask(self.encode(prompt), self.encode(answer))[0]


class Sources:
    """Running text of whole validation novels, and planting of sentences in it."""

    def __init__(self, data: Path, encoder: Encoder, split: str = "valid") -> None:
        self.encode, self.split = encoder, split
        self.texts = Texts(data, split, encoder)
        meta = json.loads((data / "meta.json").read_text())[split]
        ends = [*meta["offsets"][1:], meta["tokens"]]
        novels = [
            (begin, end - 1)
            for path, begin, end in zip(meta["paths"], meta["offsets"], ends, strict=True)
            if path.startswith(("novels", "books"))
        ]
        self.novels = novels or [(b, e - 1) for b, e in zip(meta["offsets"], ends, strict=True)]

    def window(self, rng: Random, size: int) -> np.ndarray:
        """`size` tokens of one novel (fewer where none is so long), from a sentence on."""
        fit = [n for n in self.novels if n[1] - n[0] > size + 512] or [max(self.novels, key=lambda n: n[1] - n[0])]
        begin, end = rng.choice(fit)
        start = self.texts.next_start(begin + rng.randrange(max(1, end - begin - size - 256)))
        return self.texts.ids[start : min(start + size, end)]

    def planted(self, rng: Random, size: int, sentences: Sequence[str], depths: Sequence[float]) -> list[int]:
        """At most `size` ids: running text with each sentence between two sentences near its depth."""
        parts = [self.encode(" " + sentence) for sentence in sentences]
        ids = self.window(rng, size - sum(map(len, parts)))
        cuts = self.texts.cuts(ids)
        if not len(cuts):
            raise ValueError(f"no sentence ends within {size} tokens; give a longer length")
        ids = ids[: cuts[-1]]
        places = [int(cuts[np.abs(cuts - depth * len(ids)).argmin()]) if depth > 0 else 0 for depth in depths]
        out: list[int] = []
        at = 0
        for place, part in sorted(zip(places, parts, strict=True), key=lambda p: p[0]):
            out += ids[at:place].tolist() + part
            at = place
        out += ids[at:].tolist()
        return out


def needle(reader: Reader, sources: Sources, rng: Random, size: int, depths: Sequence[float]) -> list[bool]:
    """One held-out fact at each depth of one document of `size` tokens; a verdict per depth."""
    facts = tasks.draw_facts(rng, len(depths), held=True)
    asks = [(sources.encode(f.question), sources.encode(f.answer)) for f in facts]
    room = size - 1 - max(len(q) + len(a) for q, a in asks)
    reader.read(sources.planted(rng, room, [f.sentence for f in facts], depths))
    return [reader.ask(q, a)[0] for q, a in asks]


def single_needle(reader: Reader, sources: Sources, rng: Random, size: int, depth: float) -> bool:
    """One held-out fact alone in a document."""
    return needle(reader, sources, rng, size, [depth])[0]


def records(reader: Reader, sources: Sources, rng: Random, size: int, asks: int = 16) -> list[bool]:
    """Recall of records: up to RECORDS of them, then text up to `size` tokens, then queries."""
    drawn = tasks.draw_records(rng, min(RECORDS, size // 16), held=True)
    told, recall = reader.encode(drawn.text), reader.encode(tasks.RECALL)
    gap = sources.window(rng, max(16, size - len(told) - len(recall))).tolist()
    reader.read(told + gap + recall)
    chosen = rng.sample(range(len(drawn.pairs)), min(asks, len(drawn.pairs)))
    return [reader.ask_text(*drawn.query(i)) for i in chosen]


def copying(reader: Reader, sources: Sources, rng: Random, size: int, noise: bool) -> tuple[bool, float]:
    """(exact, share of tokens) of a marked passage copied at the end; `noise`: 48 random tokens, else text."""
    tag = tasks.draw_tag(rng)
    random = [rng.randrange(3, sources.encode.vocab) for _ in range(48)]
    body = random if noise else sources.window(rng, 64).tolist()
    head = sources.encode(tasks.PASSAGE.format(tag=tag)) + body + sources.encode(tasks.PASSAGE_END.format(tag=tag))
    prompt = sources.encode(tasks.PASSAGE_COPY.format(tag=tag))
    gap = sources.window(rng, max(16, size - len(head) - len(prompt) - len(body) - 1)).tolist()
    reader.read(head + gap)
    return reader.ask(prompt, body)


def tracing(
    reader: Reader, sources: Sources, rng: Random, size: int, shape: tuple[int, int]
) -> tuple[list[bool], list[bool]]:
    """(rooms, traces) right for each of `shape` = (chains, hops) chains spread over one document."""
    count, hops = shape
    chains = tasks.draw_chains(rng, count, hops, held=True)
    sentences = [s for chain in chains for s in chain.sentences]
    depths = [rng.random() for _ in sentences]
    reader.read(sources.planted(rng, size - 48 - 16 * hops, sentences, depths))
    rooms = [reader.ask_text(chain.question(), chain.answer) for chain in chains]
    traces = [reader.ask_text(chain.trace_question, chain.trace) for chain in chains]
    return rooms, traces


@torch.no_grad()
def window_losses(model: Any, ids: np.ndarray) -> torch.Tensor:
    """nll (nats) of every token of a window after BOS, [len(ids)] on the CPU."""
    whole = torch.tensor([[BOS_ID, *ids.tolist()]], device=model.device)
    cache, parts = None, []
    for at in range(0, whole.shape[1] - 1, CHUNK):
        block = whole[:, at : min(at + CHUNK, whole.shape[1] - 1)]
        out = forward(model, cache, block)
        cache = out[cache_argument(type(model))]
        targets = whole[0, at + 1 : at + 1 + block.shape[1]]
        parts.append(torch.nn.functional.cross_entropy(out.logits[0].float(), targets, reduction="none").cpu())
    return torch.cat(parts)
