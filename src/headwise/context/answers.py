"""The answer to an arranged prompt, by greedy decoding: read as any prompt, or in pieces where it was arranged so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from headwise.attention.byproducts import column_mass, row_entropy
from headwise.bench.job import encode
from headwise.context.asked import Arranged, encoded, refuse_length
from headwise.context.layout import Layout, Pieces
from headwise.context.looks import over, read, refuse_window
from headwise.forms import Causal, Tokens, Where
from headwise.observe import LayerAttention
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import decode, end_tokens, forced, prefill


def answer(model: PreTrainedModel, tokenizer: Any, arranged: Arranged, max_new_tokens: int = 32) -> str:
    """What the model writes after an arranged prompt, up to the end of its line or of what it has to say."""
    parts = _parts(model, tokenizer, arranged, max_new_tokens)
    ids = torch.cat(parts, dim=1)

    def ended(new: list[int]) -> bool:
        return "\n" in tokenizer.decode(new).lstrip()

    if arranged.pieces is None:
        cache = Cache(model)
        logits = prefill(model, cache, ids.to(model.device))
        new: list[int] = decode(model, cache, logits, max_new_tokens, ended)[0].tolist()
    else:
        reader = _reader(model, arranged.pieces, parts)
        new, logits = [], reader.read(ids)
        while len(new) < max_new_tokens:
            new.append(int(logits.argmax(-1)))
            if new[-1] in end_tokens(model) or ended(new) or len(new) == max_new_tokens:
                break
            logits = reader.go_on(new[-1])
    text: str = tokenizer.decode(new, skip_special_tokens=True)
    return text.strip().partition("\n")[0].strip()


def says(model: PreTrainedModel, tokenizer: Any, arranged: Arranged, text: str) -> bool:
    """Whether greedy decoding after an arranged prompt writes just this text next, at the price of one more pass and
    not of one a token."""
    wanted = encode(tokenizer, text)
    parts = _parts(model, tokenizer, arranged, wanted.shape[1])
    ids = torch.cat(parts, dim=1)
    if arranged.pieces is None:
        cache = Cache(model)
        first = prefill(model, cache, ids.to(model.device))
        logits = torch.cat((first, *forced(model, cache, wanted[:, :-1].to(model.device))))
    else:
        reader = _reader(model, arranged.pieces, parts)
        logits = torch.cat((reader.read(ids), *(reader.go_on(token) for token in wanted[0, :-1].tolist())))
    return torch.equal(logits.argmax(-1).cpu(), wanted[0])


def _parts(model: PreTrainedModel, tokenizer: Any, arranged: Arranged, new_tokens: int) -> list[torch.Tensor]:
    """The ids [1, n] of the pieces of an arranged prompt, refused where it has no room with what follows."""
    parts = encoded(tokenizer, arranged.wording, arranged.documents, arranged.question)
    refuse_length(model, sum(part.shape[1] for part in parts) + new_tokens)
    return parts


def _reader(model: PreTrainedModel, pieces: Pieces, parts: list[torch.Tensor]) -> PieceReader:
    return PieceReader(model, pieces.layout([part.shape[1] for part in parts]), pieces.top)


@dataclass(eq=False)
class PieceReader:
    """Reads a prompt in pieces and goes on after it, with all keys and values held as they are.

    top: pieces of most attention that the tail sees; 0: all. entropy: where it is a list, it is given the mean entropy
    of the attention of the tail's tokens, in nats, layer after layer, as the prompt is read.
    """

    model: PreTrainedModel
    layout: Layout
    top: int = 0
    entropy: list[float] | None = None
    held: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    written: int = 0

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits [1, vocabulary] after the prompt `ids [1, n]`."""
        self.held.clear()
        self.written = 0
        return read(self.model, ids, self._prompt, self.layout.positions)

    def go_on(self, token: int) -> torch.Tensor:
        """The logits [1, vocabulary] after one more token."""
        place = int(self.layout.positions[-1]) + 1 + self.written
        self.written += 1
        return read(self.model, torch.tensor([[token]]), self._step, torch.tensor([place]))

    def _prompt(self, one: LayerAttention) -> torch.Tensor:
        refuse_window(one, int(self.layout.positions.max()) + 1)
        self.held[one.layer] = (one.k, one.v)
        start = self.layout.start
        before = LayerAttention(one.layer, one.q, one.k[:, :, :start], one.v[:, :, :start], one.scoring)
        q = one.q[:, :, start:]
        where = self._seen(one, q)
        if self.entropy is not None:
            grouped = q[0].unflatten(0, (one.k.shape[1], -1))
            self.entropy.append(float(row_entropy(grouped, one.k[0], where, one.scoring).mean()))
        return torch.cat((over(before, one.q[:, :, :start], self.layout.context), over(one, q, where)), dim=2)

    def _step(self, one: LayerAttention) -> torch.Tensor:
        k, v = (torch.cat(pair, dim=2) for pair in zip(self.held[one.layer], (one.k, one.v), strict=True))
        self.held[one.layer] = (k, v)
        whole = LayerAttention(one.layer, one.q, k, v, one.scoring)
        return over(whole, one.q, self._seen(whole, one.q))

    def _seen(self, one: LayerAttention, q: torch.Tensor) -> Where:
        """What queries at the end see: all, or by KV head the pieces of most of their attention, beside what is no
        piece."""
        if not self.top:
            return Causal()
        count, edges = one.k.shape[2], self.layout.edges
        mass = column_mass(q[0].unflatten(0, (one.k.shape[1], -1)), one.k[0], Causal(), one.scoring)
        of_piece = torch.stack([mass[:, first:last].sum(1) for first, last in edges], dim=1)
        around = torch.ones(count, dtype=torch.bool)
        around[self.layout.prefix : self.layout.start] = False
        lists = []
        for chosen in of_piece.topk(self.top, dim=1).indices.tolist():
            seen = around.clone()
            for piece in chosen:
                seen[slice(*edges[piece])] = True
            lists.append(seen.nonzero()[:, 0].to(q.device))
        return Tokens(lists)
