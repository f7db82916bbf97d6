"""A second look at the newest token of a cache: the model runs over it once more, otherwise, and nothing is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

import torch

from headwise.cache.states import States
from headwise.engine.aside import read_aside, refuse_aside
from headwise.engine.session import Session
from headwise.errors import HeadwiseError, SessionError
from headwise.geometry import Geometry
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked

Head = tuple[int, int]  # layer and query head


def check_heads(geometry: Geometry, heads: Collection[Head]) -> None:
    """Refuse heads that the model does not have."""
    for layer, head in heads:
        if not 0 <= layer < len(geometry.layers):
            raise HeadwiseError(f"head {layer}.{head}: the model has layers 0 to {len(geometry.layers) - 1}")
        if not 0 <= head < (count := geometry.layers[layer].query_heads):
            raise HeadwiseError(f"head {layer}.{head}: layer {layer} has query heads 0 to {count - 1}")


class Beside(Door):
    """What the newest token of each row of `cache` reads in a second look. Its keys and values are computed anew, as it
    stands at its own place; those of the tokens before it are the cache's, which nothing is added to.

    masked: heads (layer, query head) whose output is zero. hidden: by layer, a bool mask [b, passed] of true positions
    that get no attention there; the newest token itself is always seen. raised: by layer, what is added to the scores
    of true positions, float32 [b, H, passed]. queries: what the look has noted, by layer: the
    query [b, H, 1, d] and how it scores.
    """

    def __init__(
        self,
        cache: Cache,
        masked: Collection[Head] = (),
        hidden: Mapping[int, torch.Tensor] | None = None,
        raised: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        self.session = read_session(cache)
        refuse_aside(cache.plan)
        check_heads(cache.seam.geometry, masked)
        self.windows, self.kinds, self.states = cache.windows, cache.kinds, States()
        self.masked: dict[int, list[int]] = defaultdict(list)
        for layer, head in masked:
            self.masked[layer].append(head)
        self.raised = dict(raised or {})
        for layer, places in (hidden or {}).items():
            own = self.raised.get(layer, torch.zeros(1, device=places.device))
            self.raised[layer] = own.masked_fill(places[:, None], -torch.inf)
        self.queries: dict[int, tuple[torch.Tensor, Asked]] = {}

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """Tokens before the newest one, padding of the longest row included."""
        return self.session.passed - 1

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """One layer: q [b, H, 1, d] -> out [b, H, 1, e]."""
        if q.shape[2] != 1:
            raise SessionError(f"a second look is at one token of each row, and {q.shape[2]} were given")
        self.queries[layer] = (q, asked)
        out = read_aside(self.session, layer, q, k, v, asked.scoring, self.raised.get(layer))
        if layer in self.masked:
            out[:, self.masked[layer]] = 0
        return out


def read_session(cache: Cache) -> Session:
    """The session of a cache that has read something."""
    if cache.session is None:
        raise SessionError("the cache is empty; there is no newest token to look at again")
    return cache.session


@torch.no_grad()
def look_again(model: torch.nn.Module, beside: Beside, newest: torch.Tensor) -> torch.Tensor:
    """The logits [b, vocab] after the newest tokens `newest [b, 1]` of a cache in a second look."""
    session = beside.session
    seen, passed = torch.tensor(session.seen, device=newest.device), session.passed
    told: dict[str, torch.Tensor] = {}
    if bool((seen < passed).any()):
        columns = torch.arange(passed, device=newest.device)
        told = {
            "attention_mask": (columns >= passed - seen[:, None]).long(),
            "position_ids": seen[:, None] - 1,
        }
    logits: torch.Tensor = forward(model, beside, newest, **told).logits
    return logits[:, -1].float()
