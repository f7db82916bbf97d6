"""What a store holds, plane by plane, and how many bytes tokens take in it before any is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from headwise.cache.codecs import codec
from headwise.cache.codecs.channels import Channels
from headwise.cache.codecs.lowrank import LowRank
from headwise.cache.codecs.sharing import sharing
from headwise.cache.pages import PAGE, Layout, pages_for
from headwise.shapes import Rope

SIDES = ("key.", "value.")  # how the names of the planes of keys and of values begin


@dataclass(frozen=True)
class Shape:
    """What a store holds: `lanes` (batch rows x KV heads) of vectors in `dtype`.

    `codecs` write the keys and the values; a single one the keys, where values are their last channels and do not lie
    by themselves (latent attention).

    `with_mass` adds one float32 per token for attention mass accumulated over the queries so far, `notes` as many as an
    eviction method writes down about each token. `rope` is how keys were turned, for codecs that undo it. `rows`: batch
    rows, whose lanes lie one after the other.
    """

    lanes: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    codecs: tuple[str, ...] = ("plain", "plain")
    with_mass: bool = False
    notes: int = 0
    rope: Rope | None = None
    rows: int = 1

    @property
    def heads(self) -> int:
        """Lanes of a batch row."""
        return self.lanes // self.rows

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of what each of the codecs writes."""
        return (self.key_width, self.value_width)[: len(self.codecs)]

    @property
    def skip(self) -> int | None:
        """Channels of a key before its value, where values are parts of keys; None where they lie by themselves."""
        return self.key_width - self.value_width if len(self.codecs) == 1 else None

    @property
    def layout(self) -> Layout:
        """Planes of a token: encoded key, encoded value, position, and mass and notes where they are asked for."""
        planes: Layout = {}
        for side, name, width in zip(SIDES, self.codecs, self.widths, strict=False):
            planes |= {f"{side}{own}": plane for own, plane in codec(name).planes(width, self.dtype).items()}
        planes["position"] = (1, torch.int32)
        return planes | self.extras

    @property
    def extras(self) -> Layout:
        """Planes of what is remembered of a token besides itself; 0 for a new one."""
        widths = {"mass": int(self.with_mass), "notes": self.notes}
        return {name: (width, torch.float32) for name, width in widths.items() if width}

    def nbytes(self, counts: Sequence[int]) -> int:
        """Bytes that lanes of `counts` tokens take, whole pages, with what groups of tokens share."""
        token = sum(width * dtype.itemsize for width, dtype in self.layout.values())
        total = sum(pages_for(count) for count in counts) * PAGE * token
        for name, width in zip(self.codecs, self.widths, strict=True):
            if (shared := sharing(name)) is not None:
                total += sum(shared.shared_bytes(width, self.dtype, count) for count in counts)
        return total

    def accepted(self, count: int, held: int = 0) -> int:
        """How many of `count` tokens a lane that holds `held` here takes over from a finer level: whole groups where
        groups share numbers; none where a basis for all would take more than it saves, and any once it is there."""
        kinds = [shared for name in self.codecs if (shared := sharing(name)) is not None]
        if any(isinstance(one, LowRank) for one in kinds):
            dense = replace(self, codecs=("plain",) * len(self.codecs))
            # both levels may end in a page that is not full
            pays = held > 0 or self.nbytes([count]) < dense.nbytes([max(0, count - PAGE)])
            return count if pays else 0
        whole = max((one.tokens for one in kinds if isinstance(one, Channels)), default=1)
        return count // whole * whole
