"""The attention shape of a model layer by layer: what plans, stores and predictions know of it, and files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import BeforeValidator

from headwise.errors import ShapeError
from headwise.schema import Count, Facts, Positive

Kind = Literal["attention", "latent", "reader", "state", "none"]


@dataclass(frozen=True)
class LayerGeometry:
    """The attention shape of one layer.

    kind: "attention" over keys and values by head; "latent", where all query heads share one vector a token, a key
    whose last value_width channels are its value (multi-head latent attention, absorbed); "reader", which attends over
    the keys and values that the layer `reads` stores (Gemma 3n), and stores none; "state", a layer that passes a state
    on in their place; "none", one that does neither. The last three have no KV heads and widths of 0: a plan says
    nothing of them, a reader follows what it says of the layer that it reads.
    state: numbers of a row that a layer passes on as its state, beside its attention or without any. exact: those of
    them that are known to be float32 whatever the model's type (a host's memories). window: keys that
    a query sees at most, itself included; None for all of them. chunked: the window does not slide, but begins anew
    every so many tokens, from the first on (Llama 4). sinks: whether each query head has a learned logit that joins its
    softmax. reads: of a reader, the number of that layer. How keys are rotated is measured and no part of the shape:
    see `Seam.ropes`.
    """

    query_heads: int
    kv_heads: int
    key_width: int
    value_width: int
    window: int | None = None
    chunked: bool = False
    sinks: bool = False
    kind: Kind = "attention"
    state: int = 0
    reads: int | None = None
    exact: int = 0

    def __post_init__(self) -> None:
        if (self.kind == "reader") != (self.reads is not None):
            raise ShapeError(f"a layer of kind '{self.kind}' that reads layer {self.reads}; readers alone read another")
        least = min(self.query_heads, self.kv_heads, self.key_width, self.value_width)
        if self.attends and (least < 1 or self.query_heads % self.kv_heads):
            raise ShapeError(
                f"a layer of {self.query_heads} query heads on {self.kv_heads} KV heads, keys {self.key_width} and "
                f"values {self.value_width} wide; all are 1 or more, query heads a multiple of KV heads"
            )
        if self.kind == "latent" and (self.kv_heads != 1 or self.value_width > self.key_width):
            raise ShapeError(
                f"a latent layer of {self.kv_heads} KV heads, keys {self.key_width} and values {self.value_width} "
                "wide; it has one KV head, whose values are channels of its keys"
            )
        if self.chunked and self.window is None:
            raise ShapeError("a layer that attends within chunks needs to know of how many tokens; give window")

    @property
    def attends(self) -> bool:
        """Whether the layer stores tokens and attends to them, so that a plan governs it."""
        return self.kind not in ("reader", "state", "none")

    @property
    def group(self) -> int:
        """Query heads per KV head, g; 0 where there are none."""
        return self.query_heads // max(1, self.kv_heads)

    @property
    def token_width(self) -> int:
        """Channels that a KV head holds of a token: its key's and its value's, where that is no part of the key."""
        return self.key_width if self.kind == "latent" else self.key_width + self.value_width


@dataclass(frozen=True)
class Geometry:
    """The attention shape of a model, all that plans and predictions need to know of it.

    `max_positions` is the context length the model was trained for.
    """

    layers: tuple[LayerGeometry, ...]
    max_positions: int

    def __post_init__(self) -> None:
        for number, layer in enumerate(self.layers):
            if layer.reads is not None and (layer.reads >= number or not self.layers[layer.reads].attends):
                raise ShapeError(
                    f"layer {number} reads layer {layer.reads}, which is none before it that stores tokens"
                )

    @classmethod
    def uniform(
        cls,
        query_heads: int,
        kv_heads: int,
        key_width: int,
        value_width: int,
        windows: Sequence[int | None],
        max_positions: int,
    ) -> Geometry:
        """Layers alike but for their windows, of which there is one each.

        >>> Geometry.uniform(8, 2, 64, 64, (None, 512), 4096).layers[1].window
        512
        """
        alike = LayerGeometry(query_heads, kv_heads, key_width, value_width)
        return cls(tuple(replace(alike, window=window) for window in windows), max_positions)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """By layer, the keys a query sees at most; None for all of them."""
        return tuple(layer.window for layer in self.layers)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        """KV heads by layer."""
        return tuple(layer.kv_heads for layer in self.layers)

    @property
    def attending(self) -> tuple[int, ...]:
        """The layers that attend to tokens, which a plan governs."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.attends)

    def readers(self, layer: int) -> frozenset[int]:
        """The layers that read what `layer` stores, beside itself."""
        return frozenset(number for number, one in enumerate(self.layers) if one.reads == layer)

    @property
    def lending(self) -> frozenset[int]:
        """The layers whose tokens others read too."""
        return frozenset(one.reads for one in self.layers if one.reads is not None)

    @property
    def reading(self) -> tuple[int, ...]:
        """The layers that read what another one stores."""
        return tuple(number for number, layer in enumerate(self.layers) if layer.reads is not None)

    @property
    def states(self) -> tuple[int, ...]:
        """By layer, numbers that a row passes on as the layer's state; 0 for none."""
        return tuple(layer.state for layer in self.layers)

    @property
    def by_head(self) -> tuple[int, int]:
        """Sizes [layers, KV heads] of what is held for every head of every layer. Where layers differ there is room for
        the most heads; places of heads that a layer does not have mean nothing."""
        return len(self.layers), max(self.kv_heads)

    @property
    def there(self) -> torch.Tensor:
        """Which places of `by_head` are heads, bool [layers, KV heads]."""
        layers, heads = self.by_head
        return torch.arange(heads).expand(layers, -1) < torch.tensor(self.kv_heads)[:, None]

    def gathered(self, by_layer: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """What each layer that attends says of its heads, [h, ...] by its number, as one tensor [layers, KV heads,
        ...]."""
        first = by_layer[self.attending[0]]
        out = first.new_zeros(*self.by_head, *first.shape[1:])
        for layer in self.attending:
            out[layer, : len(by_layer[layer])] = by_layer[layer]
        return out

    def size(self, letter: str) -> int:
        """What the letter d, e or g means in all layers that attend to everything. ShapeError where they differ."""
        of = {"d": "key_width", "e": "value_width", "g": "group"}[letter]
        full = [layer for layer in self.layers if layer.attends and layer.window is None] or self.layers
        found = {getattr(layer, of) for layer in full}
        if len(found) > 1:
            raise ShapeError(
                f"{letter} is {sorted(found)} in different layers that attend to everything, but what is calibrated "
                f"by {letter} is held for one size; leave it out for this model"
            )
        return int(found.pop())

    def dense_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Bytes of an uncompressed cache of `tokens` tokens, one sequence, all layers: keys, values and states."""
        numbers = [
            (tokens if layer.window is None else min(tokens, layer.window)) * layer.kv_heads * layer.token_width
            for layer in self.layers
        ]
        return sum(numbers) * dtype.itemsize + self.state_bytes(dtype)

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of the states of one sequence, of any length, where all that are not exact are held in `dtype`."""
        exact = sum(layer.exact for layer in self.layers)
        return (sum(self.states) - exact) * dtype.itemsize + exact * torch.float32.itemsize

    def describe(self) -> dict[str, Any]:
        """The geometry as plain JSON data, what `GeometryFacts` reads: of every size one number where all layers have
        the same, else a list by layer; windows always by layer; what no layer has is left out."""
        told: dict[str, Any] = {"layers": len(self.layers), "max_positions": self.max_positions}
        for one in fields(LayerGeometry):
            column = [getattr(layer, one.name) for layer in self.layers]
            if one.name == "window":
                told["windows"] = column
            elif set(column) != {one.default}:
                told[one.name] = column[0] if len(set(column)) == 1 else column
        return told


def layers_of(heads: Sequence[int]) -> str:
    """Numbers of heads by layer in words: "3 layers of 4", "3 layers of 2 or 4"."""
    return f"{len(heads)} layers of {' or '.join(str(count) for count in sorted(set(heads)))}"


def _column(said: Any) -> Any:
    """A value for all layers, or one for each, as a tuple."""
    return tuple(said) if isinstance(said, list | tuple) else (said,)


Said = TypeVar("Said")
ByLayer = Annotated[tuple[Said, ...], BeforeValidator(_column)]


class GeometryFacts(Facts):
    """What a file says of a geometry, see `Geometry.describe`."""

    layers: Positive
    query_heads: ByLayer[Count]
    kv_heads: ByLayer[Count]
    key_width: ByLayer[Count]
    value_width: ByLayer[Count]
    windows: tuple[Positive | None, ...]
    max_positions: Positive
    chunked: ByLayer[bool] = (False,)
    sinks: ByLayer[bool] = (False,)
    kind: ByLayer[Kind] = ("attention",)
    state: ByLayer[Count] = (0,)
    reads: ByLayer[Count | None] = (None,)
    exact: ByLayer[Count] = (0,)

    def geometry(self) -> Geometry:
        """The geometry; ShapeError where the numbers, each right alone, do not fit together."""
        names = [one.name for one in fields(LayerGeometry)]
        columns = {name: self.windows if name == "window" else getattr(self, name) for name in names}
        for name, column in columns.items():
            if len(column) != self.layers and (name == "window" or len(column) != 1):
                raise ShapeError(f"{name} is told of {len(column)} layers, there are {self.layers}; give one for each")
        by_layer = zip(*(column * (self.layers // len(column)) for column in columns.values()), strict=True)
        layers = tuple(LayerGeometry(**dict(zip(names, layer, strict=True))) for layer in by_layer)
        return Geometry(layers, self.max_positions)
