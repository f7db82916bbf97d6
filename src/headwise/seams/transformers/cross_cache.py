"""A cache of cross-attention: what an encoder made of its input, by a plan of its own."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from headwise.engine.across import read_across, take_across, to_the_left
from headwise.engine.announced import passed_in
from headwise.engine.rows import select_rows
from headwise.engine.session import Session
from headwise.errors import SessionError
from headwise.plan import Plan
from headwise.seams.transformers.answers import Answers, Layer
from headwise.seams.transformers.cross_keys import cross_keys
from headwise.seams.transformers.probe import Asked, Seam
from headwise.shapes import check_seed


class CrossLayer(Layer):
    """One layer of a CrossCache as transformers looks at it."""

    cache: CrossCache

    def __init__(self, cache: CrossCache, layer: int) -> None:
        super().__init__(cache, None)
        self.layer = layer

    @property
    def keys(self) -> torch.Tensor:  # type: ignore[override]
        """A place holder that names the cache; what is kept lies by head."""
        return self.cache.place_holder(self.layer)

    @property
    def values(self) -> torch.Tensor:  # type: ignore[override]
        """The same, which nobody looks at."""
        return self.cache.place_holder(self.layer)


class CrossCache(Answers, transformers.Cache):  # type: ignore[misc]
    """What an encoder made of its input, by a plan of its own: stored, evicted and compressed once, when the decoder's
    first tokens have read it, and only read from then on."""

    def __init__(self, seam: Seam, plan: Plan, *, seed: int = 0) -> None:
        check_seed(seed)
        self.seam, self.plan, self.seed = seam, plan, seed
        self.windows = (None,) * len(plan.geometry.layers)
        self.session: Session | None = None
        self.whole = False  # whether a forward over it has succeeded

    @property
    def layers(self) -> list[Layer]:  # type: ignore[override]
        """The layers, made when asked for."""
        return [CrossLayer(self, layer) for layer in range(len(self))]

    def get_seq_length(self, layer_idx: int = 0, cache_position: Any = None) -> int:
        """Columns of the encoder's input, padding included, once this layer has them."""
        return 0 if self.session is None else passed_in(self.session, layer_idx)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the encoder's keys [b, h, n, d] and values of a layer, which its attention stores right after."""
        if self.get_seq_length(layer_idx):
            raise SessionError(
                "the cache holds what another input was read to; make a new headwise.EncoderDecoderCache for this one"
            )
        return cross_keys(key_states, self, layer_idx), value_states

    def place_holder(self, layer: int) -> torch.Tensor:
        """In the place of a layer's keys [b, h, n, d]."""
        own = self.plan.geometry.layers[layer]
        if self.session is None or not self.get_seq_length(layer):
            raise SessionError(f"layer {layer} of the encoder's cache is empty; run the model's encoder first")
        nothing = torch.full((), torch.nan, dtype=self.session.dtype, device=self.session.device)
        size = self.session.rows, own.kv_heads, self.session.passed, own.key_width
        return cross_keys(nothing.expand(size), self, layer)

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, live: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """As in `Holder`."""
        if self.session is not None and self.get_seq_length(layer):
            _refuse_other_input(self.session, len(q), live)
            return read_across(self.session, layer, q, asked.scoring)
        if self.session is None:
            session = Session(self.plan, rows=len(k), dtype=k.dtype, device=k.device, seed=self.seed)
            here = None if live is None else live.sort(dim=1).values
            session.begin(k.shape[2], "prefill", here, undo=False)
            self.session = session
        if live is not None:
            k, v = to_the_left(k, live), to_the_left(v, live)
        return take_across(self.session, layer, q, k, v, asked.scoring)

    def succeeded(self) -> None:
        """A forward over this cache has succeeded."""
        self.whole = self.session is not None

    def abort(self) -> None:
        """After an error in a forward: what its first one stored is forgotten; later ones store nothing."""
        if not self.whole:
            self.session = None

    def reset(self) -> None:
        """Forget everything; the plan stays."""
        self.session, self.whole = None, False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let row i go on as a copy of what row beam_idx[i] was."""
        if self.session is None:
            raise SessionError("the encoder's cache is empty; there are no rows to reorder")
        select_rows(self.session, beam_idx.tolist())

    def fork(self) -> CrossCache:
        """An independent copy."""
        other = CrossCache(self.seam, self.plan, seed=self.seed)
        other.session, other.whole = None if self.session is None else self.session.fork(), self.whole
        return other

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return 0 if self.session is None else self.session.nbytes()


def _refuse_other_input(session: Session, rows: int, live: torch.Tensor | None) -> None:
    """Refuse queries of other rows, or over another padding, than the encoder's keys came with."""
    counts = [session.passed] * rows if live is None else live.sum(1).tolist()
    if counts != session.seen:
        raise SessionError(
            f"the encoder's attention_mask leaves {counts} tokens, but {session.seen} were stored; give the mask and "
            "the rows that the encoder's keys came with"
        )
