"""Keys and values of a head as a few coefficients over directions of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.errors import HeadwiseError
from headwise.methods.compress import Compress, Pair
from headwise.methods.rounding import plain_asymmetric, plain_symmetric
from headwise.registry import Card, register

INNER = {16: "plain", 8: "int8", 4: "int4/128"}
PAGE = 16  # tokens; memory is taken by whole pages


@register("compress", "low_rank")
@dataclass(frozen=True)
class LowRank(Compress):
    """The strongest singular directions of the prompt's keys and values, by KV head, and each token's part in them.

    key, value: directions, as a share of the head's width; 1 leaves keys or values as they are.
    bits: of a coefficient, 16 (in the cache's own type), 8 or 4.
    keys: projected as they were before the rotary embedding, which is applied again at reading ("unrotated"), or after.
    window: most recent tokens left as they are; up to 64 decode steps more.
    """

    key: float = 0.5
    value: float = 0.75
    bits: int = 16
    keys: str = "unrotated"
    window: int = 32

    card = Card(
        title="Low rank by head",
        paper="SVDq: 1.25-bit and 410x Key Cache Compression for LLM Attention, arXiv 2502.15304; keys before the "
        "rotary embedding as in ShadowKV, arXiv 2410.21465",
        frees_memory=True,
        chunking="approximate",
        forgets="what lies outside the strongest directions of a head's prompt",
        deviations="equal bits for all directions, evened out before rounding, instead of more bits for strong ones; "
        "values are projected like keys; directions are fitted to the first tokens that are projected (to the first "
        "chunk of a prompt in chunks); keys are taken as they are where the rotation is not known",
    )

    def __post_init__(self) -> None:
        if not 0 < min(self.key, self.value) < 1 or max(self.key, self.value) > 1:
            raise HeadwiseError(
                f"key and value must be above 0 and at most 1, and one of them below 1, got {self.key} and {self.value}"
            )
        if self.bits not in INNER:
            raise HeadwiseError(f"bits must be 16, 8 or 4, got {self.bits}")
        if self.keys not in ("unrotated", "rotated"):
            raise HeadwiseError(f"keys must be 'unrotated' or 'rotated', got {self.keys!r}")
        if self.window < 0:
            raise HeadwiseError(f"window must be 0 or more tokens, got {self.window}")

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, then projected."""
        inner = INNER[self.bits]
        key = f"{'unrotated' if self.keys == 'unrotated' else 'lowrank'}{self.key}/{inner}"
        value = f"lowrank{self.value}/{inner}"
        return ("plain", "plain"), (key if self.key < 1 else "plain", value if self.value < 1 else "plain")

    def _rank(self, share: float, width: int) -> int:
        """Directions of vectors of `width` channels, an even number."""
        return max(2, 2 * round(share * width / 2)) if share < 1 else width

    def level(self, view: View) -> torch.Tensor:
        """1 [h, n] for what the window has passed; the cache refuses where that would take more than it saves."""
        return (view.positions < view.seen - self.window).long()

    def split(self, settled: int, later: int) -> tuple[int, ...]:
        """All beyond the window."""
        passed = max(0, settled - self.window)
        return settled - passed + later, passed

    def plain(self, view: View) -> Pair:
        """The projection by a singular value decomposition in float64, one head at a time."""
        keys, values = view.keys.clone(), view.values.clone()
        for head, due in enumerate(view.positions < view.seen - self.window):
            positions = view.positions[head, due]
            if not self._pays(len(positions), keys.shape[2], values.shape[2], keys.dtype.itemsize):
                continue
            turn = view.rope if self.keys == "unrotated" else None
            own = keys[head, due] if turn is None else turn.unrotate(keys[head, due], positions)
            own = self._plain(own, self.key)
            keys[head, due] = own if turn is None else turn.rotate(own, positions)
            values[head, due] = self._plain(values[head, due], self.value)
        return keys, values

    def _pays(self, count: int, key_width: int, value_width: int, size: int) -> bool:
        """Whether the bytes of `count` tokens, directions included, are fewer than they were in elements of `size`."""
        pages, took, takes = -(-count // PAGE), 0, 0
        for share, width in ((self.key, key_width), (self.value, value_width)):
            rank, took = self._rank(share, width), took + width * size
            rounded = {16: rank * size, 8: rank + 2, 4: rank // 2 + 4 * -(-rank // 128)}
            takes += pages * PAGE * (rounded[self.bits] if share < 1 else width * size)
            takes += width * rank * size if share < 1 else 0
        position = 4
        return takes + pages * PAGE * position < (-(-max(0, count - PAGE) // PAGE)) * PAGE * (took + position)

    def _plain(self, vectors: torch.Tensor, share: float) -> torch.Tensor:
        if share == 1:
            return vectors
        _, sizes, directions = torch.linalg.svd(vectors.double(), full_matrices=False)
        basis = directions[: self._rank(share, vectors.shape[1])].T
        basis = basis * basis.gather(0, basis.abs().argmax(0)[None]).sign()
        basis = (basis * (sizes[: basis.shape[1]] / len(vectors) ** 0.5).sqrt()).to(vectors.dtype).double()
        coefficients = (vectors.double() @ basis / basis.square().sum(0)).to(vectors.dtype)
        if self.bits == 8:
            coefficients = plain_symmetric(coefficients[None])[0]
        if self.bits == 4:
            coefficients = torch.tensor([plain_asymmetric(row, 4) for row in coefficients.double().tolist()])
        return (coefficients.double() @ basis.T).to(vectors.dtype)
