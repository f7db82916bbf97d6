"""Searches for a text that transformers' `generate` no longer brings: contrastive search, and diverse beams.

Both read a prompt into a `headwise.Cache` of one row and write over copies of that row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from headwise.errors import HeadwiseError
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.drive import end_tokens, refuse_answer
from headwise.seams.transformers.forward import forward, last_states


def contrastive_search(
    model: Any, cache: Cache, ids: torch.Tensor, new: int, k: int = 4, alpha: float = 0.6
) -> list[int]:
    """At most `new` tokens after a prompt ids [1, n]: of the `k` likeliest the one whose probability, less how much its
    state is like one before it, weighed by `alpha`, is most (Su et al., A Contrastive Framework for Neural Text
    Generation, arXiv 2202.06417, section 4). At alpha=0 that is greedy decoding.
    """
    if k < 1 or not 0 <= alpha <= 1:
        raise HeadwiseError(f"k={k}, alpha={alpha}: give one candidate at least, and a weight of 0 to 1")
    logits, before = _heard(model, cache, ids)
    refuse_answer(cache, new)
    before, written, ends = normalize(before[0], dim=-1), list[int](), end_tokens(model)
    logits = logits[:, -1]
    while True:
        chances, words = logits[0].softmax(-1).topk(k)
        if len(written) + 1 == new:  # nothing is written behind the last one: its state is not looked at
            return [*written, int(words[0])]
        cache.batch_repeat_interleave(k)
        after, states = _heard(model, cache, words[:, None])
        own = normalize(states[:, -1], dim=-1)
        best = int(((1 - alpha) * chances - alpha * (own @ before.T).amax(1)).argmax())
        cache.batch_select_indices(torch.tensor([best]))
        written.append(int(words[best]))
        if written[-1] in ends:
            return written
        before, logits = torch.cat((before, own[best, None])), after[best, None, -1]


def diverse_beams(
    model: Any, cache: Cache, ids: torch.Tensor, new: int, groups: int = 4, width: int = 1, penalty: float = 1.0
) -> list[int]:
    """At most `new` tokens after a prompt ids [1, n], the likeliest of `groups` groups of `width` beams, by the mean
    log-probability of their tokens. Groups choose one after the other, and a token costs `penalty` for every beam
    before that has chosen it at that place (Vijayakumar et al., Diverse Beam Search, arXiv 1610.02424, section 4).
    """
    if groups < 1 or width < 1:
        raise HeadwiseError(f"groups={groups}, width={width}: give one beam at least")
    logits, _ = _heard(model, cache, ids)
    refuse_answer(cache, new)
    rows, ends = groups * width, end_tokens(model)
    cache.batch_repeat_interleave(rows)
    logs = logits[:, -1].log_softmax(-1).repeat(rows, 1)
    sums = torch.full((rows,), -torch.inf, device=logs.device)
    sums[::width] = 0.0  # all beams of a group are the same at first: one of them goes on
    texts: list[list[int]] = [[] for _ in range(rows)]
    for place in range(new):
        for row, text in enumerate(texts):
            if text and text[-1] in ends:  # an ended text goes on with its end, which costs nothing
                logs[row] = -torch.inf
                logs[row, text[-1]] = 0.0
        parents, words, sums = _chosen(sums, logs, groups, width, penalty)
        texts = [[*texts[parent], word] for parent, word in zip(parents, words, strict=True)]
        if place + 1 == new or all(text[-1] in ends for text in texts):
            break
        cache.batch_select_indices(torch.tensor(parents))
        logs = _heard(model, cache, torch.tensor(words)[:, None])[0][:, -1].log_softmax(-1)
    cut = [_ended(text, ends) for text in texts]
    return max(zip(cut, sums.tolist(), strict=True), key=lambda one: one[1] / len(one[0]))[0]


def _chosen(
    sums: torch.Tensor, logs: torch.Tensor, groups: int, width: int, penalty: float
) -> tuple[list[int], list[int], torch.Tensor]:
    """Of every beam to be, the row that it goes on from, its next token, and its sum of log-probabilities."""
    used = torch.zeros(logs.shape[1], device=logs.device)
    parents, words, kept = list[int](), list[int](), []
    for first in range(0, groups * width, width):
        own = sums[first : first + width, None] + logs[first : first + width]
        best = (own - penalty * used).flatten().topk(width).indices
        for place in best.tolist():
            row, word = divmod(place, logs.shape[1])
            parents.append(first + row)
            words.append(word)
            used[word] += 1
        kept.append(own.flatten()[best])
    return parents, words, torch.cat(kept)


def _ended(text: list[int], ends: Any) -> list[int]:
    """A text up to its first end."""
    return text[: next((place + 1 for place, word in enumerate(text) if word in ends), len(text))]


def _heard(model: Any, cache: Cache, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits [b, t, vocab] and last states [b, t, d] of the next tokens ids [b, t] of a cache."""
    with torch.no_grad(), last_states(model) as states:
        logits = forward(model, cache, ids).logits.float()
    return logits, states[0].float()
