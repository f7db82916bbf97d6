"""Seeded training sequences: every family of tasks as (ids, weight per token, tag per token)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from . import tasks
from .encode import Encoder, Texts
from .prepare import BOS_ID, EOS_ID
from .recipe import FAMILIES

KIND = {name: i for i, name in enumerate(FAMILIES)}  # tag of a token = kind + 8 * answer number
PROMPT = 7  # kind of tokens that cannot be foretold: facts as first stated, questions, random filler
KINDS = 8
ANSWER_WEIGHT = 4.0
COPY_WEIGHT = 1.5
PROMPT_WEIGHT = 0.25
COPY_SPAN = 16  # tokens of a copied passage that count as one answer
SMALLEST = 48  # tokens; shorter remainders are filled with text


@dataclass(frozen=True)
class Part:
    """Some tokens of one weight; `answer` parts are scored as one exact answer."""

    ids: list[int]
    weight: float
    kind: int
    answer: bool = False


class Row:
    """One sequence under construction."""

    def __init__(self) -> None:
        self.ids: list[int] = [BOS_ID]
        self.weights: list[float] = [0.0]
        self.tags: list[int] = [PROMPT]
        self.answers = 0

    def add(self, part: Part) -> None:
        """Append a part."""
        tag = part.kind
        if part.answer:
            self.answers += 1
            tag += KINDS * self.answers
        count = len(part.ids)
        self.ids += part.ids
        self.weights += [part.weight] * count
        self.tags += [tag] * count


def _log_uniform(rng: Random, low: int, high: int) -> int:
    """An integer from low to high, its logarithm uniform."""
    return low if high <= low else int(math.exp(rng.uniform(math.log(low), math.log(high + 1))))


def _length(parts: list[Part]) -> int:
    return sum(len(part.ids) for part in parts)


class Composer:
    """Makes sequences of a context length from texts and an encoder; pure but for the given rng."""

    def __init__(self, texts: Texts, encoder: Encoder, held: bool = False) -> None:
        self.texts, self.encode, self.held = texts, encoder, held
        self._makers: dict[str, Callable[[Random, int], list[Part]]] = {
            "text": self.text,
            "needle": self.needle,
            "kv": self.records,
            "copy": self.copying,
            "hop": self.hops,
        }

    def row(self, rng: Random, size: int, mixture: dict[str, float]) -> Row:
        """A sequence of exactly `size` tokens, BOS first, one or more task instances."""
        row = Row()
        names, shares = list(mixture), list(mixture.values())
        while (left := size - len(row.ids)) > SMALLEST:
            name = rng.choices(names, shares)[0]
            whole = left <= 256 or rng.random() < (0.6 if name == "needle" else 0.25)
            budget = left - 1 if whole else _log_uniform(rng, 128, left - 1)
            for part in self._makers[name](rng, budget):
                row.add(part)
            row.add(Part([EOS_ID], PROMPT_WEIGHT, PROMPT))
        if left > 0:
            row.add(self._running(rng, left))
        del row.ids[size:], row.weights[size:], row.tags[size:]
        return row

    # ---- families: each returns parts of at most `size` tokens -------------------------------

    def text(self, rng: Random, size: int) -> list[Part]:
        """Plain text."""
        return [self._running(rng, size)]

    def needle(self, rng: Random, size: int) -> list[Part]:
        """Facts between the sentences of a text; questions and restatements later."""
        limit = 1 if rng.random() < 0.12 else _log_uniform(rng, 2, max(2, min(192, size // 24)))
        asks = limit if rng.random() < 0.6 else rng.randint(1, limit)
        room = int(size * rng.choice((0.5, 0.8, 0.97)))
        facts = [(f, self._fact(f)) for f in tasks.draw_facts(rng, limit, self.held)]
        told: list[list[Part]] = []
        asked: list[tuple[int, list[Part], bool]] = []
        used = 0
        order = rng.sample(range(limit), limit)
        for turn, index in enumerate(order):
            fact, parts = facts[index]
            late: list[Part] = []
            restate = rng.random() < 0.2
            if turn < asks:
                late = self._restated(rng, fact) if restate else self._question(fact.question, fact.answer, "needle")
            if used + _length(parts) + _length(late) > max(room, 70):
                break
            used += _length(parts) + _length(late)
            told.append(parts)
            if late:
                asked.append((len(told) - 1, late, rng.random() < 0.35))
        ids, cuts = self._haystack(rng, size - used)
        places = [self._place(rng, cuts) for _ in told]
        events = [(places[i], 0, parts) for i, parts in enumerate(told)]
        for fact_index, parts, inside in asked:
            later = [c for c in cuts[-40:] if c >= places[fact_index]] if inside else []
            events.append((rng.choice(later) if later else len(ids), 1, parts))
        return self._weave(ids, events)

    def records(self, rng: Random, size: int) -> list[Part]:
        """Key-value lines, sometimes a text, then queries."""
        most = max(2, min(400, size // 25))
        count = _log_uniform(rng, 2 if rng.random() < 0.4 else max(2, most // 3), most)
        records = tasks.draw_records(rng, count, self.held)
        parts = [Part(self.encode(tasks.RECORDS), PROMPT_WEIGHT, PROMPT)]
        for index in range(count):
            prompt, answer = records.query(index)
            parts.append(Part(self.encode(prompt), PROMPT_WEIGHT, PROMPT))
            parts.append(Part(self.encode(answer), 0.0, PROMPT))
        queries = [Part(self.encode(tasks.RECALL), PROMPT_WEIGHT, PROMPT)]
        left = size - _length(parts) - _length(queries)
        for index in rng.sample(range(count), count):
            question = self._question(*records.query(index), "kv")
            if left < _length(question):
                break
            left -= _length(question)
            queries += question
        gap: list[Part] = []
        if left > 64 and rng.random() < 0.5:
            ids, _ = self.texts.piece(rng, left)
            gap = [Part(ids.tolist(), 1.0, KIND["text"])]
        return self._cut([*parts, *gap, *queries], size)

    def copying(self, rng: Random, size: int) -> list[Part]:
        """A passage repeated: random tokens without marks, or a marked passage of text."""
        return self._random_copy(rng, size) if rng.random() < 0.55 else self._passage_copy(rng, size)

    def hops(self, rng: Random, size: int) -> list[Part]:
        """Chains of places among other chains, in any order, compact or inside a text."""
        hops = 2 if rng.random() < 0.7 else 3
        count = rng.randint(2, max(2, min(24, size // (24 * hops))))
        chains = tasks.draw_chains(rng, count, hops, self.held)
        told = [[Part(self.encode(" " + s), PROMPT_WEIGHT, PROMPT)] for chain in chains for s in chain.sentences]
        rng.shuffle(told)
        left = size - sum(_length(p) for p in told)
        asked: list[list[Part]] = []
        for _ in range(rng.randint(count, 3 * count)):
            parts = self._hop_question(rng, rng.choice(chains))
            if _length(parts) > left:
                break
            left -= _length(parts)
            asked.append(parts)
        compact = left < 64 or rng.random() < 0.5
        ids, cuts = (np.zeros(0, np.uint16), np.zeros(0, np.int64)) if compact else self.texts.piece(rng, left)
        events = [(self._place(rng, cuts), 0, parts) for parts in told]
        events += [(len(ids), 1, parts) for parts in asked]
        return self._cut(self._weave(ids, events), size)

    # ---- helpers ------------------------------------------------------------------------------

    def _running(self, rng: Random, size: int) -> Part:
        return Part(self.texts.run(rng, size).tolist(), 1.0, KIND["text"])

    def _fact(self, fact: tasks.Fact) -> list[Part]:
        return [
            Part(self.encode(" " + fact.opening), PROMPT_WEIGHT, PROMPT),
            Part(self.encode(fact.answer), 0.0, PROMPT),
        ]

    def _question(self, question: str, answer: str, kind: str) -> list[Part]:
        return [
            Part(self.encode(question), PROMPT_WEIGHT, PROMPT),
            Part(self.encode(answer), ANSWER_WEIGHT, KIND[kind], True),
        ]

    def _restated(self, rng: Random, fact: tasks.Fact) -> list[Part]:
        return self._question(fact.restated(rng), fact.answer, "needle")

    def _hop_question(self, rng: Random, chain: tasks.Chain) -> list[Part]:
        way = rng.random()
        if way < 0.3:
            return self._question(chain.trace_question, chain.trace, "hop")
        start = 0 if way < 0.75 else rng.randrange(1, len(chain.links))
        return self._question(chain.question(start), chain.answer, "hop")

    def _haystack(self, rng: Random, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Text of at most `size` tokens and its cuts; nothing where `size` is small."""
        if size < 24:
            return np.zeros(0, np.uint16), np.zeros(0, np.int64)
        return self.texts.piece(rng, size)

    @staticmethod
    def _place(rng: Random, cuts: np.ndarray) -> int:
        """The front, or one of the cuts."""
        pick = rng.randrange(len(cuts) + 1)
        return int(cuts[pick - 1]) if pick else 0

    @staticmethod
    def _weave(ids: np.ndarray, events: list[tuple[int, int, list[Part]]]) -> list[Part]:
        """The text with the events' parts put in at their positions, in order."""
        out: list[Part] = []
        text, at = ids.tolist(), 0
        for place, _, parts in sorted(events, key=lambda e: (e[0], e[1])):
            if place > at:
                out.append(Part(text[at:place], 1.0, KIND["text"]))
                at = place
            out += parts
        if at < len(text):
            out.append(Part(text[at:], 1.0, KIND["text"]))
        return out

    @staticmethod
    def _cut(parts: list[Part], size: int) -> list[Part]:
        """The leading parts that fit whole into `size` tokens."""
        out, left = [], size
        for part in parts:
            if len(part.ids) > left:
                break
            left -= len(part.ids)
            out.append(part)
        return out

    def _copied(self, ids: list[int], skip: int = 0) -> list[Part]:
        """A repetition: `skip` tokens that cannot be foretold, then answers of COPY_SPAN tokens."""
        parts = [Part(ids[:skip], 0.0, PROMPT)] if skip else []
        for at in range(skip, len(ids), COPY_SPAN):
            parts.append(Part(ids[at : at + COPY_SPAN], COPY_WEIGHT, KIND["copy"], True))
        return parts

    def _random_copy(self, rng: Random, size: int) -> list[Part]:
        length = _log_uniform(rng, 6, max(6, min(512, size // 3)))
        few = [rng.randrange(3, self.encode.vocab) for _ in range(rng.choice((8, 64, 4096)))]
        ids = rng.choices(few, k=length) if len(few) < 4096 else few[:length]
        parts = [Part(ids, 0.0, PROMPT)]
        left = size - length
        while left >= length:
            gap = rng.random() < 0.4 and left > length + 40
            if gap:
                text = self._running(rng, rng.randrange(8, left - length))
                left -= len(text.ids)
                parts.append(text)
            parts += self._copied(ids, 2)
            left -= length
        return parts

    def _passage_copy(self, rng: Random, size: int) -> list[Part]:
        count = rng.randint(1, 3)
        each = max(16, min(400, (size - 60 * count) // (2 * count)))
        told: list[Part] = []
        copies: list[list[Part]] = []
        for _ in range(count):
            tag = tasks.draw_tag(rng)
            if rng.random() < 0.7:
                body = self.texts.piece(rng, _log_uniform(rng, 16, each))[0].tolist()
            else:
                body = [rng.randrange(3, self.encode.vocab) for _ in range(_log_uniform(rng, 8, min(each, 64)))]
            told.append(Part(self.encode(tasks.PASSAGE.format(tag=tag)), PROMPT_WEIGHT, PROMPT))
            told.append(Part(body, 0.5, PROMPT))
            told.append(Part(self.encode(tasks.PASSAGE_END.format(tag=tag)), PROMPT_WEIGHT, PROMPT))
            head = Part(self.encode(tasks.PASSAGE_COPY.format(tag=tag)), PROMPT_WEIGHT, PROMPT)
            end = Part(self.encode(tasks.PASSAGE_END.format(tag=tag)), 1.0, KIND["copy"])
            copies.append([head, *self._copied(body), end])
        rng.shuffle(copies)
        left = size - _length(told) - sum(_length(c) for c in copies)
        gap = [self._running(rng, rng.randrange(16, left))] if left > 32 else []
        return self._cut([*told, *gap, *(p for c in copies for p in c)], size)
