"""Semi-autoregressive sampling of a masked-diffusion model: block after block, each filled in the order of confidence.

The text so far lies in a `headwise.Cache` of any recipe that reads all it holds; looks at the window behind it store
nothing, and a finished block is read into the cache as any text is. So no key is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headwise.decoding.diffusion.blocks import Blocks
from headwise.errors import ContextError, HeadwiseError
from headwise.knobs import Knobs, NonNegative, Positive, PositiveWeight
from headwise.seams.transformers.beside import read_session
from headwise.seams.transformers.cache import DECODE_TOKENS, Cache
from headwise.seams.transformers.drive import feed
from headwise.seams.transformers.window import look_at


@dataclass(frozen=True)
class Filling(Knobs):
    """How an answer of `length` tokens is filled.

    mask, end: ids of a token that is not known yet, and of the one that ends an answer. window: masked tokens shown
    from a block's beginning on, of which its own alone are filled. tokens: those filled in every look, the surest
    first; threshold: also all others of which a look is surer than that. drafts: above 0 self-speculation verifies so
    many guesses a look (`speculate`), and `tokens` and `threshold` must be 1.
    """

    length: Positive
    mask: NonNegative
    end: NonNegative
    window: Positive = 16
    tokens: Positive = 1
    threshold: PositiveWeight = 1.0
    drafts: NonNegative = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drafts and (self.tokens > 1 or self.threshold < 1):
            raise HeadwiseError(
                f"drafts={self.drafts} writes what one token a look writes, and tokens={self.tokens}, threshold="
                f"{self.threshold} fill several; give tokens=1 and threshold=1, or drafts=0"
            )


@dataclass(frozen=True)
class Filled:
    """An answer `ids`, END and what follows it in its block included. looks: forwards over windows. reads: forwards by
    which finished blocks were read into the cache. blocks: the sizes of the blocks. order: by token, in which look of
    its block it was filled."""

    ids: list[int]
    looks: int
    reads: int
    blocks: list[int]
    order: list[int]

    @property
    def calls(self) -> int:
        """Forwards in all."""
        return self.looks + self.reads


class Gaze:
    """Looks of a model at windows behind a cache, counted."""

    def __init__(self, model: Any, cache: Cache, filling: Filling) -> None:
        self.model, self.cache, self.filling, self.count = model, cache, filling, 0

    def __call__(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest word of every place of the states [s, t] of a window, and the confidence in it, [s, t] each."""
        self.count += 1
        logits = look_at(self.model, self.cache, states)
        logits[..., self.filling.mask] = -torch.inf
        best = logits.softmax(-1).max(-1)
        return best.indices, best.values


def fill(model: Any, cache: Cache, filling: Filling, blocks: Blocks) -> Filled:
    """Write an answer behind the text that the cache has read, which has read the answer afterwards, but for its last
    block."""
    _check(cache, filling, blocks)
    gaze, answer, sizes, order, reads = Gaze(model, cache, filling), list[int](), list[int](), list[int](), 0
    device = read_session(cache).device
    while len(answer) < filling.length and filling.end not in answer:
        left = filling.length - len(answer)
        window = torch.full((min(left, filling.window),), filling.mask, device=device)
        words, confidence = (one[0] for one in gaze(window[None]))
        size = blocks.tokens(words, confidence)
        advance = _speculate if filling.drafts else _denoise
        order += advance(gaze, window, size, (words, confidence))
        answer += window[:size].tolist()
        sizes.append(size)
        if len(answer) < filling.length and filling.end not in answer:
            feed(model, cache, window[None, :size])
            reads += -(-size // DECODE_TOKENS)
    return Filled(answer, gaze.count, reads, sizes, order)


Seen = tuple[torch.Tensor, torch.Tensor]  # words [t] and confidence [t] of a look at a window


def _denoise(gaze: Gaze, window: torch.Tensor, size: int, seen: Seen) -> list[int]:
    """Fill the first `size` places of a window [t], in place, from a first look on; in which look each was."""
    order, look, filling = [0] * size, 0, gaze.filling
    while True:
        for place in _surest(window, size, seen, gaze.filling):
            window[place], order[place] = seen[0][place], look
        if not bool((window[:size] == filling.mask).any()):
            return order
        look += 1
        words, confidence = gaze(window[None])
        seen = words[0], confidence[0]


def _surest(window: torch.Tensor, size: int, seen: Seen, filling: Filling) -> list[int]:
    """The places that a look fills: the surest ones, and all of which it is sure enough."""
    ranked = _ranked(window, size, seen, filling.mask)
    return [place for rank, place in enumerate(ranked) if rank < filling.tokens or seen[1][place] > filling.threshold]


def _ranked(window: torch.Tensor, size: int, seen: Seen, mask: int) -> list[int]:
    """The places of a block that are not known yet, the surest first; of equals the first one."""
    places = (window[:size] == mask).nonzero()[:, 0].tolist()
    return sorted(places, key=lambda place: (-float(seen[1][place]), place))


def _speculate(gaze: Gaze, window: torch.Tensor, size: int, seen: Seen) -> list[int]:
    """The same as `_denoise` fills with one token a look, in fewer looks (Gao et al., Self Speculative Decoding for
    Diffusion Large Language Models, arXiv 2510.04147, section 3).

    The surest guesses of a look are drafts, in its order. The next look is at the window with the first of them, with
    the first two and so on; a draft was right where the look at the window before it comes to the same place and word.
    """
    order, look, mask = [0] * size, 0, gaze.filling.mask
    while True:
        places = _ranked(window, size, seen, mask)[: gaze.filling.drafts]
        states, state = [], window.clone()
        for place in places:
            state[place] = seen[0][place]
            states.append(state.clone())
        unfinished = [one for one in states if bool((one[:size] == mask).any())]
        after = gaze(torch.stack(unfinished)) if unfinished else None
        drafted = seen[0]
        for number, place in enumerate(places):
            if number:
                assert after is not None, "the state before this draft is unfinished"
                seen = after[0][number - 1], after[1][number - 1]
                if _ranked(window, size, seen, mask)[0] != place or seen[0][place] != drafted[place]:
                    break
            window[place], order[place] = drafted[place], look + number
        else:
            if after is not None and len(unfinished) == len(places):
                seen = after[0][-1], after[1][-1]
        look += 1
        if not bool((window[:size] == mask).any()):
            return order


def _check(cache: Cache, filling: Filling, blocks: Blocks) -> None:
    """Refuse what could not be filled, before any look."""
    if blocks.size > filling.window:
        raise HeadwiseError(f"blocks of {blocks.size} tokens do not fit a window of {filling.window}; give a wider one")
    longest, passed = cache.plan.longest, cache.get_seq_length()
    if not passed:
        raise ContextError("the cache is empty; read a prompt into it before the answer is filled")
    if longest is not None and passed + filling.length > longest:
        raise ContextError(
            f"length={filling.length}: after {passed} tokens, {longest - passed} more fit the {longest} positions the "
            "model was trained on"
        )
