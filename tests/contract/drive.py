"""What the contract tests share: random texts, sessions run over them, and small and full recipes of every method.

A new method needs no edit here: its recipes are made from its class, with the knobs of `SMALL` where it has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch

from headwise.engine.rehearsal import evict_waiting, listen, passages
from headwise.engine.session import Session
from headwise.forms import Scoring, Sinks
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.registry import PARTS, all_methods

SCALE = 0.25

# Values at which a method has something to do on a hundred tokens.
SMALL = {
    "budget": 0.3,
    "sinks": 2,
    "recent": 6,
    "window": 8,
    "skip_layers": 0,
    "verticals": 8,
    "slashes": 16,
    "last": 16,
    "first": 2,
    "nearest": 4,
    "blocks": 2,
    "size": 16,
    "memory": 16,
    "four": 32,
    "future": 32,
    "stride": 8,
    "gap": 8,
    "local": 1,
    "drawn": 1,
    "least": 16,
    "mass": 0.2,
    "keep": 32,
    "channels": 0.25,
    "every": 3,
    "share": 0.2,
    "threshold": 0.5,
    "alike": 0.1,
    "lag": 16,
    "piece": 40,
    "alpha": 0.02,
}
COMBINED = (
    "vertical_slash(8, slashes=16, first=2, nearest=4) | snapkv(0.3, sinks=2, recent=6, window=8) | ada | int8 | "
    "exact_topk(16, sinks=2, recent=4)",
    "h2o(0.3, sinks=2, recent=6) | pyramid(2) | quest(16, sinks=0, recent=0, skip_layers=0)",
    "a_shape(4, window=32) | keydiff(24, sinks=2, recent=6) | int8",
    "h2o(0.4, sinks=2, recent=6) | kivi(window=8, group=16)",
    "h2o(0.5, sinks=2, recent=6) | ada | zipvl_bits(0.3, last=16, drawn=4, memory=8, group=16)",
    "snapkv(0.7, sinks=2, recent=6, window=8) | low_rank(window=8)",
    "long_heads(24, sinks=2, recent=6, size=8, positions='compact')",
    "h2o(0.4, sinks=2, recent=6) | int8 | token_select(24, sinks=2, recent=6, positions='compact')",
    "extended_mind(2, sinks=2, recent=6, positions='fixed')",
)


def scoring(shape: Geometry, layer: int) -> Scoring:
    """How a layer scores: where it has sinks, by logits around what all keys have together, others in each head."""
    own = shape.layers[layer]
    if not own.sinks:
        return Scoring(SCALE)
    return Scoring(SCALE, sinks=Sinks(torch.linspace(2.0, 6.0, own.query_heads).view(own.kv_heads, -1) + layer))


def geometry(query_heads: int = 4, kv_heads: int = 2, windows: Sequence[int | None] = (None, None)) -> Geometry:
    """A model of two layers (one per entry of `windows`) whose keys and values differ in width."""
    return Geometry.uniform(query_heads, kv_heads, 32, 16, tuple(windows), 4096)


def recipe_of(name: str, knobs: dict[str, object]) -> Recipe:
    cls = all_methods()[name]
    own = {field.name for field in fields(cls)}
    parts = {cls.part: cls(**{knob: value for knob, value in knobs.items() if knob in own})}
    if cls.part == "budget":
        parts["evict"] = recipe_of("snapkv", knobs).evict
    return Recipe(**parts)


def small(name: str) -> Recipe:
    """A recipe that makes the method called `name` (or the sentence `name`) leave tokens out at 100 tokens."""
    return recipe_of(name, SMALL) if name in all_methods() else Recipe.parse(name)


def full(name: str) -> Recipe:
    """A recipe with the method called `name` at a budget that covers everything at 100 tokens."""
    return recipe_of(name, {"budget": 1.0})


def names(*parts: str) -> list[str]:
    """Names of the registered methods of these parts; by default of all but steering, which changes what dense
    attention would read and has laws of its own, in `tests/contract/steer`."""
    return [name for name, cls in all_methods().items() if cls.part in (parts or PARTS[:-1])]


def everything() -> list[str]:
    """Every registered method and the combined sentences."""
    return [*names(), *COMBINED]


@dataclass(frozen=True)
class Text:
    """Queries, keys and values of all layers: q [L, b, H, T, d], k [L, b, h, T, d], v [L, b, h, T, e]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    @classmethod
    def random(
        cls, shape: Geometry, tokens: int, rows: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> Text:
        """Gaussian vectors around a mean per head, so that queries attend unevenly."""
        generator, alike, layers = torch.Generator().manual_seed(seed), shape.layers[0], len(shape.layers)

        def draw(heads: int, width: int) -> torch.Tensor:
            around = torch.randn(layers, rows, heads, 1, width, generator=generator)
            return torch.randn(layers, rows, heads, tokens, width, generator=generator) + around / 2

        q, k = draw(alike.query_heads, alike.key_width), draw(alike.kv_heads, alike.key_width)
        return cls(q.to(dtype), k.to(dtype), draw(alike.kv_heads, alike.value_width).to(dtype))

    def rows(self, index: Sequence[int]) -> Text:
        """Some rows of the batch."""
        return Text(*(x[:, list(index)] for x in (self.q, self.k, self.v)))

    def since(self, start: int) -> Text:
        """The text without its first `start` tokens."""
        return Text(*(x[..., start:, :] for x in (self.q, self.k, self.v)))

    def heads(self, order: Sequence[int]) -> Text:
        """KV heads in another order, each with its query group."""
        groups = self.q.unflatten(2, (self.k.shape[2], -1))[:, :, list(order)].flatten(2, 3)
        return Text(groups, self.k[:, :, list(order)], self.v[:, :, list(order)])


def feed(
    session: Session,
    text: Text,
    start: int,
    count: int,
    phase: str,
    *,
    total: int | None = None,
    live: torch.Tensor | None = None,
    undo: bool = True,
) -> torch.Tensor:
    """One step of all layers over tokens start..start+count-1, as a forward pass that succeeds: [L, b, H, count, e]."""
    session.begin(count, phase, live=live, total=total, undo=undo, ids=columns(session.rows, start, count))
    outs = list(layer_by_layer(session, text, start, count))
    rehearse(session, text)
    session.commit()
    return torch.stack(outs)


def columns(rows: int, start: int, count: int) -> torch.Tensor:
    """Token ids [rows, count] for tokens start..start+count-1 of a text: where in it they stand."""
    return torch.arange(start, start + count).expand(rows, -1)


def rehearse(session: Session, text: Text) -> None:
    """Read again what evictions wait for, as a model does: the query, key and value of each token are those that it
    first had, found by its id, see `columns`."""
    for passage in passages(session):
        for layer in range(len(session.plan.geometry.layers)):
            q, k, v = (
                torch.stack([x[layer, row][:, ids.to(x.device) % x.shape[3]] for row, ids in enumerate(passage.ids)])
                for x in (text.q, text.k, text.v)
            )
            listen(session, passage, layer, q, k, v, scoring(session.plan.geometry, layer))
    evict_waiting(session)


def layer_by_layer(session: Session, text: Text, start: int, count: int) -> Iterator[torch.Tensor]:
    """The announced step over tokens start..start+count-1, one layer at a time: [b, H, count, e]."""
    for layer in range(len(session.plan.geometry.layers)):
        q, k, v = (x[layer, :, :, start : start + count] for x in (text.q, text.k, text.v))
        yield session.step(layer, q, k, v, scoring(session.plan.geometry, layer))


def prefill(session: Session, text: Text, chunks: Iterable[int]) -> torch.Tensor:
    """The prompt in chunks of these sizes, announced with its final length: [L, b, H, sum, e]. Not taken back,
    as in `headwise.seams.transformers.drive.prefill` of an empty cache."""
    sizes = list(chunks)
    outs, start = [], 0
    for size in sizes:
        outs.append(feed(session, text, start, size, "prefill", total=sum(sizes), undo=False))
        start += size
    return torch.cat(outs, dim=3)


def decode(session: Session, text: Text, start: int, steps: int) -> torch.Tensor:
    """`steps` single tokens from `start` on: [L, b, H, steps, e]."""
    return torch.cat([feed(session, text, start + i, 1, "decode") for i in range(steps)], dim=3)


def run(
    shape: Geometry, recipe: Recipe, text: Text, chunks: Iterable[int], steps: int, **how: object
) -> tuple[Session, torch.Tensor]:
    """A new session over a prompt in chunks and `steps` new tokens, with all it put out [L, b, H, T, e]."""
    sizes = list(chunks)
    session = Session(Plan.uniform(shape, recipe), rows=text.q.shape[1], dtype=text.q.dtype, **how)
    outs = [prefill(session, text, sizes)]
    if steps:
        outs.append(decode(session, text, sum(sizes), steps))
    return session, torch.cat(outs, dim=3)


def kept(session: Session) -> list[list[list[list[int]]]]:
    """Positions stored, by layer, row and KV head."""
    rows = range(session.rows)
    return [
        [[session.positions(layer, row, head).tolist() for head in range(heads)] for row in rows]
        for layer, heads in enumerate(session.plan.geometry.kv_heads)
    ]
