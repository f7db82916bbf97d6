"""What a recipe makes of one document: which answers are right, and what it held, computed and read for them.

An answer is right when greedy decoding would write it: when each of its tokens is the likeliest one after the true ones
before it. One forward of question and answer tells that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from headwise.claims.claim import Asked
from headwise.claims.hosts import Document, Stage
from headwise.engine.chosen import Chosen, watching
from headwise.forms.where import causal_pairs
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import forced, forced_rows, prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.replay import Call, Recorder, Recording, open_prompt, read_once, replay


@dataclass(frozen=True)
class Measured:
    """right: for every question. costs: shares of what dense attention takes, by what they are of; bytes when answers
    have been said. text: of a document
    whose true continuation is known, nats of its tokens, nats from dense attention's distribution to this one (KL), and
    the share of tokens where both have the same likeliest one; means."""

    right: tuple[bool, ...]
    costs: dict[str, float]
    text: dict[str, float] = field(default_factory=dict)


class Examiner:
    """Asks about one document in one way; what dense attention reads is read once for all recipes."""

    def __init__(self, stage: Stage, document: Document, asked: Asked) -> None:
        self.stage, self.document, self.asked = stage, document, asked
        self.model = stage.model
        self._dense: torch.Tensor | None = None  # of the continuation
        self._recording: Recording | None = None if asked == "along" else read_once(self.model, document.ids)

    def measure(self, plan: Plan) -> Measured:
        """What the recipes of `plan` make of the document."""
        return {"after": self._after, "before": self._before, "along": self._along}[self.asked](plan)

    def _cache(self, plan: Plan) -> Cache:
        return Cache(self.model, plan, marks=self.document.marks)

    def _after(self, plan: Plan) -> Measured:
        cache = self._cache(plan)
        open_prompt(self.model, cache, self.document.ids, self._recording)
        asked, spared, said = cache.fork(), Spared(), list[torch.Tensor]()
        rows = [torch.cat((question, answer[:, :-1]), 1) for question, answer in self.document.asks]
        if rows:
            with watching(spared.note):
                said = forced_rows(self.model, asked, rows)
        for row in rows:
            spared.add(plan, self.document.ids.shape[1], row.shape[1])
        right = [_is_said(logits[-answer.shape[1] :], answer)
                 for logits, (_, answer) in zip(said, self.document.asks, strict=True)]  # fmt: skip
        costs = {"bytes held": _held(asked), "tokens read": spared.share}
        return Measured(tuple(right), costs, self._text(cache))

    def _text(self, cache: Cache) -> dict[str, float]:
        """How a cache goes on with the document's true continuation, beside dense attention."""
        after = self.document.after
        if after is None:
            return {}
        said = self._continued(cache, after)
        if self._dense is None:
            plain = Cache(self.model, "")
            open_prompt(self.model, plain, self.document.ids, self._recording)
            self._dense = self._continued(plain, after)
        dense = self._dense
        nats = -said.gather(-1, after[0, 1:, None]).mean()
        kl = (dense.exp() * (dense - said)).sum(-1).mean()
        agree = (said.argmax(-1) == dense.argmax(-1)).float().mean()
        return {"nats": float(nats), "kl": float(kl), "top1": float(agree)}

    def _continued(self, cache: Cache, after: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [m - 1, vocab] of the tokens that come after each of `after [1, m]`."""
        logits = torch.cat(list(forced(self.model, cache.fork(), after[:, :-1])))
        return logits.float().log_softmax(-1)

    def _before(self, plan: Plan) -> Measured:
        right, held = [], 0.0
        for question, answer in self.document.asks:
            cache, ids = self._cache(plan), torch.cat((self.document.ids, question), 1)
            logits = open_prompt(self.model, cache, ids, self._with(question))
            held += _held(cache) / len(self.document.asks)
            said = torch.cat((logits, *forced(self.model, cache, answer[:, :-1])))
            right.append(_is_said(said, answer))
        return Measured(tuple(right), {"bytes held": held})

    def _along(self, plan: Plan) -> Measured:
        pieces = [self.document.ids, *(part for ask in self.document.asks for part in ask)]
        ids, spared = torch.cat(pieces, 1), Spared()
        ends = torch.tensor([piece.shape[1] for piece in pieces]).cumsum(0).tolist()
        places = [range(end - answer.shape[1] - 1, end - 1) for end, (_, answer) in
                  zip(ends[2::2], self.document.asks, strict=True)]  # fmt: skip
        cache = self._cache(plan)
        with cache.prompt(ids.shape[1]), torch.no_grad(), watching(spared.note):
            wanted = torch.tensor([at for place in places for at in place])
            logits = forward(self.model, cache, ids, logits_to_keep=wanted).logits[0]
        spared.add(plan, 0, ids.shape[1])
        said = logits.split([len(place) for place in places])
        right = tuple(_is_said(one, answer) for one, (_, answer) in zip(said, self.document.asks, strict=True))
        return Measured(right, {"bytes held": _held(cache), "pairs": spared.share})

    def _with(self, question: torch.Tensor) -> Recording:
        """Of document and question as one prompt: the document's own, and the question read after it."""
        assert self._recording is not None
        recorder = Recorder(self.model)
        replay(self.model, self._recording, recorder)
        logits = prefill(self.model, recorder, question, None)
        ids = torch.cat((self.document.ids, question), 1)
        calls = tuple(map(_joined, self._recording.calls, recorder.calls))
        return Recording(ids, calls, logits, recorder.states.fork())


class Spared:
    """Counts (query, key) pairs: all that dense attention would read, and those that were not read."""

    def __init__(self) -> None:
        self.all, self.left_out = 0.0, 0.0

    def note(self, chosen: Chosen) -> None:
        """A layer read what it chose."""
        possible = causal_pairs(chosen.queries, chosen.keys)
        self.left_out += (possible - chosen.where.visible_pairs(chosen.queries, chosen.keys)) * chosen.heads

    def add(self, plan: Plan, before: int, queries: int) -> None:
        """Dense attention would have read `queries`, after `before` other tokens, in every layer that reads all."""
        heads = sum(one.query_heads for one in plan.geometry.layers if one.window is None)
        self.all += causal_pairs(queries, before + queries) * heads

    @property
    def share(self) -> float:
        """Of the pairs of dense attention, those that were read."""
        return 1 - self.left_out / self.all if self.all else 1.0


def _held(cache: Cache) -> float:
    """Bytes held now, of those that a dense cache would hold."""
    session = cache.session
    assert session is not None, "a prompt was read"
    return session.nbytes() / session.dense_bytes()


def _is_said(logits: torch.Tensor, answer: torch.Tensor) -> bool:
    """Whether logits [k, vocab] say answer [1, k]."""
    return torch.equal(logits.argmax(-1), answer[0])


def _joined(before: Call, after: Call) -> Call:
    """One call of the tokens of both."""
    q, k, v, out = (torch.cat((getattr(before, x), getattr(after, x)), 2) for x in ("q", "k", "v", "out"))
    return replace(after, q=q, k=k, v=v, out=out)
