"""A forward over a window of tokens behind a cache, of which nothing is stored: how a masked-diffusion model looks."""

from __future__ import annotations

import torch

from headwise.cache.states import States
from headwise.engine.window import read_window, refuse_window
from headwise.errors import SessionError
from headwise.seams.transformers.beside import read_session
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.door import Door
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.probe import Asked


class Window(Door):
    """What the tokens of a window behind `cache` read. sight: bool [t, t], which of them each sees, itself always."""

    def __init__(self, cache: Cache, sight: torch.Tensor) -> None:
        self.session = read_session(cache)
        refuse_window(cache.plan)
        self.windows, self.kinds, self.states, self.sight = cache.windows, cache.kinds, States(), sight

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """Tokens before the window."""
        return self.session.passed

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """One layer: q [b, H, t, d] -> out [b, H, t, e]."""
        return read_window(self.session, layer, q, k, v, asked.scoring, self.sight)


@torch.no_grad()
def look_at(model: torch.nn.Module, cache: Cache, states: torch.Tensor) -> torch.Tensor:
    """The logits [s, t, vocab] of s states of one window, ids [s, t], each behind all that the cache of one row holds,
    in one forward that reads it once; a state sees itself whole and none of the others."""
    if read_session(cache).rows > 1:
        raise SessionError(f"the cache holds {read_session(cache).rows} rows; a window is looked at behind one")
    count, size = states.shape
    own = torch.arange(count, device=states.device).repeat_interleave(size)
    places = cache.get_seq_length() + torch.arange(size, device=states.device).repeat(count)
    window = Window(cache, own[:, None] == own)
    logits: torch.Tensor = forward(model, window, states.view(1, -1), position_ids=places[None]).logits
    return logits[0].float().unflatten(0, (count, size))
